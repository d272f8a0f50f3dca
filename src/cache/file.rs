//! The file of a cached response: a header with a checksum, the head as the origin sent it, the body.
//!
//! ```text
//!  0  magic and version          8 bytes
//!  8  CRC-32 of the bytes from 12 to the body
//! 12  where the body begins      u32
//! 16  length of the body         u64
//! 24  valid, updating, error, last modified, date   5 × i64
//! 64  lengths: key, head u32; entity tag, Vary, tags, status u16
//! 80  digest of the variant      16 bytes
//! 96  key, entity tag, Vary, tags, head; then the body
//! ```
//! Numbers are little-endian. A file whose length or checksum is not what its header says is never served.

use super::key::Digest;
use crate::http::h1::response::{Parser, Progress, UpstreamHead};
use std::fmt;

/// The first bytes of every file; the last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"couloir\x01";

/// Length of the part before the key, bytes.
pub const FIXED: usize = 96;

/// The largest header that is read, bytes.
const MAX_HEADER: usize = 1 << 20;

/// What is known of a cached response besides its head and body. Times are seconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Until when it is fresh.
    pub valid: i64,
    /// Seconds beyond that during which it may be served while it is updated.
    pub updating: i64,
    /// Seconds beyond that during which it may be served where the origin fails.
    pub error: i64,
    /// `Last-Modified`; -1 where there is none.
    pub last_modified: i64,
    /// When it was stored or last found unchanged.
    pub date: i64,
    /// The key's text.
    pub key: Vec<u8>,
    /// The entity tag; empty where there is none.
    pub etag: Vec<u8>,
    /// `Vary`; empty where there is none.
    pub vary: Vec<u8>,
    /// Tags to purge by, separated by spaces.
    pub tags: Vec<u8>,
    /// The digest of the variant, where there is a `Vary`.
    pub variant: Digest,
}

/// Why a file is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// It is shorter than a header, or than its header says.
    Short,
    /// It is of another format or version.
    Version,
    /// The checksum or a length is wrong.
    Broken,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Damage::Short => "is too small",
            Damage::Version => "version mismatch",
            Damage::Broken => "contains invalid header",
        })
    }
}

/// The header of a file.
#[derive(Debug)]
pub struct Header {
    /// What is known of the response.
    pub meta: Meta,
    /// The head as the origin sent it.
    pub head: UpstreamHead,
    /// Where the body begins.
    pub body_start: u64,
    /// How long the body is.
    pub body_len: u64,
}

/// Writes a header; the body's length may be wrong until [`seal`] is called.
pub fn write(meta: &Meta, head: &UpstreamHead, body_len: u64, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4 + 4]);
    out.extend_from_slice(&body_len.to_le_bytes());
    for n in [
        meta.valid,
        meta.updating,
        meta.error,
        meta.last_modified,
        meta.date,
    ] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    let etag = short(&meta.etag);
    let vary = short(&meta.vary);
    let tags = short(&meta.tags);
    out.extend_from_slice(&(meta.key.len() as u32).to_le_bytes());
    let head_len_at = out.len();
    out.extend_from_slice(&[0; 4]);
    for n in [etag.len(), vary.len(), tags.len()] {
        out.extend_from_slice(&(n as u16).to_le_bytes());
    }
    out.extend_from_slice(&head.status.to_le_bytes());
    out.extend_from_slice(&meta.variant.0);
    for part in [&meta.key[..], etag, vary, tags] {
        out.extend_from_slice(part);
    }
    let head_at = out.len();
    if !head.is_http09() {
        out.extend_from_slice(b"HTTP/1.1 ");
        match &head.status_line[..] {
            // the standard line of the status
            b"" => out.extend_from_slice(head.status.to_string().as_bytes()),
            line => out.extend_from_slice(line),
        }
        out.extend_from_slice(b"\r\n");
        head.headers.write_to(out);
        out.extend_from_slice(b"\r\n");
    }
    let end = out.len();
    put(out, head_len_at, &((end - head_at) as u32).to_le_bytes());
    put(out, begin + 12, &((end - begin) as u32).to_le_bytes());
    seal(out.get_mut(begin..).unwrap_or_default(), body_len);
}

/// Notes the body's length in a header made by [`write`], and the checksum.
pub fn seal(header: &mut [u8], body_len: u64) {
    if let Some(at) = header.get_mut(16..24) {
        at.copy_from_slice(&body_len.to_le_bytes());
    }
    let sum = crc32fast::hash(header.get(12..).unwrap_or_default());
    if let Some(at) = header.get_mut(8..12) {
        at.copy_from_slice(&sum.to_le_bytes());
    }
}

/// How long the header is, from its first [`FIXED`] bytes.
///
/// # Errors
/// What is wrong with the file.
pub fn header_len(start: &[u8]) -> Result<usize, Damage> {
    let fixed = start.get(..FIXED).ok_or(Damage::Short)?;
    if fixed.get(..8) != Some(&MAGIC[..]) {
        return Err(Damage::Version);
    }
    let len = u32_at(fixed, 12) as usize;
    if (FIXED..=MAX_HEADER).contains(&len) {
        Ok(len)
    } else {
        Err(Damage::Broken)
    }
}

