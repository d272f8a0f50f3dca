//! The response on its way out: the same path for local, proxied and cached responses.

mod conditions;

use super::filters;
use super::redirect;
use crate::contract::{BadValue, Body, Cut, Framing, Request, Stage, has_break};
use crate::http::head::Version;
use crate::http::range;
use crate::log::{Errno, Level};
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

/// Sends `r.out` with a whole body.
///
/// # Errors
/// A status that a filter decided on instead (412, 416).
pub async fn send(r: &mut Request, body: Body) -> Result<(), u16> {
    if r.header_sent {
        return Ok(());
    }
    let len = match &body {
        Body::Empty => 0,
        Body::Bytes(b) => b.len() as u64,
        Body::File { len, .. } => *len,
        Body::Joined { head, len, .. } => head.len() as u64 + len,
        Body::Unsized(_) => return send_as_is(r, body).await,
    };
    if !(r.is_head() && r.out.content_length.is_some()) {
        r.out.content_length = Some(len);
    }
    send_as_is(r, body).await
}

/// The same, whatever length `r.out` tells: of what an origin sent without one.
///
/// # Errors
/// As [`send`].
pub async fn send_as_is(r: &mut Request, body: Body) -> Result<(), u16> {
    if r.header_sent {
        return Ok(());
    }
    start(r)?;
    if r.limit_rate > 0
        && let Err(e) = Box::pin(pace_head(r)).await
    {
        broken(r, &e);
        return Ok(());
    }
    if r.out.header_only {
        return Ok(());
    }
    let sent = match body {
        Body::Empty => write(r, b"", true).await,
        Body::Bytes(b) if r.output.is_plain() && r.limit_rate == 0 && !r.subrequest => {
            r.body_sent += b.len() as u64;
            r.down.write_bytes(b);
            finish(r);
            Ok(())
        }
        Body::Bytes(b) | Body::Unsized(b) => write(r, &b, true).await,
        Body::File { file, offset, len } => send_file(r, &file, offset, len).await,
        Body::Joined {
            head,
            file,
            offset,
            len,
        } => Box::pin(send_joined(r, &head, &file, offset, len)).await,
    };
    if let Err(e) = sent {
        broken(r, &e);
    }
    Ok(())
}

/// Sends what takes the place of a subrequest's empty response or error.
pub async fn stub(r: &mut Request, media_type: Vec<u8>, text: &[u8]) {
    if !r.header_sent {
        r.out.clear_entity();
        r.out.status = 200;
        r.err_status = 0;
        r.out.content_type = media_type;
        if start(r).is_err() {
            return;
        }
    }
    if let Err(e) = write(r, text, true).await {
        broken(r, &e);
    }
}

/// What a head filter is called where it panics.
pub const HEAD_FILTER: &str = "head filter";

/// Runs the head filters and queues the head.
///
/// # Errors
/// A status that a filter decided on instead (412, 416); nothing has been queued then.
pub fn start(r: &mut Request) -> Result<(), u16> {
    if r.header_sent {
        return Ok(());
    }
    r.output.clear();
    if r.err_status != 0 {
        r.out.status = r.err_status;
        r.out.status_line.clear();
    }
    if r.is_head() {
        r.out.header_only = true;
    }
    let site = r.site.clone();
    if let Some(l) = site.locations.get(r.location as usize) {
        for filter in &l.hooks.early {
            if !r.panicked.skips(filter.id()) {
                filter.call(HEAD_FILTER, |f| f.head(r))?;
            }
        }
    }
    if r.out.status == 200 && !r.subrequest && !r.out.unconditional {
        conditions::not_modified(r)?;
    }
    if let Some(l) = site.locations.get(r.location as usize) {
        for filter in &l.hooks.response {
            if !r.panicked.skips(filter.id())
                && let Some(f) = filter.call(HEAD_FILTER, |f| f.head(r))
                && !r.out.header_only
            {
                if filter.after_subrequests() {
                    r.output
                        .subrequest_merge_at
                        .get_or_insert(r.output.stages.len());
                }
                r.output.stages.push(Stage {
                    filter: f,
                    module: filter.module(),
                    last: false,
                });
            }
        }
    }
    if !r.subrequest {
        conditions::ranges(r)?;
    }
    redirect::absolute(r);
    if r.out.has_break() {
        clean(r);
    }
    if let BadValue::Found(status) = r.bad_value {
        r.bad_value = BadValue::Answered;
        return Err(status);
    }
    write_head(r);
    Ok(())
}

