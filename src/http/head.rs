//! The request head (RFC 9112, sections 2 to 6): parsed as it arrives, framing and authority decided once.

use std::{fmt, ops::Range};

use crate::http::{
    field::{self, Field, FieldScanner, Names},
    headers::{Headers, Known, contains_ignore_case, has_token},
    host::parse_host,
    request_line::{BadLine, RequestLine, Step},
    strict,
};

pub use crate::http::method::Method;

/// Reads one request head after another from a connection's buffer.
///
/// Give it the whole buffer from the first byte of the head each time more bytes are there; it goes on where it stopped.
#[derive(Debug, Default)]
pub struct Parser {
    started: bool,
    in_fields: bool,
    line: RequestLine,
    fields: FieldScanner,
    room: Room,
    count: usize,
    /// Bytes of empty lines before the request line that have been dropped.
    blank: usize,
}

/// What [`Parser::parse`] came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Need,
    /// The buffer holds empty lines only: drop `consumed` bytes from its front and read on. Keeps a client that sends
    /// nothing else from filling memory.
    Blank {
        /// Bytes to drop.
        consumed: usize,
    },
    /// The head is whole. The parser is ready for the next one, which begins `consumed` bytes on, behind the body.
    Done {
        /// Length of the head, empty lines before it included.
        consumed: usize,
    },
    /// The head is refused. What could be read of it is in the [`RequestHead`], for the log.
    Bad(HeadError),
}

/// The limits a head is read with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `client_header_buffer_size`, bytes.
    pub header_buffer: usize,
    /// `large_client_header_buffers`: how many, and bytes of each. One line must fit into one.
    pub large: (usize, usize),
    /// `ignore_invalid_headers`: drop fields with unusual names instead of passing them on.
    pub ignore_invalid: bool,
    /// `underscores_in_headers`: `_` is a usual byte in a name.
    pub underscores: bool,
    /// `max_headers`: field lines in one head.
    pub max_headers: usize,
    /// Whether CONNECT is served here at all.
    pub allow_connect: bool,
    /// `request_parsing strict`.
    pub strict: bool,
}

impl Default for Limits {
    /// nginx's defaults.
    fn default() -> Self {
        Limits {
            header_buffer: 1024,
            large: (4, 8192),
            ignore_invalid: true,
            underscores: false,
            max_headers: 1000,
            allow_connect: false,
            strict: false,
        }
    }
}

/// A parsed request head, made to be used again: [`RequestHead::clear`] keeps its memory.
#[derive(Debug, Default, Clone)]
pub struct RequestHead {
    /// The request line without its end: `$request`. Ranges below are ranges of it.
    pub line: Vec<u8>,
    /// The method, if it is one of those nginx tells apart.
    pub method: Method,
    /// The method as written: `$request_method`.
    pub method_text: Range<usize>,
    /// The request-target as written, in any of its forms.
    pub target: Range<usize>,
    /// Path and query as written: `$request_uri`. `/` if the target has neither; `?query` if it has no path
    /// ([`RequestHead::empty_path`]).
    pub uri: Range<usize>,
    /// Where the query begins, behind its `?`.
    pub query: Option<usize>,
    /// The absolute-form target goes from the authority straight to `?`: its path is `/`.
    pub empty_path: bool,
    /// The path must be normalised before use: it has `%`, `#`, `//` or `/.`, or is empty.
    pub complex: bool,
    /// Schema of an absolute-form target.
    pub schema: Option<Range<usize>>,
    /// The protocol as written: `$server_protocol`; `None` in HTTP/0.9.
    pub protocol: Option<Range<usize>>,
    /// The version, as far as anyone cares.
    pub version: Version,
    /// The version's two numbers.
    pub http_major_minor: (u16, u16),
    /// The field lines, in order.
    pub headers: Headers,
    /// Dropped field lines, from name through value, as ranges of the *buffer*; nginx logs each at `info` as
    /// `client sent invalid header line: "..."`.
    pub ignored: Vec<Range<usize>>,
    /// Lower-cased host without port, from the target or else from `Host`; empty if there is none: `$host`.
    pub host: Vec<u8>,
    /// Port that came with the host; 0 if none did.
    pub host_port: u16,
    /// Declared body length, bytes.
    pub content_length: Option<u64>,
    /// The body is chunked.
    pub chunked: bool,
    /// What `Connection` asks for.
    pub connection: ConnectionHeader,
    /// HTTP/1.1 with `Expect: 100-continue`.
    pub expect_continue: bool,
    /// The head was read as `request_parsing strict` says, and so is the body.
    pub strict: bool,
    /// Bytes of the head on the wire, empty lines before it not counted; what `$request_length` begins with.
    pub header_in_bytes: usize,
}

