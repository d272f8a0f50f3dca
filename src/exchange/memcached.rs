//! memcached's text protocol, as far as `get` of one key goes.

use std::fmt;

/// What ends a value.
pub const END: &[u8] = b"\r\nEND\r\n";

/// Writes `get key`; the key must be escaped.
pub fn get(key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"get ");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\r\n");
}

/// The key in a request that [`get`] wrote.
pub fn key(request: &[u8]) -> &[u8] {
    request
        .strip_prefix(b"get ")
        .and_then(|rest| rest.strip_suffix(b"\r\n"))
        .unwrap_or_default()
}

/// What the first line of an answer says.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// More bytes are needed.
    Need,
    /// A value follows the line.
    Value {
        /// Length of the line.
        line: usize,
        /// The flags; 0 where they are no number and need not be.
        flags: u64,
        /// Length of the value.
        length: u64,
    },
    /// There is no value.
    NotFound {
        /// Length of the line.
        line: usize,
    },
    /// Anything else.
    Bad(Error),
}

/// Why an answer is refused. Its `Display` is nginx's log text.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// Neither a value nor `END`.
    Response(String),
    /// Another key than the one asked for.
    Key(String, String),
    /// Flags that are no number.
    Flags(String, String),
    /// A length that is no number.
    Length(String, String),
    /// A line without end.
    TooLong,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, line, key) = match self {
            Error::Response(line) => {
                return write!(f, "memcached sent invalid response: \"{line}\"");
            }
            Error::TooLong => return f.write_str("upstream sent too big header"),
            Error::Key(line, key) => ("key", line, key),
            Error::Flags(line, key) => ("flags", line, key),
            Error::Length(line, key) => ("length", line, key),
        };
        write!(
            f,
            "memcached sent invalid {what} in response \"{line}\" for key \"{key}\""
        )
    }
}

impl std::error::Error for Error {}

/// Reads the first line of the answer to `get key`; `read_flags`: whether the flags must be a number; `limit`: the
/// most that the line may take, bytes.
pub fn line(buf: &[u8], key: &[u8], read_flags: bool, limit: usize) -> Line {
    let Some(end) = memchr::memchr(b'\n', buf) else {
        return if buf.len() >= limit {
            Line::Bad(Error::TooLong)
        } else {
            Line::Need
        };
    };
    let whole = buf.get(..end).unwrap_or_default();
    let shown = |text: &[u8]| crate::http::text::shown(text).into_owned();
    let Some(text) = whole.strip_suffix(b"\r") else {
        return Line::Bad(Error::Response(shown(whole)));
    };
    let line = end + 1;
    if text == b"END" {
        return Line::NotFound { line };
    }
    let Some(rest) = text.strip_prefix(b"VALUE ") else {
        return Line::Bad(Error::Response(shown(text)));
    };
    let bad = |kind: fn(String, String) -> Error| Line::Bad(kind(shown(text), shown(key)));
    let Some(rest) = rest.strip_prefix(key) else {
        return bad(Error::Key);
    };
    let fields = rest.strip_prefix(b" ").and_then(|rest| {
        let space = memchr::memchr(b' ', rest)?;
        rest.split_at_checked(space)
    });
    let Some((flags, length)) = fields else {
        return Line::Bad(Error::Response(shown(text)));
    };
    let flags = match crate::config::value::parse_number(flags) {
        Some(n) => n,
        None if read_flags => return bad(Error::Flags),
        None => 0,
    };
    let length = length.strip_prefix(b" ").unwrap_or_default();
    match crate::config::value::parse_number(length).filter(|n| *n < 1 << 62) {
        Some(length) => Line::Value {
            line,
            flags,
            length,
        },
        None => bad(Error::Length),
    }
}

/// A value and what ends it, piece by piece.
#[derive(Debug, Clone)]
pub struct Value {
    left: u64,
    /// How much of [`END`] has been read.
    ended: usize,
}

/// What of a piece belongs to the value, and what became of its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the value.
    pub value: usize,
    /// Bytes that were used.
    pub used: usize,
    /// How the value ended, if it did: whether as it should.
    pub ended: Option<bool>,
}

