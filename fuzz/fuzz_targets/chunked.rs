//! A chunked body decoded in two pieces is the body decoded in one.
#![no_main]

use couloir::http::h1::chunked::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u16, &[u8])| {
    let (trailers, split, text) = input;
    let decoder = || if trailers { Decoder::with_trailers(1024) } else { Decoder::new() };
    let whole = decode(decoder(), &[text]);
    let (a, b) = text.split_at(usize::from(split).min(text.len()));
    assert_eq!(whole, decode(decoder(), &[a, b]));
});

/// The content, and whether the body ended; `None` if it is refused.
fn decode(mut decoder: Decoder, pieces: &[&[u8]]) -> Option<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    for piece in pieces {
        let decoded = decoder.decode(piece, |range| body.extend_from_slice(&piece[range])).ok()?;
        assert!(decoded.consumed <= piece.len());
    }
    Some((body, decoder.is_done()))
}