/// The protocol version. HTTP/1.2 and up to 1.999 count as [`Version::V11`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// A request line without a version.
    #[default]
    V09,
    /// HTTP/1.0.
    V10,
    /// HTTP/1.1.
    V11,
}

/// Options of the `Connection` field. `close` and `keep_alive` are read as nginx reads them: anywhere in the value,
/// and of several fields the last one counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionHeader {
    /// `close`.
    pub close: bool,
    /// `keep-alive`, without `close`.
    pub keep_alive: bool,
    /// `upgrade` as a list item.
    pub upgrade: bool,
}

/// Why a head was refused. Its `Display` is nginx's log text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadError {
    /// The status to answer with; 494 is nginx's own for a head that is too large.
    pub status: u16,
    /// nginx's log text, without the offending bytes.
    pub reason: &'static str,
    /// The offending bytes; follows the reason and `": "`, or just the reason if that ends with a space.
    pub detail: Option<String>,
    /// Whether the request line was read to its end.
    pub line_known: bool,
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) if self.reason.ends_with(' ') => write!(f, "{}{detail}", self.reason),
            Some(detail) => write!(f, "{}: {detail}", self.reason),
            None => f.write_str(self.reason),
        }
    }
}

impl std::error::Error for HeadError {}

impl Parser {
    /// Reads on. `buf` begins with the first byte of the head (empty lines before it included) and holds at least what
    /// it held in the call before. `head` is cleared when a new head begins.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits, head: &mut RequestHead) -> Progress {
        if !self.started {
            *self = Parser {
                started: true,
                room: Room::new(limits),
                ..Parser::default()
            };
            head.clear();
            head.strict = limits.strict;
        }
        let progress = self.run(buf, limits, head).unwrap_or_else(Progress::Bad);
        self.started = matches!(progress, Progress::Need | Progress::Blank { .. });
        progress
    }

    /// Whether part of a head was read: an end of the connection here is not a clean one.
    pub fn is_inside(&self) -> bool {
        self.started && (self.in_fields || !self.line.is_blank())
    }

    fn run(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        head: &mut RequestHead,
    ) -> Result<Progress, HeadError> {
        while !self.in_fields {
            match self.line.advance(self.room.of(buf)) {
                Step::Done => {
                    head.take_line(&self.line, buf)?;
                    if limits.strict {
                        self.check_line(buf)?;
                    }
                    if head.version == Version::V09 {
                        return Ok(Progress::Done {
                            consumed: self.line.pos(),
                        });
                    }
                    self.in_fields = true;
                    self.fields = FieldScanner::at(self.line.pos());
                }
                Step::More if self.line.is_blank() => {
                    let consumed = self.line.pos();
                    if consumed == 0 {
                        return Ok(Progress::Need);
                    }
                    if limits.strict {
                        let lines = buf.get(..consumed).unwrap_or_default();
                        strict::empty_lines(self.blank, lines).map_err(refused)?;
                    }
                    if self.room.is_used_up(buf) {
                        self.room.end += limits.header_buffer.max(1);
                        continue;
                    }
                    self.line.forget(consumed);
                    self.room.end -= consumed;
                    self.blank += consumed;
                    return Ok(Progress::Blank { consumed });
                }
                Step::More => {
                    if !self.room.is_used_up(buf) {
                        return Ok(Progress::Need);
                    }
                    if !self.room.grow(limits, self.line.start()) {
                        head.method = self.line.method();
                        head.line.extend_from_slice(
                            self.room
                                .of(buf)
                                .get(self.line.start()..)
                                .unwrap_or_default(),
                        );
                        return Err(error(414, "client sent too long URI", None));
                    }
                }
                Step::Bad(why) => {
                    // what answers HEAD has no body
                    head.method = self.line.method();
                    if why == BadLine::SimpleMethod {
                        head.version = Version::V09;
                    }
                    let rest = buf.get(self.line.start()..).unwrap_or_default();
                    head.line
                        .extend(rest.iter().take_while(|&&b| b != b'\r' && b != b'\n'));
                    return Err(error(why.status(), why.reason(), None));
                }
            }
        }
        self.read_fields(buf, limits, head).map_err(|e| HeadError {
            line_known: true,
            ..e
        })
    }

    fn read_fields(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        head: &mut RequestHead,
    ) -> Result<Progress, HeadError> {
        let names = Names {
            underscores: limits.underscores,
            skip_status_lines: false,
        };
        loop {
            match self.fields.next(self.room.of(buf), names) {
                Field::Line {
                    name,
                    value,
                    unusual,
                } => {
                    head.header_in_bytes = self.fields.pos() - self.line.start();
                    if limits.strict {
                        let raw = buf.get(name.start..self.fields.pos()).unwrap_or_default();
                        let name = buf.get(name.clone()).unwrap_or_default();
                        strict::field_line(raw, name).map_err(refused)?;
                    }
                    if unusual && limits.ignore_invalid {
                        head.ignored.push(name.start..value.end);
                        continue;
                    }
                    if self.count >= limits.max_headers {
                        return Err(error(494, "client sent too many header lines", None));
                    }
                    self.count += 1;
                    head.take_field(
                        buf.get(name).unwrap_or_default(),
                        buf.get(value).unwrap_or_default(),
                    )?;
                }
                Field::End => {
                    head.header_in_bytes = self.fields.pos() - self.line.start();
                    let last = self.fields.last_line_start()..self.fields.pos();
                    if limits.strict && buf.get(last) != Some(b"\r\n") {
                        return Err(refused("header line without CR LF"));
                    }
                    head.finish(limits)?;
                    return Ok(Progress::Done {
                        consumed: self.fields.pos(),
                    });
                }
                Field::More => {
                    if !self.room.is_used_up(buf) {
                        return Ok(Progress::Need);
                    }
                    if !self.room.grow(limits, self.fields.line_start()) {
                        return Err(self.too_large(buf));
                    }
                }
                Field::Invalid(line) => {
                    let detail = Some(field::describe(buf, &line));
                    return Err(error(400, "client sent invalid header line", detail));
                }
            }
        }
    }

    /// What `request_parsing strict` says of the request line and of the empty lines before it.
    fn check_line(&self, buf: &[u8]) -> Result<(), HeadError> {
        let before = buf.get(..self.line.start()).unwrap_or_default();
        strict::empty_lines(self.blank, before).map_err(refused)?;
        let line = self.line.start()..self.line.pos();
        strict::request_line(buf.get(line).unwrap_or_default())
            .map_err(|(status, why)| error(status, "client sent ", Some(why.to_owned())))
    }

    fn too_large(&self, buf: &[u8]) -> HeadError {
        let begun = self.fields.last_line_start();
        if begun == self.fields.pos() {
            return error(494, "client sent too large request", None);
        }
        let line = self.room.of(buf).get(begun..).unwrap_or_default();
        let line = line.get(..LOGGED_LINE).unwrap_or(line);
        error(
            494,
            "client sent too long header line",
            Some(format!("\"{}...\"", crate::http::text::shown(line))),
        )
    }
}

