//! The origin's body on its way to the client: straight through, or by way of memory and a file.

use super::attempt::{Attempt, Failure, received};
use super::cache;
use super::codec::{self, Body};
use super::framing::{BEHIND_THE_END, OriginBody, decode};
use crate::contract::PassEnd;
use crate::contract::{Codec, Request, Spool};
use crate::delivery::output;
use crate::log::Level;
use crate::runtime::buffers;
use crate::upstream::{Connector, UpConn, pool};
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

const DOING: &str = "while reading upstream";

const EXCESS: &str = "more data than specified in \"Content-Length\" header";

/// Keeps the connection of an answer without a body that anyone wants, where it has come to its end.
pub(super) fn finish(a: &Attempt<'_>, mut conn: UpConn, connector: &Connector, body: Body) {
    let clean = conn.rbuf.is_empty() && body.is_over();
    buffers::give(std::mem::take(&mut conn.rbuf));
    if clean && !a.streaming {
        pool::park(connector, a.group, conn);
    }
}

/// Sends the head and the body; the connection is kept where the origin's framing says that it may be.
pub(super) async fn pass_on(
    a: &Attempt<'_>,
    r: &mut Request,
    mut conn: UpConn,
    connector: &Connector,
    body: Body,
) -> PassEnd {
    if let Body::Http2(exchange) = body {
        return Box::pin(super::h2::pass_on(a, r, conn, connector, exchange)).await;
    }
    let mut framing = OriginBody::new(a, r, body);
    if r.upstream.head.is_http09() {
        r.out.http09 = true;
    }
    if a.pass.conf.pass_trailers
        && matches!(framing, OriginBody::Chunked(_))
        && r.upstream.head.headers.contains(b"trailer")
    {
        r.out.expect_trailers = true;
    }
    if let Some(t) = &a.pass.conf.limit_rate {
        r.upstream.limit_rate = crate::config::value::parse_size(&t.eval(r)).unwrap_or(0);
    }
    if let Err(status) = output::start(r) {
        buffers::give(std::mem::take(&mut conn.rbuf));
        return PassEnd::Status(status);
    }
    cache::begin(r, a.pass, !framing.may_close());
    if !r.upstream.buffered.unwrap_or(a.pass.conf.buffering) {
        // as in nginx a response that is not buffered is not slowed down
        r.limit_rate = 0;
    }
    if r.limit_rate > 0
        && !cache::filling(r)
        && let Err(e) = Box::pin(output::pace_head(r)).await
    {
        output::broken(r, &e);
        return PassEnd::Done;
    }
    // a body that neither the client nor the cache wants is not read
    if r.out.header_only && !cache::filling(r) && !matches!(framing, OriginBody::Length(0)) {
        // an application may have ended the request already
        let mut none = BytesMut::new();
        if let OriginBody::FastCgi(_) = framing
            && let Ok(piece) = decode(&mut framing, &conn.rbuf, &mut none)
        {
            conn.rbuf.advance(piece.used);
            let clean = piece.fault.is_none() && framing.is_clean();
            if conn.rbuf.is_empty() && clean && !a.streaming {
                buffers::give(std::mem::take(&mut conn.rbuf));
                pool::park(connector, a.group, conn);
                return PassEnd::Done;
            }
        }
        buffers::give(std::mem::take(&mut conn.rbuf));
        return PassEnd::Done;
    }
    if cache::filling(r) && framing.expect_body_of_head(a, r) {
        return Box::pin(store_head(a, r, conn, framing)).await;
    }
    let mut result = transfer(a, r, &mut conn, &mut framing).await;
    if let Err(Broken::Client(e)) = &result
        && cache::filling(r)
    {
        output::broken(r, e);
        result = Box::pin(drain(a, r, &mut conn, &mut framing)).await;
    }
    match result {
        Ok(()) => {
            let clean = conn.rbuf.is_empty() && framing.is_clean();
            buffers::give(std::mem::take(&mut conn.rbuf));
            let unsent = a.streaming && !r.body.read;
            if clean && !unsent && !r.upstream.head.connection_close {
                pool::park(connector, a.group, conn);
            }
        }
        Err(Broken::Origin) => {
            cache::abandon(r);
            r.aborted = true;
            r.keepalive = false;
            // what has come is sent, but it must not look complete
            let _ = output::flush(r).await;
            r.down.abort();
        }
        Err(Broken::Client(e)) => output::broken(r, &e),
    }
    PassEnd::Done
}

