//! One try at one peer.

use super::codec::{Body, HeadReader, Read};
use super::target::Found;
use super::{body, cache, framing, head, tunnel};
use crate::contract::PassEnd;
use crate::contract::{BodyLength, Codec, Pass, Request, Upstream, next};
use crate::delivery::output;
use crate::log::{Errno, Level};
use crate::runtime::buffers;
use crate::upstream::connect::Tag;
use crate::upstream::{ConnectError, ConnectOptions, Connector, Peer, Picked, UpConn, pool};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

/// A try that brought no response for the client.
pub(super) struct Failure {
    /// Which condition of `proxy_next_upstream` it is.
    pub kind: u32,
    /// The status if no other peer is asked.
    pub status: u16,
    /// Whether anything of the request was sent.
    pub sent: bool,
    /// Whether the connection was a kept one.
    pub cached: bool,
    /// The client went away.
    pub client_gone: bool,
    /// What to do instead of ending with `status`.
    pub outcome: Option<PassEnd>,
    /// Whether the retry budget has been charged for the next try.
    pub paid: bool,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: u32, status: u16) -> Failure {
        Failure {
            kind,
            status,
            sent: false,
            cached: false,
            client_gone: false,
            outcome: None,
            paid: false,
        }
    }

    /// A failure of which the next peer may be asked.
    pub fn plain(self) -> Failure {
        Failure {
            outcome: None,
            ..self
        }
    }

    /// The client went away.
    pub fn gone() -> Failure {
        Failure {
            client_gone: true,
            ..Failure::new(0, 499)
        }
    }

    /// The request ends with a status that is no fault of the peer.
    pub fn end(status: u16) -> Failure {
        Failure {
            outcome: Some(PassEnd::Status(status)),
            ..Failure::new(next::OFF, status)
        }
    }
}

/// What a try needs to know.
pub(super) struct Attempt<'a> {
    pub pass: &'a Arc<Pass>,
    pub target: &'a Found,
    pub group: &'a Upstream,
    pub picked: &'a Picked<'a>,
    pub peer: &'a Peer,
    pub length: BodyLength,
    pub streaming: bool,
    /// Tries left, this one included.
    pub tries: u32,
    /// When the first try began, where their time is limited.
    pub begun: Option<Instant>,
    /// Takes no kept connection: one has just turned out to be stale.
    pub fresh: bool,
    pub start: Instant,
    /// How long the head took, where somebody wants to know.
    pub head_after: Option<Duration>,
    pub sent: bool,
    pub cached: bool,
    /// Bytes received up to the end of the head.
    pub head_bytes: u64,
}

impl<'a> Attempt<'a> {
    pub fn new(
        pass: &'a Arc<Pass>,
        target: &'a Found,
        picked: &'a Picked<'a>,
        length: BodyLength,
        streaming: bool,
    ) -> Self {
        Attempt {
            pass,
            target,
            group: &target.group,
            picked,
            peer: picked.peer(),
            length,
            streaming,
            tries: 1,
            begun: None,
            fresh: false,
            start: Instant::now(),
            head_after: None,
            sent: false,
            cached: false,
            head_bytes: 0,
        }
    }

    /// The whole try; `Ok` once a response has begun or the request ends otherwise.
    pub async fn run(
        &mut self,
        r: &mut Request,
        request: &[u8],
        own_body: Option<&[u8]>,
    ) -> Result<PassEnd, Failure> {
        let result = self.exchange(r, request, own_body).await;
        result.map_err(|f| Failure {
            sent: self.sent,
            cached: self.cached,
            ..f
        })
    }

