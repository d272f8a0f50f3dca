//! The border: reads request heads with one deadline each, and keeps connections alive or lets them go.

use super::conn::Conn;
use super::h2::{self, Protocol};
use super::lingering::{Ending, linger, settle};
use super::opening::Log;
use super::pingora_io::Handle;
use super::thread::{DRAIN_GRACE, Thread};
use crate::contract::{Gauge, ListenAddr, Request, Stat};
use crate::engine::{lookup, phases};
use crate::http::head::{HeadError, Limits, Parser, Progress, RequestHead, Version};
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::http::uri::{BadUri, normalize};
use crate::log::{Errno, Level};
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use std::future::poll_fn;
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
    /// The client went away. With the error, unless it closed.
    Closed(Errno),
    /// The deadline passed.
    TimedOut,
}

/// A head that has come in part. Nothing else is held for it: neither a request nor a session of Pingora's.
struct Partial {
    parser: Parser,
    head: RequestHead,
    limits: Limits,
    merge_slashes: bool,
    start: Instant,
    start_msec: u64,
    /// Its target was looked at, which a client with a bad one need not wait for.
    checked: bool,
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
    /// Counts a request that is read or served.
    state: Option<Gauge>,
    /// A head that is coming in.
    partial: Option<Box<Partial>>,
    /// A request whose head has come.
    ready: Option<Box<Request>>,
}

/// What waiting for a request brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// A request.
    Request,
    /// Nothing for now.
    Idle,
    /// The end of the connection.
    Over,
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
    while client.ready.is_some() || client.next(conn, None).await == Waited::Request {
        if let Some(r) = client.ready.take_if(|r| is_long(conn, r)) {
            if !Box::pin(client.answer(conn, r)).await {
                return;
            }
            continue;
        }
        *conn.handover_slot.lock() = Some(client);
        let served = {
            let handle = Handle { conn: conn.clone() };
            let mut session = ServerSession::new_http1(Box::new(handle));
            session.set_pipelined_prefix(thread.prefix(HANDED_OVER));
            thread.proxy.process_new_http(session, &thread.shutdown)
        };
        let _ = served.await;
        match conn.handover_slot.lock().take() {
            Some(back) => client = back,
            None => return,
        }
    }
}

