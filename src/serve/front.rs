//! The border: reads request heads with one deadline each, and keeps connections alive or lets them go.

use super::conn::Conn;
use super::h2::{self, Protocol};
use super::pingora_io::Handle;
use super::thread::{PARTING, Thread};
use crate::engine::phases;
use crate::http::head::{HeadError, Limits, Parser, Progress, Version};
use crate::log::Level;
use crate::module::{Gauge, Lingering, ListenAddr, Request, Stat};
use bytes::BytesMut;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::SocketDigest;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::socket::SocketAddr as L4Addr;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// What Pingora reads in place of the head that we have read: framing and headers stay with us.
const HANDED_OVER: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How waiting for a request ended.
enum Waited {
    Readable,
    TimedOut,
    Drained,
}

/// How reading a head ended.
enum Head {
    Whole,
    Refused(HeadError),
    /// The client went away; true if a part of a head had come.
    Closed(bool),
    /// The deadline passed; true if a part of a head had come.
    TimedOut(bool),
}

/// Serves the requests of a connection, one after the other.
pub(super) async fn serve(thread: &'static Thread, conn: &Arc<Conn>, addr: &ListenAddr) {
    match h2::protocol(thread, conn, addr).await {
        Protocol::Http1 => {}
        Protocol::Http2 => return h2::serve(thread, conn, addr).await,
        Protocol::Gone => return,
    }
    let digest = Arc::new(digest(conn));
    let mut parser = Parser::default();
    let mut idle: Option<Idle> = None;
    // the site that `index` was looked up in
    let mut known = 0;
    let mut index = crate::module::Downstream::info(&**conn)
        .listener
        .load(Ordering::Relaxed);
    let mut header_timeout = {
        let site = thread.site();
        let server = site
            .listeners
            .get(index)
            .and_then(|l| site.servers.get(l.default_server as usize));
        Duration::from_millis(server.map_or(60_000, |s| s.conf.client_header_timeout))
    };
    let mut pipelined = false;
    let mut state = Gauge::new(Stat::Waiting);
    loop {
        // no site is held while nothing is asked for, so that a reload frees the old one
        match wait(thread, conn, idle, header_timeout).await {
            Waited::Readable => {}
            Waited::TimedOut | Waited::Drained => return,
        }
        let site = thread.site();
        if site.serial != known {
            // a reload may have moved or removed the address
            let Some(found) = site.listeners.iter().position(|l| l.addr == *addr) else {
                return;
            };
            crate::module::Downstream::info(&**conn)
                .listener
                .store(found, Ordering::Relaxed);
            (known, index) = (site.serial, found);
        }
        let Some(server) = site
            .listeners
            .get(index)
            .and_then(|l| site.servers.get(l.default_server as usize))
        else {
            return;
        };
        header_timeout = Duration::from_millis(server.conf.client_header_timeout);
        let limits = Limits {
            header_buffer: server.conf.client_header_buffer_size,
            large: server.conf.large_client_header_buffers,
            ignore_invalid: server.conf.ignore_invalid_headers,
            underscores: server.conf.underscores_in_headers,
            max_headers: server.conf.max_headers,
            allow_connect: server.conf.allow_connect,
        };
        let default_server = site.listeners.get(index).map_or(0, |l| l.default_server);
        let default_location = server.default_location;
        let mut r = thread.request(&site, conn.clone());
        r.pipelined = pipelined;
        drop(site);
        Stat::Requests.up();
        state.set(Stat::Reading);
        r.server = default_server;
        r.location = default_location;
        match read_head(conn, &mut parser, &mut r, &limits, header_timeout).await {
            Head::Whole => state.set(Stat::Writing),
            Head::Closed(false) | Head::TimedOut(false) => {
                thread.recycle(r);
                return;
            }
            Head::Closed(true) => {
                log_only(&mut r, 400, "client prematurely closed connection");
                thread.recycle(r);
                return;
            }
            Head::TimedOut(true) => {
                let reset = r.core().reset_timedout_connection;
                log_only(&mut r, 408, "client timed out (110: Connection timed out)");
                thread.recycle(r);
                if reset {
                    conn.reset_on_close();
                }
                return;
            }
            Head::Refused(e) => {
                Box::pin(refuse(conn, &mut r, &e)).await;
                let lingering = Linger::of(&r);
                thread.recycle(r);
                Box::pin(linger(conn, lingering)).await;
                return;
            }
        }
        begin(conn, &mut r);
        *conn.parked.lock() = Some(r);
        let handle = Handle {
            conn: conn.clone(),
            digest: digest.clone(),
        };
        let mut session = ServerSession::new_http1(Box::new(handle));
        session.set_pipelined_prefix(thread.prefix(HANDED_OVER));
        let _ = thread
            .proxy
            .process_new_http(session, &thread.shutdown)
            .await;
        let Some(mut r) = conn.parked.lock().take() else {
            return;
        };

        let keepalive = r.keepalive && !r.aborted && !conn.must_close();
        let lingering = Linger::of(&r);
        let next = Idle {
            timeout: Duration::from_millis(r.core().keepalive_timeout),
            least: Duration::from_millis(r.core().keepalive_min_timeout),
        };
        if r.aborted && r.core().reset_timedout_connection && r.timed_out {
            conn.reset_on_close();
        }
        r.keepalive = keepalive;
        thread.recycle(r);
        if !conn.body_done() && !Box::pin(discard(conn, &lingering)).await {
            conn.shutdown_write();
            return;
        }
        if !keepalive {
            Box::pin(linger(conn, lingering)).await;
            return;
        }
        pipelined = conn.has_input();
        if !pipelined {
            conn.rest();
        }
        state.set(Stat::Waiting);
        idle = Some(next);
    }
}