    async fn exchange(
        &mut self,
        r: &mut Request,
        request: &[u8],
        own_body: Option<&[u8]>,
    ) -> Result<PassEnd, Failure> {
        let Some(connector) = crate::upstream::connector() else {
            return Err(Failure::new(next::ERROR, 502));
        };
        let own = head::own(r, self.pass, self.target);
        let tag = Tag {
            location: Arc::as_ptr(self.pass) as usize as u64,
            identity: self.pass.identity(self.target.tls),
            own: &own,
        };
        let kept = match self.pooled() {
            true => pool::take(self.group, self.peer, tag),
            false => None,
        };
        let mut conn = match kept {
            Some(conn) => conn,
            // making a connection is rare and its future large
            None => Box::pin(self.connect(r, connector, tag)).await?,
        };
        self.cached = conn.reused;
        if let Some(s) = r.upstream.states.last_mut() {
            s.connect_time = Some(if self.cached {
                0
            } else {
                self.start.elapsed().as_millis() as u64
            });
        }
        if self.pass.protocol.codec() == Codec::Tunnel {
            if let Some(s) = r.upstream.states.last_mut() {
                s.header_time = Some(self.start.elapsed().as_millis() as u64);
            }
            r.upstream.head.clear();
            r.upstream.head.status = 200;
            let to = self.target.destination();
            head::copy(self.pass, &to, r);
            return Ok(Box::pin(tunnel::run(self, r, conn)).await);
        }
        if self.pass.protocol.codec() == Codec::Http2 {
            let exchange = super::h2::run(self, r, conn, connector, request, own_body);
            return Box::pin(exchange).await;
        }
        conn.rbuf = buffers::take();
        let early = super::request_body::send(self, r, &mut conn, request, own_body).await?;
        received(r, conn.rbuf.len());
        let body = self.read_head(r, &mut conn, request, early).await?;
        if let Some(s) = r.upstream.states.last_mut() {
            s.header_time = Some(self.start.elapsed().as_millis() as u64);
            s.status = r.upstream.head.status;
        }
        if self.picked.is_timed() {
            let took = self.start.elapsed();
            self.head_after = Some(took);
            self.picked.head(took);
        }
        if let Some(s) = r.upstream.states.last() {
            let unread = conn.rbuf.len() + body.unread();
            self.head_bytes = s.bytes_received.saturating_sub(unread as u64);
        }
        self.respond(r, conn, connector, body).await
    }

    /// Whether a kept connection may serve the request.
    fn pooled(&self) -> bool {
        !self.fresh && self.pass.conf.proxy_protocol.is_none()
    }

    async fn connect(
        &self,
        r: &mut Request,
        connector: &Connector,
        tag: Tag<'_>,
    ) -> Result<UpConn, Failure> {
        let conf = &self.pass.conf;
        let mut options = ConnectOptions {
            timeout: Duration::from_millis(conf.connect_timeout),
            transparent: conf.bind_transparent,
            proxy_header: conf
                .proxy_protocol
                .map(|form| form.bytes(r.remote.addr, r.conn().local.addr)),
            keepalive: conf.socket_keepalive,
            rcvbuf: conf.socket_rcvbuf,
            sndbuf: conf.socket_sndbuf,
            ..ConnectOptions::default()
        };
        if let Some(t) = &conf.bind {
            let text = t.eval(r);
            if let Some((ip, port)) = crate::config::addr::parse_ip_port(&text) {
                options.bind = Some(std::net::SocketAddr::new(ip, port.unwrap_or(0)));
            } else if !text.is_empty() && &*text != b"off" {
                r.error(
                    Level::Error,
                    format_args!(
                        "invalid local address \"{}\"",
                        crate::http::text::shown(&text)
                    ),
                );
            }
        }
        if self.target.tls {
            let tls = head::tls_options(r, self.pass, self.target, self.peer, &tag);
            options.handshaking = Some(Arc::default());
            options.tls = Some(tls.map_err(|text| {
                r.upstream.fails("setup");
                r.error(Level::Error, format_args!("{text}"));
                Failure::end(500)
            })?);
        }
        let down = r.down.clone();
        let handshaking = options.handshaking.clone();
        let watch = !conf.ignore_client_abort && !cache::outlives_client(r, self.pass);
        let opening = async {
            if self.pooled() {
                pool::get(connector, self.group, self.peer, tag, &options).await
            } else {
                let (group, peer) = (self.group, self.peer);
                connector.connect(group, peer, tag, &options).await
            }
        };
        let result = tokio::select! {
            biased;
            c = opening => c,
            () = poll_fn(|cx| down.poll_closed(cx)), if watch => {
                client_gone(r, match handshaking {
                    Some(h) if h.load(Ordering::Relaxed) => "while SSL handshaking to upstream",
                    _ => "while connecting to upstream",
                });
                return Err(Failure::gone());
            }
        };
        result.map_err(|e: ConnectError| {
            let level = if e.is_crit() {
                Level::Crit
            } else {
                Level::Error
            };
            r.upstream.fails(e.reason());
            r.error(level, format_args!("{e}"));
            if matches!(e, ConnectError::Setup(_)) {
                Failure::end(500)
            } else if e.is_timeout() {
                Failure::new(next::TIMEOUT, 504)
            } else {
                Failure::new(next::ERROR, 502)
            }
        })
    }

