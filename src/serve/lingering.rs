//! How a connection of HTTP/1 ends, or goes on, once its request has been answered: what is left of the body, and
//! `lingering_close` (nginx's ngx_http_finalize_connection and ngx_http_set_lingering_close).

use super::conn::Conn;
use crate::contract::{BodyRead, Downstream, Lingering, Request};
use bytes::BytesMut;
use std::future::poll_fn;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// What ending a connection needs to know of its last request.
pub(super) struct Ending {
    mode: Lingering,
    /// `lingering_time` and `lingering_timeout`.
    time: Duration,
    each: Duration,
    /// The request was given up: the client was too slow, or has gone.
    terminated: bool,
    /// What follows of the body belongs to nobody: it could not be read, or its reader ended before it.
    abandoned: bool,
    /// More may come by what is known of the request.
    more: bool,
}

impl Ending {
    /// Of a request that has been answered.
    pub fn of(r: &Request) -> Ending {
        let core = r.core();
        // its fields are not read where its target is no URI
        let refused_early = r.err_status == 400 && r.uri.is_empty();
        Ending {
            mode: core.lingering_close,
            time: Duration::from_millis(core.lingering_time),
            each: Duration::from_millis(core.lingering_timeout),
            terminated: r.timed_out
                || r.client_closed
                || (r.aborted && matches!(r.out.status, 408 | 444 | 499)),
            abandoned: r.body.failed || (r.body.streaming && !r.body.read),
            // nginx does not wait for what belongs to a request that it could not understand
            more: (r.has_body() && r.err_status != 400) || r.pipelined || refused_early,
        }
    }

    /// Of a request whose head was refused with this status.
    pub fn of_refused(r: &Request, status: u16) -> Ending {
        Ending {
            more: status == 494,
            ..Ending::of(r)
        }
    }
}

/// Ends a request whose body was not read, or with which the connection ends; whether another one may follow.
pub(super) async fn settle(conn: &Conn, mut ending: Ending, keepalive: bool) -> bool {
    if ending.terminated {
        return false;
    }
    if !conn.body_done() {
        if ending.abandoned {
            linger(conn, ending).await;
            return false;
        }
        if !discard(conn, &ending).await {
            conn.shutdown_write();
            return false;
        }
        ending.more = false;
    }
    if !keepalive {
        linger(conn, ending).await;
    }
    keepalive
}

/// Reads the rest of a body that nobody wanted; true if its end was found.
async fn discard(conn: &Conn, ending: &Ending) -> bool {
    let end = Instant::now() + ending.time;
    let mut sink = BytesMut::new();
    while !conn.body_done() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        sink.clear();
        let read = poll_fn(|cx| conn.poll_body(cx, &mut sink, 16 * 1024));
        match timeout(ending.each.min(left), read).await {
            Ok(Ok(BodyRead::Data(_) | BodyRead::End)) => {}
            _ => return false,
        }
    }
    true
}

/// Closes our side and reads on for a while, so that no reset destroys what the client has not read yet.
pub(super) async fn linger(conn: &Conn, ending: Ending) {
    let _ = timeout(
        Duration::from_millis(500),
        poll_fn(|cx| conn.poll_shutdown(cx)),
    )
    .await;
    let wanted = match ending.mode {
        Lingering::Off => false,
        Lingering::Always => true,
        Lingering::On => ending.more || conn.has_input(),
    };
    if !wanted {
        return;
    }
    conn.shutdown_write();
    // nothing is lost where it gives way to others
    let _reusable = conn.reusable();
    let end = Instant::now() + ending.time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match timeout(ending.each.min(left), poll_fn(|cx| conn.poll_drain(cx))).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
    }
}