fn digest(conn: &Conn) -> SocketDigest {
    let d = SocketDigest::from_raw_fd(conn.fd());
    let info = crate::module::Downstream::info(conn);
    let _ = d.peer_addr.set(info.remote.addr.map(L4Addr::Inet));
    let _ = d.local_addr.set(info.local.addr.map(L4Addr::Inet));
    d
}

/// How long a connection waits for its next request.
#[derive(Clone, Copy)]
struct Idle {
    /// `keepalive_timeout`.
    timeout: Duration,
    /// `keepalive_min_timeout`: so long it waits while the process drains, too.
    least: Duration,
}

/// Waits for the first byte of a request without holding a buffer for it.
///
/// A connection that has had no request yet is not `idle`: as in nginx it may bring its first one while the process drains.
async fn wait(thread: &'static Thread, conn: &Conn, idle: Option<Idle>, first: Duration) -> Waited {
    let mut readable = pin!(poll_fn(|cx| conn.poll_readable(cx)));
    let now = poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx).is_ready())).await;
    if now {
        return Waited::Readable;
    }
    // a part in which the connection is not idle, then the rest
    let (mut part, mut rest) = match idle {
        None => (first, None),
        Some(i) => (
            i.least.min(i.timeout),
            Some(i.timeout.saturating_sub(i.least)),
        ),
    };
    let mut draining = false;
    loop {
        if idle.is_some() && rest.is_none() {
            conn.set_idle(!draining);
        }
        if !part.is_zero() {
            let waited = timeout(part, readable.as_mut()).await;
            conn.set_idle(false);
            if waited.is_ok() {
                return Waited::Readable;
            }
        }
        match rest.take() {
            None if draining => return Waited::Drained,
            None => return Waited::TimedOut,
            Some(left) => {
                draining = thread.draining.load(Ordering::Relaxed);
                // its last response, begun before the drain, said that it may stay
                let least = idle.map_or(Duration::ZERO, |i| i.least);
                let parting = PARTING.saturating_sub(least);
                part = if draining { parting.min(left) } else { left };
            }
        }
    }
}

async fn read_head(
    conn: &Conn,
    parser: &mut Parser,
    r: &mut Request,
    limits: &Limits,
    limit: Duration,
) -> Head {
    r.start = Instant::now();
    let (sec, msec) = crate::http::date::time();
    r.start_msec = sec as u64 * 1000 + u64::from(msec);
    *parser = Parser::default();
    let reading = async {
        loop {
            let ignored = r.log_enabled(Level::Info);
            let mut dropped = Vec::new();
            let progress = conn.with_read(|buf| {
                let progress = parser.parse(buf, limits, &mut r.head);
                let used = match progress {
                    Progress::Done { consumed } | Progress::Blank { consumed } => consumed,
                    _ => 0,
                };
                if ignored
                    && matches!(progress, Progress::Done { .. })
                    && !r.head.ignored.is_empty()
                {
                    let text = |x: &std::ops::Range<usize>| {
                        String::from_utf8_lossy(buf.get(x.clone()).unwrap_or_default()).into_owned()
                    };
                    dropped = r.head.ignored.iter().map(text).collect();
                }
                (used, progress)
            });
            for line in dropped {
                r.error(Level::Info, format_args!("client sent invalid header line: \"{line}\" while reading client request headers"));
            }
            match progress {
                Progress::Done { .. } => return Head::Whole,
                Progress::Bad(e) => return Head::Refused(e),
                Progress::Blank { .. } | Progress::Need => {}
            }
            match poll_fn(|cx| conn.poll_fill(cx)).await {
                Ok(0) | Err(_) => return Head::Closed(conn.has_input()),
                Ok(_) => {}
            }
        }
    };
    // most heads are there at once: only those that are not pay for a timer
    let mut reading = pin!(reading);
    if let Poll::Ready(head) = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await {
        return head;
    }
    match timeout(limit, reading).await {
        Ok(head) => head,
        Err(_) => Head::TimedOut(conn.has_input()),
    }
}

