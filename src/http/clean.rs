//! What of a message may be passed on, and what the strict grammar of HTTP/1 asks of it beyond what nginx asks.

use super::strict::{has_control, is_control, is_token};
use std::ops::Range;

/// Where the first control byte other than HTAB stands in a field value or reason phrase (RFC 9110, section 5.5); bytes
/// above 0x7f are obs-text and allowed.
pub fn control(value: &[u8]) -> Option<usize> {
    match has_control(value) {
        true => value.iter().position(|byte| is_control(*byte)),
        false => None,
    }
}

/// What the strict grammar (RFC 9112, section 5) refuses in a field line that [`super::field::FieldScanner`] accepted:
/// `name` and `value` are its offsets into `buf`, `end` is the offset behind the line.
pub fn line_fault(
    buf: &[u8],
    name: &Range<usize>,
    value: &Range<usize>,
    end: usize,
) -> Option<&'static str> {
    if !is_token(buf.get(name.clone()).unwrap_or_default()) {
        return Some("invalid field name");
    }
    if buf.get(name.end) != Some(&b':') {
        return Some("field line without colon");
    }
    if !ends_with_crlf(buf, end) {
        return Some("bare line feed");
    }
    // blanks may stand behind the value, and nothing else
    let behind = buf.get(value.end..end.saturating_sub(2));
    match behind
        .unwrap_or_default()
        .iter()
        .all(|b| matches!(b, b' ' | b'\t'))
    {
        true => None,
        false => Some("bare carriage return"),
    }
}

/// Whether the line whose end is at `end` (behind its LF) ends with CR LF.
pub fn ends_with_crlf(buf: &[u8], end: usize) -> bool {
    buf.get(..end).is_some_and(|line| line.ends_with(b"\r\n"))
}

/// What the strict grammar (RFC 9112, section 4) refuses in a status line that nginx accepts; `line` is all of it. The
/// blank behind the status code may be missing, as it is in many a response without a reason phrase.
pub fn status_line_fault(line: &[u8]) -> Option<&'static str> {
    let Some(line) = line.strip_suffix(b"\r\n") else {
        return Some("bare line feed");
    };
    let Some([minor, b' ', code @ ..]) = line.strip_prefix(b"HTTP/1.") else {
        return Some("invalid version");
    };
    if !minor.is_ascii_digit() {
        return Some("invalid version");
    }
    let (code, rest) = code.split_at_checked(3).unwrap_or((code, b""));
    match (code, rest) {
        ([b'1'..=b'5', b, c], [] | [b' ', ..]) if b.is_ascii_digit() && c.is_ascii_digit() => None,
        _ => Some("invalid status code"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes() {
        for (text, at) in [
            (&b""[..], None),
            (b"a\tb \xff", None),
            (b"a\0", Some(1)),
            (b"\x1b", Some(0)),
            (b"ab\x7f", Some(2)),
            (b"\r\n", Some(0)),
        ] {
            assert_eq!(control(text), at, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn field_lines() {
        use crate::http::field::{Field, FieldScanner, Names};
        const NAMES: Names = Names {
            underscores: true,
            skip_status_lines: false,
        };
        for (line, fault) in [
            (&b"A: b\r\n"[..], None),
            (b"A:\r\n", None),
            (b"a_b!: c\t \r\n", None),
            (b"A: b\n", Some("bare line feed")),
            (b"A: b\r\r\n", Some("bare carriage return")),
            (b"A@b: c\r\n", Some("invalid field name")),
            (b"\xc3: c\r\n", Some("invalid field name")),
            (b"NoColon\r\n", Some("field line without colon")),
        ] {
            let mut scanner = FieldScanner::at(0);
            let Field::Line { name, value, .. } = scanner.next(line, NAMES) else {
                panic!("{}", line.escape_ascii());
            };
            let found = line_fault(line, &name, &value, scanner.pos());
            assert_eq!(found, fault, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn status_lines() {
        for (line, good) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 200 \r\n", true),
            ("HTTP/1.1 200\r\n", true),
            ("HTTP/1.1 599 x y\r\n", true),
            ("HTTP/1.1 200 OK\n", false),
            ("HTTP/1.1  200 OK\r\n", false),
            ("HTTP/1.10 200 OK\r\n", false),
            ("HTTP/2.0 200 OK\r\n", false),
            ("HTTP/1.1 403.1 x\r\n", false),
            ("HTTP/1.1 600 x\r\n", false),
            ("HTTP/1.1 2000 x\r\n", false),
            ("HTTP/1.1 20\r\n", false),
        ] {
            assert_eq!(status_line_fault(line.as_bytes()).is_none(), good, "{line}");
        }
    }
}
