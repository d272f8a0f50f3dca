//! How the end of an origin's body is found, for each protocol, and which of its bytes are the body's.

use super::attempt::Attempt;
use super::codec::Body;
use super::fastcgi::{self, Answer};
use super::memcached;
use crate::contract::{Codec, Request};
use crate::http::h1::chunked_strict::{Chunks, StrictDecoder};
use crate::http::h1::response::BodyLength;
use bytes::BytesMut;

/// The log text for bytes that no response accounts for, where responses are parsed strictly.
pub(super) const BEHIND_THE_END: &str = "upstream sent data behind the end of the response";

/// How the end of the origin's body is found.
pub(super) enum OriginBody {
    Length(u64),
    Chunked(Box<Chunks>),
    Close,
    FastCgi(Box<Records>),
    Memcached(memcached::Value, Option<bool>),
}

/// A body in FastCGI records.
pub(super) struct Records {
    pub answer: Box<Answer>,
    /// What `Content-Length` says is still to come.
    left: Option<u64>,
    /// More came than that.
    pub excess: bool,
    /// Whether the request's own end is waited for, so that the connection can be kept.
    keep: bool,
}

impl OriginBody {
    pub fn new(a: &Attempt<'_>, r: &Request, body: Body) -> OriginBody {
        let head_only = a.pass.protocol.method(r).as_bytes() == b"HEAD";
        let length = r.upstream.head.body(head_only);
        match (body, length) {
            (Body::FastCgi { answer, keep }, length) => OriginBody::FastCgi(Box::new(Records {
                answer,
                left: match length {
                    BodyLength::None => Some(0),
                    BodyLength::Bytes(n) => Some(n),
                    _ => None,
                },
                excess: false,
                keep,
            })),
            (Body::Memcached(length), _) if !head_only => {
                OriginBody::Memcached(memcached::Value::new(length), None)
            }
            (_, BodyLength::None) => OriginBody::Length(0),
            (_, BodyLength::Bytes(n)) => OriginBody::Length(n),
            (_, BodyLength::Chunked) => {
                let keep = match a.pass.conf.pass_trailers {
                    true => a.pass.conf.buffer_size,
                    false => 0,
                };
                let d = Chunks::new(r.core().strict_responses, keep);
                OriginBody::Chunked(Box::new(d))
            }
            (_, BodyLength::UntilClose) => OriginBody::Close,
        }
    }

    /// How much of the buffer is the body's as it stands; `None` where it is decoded elsewhere.
    pub fn direct(&self, piece: &Piece) -> Option<usize> {
        match self {
            OriginBody::Chunked(_) | OriginBody::FastCgi(_) => None,
            OriginBody::Memcached(..) => Some(piece.direct),
            _ => Some(piece.used),
        }
    }

    /// Makes ready for a body that an application sends in spite of HEAD; false where none is looked for.
    pub fn expect_body_of_head(&mut self, a: &Attempt<'_>, r: &Request) -> bool {
        if a.pass.protocol.method(r).as_bytes() != b"HEAD"
            || matches!(r.upstream.head.status, 204 | 304)
        {
            return false;
        }
        match (a.pass.protocol.codec(), &mut *self) {
            (Codec::Cgi, framing) => *framing = OriginBody::Close,
            (_, OriginBody::FastCgi(f)) => f.left = None,
            _ => return false,
        }
        true
    }

    /// Whether the answer is whole if the connection ends here.
    pub fn may_close(&self) -> bool {
        match self {
            OriginBody::Close => true,
            OriginBody::FastCgi(f) => f.answer.closed,
            _ => false,
        }
    }

    /// Whether the answer ended so that the connection can be used again.
    pub fn is_clean(&self) -> bool {
        match self {
            OriginBody::Length(_) | OriginBody::Chunked(_) => true,
            OriginBody::Close => false,
            OriginBody::FastCgi(f) => f.keep && !f.excess && f.answer.ended == Some(true),
            OriginBody::Memcached(_, ended) => *ended == Some(true),
        }
    }
}

