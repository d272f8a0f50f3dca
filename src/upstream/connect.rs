//! New connections to peers, made by Pingora's `TransportConnector`.

use super::connection::{Io, UpConn};
use super::group::Group;
use super::identity::Identity;
use super::peer::Peer;
use crate::tls::client::{Client, Hello};
use crate::tls::empty_ca::EmptyCa;
use crate::tls::error::{describe, is_common};
use nix::sys::socket::{setsockopt, sockopt};
use openssl::ssl;
use pingora::tls::tokio_ssl::SslStream;
use pingora_core::connectors::l4::BindTo;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::l4::socket::SocketAddr as L4Addr;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::upstreams::peer::{Peer as PingoraPeer, PeerOptions};
use pingora_core::{Error, ErrorType};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

/// Makes connections, and holds Pingora's pool of idle ones that threads share. One per process.
pub struct Connector {
    pub(super) transport: TransportConnector,
    /// Threads that have a pool of their own; decides how much of `keepalive` is shared.
    pub(super) threads: u32,
}

impl Connector {
    /// For a worker with `threads` threads.
    pub fn new(threads: u32) -> Self {
        let nobody = EmptyCa::new();
        let mut options = ConnectorOptions::new(SHARED_IDLE);
        options.ca_file = nobody.as_ref().map(EmptyCa::path);
        Self {
            transport: TransportConnector::new(Some(options)),
            threads: threads.max(1),
        }
    }

    /// Opens a connection to `peer`; `tag` tells locations apart where `keepalive` is local to them.
    ///
    /// Dropping the future closes the socket.
    pub async fn connect<'a>(
        &self,
        group: &Group,
        peer: &Peer,
        tag: impl Into<Tag<'a>>,
        options: &ConnectOptions,
    ) -> Result<UpConn, ConnectError> {
        let key = PoolKey::new(group, peer, tag.into());
        let target = Target::new(peer, key, options);
        let mut connected = false;
        let opening = async {
            let stream = self.transport.new_stream(&target).await;
            let stream = stream.map_err(|e| ConnectError::new(&e, peer, options))?;
            connected = true;
            let plain = stream.into_any().downcast::<L4Stream>();
            let mut plain =
                plain.map_err(|_| ConnectError::Other("unknown kind of stream".into()))?;
            if let Some(header) = &options.proxy_header {
                let sent = plain.write_all(header).await;
                sent.map_err(|e| ConnectError::Connect {
                    errno: e.raw_os_error().unwrap_or(0),
                    to: None,
                })?;
            }
            match &options.tls {
                Some(tls) => {
                    if let Some(handshaking) = &options.handshaking {
                        handshaking.store(true, Ordering::Relaxed);
                    }
                    handshake(tls, *plain).await
                }
                None => Ok(Io::Plain(plain)),
            }
        };
        // Pingora's own timeouts would start a thread that wakes every 10 ms.
        let opened = tokio::time::timeout(options.timeout, opening).await;
        match opened {
            Ok(opened) => opened.map(|io| {
                let mut conn = UpConn::new(io, key.keep());
                conn.single_use = options.proxy_header.is_some();
                conn
            }),
            Err(_) if connected => Err(ConnectError::HandshakeTimedOut),
            Err(_) => Err(ConnectError::TimedOut),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Upper bound of all groups' shared idle connections; each group has its own, lower one.
const SHARED_IDLE: usize = 16 * 1024;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// `proxy_connect_timeout`; with TLS it covers the handshake too.
    pub timeout: Duration,
    /// `proxy_bind`.
    pub bind: Option<SocketAddr>,
    /// `proxy_bind … transparent`: the address need not be one of this host.
    pub transparent: bool,
    /// What the connection begins with: it tells the client's address and so cannot serve another client.
    pub proxy_header: Option<Vec<u8>>,
    /// `proxy_socket_keepalive`: SO_KEEPALIVE with the times of the system.
    pub keepalive: bool,
    /// `proxy_socket_rcvbuf`: SO_RCVBUF, bytes.
    pub rcvbuf: Option<usize>,
    /// `proxy_socket_sndbuf`: SO_SNDBUF, bytes.
    pub sndbuf: Option<usize>,
    /// TLS to the peer.
    pub tls: Option<Arc<ConnectTls>>,
    /// Becomes true when the handshake begins: for who gives up meanwhile and says what was being done.
    pub handshaking: Option<Arc<AtomicBool>>,
}

impl ConnectOptions {
    fn has_buffers(&self) -> bool {
        self.rcvbuf.is_some() || self.sndbuf.is_some()
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            bind: None,
            transparent: false,
            proxy_header: None,
            keepalive: false,
            rcvbuf: None,
            sndbuf: None,
            tls: None,
            handshaking: None,
        }
    }
}

