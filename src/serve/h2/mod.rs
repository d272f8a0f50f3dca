//! HTTP/2 towards clients (RFC 9113): one task for the frames of a connection, one for each request.

mod io;
mod response;
mod stream;

use super::conn::Conn;
use super::thread::Thread;
use crate::engine::{lookup, phases};
use crate::http::head::{HeadError, Limits, RequestV2};
use crate::log::Level;
use crate::module::{
    Downstream, Gauge, Http2Conf, ListenAddr, Request, Server, ServerConf, Site, Stat,
};
use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};
use stream::Stream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// What a client speaks.
pub(super) enum Protocol {
    /// HTTP/1, or nothing that can be told from it.
    Http1,
    /// HTTP/2.
    Http2,
    /// It said nothing in time.
    Gone,
}

/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Response bytes of one stream that wait for the socket.
const SEND_BUFFER: usize = 64 * 1024;
/// The window of a connection: request bodies that nobody reads take no more memory than this.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// The window of each stream, once a body has turned out to be larger than `http2_body_preread_size`.
const STREAM_WINDOW: u32 = 1 << 20;
/// Memory that small DATA frames may take beyond what they carry, bytes a connection.
const FRAME_BUDGET: usize = 1 << 20;

/// Finds out what a client speaks: by ALPN with TLS, else by its first bytes, as soon as they differ.
pub(super) async fn protocol(thread: &'static Thread, conn: &Conn, addr: &ListenAddr) -> Protocol {
    if let Some(tls) = conn.info().tls.get() {
        return if tls.alpn.as_deref() == Some(b"h2") {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
    }
    let header_timeout = {
        let site = thread.site();
        let Some((_, l, server)) = listener(&site, addr) else {
            return Protocol::Http1;
        };
        // without a handshake on a TLS port it is a mistake, which HTTP/1 answers
        if l.tls.is_some() || (!l.http2 && !server.conf.http2.enable) {
            return Protocol::Http1;
        }
        Duration::from_millis(server.conf.client_header_timeout)
    };
    let mut deadline = std::pin::pin!(sleep(header_timeout));
    loop {
        match conn.with_read(|buf| (0, sniff(buf))) {
            Some(true) => return Protocol::Http2,
            Some(false) => return Protocol::Http1,
            None => {}
        }
        // no buffer is held while nothing has come
        let more = poll_fn(|cx| {
            if !conn.has_input() {
                ready!(conn.poll_readable(cx))?;
                if conn.has_input() {
                    return Poll::Ready(Ok(1));
                }
            }
            conn.poll_fill(cx)
        });
        tokio::select! {
            biased;
            n = more => if !matches!(n, Ok(n) if n > 0) {
                // the end of the connection is the other side's to log
                return Protocol::Http1;
            },
            () = &mut deadline => return if conn.has_input() { Protocol::Http1 } else { Protocol::Gone },
        }
    }
}

/// Whether these first bytes are HTTP/2's; `None` while they may become either.
fn sniff(buf: &[u8]) -> Option<bool> {
    let n = buf.len().min(PREFACE.len());
    if buf.get(..n) != PREFACE.get(..n) {
        return Some(false);
    }
    (n == PREFACE.len()).then_some(true)
}

fn listener<'s>(
    site: &'s Site,
    addr: &ListenAddr,
) -> Option<(usize, &'s crate::module::Listener, &'s Server)> {
    let index = site.listeners.iter().position(|l| l.addr == *addr)?;
    let l = site.listeners.get(index)?;
    Some((index, l, site.servers.get(l.default_server as usize)?))
}

/// Requests of a connection that are being served.
#[derive(Default)]
struct Live {
    count: AtomicUsize,
    changed: Notify,
    /// A body is being read that has used up half of its window.
    large_body: AtomicBool,
}

impl Live {
    /// Asks for larger windows.
    fn grow(&self) {
        if !self.large_body.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }
}