/// Takes out of the head what would break it; the request ends for it.
#[cold]
fn clean(r: &mut Request) {
    while let Some(name) = r.out.take_broken() {
        let name = String::from_utf8_lossy(&name).into_owned();
        let status = r.refuse_value("response header", &name, "a CR, LF or NUL");
        r.end_for_value(status);
    }
}

fn write_head(r: &mut Request) {
    if matches!(r.out.status, 204 | 304) {
        r.out.header_only = true;
        if r.out.status == 204 {
            r.out.content_type.clear();
            r.out.content_length = None;
            // an origin's own stays, as in nginx
            r.out.last_modified = None;
        }
    }
    if r.out.status < 200 {
        // a 101 that the client did not ask for: nothing follows it
        r.out.header_only = true;
        r.keepalive = false;
    }
    // nginx's own Last-Modified is of the document, not of an error
    if r.out.last_modified_text.is_empty() && !matches!(r.out.status, 200 | 206 | 304) {
        r.out.last_modified = None;
    }
    let site = r.site.clone();
    let Some(location) = site.locations.get(r.location as usize) else {
        return;
    };
    let core = &location.core;
    let bodiless = matches!(r.out.status, 204 | 304);
    // a response to HEAD is not chunked: it has no body that could be
    let bodiless = bodiless || r.is_head();
    // trailers of HTTP/2 need no chunks
    let chunkable = r.out.http11 && r.head.http_major_minor.0 < 2;
    if r.out.expect_trailers && !bodiless && chunkable && core.chunked_transfer_encoding {
        r.out.content_length = None;
    }
    let mut framing = match r.out.content_length {
        Some(n) => Framing::Length(n),
        None if bodiless => Framing::None,
        None if r.out.http11 && core.chunked_transfer_encoding => Framing::Chunked,
        None => {
            r.keepalive = false;
            Framing::Close
        }
    };
    if r.out.header_only {
        framing = Framing::None;
    }
    if r.head.version == Version::V09 && !r.head.line.is_empty() {
        r.out.http09 = true;
    }
    if r.out.http09 {
        r.keepalive = false;
        framing = if r.out.header_only {
            Framing::None
        } else {
            Framing::Close
        };
    }
    if r.keepalive && core.keepalive_min_timeout == 0 && crate::runtime::draining() {
        r.keepalive = false;
    }
    r.out.tokens = core.server_tokens;
    r.out.keepalive_header = core.keepalive_header;
    r.out.keepalive = r.keepalive;
    if !r.limit_rate_set
        && let Some(t) = &core.limit_rate
    {
        r.limit_rate = crate::config::value::parse_size(&t.eval(r)).unwrap_or(0);
    }
    if let Some(t) = &core.limit_rate_after {
        r.limit_rate_after = crate::config::value::parse_size(&t.eval(r)).unwrap_or(0);
    }
    r.header_sent = true;
    r.down.head(&r.out, framing);
    if !r.subrequest {
        r.head_size = r.down.sent();
    }
}

/// Sends body bytes through the filters; waits where the client is slow or `limit_rate` says so.
///
/// # Errors
/// What the client's connection gives; nothing more can be sent then.
pub async fn write(r: &mut Request, data: &[u8], last: bool) -> io::Result<()> {
    if r.output.is_plain() {
        send_bytes(r, data).await?;
    } else {
        filters::write(r, data, last).await?;
    }
    if last {
        finish(r);
    }
    Ok(())
}

/// Tells the end of the body to the client.
pub fn finish(r: &mut Request) {
    if !r.output.ended {
        r.output.ended = true;
        if r.out.trailers.has_break() {
            r.out
                .trailers
                .retain(|_, name, value| !(has_break(name) || has_break(value)));
        }
        r.down.finish(Some(&r.out.trailers));
    }
}

/// Appends those bytes of `data`, which begins at `offset`, that the ranges ask for.
pub(super) fn slice(cut: &mut Cut, offset: u64, data: &[u8], out: &mut Vec<u8>) {
    match cut {
        Cut::Single(a, b) => {
            if let Some(part) = range::clip((*a, *b), offset, data.len()) {
                out.extend_from_slice(data.get(part).unwrap_or_default());
            }
        }
        Cut::Multi {
            parts,
            heads,
            next,
            inside,
        } => {
            let end = offset + data.len() as u64;
            while let Some(&(a, b)) = parts.get(*next) {
                if a >= end && !(*inside) {
                    return;
                }
                if !*inside {
                    heads.part_head((a, b), out);
                    *inside = true;
                }
                if let Some(part) = range::clip((a, b), offset, data.len()) {
                    out.extend_from_slice(data.get(part).unwrap_or_default());
                }
                if b > end {
                    return;
                }
                *inside = false;
                *next += 1;
                if *next == parts.len() {
                    heads.close(out);
                }
            }
        }
    }
}