/// Which requests to a peer may share connections.
#[derive(Debug, Clone, Copy)]
pub struct Tag<'a> {
    /// The location: counts where `keepalive` is local to it.
    pub location: u64,
    /// What its configuration says of connections.
    pub identity: &'a Arc<Identity>,
    /// What of that depends on the request: the values of variables ([`own`]); empty where nothing does.
    pub own: &'a [u8],
}

impl From<u64> for Tag<'static> {
    fn from(location: u64) -> Self {
        Self {
            location,
            identity: Identity::plain(),
            own: b"",
        }
    }
}

/// Appends a value to what [`Tag::own`] compares; `kind` tells which one it is.
pub fn own(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&(value.len() as u64).to_be_bytes());
    out.extend_from_slice(value);
}

/// TLS to a peer.
#[derive(Debug)]
pub struct ConnectTls {
    /// The location's context.
    pub client: Arc<Client>,
    /// What this connection says.
    pub hello: Hello,
    /// The name that the peer's certificate must be for, where it is verified.
    pub name: Box<[u8]>,
}

/// Speaks TLS on a connection that has been made.
async fn handshake(tls: &ConnectTls, plain: L4Stream) -> Result<Io, ConnectError> {
    let begun = tls.client.begin(&tls.hello);
    let ssl = begun.map_err(ConnectError::Setup)?;
    let mut stream = match SslStream::new(ssl, plain) {
        Ok(s) => Box::new(s),
        Err(e) => return Err(ConnectError::Setup(describe("SSL_new() failed", &e))),
    };
    if let Err(e) = Pin::new(&mut *stream).connect().await {
        tls.client.forget(&tls.hello);
        return Err(ConnectError::handshake(&e));
    }
    let checked = tls.client.check(stream.ssl(), &tls.name);
    checked.map_err(|text| {
        tls.client.forget(&tls.hello);
        ConnectError::Verify(text)
    })?;
    Ok(Io::Tls(stream))
}

/// Which idle connections may serve a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolKey<'a> {
    pub group: u32,
    pub peer: u32,
    pub tag: Tag<'a>,
}

/// What a connection serves: a [`PoolKey`] that it keeps.
#[derive(Debug)]
pub(super) struct ConnKey {
    pub group: u32,
    peer: u32,
    location: u64,
    identity: Arc<Identity>,
    own: Box<[u8]>,
}

impl<'a> PoolKey<'a> {
    pub fn new(group: &Group, peer: &Peer, tag: Tag<'a>) -> Self {
        let location = match group.keepalive.local {
            true => tag.location,
            false => 0,
        };
        Self {
            group: group.state.id,
            peer: peer.state.id,
            tag: Tag { location, ..tag },
        }
    }

    /// Whether a connection may serve the request.
    pub fn fits(&self, conn: &ConnKey) -> bool {
        self.peer == conn.peer
            && self.group == conn.group
            && self.tag.location == conn.location
            && Identity::is(self.tag.identity, &conn.identity)
            && *self.tag.own == *conn.own
    }

    /// The key for a new connection.
    pub fn keep(&self) -> ConnKey {
        ConnKey {
            group: self.group,
            peer: self.peer,
            location: self.tag.location,
            identity: self.tag.identity.clone(),
            own: self.tag.own.into(),
        }
    }