/// What is settled by the head alone.
fn begin(conn: &Conn, r: &mut Request) {
    let info = crate::module::Downstream::info(conn);
    info.requests.fetch_add(1, Ordering::Relaxed);
    r.method = r.head.method;
    r.out.http11 = r.head.version == Version::V11;
    r.keepalive = match r.head.version {
        Version::V11 => !r.head.connection.close,
        Version::V10 => r.head.connection.keep_alive,
        Version::V09 => false,
    };
    conn.begin(r.head.content_length, r.head.chunked, 8192);
}

/// Answers a head that is refused, and logs why.
async fn refuse(conn: &Conn, r: &mut Request, e: &HeadError) {
    crate::module::Downstream::info(conn)
        .requests
        .fetch_add(1, Ordering::Relaxed);
    conn.begin(None, false, 0);
    let what = if e.line_known { "headers" } else { "line" };
    r.error(
        Level::Info,
        format_args!("{e} while reading client request {what}"),
    );
    r.method = Default::default();
    if e.line_known {
        line_known(r);
    }
    if r.head.version == Version::V09 {
        // nothing was settled yet: the answer has a head
        r.head.version = Version::V10;
    }
    r.out.http11 = true;
    phases::refuse(r, e.status).await;
}

/// A request that gets no answer is in the access log all the same.
fn log_only(r: &mut Request, status: u16, why: &str) {
    let what = if r.head.line.is_empty() {
        "line"
    } else {
        "headers"
    };
    r.error(
        Level::Info,
        format_args!("{why} while reading client request {what}"),
    );
    if !r.head.line.is_empty() {
        line_known(r);
    }
    r.out.status = status;
    phases::log(r);
}

/// Takes method and URI from the request line of a head that is never whole.
fn line_known(r: &mut Request) {
    r.method = r.head.method;
    let merge = r.server().conf.merge_slashes;
    // a target that is no URI is in the log as it came
    let _ = crate::engine::target::apply(r, merge);
}

/// What closing a connection needs to know of its last request.
struct Linger {
    mode: Lingering,
    time: Duration,
    each: Duration,
    body: bool,
}

impl Linger {
    fn of(r: &Request) -> Linger {
        let core = r.core();
        Linger {
            mode: core.lingering_close,
            time: Duration::from_millis(core.lingering_time),
            each: Duration::from_millis(core.lingering_timeout),
            body: r.has_body(),
        }
    }
}

/// Reads the rest of a body that nobody wanted; true if its end was found.
async fn discard(conn: &Conn, l: &Linger) -> bool {
    use crate::module::{BodyRead, Downstream};
    let end = Instant::now() + l.time;
    let mut sink = BytesMut::new();
    while !conn.body_done() {
        if Instant::now() >= end {
            return false;
        }
        sink.clear();
        match timeout(
            l.each,
            poll_fn(|cx| conn.poll_body(cx, &mut sink, 16 * 1024)),
        )
        .await
        {
            Ok(Ok(BodyRead::Data(_) | BodyRead::End)) => {}
            _ => return false,
        }
    }
    true
}

/// Closes our side and reads on for a while, so that no reset destroys what the client has not read yet.
async fn linger(conn: &Conn, l: Linger) {
    let _ = timeout(
        Duration::from_millis(500),
        poll_fn(|cx| conn.poll_shutdown(cx)),
    )
    .await;
    let wanted = match l.mode {
        Lingering::Off => false,
        Lingering::Always => true,
        Lingering::On => l.body || conn.has_input(),
    };
    if !wanted {
        return;
    }
    conn.shutdown_write();
    let end = Instant::now() + l.time;
    while Instant::now() < end {
        match timeout(l.each, poll_fn(|cx| conn.poll_drain(cx))).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
    }
}
