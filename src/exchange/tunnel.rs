//! An upgraded connection: bytes pass as they are, both ways, until one side ends.

use super::attempt::Attempt;
use crate::delivery::output;
use crate::log::Level;
use crate::module::Outcome;
use crate::module::{BodyRead, Framing, Request};
use crate::runtime::buffers;
use crate::upstream::UpConn;
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};

/// What ended a turn of the loop.
enum Turn {
    /// Something moved.
    Moved,
    /// A side has ended and everything was delivered.
    Over,
}

/// Sends the 101 and moves bytes until a side ends or nothing moves for `proxy_read_timeout`.
pub(super) async fn run(a: &Attempt<'_>, r: &mut Request, mut conn: UpConn) -> Outcome {
    r.keepalive = false;
    r.out.upgrade = true;
    r.out.keepalive = false;
    r.out.content_length = None;
    // added headers belong to this head too; there is no body for a filter to work on
    r.out.header_only = true;
    let site = r.site.clone();
    if let Some(location) = site.locations.get(r.location as usize) {
        for filter in &location.hooks.response {
            let _ = filter.head(r);
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
        return Outcome::Done;
    }
    let limit = Duration::from_millis(a.pass.conf.read_timeout);
    let down = r.down.clone();
    let mut to_origin = BytesMut::new();
    let (mut client_ended, mut origin_ended) = (false, false);
    let (mut sent, mut received) = (0u64, 0u64);
    loop {
        let turn = poll_fn(|cx| {
            let mut moved = false;
            // client to origin; who is silent holds no buffer
            if to_origin.is_empty() && !client_ended {
                if to_origin.capacity() == 0 {
                    to_origin = buffers::take();
                }
                match down.poll_body(cx, &mut to_origin, 16 * 1024) {
                    Poll::Ready(Ok(BodyRead::Data(_))) => moved = true,
                    Poll::Ready(_) => {
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
                    Poll::Ready(_) => {
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
                    Poll::Ready(_) => {
                        origin_ended = true;
                        moved = true;
                    }
                    Poll::Pending => buffers::give(std::mem::take(&mut up)),
                }
            }
            let flushed = match down.poll_flush(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => {
                    client_ended = true;
                    to_origin.clear();
                    return Poll::Ready(Turn::Over);
                }
                Poll::Pending => false,
            };
            if (origin_ended && flushed) || (client_ended && to_origin.is_empty()) {
                return Poll::Ready(Turn::Over);
            }
            if moved {
                Poll::Ready(Turn::Moved)
            } else {
                Poll::Pending
            }
        });
        match tokio::time::timeout(limit, turn).await {
            Ok(Turn::Moved) => {}
            Ok(Turn::Over) => break,
            Err(_) => {
                r.error(Level::Error, format_args!("upstream timed out (110: Connection timed out) while proxying upgraded connection"));
                break;
            }
        }
    }
    r.body_sent += received;
    if let Some(s) = r.upstream.states.last_mut() {
        s.bytes_sent += sent;
        s.bytes_received += received;
    }
    buffers::give(up);
    Outcome::Done
}
