//! Decoding of header blocks.

use super::table::Table;
use super::{Fields, huffman};
use std::fmt;

/// Decodes the header blocks of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What we allow the table to be (SETTINGS_HEADER_TABLE_SIZE).
    allowed: usize,
}

/// What a header list may take; what is larger ends the decoding, so that no small block becomes a large list.
#[derive(Clone, Copy, Debug)]
pub struct ListLimits {
    /// Bytes of one name or value, as encoded.
    pub string: usize,
    /// Bytes of all names and values.
    pub list: usize,
}

/// Why a block is refused: always an error of the connection, whose table is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The block ends inside of a field.
    Truncated,
    /// A number that is too large.
    Number(&'static str),
    /// An index that nothing stands at.
    Index(usize),
    /// A new size of the table that is not allowed, does not stand at the beginning, or follows two others.
    TableSize(usize),
    /// Not a Huffman code.
    Huffman,
    /// A field without a name.
    NoName,
    /// One string is too large.
    LargeField,
    /// The list is too large.
    LargeList,
}

/// Table size updates at the beginning of a block: the smallest size since the last block and the final one (RFC 7541,
/// section 4.2). They cost as much as a field and count nothing against [`ListLimits`].
const UPDATES: usize = 2;

impl Decoder {
    /// A decoder whose table may be of `allowed` bytes.
    pub fn new(allowed: usize) -> Decoder {
        Decoder {
            table: Table::new(allowed),
            allowed,
        }
    }

    /// Gives back memory that the table does not need as it is.
    pub fn rest(&mut self) {
        self.table.fit();
    }

    /// Appends the fields of a whole block to `out`.
    ///
    /// # Errors
    /// [`DecodeError`]; fields that came before the error are in `out`.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: ListLimits,
        out: &mut Fields,
    ) -> Result<(), DecodeError> {
        let mut input = Input(block);
        let mut left = limits.list;
        let mut updates = 0;
        while let Some(first) = input.0.first().copied() {
            if first >= 0x80 {
                let index = input.number(7, "header index")?;
                let (name, value) = self.table.get(index).ok_or(DecodeError::Index(index))?;
                left = left
                    .checked_sub(name.len() + value.len())
                    .ok_or(DecodeError::LargeList)?;
                out.push(name, value);
                continue;
            }
            if first & 0xe0 == 0x20 {
                let size = input.number(5, "size update")?;
                updates += 1;
                if size > self.allowed || updates > UPDATES || !out.is_empty() {
                    return Err(DecodeError::TableSize(size));
                }
                self.table.resize(size);
                continue;
            }
            let indexed = first & 0xc0 == 0x40;
            let index = input.number(if indexed { 6 } else { 4 }, "header index")?;
            let start = out.arena.len();
            if index == 0 {
                input.string(limits.string, &mut out.arena)?;
                if out.arena.len() == start {
                    return Err(DecodeError::NoName);
                }
            } else {
                let (name, _) = self.table.get(index).ok_or(DecodeError::Index(index))?;
                out.arena.extend_from_slice(name);
            }
            let middle = out.arena.len();
            if let Err(e) = input.string(limits.string, &mut out.arena) {
                out.arena.truncate(start);
                return Err(e);
            }
            let end = out.arena.len();
            let Some(rest) = left.checked_sub(end - start) else {
                out.arena.truncate(start);
                return Err(DecodeError::LargeList);
            };
            left = rest;
            out.ends.push((middle, end));
            if indexed {
                let name = out.arena.get(start..middle).unwrap_or_default();
                let value = out.arena.get(middle..end).unwrap_or_default();
                self.table.add(name, value);
            }
        }
        Ok(())
    }
}

