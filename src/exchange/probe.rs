//! An exchange with a peer that no client asked for: an active health check.

use super::head;
pub use super::probe_grpc::GrpcHealth;
use super::target::Found;
use crate::contract::{
    BodyLength, Destination, DetachedConn, LocId, Pass, PassTarget, Request, SiteRef, Upstream,
    UpstreamState,
};
use crate::http::h1::chunked::Decoder;
use crate::http::h1::response::{BodyLength as Framing, Parser, Progress};
use crate::http::method::Method;
use crate::upstream::connect::Tag;
use crate::upstream::{ConnectError, ConnectOptions, Group, Peer, UpConn};
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Asks one peer as a location would, with its headers, timeouts and TLS.
pub struct Probe<'a> {
    /// The location's origin.
    pub pass: &'a Arc<Pass>,
    /// Its group.
    pub group: &'a Arc<Group>,
    /// The peer, at the port that is to be asked.
    pub peer: &'a Peer,
    /// The URI asked for.
    pub uri: &'a str,
    /// How long a connection may serve checks; zero closes it after one.
    pub keepalive: Duration,
    /// How much of the body is wanted, bytes.
    pub body: usize,
}

impl Probe<'_> {
    /// Connects, and nothing more.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn connect(&self, r: &mut Request) -> Result<UpConn, ProbeError> {
        // where TLS is spoken, the protocol says to whom
        self.request(r);
        self.open(r, b"").await
    }

    /// Asks by gRPC's health checking protocol whether `service` is served; an empty name asks of the server as such.
    ///
    /// # Errors
    /// Where the exchange broke off.
    pub async fn grpc(&self, r: &mut Request, service: &str) -> Result<GrpcHealth, ProbeError> {
        self.request(r);
        let conn = self.open(r, b"\x02h2").await?;
        let limit = Duration::from_millis(self.pass.conf.read_timeout);
        let host = String::from_utf8_lossy(&r.upstream.host).into_owned();
        match timeout(limit, super::probe_grpc::ask(conn, &host, service)).await {
            Ok(Ok(health)) => Ok(health),
            Ok(Err(text)) => Err(ProbeError::new(HEAD, text)),
            Err(_) => Err(ProbeError::new(HEAD, TIMED_OUT)),
        }
    }

    /// Sends the request and reads the answer: its head into `r.upstream`, and as much of its body as is wanted.
    ///
    /// `idle` holds a connection between the checks of one peer.
    ///
    /// # Errors
    /// Where the exchange broke off.
    pub async fn exchange(
        &self,
        r: &mut Request,
        idle: &mut Option<UpConn>,
    ) -> Result<Vec<u8>, ProbeError> {
        let request = self.request(r);
        r.upstream.states.clear();
        r.upstream.states.push(UpstreamState {
            addr: self.peer.name.clone(),
            ..UpstreamState::default()
        });
        let begun = Instant::now();
        let young = |conn: &UpConn| conn.opened.elapsed() < self.keepalive;
        let body = match idle.take().filter(young) {
            Some(conn) => match self.talk(r, conn, &request, idle).await {
                // it was closed meanwhile
                Err(e) if e.stale => {
                    let conn = self.open(r, b"").await?;
                    self.talk(r, conn, &request, idle).await
                }
                result => result,
            },
            None => {
                let conn = self.open(r, b"").await?;
                self.talk(r, conn, &request, idle).await
            }
        }?;
        if let Some(state) = r.upstream.states.last_mut() {
            state.status = r.upstream.head.status;
            state.response_time = Some(begun.elapsed().as_millis() as u64);
        }
        Ok(body)
    }

    fn tls(&self) -> bool {
        matches!(self.pass.target, PassTarget::Group(_, true))
    }

    /// The location's request, with the URI of the check.
    fn request(&self, r: &mut Request) -> Vec<u8> {
        let to = Destination {
            host: b"",
            port: b"",
            uri: None,
            tls: self.tls(),
        };
        let mut whole = Vec::new();
        let written = self
            .pass
            .protocol
            .request(r, &to, BodyLength::None, &mut whole);
        let fields = written.ok().and_then(|()| {
            let line = memchr::memmem::find(&whole, b"\r\n")?;
            whole.get(line + 2..)
        });
        let mut out = format!("GET {} HTTP/1.1\r\n", self.uri).into_bytes();
        let close = self.keepalive.is_zero();
        let fields = match fields {
            Some(fields) => fields,
            None => {
                out.extend(format!("Host: {}\r\n", self.group.name).bytes());
                b"\r\n"
            }
        };
        // a location that says nothing of the connection means to keep it
        let own = memchr::memmem::find(&fields.to_ascii_lowercase(), b"connection:").is_some();
        if close && !own {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        out.extend_from_slice(fields);
        out
    }

    async fn open(&self, r: &mut Request, alpn: &'static [u8]) -> Result<UpConn, ProbeError> {
        const DOING: &str = "connecting to upstream";
        let Some(connector) = crate::upstream::connector() else {
            return Err(ProbeError::new(DOING, "no connector"));
        };
        let conf = &self.pass.conf;
        let mut options = ConnectOptions {
            timeout: Duration::from_millis(conf.connect_timeout),
            keepalive: conf.socket_keepalive,
            ..ConnectOptions::default()
        };
        if let Some(bind) = conf.bind.as_ref().map(|t| t.eval(r))
            && let Some((ip, port)) = crate::config::addr::parse_ip_port(&bind)
        {
            options.bind = Some(std::net::SocketAddr::new(ip, port.unwrap_or(0)));
        }
        if self.tls() {
            let found = Found {
                group: Arc::new(Upstream::plain(self.group.clone())),
                host: Vec::new(),
                port: Vec::new(),
                uri: None,
                tls: true,
            };
            let own = head::own(r, self.pass, &found);
            let tag = Tag {
                location: 0,
                identity: self.pass.identity(true),
                own: &own,
            };
            let tls = head::tls_options(r, self.pass, &found, self.peer, &tag);
            let mut tls = tls.map_err(|text| ProbeError::new(DOING, text))?;
            if let (false, Some(tls)) = (alpn.is_empty(), Arc::get_mut(&mut tls)) {
                tls.hello.alpn = alpn;
            }
            options.tls = Some(tls);
        }
        let connecting = connector.connect(self.group, self.peer, 0, &options);
        connecting.await.map_err(|e: ConnectError| ProbeError {
            doing: DOING,
            text: e.to_string().replace(" while connecting to upstream", ""),
            stale: false,
        })
    }

    async fn talk(
        &self,
        r: &mut Request,
        mut conn: UpConn,
        request: &[u8],
        idle: &mut Option<UpConn>,
    ) -> Result<Vec<u8>, ProbeError> {
        let conf = &self.pass.conf;
        let used = conn.requests > 1;
        conn.rbuf.clear();
        let sending = async {
            conn.write_all(request).await?;
            conn.flush().await
        };
        let sent = bounded(conf.send_timeout, sending, "sending request to upstream").await;
        sent.map_err(|e| ProbeError { stale: used, ..e })?;

        let mut parser = Parser::default();
        loop {
            let first = conn.rbuf.is_empty();
            let n = self.read(&mut conn, HEAD).await;
            let n = n.map_err(|e| ProbeError {
                stale: used && first && !e.timed_out(),
                ..e
            })?;
            if n == 0 {
                return Err(ProbeError {
                    stale: used && first,
                    ..ProbeError::new(HEAD, "upstream prematurely closed connection")
                });
            }
            match parser.parse(&conn.rbuf, conf.buffer_size, &mut r.upstream.head) {
                Progress::Need => {}
                Progress::EarlyHints { consumed } => drop(conn.rbuf.split_to(consumed)),
                Progress::Done { consumed } => {
                    drop(conn.rbuf.split_to(consumed));
                    if r.upstream.head.is_http09() {
                        let text = "upstream sent no valid HTTP/1.0 header";
                        return Err(ProbeError::new(HEAD, text));
                    }
                    if !matches!(r.upstream.head.status, 100..=199) {
                        break;
                    }
                }
                Progress::Bad(e) => return Err(ProbeError::new(HEAD, e.to_string())),
            }
        }
        r.upstream.has_head = true;
        let (body, whole) = self.read_body(r, &mut conn).await?;
        let head = &r.upstream.head;
        if whole && !head.connection_close && !self.keepalive.is_zero() {
            conn.requests += 1;
            conn.reused = true;
            *idle = Some(conn);
        }
        Ok(body)
    }

    /// The body up to the wanted length, and whether that is all of it and the connection is at its end.
    async fn read_body(
        &self,
        r: &Request,
        conn: &mut UpConn,
    ) -> Result<(Vec<u8>, bool), ProbeError> {
        const DOING: &str = "reading upstream";
        let mut body = Vec::new();
        let framing = r.upstream.head.body(false);
        let mut chunks = Decoder::new();
        loop {
            let whole = match framing {
                Framing::None => conn.rbuf.is_empty(),
                Framing::Bytes(n) => {
                    let left = usize::try_from(n).unwrap_or(usize::MAX) - body.len();
                    let piece = conn.rbuf.split_to(left.min(conn.rbuf.len()));
                    body.extend_from_slice(&piece);
                    body.len() as u64 == n
                }
                Framing::Chunked => {
                    let input = std::mem::take(&mut conn.rbuf);
                    let take = |range| {
                        body.extend_from_slice(
                            input
                                .get::<std::ops::Range<usize>>(range)
                                .unwrap_or_default(),
                        )
                    };
                    let decoded = chunks.decode(&input, take);
                    let decoded = decoded.map_err(|_| {
                        ProbeError::new(DOING, "upstream sent invalid chunked response")
                    })?;
                    decoded.done
                }
                Framing::UntilClose => {
                    body.extend_from_slice(&std::mem::take(&mut conn.rbuf));
                    false
                }
            };
            if whole || matches!(framing, Framing::None) || body.len() >= self.body {
                body.truncate(self.body);
                return Ok((body, whole));
            }
            if self.read(conn, DOING).await? == 0 {
                return match framing {
                    Framing::UntilClose => Ok((body, false)),
                    _ => Err(ProbeError::new(
                        DOING,
                        "upstream prematurely closed connection",
                    )),
                };
            }
        }
    }

    async fn read(&self, conn: &mut UpConn, doing: &'static str) -> Result<usize, ProbeError> {
        let mut buf = std::mem::take(&mut conn.rbuf);
        buf.reserve(4096);
        let read = bounded(self.pass.conf.read_timeout, conn.read_buf(&mut buf), doing).await;
        conn.rbuf = buf;
        read
    }
}