/// Ends the client's response to HEAD, then reads the body that the application may send all the same: the cache keeps
/// it if it is as long as the head says.
async fn store_head(
    a: &Attempt<'_>,
    r: &mut Request,
    mut conn: UpConn,
    mut framing: OriginBody,
) -> PassEnd {
    let sent = match output::write(r, b"", true).await {
        Ok(()) => output::flush(r).await,
        Err(e) => Err(e),
    };
    if let Err(e) = sent {
        output::broken(r, &e);
    }
    let expected = r.upstream.head.content_length;
    let mut length = 0u64;
    let mut body = BytesMut::new();
    let over = loop {
        body.clear();
        let Ok(piece) = decode(&mut framing, &conn.rbuf, &mut body) else {
            break false;
        };
        let data = match framing.direct(&piece) {
            Some(n) => conn.rbuf.get(..n).unwrap_or_default(),
            None => &body[..],
        };
        length += data.len() as u64;
        cache::tee(r, data, false);
        conn.rbuf.advance(piece.used);
        if piece.fault.is_some() {
            break false;
        }
        if piece.done {
            break true;
        }
        match a.read(r, &mut conn, DOING).await {
            Ok(0) => break framing.may_close(),
            Ok(_) if cache::filling(r) && expected.is_none_or(|n| length <= n) => {}
            _ => break false,
        }
    };
    if over && expected.is_none_or(|n| n == length) {
        cache::complete(r);
    } else {
        cache::abandon(r);
    }
    buffers::give(std::mem::take(&mut conn.rbuf));
    PassEnd::Done
}

/// Reads the rest of a body that only the cache wants: the client has gone.
async fn drain(
    a: &Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    framing: &mut OriginBody,
) -> Result<(), Broken> {
    let mut body = BytesMut::new();
    loop {
        body.clear();
        let Ok(piece) = decode(framing, &conn.rbuf, &mut body) else {
            return Err(Broken::Origin);
        };
        let data = match framing.direct(&piece) {
            Some(n) => conn.rbuf.get(..n).unwrap_or_default(),
            None => &body[..],
        };
        cache::tee(r, data, piece.done);
        conn.rbuf.advance(piece.used);
        if let Some(e) = piece.fault {
            r.error(Level::Error, format_args!("{e} {DOING}"));
            return Err(Broken::Origin);
        }
        if piece.done || !cache::filling(r) {
            return Ok(());
        }
        match a.read(r, conn, DOING).await {
            Ok(0) if framing.may_close() => {
                cache::complete(r);
                return Ok(());
            }
            Ok(0) => {
                a.closed(r, DOING);
                return Err(Broken::Origin);
            }
            Ok(_) => {}
            Err(_) => return Err(Broken::Origin),
        }
    }
}

/// Which side broke.
enum Broken {
    Origin,
    Client(io::Error),
}

async fn transfer(
    a: &Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    framing: &mut OriginBody,
) -> Result<(), Broken> {
    let mut backlog = Backlog::default();
    let result = move_body(a, r, conn, framing, &mut backlog).await;
    if matches!(result, Err(Broken::Origin)) {
        // what has come is the client's all the same
        backlog.drain(r).await.map_err(Broken::Client)?;
    }
    result
}

