//! An application's head is read within its bytes, whatever they are, and gives a final status.
#![no_main]

use couloir::exchange::cgi::{Parser, Progress};
use couloir::http::h1::response::UpstreamHead;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (status_line, text) = input;
    let mut head = UpstreamHead::default();
    if let Progress::Done(length) = Parser::new(status_line).parse(text, 4096, &mut head) {
        assert!(length <= text.len());
        assert!(head.status >= 200 || head.status == 101);
        assert!(!head.chunked);
    }
});
