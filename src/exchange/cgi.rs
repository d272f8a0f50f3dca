//! The head of an answer in CGI's form (RFC 3875, section 6): `Status:` and headers, as FastCGI, SCGI and uwsgi
//! applications send it; the latter two may begin with an HTTP status line instead.

use crate::http::field::{self, Field, FieldScanner};
use crate::http::h1::response::{NAMES, StatusLine, UpstreamError, UpstreamHead, error};
use crate::http::headers::Known;

/// Reads one head from a buffer that may still grow at its end.
#[derive(Debug)]
pub struct Parser {
    started: bool,
    /// Whether it may begin with a status line.
    line: Option<StatusLine>,
    fields: Option<FieldScanner>,
}

/// What [`Parser::parse`] came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Need,
    /// The head is whole, and so long.
    Done(usize),
    /// The head is refused.
    Bad(UpstreamError),
}

impl Parser {
    /// A parser; `status_line`: the head may begin with HTTP's.
    pub fn new(status_line: bool) -> Parser {
        Parser {
            started: false,
            line: status_line.then(StatusLine::default),
            fields: None,
        }
    }

    /// Reads on. `buf` begins with the first byte of the head; `limit` is the most that the head may take, bytes.
    pub fn parse(&mut self, buf: &[u8], limit: usize, head: &mut UpstreamHead) -> Progress {
        if !std::mem::replace(&mut self.started, true) {
            head.clear();
            head.version = (1, 1);
            head.connection_close = true;
        }
        let view = buf.get(..limit).unwrap_or(buf);
        match self.run(view, head) {
            Err(e) => Progress::Bad(e),
            Ok(Some(length)) => Progress::Done(length),
            Ok(None) if view.len() >= limit => {
                Progress::Bad(error("upstream sent too big header", None))
            }
            Ok(None) => Progress::Need,
        }
    }

    fn run(&mut self, buf: &[u8], head: &mut UpstreamHead) -> Result<Option<usize>, UpstreamError> {
        if self.fields.is_none() {
            let start = match &mut self.line {
                None => 0,
                Some(line) => match line.advance(buf) {
                    None => return Ok(None),
                    Some(false) => 0,
                    Some(true) => {
                        line.give(buf, head)?;
                        head.connection_close = true;
                        line.length()
                    }
                },
            };
            self.fields = Some(FieldScanner::at(start));
        }
        let Some(fields) = &mut self.fields else {
            return Ok(None);
        };
        loop {
            match fields.next(buf, NAMES) {
                Field::More => return Ok(None),
                Field::Line { name, value, .. } => head.take_field(
                    buf.get(name).unwrap_or_default(),
                    buf.get(value).unwrap_or_default(),
                )?,
                Field::Invalid(line) => {
                    return Err(error(
                        "upstream sent invalid header",
                        Some(field::describe(buf, &line)),
                    ));
                }
                Field::End => {
                    settle(head)?;
                    return Ok(Some(fields.pos()));
                }
            }
        }
    }
}

/// Works the status out: the status line's, that of `Status:`, 302 with a `Location`, else 200.
fn settle(head: &mut UpstreamHead) -> Result<(), UpstreamError> {
    // chunks are HTTP/1's alone
    head.chunked = false;
    if head.status == 0 {
        if let Some(value) = head.headers.get_id(Known::Status) {
            head.status = status(value).ok_or_else(|| invalid_status(value))?;
            if value.len() > 3 {
                head.status_line = value.to_vec();
            }
        } else if head.headers.contains_id(Known::Location) {
            head.status = 302;
            head.status_line.extend_from_slice(b"302 Moved Temporarily");
        } else {
            head.status = 200;
            head.status_line.extend_from_slice(b"200 OK");
        }
    }
    head.upgrade = head.status == 101;
    // an interim answer would be taken for the last one
    if head.status < 200 && head.status != 101 {
        let line = head.status_line.clone();
        return Err(invalid_status(&line));
    }
    Ok(())
}

