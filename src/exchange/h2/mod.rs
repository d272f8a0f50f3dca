//! HTTP/2 towards an origin: gRPC, and `proxy_http_version 2`.
//!
//! As in nginx a connection carries one request at a time and is kept for the next. Both directions flow at once.

pub mod block;

use super::attempt::{Attempt, Failure, received};
use super::cache;
use super::codec::Body;
use crate::contract::PassEnd;
use crate::contract::{BodyLength, BodyRead, Request, next};
use crate::delivery::output;
use crate::http::h2::origin::{Event, Stream};
use crate::log::Level;
use crate::upstream::{Connector, UpConn, pool};
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEAD: &str = "while reading response header from upstream";
const BODY: &str = "while reading upstream";

/// An exchange under way.
pub struct Exchange {
    stream: Stream,
    body: Source,
    chunk: BytesMut,
    /// When the client's next piece of the body is due.
    client_due: Option<Instant>,
    /// Whether anything was sent.
    wrote: bool,
}

/// Where the request's body comes from.
enum Source {
    Own(Vec<u8>, usize),
    Spool(u64),
    /// As it comes; what was read before the origin was chosen is in the spool, and sent up to here.
    Client(u64),
    Over,
}

/// What waiting came to.
enum Io {
    Read(usize),
    /// Something was sent: what is waited for, and for how long, may be another thing now.
    Wrote,
    Gone,
    Refused(u16),
}

/// Sends the request, reads the head of the answer and passes it on.
pub(super) async fn run(
    a: &mut Attempt<'_>,
    r: &mut Request,
    mut conn: UpConn,
    connector: &Connector,
    request: &[u8],
    own: Option<&[u8]>,
) -> Result<PassEnd, Failure> {
    let mut block = Vec::with_capacity(request.len());
    block::from_http1(request, a.target.tls, &mut block);
    let body = match own {
        Some(own) => Source::Own(own.to_vec(), 0),
        None if a.length == BodyLength::None || a.length == BodyLength::Known(0) => Source::Over,
        None if a.streaming => Source::Client(0),
        None => Source::Spool(0),
    };
    let has_body = !matches!(body, Source::Over);
    // one block may be as large as a head, and that as a few buffers
    let limit = a.pass.conf.buffer_size.max(64 * 1024);
    let head_only = a.pass.protocol.method(r).as_bytes() == b"HEAD";
    let stream = Stream::begin(conn.h2.take(), &block, has_body, head_only, limit);
    let mut x = Exchange {
        stream,
        body,
        chunk: BytesMut::new(),
        client_due: None,
        wrote: false,
    };
    let mut hints = 0;
    loop {
        let event = x.next(a, r, &mut conn, HEAD).await;
        a.sent = x.wrote;
        match event? {
            Event::Head => break,
            Event::EarlyHints => {
                let length = r
                    .upstream
                    .head
                    .headers
                    .iter()
                    .map(|(n, v)| n.len() + v.len());
                hints += length.sum::<usize>();
                super::hints::pass_on(r, a.pass, hints);
                super::hints::send(r).await;
            }
            _ => {
                r.upstream.fails("bad_header");
                r.error(
                    Level::Error,
                    format_args!("upstream sent unexpected http2 frame {HEAD}"),
                );
                return Err(Failure::new(next::INVALID_HEADER, 502));
            }
        }
    }
    r.upstream.has_head = true;
    super::head::log_ignored(r);
    if let Some(s) = r.upstream.states.last_mut() {
        s.header_time = Some(a.start.elapsed().as_millis() as u64);
        s.status = r.upstream.head.status;
        a.head_bytes = s.bytes_received.saturating_sub(conn.rbuf.len() as u64);
    }
    a.respond(r, conn, connector, Body::Http2(Box::new(x)))
        .await
}

