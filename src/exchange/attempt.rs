//! One try at one peer.

use super::codec::{Body, HeadReader, Read};
use super::target::Found;
use super::{body, cache, head, tunnel};
use crate::log::Level;
use crate::module::Outcome;
use crate::module::{BodyLength, Codec, Pass, Request, Upstream, next};
use crate::runtime::buffers;
use crate::upstream::connect::Tag;
use crate::upstream::{ConnectError, ConnectOptions, Connector, Peer, Picked, UpConn, pool};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
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
    pub outcome: Option<Outcome>,
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
            outcome: Some(Outcome::Status(status)),
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
    ) -> Result<Outcome, Failure> {
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
    ) -> Result<Outcome, Failure> {
        let Some(connector) = crate::upstream::connector() else {
            return Err(Failure::new(next::ERROR, 502));
        };
        let tag = self.tag(r);
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

    /// Which requests may share connections with this one.
    fn tag(&self, r: &Request) -> Tag {
        use std::hash::BuildHasher;
        let bind = self.pass.conf.bind.as_ref();
        let differs = bind.filter(|t| t.as_literal().is_none());
        Tag {
            location: Arc::as_ptr(self.pass) as usize as u64,
            local_address: differs.map_or(0, |t| {
                foldhash::fast::FixedState::default().hash_one(t.eval(r))
            }),
        }
    }

    /// Whether a kept connection may serve the request.
    fn pooled(&self) -> bool {
        !self.fresh && self.pass.conf.proxy_protocol.is_none()
    }

    async fn connect(
        &self,
        r: &mut Request,
        connector: &Connector,
        tag: Tag,
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
                        String::from_utf8_lossy(&text)
                    ),
                );
            }
        }
        if self.target.tls {
            let tls = head::tls_options(r, self.pass, self.target, self.peer);
            options.tls = Some(tls.map_err(|text| {
                r.upstream.fails("setup");
                r.error(Level::Error, format_args!("{text}"));
                Failure::end(500)
            })?);
        }
        let down = r.down.clone();
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
                r.error(Level::Info, format_args!("epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too while connecting to upstream"));
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
        let mut reader = HeadReader::new(self.pass, request);
        loop {
            if !conn.rbuf.is_empty() || early {
                early = false;
                // what the reader logs is a failure, or nothing
                r.upstream.failing = "bad_header";
                let read = reader.read(r, self.pass, &mut conn.rbuf);
                r.upstream.failing = "";
                match read {
                    Read::Need => {}
                    Read::Again => {
                        super::hints::send(r).await;
                        continue;
                    }
                    Read::Done(body) => {
                        r.upstream.has_head = true;
                        if r.upstream.head.is_http09() {
                            r.error(Level::Error, format_args!("upstream sent no valid HTTP/1.0 header while reading response header from upstream"));
                        }
                        for text in std::mem::take(&mut r.upstream.head.ignored) {
                            r.error(
                                Level::Warn,
                                format_args!("{text} while reading response header from upstream"),
                            );
                        }
                        return Ok(body);
                    }
                    Read::Bad => {
                        r.upstream.fails("bad_header");
                        return Err(Failure::new(next::INVALID_HEADER, 502));
                    }
                }
            }
            if self
                .read(r, conn, "while reading response header from upstream")
                .await?
                == 0
            {
                r.upstream.fails(if self.is_stale(r) {
                    STALE
                } else {
                    "closed_before_header"
                });
                r.error(self.level(r), format_args!("upstream prematurely closed connection while reading response header from upstream"));
                return Err(Failure::new(next::ERROR, 502));
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
                r.error(Level::Info, format_args!("epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too {doing}"));
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
    fn level(&self, r: &Request) -> Level {
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
    ) -> Result<Outcome, Failure> {
        let conf = &self.pass.conf;
        let status = r.upstream.head.status;
        let codec = self.pass.protocol.codec();
        let kind = head::condition(status);
        cache::judge(r, self.pass);
        if kind != 0 && conf.next_upstream & kind != 0 {
            // the last peer's own answer is passed on, so the response must be kept for that case
            let more = self.more_peers(r);
            if more {
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
            return Ok(Outcome::Status(status));
        }
        if status == 101
            && matches!(codec, Codec::Http1 | Codec::Cgi)
            && r.head.headers.contains(b"upgrade")
        {
            cache::abandon(r);
            head::copy(self.pass, &to, r);
            return Ok(Box::pin(tunnel::run(self, r, conn)).await);
        }
        if conf.intercept_errors && status >= 300 && head::has_error_page(r, status) {
            if status == 401
                && let Some(v) = r
                    .upstream
                    .head
                    .headers
                    .get(b"www-authenticate")
                    .map(<[u8]>::to_vec)
            {
                r.out.headers.set(b"WWW-Authenticate", &v);
            }
            cache::failed_with(r, status);
            return Ok(Outcome::Status(status));
        }
        if let Some(steer) = self.group.steer.as_deref() {
            steer.head(r, self.peer);
        }
        if let Some(redirect) = head::accel_redirect(self.pass, r) {
            return Ok(redirect);
        }
        head::copy(self.pass, &to, r);
        Ok(body::pass_on(self, r, conn, connector, body).await)
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