/// The number at the beginning of a `Status:`.
fn status(value: &[u8]) -> Option<u16> {
    let digits: &[u8; 3] = value.first_chunk()?;
    std::str::from_utf8(digits)
        .ok()
        .filter(|_| digits.iter().all(u8::is_ascii_digit))?
        .parse()
        .ok()
        .filter(|n| *n >= 100)
}

#[cold]
fn invalid_status(value: &[u8]) -> UpstreamError {
    UpstreamError {
        reason: "upstream sent invalid status",
        detail: Some(format!("\"{}\"", String::from_utf8_lossy(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8], status_line: bool) -> (Progress, UpstreamHead) {
        let mut head = UpstreamHead::default();
        let p = Parser::new(status_line).parse(text, 4096, &mut head);
        (p, head)
    }

    fn status_of(text: &str, status_line: bool) -> (u16, String) {
        let (p, head) = parse(text.as_bytes(), status_line);
        assert!(matches!(p, Progress::Done(_)), "{text}: {p:?}");
        (
            head.status,
            String::from_utf8_lossy(&head.status_line).into_owned(),
        )
    }

    fn bad(text: &str, status_line: bool) -> String {
        match parse(text.as_bytes(), status_line).0 {
            Progress::Bad(e) => e.to_string(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn where_the_status_comes_from() {
        let of = |text: &str| status_of(text, false);
        assert_eq!(of("X: y\n\n"), (200, "200 OK".into()));
        assert_eq!(
            of("Location: /x\r\n\r\n"),
            (302, "302 Moved Temporarily".into())
        );
        assert_eq!(of("Status: 404\r\n\r\n"), (404, String::new()));
        assert_eq!(
            of("Status: 404 Gone fishing\r\nLocation: /x\r\n\r\n"),
            (404, "404 Gone fishing".into())
        );
        let line = "HTTP/1.0 503 Busy\r\nStatus: 200\r\n\r\n";
        assert_eq!(status_of(line, true), (503, "503 Busy".into()));
        assert_eq!(status_of("X: y\r\n\r\n", true), (200, "200 OK".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(
            bad("Status: abc\r\n\r\n", false),
            "upstream sent invalid status: \"abc\""
        );
        for s in ["", "20", "2000 x".get(..2).unwrap(), "099", "100", "103 x"] {
            assert!(
                bad(&format!("Status: {s}\r\n\r\n"), false).contains("invalid status"),
                "{s}"
            );
        }
        assert!(bad("a b: c\r\n\r\n", false).starts_with("upstream sent invalid header: "));
        assert!(bad("\0: c\r\n\r\n", false).starts_with("upstream sent invalid header: "));
        assert_eq!(
            bad(&format!("X: {}", "x".repeat(5000)), false),
            "upstream sent too big header"
        );
        assert!(bad("Content-Length: x\r\n\r\n", false).contains("Content-Length"));
        assert!(bad("HTTP/1.1 100 Continue\r\n\r\n", true).contains("invalid status"));
    }

    #[test]
    fn the_body_is_not_in_chunks() {
        let (_, head) = parse(b"Transfer-Encoding: chunked\r\n\r\n", false);
        assert!(!head.chunked && head.connection_close && !head.is_http09());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "(HTTP/1\\.1 200 OK\r\n)?([A-Za-z-]{1,8}: [a-z ]{0,8}\r?\n){0,5}\r?\nbody",
            cut in any::<prop::sample::Index>(), line in any::<bool>()) {
            let text = text.as_bytes();
            let (whole, expected) = parse(text, line);
            let mut head = UpstreamHead::default();
            let mut parser = Parser::new(line);
            let mut got = parser.parse(&text[..cut.index(text.len() + 1)], 4096, &mut head);
            if got == Progress::Need {
                got = parser.parse(text, 4096, &mut head);
            }
            prop_assert_eq!(got, whole);
            prop_assert_eq!(head.status, expected.status);
        }

        #[test]
        fn never_panics(text in prop::collection::vec(any::<u8>(), 0..200), line in any::<bool>()) {
            if let Progress::Done(n) = parse(&text, line).0 {
                prop_assert!(n <= text.len());
            }
        }
    }
}
