//! Sending the request: head and body, from memory, from a file or straight from the client.

use super::attempt::{Attempt, Failure};
use crate::exchange::h1::chunked;
use crate::log::Level;
use crate::module::{BodyLength, BodyRead, Request};
use crate::upstream::UpConn;
use bytes::BytesMut;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const DOING: &str = "while sending request to upstream";

/// Sends everything; true if the origin began to answer before that.
pub(super) async fn send(a: &mut Attempt<'_>, r: &mut Request, conn: &mut UpConn, head: &[u8], own: Option<&[u8]>) -> Result<bool, Failure> {
    let early = if let Some(body) = own {
        write(a, r, conn, head).await? || write(a, r, conn, body).await?
    } else if a.length == BodyLength::None {
        write(a, r, conn, head).await?
    } else if a.streaming {
        write(a, r, conn, head).await? || stream(a, r, conn).await?
    } else if let Some(body) = r.body.spool.memory().filter(|b| b.len() + head.len() <= 64 * 1024) {
        // one send for a small request
        let mut both = Vec::with_capacity(head.len() + body.len());
        both.extend_from_slice(head);
        both.extend_from_slice(body);
        write(a, r, conn, &both).await?
    } else {
        write(a, r, conn, head).await? || spooled(a, r, conn).await?
    };
    Ok(early)
}

async fn spooled(a: &mut Attempt<'_>, r: &mut Request, conn: &mut UpConn) -> Result<bool, Failure> {
    let mut buf = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        let n = match r.body.spool.read_at(&mut buf, at) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) => {
                r.error(Level::Crit, format_args!("reading a buffered request body failed: {e} {DOING}"));
                return Err(Failure::end(500));
            }
        };
        at += n as u64;
        if write(a, r, conn, buf.get(..n).unwrap_or_default()).await? {
            return Ok(true);
        }
    }
}

/// Passes the body on as it comes (`proxy_request_buffering off`).
async fn stream(a: &mut Attempt<'_>, r: &mut Request, conn: &mut UpConn) -> Result<bool, Failure> {
    let mut chunk = BytesMut::new();
    let mut out = Vec::new();
    loop {
        chunk.clear();
        let read = {
            let mut early = [0u8; 0];
            let _ = &mut early;
            tokio::select! {
                biased;
                n = r.read_chunk(&mut chunk, 16 * 1024) => n,
                ready = readable(conn) => {
                    ready.map_err(|e| a.broken(r, &e, "recv()", DOING))?;
                    return Ok(true);
                }
            }
        };
        match read {
            Ok(BodyRead::Data(_)) => {
                if a.length == BodyLength::Chunked {
                    out.clear();
                    chunked::write_chunk_head(chunk.len() as u64, &mut out);
                    out.extend_from_slice(&chunk);
                    out.extend_from_slice(chunked::CHUNK_END);
                    if write(a, r, conn, &out).await? {
                        return Ok(true);
                    }
                } else if write(a, r, conn, &chunk).await? {
                    return Ok(true);
                }
            }
            Ok(BodyRead::End) => {
                r.body.read = true;
                if a.length == BodyLength::Chunked {
                    return write(a, r, conn, chunked::LAST_CHUNK).await;
                }
                return Ok(false);
            }
            Ok(BodyRead::Bad(status)) => {
                r.keepalive = false;
                return Err(Failure::end(status));
            }
            Err(e) => {
                r.error(Level::Info, format_args!("client prematurely closed connection ({e}) {DOING}"));
                return Err(Failure { outcome: Some(crate::engine::phases::Outcome::Status(400)), ..Failure::gone() });
            }
        }
    }
}

/// Reads into the connection's buffer; ready once something, or the end, has come.
async fn readable(conn: &mut UpConn) -> io::Result<usize> {
    use tokio::io::AsyncReadExt;
    let mut buf = std::mem::take(&mut conn.rbuf);
    buf.reserve(4096);
    let mut kept = Some(buf);
    let result = poll_fn(|cx| {
        let Some(b) = kept.as_mut() else { return Poll::Pending };
        std::pin::pin!(conn.read_buf(b)).poll(cx)
    })
    .await;
    conn.rbuf = kept.unwrap_or_default();
    result
}

/// Writes all of `data`; true if the origin answered meanwhile.
async fn write(a: &mut Attempt<'_>, r: &mut Request, conn: &mut UpConn, data: &[u8]) -> Result<bool, Failure> {
    let mut rest = data;
    let limit = Duration::from_millis(a.pass.conf.send_timeout);
    while !rest.is_empty() {
        let now = poll_fn(|cx| Poll::Ready(Pin::new(&mut *conn).poll_write(cx, rest))).await;
        let step = match now {
            Poll::Ready(Ok(n)) => Ok(Step::Wrote(n)),
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => match tokio::time::timeout(limit, both(conn, rest)).await {
                Ok(s) => s,
                Err(_) => {
                    r.error(Level::Error, format_args!("upstream timed out (110: Connection timed out) {DOING}"));
                    return Err(Failure { kind: crate::module::next::TIMEOUT, status: 504, ..Failure::end(504) }.plain());
                }
            },
        };
        match step {
            Ok(Step::Wrote(0)) => return Err(a.broken(r, &io::ErrorKind::WriteZero.into(), "send()", DOING)),
            Ok(Step::Wrote(n)) => {
                a.sent = true;
                if let Some(s) = r.upstream.states.last_mut() {
                    s.bytes_sent += n as u64;
                }
                rest = rest.get(n..).unwrap_or_default();
            }
            Ok(Step::Answered) => return Ok(true),
            Err(e) => {
                // an origin that refuses a body may have said why before it closed
                if a.sent && matches!(tokio::time::timeout(Duration::from_millis(50), readable(conn)).await, Ok(Ok(n)) if n > 0) {
                    return Ok(true);
                }
                return Err(a.broken(r, &e, "send()", DOING));
            }
        }
    }
    Ok(false)
}

enum Step {
    Wrote(usize),
    Answered,
}

/// Writes, or notices that the origin answers before it has everything.
async fn both(conn: &mut UpConn, data: &[u8]) -> io::Result<Step> {
    poll_fn(|cx| {
        if let Poll::Ready(w) = Pin::new(&mut *conn).poll_write(cx, data) {
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