impl RequestHead {
    /// Makes ready for the next head; keeps the memory.
    pub fn clear(&mut self) {
        self.line.clear();
        self.headers.clear();
        self.ignored.clear();
        self.host.clear();
        self.host_port = 0;
        self.method = Method::Unknown;
        (self.method_text, self.target, self.uri) = (0..0, 0..0, 0..0);
        (self.query, self.schema, self.protocol) = (None, None, None);
        (self.empty_path, self.complex) = (false, false);
        // a request line that cannot be read is answered with a head
        (self.version, self.http_major_minor) = (Version::V10, (0, 0));
        (self.content_length, self.chunked, self.expect_continue) = (None, false, false);
        self.connection = ConnectionHeader::default();
        self.header_in_bytes = 0;
        self.strict = false;
    }

    /// A part of the request line: `head.text(&head.uri)`.
    pub fn text(&self, part: &Range<usize>) -> &[u8] {
        self.line.get(part.clone()).unwrap_or_default()
    }

    /// The method as written.
    pub fn method_name(&self) -> &[u8] {
        self.text(&self.method_text)
    }

    /// Whether a body follows the head.
    pub fn has_body(&self) -> bool {
        self.chunked || self.content_length.is_some_and(|n| n > 0)
    }

    fn take_line(&mut self, line: &RequestLine, buf: &[u8]) -> Result<(), HeadError> {
        let start = line.start();
        let within = |r: Range<usize>| r.start.saturating_sub(start)..r.end.saturating_sub(start);
        self.line
            .extend_from_slice(buf.get(line.line()).unwrap_or_default());
        self.header_in_bytes = line.pos() - start;
        self.method = line.method();
        self.method_text = within(line.method_text());
        self.target = within(line.target());
        self.uri = within(line.uri());
        self.query = line.query().map(|at| at - start);
        self.empty_path = line.empty_path();
        self.complex = line.complex();
        self.schema = line.schema().map(within);
        self.protocol = line.protocol().map(within);
        self.http_major_minor = line.version();
        self.version = match line.version() {
            (0, _) => Version::V09,
            (1, 0) => Version::V10,
            _ => Version::V11,
        };
        if let Some(authority) = line.authority() {
            let text = buf.get(authority).unwrap_or_default();
            let host = parse_host(text).ok_or(HeadError {
                line_known: true,
                ..error(400, "client sent invalid host in request line", None)
            })?;
            self.set_host(text, host);
        }
        Ok(())
    }