async fn move_body(
    a: &Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    framing: &mut OriginBody,
    backlog: &mut Backlog,
) -> Result<(), Broken> {
    let conf = &a.pass.conf;
    let strict = r.core().strict_responses && a.pass.protocol.codec() == Codec::Http1;
    let buffered = r.upstream.buffered.unwrap_or(conf.buffering);
    r.output.prompt = !buffered;
    let memory = conf
        .buffers
        .0
        .saturating_mul(conf.buffers.1)
        .max(conf.buffer_size);
    let mut body = BytesMut::new();
    let mut received = 0u64;
    loop {
        // what has been read is decoded and handed on
        body.clear();
        let piece = decode(framing, &conn.rbuf, &mut body).map_err(|e| {
            r.upstream.fails("bad_body");
            r.error(Level::Error, format_args!("{e} {DOING}"));
            Broken::Origin
        })?;
        let (used, done) = (piece.used, piece.done);
        if strict && done && used < conn.rbuf.len() {
            // without its last piece the client's message cannot be taken for a whole one
            r.upstream.fails("bad_body");
            r.error(Level::Error, format_args!("{BEHIND_THE_END} {DOING}"));
            return Err(Broken::Origin);
        }
        if let OriginBody::FastCgi(f) = framing {
            for text in f.answer.stderr.drain(..) {
                codec::log_stderr(r, &text, DOING);
            }
        }
        received += used as u64;
        if let Some(s) = r.upstream.states.last_mut() {
            s.response_length = s.bytes_received.saturating_sub(a.head_bytes);
        }
        let direct = framing.direct(&piece);
        if cache::filling(r) {
            let data = match direct {
                Some(n) => conn.rbuf.get(..n).unwrap_or_default(),
                None => &body[..],
            };
            cache::tee(r, data, done);
        }
        let spooled = spool_limit(a, r);
        if backlog.is_empty()
            && (!buffered || spooled == 0 || r.down.queued() <= memory_limit(r, memory))
            && !(r.limit_rate > 0 && cache::filling(r))
        {
            let buf = std::mem::take(&mut conn.rbuf);
            let data = match direct {
                Some(n) => buf.get(..n).unwrap_or_default(),
                None => &body[..],
            };
            let sent = if r.out.header_only {
                Ok(())
            } else if buffered && r.limit_rate == 0 && r.output.is_plain() && spooled > 0 {
                // the client's socket takes what it takes; the rest waits in memory or the file
                r.down.write(data);
                r.body_sent += data.len() as u64;
                Ok(())
            } else {
                output::write(r, data, false).await
            };
            conn.rbuf = buf;
            if let Err(e) = sent {
                conn.rbuf.advance(used);
                return Err(Broken::Client(e));
            }
        } else {
            let data = match direct {
                Some(n) => conn.rbuf.get(..n).unwrap_or_default(),
                None => &body[..],
            };
            if let Err(e) = backlog.spool.append(data, 0, &conf.temp_path) {
                r.error(Level::Crit, format_args!("{e} {DOING}"));
                return Err(Broken::Origin);
            }
            if !std::mem::replace(&mut backlog.told, true)
                && let Some(p) = backlog.spool.path()
            {
                r.error(
                    Level::Warn,
                    format_args!(
                        "an upstream response is buffered to a temporary file {} {DOING}",
                        p.display()
                    ),
                );
            }
        }
        conn.rbuf.advance(used);
        if let Some(e) = piece.fault {
            r.upstream.fails("bad_body");
            r.error(Level::Error, format_args!("{e} {DOING}"));
            return Err(Broken::Origin);
        }
        if done {
            match framing {
                OriginBody::FastCgi(f) if f.excess && !r.out.header_only => {
                    r.error(Level::Warn, format_args!("upstream sent {EXCESS} {DOING}"));
                }
                OriginBody::Memcached(_, Some(false)) => {
                    r.error(
                        Level::Error,
                        format_args!("memcached sent invalid trailer {DOING}"),
                    );
                }
                OriginBody::Length(_) | OriginBody::Chunked(_)
                    if !conn.rbuf.is_empty() && !r.out.header_only =>
                {
                    let what = match framing {
                        OriginBody::Length(_) => EXCESS,
                        _ => "data after final chunk",
                    };
                    r.error(Level::Warn, format_args!("upstream sent {what} {DOING}"));
                }
                _ => {}
            }
            if let OriginBody::Chunked(d) = framing
                && let Some(t) = d.trailers()
            {
                r.upstream.trailers = t.clone();
                if conf.pass_trailers {
                    for (n, v) in t.iter() {
                        r.out.trailers.append(n, v);
                    }
                }
            }
            if conn.rbuf.is_empty() {
                buffers::give(std::mem::take(&mut conn.rbuf));
            }
            backlog.drain(r).await.map_err(Broken::Client)?;
            output::write(r, b"", true).await.map_err(Broken::Client)?;
            return Ok(());
        }
        if r.upstream.limit_rate > 0 {
            pace(r.upstream.limit_rate, received, a.start).await;
        }
        match more(a, r, conn, backlog, buffered, memory).await? {
            0 if framing.may_close() => {
                cache::complete(r);
                backlog.drain(r).await.map_err(Broken::Client)?;
                output::write(r, b"", true).await.map_err(Broken::Client)?;
                return Ok(());
            }
            0 => {
                a.closed(r, DOING);
                return Err(Broken::Origin);
            }
            _ => {}
        }
    }
}

