//! The head of an origin's response (RFC 9112, sections 4 to 6), with nginx's rules and log texts.

use std::fmt;

use crate::http::{
    field::{self, Field, FieldScanner, Names},
    head::parse_length,
    headers::{Headers, Known, contains_ignore_case},
};

/// Reads one response head from a buffer that may still grow at its end.
#[derive(Debug, Default)]
pub struct Parser {
    started: bool,
    status_line: StatusLine,
    fields: Option<FieldScanner>,
}

/// What [`Parser::parse`] came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Need,
    /// A whole 103 response: the headers may be passed on (`early_hints`); drop `consumed` bytes and parse on.
    EarlyHints {
        /// Length of the head.
        consumed: usize,
    },
    /// The head is whole, the body begins `consumed` bytes on. For HTTP/0.9 ([`UpstreamHead::is_http09`]) that is 0.
    Done {
        /// Length of the head.
        consumed: usize,
    },
    /// The head is refused: `proxy_next_upstream invalid_header`, else 502.
    Bad(UpstreamError),
}

/// A parsed response head, made to be used again.
#[derive(Debug, Default, Clone)]
pub struct UpstreamHead {
    /// Status code, three digits; 200 for HTTP/0.9.
    pub status: u16,
    /// Code and reason phrase as sent, such as `200 OK` or IIS's `403.1 Forbidden`; empty for HTTP/0.9.
    pub status_line: Vec<u8>,
    /// Major and minor version; (0, 9) if the origin sent no HTTP head at all. nginx logs that as an error, `upstream
    /// sent no valid HTTP/1.0 header`, and hands every byte to the client, without any head of its own.
    pub version: (u16, u16),
    /// The field lines, in order, without those in [`UpstreamHead::ignored`].
    pub headers: Headers,
    /// Log texts (`warn`) for repeated fields that were dropped.
    pub ignored: Vec<String>,
    /// Declared body length, bytes.
    pub content_length: Option<u64>,
    /// The body is chunked.
    pub chunked: bool,
    /// The connection cannot be used again: `Connection: close`, or a version before 1.1.
    pub connection_close: bool,
    /// 101: if the client asked for it, the connection is a tunnel from here on.
    pub upgrade: bool,
}

/// How the body of a response is delimited (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    None,
    /// So many bytes.
    Bytes(u64),
    /// Chunked.
    Chunked,
    /// Up to the end of the connection.
    UntilClose,
}

/// Why a response head was refused. Its `Display` is nginx's log text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    /// nginx's log text, without the offending bytes.
    pub reason: &'static str,
    /// The offending bytes; follows the reason and `": "`.
    pub detail: Option<String>,
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.reason),
            None => f.write_str(self.reason),
        }
    }
}

impl std::error::Error for UpstreamError {}

/// nginx's log text (`error`) for a response without an HTTP/1 head.
pub const NO_VALID_HEADER: &str = "upstream sent no valid HTTP/1.0 header";

impl Parser {
    /// Reads on. `buf` begins with the first byte of the head and holds at least what it held in the call before;
    /// `limit` is the most a head may take, bytes (`proxy_buffer_size`). `head` is cleared when a new head begins.
    pub fn parse(&mut self, buf: &[u8], limit: usize, head: &mut UpstreamHead) -> Progress {
        if !self.started {
            *self = Parser {
                started: true,
                ..Parser::default()
            };
            head.clear();
        }
        let view = buf.get(..limit).unwrap_or(buf);
        let mut progress = self.run(view, head).unwrap_or_else(Progress::Bad);
        if progress == Progress::Need && view.len() >= limit {
            progress = Progress::Bad(error("upstream sent too big header", None));
        }
        self.started = progress == Progress::Need;
        progress
    }

