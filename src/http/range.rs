//! Byte ranges (RFC 9110, section 14) with the decisions of nginx's range filter.

use std::ops::Range;

/// `max_ranges` when the directive is not set.
pub const UNLIMITED: usize = i32::MAX as usize;

/// What a `Range` header asks for; ranges are half-open, in bytes of the whole representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// Send the whole representation with 200.
    Ignore,
    /// Answer 416.
    Unsatisfiable,
    /// Answer 206 with `Content-Range`.
    Single(u64, u64),
    /// Answer 206 with `multipart/byteranges`, in this order.
    Multi(Vec<(u64, u64)>),
}

/// Reads a `Range` header for a representation of `content_length` bytes (`max_ranges` 0 ignores it).
pub fn parse(header: &[u8], content_length: u64, max_ranges: usize) -> Ranges {
    let specs = match header.split_at_checked(6) {
        Some((unit, specs)) if !specs.is_empty() && unit.eq_ignore_ascii_case(b"bytes=") => specs,
        _ => return Ranges::Ignore,
    };
    if max_ranges == 0 {
        return Ranges::Ignore;
    }
    let Ok(length) = i64::try_from(content_length) else {
        return Ranges::Ignore;
    };
    let mut found = Found::default();
    let mut total = 0i64;
    for spec in specs.split(|&b| b == b',') {
        let Some((start, end)) = parse_spec(spec, length) else {
            return Ranges::Unsatisfiable;
        };
        if start < end {
            match total.checked_add(end - start) {
                Some(sum) => total = sum,
                None => return Ranges::Unsatisfiable,
            }
            if found.len() == max_ranges {
                return Ranges::Ignore;
            }
            found.push((start.unsigned_abs(), end.unsigned_abs()));
        } else if start == 0 {
            return Ranges::Ignore;
        }
    }
    if found.len() > 1 {
        // Many small or overlapping parts would cost more than the whole.
        let parts = i64::try_from(found.len())
            .unwrap_or(i64::MAX)
            .saturating_mul(256);
        if total > length
            || (max_ranges == UNLIMITED
                && total.saturating_add(parts) > length.saturating_add(4096))
        {
            return Ranges::Ignore;
        }
    }
    found.into()
}

/// Appends `bytes 0-1/4`, the value of `Content-Range`.
pub fn content_range(start: u64, end: u64, total: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"bytes ");
    span(start, end, total, out);
}

/// Appends `bytes */4`, the value of `Content-Range` in a 416 answer.
pub fn content_range_unsatisfied(total: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"bytes */");
    number(total, out);
}

/// The part of a chunk that lies in `range`: the chunk is `len` bytes at `offset` of the representation.
pub fn clip(range: (u64, u64), offset: u64, len: usize) -> Option<Range<usize>> {
    let last = offset.saturating_add(u64::try_from(len).ok()?);
    let start = range.0.max(offset);
    let end = range.1.min(last);
    if start >= end {
        return None;
    }
    Some(usize::try_from(start - offset).ok()?..usize::try_from(end - offset).ok()?)
}

/// Writer of a `multipart/byteranges` body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    boundary: [u8; 20],
    /// From the boundary to `Content-Range: bytes `, the same in each part.
    head: Vec<u8>,
    total: u64,
}

impl Multipart {
    /// `boundary` should be unique in the process; `content_type` and `charset` of the parts may be empty.
    pub fn new(boundary: u64, content_type: &[u8], charset: &[u8], total: u64) -> Self {
        let boundary = padded(boundary);
        let mut head = Vec::with_capacity(96 + content_type.len() + charset.len());
        head.extend_from_slice(b"\r\n--");
        head.extend_from_slice(&boundary);
        if !content_type.is_empty() || !charset.is_empty() {
            head.extend_from_slice(b"\r\nContent-Type: ");
            head.extend_from_slice(content_type);
            if !charset.is_empty() {
                head.extend_from_slice(b"; charset=");
                head.extend_from_slice(charset);
            }
        }
        head.extend_from_slice(b"\r\nContent-Range: bytes ");
        Self {
            boundary,
            head,
            total,
        }
    }

    /// Appends the response's `Content-Type`.
    pub fn content_type(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"multipart/byteranges; boundary=");
        out.extend_from_slice(&self.boundary);
    }

    /// Appends what precedes the bytes of one range.
    pub fn part_head(&self, (start, end): (u64, u64), out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        span(start, end, self.total, out);
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// Appends what follows the last range.
    pub fn close(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n--");
        out.extend_from_slice(&self.boundary);
        out.extend_from_slice(b"--\r\n");
    }

    /// `Content-Length` of the whole body, in bytes.
    pub fn content_length(&self, ranges: &[(u64, u64)]) -> u64 {
        let head = u64::try_from(self.head.len()).unwrap_or(u64::MAX);
        let close = 20 + "\r\n----\r\n".len() as u64;
        ranges.iter().fold(close, |sum, &(start, end)| {
            let span = digits(start)
                + digits(end.saturating_sub(1))
                + digits(self.total)
                + "-/\r\n\r\n".len() as u64;
            sum.saturating_add(head)
                .saturating_add(span)
                .saturating_add(end.saturating_sub(start))
        })
    }
}

