//! How each protocol's answers become a head and the beginning of a body.

use super::cgi;
use super::fastcgi::{self, Answer};
use super::memcached;
use crate::contract::{Codec, Pass, Request};
use crate::http::h1::response::{NO_VALID_HEADER, Parser, Progress};
use crate::log::Level;
use bytes::{Buf, BytesMut};

/// How much larger than one head interim responses may be together. An origin that sends them for ever would hold its
/// request for ever: each one is an answer in time.
const INTERIM: usize = 16;

const DOING: &str = "while reading response header from upstream";

/// Reads the head of an answer.
pub(super) enum HeadReader<'a> {
    Http1(Http1<'a>),
    Cgi(cgi::Parser),
    FastCgi(Box<(Answer, cgi::Parser)>, bool),
    Memcached { key: &'a [u8], gzip_flag: u64 },
}

/// Reads the head of a response of HTTP/1, and the interim responses before it.
pub(super) struct Http1<'a> {
    parser: Parser,
    /// The request that is answered.
    request: &'a [u8],
    /// No other request was sent on the connection before.
    fresh: bool,
    strict: bool,
    /// Bytes of interim responses so far.
    interim: usize,
}

/// What [`HeadReader::read`] came to.
pub(super) enum Read {
    /// More bytes are needed.
    Need,
    /// An interim answer was passed on or dropped.
    Again,
    /// The head is whole.
    Done(Body),
    /// The head is refused, and was logged.
    Bad,
}

/// What the protocol knows of the body that follows.
pub(super) enum Body {
    /// What the head says.
    Http,
    /// It comes in records.
    FastCgi { answer: Box<Answer>, keep: bool },
    /// A value of that length.
    Memcached(u64),
    /// None, and the connection can be used again.
    Nothing,
    /// It comes in frames of HTTP/2.
    Http2(Box<super::h2::Exchange>),
}

impl Body {
    /// Bytes of it that were read along with the head and are not in the connection's buffer any more.
    pub fn unread(&self) -> usize {
        match self {
            Body::FastCgi { answer, .. } => answer.stdout.len(),
            _ => 0,
        }
    }

    /// Whether nothing is to come any more, and the connection can be used again.
    pub fn is_over(&self) -> bool {
        match self {
            Body::FastCgi { answer, keep } => *keep && answer.ended == Some(true),
            Body::Nothing => true,
            _ => false,
        }
    }
}

impl<'a> HeadReader<'a> {
    /// A reader for the answer to `request`; `fresh`: it is the first on its connection; `strict`: `response_parsing`.
    pub fn new(pass: &Pass, request: &'a [u8], fresh: bool, strict: bool) -> HeadReader<'a> {
        match pass.protocol.codec() {
            // HTTP/2 reads its own, and a tunnel has none
            Codec::Http1 | Codec::Http2 | Codec::Tunnel => HeadReader::Http1(Http1 {
                parser: Parser::new(strict),
                request,
                fresh,
                strict,
                interim: 0,
            }),
            Codec::Cgi => HeadReader::Cgi(cgi::Parser::new(true)),
            Codec::FastCgi { keep } => {
                HeadReader::FastCgi(Box::new((Answer::default(), cgi::Parser::new(false))), keep)
            }
            Codec::Memcached { gzip_flag } => HeadReader::Memcached {
                key: memcached::key(request),
                gzip_flag,
            },
        }
    }

    /// Reads what is in the buffer, and takes the head out of it once it is whole.
    pub fn read(&mut self, r: &mut Request, pass: &Pass, buf: &mut BytesMut) -> Read {
        let limit = pass.conf.buffer_size;
        match self {
            HeadReader::Http1(http1) => http1.read(r, pass, buf),
            HeadReader::Cgi(parser) => match parser.parse(buf, limit, &mut r.upstream.head) {
                cgi::Progress::Need => Read::Need,
                cgi::Progress::Done(length) => {
                    buf.advance(length);
                    Read::Done(Body::Http)
                }
                cgi::Progress::Bad(e) => bad(r, &e),
            },
            HeadReader::FastCgi(state, keep) => {
                let (answer, parser) = &mut **state;
                match fastcgi(answer, parser, r, pass, buf) {
                    Read::Done(_) => Read::Done(Body::FastCgi {
                        answer: Box::new(std::mem::take(answer)),
                        keep: *keep,
                    }),
                    other => other,
                }
            }
            HeadReader::Memcached { key, gzip_flag } => value(key, *gzip_flag, r, limit, buf),
        }
    }
}

impl Http1<'_> {
    fn read(&mut self, r: &mut Request, pass: &Pass, buf: &mut BytesMut) -> Read {
        let progress = self
            .parser
            .parse(buf, pass.conf.buffer_size, &mut r.upstream.head);
        let consumed = match progress {
            Progress::Need => return Read::Need,
            Progress::Bad(e) => return bad(r, &e),
            Progress::EarlyHints { consumed } => consumed,
            Progress::Done { .. } if r.upstream.head.is_http09() => {
                if !self.may_be_http09(buf) {
                    return bad(r, &NO_VALID_HEADER);
                }
                r.error(Level::Error, format_args!("{NO_VALID_HEADER} {DOING}"));
                return Read::Done(Body::Http);
            }
            Progress::Done { consumed } => consumed,
        };
        buf.advance(consumed);
        if !matches!(r.upstream.head.status, 100 | 102..=199) {
            return Read::Done(Body::Http);
        }
        self.interim = self.interim.saturating_add(consumed);
        if self.interim > pass.conf.buffer_size.saturating_mul(INTERIM) {
            return bad(r, &"upstream sent too many interim responses");
        }
        if r.upstream.head.status == 103 {
            super::hints::pass_on(r, pass, self.interim);
        }
        Read::Again
    }