    fn run(&mut self, buf: &[u8], head: &mut UpstreamHead) -> Result<Progress, UpstreamError> {
        if self.fields.is_none() {
            match self.status_line.advance(buf) {
                Some(true) => {}
                None => return Ok(Progress::Need),
                Some(false) => {
                    (head.status, head.version, head.connection_close) = (200, (0, 9), true);
                    return Ok(Progress::Done { consumed: 0 });
                }
            }
            self.status_line.give(buf, head)?;
        }
        let start = self.status_line.pos;
        let fields = self.fields.get_or_insert_with(|| FieldScanner::at(start));
        loop {
            match fields.next(buf, NAMES) {
                Field::More => return Ok(Progress::Need),
                Field::Line { name, value, .. } => {
                    head.take_field(
                        buf.get(name).unwrap_or_default(),
                        buf.get(value).unwrap_or_default(),
                    )?;
                }
                Field::End if head.status == 103 => {
                    return Ok(Progress::EarlyHints {
                        consumed: fields.pos(),
                    });
                }
                Field::End => {
                    return Ok(Progress::Done {
                        consumed: fields.pos(),
                    });
                }
                Field::Invalid(line) => {
                    return Err(error(
                        "upstream sent invalid header",
                        Some(field::describe(buf, &line)),
                    ));
                }
            }
        }
    }
}

/// Names in what an origin sends are taken as they are.
pub(crate) const NAMES: Names = Names {
    underscores: true,
    skip_status_lines: true,
};

impl UpstreamHead {
    /// Makes ready for the next head; keeps the memory.
    pub fn clear(&mut self) {
        self.status = 0;
        self.status_line.clear();
        self.version = (0, 0);
        self.headers.clear();
        self.ignored.clear();
        self.content_length = None;
        self.chunked = false;
        self.connection_close = false;
        self.upgrade = false;
    }

    /// The origin sent no HTTP head at all.
    pub fn is_http09(&self) -> bool {
        self.version == (0, 9)
    }

    /// The reason phrase, maybe empty.
    pub fn reason(&self) -> &[u8] {
        match self.status_line.iter().position(|&b| b == b' ') {
            Some(space) => self.status_line.get(space + 1..).unwrap_or_default(),
            None => &[],
        }
    }

    /// How the body is delimited, given whether the request was HEAD. A 101 that is taken up as a tunnel has none of
    /// this.
    pub fn body(&self, head_request: bool) -> BodyLength {
        match self.content_length {
            _ if head_request || matches!(self.status, 204 | 304) => BodyLength::None,
            _ if self.chunked => BodyLength::Chunked,
            Some(0) => BodyLength::None,
            Some(bytes) => BodyLength::Bytes(bytes),
            None => BodyLength::UntilClose,
        }
    }

    /// Adds a field: nginx's rules for repeated ones, and what framing they declare.
    pub(crate) fn take_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), UpstreamError> {
        let known = Known::of(name);
        // Early hints are passed on as they are.
        if self.status == 103 {
            self.headers.append_as(known, name, value);
            return Ok(());
        }
        let framing = matches!(known, Known::ContentLength | Known::TransferEncoding);
        if (framing || is_unique(known)) && self.headers.contains_id(known) {
            const REPEATED: &str = "upstream sent duplicate header line";
            let detail = self.repeated(known, name, value);
            if framing {
                return Err(error(REPEATED, Some(detail)));
            }
            self.ignored.push(format!("{REPEATED}: {detail}, ignored"));
            return Ok(());
        }
        let other = if known == Known::ContentLength {
            Known::TransferEncoding
        } else {
            Known::ContentLength
        };
        if framing && self.headers.contains_id(other) {
            let reason = "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time";
            return Err(error(reason, None));
        }
        self.headers.append_as(known, name, value);
        match known {
            Known::ContentLength => {
                let length = parse_length(value);
                self.content_length = Some(length.ok_or_else(|| {
                    let [name, value] = [name, value].map(String::from_utf8_lossy);
                    error(
                        "upstream sent invalid \"Content-Length\" header",
                        Some(format!("\"{name}: {value}\"")),
                    )
                })?);
            }
            Known::TransferEncoding => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    let detail = format!("\"{}\"", String::from_utf8_lossy(value));
                    return Err(error(
                        "upstream sent unknown \"Transfer-Encoding\"",
                        Some(detail),
                    ));
                }
                self.chunked = true;
            }
            Known::Connection => self.connection_close |= contains_ignore_case(value, b"close"),
            _ => {}
        }
        Ok(())
    }

    fn repeated(&self, known: Known, name: &[u8], value: &[u8]) -> String {
        let first = self.headers.entries().find(|(id, ..)| *id == known);
        let (first_name, first) = first.map(|(_, n, v)| (n, v)).unwrap_or_default();
        let [name, value, first_name, first] =
            [name, value, first_name, first].map(String::from_utf8_lossy);
        format!("\"{name}: {value}\", previous value: \"{first_name}: {first}\"")
    }
}