/// Counts a request for as long as it lives, a panic of its task included.
struct Counted(Arc<Live>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// Serves a connection whose client speaks HTTP/2, until it ends.
pub(super) async fn serve(thread: &'static Thread, conn: &Arc<Conn>, addr: &ListenAddr) {
    let live = Arc::new(Live::default());
    if let Some(lingering) = run(thread, conn, addr, &live).await {
        linger(conn, lingering).await;
    }
    // what is still being served belongs to this connection's count
    while live.count.load(Ordering::Relaxed) > 0 {
        live.changed.notified().await;
    }
}

/// How long to read on after the last frame, so that no reset destroys what the client has not read yet.
struct Lingering {
    time: Duration,
    each: Duration,
}

async fn run(
    thread: &'static Thread,
    conn: &Arc<Conn>,
    addr: &ListenAddr,
    live: &Arc<Live>,
) -> Option<Lingering> {
    let site = thread.site();
    let (_, _, server) = listener(&site, addr)?;
    let header_timeout = Duration::from_millis(server.conf.client_header_timeout);
    let handshake = builder(&server.conf).handshake::<_, Bytes>(io::Io(conn.clone()));
    let core = site
        .locations
        .get(server.default_location as usize)?
        .core
        .clone();
    let lingering = Lingering {
        time: Duration::from_millis(core.lingering_time),
        each: Duration::from_millis(core.lingering_timeout),
    };
    let send_timeout = Duration::from_millis(core.send_timeout);
    let preread_size = server.conf.http2.preread_size;
    // requests that go on after their stream was reset count too
    let most = (server.conf.http2.max_concurrent_streams as usize).saturating_mul(2);
    drop(site);
    let Ok(Ok(mut frames)) = timeout(header_timeout, handshake).await else {
        return Some(lingering);
    };

    let mut draining = thread.shared.draining.subscribe();
    let mut idle = header_timeout;
    let mut going = false;
    let mut refused = 0;
    let mut grown = preread_size >= STREAM_WINDOW;
    loop {
        let busy = live.count.load(Ordering::Relaxed) > 0;
        let queued = frames.has_streams();
        let _waiting = (!busy && !queued).then(|| Gauge::new(Stat::Waiting));
        // what is queued has the time of a write, an idle connection that of keepalive
        let limit = if queued { send_timeout } else { idle };
        if !going && *draining.borrow_and_update() {
            frames.graceful_shutdown();
            going = true;
        }
        if going && !busy && !queued {
            close(&mut frames, Reason::NO_ERROR, &lingering).await;
            return Some(lingering);
        }
        tokio::select! {
            biased;
            accepted = next(&mut frames, queued, live, &mut grown) => match accepted {
                None => {}
                Some(Some(Ok((_, mut respond)))) if live.count.load(Ordering::Relaxed) >= most => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    refused += 1;
                    if refused > most.max(100) {
                        close(&mut frames, Reason::NO_ERROR, &lingering).await;
                        return Some(lingering);
                    }
                }
                Some(Some(Ok((request, respond)))) => {
                    let (request, body) = take_body(request);
                    match open(thread, conn, addr, live, &request, respond, body) {
                        Opened::Yes => {}
                        Opened::Last if going => {}
                        Opened::Last => {
                            frames.graceful_shutdown();
                            going = true;
                        }
                        Opened::Refused(reason) => {
                            close(&mut frames, reason, &lingering).await;
                            return Some(lingering);
                        }
                    }
                    idle = Duration::from_millis(core.keepalive_timeout);
                }
                Some(Some(Err(e))) => {
                    let site = thread.site();
                    site.error_log.write(Level::Info, Some(conn.info().serial), format_args!(
                        "{e} while processing HTTP/2 connection, client: {}", String::from_utf8_lossy(conn.info().remote.text.as_bytes())));
                    return Some(lingering);
                }
                Some(None) => return None,
            },
            () = live.changed.notified(), if busy => {}
            Ok(()) = draining.changed(), if !going => {}
            () = sleep(limit), if !busy => {
                close(&mut frames, Reason::NO_ERROR, &lingering).await;
                return Some(lingering);
            }
        }
    }
}

/// A stream that the client opened; `None` at the end of the connection.
type Accepted = Option<Result<(http::Request<RecvStream>, SendResponse<Bytes>), h2::Error>>;