    fn take_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        let known = Known::of(name);
        let earlier = match known {
            Known::Other => None,
            Known::Host => self.repeated(known, "client sent duplicate host header", name, value),
            _ if is_unique(known) => {
                self.repeated(known, "client sent duplicate header line", name, value)
            }
            _ => None,
        };
        self.headers.append_as(known, name, value);
        if let Some(error) = earlier {
            return Err(error);
        }
        match known {
            Known::Host => {
                let host = parse_host(value)
                    .ok_or_else(|| error(400, "client sent invalid host header", None))?;
                // The host of an absolute-form target wins (RFC 9112, section 3.2.2).
                if self.host.is_empty() {
                    self.set_host(value, host);
                }
            }
            Known::Connection => {
                if contains_ignore_case(value, b"close") {
                    (self.connection.close, self.connection.keep_alive) = (true, false);
                } else if contains_ignore_case(value, b"keep-alive") {
                    (self.connection.close, self.connection.keep_alive) = (false, true);
                }
                self.connection.upgrade |= has_token(value, b"upgrade");
            }
            Known::Expect => {
                self.expect_continue =
                    self.version == Version::V11 && value.eq_ignore_ascii_case(b"100-continue");
            }
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn repeated(
        &self,
        known: Known,
        reason: &'static str,
        name: &[u8],
        value: &[u8],
    ) -> Option<HeadError> {
        if !self.headers.contains_id(known) {
            return None;
        }
        let (_, first_name, first) = self.headers.entries().find(|(id, ..)| *id == known)?;
        let [name, value, first_name, first] =
            [name, value, first_name, first].map(crate::http::text::shown);
        let detail = format!("\"{name}: {value}\", previous value: \"{first_name}: {first}\"");
        Some(error(400, reason, Some(detail)))
    }

    fn set_host(&mut self, text: &[u8], (len, port): (usize, u16)) {
        self.host
            .extend(text.iter().take(len).map(u8::to_ascii_lowercase));
        self.host_port = port;
    }

    /// What can be judged only when all fields are known, in nginx's order.
    fn finish(&mut self, limits: &Limits) -> Result<(), HeadError> {
        if self.version == Version::V11 && !self.headers.contains_id(Known::Host) {
            return Err(error(
                400,
                "client sent HTTP/1.1 request without \"Host\" header",
                None,
            ));
        }
        if let Some(value) = self.headers.get_id(Known::ContentLength) {
            let length = parse_length(value);
            self.content_length = Some(length.ok_or_else(|| {
                error(400, "client sent invalid \"Content-Length\" header", None)
            })?);
        }
        if let Some(value) = self.headers.get_id(Known::TransferEncoding) {
            if self.version < Version::V11 {
                return Err(error(
                    400,
                    "client sent HTTP/1.0 request with \"Transfer-Encoding\" header",
                    None,
                ));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                let detail = Some(format!("\"{}\"", crate::http::text::shown(value)));
                return Err(error(
                    if self.strict { 400 } else { 501 },
                    "client sent unknown \"Transfer-Encoding\"",
                    detail,
                ));
            }
            if self.content_length.is_some() {
                let reason = "client sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time";
                return Err(error(400, reason, None));
            }
            self.chunked = true;
        }
        if self.strict {
            self.finish_strict()?;
        }
        self.headers.clean();
        match self.method {
            Method::Connect if !limits.allow_connect => self.check_connect(false),
            Method::Trace => Err(error(405, "client sent TRACE method", None)),
            _ => Ok(()),
        }
    }
}

impl RequestHead {
    /// What `request_parsing strict` says of the head as a whole.
    fn finish_strict(&self) -> Result<(), HeadError> {
        let http11 = self.version == Version::V11;
        strict::fields(&self.headers, http11, self.has_body())
            .map_err(|(status, why)| error(status, "client sent ", Some(why.to_owned())))?;
        // RFC 9112, section 3.2: both say the same
        if let (Some(_), Some(host)) = (&self.schema, self.headers.get_id(Known::Host))
            && !self.target_authority().eq_ignore_ascii_case(host)
        {
            return Err(refused(
                "different hosts in request line and \"Host\" header",
            ));
        }
        Ok(())
    }

