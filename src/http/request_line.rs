//! The request line (RFC 9112, section 3), byte by byte with nginx's rules.

use std::ops::Range;

use crate::http::method::Method;

/// Scans one request line over a buffer that may still grow at its end. Offsets are offsets into that buffer.
///
/// Empty lines before it are skipped. A bare LF ends it. Without a version it is an HTTP/0.9 request, which must be GET.
#[derive(Debug, Default, Clone)]
pub struct RequestLine {
    state: State,
    pos: usize,
    start: usize,
    end: usize,
    method_end: usize,
    method: Method,
    target: usize,
    schema_end: usize,
    host: usize,
    host_end: Option<usize>,
    uri: usize,
    uri_end: usize,
    query: Option<usize>,
    fragment: bool,
    protocol: usize,
    major: u16,
    minor: u16,
    complex: bool,
    empty_path: bool,
}

/// What [`RequestLine::advance`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The buffer ends inside the line.
    More,
    /// The line is whole; [`RequestLine::pos`] is behind it.
    Done,
    /// The line is malformed.
    Bad(BadLine),
}

/// Why a request line was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadLine {
    /// A byte that cannot stand in a method.
    Method,
    /// Anything else out of place.
    Request,
    /// HTTP/2 or above in an HTTP/1 request line.
    Version,
    /// No version and a method other than GET.
    SimpleMethod,
}

impl BadLine {
    /// nginx's log text.
    pub fn reason(self) -> &'static str {
        match self {
            BadLine::Method => "client sent invalid method",
            BadLine::Request => "client sent invalid request",
            BadLine::Version => "client sent invalid version",
            BadLine::SimpleMethod => "client sent invalid method in HTTP/0.9 request",
        }
    }

    /// The status that answers it.
    pub fn status(self) -> u16 {
        if self == BadLine::Version { 505 } else { 400 }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Method,
    BeforeTarget,
    Schema,
    SchemaSlashes(u8),
    BeforeAuthority,
    HostStart,
    Host,
    HostEnd,
    IpLiteral,
    PortStart,
    Port,
    Path,
    Query,
    AfterTarget,
    Protocol(u8),
    MajorFirst,
    Major,
    MinorFirst,
    Minor,
    AfterVersion,
    LineCr,
}

impl RequestLine {
    /// Offset of the next byte to look at.
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Whether only empty lines were seen so far.
    pub fn is_blank(&self) -> bool {
        self.state == State::Start
    }

    /// Tells the scanner that `n` leading bytes of empty lines were dropped from the buffer.
    pub fn forget(&mut self, n: usize) {
        self.pos = self.pos.saturating_sub(n);
        self.start = self.start.saturating_sub(n);
    }