/// Fields of which nginx keeps the first and drops the others.
fn is_unique(known: Known) -> bool {
    use Known::*;
    matches!(
        known,
        Status
            | ContentType
            | Date
            | LastModified
            | ETag
            | Server
            | Location
            | Refresh
            | Expires
            | XAccelExpires
            | XAccelRedirect
            | XAccelLimitRate
    )
}

/// Scans a status line.
#[derive(Debug, Default)]
pub(crate) struct StatusLine {
    state: State,
    pos: usize,
    major: u16,
    minor: u16,
    code: u16,
    text: usize,
    end: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Protocol(u8),
    Major,
    MinorFirst,
    Minor,
    Code(u8),
    AfterCode,
    Reason,
    Cr,
}

impl StatusLine {
    /// `None`: more bytes are needed; false: this is no status line.
    pub(crate) fn advance(&mut self, buf: &[u8]) -> Option<bool> {
        while let Some(&byte) = buf.get(self.pos) {
            let digit = byte
                .is_ascii_digit()
                .then(|| u16::from(byte.wrapping_sub(b'0')));
            let next = match (self.state, byte) {
                (State::Start, b'H') => Some(State::Protocol(1)),
                (State::Protocol(5), b'1'..=b'9') => {
                    self.major = digit.unwrap_or_default();
                    Some(State::Major)
                }
                (State::Protocol(n), _) => {
                    (b"HTTP/".get(usize::from(n)) == Some(&byte)).then_some(State::Protocol(n + 1))
                }
                (State::Major, b'.') => Some(State::MinorFirst),
                (State::Major, _) => digit.filter(|_| self.major <= 99).map(|d| {
                    self.major = self.major * 10 + d;
                    State::Major
                }),
                (State::MinorFirst, _) => digit.map(|d| {
                    self.minor = d;
                    State::Minor
                }),
                (State::Minor, b' ') => Some(State::Code(0)),
                (State::Minor, _) => digit.filter(|_| self.minor <= 99).map(|d| {
                    self.minor = self.minor * 10 + d;
                    State::Minor
                }),
                (State::Code(_), b' ') => Some(self.state),
                (State::Code(count), _) => digit.map(|d| {
                    self.code = self.code * 10 + d;
                    self.text = self.pos.saturating_sub(2);
                    if count == 2 {
                        State::AfterCode
                    } else {
                        State::Code(count + 1)
                    }
                }),
                // IIS sends 403.1, 403.2, ...
                (State::AfterCode, b' ' | b'.') => Some(State::Reason),
                (State::AfterCode | State::Reason, b'\r') => {
                    self.end = self.pos;
                    Some(State::Cr)
                }
                (State::AfterCode | State::Reason, b'\n') => {
                    self.end = self.pos;
                    self.pos += 1;
                    return Some(true);
                }
                (State::Reason, _) => Some(State::Reason),
                (State::Cr, b'\n') => {
                    self.pos += 1;
                    return Some(true);
                }
                _ => None,
            };
            match next {
                Some(state) => self.state = state,
                None => return Some(false),
            }
            self.pos += 1;
        }
        None
    }

    /// How many bytes of the buffer it takes.
    pub(crate) fn length(&self) -> usize {
        self.pos
    }

    /// Stores status and version.
    pub(crate) fn give(&self, buf: &[u8], head: &mut UpstreamHead) -> Result<(), UpstreamError> {
        head.status = self.code;
        head.status_line
            .extend_from_slice(buf.get(self.text..self.end).unwrap_or_default());
        head.version = (self.major, self.minor);
        head.upgrade = self.code == 101;
        if head.version < (1, 1) {
            if self.code == 103 {
                return Err(error(
                    "upstream sent HTTP/1.0 response with early hints",
                    None,
                ));
            }
            head.connection_close = true;
        }
        Ok(())
    }
}

#[cold]
pub(crate) fn error(reason: &'static str, detail: Option<String>) -> UpstreamError {
    UpstreamError { reason, detail }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
