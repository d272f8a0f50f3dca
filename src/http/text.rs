//! Bytes that a client or an origin sent, on their way through text into the error log.
//!
//! Messages of the error log are made with `fmt`, which knows nothing but UTF-8, while nginx writes the bytes as they
//! came. What is no UTF-8 travels as characters for private use, which the log turns back into the bytes.

use std::borrow::Cow;

/// The character that stands for the byte 0; those of the other bytes follow it, up to the last character there is.
const FIRST: u32 = 0x10_ff00;

/// Bytes as text for a message of the error log: UTF-8 stays what it is, other bytes become characters that
/// [`byte`] turns back.
pub fn shown(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_stand_in) => Cow::Borrowed(text),
        _ => Cow::Owned(stand_ins(bytes)),
    }
}

fn stand_ins(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 16);
    let raw = |out: &mut String, bytes: &[u8]| {
        out.extend(
            bytes
                .iter()
                .filter_map(|b| char::from_u32(FIRST + u32::from(*b))),
        );
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // a character that means something else here is given byte by byte
            if is_stand_in(c) {
                raw(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(c);
            }
        }
        raw(&mut out, chunk.invalid());
    }
    out
}

fn is_stand_in(c: char) -> bool {
    u32::from(c) >= FIRST
}

/// The byte that begins `text` as a character of [`shown`], which is 4 bytes long.
pub fn byte(text: &[u8]) -> Option<u8> {
    match text {
        [0xf4, 0x8f, high @ 0xbc..=0xbf, low @ 0x80..=0xbf, ..] => {
            Some((high - 0xbc) << 6 | (low & 0x3f))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn back(text: &str) -> Vec<u8> {
        let mut rest = text.as_bytes();
        let mut out = Vec::new();
        while let Some(first) = rest.first() {
            let (b, n) = byte(rest).map_or((*first, 1), |b| (b, 4));
            out.push(b);
            rest = &rest[n..];
        }
        out
    }

    #[test]
    fn utf8_stays() {
        assert!(matches!(shown("aä€\u{1}".as_bytes()), Cow::Borrowed(_)));
        assert_ne!(shown("\u{10ff41}".as_bytes()), "\u{10ff41}");
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in any::<Vec<u8>>(), text in any::<String>()) {
            prop_assert_eq!(back(&shown(&bytes)), bytes);
            let text = text + "\u{10ff41}\u{10ffff}";
            prop_assert_eq!(back(&shown(text.as_bytes())), text.as_bytes());
        }
    }
}