    /// The key in Pingora's pool. It may collide: what comes out is compared in full.
    pub fn hash(&self) -> u64 {
        hash(self.group, self.peer, self.tag)
    }
}

impl ConnKey {
    /// The same as [`PoolKey::hash`].
    pub fn hash(&self) -> u64 {
        let tag = Tag {
            location: self.location,
            identity: &self.identity,
            own: &self.own,
        };
        hash(self.group, self.peer, tag)
    }
}

fn hash(group: u32, peer: u32, tag: Tag<'_>) -> u64 {
    use std::hash::BuildHasher;
    let mixed = (u64::from(group) << 32) | u64::from(peer);
    let own = match tag.own {
        [] => 0,
        own => foldhash::fast::FixedState::default().hash_one(own),
    };
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ tag.location
        ^ tag.identity.hash()
        ^ own.rotate_left(32)
}

/// A peer in Pingora's terms; nothing in it is resolved or can panic.
#[derive(Debug, Clone)]
pub(super) struct Target {
    addr: L4Addr,
    key: u64,
    options: Option<Box<PeerOptions>>,
}

impl Target {
    pub fn new(peer: &Peer, key: PoolKey<'_>, options: &ConnectOptions) -> Self {
        let special = options.bind.is_some() || options.keepalive || options.has_buffers();
        Self {
            addr: peer.backend.addr.clone(),
            key: key.hash(),
            options: special.then(|| Box::new(peer_options(options))),
        }
    }
}

impl PingoraPeer for Target {
    fn address(&self) -> &L4Addr {
        &self.addr
    }

    // our own TLS, with nginx's settings, comes above the connection
    fn tls(&self) -> bool {
        false
    }

    fn sni(&self) -> &str {
        ""
    }

    fn reuse_hash(&self) -> u64 {
        self.key
    }

    fn get_peer_options(&self) -> Option<&PeerOptions> {
        self.options.as_deref()
    }

    // The full key is compared after checkout, which spares a getpeername(2).
    fn matches_fd<V: AsRawFd>(&self, _: V) -> bool {
        true
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

type Tweak = Arc<dyn Fn(&TcpSocket) -> pingora_core::Result<()> + Send + Sync>;

/// Sets the sizes of a socket's buffers, and keepalive where it is asked for.
fn with_buffers(options: &ConnectOptions) -> Tweak {
    let (rcvbuf, sndbuf, keepalive) = (options.rcvbuf, options.sndbuf, options.keepalive);
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Arc::new(move |socket: &TcpSocket| {
        if keepalive {
            set(socket.set_keepalive(true), "SO_KEEPALIVE");
        }
        if let Some(n) = rcvbuf {
            set(socket.set_recv_buffer_size(size(n)), "SO_RCVBUF");
        }
        if let Some(n) = sndbuf {
            set(socket.set_send_buffer_size(size(n)), "SO_SNDBUF");
        }
        Ok(())
    })
}

/// As in nginx a socket without an option is better than none.
fn set(result: io::Result<()>, option: &str) {
    if let Err(e) = result {
        log::warn!("setsockopt({option}) failed: {e}, ignored");
    }
}

fn peer_options(options: &ConnectOptions) -> PeerOptions {
    static SO_KEEPALIVE: LazyLock<Tweak> = LazyLock::new(|| {
        Arc::new(|socket: &TcpSocket| {
            set(socket.set_keepalive(true), "SO_KEEPALIVE");
            Ok(())
        })
    });

    let mut out = PeerOptions::new();
    if let Some(local) = options.bind.filter(|_| options.transparent) {
        let keepalive = options.keepalive;
        out.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |socket: &TcpSocket| {
            if keepalive {
                SO_KEEPALIVE(socket)?;
            }
            bind_foreign(socket, local)
        }));
        return out;
    }
    if let Some(local) = options.bind {
        let mut bind = BindTo::default();
        bind.addr = Some(local);
        out.bind_to = Some(bind);
    }
    if options.has_buffers() {
        out.upstream_tcp_sock_tweak_hook = Some(with_buffers(options));
    } else if options.keepalive {
        out.upstream_tcp_sock_tweak_hook = Some(SO_KEEPALIVE.clone());
    }
    out
}

