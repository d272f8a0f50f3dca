//! Base64 decoded in two pieces is base64 decoded in one, and what was encoded comes out again.
#![no_main]

use couloir::features::grpc_web::{Decoder, Encoder, Invalid};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (split, data) = input;
    let (a, b) = data.split_at(usize::from(split).min(data.len()));
    assert_eq!(decode(&[data]), decode(&[a, b]));

    let (mut encoder, mut text) = (Encoder::default(), Vec::new());
    encoder.push(a, &mut text);
    if split % 2 == 0 {
        encoder.flush(&mut text);
    }
    encoder.push(b, &mut text);
    encoder.flush(&mut text);
    assert_eq!(decode(&[&text]), Ok((data.to_vec(), true)));
});

fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Invalid> {
    let (mut decoder, mut out) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.push(piece, &mut out)?;
    }
    Ok((out, decoder.is_whole()))
}