/// How much of a response waits in a temporary file for a slow client, bytes. What is stored is read to its end all the
/// same: others wait for it.
fn spool_limit(a: &Attempt<'_>, r: &Request) -> u64 {
    match cache::filling(r) {
        true => u64::MAX,
        false => a.pass.conf.max_temp_file_size,
    }
}

/// How much of it waits in memory: what is stored must not be held up by a write that waits for the client, which it does
/// from 32k on; a piece that a filter has made larger must fit below that.
fn memory_limit(r: &Request, memory: usize) -> usize {
    match cache::filling(r) && !r.output.is_plain() {
        true => memory.min(8 * 1024),
        false => memory,
    }
}

/// `proxy_limit_rate`: waits until so many bytes may have been read.
async fn pace(rate: u64, received: u64, begun: std::time::Instant) {
    let due = Duration::from_millis(received.saturating_mul(1000) / rate.max(1));
    let elapsed = begun.elapsed();
    if due > elapsed {
        tokio::time::sleep(due - elapsed).await;
    }
}

/// Part of a response that the client has not taken yet, in a temporary file.
#[derive(Default)]
struct Backlog {
    spool: Spool,
    read: u64,
    told: bool,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.read >= self.spool.len()
    }

    /// Hands the next piece on.
    async fn step(&mut self, r: &mut Request) -> io::Result<()> {
        let portion = output::portion(r)
            .unwrap_or(u64::MAX)
            .min(buffers::SIZE as u64);
        let mut buf = buffers::take();
        buf.resize(portion as usize, 0);
        let n = self.spool.read_at(&mut buf, self.read)?;
        buf.truncate(n);
        self.read += n as u64;
        if self.is_empty() {
            self.spool.clear();
            self.read = 0;
        }
        let filling = cache::filling(r);
        let plain = r.output.is_plain() && !r.subrequest && (filling || r.limit_rate == 0);
        if r.out.header_only {
            buffers::give(buf);
            return Ok(());
        }
        if !plain {
            let written = output::write(r, &buf, false).await;
            buffers::give(buf);
            return written;
        }
        // a client that does not read holds what is queued for it, and nothing else
        r.down.write(&buf);
        r.body_sent += n as u64;
        buffers::give(buf);
        match filling {
            // nobody waits here for the client: others wait for what is stored
            true => Ok(()),
            false => output::ready(r).await,
        }
    }

    /// Hands everything on.
    async fn drain(&mut self, r: &mut Request) -> io::Result<()> {
        while !self.is_empty() {
            // rare, and its future large
            Box::pin(self.step(r)).await?;
        }
        Ok(())
    }
}

