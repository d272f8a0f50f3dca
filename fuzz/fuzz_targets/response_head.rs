//! An origin's head is read within its bytes, whatever they are.
#![no_main]

use couloir::http::h1::response::{Parser, Progress, UpstreamHead};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let (mut parser, mut head) = (Parser::default(), UpstreamHead::default());
    let mut text = text;
    while !text.is_empty() {
        match parser.parse(text, 4096, &mut head) {
            Progress::EarlyHints { consumed } => text = &text[consumed..],
            Progress::Done { consumed } => {
                assert!(consumed <= text.len());
                assert!(!(head.chunked && head.content_length.is_some()));
                let _ = (head.body(false), head.body(true), head.reason());
                return;
            }
            Progress::Need | Progress::Bad(_) => return,
        }
    }
});