/// Whether a request may last: one that asks for an upgrade, for hours, and one whose body has not come, as long as the
/// client likes. What Pingora holds for a session is more than those need.
fn is_long(conn: &Conn, r: &Request) -> bool {
    r.head.headers.contains_id(Known::Upgrade) || (r.has_body() && !conn.has_body())
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
            state: None,
            partial: None,
            ready: None,
        }
    }

    /// Serves the request that has come, and those that follow it closely; false at the connection's end.
    pub(super) async fn serve(&mut self, conn: &Arc<Conn>) -> bool {
        while let Some(r) = self.ready.take_if(|r| !is_long(conn, r)) {
            if !self.answer(conn, r).await {
                return false;
            }
            if !self.busy {
                return true;
            }
            match self.next(conn, Some(BUSY)).await {
                Waited::Request => {}
                Waited::Idle => return true,
                Waited::Over => return false,
            }
        }
        true
    }

    /// Waits for a request, no longer than `most`, and reads its head; one that does not come at once is not read with
    /// `most`: it may take as long as it likes.
    async fn next(&mut self, conn: &Arc<Conn>, most: Option<Duration>) -> Waited {
        if self.partial.is_none() {
            let waited = self.wait(conn, most).await;
            if waited != Waited::Request {
                return waited;
            }
            if let Some(waited) = poll_fn(|cx| Poll::Ready(self.begin_head(conn, cx))).await {
                return waited;
            }
        }
        if most.is_some() {
            return Waited::Idle;
        }
        Box::pin(self.rest_of_head(conn)).await
    }

    /// Reads a head of which something has come; `None` where that is not all of it.
    fn begin_head(&mut self, conn: &Arc<Conn>, cx: &mut Context<'_>) -> Option<Waited> {
        let Some((mut r, limits)) = self.place.request(self.thread, conn, &self.addr) else {
            return Some(Waited::Over);
        };
        Stat::Requests.up();
        self.state = Some(Gauge::new(Stat::Reading));
        r.pipelined = self.pipelined;
        r.start = Instant::now();
        let (sec, msec) = crate::http::date::time();
        r.start_msec = sec as u64 * 1000 + u64::from(msec);
        let mut parser = Parser::default();
        let mut dropped = Vec::new();
        let head = parse_head(conn, &mut parser, &mut r.head, &limits, &mut dropped, cx);
        if matches!(head, Poll::Ready(Head::Whole)) {
            return Some(self.whole(conn, r, &dropped));
        }
        // what is refused, or has ended, is found so again
        self.partial = Some(Box::new(Partial {
            parser,
            head: std::mem::take(&mut r.head),
            limits,
            merge_slashes: r.server().conf.merge_slashes,
            start: r.start,
            start_msec: r.start_msec,
            checked: false,
        }));
        self.thread.recycle(r);
        None
    }

    /// Waits for the rest of a head.
    async fn rest_of_head(&mut self, conn: &Arc<Conn>) -> Waited {
        let Some(mut partial) = self.partial.take() else {
            return Waited::Over;
        };
        let mut dropped = Vec::new();
        let reading = poll_fn(|cx| partial.poll(conn, &mut dropped, cx));
        let head = match timeout(self.place.header_timeout, reading).await {
            Ok(head) => head,
            Err(_) => Head::TimedOut,
        };
        let Some((mut r, _)) = self.place.request(self.thread, conn, &self.addr) else {
            return Waited::Over;
        };
        r.pipelined = self.pipelined;
        (r.start, r.start_msec) = (partial.start, partial.start_msec);
        r.head = partial.head;
        if matches!(head, Head::Whole) {
            return self.whole(conn, r, &dropped);
        }
        Box::pin(no_request(self.thread, conn, r, head)).await;
        Waited::Over
    }

    /// A request's head is whole.
    fn whole(&mut self, conn: &Conn, mut r: Box<Request>, dropped: &[String]) -> Waited {
        for line in dropped {
            r.error(
                Level::Info,
                format_args!(
                    "client sent invalid header line: \"{line}\" while reading client request headers"
                ),
            );
        }
        begin(conn, &mut r);
        if let Some(state) = &mut self.state {
            state.set(Stat::Writing);
        }
        self.ready = Some(r);
        Waited::Request
    }

    /// Logs that the client closed the connection instead of sending a request.
    #[cold]
    fn gone(&self, conn: &Conn, errno: Errno) {
        let (site, info) = (self.thread.site(), crate::contract::Downstream::info(conn));
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

    /// What has come: a request, unless that is the end, or the connection gives way to another one.
    fn come(&self, conn: &Conn) -> Waited {
        if conn.is_retired() {
            return Waited::Over;
        }
        if conn.has_input() {
            return Waited::Request;
        }
        self.gone(conn, Errno(crate::contract::Downstream::errno(conn)));
        Waited::Over
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
            let ending = Ending::of(&r);
            self.thread.recycle(r);
            if !Box::pin(settle(conn, ending, keepalive)).await {
                return false;
            }
        } else {
            self.thread.recycle(r);
        }
        self.pipelined = conn.has_input();
        if !self.pipelined {
            conn.rest();
        }
        self.state = None;
        self.fresh = false;
        true
    }

    /// Waits for the first byte of a request without holding a buffer for it, no longer than `most`.
    async fn wait(&mut self, conn: &Conn, most: Option<Duration>) -> Waited {
        let now = poll_fn(|cx| Poll::Ready(conn.poll_readable(cx).is_ready())).await;
        if now {
            self.busy = !self.fresh;
            if self.fresh {
                conn.begun();
            }
            return self.come(conn);
        }
        let begun = Instant::now();
        let mut most = most.unwrap_or(Duration::MAX);
        loop {
            // a connection that has had no request yet may bring its first one while the process drains, as in nginx
            let kept = self.fresh || !self.least.is_zero();
            let parting = !kept && self.thread.draining.load(Ordering::Relaxed);
            conn.set_idle(!kept && !parting);
            let _reusable = match self.least.is_zero() {
                true => conn.reusable(),
                false => None,
            };
            let whole = match () {
                () if !self.least.is_zero() => self.least.min(self.limit),
                // its last response, begun before the drain, said that it may stay
                () if parting => DRAIN_GRACE.min(self.limit),
                () => self.limit,
            };
            let part = most.min(whole);
            let waited = timeout(part, poll_fn(|cx| conn.poll_readable(cx))).await;
            conn.set_idle(false);
            if waited.is_ok() {
                self.busy = !self.fresh && begun.elapsed() < BUSY;
                return self.come(conn);
            }
            self.limit = self.limit.saturating_sub(part);
            self.least = self.least.saturating_sub(part);
            most = most.saturating_sub(part);
            if self.limit.is_zero() || (parting && part == whole) {
                self.late(conn);
                return Waited::Over;
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
    let (site, info) = (thread.site(), crate::contract::Downstream::info(conn));
    let index = info.listener.load(Ordering::Relaxed);
    Log::new(&site, index, info, WAITING).write(
        Level::Info,
        format_args!("client timed out (110: Connection timed out)"),
    );
}

impl Partial {
    /// Reads on; holds no more memory than what has come needs.
    fn poll(&mut self, conn: &Conn, dropped: &mut Vec<String>, cx: &mut Context<'_>) -> Poll<Head> {
        let Partial {
            parser,
            head,
            limits,
            ..
        } = self;
        let polled = parse_head(conn, parser, head, limits, dropped, cx);
        if polled.is_pending() {
            conn.shrink();
            if head.header_in_bytes > 0 && !std::mem::replace(&mut self.checked, true) {
                let bad = head.complex
                    && !head.empty_path
                    && normalize(head.text(&head.uri), self.merge_slashes, &mut Vec::new())
                        .is_err();
                if bad {
                    return Poll::Ready(Head::Refused(Box::new(HeadError {
                        status: 400,
                        reason: "client sent invalid request",
                        detail: None,
                        line_known: true,
                    })));
                }
            }
        }
        polled
    }
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
        let index = crate::contract::Downstream::info(conn)
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
            crate::contract::Downstream::info(&**conn)
                .listener
                .store(found, Ordering::Relaxed);
            (self.site, self.index) = (site.serial, found);
        }
        let listener = site.listeners.get(self.index)?;
        let first = lookup::of_connection(listener, crate::contract::Downstream::info(&**conn));
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
        r.server = first;
        r.location = server.default_location;
        Some((r, limits))
    }
}

