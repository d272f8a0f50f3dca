//! WebSockets over HTTP/2 (RFC 8441) are asked for with HTTP/1.1 at the origin (RFC 6455, section 4).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use std::hash::{BuildHasher, RandomState};

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A `Sec-WebSocket-Key`: it need not be secret, only another one each time.
pub(super) fn key(seed: (u64, u32)) -> String {
    let state = RandomState::new();
    let word = |n: u8| state.hash_one((seed, n)).to_ne_bytes();
    STANDARD.encode([word(0), word(1)].as_flattened())
}

/// What the origin answers a key with.
pub(super) fn accept(key: &str) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut text = [0; 28];
    let _ = STANDARD.encode_slice(digest, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_rfc() {
        assert_eq!(
            &accept("dGhlIHNhbXBsZSBub25jZQ=="),
            b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(key((1, 1)).len(), 24);
        assert_ne!(key((1, 1)), key((1, 3)));
    }
}
