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
    /// Nothing came within the part of the time that was to be waited.
    Idle,
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

/// What a connection is at between its requests; it goes through Pingora with the request it has brought.
pub(super) struct Client {
    thread: &'static Thread,
    addr: ListenAddr,
    /// The request that is served; none while one is waited for.
    request: Option<Box<Request>>,
    /// How long the next request is waited for; none before the first.
    idle: Option<Duration>,
    /// The site that `index` was looked up in.
    known: u64,
    /// The listener among those of that site.
    index: usize,
    header_timeout: Duration,
    pipelined: bool,
    state: Gauge,
}

/// What waiting for a request brought.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A request to be served.
    Request,
    /// None for now: the connection is idle.
    Idle,
    /// The connection is to be closed.
    Gone,
}

/// How long a request is waited for within a session of Pingora's: requests that follow each other closely share one,
/// and a connection that is idle for longer holds none.
const BUSY: Duration = Duration::from_secs(1);

/// Serves the requests of a connection, one after the other.
pub(super) async fn serve(thread: &'static Thread, conn: &Arc<Conn>, addr: &ListenAddr) {
    match h2::protocol(thread, conn, addr).await {
        Protocol::Http1 => {}
        Protocol::Http2 => return h2::serve(thread, conn, addr).await,
        Protocol::Gone => return,
    }
    let digest = Arc::new(digest(conn));
    let mut client = Box::new(Client::new(thread, conn, addr));
    while client.next(conn, None).await == Next::Request {
        *conn.parked.lock() = Some(client);
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
        match conn.parked.lock().take() {
            Some(idle) => client = idle,
            None => return,
        }
    }
}

impl Client {
    fn new(thread: &'static Thread, conn: &Conn, addr: &ListenAddr) -> Client {
        let index = crate::module::Downstream::info(conn)
            .listener
            .load(Ordering::Relaxed);
        let site = thread.site();
        let server = site
            .listeners
            .get(index)
            .and_then(|l| site.servers.get(l.default_server as usize));
        let header_timeout = server.map_or(60_000, |s| s.conf.client_header_timeout);
        Client {
            thread,
            addr: addr.clone(),
            request: None,
            idle: None,
            known: 0,
            index,
            header_timeout: Duration::from_millis(header_timeout),
            pipelined: false,
            state: Gauge::new(Stat::Waiting),
        }
    }

    /// Serves the request, and those that follow it closely.
    pub(super) async fn serve(&mut self, conn: &Arc<Conn>) -> Next {
        while let Some(mut r) = self.request.take() {
            phases::serve(&mut r).await;
            if !self.settle(conn, r).await {
                return Next::Gone;
            }
            match self.next(conn, Some(BUSY)).await {
                Next::Request => {}
                next => return next,
            }
        }
        Next::Idle
    }

    /// Waits for the next request, no longer than `most`, and reads its head.
    async fn next(&mut self, conn: &Arc<Conn>, most: Option<Duration>) -> Next {
        // no site is held while nothing is asked for, so that a reload frees the old one
        match self.wait(conn, most).await {
            Waited::Readable => {}
            Waited::Idle => return Next::Idle,
            Waited::TimedOut | Waited::Drained => return Next::Gone,
        }
        let thread = self.thread;
        let site = thread.site();
        if site.serial != self.known {
            // a reload may have moved or removed the address
            let Some(found) = site.listeners.iter().position(|l| l.addr == self.addr) else {
                return Next::Gone;
            };
            crate::module::Downstream::info(&**conn)
                .listener
                .store(found, Ordering::Relaxed);
            (self.known, self.index) = (site.serial, found);
        }
        let listener = site.listeners.get(self.index);
        let default_server = listener.map_or(0, |l| l.default_server);
        let Some(server) = site.servers.get(default_server as usize) else {
            return Next::Gone;
        };
        self.header_timeout = Duration::from_millis(server.conf.client_header_timeout);
        let limits = Limits {
            header_buffer: server.conf.client_header_buffer_size,
            large: server.conf.large_client_header_buffers,
            ignore_invalid: server.conf.ignore_invalid_headers,
            underscores: server.conf.underscores_in_headers,
            max_headers: server.conf.max_headers,
            allow_connect: server.conf.allow_connect,
        };
        let default_location = server.default_location;
        let mut r = thread.request(&site, conn.clone());
        r.pipelined = self.pipelined;
        drop(site);
        Stat::Requests.up();
        self.state.set(Stat::Reading);
        r.server = default_server;
        r.location = default_location;
        let head = read_head(conn, &mut r, &limits, self.header_timeout).await;
        match head {
            Head::Whole => {
                self.state.set(Stat::Writing);
                begin(conn, &mut r);
                self.request = Some(r);
                return Next::Request;
            }
            Head::Closed(false) | Head::TimedOut(false) => {}
            Head::Closed(true) => {
                log_only(&mut r, 400, "client prematurely closed connection");
            }
            Head::TimedOut(true) => {
                let reset = r.core().reset_timedout_connection;
                log_only(&mut r, 408, "client timed out (110: Connection timed out)");
                if reset {
                    conn.reset_on_close();
                }
            }
            Head::Refused(e) => {
                Box::pin(refuse(conn, &mut r, &e)).await;
                let lingering = Linger::of(&r);
                thread.recycle(r);
                Box::pin(linger(conn, lingering)).await;
                return Next::Gone;
            }
        }
        thread.recycle(r);
        Next::Gone
    }

