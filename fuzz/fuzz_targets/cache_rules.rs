//! What an origin says about storing a response is read without surprises.
#![no_main]

use couloir::cache::rules::{Freshness, MAX_VARY};
use couloir::http::headers::Headers;
use libfuzzer_sys::fuzz_target;

const NAMES: [&[u8]; 6] = [
    b"Cache-Control",
    b"Expires",
    b"X-Accel-Expires",
    b"Vary",
    b"Set-Cookie",
    b"Age",
];

fuzz_target!(|input: (u32, Vec<(u8, Vec<u8>)>)| {
    let (ignored, fields) = input;
    let mut headers = Headers::new();
    for (name, value) in &fields {
        headers.append(NAMES[usize::from(*name) % NAMES.len()], value);
    }
    let f = Freshness::of(&headers, ignored, 1_000_000);
    assert!(f.valid >= 0 && f.updating >= 0 && f.error >= 0);
    assert!(!f.may_store() || f.vary.len() <= MAX_VARY);
});
