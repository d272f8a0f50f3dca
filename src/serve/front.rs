//! The border: reads request heads with one deadline each, and keeps connections alive or lets them go.

use super::conn::Conn;
use super::h2::{self, Protocol};
use super::opening::Log;
use super::pingora_io::Handle;
use super::thread::{PARTING, Thread};
use crate::engine::{lookup, phases};
use crate::http::head::{HeadError, Limits, Parser, Progress, RequestHead, Version};
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::log::{Errno, Level};
use crate::module::{Gauge, Lingering, ListenAddr, Request, Stat};
use bytes::BytesMut;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// What Pingora reads in place of the head that we have read: framing and headers stay with us.
const HANDED_OVER: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How reading a head ended.
enum Head {
    Whole,
    // boxed: it is rare, and a connection that waits would carry the room for it
    Refused(Box<HeadError>),
    /// The client went away; true if a part of a head had come. With the error, unless it closed.
    Closed(bool, Errno),
    /// The deadline passed; true if a part of a head had come.
    TimedOut(bool),
}

/// A connection's side of what it is served, between its requests; Pingora's session is given it for a while.
///
/// Most connections wait most of the time: what this and the future of [`serve`] hold then is what such a connection
/// costs. So there are boxes around all that is rare.
pub(super) struct Client {
    thread: &'static Thread,
    addr: ListenAddr,
    place: Place,
    /// How long the next request is waited for.
    limit: Duration,
    /// How long it is waited for while the process drains, too (`keepalive_min_timeout`).
    least: Duration,
    /// It has had no request yet.
    fresh: bool,
    /// Its last request followed the one before closely.
    busy: bool,
    pipelined: bool,
    state: Gauge,
    /// A request that is served outside of Pingora's session.
    upgrade: Option<Box<Request>>,
}

/// What waiting for a request brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// A request, or the end of the connection.
    Readable,
    /// Nothing for now.
    Idle,
    /// Nothing in all the time that there was.
    TimedOut,
}

/// How long a request is waited for within a session of Pingora's: requests that follow each other closely share one,
/// and a connection that is idle for longer holds none. Nor does one that has not shown yet that it is busy: most bring
/// one request and wait.
const BUSY: Duration = Duration::from_secs(1);

/// Serves the requests of a connection, one after the other.
pub(super) async fn serve(thread: &'static Thread, conn: &Arc<Conn>, addr: &ListenAddr) {
    let protocol = match h2::known(thread, conn, addr) {
        Ok(known) => known,
        Err(limit) => Box::pin(h2::sniffed(conn, limit)).await,
    };
    match protocol {
        Protocol::Http1 => {}
        Protocol::Http2 => {
            if let Some(served) = h2::serve(thread, conn, addr) {
                served.await;
            }
            return;
        }
        Protocol::Gone => return late(thread, conn),
    }
    let mut client = Box::new(Client::new(thread, conn, addr));
    // no site is held while nothing is asked for, so that a reload frees the old one
    while client.wait(conn, None).await == Waited::Readable {
        *conn.parked.lock() = Some(client);
        let served = {
            let handle = Handle { conn: conn.clone() };
            let mut session = ServerSession::new_http1(Box::new(handle));
            session.set_pipelined_prefix(thread.prefix(HANDED_OVER));
            thread.proxy.process_new_http(session, &thread.shutdown)
        };
        let _ = served.await;
        match conn.parked.lock().take() {
            Some(back) => client = back,
            None => return,
        }
        if let Some(r) = client.upgrade.take()
            && !Box::pin(client.answer(conn, r)).await
        {
            return;
        }
    }
}

impl Client {
    fn new(thread: &'static Thread, conn: &Conn, addr: &ListenAddr) -> Client {
        let place = Place::new(thread, conn);
        Client {
            thread,
            addr: addr.clone(),
            limit: place.header_timeout,
            least: Duration::ZERO,
            place,
            fresh: true,
            busy: false,
            pipelined: false,
            state: Gauge::new(Stat::Waiting),
            upgrade: None,
        }
    }