/// Sends the head and the body to the client.
pub(super) async fn pass_on(
    a: &Attempt<'_>,
    r: &mut Request,
    mut conn: UpConn,
    connector: &Connector,
    mut x: Box<Exchange>,
) -> PassEnd {
    // as in nginx: what follows a head with which the answer ends is not looked at, and may be RST_STREAM
    let more = x.stream.is_ended() && !conn.rbuf.is_empty();
    if !x.stream.is_ended() {
        r.out.expect_trailers = a.pass.conf.pass_trailers;
    } else if r.out.content_length.is_none() && !r.is_head() && !matches!(r.out.status, 204 | 304) {
        // nothing follows, which the client is told in the head, too
        r.out.content_length = Some(0);
    }
    if let Err(status) = output::start(r) {
        return PassEnd::Status(status);
    }
    cache::begin(r, a.pass, true);
    if !r.upstream.buffered.unwrap_or(a.pass.conf.buffering) {
        r.limit_rate = 0;
    }
    if r.limit_rate > 0
        && !cache::filling(r)
        && let Err(e) = Box::pin(output::pace_head(r)).await
    {
        output::broken(r, &e);
        return PassEnd::Done;
    }
    r.output.prompt = !r.upstream.buffered.unwrap_or(a.pass.conf.buffering);
    let result = x.transfer(a, r, &mut conn).await;
    if result.is_err() {
        cache::abandon(r);
    }
    match result {
        Ok(()) => {
            if let Some(kept) = x.stream.end().filter(|_| !more) {
                conn.h2 = Some(kept);
                pool::park(connector, a.group, conn);
            }
        }
        Err(f) if f.client_gone => output::broken(r, &io::ErrorKind::ConnectionAborted.into()),
        Err(_) => {
            r.aborted = true;
            r.keepalive = false;
            // what has come is sent, but it must not look complete
            let _ = output::flush(r).await;
            r.down.abort();
        }
    }
    PassEnd::Done
}

impl Exchange {
    async fn transfer(
        &mut self,
        a: &Attempt<'_>,
        r: &mut Request,
        conn: &mut UpConn,
    ) -> Result<(), Failure> {
        while !self.stream.is_ended() {
            match self.next(a, r, conn, BODY).await? {
                Event::Data(data) => {
                    if let Some(s) = r.upstream.states.last_mut() {
                        s.response_length += data.len() as u64;
                    }
                    // an answer that is whole may be taken back by what came with its end
                    self.rest(r, conn)?;
                    cache::tee(r, &data, false);
                    if !r.out.header_only {
                        output::write(r, &data, false)
                            .await
                            .map_err(|_| Failure::gone())?;
                    }
                }
                Event::End => break,
                Event::Head | Event::EarlyHints | Event::Need => {}
            }
        }
        cache::complete(r);
        if a.pass.conf.pass_trailers {
            for (name, value) in r.upstream.trailers.iter() {
                r.out.trailers.append(name, value);
            }
        }
        output::write(r, b"", true)
            .await
            .map_err(|_| Failure::gone())?;
        // acknowledgements; the origin's answer is whole whether it takes them or not
        let _ = poll_fn(|cx| Poll::Ready(self.send(cx, conn))).await;
        Ok(())
    }

    /// Looks at what has come behind the end of the answer.
    fn rest(&mut self, r: &mut Request, conn: &mut UpConn) -> Result<(), Failure> {
        while self.stream.is_ended() {
            let up = &mut r.upstream;
            match self
                .stream
                .read(&mut conn.rbuf, &mut up.head, &mut up.trailers)
            {
                Ok(Event::Need) => break,
                Ok(_) => {}
                Err(e) => {
                    r.upstream.fails("bad_body");
                    r.error(Level::Error, format_args!("{e} {BODY}"));
                    return Err(Failure::new(next::INVALID_HEADER, 502));
                }
            }
        }
        Ok(())
    }