    /// Waits for the first byte of a request without holding a buffer for it.
    ///
    /// A connection that has had no request yet is not idle: as in nginx it may bring its first one while the process
    /// drains.
    async fn wait(&mut self, conn: &Conn, most: Option<Duration>) -> Waited {
        let mut readable = pin!(poll_fn(|cx| conn.poll_readable(cx)));
        let now = poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx).is_ready())).await;
        if now {
            return Waited::Readable;
        }
        let whole = self.idle.unwrap_or(self.header_timeout);
        let part = most.map_or(whole, |most| most.min(whole));
        if self.idle.is_some() {
            if self.thread.draining.load(Ordering::Relaxed) {
                // its last response, begun before the drain, said that it may stay
                return match timeout(PARTING, readable).await {
                    Ok(_) => Waited::Readable,
                    Err(_) => Waited::Drained,
                };
            }
            conn.set_idle(true);
        }
        let waited = timeout(part, readable).await;
        conn.set_idle(false);
        match waited {
            Ok(_) => Waited::Readable,
            Err(_) if part < whole => {
                self.idle = Some(whole - part);
                Waited::Idle
            }
            Err(_) => Waited::TimedOut,
        }
    }

    /// Ends a request that has been answered; true if the connection may bring another one.
    async fn settle(&mut self, conn: &Conn, mut r: Box<Request>) -> bool {
        let keepalive = r.keepalive && !r.aborted && !conn.must_close();
        let lingering = Linger::of(&r);
        self.idle = Some(Duration::from_millis(r.core().keepalive_timeout));
        if r.aborted && r.core().reset_timedout_connection && r.timed_out {
            conn.reset_on_close();
        }
        r.keepalive = keepalive;
        self.thread.recycle(r);
        if !conn.body_done() && !Box::pin(discard(conn, &lingering)).await {
            conn.shutdown_write();
            return false;
        }
        if !keepalive {
            Box::pin(linger(conn, lingering)).await;
            return false;
        }
        self.pipelined = conn.has_input();
        if !self.pipelined {
            conn.rest();
        }
        self.state.set(Stat::Waiting);
        true
    }
}

fn digest(conn: &Conn) -> SocketDigest {
    let d = SocketDigest::from_raw_fd(conn.fd());
    let info = crate::module::Downstream::info(conn);
    let _ = d.peer_addr.set(info.remote.addr.map(L4Addr::Inet));
    let _ = d.local_addr.set(info.local.addr.map(L4Addr::Inet));
    d
}

async fn read_head(conn: &Conn, r: &mut Request, limits: &Limits, limit: Duration) -> Head {
    r.start = Instant::now();
    let (sec, msec) = crate::http::date::time();
    r.start_msec = sec as u64 * 1000 + u64::from(msec);
    let mut parser = Parser::default();
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