    /// Serves the request that is coming in, and those that follow it closely; false at the connection's end.
    pub(super) async fn serve(&mut self, conn: &Arc<Conn>) -> bool {
        loop {
            let Some((mut r, limits)) = self.place.request(self.thread, conn, &self.addr) else {
                return false;
            };
            r.pipelined = self.pipelined;
            self.state.set(Stat::Reading);
            match read_head(conn, &mut r, limits, self.place.header_timeout).await {
                Head::Whole => self.state.set(Stat::Writing),
                Head::Closed(false, errno) => {
                    self.thread.recycle(r);
                    self.gone(conn, errno);
                    return false;
                }
                Head::TimedOut(false) => {
                    self.thread.recycle(r);
                    self.late(conn);
                    return false;
                }
                head => {
                    Box::pin(no_request(self.thread, conn, r, head)).await;
                    return false;
                }
            }
            begin(conn, &mut r);
            if r.head.headers.contains_id(Known::Upgrade) {
                // it may last for hours: what Pingora holds for a session is more than a tunnel needs
                self.upgrade = Some(r);
                return true;
            }
            if !self.answer(conn, r).await {
                return false;
            }
            if !self.busy {
                return true;
            }
            match self.wait(conn, Some(BUSY)).await {
                Waited::Readable => {}
                Waited::Idle => return true,
                Waited::TimedOut => return false,
            }
        }
    }

    /// Logs that the client closed the connection instead of sending a request.
    #[cold]
    fn gone(&self, conn: &Conn, errno: Errno) {
        let (site, info) = (self.thread.site(), crate::module::Downstream::info(conn));
        let log = Log::new(&site, self.place.index, info, WAITING);
        match (self.fresh, errno) {
            (true, Errno(0)) => log.write(Level::Info, format_args!("client closed connection")),
            (true, errno) => log.write(Level::Info, format_args!("recv() failed{errno}")),
            (false, errno) => log.plain(
                Level::Info,
                format_args!(
                    "client {} closed keepalive connection{errno}",
                    crate::http::text::shown(info.remote.text.as_bytes())
                ),
            ),
        }
    }

    /// Logs that the client's first request did not come in time.
    #[cold]
    fn late(&self, conn: &Conn) {
        if self.fresh {
            late(self.thread, conn);
        }
    }

    /// Answers a request; whether the connection may bring another one.
    async fn answer(&mut self, conn: &Arc<Conn>, mut r: Box<Request>) -> bool {
        phases::serve(&mut r).await;
        let keepalive = r.keepalive && !r.aborted && !conn.must_close();
        self.limit = Duration::from_millis(r.core().keepalive_timeout);
        self.least = Duration::from_millis(r.core().keepalive_min_timeout);
        if r.aborted && r.core().reset_timedout_connection && r.timed_out {
            conn.reset_on_close();
        }
        r.keepalive = keepalive;
        if !keepalive || !conn.body_done() {
            let lingering = Linger::of(&r);
            self.thread.recycle(r);
            if !Box::pin(settle(conn, lingering, keepalive)).await {
                return false;
            }
        } else {
            self.thread.recycle(r);
        }
        self.pipelined = conn.has_input();
        if !self.pipelined {
            conn.rest();
        }
        self.state.set(Stat::Waiting);
        self.fresh = false;
        true
    }

    /// Waits for the first byte of a request without holding a buffer for it, no longer than `most`.
    async fn wait(&mut self, conn: &Conn, most: Option<Duration>) -> Waited {
        let now = poll_fn(|cx| Poll::Ready(conn.poll_readable(cx).is_ready())).await;
        if now {
            self.busy = !self.fresh;
            return Waited::Readable;
        }
        let begun = Instant::now();
        let mut most = most.unwrap_or(Duration::MAX);
        loop {
            // a connection that has had no request yet may bring its first one while the process drains, as in nginx
            let kept = self.fresh || !self.least.is_zero();
            let parting = !kept && self.thread.draining.load(Ordering::Relaxed);
            conn.set_idle(!kept && !parting);
            let whole = match () {
                () if !self.least.is_zero() => self.least.min(self.limit),
                // its last response, begun before the drain, said that it may stay
                () if parting => PARTING.min(self.limit),
                () => self.limit,
            };
            let part = most.min(whole);
            let waited = timeout(part, poll_fn(|cx| conn.poll_readable(cx))).await;
            conn.set_idle(false);
            if waited.is_ok() {
                self.busy = !self.fresh && begun.elapsed() < BUSY;
                return Waited::Readable;
            }
            self.limit = self.limit.saturating_sub(part);
            self.least = self.least.saturating_sub(part);
            most = most.saturating_sub(part);
            if self.limit.is_zero() || (parting && part == whole) {
                self.late(conn);
                return Waited::TimedOut;
            }
            if most.is_zero() {
                return Waited::Idle;
            }
        }
    }
}

/// What a connection does that has had no request.
const WAITING: &str = "waiting for request";