/// Reads more from the origin, while the client takes what is queued for it.
async fn more(
    a: &Attempt<'_>,
    r: &mut Request,
    conn: &mut UpConn,
    backlog: &mut Backlog,
    buffered: bool,
    memory: usize,
) -> Result<usize, Broken> {
    use tokio::io::AsyncReadExt;
    let conf = &a.pass.conf;
    let spooled = spool_limit(a, r);
    let failed = |f: Failure| {
        if f.client_gone {
            Broken::Client(io::ErrorKind::ConnectionAborted.into())
        } else {
            Broken::Origin
        }
    };
    let mut buf = std::mem::take(&mut conn.rbuf);
    buf.reserve(if buffered { 16 * 1024 } else { 4096 });
    // what is there already costs neither a timer nor a flush
    let now = poll_fn(|cx| Poll::Ready(std::pin::pin!(conn.read_buf(&mut buf)).poll(cx))).await;
    conn.rbuf = buf;
    if let Poll::Ready(Ok(n)) = now {
        received(r, n);
    }
    match now {
        Poll::Ready(Ok(n)) if backlog.spool.len() < spooled || backlog.is_empty() => {
            return Ok(n);
        }
        Poll::Ready(Ok(n)) => {
            Box::pin(backlog.step(r)).await.map_err(Broken::Client)?;
            return Ok(n);
        }
        Poll::Ready(Err(e)) => {
            a.broken(r, &e, "recv()", DOING);
            return Err(Broken::Origin);
        }
        Poll::Pending => {}
    }
    if !buffered || backlog.is_empty() && r.down.queued() <= memory {
        let down = r.down.clone();
        if let Poll::Ready(Err(e)) = poll_fn(|cx| Poll::Ready(down.poll_flush(cx))).await {
            return Err(Broken::Client(e));
        }
        if r.down.queued() == 0 {
            return a.read(r, conn, DOING).await.map_err(failed);
        }
    }
    // both sides at once: whichever is ready first
    let down = r.down.clone();
    let read_limit = Duration::from_millis(conf.read_timeout);
    let mut buf = std::mem::take(&mut conn.rbuf);
    let full = !backlog.is_empty() && backlog.spool.len() >= spooled;
    let queued = r.down.queued();
    let pause = match cache::filling(r) {
        true => output::portion(r).err(),
        false => None,
    };
    let either = poll_fn(|cx| {
        if !full && let Poll::Ready(n) = std::pin::pin!(conn.read_buf(&mut buf)).poll(cx) {
            return Poll::Ready(Either::Read(n));
        }
        match down.poll_flush(cx) {
            Poll::Ready(Ok(())) if pause.is_some() => Poll::Pending,
            Poll::Ready(x) => Poll::Ready(Either::Sent(x)),
            Poll::Pending if down.queued() < queued => Poll::Ready(Either::Sent(Ok(()))),
            Poll::Pending => Poll::Pending,
        }
    });
    let result = tokio::time::timeout(pause.unwrap_or(read_limit), either).await;
    conn.rbuf = buf;
    match result {
        // the rate lets the client have more
        Err(_) if pause.is_some() => Box::pin(more(a, r, conn, backlog, buffered, memory)).await,
        Ok(Either::Read(Ok(n))) => {
            received(r, n);
            Ok(n)
        }
        Ok(Either::Read(Err(e))) => {
            a.broken(r, &e, "recv()", DOING);
            Err(Broken::Origin)
        }
        Ok(Either::Sent(Err(e))) => Err(Broken::Client(e)),
        Ok(Either::Sent(Ok(()))) => {
            if !backlog.is_empty() && r.down.queued() <= memory && pause.is_none() {
                Box::pin(backlog.step(r)).await.map_err(Broken::Client)?;
            }
            Box::pin(more(a, r, conn, backlog, buffered, memory)).await
        }
        Err(_) => {
            r.upstream.fails("read_timeout");
            r.error(
                Level::Error,
                format_args!("upstream timed out (110: Connection timed out) {DOING}"),
            );
            Err(Broken::Origin)
        }
    }
}

enum Either {
    Read(io::Result<usize>),
    Sent(io::Result<()>),
}
