//! Encoding of header blocks.

use super::table::Table;
use super::{DEFAULT_TABLE, huffman};
use bytes::{BufMut, BytesMut};

/// Encodes the header blocks of one direction of a connection, in the order in which they are sent.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The smallest and the last size that the peer allowed since the last block.
    resized: Option<(usize, usize)>,
}

/// Whether a field is kept in the dynamic table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// For values that come again.
    Kept,
    /// For values that are sent once.
    Passing,
    /// For secrets: no intermediary may keep them either.
    Never,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder {
            table: Table::new(DEFAULT_TABLE),
            resized: None,
        }
    }
}

impl Encoder {
    /// Takes SETTINGS_HEADER_TABLE_SIZE of the peer; we use the default size at most.
    pub fn allow(&mut self, size: usize) {
        let size = size.min(DEFAULT_TABLE);
        if size == self.table.max() && self.resized.is_none() {
            return;
        }
        let least = self.resized.map_or(size, |(least, _)| least.min(size));
        self.resized = Some((least, size));
        self.table.resize(size);
    }

    /// Gives back the table's memory; the peer is told to empty its own with the next block.
    pub fn rest(&mut self) {
        if !self.table.is_empty() {
            let size = self.table.max();
            self.resized = Some((0, self.resized.map_or(size, |(_, size)| size)));
        }
        self.table.release();
    }

    /// Begins a block.
    pub fn begin(&mut self, out: &mut BytesMut) {
        if let Some((least, size)) = self.resized.take() {
            if least < size {
                number(out, 0x20, 5, least);
            }
            number(out, 0x20, 5, size);
        }
    }

    /// Appends `:status`.
    pub fn status(&mut self, out: &mut BytesMut, status: u16) {
        let index = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                let mut text = itoa::Buffer::new();
                let text = text.format(status);
                return self.field(out, b":status", text.as_bytes(), Indexing::Kept);
            }
        };
        out.put_u8(0x80 | index);
    }

    /// Appends a field; the name is written in lower case.
    pub fn field(&mut self, out: &mut BytesMut, name: &[u8], value: &[u8], indexing: Indexing) {
        let mut lower = [0; 64];
        let long;
        let name = match lower.get_mut(..name.len()) {
            Some(room) => {
                room.copy_from_slice(name);
                room.make_ascii_lowercase();
                &*room
            }
            None => {
                long = name.to_ascii_lowercase();
                &long
            }
        };
        let index = static_name(name);
        if let Some(whole) = index.and_then(|i| static_field(i, value)) {
            return number(out, 0x80, 7, whole);
        }
        if indexing == Indexing::Kept {
            if let Some(index) = self.table.find(name, value) {
                return number(out, 0x80, 7, index);
            }
            self.table.add(name, value);
        }
        let (bits, pattern) = match indexing {
            Indexing::Kept => (6, 0x40),
            Indexing::Passing => (4, 0x00),
            Indexing::Never => (4, 0x10),
        };
        number(out, pattern, bits, index.unwrap_or(0));
        if index.is_none() {
            string(out, name);
        }
        string(out, value);
    }
}

/// Appends a number behind so many bits (RFC 7541, section 5.1).
fn number(out: &mut BytesMut, pattern: u8, bits: u32, value: usize) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        return out.put_u8(pattern | value as u8);
    }
    out.put_u8(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Appends a string, coded where that is shorter.
fn string(out: &mut BytesMut, text: &[u8]) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        number(out, 0x80, 7, coded);
        out.reserve(coded);
        huffman::encode(text, out);
    } else {
        number(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}

/// The static entry of a name and a value, where `index` is the first one of the name.
fn static_field(index: usize, value: &[u8]) -> Option<usize> {
    match (index, value) {
        (2, b"GET") => Some(2),
        (2, b"POST") => Some(3),
        (4, b"/") => Some(4),
        (4, b"/index.html") => Some(5),
        (6, b"http") => Some(6),
        (6, b"https") => Some(7),
        (16, b"gzip, deflate") => Some(16),
        _ => None,
    }
}

/// The first static entry of a name.
fn static_name(name: &[u8]) -> Option<usize> {
    Some(match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Fields, ListLimits};
    use super::*;
    use crate::http::h2::hpack::table::STATIC;
    use proptest::prelude::*;

    const LIMITS: ListLimits = ListLimits {
        string: 1 << 20,
        list: 1 << 20,
    };

    #[test]
    fn names_stand_where_the_table_has_them() {
        for (i, (name, value)) in STATIC.iter().enumerate() {
            let first = STATIC.iter().position(|(n, _)| n == name).unwrap() + 1;
            assert_eq!(static_name(name.as_bytes()), Some(first), "{name}");
            if !value.is_empty() && first != 8 {
                assert_eq!(static_field(first, value.as_bytes()), Some(i + 1), "{name}");
            }
        }
    }

    #[test]
    fn what_comes_again_is_one_byte() {
        let mut e = Encoder::default();
        let mut out = BytesMut::new();
        e.begin(&mut out);
        e.field(&mut out, b"Server", b"nginx", Indexing::Kept);
        assert_eq!(&out[..], [0x40 | 54, 0x84, 0xaa, 0x63, 0x55, 0xe7]);
        out.clear();
        e.field(&mut out, b"server", b"nginx", Indexing::Kept);
        e.status(&mut out, 404);
        assert_eq!(&out[..], [0xbe, 0x8d]);
        // a table that was forbidden for a while is told of before it is used again
        e.allow(0);
        e.allow(100);
        out.clear();
        e.begin(&mut out);
        e.field(&mut out, b"server", b"nginx", Indexing::Kept);
        assert_eq!(&out[..4], [0x20, 0x3f, 100 - 31, 0x40 | 54]);
        out.clear();
        e.begin(&mut out);
        assert!(out.is_empty());
        // a table whose memory was given back is emptied at the peer, too, once
        e.rest();
        e.rest();
        e.begin(&mut out);
        e.field(&mut out, b"server", b"nginx", Indexing::Kept);
        assert_eq!(&out[..4], [0x20, 0x3f, 100 - 31, 0x40 | 54]);
    }

    proptest! {
        #[test]
        fn round_trip(blocks in proptest::collection::vec(
            proptest::collection::vec(("[a-z:-]{1,80}", any::<Vec<u8>>(), 0..3u8), 0..8), 0..6),
            sizes: Vec<u16>)
        {
            let (mut e, mut d) = (Encoder::default(), Decoder::new(4096));
            let mut sizes = sizes.into_iter();
            for block in &blocks {
                if let Some(n) = sizes.next() {
                    e.allow(usize::from(n % 200));
                }
                let mut out = BytesMut::new();
                e.begin(&mut out);
                for (name, value, how) in block {
                    let how = [Indexing::Kept, Indexing::Passing, Indexing::Never][usize::from(*how)];
                    e.field(&mut out, name.as_bytes(), value, how);
                }
                let mut f = Fields::default();
                prop_assert_eq!(d.decode(&out, LIMITS, &mut f), Ok(()));
                let list: Vec<_> = f.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
                let want: Vec<_> = block.iter().map(|(n, v, _)| (n.clone().into_bytes(), v.clone())).collect();
                prop_assert_eq!(list, want);
            }
        }
    }
}