/// Looks at the first bytes of a block that has not come as a whole for a number that is too long: such a block is refused
/// without waiting for the rest.
pub fn too_long(part: &[u8]) -> Option<DecodeError> {
    const LOOK: usize = 64;
    let mut input = Input(part.get(..LOOK).unwrap_or(part));
    let mut field = || {
        let first = input.0.first().copied().ok_or(DecodeError::Truncated)?;
        let (bits, what, strings) = match first {
            0x80.. => (7, "header index", 0),
            0x40.. => (6, "header index", 1),
            0x20.. => (5, "size update", 0),
            _ => (4, "header index", 1),
        };
        let named = input.number(bits, what)? == 0;
        for _ in 0..strings * (1 + usize::from(named)) {
            let length = input.number(7, "length")?;
            input.0 = input.0.get(length..).ok_or(DecodeError::Truncated)?;
        }
        Ok(())
    };
    loop {
        match field() {
            Ok(()) => {}
            Err(e @ DecodeError::Number(_)) => return Some(e),
            Err(_) => return None,
        }
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number behind so many bits (RFC 7541, section 5.1); four bytes at most, as in nginx.
    fn number(&mut self, bits: u32, what: &'static str) -> Result<usize, DecodeError> {
        let mask = (1usize << bits) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14] {
            let b = self.byte()?;
            value += usize::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Number(what))
    }

    fn string(&mut self, limit: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let coded = self.0.first().is_some_and(|b| *b >= 0x80);
        let length = self.number(7, "length")?;
        if length > limit {
            return Err(DecodeError::LargeField);
        }
        let (text, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        if coded {
            huffman::decode(text, out).map_err(|_| DecodeError::Huffman)
        } else {
            out.extend_from_slice(text);
            Ok(())
        }
    }
}

/// What to log behind "client" or "upstream".
impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated => f.write_str("sent header block with incorrect length"),
            DecodeError::Number("length") => {
                f.write_str("sent header field with too long length value")
            }
            DecodeError::Number(what) => write!(f, "sent header block with too long {what} value"),
            DecodeError::Index(0) => f.write_str("sent invalid hpack table index 0"),
            DecodeError::Index(n) => write!(f, "sent out of bound hpack table index: {n}"),
            DecodeError::TableSize(n) => write!(f, "sent invalid table size update: {n}"),
            DecodeError::Huffman => f.write_str("sent invalid encoded header field"),
            DecodeError::NoName => f.write_str("sent zero header name length"),
            DecodeError::LargeField => f.write_str("sent too large header field"),
            DecodeError::LargeList => f.write_str("sent too large header"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: ListLimits = ListLimits {
        string: 8192,
        list: 32_768,
    };

    fn hex(s: &str) -> Vec<u8> {
        let digits: Vec<u8> = s.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }

    fn list(d: &mut Decoder, block: &[u8]) -> Result<String, DecodeError> {
        let mut f = Fields::default();
        d.decode(block, LIMITS, &mut f)?;
        let line = |(n, v)| {
            [
                String::from_utf8_lossy(n),
                "=".into(),
                String::from_utf8_lossy(v),
            ]
            .concat()
        };
        Ok(f.iter().map(line).collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn examples_of_the_rfc() {
        // appendix C.4: three requests with Huffman codes and a dynamic table
        let mut d = Decoder::new(4096);
        for (block, want) in [
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                ":method=GET|:scheme=http|:path=/|:authority=www.example.com",
            ),
            (
                "8286 84be 5886 a8eb 1064 9cbf",
                ":method=GET|:scheme=http|:path=/|:authority=www.example.com|cache-control=no-cache",
            ),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                ":method=GET|:scheme=https|:path=/index.html|:authority=www.example.com|custom-key=custom-value",
            ),
        ] {
            assert_eq!(list(&mut d, &hex(block)).unwrap(), want);
        }
        // appendix C.2.1 to C.2.3
        let mut d = Decoder::new(4096);
        let block = hex("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572");
        assert_eq!(list(&mut d, &block).unwrap(), "custom-key=custom-header");
        assert_eq!(list(&mut d, &[0xbe]).unwrap(), "custom-key=custom-header");
        let block = hex("040c 2f73 616d 706c 652f 7061 7468");
        assert_eq!(list(&mut d, &block).unwrap(), ":path=/sample/path");
        let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
        assert_eq!(list(&mut d, &block).unwrap(), "password=secret");
    }

    #[test]
    fn refusals() {
        let mut d = Decoder::new(4096);
        for (block, e) in [
            (&[0x80][..], DecodeError::Index(0)),
            (&[0xc6], DecodeError::Index(70)),
            (&[0x40], DecodeError::Truncated),
            (&[0x40, 0x03, b'a'], DecodeError::Truncated),
            (&[0x40, 0x00, 0x00], DecodeError::NoName),
            (&[0x3f, 0xe2, 0x1f], DecodeError::TableSize(4097)),
            (&[0x82, 0x20], DecodeError::TableSize(0)),
            (&[0x20, 0x21, 0x22], DecodeError::TableSize(2)),
            (
                &[0xff, 0xff, 0xff, 0xff, 0x01],
                DecodeError::Number("header index"),
            ),
            (
                &[0x00, 0x7f, 0xff, 0xff, 0xff],
                DecodeError::Number("length"),
            ),
            (&[0x00, 0x81, 0x00], DecodeError::Huffman),
            (&[0x00, 0x7f, 0xff, 0x7f], DecodeError::LargeField),
        ] {
            assert_eq!(list(&mut d, block), Err(e), "{block:x?}");
        }
    }

    #[test]
    fn two_table_size_updates_begin_a_block() {
        let mut d = Decoder::new(4096);
        list(&mut d, &hex("4001 6101 62")).unwrap();
        // the smallest and the final size, in each block
        for _ in 0..3 {
            let block = hex("20 3fe1 1f 82");
            assert_eq!(list(&mut d, &block).unwrap(), ":method=GET");
        }
        assert_eq!(d.table.max(), 4096);
        assert_eq!(list(&mut d, &[0xbe]), Err(DecodeError::Index(62)));
        assert_eq!(
            list(&mut d, &hex("20 3fe1 1f 20 82")),
            Err(DecodeError::TableSize(0))
        );
    }

    #[test]
    fn numbers_that_are_too_long_show_early() {
        for (part, found) in [
            (&[0xff, 0xff, 0xff, 0xff][..], true),
            (&[0x42, 0xff, 0xff, 0xff, 0xff], true),
            (&[0x40, 0x01, b'a', 0xff, 0xff, 0xff, 0xff], true),
            (&[0x82, 0x42, 0xff, 0xff, 0xff], false),
            (&[0x82, 0x86, 0x40, 0x05, b'a'], false),
            (&[], false),
        ] {
            assert_eq!(too_long(part).is_some(), found, "{part:x?}");
        }
    }

    #[test]
    fn a_bomb_is_cut_short() {
        let mut d = Decoder::new(4096);
        let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
        block.extend_from_slice(&[b'v'; 4000]);
        block.extend_from_slice(&[0xbe; 60_000]);
        let mut f = Fields::default();
        assert_eq!(
            d.decode(&block, LIMITS, &mut f),
            Err(DecodeError::LargeList)
        );
        assert!(f.arena.len() <= LIMITS.list);
    }

    proptest! {
        #[test]
        fn never_panics(blocks: Vec<Vec<u8>>) {
            let mut d = Decoder::new(256);
            let mut f = Fields::default();
            for b in &blocks {
                let _ = too_long(b);
                let _ = d.decode(b, LIMITS, &mut f);
                prop_assert!(f.iter().count() == f.len());
            }
        }
    }
}