/// Binds to an address that may be another host's (the client's).
fn bind_foreign(socket: &TcpSocket, local: SocketAddr) -> pingora_core::Result<()> {
    // the flag of IPv4 is the one of IPv6 too
    let permitted = setsockopt(socket, sockopt::IpTransparent, &true);
    permitted.map_err(|e| Error::because(TRANSPARENT, "IP_TRANSPARENT", io::Error::from(e)))?;
    let bound = socket.bind(local);
    bound.map_err(|e| Error::because(ErrorType::BindError, "bind", e))
}

/// The error of a socket that may not be transparent.
const TRANSPARENT: ErrorType = ErrorType::Custom("transparent");

/// Why there is no connection; displays as in nginx's error log, action included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectError {
    /// `proxy_connect_timeout` has passed.
    TimedOut,
    /// connect(2) failed; `to` is set where the call itself failed, which nginx words differently.
    Connect {
        /// The error number.
        errno: i32,
        /// The peer's name.
        to: Option<Arc<str>>,
    },
    /// The address of `proxy_bind` could not be used.
    Bind {
        /// The error number.
        errno: i32,
        /// The address.
        local: SocketAddr,
    },
    /// `proxy_connect_timeout` has passed in the TLS handshake.
    HandshakeTimedOut,
    /// The TLS handshake failed.
    Handshake {
        /// nginx's text.
        text: String,
        /// Not one of the failures that peers are known to cause.
        crit: bool,
    },
    /// The peer's certificate was refused.
    Verify(String),
    /// TLS could not be prepared, which is no fault of the peer: the request ends with 500.
    Setup(String),
    /// Anything else: no descriptors left.
    Other(String),
}

impl ConnectError {
    fn new(e: &Error, peer: &Peer, options: &ConnectOptions) -> Self {
        let Some(errno) = errno_of(e) else {
            return Self::Other(e.to_string());
        };
        match (e.root_etype(), options.bind) {
            (ErrorType::BindError, Some(local)) => Self::Bind { errno, local },
            (t, _) if *t == TRANSPARENT => Self::Setup(format!(
                "setsockopt(IP_TRANSPARENT) failed {}",
                os_error(errno)
            )),
            (ErrorType::SocketError, _) => {
                Self::Other(format!("socket() failed {}", os_error(errno)))
            }
            _ => {
                let at_once = peer.backend.addr.as_unix().is_some() || fails_at_once(errno);
                let to = at_once.then(|| peer.name.clone());
                Self::Connect { errno, to }
            }
        }
    }

    fn handshake(e: &ssl::Error) -> Self {
        const CLOSED: &str = "peer closed connection in SSL handshake";
        if let Some(io) = e.io_error() {
            let errno = io.raw_os_error().unwrap_or(0);
            let common = matches!(
                errno,
                0 | libc::ECONNRESET
                    | libc::EPIPE
                    | libc::ENOTCONN
                    | libc::ETIMEDOUT
                    | libc::ECONNREFUSED
                    | libc::ENETDOWN
                    | libc::ENETUNREACH
                    | libc::EHOSTDOWN
                    | libc::EHOSTUNREACH
            );
            let text = match errno {
                0 => CLOSED.to_owned(),
                _ => format!("{CLOSED} {}", os_error(errno)),
            };
            return Self::Handshake {
                text,
                crit: !common,
            };
        }
        match e.ssl_error().filter(|s| !s.errors().is_empty()) {
            Some(stack) => Self::Handshake {
                text: describe("SSL_do_handshake() failed", stack),
                crit: !is_common(stack),
            },
            None => Self::Handshake {
                text: CLOSED.to_owned(),
                crit: false,
            },
        }
    }