    /// Whether bytes without a status line are the response of an HTTP/0.9 server. Such a server knows no second
    /// request on a connection and no interim response, and is asked by HTTP/1.0 at most: anything else that does not
    /// begin with a status line belongs to no response, or to another one.
    #[cold]
    fn may_be_http09(&self, buf: &[u8]) -> bool {
        let line = self.request.split(|byte| *byte == b'\r').next();
        !self.strict
            && self.fresh
            && self.interim == 0
            && line.unwrap_or_default().ends_with(b" HTTP/1.0")
            && !buf.starts_with(b"HTTP/")
    }
}

fn fastcgi(
    answer: &mut Answer,
    parser: &mut cgi::Parser,
    r: &mut Request,
    pass: &Pass,
    buf: &mut BytesMut,
) -> Read {
    let fed = answer.feed(buf);
    let mut fatal = false;
    for text in answer.stderr.drain(..) {
        log_stderr(r, &text, DOING);
        fatal |= pass.protocol.is_fatal(fastcgi::trimmed(&text));
    }
    match fed {
        Ok(used) => buf.advance(used),
        Err(e) => return bad(r, &e),
    }
    if fatal {
        return Read::Bad;
    }
    let head = &mut r.upstream.head;
    let progress = if answer.stdout.is_empty() {
        cgi::Progress::Need
    } else {
        parser.parse(&answer.stdout, pass.conf.buffer_size, head)
    };
    match (progress, answer.no_head()) {
        (cgi::Progress::Done(length), _) => {
            answer.stdout.advance(length);
            // the records say what becomes of the connection, not a header of the application
            head.connection_close = false;
            Read::Done(Body::Http)
        }
        (cgi::Progress::Bad(e), _) => bad(r, &e),
        (cgi::Progress::Need, Some(e)) => bad(r, &e),
        (cgi::Progress::Need, None) => Read::Need,
    }
}

fn value(key: &[u8], gzip_flag: u64, r: &mut Request, limit: usize, buf: &mut BytesMut) -> Read {
    let found = memcached::line(buf, key, gzip_flag != 0, limit);
    let head = &mut r.upstream.head;
    head.clear();
    head.version = (1, 1);
    match found {
        memcached::Line::Need => Read::Need,
        memcached::Line::Value {
            line,
            flags,
            length,
        } => {
            buf.advance(line);
            head.status = 200;
            head.content_length = Some(length);
            if flags & gzip_flag != 0 {
                head.headers.append(b"Content-Encoding", b"gzip");
            }
            Read::Done(Body::Memcached(length))
        }
        memcached::Line::NotFound { line } => {
            buf.advance(line);
            head.status = 404;
            head.content_length = Some(0);
            let key = crate::http::text::shown(key);
            r.error(
                Level::Info,
                format_args!("key: \"{key}\" was not found by memcached {DOING}"),
            );
            Read::Done(Body::Nothing)
        }
        memcached::Line::Bad(e) => bad(r, &e),
    }
}

/// Logs what an application wrote to its error output, which is no failure in itself.
pub(super) fn log_stderr(r: &mut Request, text: &[u8], doing: &str) {
    let text = crate::http::text::shown(fastcgi::trimmed(text));
    r.error(
        Level::Error,
        format_args!("FastCGI sent in stderr: \"{text}\" {doing}"),
    );
}

fn bad(r: &mut Request, e: &dyn std::fmt::Display) -> Read {
    r.upstream.fails("bad_header");
    r.error(Level::Error, format_args!("{e} {DOING}"));
    Read::Bad
}