/// Queues bytes for the client, in portions where the rate is limited.
pub(super) async fn send_bytes(r: &mut Request, data: &[u8]) -> io::Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    // a subrequest's bytes are counted where they reach the client
    if r.limit_rate == 0 || r.subrequest {
        r.down.write(data);
        r.body_sent += data.len() as u64;
        return ready(r).await;
    }
    let mut rest = data;
    while !rest.is_empty() {
        let n = allowance(r).await?.min(rest.len() as u64) as usize;
        let (now, later) = rest.split_at(n);
        r.down.write(now);
        r.body_sent += n as u64;
        rest = later;
        flush(r).await?;
    }
    Ok(())
}

/// How many bytes `limit_rate` lets through now, or how long to wait until it does.
///
/// # Errors
/// How long to wait.
pub fn portion(r: &Request) -> Result<u64, Duration> {
    if r.limit_rate == 0 {
        return Ok(u64::MAX);
    }
    let sent = r.body_sent + r.head_size;
    let limit = allowed(r);
    if limit > sent {
        return Ok(limit - sent);
    }
    let delay = (sent - limit) * 1000 / r.limit_rate + 1;
    Err(Duration::from_millis(delay))
}

/// How many bytes of the response `limit_rate` lets through up to now, the head included.
fn allowed(r: &Request) -> u64 {
    let elapsed = r.start.elapsed().as_millis() as u64;
    let seconds = (r.start_msec + elapsed) / 1000 - r.start_msec / 1000 + 1;
    (r.limit_rate.saturating_mul(seconds)).saturating_add(r.limit_rate_after)
}