    /// The attempt counts as a timeout for `proxy_next_upstream` (504), not as an error (502).
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::TimedOut
                | Self::HandshakeTimedOut
                | Self::Connect {
                    errno: libc::ETIMEDOUT,
                    ..
                }
        )
    }

    /// The word for it in `$upstream_failure`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TimedOut => "connect_timeout",
            Self::Connect { errno, .. } => match *errno {
                libc::ECONNREFUSED | libc::ENOENT => "refused",
                libc::ETIMEDOUT => "connect_timeout",
                libc::ECONNRESET | libc::EPIPE => "reset_before_header",
                libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
                    "unreachable"
                }
                _ => "connect",
            },
            Self::Bind { .. } => "bind",
            Self::HandshakeTimedOut => "tls_timeout",
            Self::Handshake { .. } => "tls_handshake",
            Self::Verify(_) => "tls_verify",
            Self::Setup(_) => "setup",
            Self::Other(_) => "connect",
        }
    }

    /// nginx logs it as `crit` instead of `error`.
    pub fn is_crit(&self) -> bool {
        match self {
            Self::Connect { errno, to: Some(_) } => !matches!(
                *errno,
                libc::ECONNREFUSED
                    | libc::EAGAIN
                    | libc::ECONNRESET
                    | libc::ENETDOWN
                    | libc::ENETUNREACH
                    | libc::EHOSTDOWN
                    | libc::EHOSTUNREACH
            ),
            Self::Bind { .. } => true,
            Self::Handshake { crit, .. } => *crit,
            Self::TimedOut
            | Self::HandshakeTimedOut
            | Self::Connect { to: None, .. }
            | Self::Verify(_)
            | Self::Setup(_)
            | Self::Other(_) => false,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut | Self::HandshakeTimedOut => {
                write!(f, "upstream timed out {}", os_error(libc::ETIMEDOUT))
            }
            Self::Connect { errno, to: None } => write!(f, "connect() failed {}", os_error(*errno)),
            Self::Connect {
                errno,
                to: Some(name),
            } => write!(f, "connect() to {name} failed {}", os_error(*errno)),
            Self::Bind { errno, local } if local.port() == 0 => {
                write!(f, "bind({}) failed {}", local.ip(), os_error(*errno))
            }
            Self::Bind { errno, local } => write!(f, "bind({local}) failed {}", os_error(*errno)),
            Self::Handshake { text, .. }
            | Self::Verify(text)
            | Self::Setup(text)
            | Self::Other(text) => f.write_str(text),
        }?;
        f.write_str(match self {
            Self::HandshakeTimedOut | Self::Handshake { .. } | Self::Verify(_) => {
                " while SSL handshaking to upstream"
            }
            _ => " while connecting to upstream",
        })
    }
}

impl std::error::Error for ConnectError {}

/// Errors that connect(2) gives before anything is sent.
fn fails_at_once(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH
            | libc::EACCES
            | libc::EPERM
            | libc::EADDRNOTAVAIL
            | libc::EINVAL
            | libc::EAFNOSUPPORT
    )
}

/// `(111: Connection refused)`.
fn os_error(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("({errno}: {text})")
}

fn errno_of(e: &Error) -> Option<i32> {
    let mut cause: &(dyn std::error::Error + 'static) = e.root_cause();
    loop {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        cause = cause.source()?;
    }
}

thread_local! {
    static CONNECTOR: std::cell::Cell<Option<&'static Connector>> = const { std::cell::Cell::new(None) };
}

/// Gives the calling thread its process's connector.
pub fn register_connector(connector: &'static Connector) {
    CONNECTOR.with(|c| c.set(Some(connector)));
}

/// The process's connector; `None` outside of a serving thread.
pub fn connector() -> Option<&'static Connector> {
    CONNECTOR.with(std::cell::Cell::get)
}

#[cfg(test)]
mod tests;