/// The ranges so far; one needs no allocation.
#[derive(Default)]
struct Found {
    first: Option<(u64, u64)>,
    all: Vec<(u64, u64)>,
}

impl Found {
    fn len(&self) -> usize {
        self.all.len().max(usize::from(self.first.is_some()))
    }

    fn push(&mut self, range: (u64, u64)) {
        match self.first {
            None => self.first = Some(range),
            Some(first) => {
                if self.all.is_empty() {
                    self.all.push(first);
                }
                self.all.push(range);
            }
        }
    }
}

impl From<Found> for Ranges {
    fn from(found: Found) -> Self {
        match found.first {
            None => Self::Unsatisfiable,
            Some((start, end)) if found.all.is_empty() => Self::Single(start, end),
            Some(_) => Self::Multi(found.all),
        }
    }
}

/// One `first-[last]` or `-suffix`, cut to the length but possibly empty or reversed.
fn parse_spec(spec: &[u8], length: i64) -> Option<(i64, i64)> {
    let spec = skip_spaces(spec);
    let (start, end) = match spec.strip_prefix(b"-") {
        Some(suffix) => {
            let (count, rest) = parse_number(suffix)?;
            expect_end(rest)?;
            (length.saturating_sub(count).max(0), length - 1)
        }
        None => {
            let (start, rest) = parse_number(spec)?;
            let rest = skip_spaces(skip_spaces(rest).strip_prefix(b"-")?);
            if rest.is_empty() {
                return Some((start, length));
            }
            let (end, rest) = parse_number(rest)?;
            expect_end(rest)?;
            (start, end)
        }
    };
    Some((start, if end >= length { length } else { end + 1 }))
}

fn parse_number(text: &[u8]) -> Option<(i64, &[u8])> {
    let len = text
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(len)?;
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0i64, |value, &digit| {
        value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))
    })?;
    Some((value, rest))
}

fn expect_end(rest: &[u8]) -> Option<()> {
    skip_spaces(rest).is_empty().then_some(())
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    text.get(text.iter().take_while(|&&b| b == b' ').count()..)
        .unwrap_or_default()
}

fn span(start: u64, end: u64, total: u64, out: &mut Vec<u8>) {
    number(start, out);
    out.push(b'-');
    number(end.saturating_sub(1), out);
    out.push(b'/');
    number(total, out);
}

