//! How the end of an origin's body is found, for each protocol, and which of its bytes are the body's.

use super::attempt::Attempt;
use super::codec::Body;
use super::fastcgi::{self, Answer};
use super::memcached;
use crate::http::h1::chunked::Decoder;
use crate::http::h1::response::BodyLength;
use crate::module::{Codec, Request};
use bytes::BytesMut;

/// How the end of the origin's body is found.
pub(super) enum Framing {
    Length(u64),
    Chunked(Box<Decoder>),
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

impl Framing {
    pub fn new(a: &Attempt<'_>, r: &Request, body: Body) -> Framing {
        let head_only = a.pass.protocol.method(r).as_bytes() == b"HEAD";
        let length = r.upstream.head.body(head_only);
        match (body, length) {
            (Body::FastCgi { answer, keep }, length) => Framing::FastCgi(Box::new(Records {
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
                Framing::Memcached(memcached::Value::new(length), None)
            }
            (_, BodyLength::None) => Framing::Length(0),
            (_, BodyLength::Bytes(n)) => Framing::Length(n),
            (_, BodyLength::Chunked) => {
                let d = if a.pass.conf.pass_trailers {
                    Decoder::with_trailers(a.pass.conf.buffer_size)
                } else {
                    Decoder::new()
                };
                Framing::Chunked(Box::new(d))
            }
            (_, BodyLength::UntilClose) => Framing::Close,
        }
    }

    /// How much of the buffer is the body's as it stands; `None` where it is decoded elsewhere.
    pub fn direct(&self, piece: &Piece) -> Option<usize> {
        match self {
            Framing::Chunked(_) | Framing::FastCgi(_) => None,
            Framing::Memcached(..) => Some(piece.direct),
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
            (Codec::Cgi, framing) => *framing = Framing::Close,
            (_, Framing::FastCgi(f)) => f.left = None,
            _ => return false,
        }
        true
    }

    /// Whether the answer is whole if the connection ends here.
    pub fn may_close(&self) -> bool {
        match self {
            Framing::Close => true,
            Framing::FastCgi(f) => f.answer.closed,
            _ => false,
        }
    }

    /// Whether the answer ended so that the connection can be used again.
    pub fn is_clean(&self) -> bool {
        match self {
            Framing::Length(_) | Framing::Chunked(_) => true,
            Framing::Close => false,
            Framing::FastCgi(f) => f.keep && !f.excess && f.answer.ended == Some(true),
            Framing::Memcached(_, ended) => *ended == Some(true),
        }
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
}

/// Takes what belongs to the body out of `buf`; appends to `body` what does not stand there as it is.
///
/// # Errors
/// nginx's log text.
pub(super) fn decode(
    framing: &mut Framing,
    buf: &[u8],
    body: &mut BytesMut,
) -> Result<Piece, String> {
    match framing {
        Framing::Length(left) => {
            let n = (*left).min(buf.len() as u64);
            *left -= n;
            Ok(Piece {
                used: n as usize,
                direct: n as usize,
                done: *left == 0,
            })
        }
        Framing::Close => Ok(Piece {
            used: buf.len(),
            direct: buf.len(),
            done: false,
        }),
        Framing::Chunked(d) => {
            let decoded = d.decode(buf, |range| {
                body.extend_from_slice(buf.get(range).unwrap_or_default())
            });
            decoded
                .map(|d| Piece {
                    used: d.consumed,
                    direct: 0,
                    done: d.done,
                })
                .map_err(|e| e.to_string())
        }
        Framing::FastCgi(f) => f.decode(buf, body).map_err(|e| e.to_string()),
        Framing::Memcached(value, ended) => {
            let p = value.feed(buf);
            *ended = p.ended;
            Ok(Piece {
                used: p.used,
                direct: p.value,
                done: p.ended.is_some(),
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
        if over && self.left.is_some_and(|left| left > 0) {
            return Err(if self.answer.closed {
                fastcgi::Error::StdoutClosed
            } else {
                fastcgi::Error::RequestClosed
            });
        }
        Ok(Piece {
            used,
            direct: 0,
            // an application that closes its output may still have to say that the request is over
            done: self.excess || self.answer.ended.is_some(),
        })
    }
}