    /// Reads until the response head is whole; what follows is the body's.
    async fn read_head(
        &self,
        r: &mut Request,
        conn: &mut UpConn,
        request: &[u8],
        mut early: bool,
    ) -> Result<Body, Failure> {
        let strict = r.core().strict_responses;
        let mut reader = HeadReader::new(self.pass, request, !conn.reused, strict);
        loop {
            if !conn.rbuf.is_empty() || early {
                early = false;
                match reader.read(r, self.pass, &mut conn.rbuf) {
                    Read::Need => {}
                    Read::Again => {
                        super::hints::send(r).await;
                        continue;
                    }
                    Read::Done(body) => {
                        r.upstream.has_head = true;
                        head::log_ignored(r);
                        return Ok(body);
                    }
                    Read::Bad => {
                        r.upstream.fails("bad_header");
                        self.count_only_head(r);
                        return Err(Failure::new(next::INVALID_HEADER, 502));
                    }
                }
            }
            if self
                .read(r, conn, "while reading response header from upstream")
                .await?
                == 0
            {
                return Err(self.closed(r, "while reading response header from upstream"));
            }
        }
    }

    /// Reads more from the origin; watches the client and the clock.
    pub async fn read(
        &self,
        r: &mut Request,
        conn: &mut UpConn,
        doing: &str,
    ) -> Result<usize, Failure> {
        let conf = &self.pass.conf;
        let down = r.down.clone();
        let watch =
            !conf.ignore_client_abort && !self.streaming && !cache::outlives_client(r, self.pass);
        let UpConn { rbuf, .. } = conn;
        let mut buf = std::mem::take(rbuf);
        buf.reserve(4096);
        let read = async {
            tokio::select! {
                biased;
                n = conn.read_buf(&mut buf) => Some(n),
                () = poll_fn(|cx| down.poll_closed(cx)), if watch => None,
            }
        };
        let result = tokio::time::timeout(Duration::from_millis(conf.read_timeout), read).await;
        conn.rbuf = buf;
        match result {
            Ok(Some(Ok(n))) => {
                received(r, n);
                Ok(n)
            }
            Ok(Some(Err(e))) => Err(self.broken(r, &e, "recv()", doing)),
            Ok(None) => {
                // until an answer begins, nginx is still sending the request
                let received = r.upstream.states.last().map_or(0, |s| s.bytes_received);
                let doing = match received {
                    0 => "while sending request to upstream",
                    _ => doing,
                };
                client_gone(r, doing);
                Err(Failure::gone())
            }
            Err(_) => {
                r.upstream.fails("read_timeout");
                r.error(
                    Level::Error,
                    format_args!("upstream timed out (110: Connection timed out) {doing}"),
                );
                Err(Failure::new(next::TIMEOUT, 504))
            }
        }
    }

    /// Counts what was received as nginx does where the body is not read: nothing beyond the buffer for the head.
    pub fn count_only_head(&self, r: &mut Request) {
        if let Some(s) = r.upstream.states.last_mut() {
            s.bytes_received = s.bytes_received.min(self.pass.conf.buffer_size as u64);
        }
    }