fn number(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn digits(value: u64) -> u64 {
    u64::from(value.checked_ilog10().unwrap_or(0)) + 1
}

fn padded(mut value: u64) -> [u8; 20] {
    let mut text = [b'0'; 20];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_as_nginx() {
        use Ranges::{Ignore, Multi, Single, Unsatisfiable};
        for (header, length, max, want) in [
            ("bytes=0-8", 10, UNLIMITED, Single(0, 9)),
            ("bytes=-3", 10, UNLIMITED, Single(7, 10)),
            ("bytes=-30", 10, UNLIMITED, Single(0, 10)),
            ("bytes=3-", 10, UNLIMITED, Single(3, 10)),
            ("bytes=3-99", 10, UNLIMITED, Single(3, 10)),
            ("BYTES= 3 - 4 ", 10, UNLIMITED, Single(3, 5)),
            ("bytes=0-0, 9-9", 10, 2, Multi(vec![(0, 1), (9, 10)])),
            ("bytes=0-0,-1", 10, UNLIMITED, Multi(vec![(0, 1), (9, 10)])),
            ("bytes=20-30,1-1", 10, UNLIMITED, Single(1, 2)),
            ("bytes=5-3", 10, UNLIMITED, Unsatisfiable),
            ("bytes=10-", 10, UNLIMITED, Unsatisfiable),
            ("bytes=-0", 10, UNLIMITED, Unsatisfiable),
            ("bytes=0-", 0, UNLIMITED, Ignore),
            ("bytes=-5", 0, UNLIMITED, Ignore),
            ("bytes=1-", 0, UNLIMITED, Unsatisfiable),
            ("bytes=x-", 10, UNLIMITED, Unsatisfiable),
            ("bytes=1x-2", 10, UNLIMITED, Unsatisfiable),
            ("bytes=1-2x", 10, UNLIMITED, Unsatisfiable),
            ("bytes=1-2,", 10, UNLIMITED, Unsatisfiable),
            ("bytes=,1-2", 10, UNLIMITED, Unsatisfiable),
            ("bytes=--1", 10, UNLIMITED, Unsatisfiable),
            ("bytes=-", 10, UNLIMITED, Unsatisfiable),
            ("bytes=9223372036854775807-", 10, UNLIMITED, Unsatisfiable),
            ("bytes=9223372036854775808-", 10, UNLIMITED, Unsatisfiable),
            ("bytes=0-9223372036854775807", 10, UNLIMITED, Single(0, 10)),
            ("bytes=0-9223372036854775808", 10, UNLIMITED, Unsatisfiable),
            ("bytes=", 10, UNLIMITED, Ignore),
            ("byte=0-1", 10, UNLIMITED, Ignore),
            ("bytes 0-1", 10, UNLIMITED, Ignore),
            ("bytes=0-1", 10, 0, Ignore),
            ("bytes=0-1,3-4", 10, 1, Ignore),
            ("bytes=0-1,20-30", 10, 1, Single(0, 2)),
            ("bytes=0-8,1-9", 10, UNLIMITED, Ignore),
            ("bytes=0-8,1-9", 10, 2, Ignore),
            ("bytes=0-4,5-9", 10, 2, Multi(vec![(0, 5), (5, 10)])),
        ] {
            assert_eq!(
                parse(header.as_bytes(), length, max),
                want,
                "{header} of {length}"
            );
        }
    }

    #[test]
    fn weighs_part_heads_only_if_unlimited() {
        let many = format!("bytes={}", vec!["0-0"; 17].join(","));
        assert_eq!(parse(many.as_bytes(), 100, UNLIMITED), Ranges::Ignore);
        assert!(
            matches!(parse(many.as_bytes(), 100, 17), Ranges::Multi(parts) if parts.len() == 17)
        );
        assert!(matches!(
            parse(many.as_bytes(), 17 * 257 - 4096, UNLIMITED),
            Ranges::Multi(_)
        ));
    }

    #[test]
    fn writes_multipart() {
        let parts = [(0, 2), (3, 4)];
        let writer = Multipart::new(1, b"text/html", b"", 4);
        let mut body = Vec::new();
        for part in parts {
            writer.part_head(part, &mut body);
            body.extend_from_slice(b"abcd".get(part.0 as usize..part.1 as usize).unwrap());
        }
        writer.close(&mut body);
        assert_eq!(
            String::from_utf8_lossy(&body),
            "\r\n--00000000000000000001\r\nContent-Type: text/html\r\nContent-Range: bytes 0-1/4\r\n\r\nab\
             \r\n--00000000000000000001\r\nContent-Type: text/html\r\nContent-Range: bytes 3-3/4\r\n\r\nd\
             \r\n--00000000000000000001--\r\n"
        );
        assert_eq!(writer.content_length(&parts), body.len() as u64);

        let mut head = Vec::new();
        Multipart::new(u64::MAX, b"text/html", b"utf-8", 4).part_head((0, 1), &mut head);
        assert_eq!(
            String::from_utf8_lossy(&head),
            "\r\n--18446744073709551615\r\nContent-Type: text/html; charset=utf-8\r\nContent-Range: bytes 0-0/4\r\n\r\n"
        );
        head.clear();
        Multipart::new(2, b"", b"", 4).part_head((0, 1), &mut head);
        assert_eq!(
            head,
            b"\r\n--00000000000000000002\r\nContent-Range: bytes 0-0/4\r\n\r\n"
        );
        head.clear();
        writer.content_type(&mut head);
        assert_eq!(head, b"multipart/byteranges; boundary=00000000000000000001");
    }

    #[test]
    fn writes_content_range_and_clips() {
        let mut out = Vec::new();
        content_range(2, 9, 10, &mut out);
        content_range_unsatisfied(7, &mut out);
        assert_eq!(out, b"bytes 2-8/10bytes */7");
        assert_eq!(clip((3, 7), 0, 5), Some(3..5));
        assert_eq!(clip((3, 7), 5, 5), Some(0..2));
        assert_eq!(clip((3, 7), 7, 5), None);
        assert_eq!(clip((3, 7), 0, 3), None);
        assert_eq!(clip((3, 7), 0, 9), Some(3..7));
    }

    proptest! {
        #[test]
        fn ranges_lie_inside(spec in "[bytes=0-9, -]{0,40}", length in 0u64..2000, max in 0usize..4) {
            for header in [spec.clone(), format!("bytes={spec}")] {
                let parts = match parse(header.as_bytes(), length, max) {
                    Ranges::Single(start, end) => vec![(start, end)],
                    Ranges::Multi(parts) => parts,
                    _ => vec![],
                };
                prop_assert!(parts.len() <= max);
                prop_assert!(parts.iter().all(|&(start, end)| start < end && end <= length));
            }
        }

        #[test]
        fn never_panics(header in proptest::collection::vec(any::<u8>(), 0..40), length: u64) {
            let _ = parse(&header, length, UNLIMITED);
            let mut prefixed = b"bytes=".to_vec();
            prefixed.extend_from_slice(&header);
            let _ = parse(&prefixed, length, UNLIMITED);
        }

        #[test]
        fn content_length_is_exact(total: u64, a: u64, b: u64, boundary: u64) {
            let parts = [(a.min(b) >> 8, a.max(b) >> 8)];
            let writer = Multipart::new(boundary, b"a/b", b"", total);
            let mut body = Vec::new();
            writer.part_head(parts[0], &mut body);
            writer.close(&mut body);
            prop_assert_eq!(writer.content_length(&parts), body.len() as u64 + parts[0].1 - parts[0].0);
        }
    }
}