    /// Where the line begins.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The whole line without its end.
    pub fn line(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The method as written.
    pub fn method_text(&self) -> Range<usize> {
        self.start..self.method_end
    }

    /// The request-target as written, in any of its four forms.
    pub fn target(&self) -> Range<usize> {
        let authority = self.host_end.filter(|_| self.method == Method::Connect);
        let end = authority
            .or(self.host_end.filter(|_| self.uri < self.host))
            .unwrap_or(self.uri_end);
        self.target..end
    }

    /// Path and query: nginx's `$request_uri`. Where the target has no path at all this is the `/` of another part of
    /// the line, and only the query when there is one (see [`RequestLine::empty_path`]).
    pub fn uri(&self) -> Range<usize> {
        self.uri..self.uri_end
    }

    /// Where the query begins, behind its `?`.
    pub fn query(&self) -> Option<usize> {
        self.query
    }

    /// An absolute-form target with a query but no path: the path is `/`.
    pub fn empty_path(&self) -> bool {
        self.empty_path
    }

    /// The path holds `%`, `#`, `//` or `/.`, or is empty: it has to be normalised.
    pub fn complex(&self) -> bool {
        self.complex || self.empty_path
    }

    /// The schema of an absolute-form target.
    pub fn schema(&self) -> Option<Range<usize>> {
        (self.schema_end > 0).then_some(self.target..self.schema_end)
    }

    /// Host and port of an absolute-form or authority-form target; the host may be empty.
    pub fn authority(&self) -> Option<Range<usize>> {
        self.host_end.map(|end| self.host..end)
    }

    /// The protocol as written; `None` in HTTP/0.9.
    pub fn protocol(&self) -> Option<Range<usize>> {
        (self.protocol > 0).then_some(self.protocol..self.end)
    }

    /// Major and minor version; 0.9 if the line names none.
    pub fn version(&self) -> (u16, u16) {
        (self.major, self.minor)
    }

    /// Scans on. `buf` must begin where it began in the calls before; nothing is scanned twice.
    pub fn advance(&mut self, buf: &[u8]) -> Step {
        while let Some(&byte) = buf.get(self.pos) {
            match self.state {
                State::Path | State::Query => {
                    if !self.scan_uri(buf) {
                        return Step::Bad(BadLine::Request);
                    }
                    continue;
                }
                State::Start => {
                    self.start = self.pos;
                    if byte != b'\r' && byte != b'\n' {
                        if !is_method_byte(byte) {
                            return Step::Bad(BadLine::Method);
                        }
                        self.state = State::Method;
                    }
                }
                State::Method => {
                    if byte == b' ' {
                        self.method_end = self.pos;
                        self.method = Method::of(buf.get(self.start..self.pos).unwrap_or_default());
                        self.state = match self.method {
                            Method::Connect => State::BeforeAuthority,
                            _ => State::BeforeTarget,
                        };
                    } else if !is_method_byte(byte) {
                        return Step::Bad(BadLine::Method);
                    }
                }
                State::LineCr if byte == b'\n' => return self.done(),
                State::AfterTarget if byte == b'H' && self.is_usual_end(buf) => {
                    self.protocol = self.pos;
                    self.end = self.pos + b"HTTP/1.1".len();
                    self.pos = self.end + 1;
                    (self.major, self.minor, self.state) = (1, 1, State::LineCr);
                    return self.done();
                }
                _ => match self.next_state(byte) {
                    Some(State::Start) => return self.done(),
                    Some(state) => self.state = state,
                    None => {
                        let too_new = matches!(self.state, State::MajorFirst | State::Major)
                            && self.major > 1;
                        return Step::Bad(if too_new {
                            BadLine::Version
                        } else {
                            BadLine::Request
                        });
                    }
                },
            }
            self.pos += 1;
        }
        Step::More
    }

    /// Whether the line ends the way nearly all do; the states would come to the same.
    fn is_usual_end(&self, buf: &[u8]) -> bool {
        self.method != Method::Connect
            && buf
                .get(self.pos..)
                .is_some_and(|rest| rest.starts_with(b"HTTP/1.1\r\n"))
    }

    /// The state after `byte`; `Start` when it ends the line, `None` when it is out of place.
    fn next_state(&mut self, byte: u8) -> Option<State> {
        match self.state {
            State::BeforeTarget => match byte {
                b' ' => Some(State::BeforeTarget),
                b'/' => {
                    (self.target, self.uri) = (self.pos, self.pos);
                    Some(State::Path)
                }
                _ if byte.is_ascii_alphabetic() => {
                    self.target = self.pos;
                    Some(State::Schema)
                }
                _ => None,
            },
            State::Schema => match byte {
                b':' => {
                    self.schema_end = self.pos;
                    Some(State::SchemaSlashes(0))
                }
                b'+' | b'-' | b'.' => Some(State::Schema),
                _ => byte.is_ascii_alphanumeric().then_some(State::Schema),
            },
            State::SchemaSlashes(seen) => match (byte, seen) {
                (b'/', 0) => Some(State::SchemaSlashes(1)),
                (b'/', _) => Some(State::HostStart),
                _ => None,
            },
            State::BeforeAuthority if byte == b' ' => Some(State::BeforeAuthority),
            State::BeforeAuthority | State::HostStart => {
                if self.state == State::BeforeAuthority {
                    self.target = self.pos;
                }
                self.host = self.pos;
                if byte == b'[' {
                    Some(State::IpLiteral)
                } else {
                    self.host(byte)
                }
            }
            State::Host => self.host(byte),
            State::HostEnd => self.after_host(byte),
            State::IpLiteral => match byte {
                b']' => Some(State::HostEnd),
                _ => is_literal_byte(byte).then_some(State::IpLiteral),
            },
            State::PortStart | State::Port if byte.is_ascii_digit() => Some(State::Port),
            State::PortStart if self.method == Method::Connect => None,
            State::PortStart | State::Port => {
                if self.method == Method::Connect {
                    self.host_end = Some(self.pos);
                    return (byte == b' ').then_some(State::AfterTarget);
                }
                self.after_authority(byte)
            }
            State::AfterTarget => match byte {
                b' ' => Some(State::AfterTarget),
                b'H' => {
                    self.protocol = self.pos;
                    Some(State::Protocol(1))
                }
                _ => self.simple(byte),
            },
            State::Protocol(matched) => {
                if b"HTTP/".get(usize::from(matched)) != Some(&byte) {
                    return None;
                }
                if matched < 4 {
                    return Some(State::Protocol(matched + 1));
                }
                if self.method == Method::Connect {
                    // The path of a CONNECT is "/", and this is one that the line holds.
                    (self.uri, self.uri_end) = (self.pos, self.pos + 1);
                }
                Some(State::MajorFirst)
            }
            State::MajorFirst if byte == b'0' => None,
            State::MajorFirst | State::Major => match byte {
                b'.' if self.state == State::Major => Some(State::MinorFirst),
                b'0'..=b'9' => {
                    self.major = self.major * 10 + u16::from(byte - b'0');
                    (self.major <= 1).then_some(State::Major)
                }
                _ => None,
            },
            State::MinorFirst => {
                self.minor = byte.is_ascii_digit().then(|| u16::from(byte - b'0'))?;
                Some(State::Minor)
            }
            State::Minor if byte.is_ascii_digit() && self.minor <= 99 => {
                self.minor = self.minor * 10 + u16::from(byte - b'0');
                Some(State::Minor)
            }
            State::Minor | State::AfterVersion => match byte {
                b' ' => Some(State::AfterVersion),
                _ => self.line_end(byte),
            },
            // The others are `advance`'s own.
            State::LineCr | State::Start | State::Method | State::Path | State::Query => None,
        }
    }

    /// In a host of the request line nginx takes letters, digits, `.` and `-` only.
    fn host(&mut self, byte: u8) -> Option<State> {
        match byte {
            b'.' | b'-' => Some(State::Host),
            _ if byte.is_ascii_alphanumeric() => Some(State::Host),
            _ => self.after_host(byte),
        }
    }

    fn after_host(&mut self, byte: u8) -> Option<State> {
        match byte {
            b':' => Some(State::PortStart),
            _ if self.method == Method::Connect => None,
            _ => self.after_authority(byte),
        }
    }

    fn after_authority(&mut self, byte: u8) -> Option<State> {
        self.host_end = Some(self.pos);
        match byte {
            b'/' => {
                self.uri = self.pos;
                Some(State::Path)
            }
            b'?' => {
                self.uri = self.pos;
                self.query = Some(self.pos + 1);
                self.empty_path = true;
                Some(State::Query)
            }
            b' ' => {
                // No path: the first "/" of "://" stands for it, so that the range stays inside the line.
                (self.uri, self.uri_end) = (self.schema_end + 1, self.schema_end + 2);
                Some(State::AfterTarget)
            }
            _ => None,
        }
    }

    /// Runs through path and query; false at a control byte.
    fn scan_uri(&mut self, buf: &[u8]) -> bool {
        loop {
            let rest = buf.get(self.pos..).unwrap_or_default();
            let plain = rest
                .iter()
                .take_while(|&&b| matches!(URI_CLASS[b as usize], UriByte::Plain))
                .count();
            self.pos += plain;
            let Some(&byte) = rest.get(plain) else {
                return true;
            };
            match URI_CLASS[byte as usize] {
                UriByte::Plain => {}
                UriByte::Never => return false,
                UriByte::End => {
                    self.uri_end = self.pos;
                    match if byte == b' ' {
                        Some(State::AfterTarget)
                    } else {
                        self.simple(byte)
                    } {
                        Some(state) => self.state = state,
                        None => return false,
                    }
                    // A bare LF ends the line right here: leave it for `LineCr`, which takes exactly that.
                    if byte == b'\n' {
                        self.end = self.pos;
                        self.state = State::LineCr;
                        return true;
                    }
                    self.pos += 1;
                    return true;
                }
                UriByte::Special if self.state == State::Query => self.complex |= byte == b'#',
                UriByte::Special => match byte {
                    b'?' => {
                        if !self.fragment {
                            self.query = Some(self.pos + 1);
                        }
                        self.state = State::Query;
                    }
                    b'%' => self.complex = true,
                    b'#' => {
                        self.complex = true;
                        self.fragment = true;
                    }
                    // '/' and '.': an empty or dot segment begins.
                    _ => {
                        self.complex |= self.pos > self.uri && buf.get(self.pos - 1) == Some(&b'/')
                    }
                },
            }
            self.pos += 1;
        }
    }

    /// The end of a line without a version.
    fn simple(&mut self, byte: u8) -> Option<State> {
        (self.major, self.minor) = (0, 9);
        self.line_end(byte)
    }

    fn line_end(&mut self, byte: u8) -> Option<State> {
        self.end = self.pos;
        match byte {
            b'\r' => Some(State::LineCr),
            b'\n' => Some(State::Start),
            _ => None,
        }
    }

    fn done(&mut self) -> Step {
        self.pos += 1;
        if self.major == 0 && self.method != Method::Get {
            return Step::Bad(BadLine::SimpleMethod);
        }
        Step::Done
    }
}

fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'_' || byte == b'-'
}

fn is_literal_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b':' | b'-'
                | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

#[derive(Clone, Copy)]
enum UriByte {
    Plain,
    Special,
    End,
    Never,
}

static URI_CLASS: [UriByte; 256] = {
    let mut class = [UriByte::Plain; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b' ' | b'\r' | b'\n' => UriByte::End,
            b'/' | b'.' | b'%' | b'?' | b'#' => UriByte::Special,
            0..b' ' | 0x7f => UriByte::Never,
            _ => UriByte::Plain,
        };
        byte += 1;
    }
    class
};

#[cfg(test)]
#[path = "request_line_tests.rs"]
mod tests;