    /// Host and port of an absolute-form target, as written.
    fn target_authority(&self) -> &[u8] {
        let target = self.text(&self.target);
        let Some(at) = memchr::memmem::find(target, b"://") else {
            return b"";
        };
        let rest = target.get(at + 3..).unwrap_or_default();
        let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    /// Whether a CONNECT may be served by a server that allows it, or does not.
    ///
    /// # Errors
    /// Why it may not; a CONNECT of HTTP/1.0, or one with a body, never may.
    pub fn check_connect(&self, allowed: bool) -> Result<(), HeadError> {
        if self.http_major_minor != (1, 1) || !allowed {
            Err(error(405, "client sent CONNECT method", None))
        } else if self.has_body() {
            Err(error(400, "client sent CONNECT request with body", None))
        } else {
            Ok(())
        }
    }
}

impl HeadError {
    /// Whether it is about the request line, though that was read to its end.
    pub fn is_of_line(&self) -> bool {
        !self.line_known || self.reason.ends_with("in request line")
    }
}

/// A `Content-Length` value: digits only, at most 2^63-1 as in nginx.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let length = value.iter().try_fold(0u64, |n, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })?;
    (length <= i64::MAX as u64).then_some(length)
}

/// How much of an overlong line nginx logs, bytes.
const LOGGED_LINE: usize = 2048 - 300;

/// nginx's buffers, as offsets into our one: a line that does not fit into the rest of a buffer moves to a large one.
#[derive(Debug, Default, Clone, Copy)]
struct Room {
    /// Where the buffer in use ends.
    end: usize,
    /// Large buffers in use.
    large: usize,
}

impl Room {
    fn new(limits: &Limits) -> Self {
        Room {
            end: limits.header_buffer.max(1),
            large: 0,
        }
    }

    fn of<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(..self.end).unwrap_or(buf)
    }

    fn is_used_up(&self, buf: &[u8]) -> bool {
        buf.len() >= self.end
    }

    /// Takes another large buffer for the line that began at `line`; false if it would not fit or none is left.
    fn grow(&mut self, limits: &Limits, line: usize) -> bool {
        let (number, size) = limits.large;
        if self.large >= number || (self.end > line && self.end - line >= size) {
            return false;
        }
        self.large += 1;
        self.end = line.saturating_add(size);
        true
    }
}

/// Fields that may stand in a request only once; `Host` has its own log text.
fn is_unique(known: Known) -> bool {
    use Known::*;
    matches!(
        known,
        IfModifiedSince
            | IfUnmodifiedSince
            | IfMatch
            | IfNoneMatch
            | ContentLength
            | ContentRange
            | IfRange
            | TransferEncoding
            | Expect
            | Authorization
            | ProxyAuthorization
    )
}

#[cold]
fn error(status: u16, reason: &'static str, detail: Option<String>) -> HeadError {
    HeadError {
        status,
        reason,
        detail,
        line_known: false,
    }
}

/// Refused by `request_parsing strict`.
#[cold]
fn refused(why: strict::Why) -> HeadError {
    error(400, "client sent ", Some(why.to_owned()))
}

#[path = "head_v2.rs"]
mod v2;
pub use v2::{Asked, OptionsV2};

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