    /// Logs a broken connection.
    pub fn broken(&self, r: &mut Request, e: &io::Error, call: &str, doing: &str) -> Failure {
        let text = e.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        r.upstream.fails(match () {
            () if self.is_stale(r) => STALE,
            () if r.upstream.has_head => "reset_in_body",
            () => "reset_before_header",
        });
        r.error(
            self.level(r),
            format_args!(
                "{call} failed ({}: {text}) {doing}",
                e.raw_os_error().unwrap_or(0)
            ),
        );
        Failure::new(next::ERROR, 502)
    }

    /// Logs that the origin closed the connection before its response was whole.
    pub fn closed(&self, r: &mut Request, doing: &str) -> Failure {
        r.upstream.fails(match () {
            () if self.is_stale(r) => STALE,
            () if r.upstream.has_head => "closed_in_body",
            () => "closed_before_header",
        });
        r.error(
            self.level(r),
            format_args!("upstream prematurely closed connection {doing}"),
        );
        Failure::new(next::ERROR, 502)
    }

    /// Whether a kept connection broke before anything came: the origin had closed it already.
    pub fn is_stale(&self, r: &Request) -> bool {
        let received = r.upstream.states.last().map_or(0, |s| s.bytes_received);
        self.cached && received == 0
    }

    /// Whether the request may be sent once more on a new connection without anybody knowing.
    pub fn may_renew(&self, r: &Request) -> bool {
        let repeatable =
            is_idempotent(r) || self.pass.conf.next_upstream & next::NON_IDEMPOTENT != 0;
        self.is_stale(r) && (!self.sent || (repeatable && !self.streaming))
    }

    /// How a broken connection is logged: one that is renewed is not worth an error.
    pub fn level(&self, r: &Request) -> Level {
        if self.may_renew(r) {
            Level::Info
        } else {
            Level::Error
        }
    }

    /// The head is whole: asks the next peer, redirects, intercepts, or passes the response on.
    pub async fn respond(
        &mut self,
        r: &mut Request,
        conn: UpConn,
        connector: &Connector,
        body: Body,
    ) -> Result<PassEnd, Failure> {
        let conf = &self.pass.conf;
        let status = r.upstream.head.status;
        let codec = self.pass.protocol.codec();
        let kind = head::condition(status);
        self.check(r, &conn, &body)?;
        cache::judge(r, self.pass);
        if kind != 0 && conf.next_upstream & kind != 0 {
            // the last peer's own answer is passed on, so the response must be kept for that case
            let more = self.more_peers(r);
            if more {
                self.count_only_head(r);
                body::finish(self, conn, connector, body);
                r.upstream.fails(status_name(status));
                return Err(Failure {
                    paid: true,
                    ..Failure::new(kind, status)
                });
            }
        }
        let to = self.target.destination();
        if kind != 0
            && cache::may_be_stale(r, kind)
            && let Some(outcome) = cache::stale(r, self.pass, &to, kind, false).await
        {
            return Ok(outcome);
        }
        if status == 304
            && let Some(outcome) = cache::revalidated(r, self.pass, &to).await
        {
            // an answer without a body has come to its end
            let body = match body {
                Body::Http if !r.upstream.head.connection_close => Body::Nothing,
                body => body,
            };
            body::finish(self, conn, connector, body);
            return Ok(outcome);
        }
        if matches!(codec, Codec::Memcached { .. }) && status == 404 {
            // memcached has no pages
            body::finish(self, conn, connector, body);
            return Ok(PassEnd::Status(status));
        }
        if status == 101 {
            cache::abandon(r);
            head::copy(self.pass, &to, r);
            if r.head.headers.contains(b"upgrade") {
                return Ok(Box::pin(tunnel::run(self, r, conn)).await);
            }
            // as in nginx the head alone, and the end of both connections: what follows it is no HTTP
            return match output::send_as_is(r, crate::contract::Body::Empty).await {
                Ok(()) => Ok(PassEnd::Done),
                Err(status) => Ok(PassEnd::Status(status)),
            };
        }
        if conf.intercept_errors && status >= 300 && head::has_error_page(r, status) {
            head::obey(self.pass, r);
            if status == 401 {
                let head = std::mem::take(&mut r.upstream.head);
                for challenge in head.headers.get_all(b"WWW-Authenticate") {
                    r.out.headers.append(b"WWW-Authenticate", challenge);
                }
                r.upstream.head = head;
            }
            cache::failed_with(r, status);
            self.count_only_head(r);
            return Ok(PassEnd::Status(status));
        }
        if let Some(selector) = self.group.selector.as_deref() {
            selector.head(r, self.peer);
        }
        if let Some(redirect) = head::accel_redirect(self.pass, r) {
            self.count_only_head(r);
            return Ok(redirect);
        }
        head::copy(self.pass, &to, r);
        Ok(body::pass_on(self, r, conn, connector, body).await)
    }