/// Reads a header. `bytes` begins with it and holds all of it; `file_len` is the length of the whole file.
///
/// # Errors
/// What is wrong with the file.
pub fn read(bytes: &[u8], file_len: u64) -> Result<Header, Damage> {
    let len = header_len(bytes)?;
    let header = bytes.get(..len).ok_or(Damage::Short)?;
    if crc32fast::hash(header.get(12..).unwrap_or_default()) != u32_at(header, 8) {
        return Err(Damage::Broken);
    }
    let body_len = u64_at(header, 16);
    if (len as u64).checked_add(body_len) != Some(file_len) {
        return Err(if file_len < body_len.saturating_add(len as u64) {
            Damage::Short
        } else {
            Damage::Broken
        });
    }
    let mut rest = header.get(FIXED..).unwrap_or_default();
    let mut take = |n: usize| -> Result<&[u8], Damage> {
        let (part, tail) = rest.split_at_checked(n).ok_or(Damage::Broken)?;
        rest = tail;
        Ok(part)
    };
    let key = take(u32_at(header, 64) as usize)?.to_vec();
    let etag = take(u16_at(header, 72).into())?.to_vec();
    let vary = take(u16_at(header, 74).into())?.to_vec();
    let tags = take(u16_at(header, 76).into())?.to_vec();
    let text = take(u32_at(header, 68) as usize)?;
    let mut head = UpstreamHead::default();
    if text.is_empty() {
        (head.status, head.version, head.connection_close) = (200, (0, 9), true);
    } else {
        match Parser::default().parse(text, text.len() + 1, &mut head) {
            Progress::Done { consumed } if consumed == text.len() => {}
            // hints are no answer
            _ => return Err(Damage::Broken),
        }
    }
    if head.status_line.len() == 3 {
        head.status_line.clear();
    }
    let mut variant = Digest::default();
    if let Some(v) = header.get(80..96) {
        variant.0.copy_from_slice(v);
    }
    Ok(Header {
        meta: Meta {
            valid: u64_at(header, 24) as i64,
            updating: u64_at(header, 32) as i64,
            error: u64_at(header, 40) as i64,
            last_modified: u64_at(header, 48) as i64,
            date: u64_at(header, 56) as i64,
            key,
            etag,
            vary,
            tags,
            variant,
        },
        head,
        body_start: len as u64,
        body_len,
    })
}

/// As much as a length of 16 bits can tell; what is longer is left out.
fn short(text: &[u8]) -> &[u8] {
    if text.len() <= usize::from(u16::MAX) {
        text
    } else {
        b""
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = out.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|b| b.try_into().ok())
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> UpstreamHead {
        let mut head = UpstreamHead::default();
        let text = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-A: b\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n";
        let progress = Parser::default().parse(text, 4096, &mut head);
        assert!(matches!(progress, Progress::Done { .. }));
        head
    }

    fn meta() -> Meta {
        Meta {
            valid: 17,
            updating: 1,
            error: 2,
            last_modified: -1,
            date: 3,
            key: b"http://h/u".to_vec(),
            etag: b"\"x\"".to_vec(),
            vary: b"Accept".to_vec(),
            tags: b"a b".to_vec(),
            variant: Digest([7; 16]),
        }
    }

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        write(&meta(), &head(), 0, &mut out);
        seal(&mut out, 5);
        out.extend_from_slice(b"hello");
        out
    }

    #[test]
    fn reads_what_it_wrote() {
        let bytes = sample();
        let h = read(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(h.meta, meta());
        assert_eq!(
            (h.head.status, &h.head.status_line[..]),
            (200, &b"200 Fine"[..])
        );
        assert_eq!(h.head.content_length, Some(5));
        assert_eq!(h.head.headers.get_all(b"set-cookie").count(), 2);
        assert_eq!(&bytes[h.body_start as usize..], b"hello");
        assert_eq!(h.body_len, 5);
    }

    #[test]
    fn a_response_without_a_head_has_none_again() {
        let mut head = UpstreamHead::default();
        (head.status, head.version) = (200, (0, 9));
        let mut bytes = Vec::new();
        write(&meta(), &head, 0, &mut bytes);
        assert!(read(&bytes, bytes.len() as u64).unwrap().head.is_http09());
    }

    #[test]
    fn what_is_torn_is_not_served() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut], cut as u64).is_err(), "cut at {cut}");
        }
        let len = header_len(&bytes).unwrap();
        for at in 0..len {
            let mut bad = bytes.clone();
            bad[at] ^= 0x20;
            assert!(read(&bad, bad.len() as u64).is_err(), "bit at {at}");
        }
        let mut long = bytes.clone();
        long.push(b'!');
        assert_eq!(read(&long, long.len() as u64).unwrap_err(), Damage::Broken);
        let mut other = bytes;
        other[7] = 9;
        assert_eq!(
            read(&other, other.len() as u64).unwrap_err(),
            Damage::Version
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, sealed: bool) {
            let mut file = MAGIC.to_vec();
            file.extend_from_slice(&bytes);
            if sealed && file.len() > FIXED {
                let len = file.len() as u32;
                put(&mut file, 12, &len.to_le_bytes());
                seal(&mut file, 0);
            }
            let _ = read(&file, file.len() as u64);
        }
    }
}