    /// What the origin says next; sends what there is to be sent meanwhile.
    async fn next(
        &mut self,
        a: &Attempt<'_>,
        r: &mut Request,
        conn: &mut UpConn,
        doing: &str,
    ) -> Result<Event, Failure> {
        let conf = &a.pass.conf;
        loop {
            let up = &mut r.upstream;
            match self
                .stream
                .read(&mut conn.rbuf, &mut up.head, &mut up.trailers)
            {
                Ok(Event::Need) => {}
                Ok(event) => return Ok(event),
                Err(e) => {
                    r.upstream.fails(match r.upstream.has_head {
                        true => "bad_body",
                        false => "bad_header",
                    });
                    r.error(Level::Error, format_args!("{e} {doing}"));
                    return Err(Failure::new(next::INVALID_HEADER, 502));
                }
            }
            let blocked = !self.stream.out.is_empty()
                || !matches!(self.body, Source::Over | Source::Client(_))
                    && self.stream.room() == 0;
            let limit = Duration::from_millis(if blocked {
                conf.send_timeout
            } else {
                conf.read_timeout
            });
            // while the client sends its body, it is the one that is waited for
            let limit = match self.client_due {
                Some(due) if matches!(self.body, Source::Client(_)) && !blocked => {
                    due.saturating_duration_since(Instant::now())
                }
                _ => limit,
            };
            let waited = tokio::time::timeout(limit, poll_fn(|cx| self.poll(cx, a, r, conn))).await;
            match waited {
                Ok(Ok(Io::Read(0))) => return Err(a.closed(r, doing)),
                Ok(Ok(Io::Read(n))) => received(r, n),
                Ok(Ok(Io::Wrote)) => {}
                Ok(Ok(Io::Gone)) => {
                    super::attempt::client_gone(r, doing);
                    return Err(Failure::gone());
                }
                Ok(Ok(Io::Refused(status))) => {
                    r.keepalive = false;
                    return Err(Failure::end(status));
                }
                Ok(Err(e)) => return Err(a.broken(r, &e, "recv()", doing)),
                Err(_) if self.client_due.is_some() && !blocked => {
                    r.error(
                        Level::Info,
                        format_args!("client timed out (110: Connection timed out)"),
                    );
                    r.keepalive = false;
                    return Err(Failure::end(408));
                }
                Err(_) => {
                    r.upstream.fails("read_timeout");
                    r.error(
                        Level::Error,
                        format_args!("upstream timed out (110: Connection timed out) {doing}"),
                    );
                    return Err(Failure::new(next::TIMEOUT, 504));
                }
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        a: &Attempt<'_>,
        r: &mut Request,
        conn: &mut UpConn,
    ) -> Poll<io::Result<Io>> {
        let filled = match self.fill(cx, r)? {
            Filled::Refused(status) => return Poll::Ready(Ok(Io::Refused(status))),
            Filled::Gone => return Poll::Ready(Ok(Io::Gone)),
            Filled::Some => true,
            Filled::None => false,
        };
        let before = self.stream.out.len();
        self.send(cx, conn)?;
        let wrote = before - self.stream.out.len();
        if wrote > 0 {
            self.wrote = true;
            if let Some(s) = r.upstream.states.last_mut() {
                s.bytes_sent += wrote as u64;
            }
        }
        if wrote > 0 || filled {
            return Poll::Ready(Ok(Io::Wrote));
        }
        conn.rbuf.reserve(16 * 1024);
        let mut room = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        let mut buf = ReadBuf::uninit(&mut room);
        if Pin::new(&mut *conn).poll_read(cx, &mut buf)?.is_ready() {
            conn.rbuf.extend_from_slice(buf.filled());
            return Poll::Ready(Ok(Io::Read(buf.filled().len())));
        }
        // the client takes what is queued for it
        if r.header_sent
            && r.down.queued() > 0
            && matches!(r.down.poll_flush(cx), Poll::Ready(Err(_)))
        {
            return Poll::Ready(Ok(Io::Gone));
        }
        let watch = !a.pass.conf.ignore_client_abort && !matches!(self.body, Source::Client(_));
        if watch && r.down.poll_closed(cx).is_ready() {
            return Poll::Ready(Ok(Io::Gone));
        }
        Poll::Pending
    }

    /// Queues as much of the body as is there and may be sent.
    fn fill(&mut self, cx: &mut Context<'_>, r: &mut Request) -> io::Result<Filled> {
        let mut filled = Filled::None;
        while self.stream.out.len() < 64 * 1024 {
            let room = self.stream.room();
            match &mut self.body {
                Source::Over => return Ok(filled),
                _ if room == 0 => return Ok(filled),
                Source::Own(bytes, at) => {
                    let rest = bytes.get(*at..).unwrap_or_default();
                    let piece = rest.get(..room).unwrap_or(rest);
                    let end = piece.len() == rest.len();
                    self.stream.send(piece, end);
                    *at += piece.len();
                    if end {
                        self.body = Source::Over;
                    }
                }
                Source::Spool(at) => {
                    self.chunk.resize(room, 0);
                    let n = r.body.spool.read_at(&mut self.chunk, *at)?;
                    *at += n as u64;
                    let end = n == 0 || *at >= r.body.spool.len();
                    let piece = self.chunk.get(..n).unwrap_or_default();
                    self.stream.send(piece, end);
                    if end {
                        self.body = Source::Over;
                    }
                }
                Source::Client(_) => match self.client_piece(cx, r, room) {
                    Filled::Some => {}
                    other => return Ok(other),
                },
            }
            filled = Filled::Some;
        }
        Ok(filled)
    }

    fn client_piece(&mut self, cx: &mut Context<'_>, r: &mut Request, room: usize) -> Filled {
        let Source::Client(at) = &mut self.body else {
            return Filled::None;
        };
        if *at < r.body.spool.len() {
            self.chunk.resize(room, 0);
            let Ok(n @ 1..) = r.body.spool.read_at(&mut self.chunk, *at) else {
                return Filled::Refused(500);
            };
            *at += n as u64;
            self.stream
                .send(self.chunk.get(..n).unwrap_or_default(), false);
            return Filled::Some;
        }
        if r.body.read {
            self.stream.send(b"", true);
            self.body = Source::Over;
            return Filled::Some;
        }
        // a piece is held until it is known whether it is the last
        let mut held = BytesMut::new();
        loop {
            let mut chunk = std::mem::take(&mut self.chunk);
            chunk.clear();
            let left = room.saturating_sub(held.len());
            let read = match left {
                0 => Poll::Pending,
                _ => std::pin::pin!(r.read_chunk(&mut chunk, left)).poll(cx),
            };
            self.chunk = chunk;
            match read {
                Poll::Pending if !held.is_empty() => {
                    self.stream.send(&held, false);
                    return Filled::Some;
                }
                Poll::Pending => {
                    let patience = Duration::from_millis(r.core().client_body_timeout);
                    if self.client_due.is_none() {
                        self.client_due = Instant::now().checked_add(patience);
                    }
                    return Filled::None;
                }
                Poll::Ready(Ok(BodyRead::Data(_))) => {
                    self.client_due = None;
                    held.extend_from_slice(&self.chunk);
                }
                Poll::Ready(Ok(BodyRead::End)) => {
                    self.client_due = None;
                    r.body.read = true;
                    self.stream.send(&held, true);
                    self.body = Source::Over;
                    return Filled::Some;
                }
                Poll::Ready(Ok(BodyRead::Bad(status))) => return Filled::Refused(status),
                Poll::Ready(Err(_)) => {
                    r.client_closed = true;
                    return Filled::Gone;
                }
            }
        }
    }

    /// Writes what is queued as far as the socket takes it.
    fn send(&mut self, cx: &mut Context<'_>, conn: &mut UpConn) -> io::Result<()> {
        while !self.stream.out.is_empty() {
            match Pin::new(&mut *conn).poll_write(cx, &self.stream.out)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => self.stream.out.advance(n),
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

/// What [`Exchange::fill`] came to.
enum Filled {
    None,
    Some,
    Refused(u16),
    Gone,
}
