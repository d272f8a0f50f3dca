//! Recoding of text by tables, piece by piece.

use std::io::Write;
use std::sync::Arc;

/// How one charset is turned into another.
#[derive(Debug)]
pub enum Recoding {
    /// Byte by byte.
    Bytes(Box<[u8; 256]>),
    /// From single bytes to UTF-8.
    ToUtf8(Box<[Encoded; 256]>),
    /// From UTF-8 to single bytes: pages of 256 characters, where 0 is "not there".
    FromUtf8(Box<Pages>),
}

/// Single bytes for the characters up to U+FFFF.
pub type Pages = [Option<Box<[u8; 256]>>; 256];

/// A character in UTF-8: its length and up to three bytes.
pub type Encoded = (u8, [u8; 3]);

impl Recoding {
    /// Whether the length of a text may change.
    pub fn changes_length(&self) -> bool {
        !matches!(self, Recoding::Bytes(_))
    }
}

/// Recodes one text.
pub struct Recoder {
    table: Arc<Recoding>,
    /// A character that is not complete yet.
    saved: Vec<u8>,
}

impl Recoder {
    /// For a new text.
    pub fn new(table: Arc<Recoding>) -> Recoder {
        Recoder {
            table,
            saved: Vec::new(),
        }
    }

    /// Appends the recoded text to `out`; an incomplete character waits for the next call.
    pub fn recode(&mut self, data: &[u8], out: &mut Vec<u8>) {
        match &*self.table {
            Recoding::Bytes(table) => out.extend(data.iter().map(|b| table[usize::from(*b)])),
            Recoding::ToUtf8(table) => {
                for b in data {
                    let (n, bytes) = &table[usize::from(*b)];
                    out.extend_from_slice(bytes.get(..usize::from(*n)).unwrap_or_default());
                }
            }
            Recoding::FromUtf8(pages) => {
                let mut rest = data;
                while !self.saved.is_empty() {
                    let Some((first, more)) = rest.split_first() else {
                        return;
                    };
                    self.saved.push(*first);
                    rest = more;
                    while !self.saved.is_empty()
                        && let Decoded::Used(n) = one(pages, &self.saved, out)
                    {
                        self.saved.drain(..n);
                    }
                }
                while !rest.is_empty() {
                    let ascii = rest.iter().position(|b| *b >= 0x80).unwrap_or(rest.len());
                    let (plain, other) = rest.split_at(ascii);
                    out.extend_from_slice(plain);
                    rest = match other {
                        [] => return,
                        _ => match one(pages, other, out) {
                            Decoded::Used(n) => other.get(n..).unwrap_or_default(),
                            Decoded::Incomplete => {
                                self.saved.extend_from_slice(other);
                                return;
                            }
                        },
                    };
                }
            }
        }
    }
}

enum Decoded {
    /// So many bytes were a character, or none at all.
    Used(usize),
    Incomplete,
}

/// Appends the first character of `data`: its byte, a character reference where the charset has none, or `?`.
fn one(pages: &Pages, data: &[u8], out: &mut Vec<u8>) -> Decoded {
    let Some((character, used)) = decode(data) else {
        return Decoded::Incomplete;
    };
    match character {
        None => out.push(b'?'),
        Some(c @ 0..0x80) => out.push(c as u8),
        Some(c) => {
            let page = pages.get((c >> 8) as usize).and_then(Option::as_ref);
            match page.map(|p| p[(c & 0xff) as usize]) {
                Some(byte) if byte != 0 => out.push(byte),
                _ => {
                    // writing to a Vec cannot fail
                    let _ = write!(out, "&#{c};");
                }
            }
        }
    }
    Decoded::Used(used)
}

/// The first character of a text and how many bytes it takes, as nginx decodes: surrogates pass, and where a byte is
/// not what must follow, all up to it is one fault. `None` where the text ends too early.
pub fn decode(data: &[u8]) -> Option<(Option<u32>, usize)> {
    let first = *data.first()?;
    let (more, bits, least) = match first {
        0..0x80 => return Some((Some(u32::from(first)), 1)),
        0xc2..=0xdf => (1, first & 0x1f, 0x80),
        0xe0..=0xef => (2, first & 0x0f, 0x800),
        0xf0..=0xf7 => (3, first & 0x07, 0x10000),
        _ => return Some((None, 1)),
    };
    let rest = data.get(1..=more)?;
    let mut c = u32::from(bits);
    for (i, b) in rest.iter().enumerate() {
        if *b < 0x80 {
            return Some((None, i + 2));
        }
        c = c << 6 | u32::from(b & 0x3f);
    }
    Some(((least..=0x10_ffff).contains(&c).then_some(c), more + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from_utf8(pieces: &[&[u8]]) -> Vec<u8> {
        let mut pages: Box<Pages> = Box::new([const { None }; 256]);
        let mut page = Box::new([0; 256]);
        page[0x16] = 0x80; // U+0416
        pages[4] = Some(page);
        let mut r = Recoder::new(Arc::new(Recoding::FromUtf8(pages)));
        let mut out = Vec::new();
        for p in pieces {
            r.recode(p, &mut out);
        }
        out
    }

    #[test]
    fn utf_8_becomes_bytes_and_references() {
        assert_eq!(from_utf8(&["aЖb".as_bytes()]), b"a\x80b");
        assert_eq!(from_utf8(&["Я€𝄞".as_bytes()]), b"&#1071;&#8364;&#119070;");
        assert_eq!(
            from_utf8(&[b"\x80\xff\xc0\xd0A\xe0\x80\x80\xf7\xbf\xbf\xbf!"]),
            b"??????!"
        );
        assert_eq!(from_utf8(&[b"a\xd0", b"", b"\x96b"]), b"a\x80b");
        assert_eq!(
            from_utf8(&[b"\xf0\x9d", b"\x84", b"\x9ec\xe2\x82"]),
            b"&#119070;c"
        );
    }

    #[test]
    fn bytes_become_others() {
        let mut table = Box::new([b'?'; 256]);
        table[usize::from(b'X')] = b'Y';
        let mut out = Vec::new();
        Recoder::new(Arc::new(Recoding::Bytes(table))).recode(b"XZX", &mut out);
        assert_eq!(out, b"Y?Y");
        let mut table: Box<[Encoded; 256]> = Box::new([(1, *b"?\0\0"); 256]);
        table[0x88] = (3, [0xe2, 0x82, 0xac]);
        table[0x89] = (2, [0xd0, 0x96, 0]);
        let mut out = Vec::new();
        Recoder::new(Arc::new(Recoding::ToUtf8(table))).recode(b"\x88\x89\x8a", &mut out);
        assert_eq!(out, "€Ж?".as_bytes());
    }

    proptest! {
        #[test]
        fn characters_are_decoded_as_rust_encodes_them(c in any::<char>()) {
            let mut buf = [0; 4];
            let text = c.encode_utf8(&mut buf).as_bytes();
            prop_assert_eq!(decode(text), Some((Some(c as u32), text.len())));
            for n in 0..text.len() {
                prop_assert_eq!(decode(&text[..n]), None);
            }
        }

        #[test]
        fn pieces_make_no_difference(data in prop::collection::vec(any::<u8>(), 0..60), cut in 1usize..6) {
            let pieces: Vec<&[u8]> = data.chunks(cut).collect();
            prop_assert_eq!(from_utf8(&pieces), from_utf8(&[&data]));
        }
    }
}
