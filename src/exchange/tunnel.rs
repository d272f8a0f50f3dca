//! An upgraded connection or a CONNECT: bytes pass as they are, both ways, until one side ends.

use super::attempt::Attempt;
use crate::contract::PassEnd;
use crate::contract::{BodyRead, Framing, Request};
use crate::delivery::output;
use crate::log::Level;
use crate::runtime::buffers;
use crate::upstream::UpConn;
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};

const DOING: &str = "while proxying upgraded connection";

/// Whose connection it is.
enum Side {
    Client,
    Origin,
}

/// What ended a turn of the loop.
enum Turn {
    /// Something moved.
    Moved,
    /// A side has ended and everything was delivered.
    Over,
}

/// Sends the head and moves bytes until a side ends, nothing moves for `proxy_read_timeout`, or a side takes nothing for
/// `proxy_send_timeout` (the origin) or `send_timeout` (the client).
pub(super) async fn run(a: &Attempt<'_>, r: &mut Request, mut conn: UpConn) -> PassEnd {
    r.keepalive = false;
    r.out.upgrade = r.out.status == 101;
    r.out.keepalive = false;
    r.out.content_length = None;
    // added headers belong to this head too; there is no body for a filter to work on
    r.out.header_only = true;
    let site = r.site.clone();
    if let Some(location) = site.locations.get(r.location as usize) {
        for filter in &location.hooks.response {
            if !r.panicked.skips(filter.id()) {
                let _ = filter.call(output::HEAD_FILTER, |f| f.head(r));
            }
        }
        r.out.tokens = location.core.server_tokens;
    }
    r.header_sent = true;
    r.down.head(&r.out, Framing::Tunnel);
    r.head_size = r.down.sent();
    let mut up = std::mem::take(&mut conn.rbuf);
    if !up.is_empty() {
        r.down.write(&up);
        r.body_sent += up.len() as u64;
        up.clear();
    }
    if let Err(e) = output::flush(r).await {
        output::broken(r, &e);
        return PassEnd::Done;
    }
    let read_timeout = Duration::from_millis(a.pass.conf.read_timeout);
    let send_timeout = Duration::from_millis(a.pass.conf.send_timeout);
    let client_timeout = Duration::from_millis(r.core().send_timeout);
    let down = r.down.clone();
    let mut to_origin = BytesMut::new();
    let (mut client_ended, mut origin_ended) = (false, false);
    let mut broken = None;
    let (mut sent, mut received) = (0u64, 0u64);
    loop {
        // a side that takes nothing has been found out by the turn before
        let client_is_slow = down.queued() > 0;
        let limit = match (client_is_slow, to_origin.is_empty()) {
            (true, _) => client_timeout,
            (false, false) => send_timeout.min(read_timeout),
            (false, true) => read_timeout,
        };
        let turn = poll_fn(|cx| {
            let mut moved = false;
            let queued = down.queued();
            // client to origin; who is silent holds no buffer
            if to_origin.is_empty() && !client_ended {
                if to_origin.capacity() == 0 {
                    to_origin = buffers::take();
                }
                match down.poll_body(cx, &mut to_origin, 16 * 1024) {
                    Poll::Ready(Ok(BodyRead::Data(_))) => moved = true,
                    Poll::Ready(result) => {
                        if let Err(e) = result {
                            broken = Some((Side::Client, "recv()", e));
                        }
                        client_ended = true;
                        moved = true;
                    }
                    Poll::Pending => buffers::give(std::mem::take(&mut to_origin)),
                }
            }
            while !to_origin.is_empty() {
                match Pin::new(&mut conn).poll_write(cx, &to_origin) {
                    Poll::Ready(Ok(n)) if n > 0 => {
                        to_origin.advance(n);
                        sent += n as u64;
                        moved = true;
                    }
                    Poll::Ready(result) => {
                        if let Err(e) = result {
                            broken = Some((Side::Origin, "send()", e));
                        }
                        origin_ended = true;
                        to_origin.clear();
                    }
                    Poll::Pending => break,
                }
            }
            // origin to client
            if !origin_ended && down.poll_ready(cx).is_ready() {
                if up.capacity() == 0 {
                    up = buffers::take();
                }
                match std::pin::pin!(conn.read_buf(&mut up)).poll(cx) {
                    Poll::Ready(Ok(n)) if n > 0 => {
                        down.write(&up);
                        received += n as u64;
                        up.clear();
                        moved = true;
                    }
                    Poll::Ready(result) => {
                        if let Err(e) = result {
                            broken = Some((Side::Origin, "recv()", e));
                        }
                        origin_ended = true;
                        moved = true;
                    }
                    Poll::Pending => buffers::give(std::mem::take(&mut up)),
                }
            }
            let flushed = match down.poll_flush(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(e)) => {
                    broken = broken.take().or(Some((Side::Client, "send()", e)));
                    client_ended = true;
                    to_origin.clear();
                    return Poll::Ready(Turn::Over);
                }
                Poll::Pending => false,
            };
            if (origin_ended && flushed) || (client_ended && to_origin.is_empty()) {
                return Poll::Ready(Turn::Over);
            }
            if moved || down.queued() < queued {
                Poll::Ready(Turn::Moved)
            } else {
                Poll::Pending
            }
        });
        match tokio::time::timeout(limit, turn).await {
            Ok(Turn::Moved) => {}
            Ok(Turn::Over) => break,
            Err(_) if client_is_slow => {
                r.timed_out = true;
                r.error(Level::Info, format_args!("client timed out (110: Connection timed out) while proxying upgraded connection"));
                break;
            }
            Err(_) => {
                // what falls silent is no fault of the origin
                r.error(
                    Level::Info,
                    format_args!("upstream timed out (110: Connection timed out) {DOING}"),
                );
                break;
            }
        }
    }
    if let Some((side, call, e)) = broken
        && let Some(errno) = e.raw_os_error()
    {
        let level = match side {
            Side::Client => Level::Info,
            Side::Origin => Level::Error,
        };
        let text = e.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        r.error(
            level,
            format_args!("{call} failed ({errno}: {text}) {DOING}"),
        );
    }
    r.body_sent += received;
    if let Some(s) = r.upstream.states.last_mut() {
        s.bytes_sent += sent;
        s.bytes_received += received;
    }
    buffers::give(up);
    PassEnd::Done
}