/// Logs that a client's first request did not come in time.
fn late(thread: &'static Thread, conn: &Conn) {
    let (site, info) = (thread.site(), crate::module::Downstream::info(conn));
    let index = info.listener.load(Ordering::Relaxed);
    Log::new(&site, index, info, WAITING).write(
        Level::Info,
        format_args!("client timed out (110: Connection timed out)"),
    );
}

/// Where in the site a connection's address stands.
struct Place {
    /// The site in which it was looked up; 0 is none.
    site: u64,
    index: usize,
    /// `client_header_timeout` of its default server.
    header_timeout: Duration,
}

impl Place {
    fn new(thread: &'static Thread, conn: &Conn) -> Place {
        let site = thread.site();
        let index = crate::module::Downstream::info(conn)
            .listener
            .load(Ordering::Relaxed);
        let server = site
            .listeners
            .get(index)
            .and_then(|l| site.servers.get(l.default_server as usize));
        let timeout = server.map_or(60_000, |s| s.conf.client_header_timeout);
        Place {
            site: 0,
            index,
            header_timeout: Duration::from_millis(timeout),
        }
    }

    /// A request of the site in force, and what its head may be; `None` where the address is no longer configured.
    fn request(
        &mut self,
        thread: &'static Thread,
        conn: &Arc<Conn>,
        addr: &ListenAddr,
    ) -> Option<(Box<Request>, Limits)> {
        let site = thread.site();
        if site.serial != self.site {
            // a reload may have moved or removed the address
            let found = site.listeners.iter().position(|l| l.addr == *addr)?;
            crate::module::Downstream::info(&**conn)
                .listener
                .store(found, Ordering::Relaxed);
            (self.site, self.index) = (site.serial, found);
        }
        let listener = site.listeners.get(self.index)?;
        let first = lookup::of_connection(listener, crate::module::Downstream::info(&**conn));
        let server = site.servers.get(first as usize)?;
        self.header_timeout = Duration::from_millis(server.conf.client_header_timeout);
        let limits = Limits {
            header_buffer: server.conf.client_header_buffer_size,
            large: server.conf.large_client_header_buffers,
            ignore_invalid: server.conf.ignore_invalid_headers,
            underscores: server.conf.underscores_in_headers,
            max_headers: server.conf.max_headers,
            // the server that decides is known once there is a host
            allow_connect: true,
            strict: server.conf.strict,
        };
        let mut r = thread.request(&site, conn.clone());
        Stat::Requests.up();
        r.server = first;
        r.location = server.default_location;
        Some((r, limits))
    }
}

/// Ends a connection on which no whole head has come.
async fn no_request(thread: &'static Thread, conn: &Conn, mut r: Box<Request>, head: Head) {
    match head {
        Head::Whole | Head::Closed(false, _) | Head::TimedOut(false) => thread.recycle(r),
        Head::Closed(true, errno) => {
            let why = match errno {
                Errno(0) => "client prematurely closed connection".into(),
                errno => format!("recv() failed{errno}"),
            };
            log_only(conn, &mut r, 400, &why);
            thread.recycle(r);
        }
        Head::TimedOut(true) => {
            let reset = r.core().reset_timedout_connection;
            let why = "client timed out (110: Connection timed out)";
            log_only(conn, &mut r, 408, why);
            thread.recycle(r);
            if reset {
                conn.reset_on_close();
            }
        }
        Head::Refused(e) => {
            refuse(conn, &mut r, &e).await;
            let lingering = Linger::of(&r);
            thread.recycle(r);
            linger(conn, lingering).await;
        }
    }
}

/// Ends a request whose body was not read, or with which the connection ends; whether another one may follow.
async fn settle(conn: &Conn, lingering: Linger, keepalive: bool) -> bool {
    if !conn.body_done() && !discard(conn, &lingering).await {
        conn.shutdown_write();
        return false;
    }
    if !keepalive {
        linger(conn, lingering).await;
    }
    keepalive
}

/// Reads a head. Most are there at once: only those that are not pay for a timer, and for the room to wait in.
fn read_head<'a>(
    conn: &'a Conn,
    r: &'a mut Request,
    limits: Limits,
    limit: Duration,
) -> impl Future<Output = Head> + 'a {
    r.start = Instant::now();
    let (sec, msec) = crate::http::date::time();
    r.start_msec = sec as u64 * 1000 + u64::from(msec);
    let mut request = Some(r);
    let mut rest: Option<Pin<Box<dyn Future<Output = Head> + Send + 'a>>> = None;
    poll_fn(move |cx| {
        if let Some(r) = request.take() {
            let mut parser = Parser::default();
            let head = parse_head(conn, &mut parser, r, &limits, cx);
            if head.is_ready() {
                return head;
            }
            rest = Some(Box::pin(rest_of_head(conn, parser, r, limits, limit)));
        }
        match &mut rest {
            Some(rest) => rest.as_mut().poll(cx),
            None => Poll::Pending,
        }
    })
}