/// Checks a body of HTTP/1 as far as it has come with its head, where responses are parsed strictly: whether bytes stand
/// behind its end, or chunks that RFC 9112 does not allow. Nothing has been sent to the client by then.
///
/// # Errors
/// The log text.
pub(super) fn check(length: BodyLength, buf: &[u8], limit: usize) -> Result<(), String> {
    let over = match length {
        BodyLength::None => !buf.is_empty(),
        BodyLength::Bytes(n) => buf.len() as u64 > n,
        BodyLength::Chunked => {
            let mut decoder = StrictDecoder::new(limit);
            let decoded = decoder.decode(buf, |_| {}).map_err(|e| e.to_string())?;
            decoded.done && decoded.consumed < buf.len()
        }
        BodyLength::UntilClose => false,
    };
    match over {
        true => Err(BEHIND_THE_END.to_owned()),
        false => Ok(()),
    }
}

/// What a piece of the origin's bytes came to.
pub(super) struct Piece {
    /// Bytes of the buffer that were used up.
    pub used: usize,
    /// How many of them, at the beginning, are the body's as they stand, where it is not decoded.
    pub direct: usize,
    /// The body has come to its end.
    pub done: bool,
    /// What is wrong behind the bytes of this piece, which are the body's all the same: nginx's log text.
    pub fault: Option<fastcgi::Error>,
}

/// Takes what belongs to the body out of `buf`; appends to `body` what does not stand there as it is.
///
/// # Errors
/// nginx's log text.
pub(super) fn decode(
    framing: &mut OriginBody,
    buf: &[u8],
    body: &mut BytesMut,
) -> Result<Piece, String> {
    match framing {
        OriginBody::Length(left) => {
            let n = (*left).min(buf.len() as u64);
            *left -= n;
            Ok(Piece {
                used: n as usize,
                direct: n as usize,
                done: *left == 0,
                fault: None,
            })
        }
        OriginBody::Close => Ok(Piece {
            used: buf.len(),
            direct: buf.len(),
            done: false,
            fault: None,
        }),
        OriginBody::Chunked(d) => {
            let decoded = d.decode(buf, |range| {
                body.extend_from_slice(buf.get(range).unwrap_or_default())
            });
            decoded
                .map(|d| Piece {
                    used: d.consumed,
                    direct: 0,
                    done: d.done,
                    fault: None,
                })
                .map_err(|e| e.to_string())
        }
        OriginBody::FastCgi(f) => f.decode(buf, body).map_err(|e| e.to_string()),
        OriginBody::Memcached(value, ended) => {
            let p = value.feed(buf);
            *ended = p.ended;
            Ok(Piece {
                used: p.used,
                direct: p.value,
                done: p.ended.is_some(),
                fault: None,
            })
        }
    }
}

impl Records {
    fn decode(&mut self, buf: &[u8], body: &mut BytesMut) -> Result<Piece, fastcgi::Error> {
        let used = self.answer.feed(buf)?;
        let stdout = &mut self.answer.stdout;
        match &mut self.left {
            Some(left) if (stdout.len() as u64) > *left => {
                body.extend_from_slice(stdout.get(..*left as usize).unwrap_or_default());
                self.excess = true;
                *left = 0;
            }
            left => {
                if let Some(left) = left {
                    *left -= stdout.len() as u64;
                }
                body.extend_from_slice(stdout);
            }
        }
        stdout.clear();
        let over = self.answer.closed || self.answer.ended.is_some();
        let short = over && self.left.is_some_and(|left| left > 0);
        Ok(Piece {
            used,
            direct: 0,
            // an application that closes its output may still have to say that the request is over
            done: !short && (self.excess || self.answer.ended.is_some()),
            fault: short.then_some(if self.answer.closed {
                fastcgi::Error::StdoutClosed
            } else {
                fastcgi::Error::RequestClosed
            }),
        })
    }
}
