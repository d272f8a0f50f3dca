//! Frames are read or refused, and a refusal names its code.
#![no_main]

use couloir::http::h2::Code;
use couloir::http::h2::frame::{self, Frame, HEAD, Head, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Some(head) = Head::parse(rest) {
        let Some(payload) = rest.get(HEAD..HEAD + head.length) else {
            return;
        };
        match frame::parse(&head, payload) {
            Ok(Frame::Data { data, .. }) => assert!(data.len() <= head.length),
            Ok(Frame::Settings(list)) => {
                for (id, value) in list.iter() {
                    let _ = Settings::check(id, value);
                }
            }
            Ok(_) => {}
            Err(e) => assert!(e.0 != Code::NO_ERROR && !e.to_string().is_empty()),
        }
        rest = &rest[HEAD + head.length..];
    }
});
