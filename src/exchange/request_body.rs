//! Sending the request: head and body, from memory, from a file or straight from the client.

use super::attempt::{Attempt, Failure};
use crate::contract::{BodyLength, BodyRead, Codec, Request};
use crate::exchange::fastcgi;
use crate::http::h1::chunked;
use crate::log::Level;
use crate::upstream::UpConn;
use bytes::BytesMut;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const DOING: &str = "while sending request to upstream";

/// Sends everything; true if the origin began to answer before that.
pub(super) async fn send(
    a: &mut Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    head: &[u8],
    own: Option<&[u8]>,
) -> Result<bool, Failure> {
    if own.is_none() && a.length == BodyLength::None {
        return write(a, r, conn, head).await;
    }
    Box::pin(with_body(a, r, conn, head, own)).await
}

async fn with_body(
    a: &mut Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    head: &[u8],
    own: Option<&[u8]>,
) -> Result<bool, Failure> {
    let early = if let Some(body) = own {
        write(a, r, conn, head).await? || write(a, r, conn, body).await?
    } else if a.streaming {
        stream(a, r, conn, head).await?
    } else if let Some(body) = r
        .body
        .spool
        .memory()
        .filter(|b| b.len() + head.len() <= 64 * 1024)
    {
        // one send for a small request
        if Frame::of(a) == Frame::Records {
            let mut both = Vec::with_capacity(head.len() + body.len() + 32);
            both.extend_from_slice(head);
            Frame::Records.put(body, &mut both);
            fastcgi::stdin_end(&mut both);
            write(a, r, conn, &both).await?
        } else {
            let spool = std::mem::take(&mut r.body.spool);
            let body = spool.memory().unwrap_or_default();
            let early = write_pair(a, r, conn, head, body).await;
            r.body.spool = spool;
            early?
        }
    } else {
        write(a, r, conn, head).await? || spooled(a, r, conn).await?
    };
    Ok(early)
}

/// Reads what has already come of the body, as far as memory is meant for it; true if that is all of it.
///
/// # Errors
/// The status with which the request ends.
pub(super) async fn preread(r: &mut Request) -> Result<bool, u16> {
    let limit = r.core().client_body_buffer_size;
    let temp = r.core().client_body_temp_path.clone();
    let mut chunk = BytesMut::new();
    loop {
        let room = limit.saturating_sub(r.body.spool.len() as usize).min(PIECE);
        if room == 0 {
            return Ok(false);
        }
        chunk.clear();
        match at_once(r, &mut chunk, room).await {
            None => return Ok(false),
            Some(Ok(BodyRead::Data(_))) => {
                r.body.spool.append(&chunk, limit, &temp).map_err(|e| {
                    r.error(Level::Crit, format_args!("{e}"));
                    500u16
                })?
            }
            Some(Ok(BodyRead::End)) => {
                r.body.read = true;
                return Ok(true);
            }
            Some(Ok(BodyRead::Bad(status))) => {
                r.keepalive = false;
                return Err(status);
            }
            Some(Err(_)) => {
                r.error(
                    Level::Info,
                    format_args!("client prematurely closed connection"),
                );
                r.client_closed = true;
                return Err(400);
            }
        }
    }
}

async fn spooled(a: &mut Attempt<'_>, r: &mut Request, conn: &mut UpConn) -> Result<bool, Failure> {
    let mut buf = vec![0; 64 * 1024];
    let mut at = 0;
    let records = Frame::of(a) == Frame::Records;
    let mut out = Vec::new();
    loop {
        let n = match r.body.spool.read_at(&mut buf, at) {
            Ok(0) if records => {
                out.clear();
                fastcgi::stdin_end(&mut out);
                return write(a, r, conn, &out).await;
            }
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) => {
                r.error(
                    Level::Crit,
                    format_args!("reading a buffered request body failed: {e} {DOING}"),
                );
                return Err(Failure::end(500));
            }
        };
        at += n as u64;
        let mut piece = buf.get(..n).unwrap_or_default();
        if records {
            out.clear();
            fastcgi::stdin(piece, &mut out);
            piece = &out;
        }
        if write(a, r, conn, piece).await? {
            return Ok(true);
        }
    }
}

/// Passes the body on as it comes (`proxy_request_buffering off`), each time with one send for all that has come.
async fn stream(
    a: &mut Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    head: &[u8],
) -> Result<bool, Failure> {
    let mut out = head.to_vec();
    let mut chunk = BytesMut::new();
    let frame = Frame::of(a);
    frame.put(r.body.spool.memory().unwrap_or_default(), &mut out);
    while !r.body.read {
        if write(a, r, conn, &out).await? {
            return Ok(true);
        }
        out.clear();
        chunk.clear();
        let mut read = tokio::select! {
            biased;
            n = r.read_chunk(&mut chunk, PIECE) => n,
            ready = readable(conn) => {
                ready.map_err(|e| a.broken(r, &e, "recv()", DOING))?;
                return Ok(true);
            }
        };
        loop {
            match read {
                Ok(BodyRead::Data(_)) if chunk.len() < PIECE => {
                    match at_once(r, &mut chunk, PIECE).await {
                        Some(next) => read = next,
                        None => break,
                    }
                }
                Ok(BodyRead::Data(_)) => break,
                Ok(BodyRead::End) => {
                    r.body.read = true;
                    break;
                }
                Ok(BodyRead::Bad(status)) => {
                    r.keepalive = false;
                    return Err(Failure::end(status));
                }
                Err(_) => {
                    r.error(
                        Level::Info,
                        format_args!("client prematurely closed connection {DOING}"),
                    );
                    r.client_closed = true;
                    return Err(Failure {
                        outcome: Some(crate::contract::PassEnd::Status(400)),
                        ..Failure::gone()
                    });
                }
            }
        }
        frame.put(&chunk, &mut out);
    }
    match frame {
        Frame::Plain => {}
        Frame::Chunks => out.extend_from_slice(chunked::LAST_CHUNK),
        Frame::Records => fastcgi::stdin_end(&mut out),
    }
    write(a, r, conn, &out).await
}