async fn rest_of_head(
    conn: &Conn,
    mut parser: Parser,
    r: &mut Request,
    limits: Limits,
    limit: Duration,
) -> Head {
    let reading = poll_fn(|cx| parse_head(conn, &mut parser, r, &limits, cx));
    match timeout(limit, reading).await {
        Ok(head) => head,
        Err(_) => Head::TimedOut(conn.has_input()),
    }
}

/// Parses what has come of a head, and reads more.
fn parse_head(
    conn: &Conn,
    parser: &mut Parser,
    r: &mut Request,
    limits: &Limits,
    cx: &mut Context<'_>,
) -> Poll<Head> {
    loop {
        let ignored = r.log_enabled(Level::Info);
        let mut dropped = Vec::new();
        let progress = conn.with_read(|buf| {
            let progress = parser.parse(buf, limits, &mut r.head);
            let used = match progress {
                Progress::Done { consumed } | Progress::Blank { consumed } => consumed,
                _ => 0,
            };
            if ignored && matches!(progress, Progress::Done { .. }) && !r.head.ignored.is_empty() {
                let text = |x: &std::ops::Range<usize>| {
                    crate::http::text::shown(buf.get(x.clone()).unwrap_or_default()).into_owned()
                };
                dropped = r.head.ignored.iter().map(text).collect();
            }
            (used, progress)
        });
        for line in dropped {
            r.error(
                Level::Info,
                format_args!(
                    "client sent invalid header line: \"{line}\" while reading client request headers"
                ),
            );
        }
        match progress {
            Progress::Done { .. } => return Poll::Ready(Head::Whole),
            Progress::Bad(e) => return Poll::Ready(Head::Refused(Box::new(e))),
            Progress::Blank { .. } | Progress::Need => {}
        }
        let errno = match ready!(conn.poll_fill(cx)) {
            Ok(1..) => continue,
            Ok(0) => Errno(crate::module::Downstream::errno(conn)),
            Err(e) => Errno::of(&e),
        };
        return Poll::Ready(Head::Closed(conn.has_input(), errno));
    }
}

/// What is settled by the head alone.
fn begin(conn: &Conn, r: &mut Request) {
    let info = crate::module::Downstream::info(conn);
    info.requests.fetch_add(1, Ordering::Relaxed);
    r.method = r.head.method;
    r.out.http11 = r.head.version == Version::V11;
    r.keepalive = match r.head.version {
        // a connection that was meant for a tunnel is not used for anything else
        _ if r.method == Method::Connect => false,
        Version::V11 => !r.head.connection.close,
        Version::V10 => r.head.connection.keep_alive,
        Version::V09 => false,
    };
    conn.begin(&r.head, 8192);
}

/// Answers a head that is refused, and logs why.
async fn refuse(conn: &Conn, r: &mut Request, e: &HeadError) {
    crate::module::Downstream::info(conn)
        .requests
        .fetch_add(1, Ordering::Relaxed);
    conn.begin(&RequestHead::default(), 0);
    let what = what(r, !e.is_of_line());
    r.error(Level::Info, format_args!("{e} while reading client {what}"));
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

/// What of a head is being read.
fn what(r: &Request, line_known: bool) -> &'static str {
    match line_known {
        true => "request headers",
        false if r.pipelined => "pipelined request line",
        false => "request line",
    }
}

/// A request that gets no answer is in the access log all the same.
fn log_only(conn: &Conn, r: &mut Request, status: u16, why: &str) {
    let known = !r.head.line.is_empty();
    let what = what(r, known);
    if !known {
        // the error log shows what there is of the line
        let part = conn.with_read(|buf| {
            let begin = buf.iter().position(|c| !matches!(c, b'\r' | b'\n'));
            let rest = buf.get(begin.unwrap_or(buf.len())..).unwrap_or_default();
            let end = rest.iter().position(|c| matches!(c, b'\r' | b'\n'));
            (
                0,
                rest.get(..end.unwrap_or(rest.len()))
                    .unwrap_or_default()
                    .to_vec(),
            )
        });
        r.head.line.extend_from_slice(&part);
    }
    r.error(
        Level::Info,
        format_args!("{why} while reading client {what}"),
    );
    if known {
        line_known(r);
    } else {
        r.head.line.clear();
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