/// Moves frames until a stream is opened; `None` where the last frame of the last stream has left.
async fn next(
    frames: &mut Connection<io::Io, Bytes>,
    queued: bool,
    live: &Live,
    grown: &mut bool,
) -> Option<Accepted> {
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(stream) = frames.poll_accept(cx) {
                return Poll::Ready(Some(stream));
            }
            if queued && !frames.has_streams() {
                return Poll::Ready(None);
            }
            // refused while the client has not acknowledged the first settings: tried again with every frame
            let wanted = !*grown && live.large_body.load(Ordering::Relaxed);
            if !wanted || frames.set_initial_window_size(STREAM_WINDOW).is_err() {
                return Poll::Pending;
            }
            *grown = true;
        }
    })
    .await
}

fn take_body<B>(request: http::Request<B>) -> (http::Request<()>, B) {
    let (parts, body) = request.into_parts();
    (http::Request::from_parts(parts, ()), body)
}

fn builder(conf: &ServerConf) -> Builder {
    let Http2Conf {
        max_concurrent_streams,
        preread_size,
        ..
    } = conf.http2;
    let (number, size) = conf.large_client_header_buffers;
    // each field counts 32 bytes more than it has (RFC 9113, section 6.5.2)
    let header = number
        .saturating_mul(size)
        .saturating_add(32 * conf.max_headers.min(1000));
    let mut b = Builder::new();
    b.max_concurrent_streams(max_concurrent_streams)
        .initial_window_size(preread_size)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(header.min(u32::MAX as usize) as u32)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(FRAME_BUDGET);
    b
}

/// Sends GOAWAY and what is left, for as long as the client takes it.
async fn close(frames: &mut Connection<io::Io, Bytes>, reason: Reason, l: &Lingering) {
    frames.abrupt_shutdown(reason);
    let _ = timeout(l.each, async {
        while let Some(Ok(_)) = frames.accept().await {}
    })
    .await;
}

/// Reads and forgets, until the client closes too.
async fn linger(conn: &Conn, l: Lingering) {
    conn.shutdown_write();
    let end = Instant::now() + l.time;
    while Instant::now() < end {
        match timeout(l.each, poll_fn(|cx| conn.poll_drain(cx))).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
    }
}

/// What became of a new stream.
enum Opened {
    /// It is served.
    Yes,
    /// It is served, and is the last one of its connection.
    Last,
    /// The connection ends.
    Refused(Reason),
}

/// Reads a request's head and gives it a task of its own.
fn open(
    thread: &'static Thread,
    conn: &Arc<Conn>,
    addr: &ListenAddr,
    live: &Arc<Live>,
    request: &http::Request<()>,
    respond: SendResponse<Bytes>,
    body: RecvStream,
) -> Opened {
    let site = thread.site();
    // a reload may have moved or removed the address
    let Some((index, l, server)) = listener(&site, addr) else {
        return Opened::Refused(Reason::NO_ERROR);
    };
    let info = conn.info();
    info.listener.store(index, Ordering::Relaxed);
    let requests = info.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let ended = body.is_end_stream();
    let down = Arc::new(Stream::new(
        conn.clone(),
        respond,
        body,
        server.conf.http2,
        live.clone(),
    ));
    let mut r = thread.request(&site, down.clone());
    r.server = l.default_server;
    r.location = server.default_location;
    r.start = Instant::now();
    let (sec, msec) = crate::http::date::time();
    r.start_msec = sec as u64 * 1000 + u64::from(msec);
    if let Err(reason) = fits(request, &server.conf) {
        r.error(
            Level::Info,
            format_args!("{reason} while reading client request headers"),
        );
        thread.recycle(r);
        return Opened::Refused(Reason::ENHANCE_YOUR_CALM);
    }
    let head = read_head(&mut r, request, ended, &server.conf);
    let core = r.core();
    let last = core.keepalive_timeout == 0
        || requests >= core.keepalive_requests
        || info.start.elapsed().as_millis() as u64 > core.keepalive_time;
    live.count.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(live.clone());
    Stat::Requests.up();
    let writing = Gauge::new(Stat::Writing);
    tokio::spawn(async move {
        answer(&mut r, head).await;
        down.end();
        thread.recycle(r);
        drop((down, writing, counted));
    });
    if last { Opened::Last } else { Opened::Yes }
}