    /// Refuses a head that cannot stand, and a body whose beginning cannot, before anything is sent to the client.
    fn check(&self, r: &mut Request, conn: &UpConn, body: &Body) -> Result<(), Failure> {
        if r.upstream.head.status == 101 {
            if r.core().strict_responses && !r.head.headers.contains(b"upgrade") {
                return Err(self.refuse(r, "bad_header", "upstream sent unexpected status 101"));
            }
            if r.subrequest {
                return Err(self.refuse(r, "bad_header", "connection upgrade in subrequest"));
            }
            return Ok(());
        }
        if r.core().strict_responses
            && self.pass.protocol.codec() == Codec::Http1
            && matches!(body, Body::Http)
        {
            let head_only = self.pass.protocol.method(r).as_bytes() == b"HEAD";
            let length = r.upstream.head.body(head_only);
            framing::check(length, &conn.rbuf, self.pass.conf.buffer_size)
                .map_err(|text| self.refuse(r, "bad_body", &text))?;
        }
        Ok(())
    }

    #[cold]
    fn refuse(&self, r: &mut Request, kind: &'static str, text: &str) -> Failure {
        r.upstream.fails(kind);
        r.error(
            Level::Error,
            format_args!("{text} while reading response header from upstream"),
        );
        self.count_only_head(r);
        Failure::new(next::INVALID_HEADER, 502)
    }

    /// Whether another peer is asked instead of passing on a status that `proxy_next_upstream` names.
    fn more_peers(&self, r: &Request) -> bool {
        let conf = &self.pass.conf;
        let safe = conf.next_upstream & next::NON_IDEMPOTENT != 0 || is_idempotent(r);
        let late = self
            .begun
            .is_some_and(|b| b.elapsed() >= Duration::from_millis(conf.next_upstream_timeout));
        self.tries > 1 && safe && !late && !self.streaming && super::may_retry(self.group)
    }
}

/// Logs that the client went away while the origin was asked; with HTTP/2 the connection's own line says so.
pub(super) fn client_gone(r: &Request, doing: &str) {
    if r.head.http_major_minor.0 < 2 {
        let errno = Errno(r.down.errno());
        r.error(
            Level::Info,
            format_args!(
                "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too{errno} {doing}"
            ),
        );
    }
}

/// Why a kept connection failed that the origin had closed.
const STALE: &str = "stale_keepalive";

/// Whether the request may be sent twice, as nginx sees it.
pub(super) fn is_idempotent(r: &Request) -> bool {
    use crate::http::method::Method;
    !matches!(r.method, Method::Post | Method::Lock | Method::Patch)
}

fn status_name(status: u16) -> &'static str {
    match status {
        500 => "http_500",
        502 => "http_502",
        503 => "http_503",
        504 => "http_504",
        403 => "http_403",
        404 => "http_404",
        429 => "http_429",
        _ => "http_status",
    }
}

/// Counts what was read from the origin.
pub(super) fn received(r: &mut Request, n: usize) {
    if let Some(s) = r.upstream.states.last_mut() {
        s.bytes_received += n as u64;
    }
}
