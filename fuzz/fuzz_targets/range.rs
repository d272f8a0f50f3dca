//! Ranges lie within the document.
#![no_main]

use couloir::http::range::{Ranges, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, u8, &[u8])| {
    let (length, max, header) = input;
    let inside = |(from, to): (u64, u64)| assert!(from < to && to <= length, "{from}-{to} of {length}");
    match parse(header, length, usize::from(max)) {
        Ranges::Single(from, to) => inside((from, to)),
        Ranges::Multi(parts) => {
            assert!(parts.len() <= usize::from(max));
            parts.into_iter().for_each(inside);
        }
        Ranges::Ignore | Ranges::Unsatisfiable => {}
    }
});