/// `large_client_header_buffers`: the size of one is for a field, the size of all for the head.
fn fits(request: &http::Request<()>, conf: &ServerConf) -> Result<(), &'static str> {
    let (number, size) = conf.large_client_header_buffers;
    let mut left = number.saturating_mul(size);
    let path = request
        .uri()
        .path_and_query()
        .map_or(0, |p| p.as_str().len());
    let fields = request
        .headers()
        .iter()
        .map(|(n, v)| (n.as_str().len(), v.len()));
    for (name, value) in fields.chain([(0, path)]) {
        if name > size || value > size {
            return Err("client sent too large header field");
        }
        left = left
            .checked_sub(name + value)
            .ok_or("client sent too large header")?;
    }
    Ok(())
}

fn read_head(
    r: &mut Request,
    request: &http::Request<()>,
    ended: bool,
    conf: &ServerConf,
) -> Result<(), HeadError> {
    let limits = Limits {
        header_buffer: conf.client_header_buffer_size,
        large: conf.large_client_header_buffers,
        ignore_invalid: conf.ignore_invalid_headers,
        underscores: conf.underscores_in_headers,
        max_headers: conf.max_headers,
        allow_connect: false,
    };
    let uri = request.uri();
    let v2 = RequestV2 {
        method: request.method().as_str().as_bytes(),
        path: uri.path_and_query().map_or(b"", |p| p.as_str().as_bytes()),
        authority: uri.authority().map(|a| a.as_str().as_bytes()),
        ended,
    };
    let fields = request
        .headers()
        .iter()
        .map(|(n, v)| (n.as_str().as_bytes(), v.as_bytes()));
    let mut dropped = Vec::new();
    let result = r
        .head
        .take_v2(&v2, fields, &limits, |name| dropped.push(name.to_vec()));
    for name in dropped {
        r.error(
            Level::Info,
            format_args!(
                "client sent invalid header: \"{}\"",
                String::from_utf8_lossy(&name)
            ),
        );
    }
    r.method = r.head.method;
    r.out.http11 = true;
    r.keepalive = true;
    result
}

async fn answer(r: &mut Request, head: Result<(), HeadError>) {
    let site = r.site.clone();
    let Some(l) = site
        .listeners
        .get(r.conn().listener.load(Ordering::Relaxed))
    else {
        return;
    };
    r.server = lookup::server(l, r);
    let Some(server) = site.servers.get(r.server as usize) else {
        return;
    };
    r.location = server.default_location;
    if let Err(e) = head {
        r.error(
            Level::Info,
            format_args!("{e} while reading client request headers"),
        );
        return phases::refuse(r, e.status).await;
    }
    if !server.conf.http2.enable && !l.http2 {
        let why = "client attempted to request the server name for which the negotiated protocol is disabled";
        r.error(
            Level::Info,
            format_args!("{why} while processing HTTP/2 connection"),
        );
        return phases::refuse(r, 421).await;
    }
    phases::serve(r).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_that_differ_decide() {
        assert_eq!(sniff(b""), None);
        assert_eq!(sniff(b"P"), None);
        assert_eq!(sniff(b"PUT / HTTP/1.1\r\n"), Some(false));
        assert_eq!(sniff(b"G"), Some(false));
        assert_eq!(sniff(&PREFACE[..23]), None);
        assert_eq!(sniff(PREFACE), Some(true));
        assert_eq!(sniff(&[PREFACE, b"x"].concat()), Some(true));
    }

    #[test]
    fn header_limits() {
        let conf = ServerConf {
            large_client_header_buffers: (2, 10),
            ..ServerConf::default()
        };
        let request = |name: &str, n: usize| {
            http::Request::builder()
                .uri("/")
                .header(name, "v".repeat(n))
                .body(())
                .unwrap()
        };
        assert!(fits(&request("a", 10), &conf).is_ok());
        assert_eq!(
            fits(&request("a", 11), &conf),
            Err("client sent too large header field")
        );
        let two = http::Request::builder()
            .uri("/")
            .header("a", "v".repeat(9))
            .header("b", "v".repeat(9))
            .body(())
            .unwrap();
        assert_eq!(fits(&two, &conf), Err("client sent too large header"));
    }
}
