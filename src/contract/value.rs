//! The value of a variable.

use std::io::Write;

/// What a variable's getter returns: borrowed where it can be, small values inline.
#[derive(Clone, Debug)]
pub enum Val<'r> {
    /// nginx's "not found": written as nothing, or as `-` in a log.
    None,
    /// Bytes that the request, the site or the configuration owns.
    Bytes(&'r [u8]),
    /// A short value made on the fly.
    Small(Small),
    /// A longer value made on the fly.
    Owned(Vec<u8>),
}

impl<'r> Val<'r> {
    /// An empty value that is present.
    pub const EMPTY: Val<'static> = Val::Bytes(b"");

    /// The bytes; nothing where there is no value.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Val::None => b"",
            Val::Bytes(b) => b,
            Val::Small(s) => s.as_bytes(),
            Val::Owned(v) => v,
        }
    }

    /// Whether there is no value at all.
    pub fn is_none(&self) -> bool {
        matches!(self, Val::None)
    }

    /// nginx's truth in `if=`, `proxy_no_cache` and the like: neither empty nor `0`.
    pub fn is_true(&self) -> bool {
        let b = self.as_bytes();
        !b.is_empty() && b != b"0"
    }

    /// A decimal number.
    pub fn number(n: u64) -> Val<'static> {
        let mut b = itoa::Buffer::new();
        Val::Small(Small::new(b.format(n).as_bytes()))
    }

    /// Seconds with milliseconds (`1.042`), as nginx prints times.
    pub fn seconds(ms: u64) -> Val<'static> {
        let mut s = Small::default();
        let _ = write!(s, "{}.{:03}", ms / 1000, ms % 1000);
        Val::Small(s)
    }

    /// The value of an optional slice.
    pub fn from_option(b: Option<&'r [u8]>) -> Val<'r> {
        b.map_or(Val::None, Val::Bytes)
    }
}

/// Up to 46 bytes held in place.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    len: u8,
    buf: [u8; Small::CAPACITY],
}

impl Small {
    /// How much fits.
    pub const CAPACITY: usize = 46;

    /// Holds `b`, cut to what fits.
    pub fn new(b: &[u8]) -> Small {
        let mut s = Small::default();
        let n = b.len().min(Self::CAPACITY);
        s.buf[..n].copy_from_slice(&b[..n]);
        s.len = n as u8;
        s
    }

    /// What is held.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf[..self.len as usize]
    }
}

impl Default for Small {
    fn default() -> Self {
        Small {
            len: 0,
            buf: [0; Self::CAPACITY],
        }
    }
}

impl Write for Small {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        let at = self.len as usize;
        let n = b.len().min(Self::CAPACITY - at);
        self.buf[at..at + n].copy_from_slice(&b[..n]);
        self.len += n as u8;
        Ok(b.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