/// Holds the head back where `limit_rate` is so low that it does not let all of it through at once, as nginx does with
/// HTTP/1; a head that it lets through stays queued, and leaves with the body.
///
/// # Errors
/// What the client's connection gives.
pub async fn pace_head(r: &mut Request) -> io::Result<()> {
    while r.limit_rate > 0
        && !r.subrequest
        && r.head.http_major_minor.0 < 2
        && r.out.status >= 200
        && r.body_sent == 0
        && r.head_size > allowed(r)
    {
        let down = r.down.clone();
        let gone = r.head_size.saturating_sub(down.queued() as u64);
        let part = allowed(r).saturating_sub(gone);
        if part > 0 {
            let limit = Duration::from_millis(r.core().send_timeout);
            let part = usize::try_from(part).unwrap_or(usize::MAX);
            timed(r, limit, poll_fn(|cx| down.poll_part(cx, part))).await?;
        }
        let missing = r.head_size.saturating_sub(allowed(r)).min(r.limit_rate);
        let delay = Duration::from_millis(missing * 1000 / r.limit_rate.max(1) + 1);
        if tokio::time::timeout(delay, poll_fn(|cx| down.poll_closed(cx)))
            .await
            .is_ok()
        {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
    Ok(())
}

/// How many bytes `limit_rate` lets through now; waits while it is none, unless the client goes away.
async fn allowance(r: &mut Request) -> io::Result<u64> {
    loop {
        let delay = match portion(r) {
            Ok(n) => return Ok(n),
            Err(delay) => delay,
        };
        flush(r).await?;
        let down = r.down.clone();
        if tokio::time::timeout(delay, poll_fn(|cx| down.poll_closed(cx)))
            .await
            .is_ok()
        {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

/// Waits until little enough is queued that more may be written.
pub async fn ready(r: &mut Request) -> io::Result<()> {
    let down = r.down.clone();
    if let Poll::Ready(x) = poll_fn(|cx| Poll::Ready(down.poll_ready(cx))).await {
        return x;
    }
    let limit = Duration::from_millis(r.core().send_timeout);
    timed(r, limit, poll_fn(|cx| down.poll_ready(cx))).await
}

/// Waits until everything queued has been sent.
pub async fn flush(r: &mut Request) -> io::Result<()> {
    let down = r.down.clone();
    let limit = Duration::from_millis(r.core().send_timeout);
    loop {
        if let Poll::Ready(x) = poll_fn(|cx| Poll::Ready(down.poll_flush(cx))).await {
            return x;
        }
        // the timeout is between two writes: progress starts it anew
        let queued = down.queued();
        let progress = poll_fn(|cx| match down.poll_flush(cx) {
            Poll::Pending if down.queued() < queued => Poll::Ready(Ok(())),
            other => other,
        });
        timed(r, limit, progress).await?;
        if down.queued() == 0 {
            return Ok(());
        }
    }
}

async fn timed(
    r: &mut Request,
    limit: Duration,
    f: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    match tokio::time::timeout(limit, f).await {
        Ok(x) => x,
        Err(_) => {
            r.timed_out = true;
            r.error(
                Level::Info,
                format_args!(
                    "client timed out (110: Connection timed out) while sending response to client"
                ),
            );
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

async fn send_file(r: &mut Request, file: &std::fs::File, offset: u64, len: u64) -> io::Result<()> {
    if !r.output.is_plain()
        && !matches!(
            (&r.output.cut, r.output.stages.is_empty()),
            (Some(Cut::Single(..)), true)
        )
    {
        return read_file(r, file, offset, len).await;
    }
    let (at, left) = match r.output.cut {
        Some(Cut::Single(a, b)) => (offset + a, b - a),
        _ => (offset, len),
    };
    write_file(r, file, at, left).await?;
    finish(r);
    Ok(())
}

/// Sends bytes and a part of a file behind them.
async fn send_joined(
    r: &mut Request,
    head: &[u8],
    file: &std::fs::File,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    let (a, b) = match (r.output.only_range(), r.output.is_plain()) {
        (Some(range), _) => range,
        (None, true) => (0, head.len() as u64 + len),
        (None, false) => {
            write(r, head, false).await?;
            return read_file(r, file, offset, len).await;
        }
    };
    if let Some(part) = range::clip((a, b), 0, head.len()) {
        send_bytes(r, head.get(part).unwrap_or_default()).await?;
    }
    let (a, b) = (
        a.saturating_sub(head.len() as u64),
        b.saturating_sub(head.len() as u64),
    );
    write_file(r, file, offset + a, b.saturating_sub(a)).await?;
    finish(r);
    Ok(())
}

/// Sends bytes of a file as they are: past filters and ranges.
///
/// # Errors
/// As [`write`].
pub async fn write_file(
    r: &mut Request,
    file: &std::fs::File,
    mut at: u64,
    mut left: u64,
) -> io::Result<()> {
    while left > 0 {
        let mut portion = left;
        if r.limit_rate > 0 && !r.subrequest {
            portion = allowance(r).await?.min(left);
        }
        let down = r.down.clone();
        let limit = Duration::from_millis(r.core().send_timeout);
        let sent = poll_fn(|cx| down.poll_file(cx, file, at, portion));
        let n = match tokio::time::timeout(limit, sent).await {
            Ok(n) => n?,
            Err(_) => {
                r.timed_out = true;
                r.error(Level::Info, format_args!("client timed out (110: Connection timed out) while sending response to client"));
                return Err(io::ErrorKind::TimedOut.into());
            }
        };
        at += n;
        left = left.saturating_sub(n);
        r.body_sent += n;
    }
    Ok(())
}

async fn read_file(r: &mut Request, file: &std::fs::File, offset: u64, len: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buf = vec![0; len.clamp(1, 64 * 1024) as usize];
    let mut at = 0;
    while at < len {
        let want = (len - at).min(buf.len() as u64) as usize;
        let n = file.read_at(buf.get_mut(..want).unwrap_or_default(), offset + at)?;
        if n == 0 {
            // the file was cut short while it was sent
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += n as u64;
        write(r, buf.get(..n).unwrap_or_default(), at == len).await?;
    }
    if len == 0 {
        write(r, b"", true).await?;
    }
    Ok(())
}

/// The response cannot be completed: it must not look as if it were.
pub fn broken(r: &mut Request, e: &io::Error) {
    r.aborted = true;
    r.keepalive = false;
    r.down.abort();
    if e.kind() == io::ErrorKind::ConnectionAborted && e.raw_os_error().is_none() {
        let errno = Errno(r.down.errno());
        r.error(
            Level::Info,
            format_args!(
                "client prematurely closed connection{errno} while sending response to client"
            ),
        );
    } else if !r.timed_out {
        let errno = match e.kind() {
            io::ErrorKind::ConnectionReset => Errno::of(e),
            _ => Errno(0),
        };
        match e.kind() {
            // whoever waits to write learns of it before a write fails
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => r.error(
                Level::Info,
                format_args!(
                    "client prematurely closed connection{errno} while sending response to client"
                ),
            ),
            _ => r.error(
                Level::Info,
                format_args!("writing the response failed: {e} while sending response to client"),
            ),
        }
    }
}

/// Sends what is still queued; the last step of every request.
pub async fn end(r: &mut Request) {
    if r.aborted {
        return;
    }
    if let Err(e) = flush(r).await {
        broken(r, &e);
    }
}
