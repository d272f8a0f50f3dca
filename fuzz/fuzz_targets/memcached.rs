//! A value that memcached sends in two pieces is the value sent in one.
#![no_main]

use couloir::exchange::memcached::{Line, Value, line};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8], &[u8])| {
    let (split, key, text) = input;
    let Line::Value { line, length, .. } = line(text, key, true, 4096) else {
        return;
    };
    let body = &text[line..];
    let (a, b) = body.split_at(usize::from(split).min(body.len()));
    assert_eq!(read(length, &[body]).0, read(length, &[a, b]).0);
});

/// The value, and whether it ended as it must.
fn read(length: u64, pieces: &[&[u8]]) -> (Vec<u8>, Option<bool>) {
    let mut value = Value::new(length);
    let mut out = Vec::new();
    for piece in pieces {
        let p = value.feed(piece);
        assert!(p.value <= p.used && p.used <= piece.len());
        out.extend_from_slice(&piece[..p.value]);
        if p.ended.is_some() {
            return (out, p.ended);
        }
    }
    (out, None)
}