/// How much of a body is taken along with one send.
const PIECE: usize = 16 * 1024;

/// How the body is framed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    Plain,
    Chunks,
    Records,
}

impl Frame {
    fn of(a: &Attempt<'_>) -> Frame {
        match (a.pass.protocol.codec(), a.length) {
            (Codec::FastCgi { .. }, _) => Frame::Records,
            (_, BodyLength::Chunked) => Frame::Chunks,
            _ => Frame::Plain,
        }
    }

    /// Frames a piece.
    fn put(self, piece: &[u8], out: &mut Vec<u8>) {
        match self {
            Frame::Records => fastcgi::stdin(piece, out),
            Frame::Chunks if !piece.is_empty() => {
                chunked::write_chunk_head(piece.len() as u64, out);
                out.extend_from_slice(piece);
                out.extend_from_slice(chunked::CHUNK_END);
            }
            _ => out.extend_from_slice(piece),
        }
    }
}

/// The next piece of the body if it has already come.
async fn at_once(
    r: &mut Request,
    chunk: &mut BytesMut,
    max: usize,
) -> Option<io::Result<BodyRead>> {
    let mut read = std::pin::pin!(r.read_chunk(chunk, max));
    match poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await {
        Poll::Ready(read) => Some(read),
        Poll::Pending => None,
    }
}

/// Reads into the connection's buffer; ready once something, or the end, has come.
async fn readable(conn: &mut UpConn) -> io::Result<usize> {
    use tokio::io::AsyncReadExt;
    let mut buf = std::mem::take(&mut conn.rbuf);
    buf.reserve(4096);
    let mut kept = Some(buf);
    let result = poll_fn(|cx| {
        let Some(b) = kept.as_mut() else {
            return Poll::Pending;
        };
        std::pin::pin!(conn.read_buf(b)).poll(cx)
    })
    .await;
    conn.rbuf = kept.unwrap_or_default();
    result
}

/// Writes all of `data`; true if the origin answered meanwhile.
async fn write(
    a: &mut Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    data: &[u8],
) -> Result<bool, Failure> {
    write_pair(a, r, conn, data, &[]).await
}

/// The same for two pieces that leave together.
async fn write_pair(
    a: &mut Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    first: &[u8],
    second: &[u8],
) -> Result<bool, Failure> {
    let mut rest = Pair(first, second);
    let limit = Duration::from_millis(a.pass.conf.send_timeout);
    while !rest.is_empty() {
        let now = poll_fn(|cx| Poll::Ready(rest.poll_write(conn, cx))).await;
        let step = match now {
            Poll::Ready(Ok(n)) => Ok(Step::Wrote(n)),
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => match tokio::time::timeout(limit, both(conn, &rest)).await {
                Ok(s) => s,
                Err(_) => {
                    r.upstream.fails("send_timeout");
                    r.error(
                        Level::Error,
                        format_args!("upstream timed out (110: Connection timed out) {DOING}"),
                    );
                    return Err(Failure {
                        kind: crate::contract::next::TIMEOUT,
                        status: 504,
                        ..Failure::end(504)
                    }
                    .plain());
                }
            },
        };
        match step {
            Ok(Step::Wrote(0)) => {
                return Err(a.broken(r, &io::ErrorKind::WriteZero.into(), "send()", DOING));
            }
            Ok(Step::Wrote(n)) => {
                a.sent = true;
                if let Some(s) = r.upstream.states.last_mut() {
                    s.bytes_sent += n as u64;
                }
                rest.advance(n);
            }
            Ok(Step::Answered) => return Ok(true),
            Err(e) => {
                // an origin that refuses a body may have said why before it closed
                if a.sent
                    && matches!(tokio::time::timeout(Duration::from_millis(50), readable(conn)).await, Ok(Ok(n)) if n > 0)
                {
                    return Ok(true);
                }
                return Err(a.broken(r, &e, "send()", DOING));
            }
        }
    }
    Ok(false)
}

/// What is still to be sent: two pieces, of which the second may be empty.
struct Pair<'a>(&'a [u8], &'a [u8]);

impl Pair<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty() && self.1.is_empty()
    }

    fn poll_write(&self, conn: &mut UpConn, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let conn = Pin::new(conn);
        match self {
            Pair(one, []) | Pair([], one) => conn.poll_write(cx, one),
            Pair(a, b) => conn.poll_write_vectored(cx, &[IoSlice::new(a), IoSlice::new(b)]),
        }
    }

    fn advance(&mut self, n: usize) {
        let second = n.saturating_sub(self.0.len());
        self.0 = self.0.get(n..).unwrap_or_default();
        self.1 = self.1.get(second..).unwrap_or_default();
    }
}

enum Step {
    Wrote(usize),
    Answered,
}

/// Writes, or notices that the origin answers before it has everything.
async fn both(conn: &mut UpConn, data: &Pair<'_>) -> io::Result<Step> {
    poll_fn(|cx| {
        if let Poll::Ready(w) = data.poll_write(conn, cx) {
            return Poll::Ready(w.map(Step::Wrote));
        }
        let mut some = [0u8; 4096];
        let mut buf = ReadBuf::new(&mut some);
        match Pin::new(&mut *conn).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => {
                conn.rbuf.extend_from_slice(buf.filled());
                Poll::Ready(Ok(Step::Answered))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