/// Ends a connection on which no whole head has come.
async fn no_request(thread: &'static Thread, conn: &Conn, mut r: Box<Request>, head: Head) {
    match head {
        Head::Whole => thread.recycle(r),
        Head::Closed(errno) => {
            let why = match errno {
                Errno(0) => "client prematurely closed connection".into(),
                errno => format!("recv() failed{errno}"),
            };
            log_only(conn, &mut r, 400, &why);
            thread.recycle(r);
        }
        Head::TimedOut => {
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
            let ending = Ending::of_refused(&r, e.status);
            thread.recycle(r);
            linger(conn, ending).await;
        }
    }
}

/// Parses what has come of a head, and reads more. Fields that are left out are for the log.
fn parse_head(
    conn: &Conn,
    parser: &mut Parser,
    head: &mut RequestHead,
    limits: &Limits,
    dropped: &mut Vec<String>,
    cx: &mut Context<'_>,
) -> Poll<Head> {
    loop {
        let progress = conn.with_read(|buf| {
            let progress = parser.parse(buf, limits, head);
            let used = match progress {
                Progress::Done { consumed } | Progress::Blank { consumed } => consumed,
                _ => 0,
            };
            if matches!(progress, Progress::Done { .. }) && !head.ignored.is_empty() {
                let text = |x: &std::ops::Range<usize>| {
                    crate::http::text::shown(buf.get(x.clone()).unwrap_or_default()).into_owned()
                };
                *dropped = head.ignored.iter().map(text).collect();
            }
            (used, progress)
        });
        match progress {
            Progress::Done { .. } => return Poll::Ready(Head::Whole),
            Progress::Bad(e) => return Poll::Ready(Head::Refused(Box::new(e))),
            Progress::Blank { .. } | Progress::Need => {}
        }
        let errno = match ready!(conn.poll_fill(cx)) {
            Ok(1..) => continue,
            Ok(0) => Errno(crate::contract::Downstream::errno(conn)),
            Err(e) => Errno::of(&e),
        };
        return Poll::Ready(Head::Closed(errno));
    }
}

/// What is settled by the head alone.
fn begin(conn: &Conn, r: &mut Request) {
    let info = crate::contract::Downstream::info(conn);
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
    crate::contract::Downstream::info(conn)
        .requests
        .fetch_add(1, Ordering::Relaxed);
    conn.begin(&RequestHead::default(), 0);
    let mut status = e.status;
    r.method = r.head.method;
    // nginx looks at the target before it reads a field
    let target = match e.line_known {
        true => line_known(r),
        false => Ok(()),
    };
    match target {
        Ok(()) => {
            let what = what(r, !e.is_of_line());
            r.error(Level::Info, format_args!("{e} while reading client {what}"));
        }
        Err(why) => status = phases::bad_target(r, why),
    }
    if r.head.version == Version::V09 {
        // what answers it is a body alone, whatever the method
        r.method = Default::default();
    }
    r.out.http11 = true;
    phases::refuse(r, status).await;
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
        // a target that is no URI is in the log as it came
        let _ = line_known(r);
    } else {
        r.head.line.clear();
    }
    r.out.status = status;
    phases::log(r);
}

/// Takes method and URI from the request line of a head that is never whole.
fn line_known(r: &mut Request) -> Result<(), BadUri> {
    r.method = r.head.method;
    let merge = r.server().conf.merge_slashes;
    crate::engine::target::apply(r, merge)
}