/// A request of nobody at a location.
pub fn request(site: &SiteRef, location: LocId) -> Box<Request> {
    let down = Arc::new(DetachedConn::default());
    let mut r = Box::new(Request::new(site.clone(), down.clone()));
    r.reset(site, down);
    r.location = location;
    r.method = Method::Get;
    r.uri.push(b'/');
    r.valid_unparsed_uri = false;
    r
}

/// Why a probe brought no answer.
#[derive(Debug)]
pub struct ProbeError {
    /// What was being done: `connecting to upstream`.
    pub doing: &'static str,
    text: String,
    /// A kept connection that was closed meanwhile: another one may do.
    stale: bool,
}

impl ProbeError {
    fn new(doing: &'static str, text: impl Into<String>) -> Self {
        Self {
            doing,
            text: text.into(),
            stale: false,
        }
    }

    fn timed_out(&self) -> bool {
        self.text == TIMED_OUT
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} while {}", self.text, self.doing)
    }
}

const HEAD: &str = "reading response header from upstream";
const TIMED_OUT: &str = "upstream timed out (110: Connection timed out)";

/// Does one thing within a timeout in milliseconds.
async fn bounded<T>(
    limit: u64,
    work: impl Future<Output = io::Result<T>>,
    doing: &'static str,
) -> Result<T, ProbeError> {
    match timeout(Duration::from_millis(limit), work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => {
            let call = if doing.starts_with("sending") {
                "send()"
            } else {
                "recv()"
            };
            let text = e.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let errno = e.raw_os_error().unwrap_or(0);
            Err(ProbeError::new(
                doing,
                format!("{call} failed ({errno}: {text})"),
            ))
        }
        Err(_) => Err(ProbeError::new(doing, TIMED_OUT)),
    }
}