impl Value {
    /// A value of that length.
    pub fn new(length: u64) -> Value {
        Value {
            left: length,
            ended: 0,
        }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, buf: &[u8]) -> Piece {
        let value = self.left.min(buf.len() as u64) as usize;
        self.left -= value as u64;
        let behind = buf.get(value..).unwrap_or_default();
        let expected = END.get(self.ended..).unwrap_or_default();
        let n = behind.len().min(expected.len());
        let good = behind.get(..n) == expected.get(..n) && behind.len() <= expected.len();
        self.ended += n;
        let ended = if !good {
            Some(false)
        } else if self.ended == END.len() {
            Some(true)
        } else {
            None
        };
        Piece {
            value,
            used: if good { value + n } else { buf.len() },
            ended,
        }
    }

    /// Whether the whole value has come.
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Line {
        line(text.as_bytes(), b"/k", true, 4096)
    }

    fn bad(text: &str) -> String {
        match of(text) {
            Line::Bad(e) => e.to_string(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn requests() {
        let mut out = Vec::new();
        get(b"/a%20b", &mut out);
        assert_eq!(out, b"get /a%20b\r\n");
        assert_eq!(key(&out), b"/a%20b");
    }

    #[test]
    fn first_lines() {
        assert_eq!(of("VALUE /k 2"), Line::Need);
        assert_eq!(
            of("VALUE /k 2 8\r\n01234567\r\nEND\r\n"),
            Line::Value {
                line: 14,
                flags: 2,
                length: 8
            }
        );
        assert_eq!(of("END\r\n"), Line::NotFound { line: 5 });
        assert_eq!(
            bad("ERROR\r\n"),
            "memcached sent invalid response: \"ERROR\""
        );
        assert_eq!(bad("END\n"), "memcached sent invalid response: \"END\"");
        assert_eq!(
            bad("VALUE /x 0 1\r\n"),
            "memcached sent invalid key in response \"VALUE /x 0 1\" for key \"/k\""
        );
        assert_eq!(
            bad("VALUE /kk 0 1\r\n"),
            "memcached sent invalid response: \"VALUE /kk 0 1\""
        );
        assert_eq!(
            bad("VALUE /k a 1\r\n"),
            "memcached sent invalid flags in response \"VALUE /k a 1\" for key \"/k\""
        );
        for length in ["", "x", "-1", "1 2", "99999999999999999999"] {
            let text = format!("VALUE /k 0 {length}\r\n");
            assert!(bad(&text).contains("invalid length"), "{text}");
        }
        assert_eq!(
            line(b"VALUE /k a 1\r\n", b"/k", false, 4096),
            Line::Value {
                line: 14,
                flags: 0,
                length: 1
            }
        );
        assert_eq!(line(b"VALUE", b"/k", true, 5), Line::Bad(Error::TooLong));
    }

    #[test]
    fn values_end_as_they_must() {
        let mut v = Value::new(3);
        assert_eq!(
            v.feed(b"abc\r\nEN"),
            Piece {
                value: 3,
                used: 7,
                ended: None
            }
        );
        assert_eq!(
            v.feed(b"D\r\n"),
            Piece {
                value: 0,
                used: 3,
                ended: Some(true)
            }
        );
        assert_eq!(Value::new(1).feed(b"ab").ended, Some(false));
        assert_eq!(Value::new(0).feed(b"\r\nEND\r\nx").ended, Some(false));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(value in prop::collection::vec(any::<u8>(), 0..50), cut in any::<prop::sample::Index>()) {
            let text = [&value[..], END].concat();
            let (a, b) = text.split_at(cut.index(text.len() + 1));
            let mut v = Value::new(value.len() as u64);
            let first = v.feed(a);
            let second = v.feed(b);
            let got = [&a[..first.value], &b[..second.value]].concat();
            prop_assert_eq!(got, value);
            prop_assert!(first.ended == Some(true) || second.ended == Some(true));
        }

        #[test]
        fn never_panics(text in prop::collection::vec(any::<u8>(), 0..100), length in any::<u64>()) {
            let _ = line(&text, b"k", true, 64);
            let p = Value::new(length).feed(&text);
            prop_assert!(p.value <= p.used && p.used <= text.len());
        }
    }
}
