//! TLS handshakes with clients: the server by its name, certificates by variables, what the handshake settled.

use super::early::{self, Begun, Early};
use super::opening::Log;
use super::socket::Socket;
use super::tls_socket::Wire;
use super::transport::{AnyStream, Transport};
use crate::contract::{ConnInfo, DetachedConn, Remote, Request, SiteRef, TlsInfo, TlsServer};
use crate::http::host::parse_host;
use crate::log::{Errno, Level};
use crate::tls::accept::{self, Choice, H2, HTTP11, Hooks};
use crate::tls::{error, ffi};
use openssl::ssl::{self, ErrorCode, NameType, SslRef};
use parking_lot::Mutex;
use pingora::tls::tokio_ssl::SslStream;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Instant;

/// Makes the handshake of a new connection, and keeps in `info` what it settled.
///
/// `first` is the first byte of what has come. `None` where it failed, which is logged. A client that speaks plain HTTP is left as it is, to be told so.
pub(super) async fn handshake(
    site: &SiteRef,
    index: usize,
    socket: Socket,
    first: io::Result<Option<u8>>,
    info: &ConnInfo,
    log: &Log<'_>,
) -> Option<Transport> {
    let listener = site.listeners.get(index)?;
    let tls = listener.tls.as_ref()?;
    match first {
        Ok(Some(b)) if b & 0x80 != 0 || b == 0x16 => {}
        Ok(Some(_)) => return Some(socket.plain()),
        Ok(None) => {
            log.write(Level::Info, format_args!("client closed connection"));
            return None;
        }
        Err(e) => {
            log.write(Level::Info, format_args!("recv() failed{}", Errno::of(&e)));
            return None;
        }
    }
    let fd = socket.as_raw_fd();
    let outcome = Arc::new(Mutex::new(Handshake {
        server: listener.default_server,
        owner: listener.default_server,
        ..Handshake::default()
    }));
    let hooks = Http {
        site: site.clone(),
        index,
        outcome: outcome.clone(),
        remote: info.remote.clone(),
        local: info.local.clone(),
        serial: info.serial,
    };
    error::clear();
    let context = tls.default.context.load_full()?;
    let begun = accept::begin(
        &context.context,
        Box::new(hooks),
        tls.default.tickets.clone(),
    );
    let stream = begun.and_then(|ssl| SslStream::new(ssl, Wire::new(socket)));
    let mut stream = match stream {
        Ok(s) => s,
        Err(e) => {
            log.write(
                Level::Alert,
                format_args!("{}", error::describe("SSL_new() failed", &e)),
            );
            return None;
        }
    };
    let begun = if context.context.max_early_data() > 0 {
        early::begin(&mut stream).await
    } else {
        Ok(Begun::Nothing)
    };
    let done = match begun {
        Ok(Begun::Data(byte)) => Ok(Some(byte)),
        Ok(Begun::Nothing) => Pin::new(&mut stream).accept().await.map(|()| None),
        Err(e) => Err(e),
    };
    stream.get_mut().hold(false);
    let outcome = std::mem::take(&mut *outcome.lock());
    for text in &outcome.errors {
        log.write(Level::Error, format_args!("{text}"));
    }
    let first = match done {
        Ok(first) => first,
        Err(e) => {
            // the alert
            push(&mut stream).await;
            failed(&e, &outcome, log);
            return None;
        }
    };
    if first.is_some() {
        // the client waits for our half of the handshake, whatever becomes of its early request
        push(&mut stream).await;
    }
    let mut settled = describe(stream.ssl(), site, outcome.chosen_by);
    let owner = site.servers.get(outcome.owner as usize);
    if let Some(ocsp) = owner.and_then(|s| s.tls.as_ref()?.ocsp.clone()) {
        push(&mut stream).await;
        let location = owner.and_then(|s| site.locations.get(s.default_location as usize));
        let resolver = location.and_then(|l| l.core.resolver.as_ref());
        if let Some(doubt) = ocsp.validate(stream.ssl(), resolver).await {
            settled.ocsp = Some(doubt.verdict);
            if let Some(text) = doubt.log {
                log.write(Level::Error, format_args!("{text}"));
            }
        }
    }
    let early = settled.early.clone();
    let _ = info.tls.set(Arc::new(settled));
    let stream: Box<dyn AnyStream> = match first {
        Some(byte) => Box::new(Early::new(stream, byte, early)),
        None => Box::new(stream),
    };
    Some(Transport::Other(stream, fd))
}

impl AnyStream for SslStream<Wire> {
    fn hold(&mut self, on: bool) -> bool {
        self.get_mut().hold(on);
        true
    }
}

/// Sends what was held back, as far as the socket takes it.
async fn push(stream: &mut SslStream<Wire>) {
    poll_fn(|cx| {
        stream.get_mut().push(cx);
        Poll::Ready(())
    })
    .await;
}

/// Logs a handshake that failed, at nginx's levels.
fn failed(e: &ssl::Error, outcome: &Handshake, log: &Log<'_>) {
    if let Some(io) = e.io_error() {
        let level = match io.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::TimedOut => Level::Info,
            _ => Level::Crit,
        };
        log.write(
            level,
            format_args!("peer closed connection in SSL handshake{}", Errno::of(io)),
        );
        return;
    }
    let stack = e.ssl_error().filter(|s| !s.errors().is_empty());
    let (Some(stack), false) = (stack, e.code() == ErrorCode::ZERO_RETURN) else {
        log.write(
            Level::Info,
            format_args!("peer closed connection in SSL handshake"),
        );
        return;
    };
    if outcome.rejected {
        log.write(Level::Info, format_args!("handshake rejected"));
        return;
    }
    let level = if error::is_common(stack) {
        Level::Info
    } else {
        Level::Crit
    };
    log.write(
        level,
        format_args!("{}", error::describe("SSL_do_handshake() failed", stack)),
    );
}

/// What is known of the connection now; the costly values only where the site names them.
fn describe(ssl: &SslRef, site: &SiteRef, chosen_by: Option<Box<[u8]>>) -> TlsInfo {
    let mut more = Vec::new();
    let mut add = |name: &'static str, get: &dyn Fn(&SslRef) -> Vec<u8>| {
        if site.var_names.contains_key(name) {
            more.push((name, get(ssl)));
        }
    };
    add("ssl_ciphers", &ffi::offered_ciphers);
    add("ssl_curve", &ffi::curve);
    add("ssl_curves", &ffi::offered_curves);
    add("ssl_sigalg", &|s| ffi::sigalg(s, false));
    add("ssl_sigalgs", &ffi::offered_sigalgs);
    add("ssl_client_sigalg", &|s| ffi::sigalg(s, true));
    TlsInfo {
        protocol: ssl.version_str(),
        cipher: ssl.current_cipher().map_or("(NONE)", |c| c.name()),
        server_name: ssl.servername(NameType::HOST_NAME).map(str::to_owned),
        chosen_by,
        reused: ssl.session_reused(),
        session_id: ssl.session().map(|s| s.id().to_vec()).unwrap_or_default(),
        alpn: ssl.selected_alpn_protocol().map(<[u8]>::to_vec),
        client: ssl.peer_certificate(),
        verify: ssl.verify_result(),
        ocsp: None,
        early: Arc::default(),
        more,
    }
}

/// What the callbacks of a handshake found.
#[derive(Default)]
struct Handshake {
    /// The server that the client's name chose, else the default one.
    server: u32,
    /// The server whose context is used.
    owner: u32,
    chosen_by: Option<Box<[u8]>>,
    rejected: bool,
    errors: Vec<String>,
}

/// The virtual servers of a listener.
struct Http {
    site: SiteRef,
    index: usize,
    outcome: Arc<Mutex<Handshake>>,
    remote: Remote,
    local: Remote,
    serial: u64,
}

impl Hooks for Http {
    fn choose(&mut self, name: Option<&[u8]>) -> Choice {
        let found = name.and_then(|n| self.find(n));
        let outcome = &mut *self.outcome.lock();
        let mut choice = Choice::Keep;
        if let Some((server, name)) = found {
            outcome.server = server;
            outcome.chosen_by = Some(name);
            if let Some(ctx) = self.tls(server).and_then(|t| t.context.load_full()) {
                choice = if outcome.owner == server {
                    Choice::Keep
                } else {
                    Choice::Use(ctx.context.clone())
                };
                outcome.owner = server;
            }
        }
        if self.tls(outcome.server).is_some_and(|t| t.reject) {
            outcome.rejected = true;
            return Choice::Reject;
        }
        choice
    }

    fn certificates(&mut self, ssl: &mut SslRef) -> bool {
        let (server, owner) = {
            let o = self.outcome.lock();
            (o.server, o.owner)
        };
        let Some(dynamic) = self.tls(owner).and_then(|t| t.dynamic.as_ref()) else {
            return false;
        };
        let r = self.request(server, Some(describe(ssl, &self.site, None)));
        for (certificate, key) in &dynamic.pairs {
            let (certificate, key) = (certificate.eval(&r), key.eval(&r));
            if let Err(text) = dynamic.by_name.give(ssl, &certificate, &key) {
                self.outcome.lock().errors.push(text);
                return false;
            }
        }
        true
    }

    fn protocols(&self) -> &'static [u8] {
        let chosen = self.site.servers.get(self.outcome.lock().server as usize);
        let http2 = chosen.is_some_and(|s| s.conf.http2.enable)
            || self.site.listeners.get(self.index).is_some_and(|l| l.http2);
        if http2 { H2 } else { HTTP11 }
    }

    fn wants_id(&self) -> bool {
        self.site.var_names.contains_key("ssl_session_id")
    }
}

impl Http {
    fn tls(&self, server: u32) -> Option<&TlsServer> {
        self.site.servers.get(server as usize)?.tls.as_deref()
    }

    /// The server of a name, with the name in the form in which `Host` is compared.
    fn find(&self, name: &[u8]) -> Option<(u32, Box<[u8]>)> {
        let listener = self.site.listeners.get(self.index)?;
        let names = &listener.names;
        // where there is nothing to choose between, nginx does not look at the name
        if !listener.tls.as_ref()?.several && names.patterns.is_empty() {
            return None;
        }
        let (len, _) = parse_host(name)?;
        let host = name.get(..len)?.to_ascii_lowercase();
        let found = names.find_fixed(&host).or_else(|| {
            if names.patterns.is_empty() {
                None
            } else {
                names.find(&host, &mut self.request(listener.default_server, None))
            }
        });
        found.map(|n| (n, host.into()))
    }

    /// A request for evaluating variables before there is one.
    fn request(&self, server: u32, tls: Option<TlsInfo>) -> Request {
        let info = ConnInfo {
            serial: self.serial,
            remote: self.remote.clone(),
            local: self.local.clone(),
            listener: AtomicUsize::new(self.index),
            start: Instant::now(),
            requests: AtomicU64::new(0),
            tls: tls.map(|t| OnceLock::from(Arc::new(t))).unwrap_or_default(),
            proxy: OnceLock::new(),
        };
        let mut r = Request::new(self.site.clone(), Arc::new(DetachedConn::of(info)));
        r.server = server;
        r.location = self
            .site
            .servers
            .get(server as usize)
            .map_or(0, |s| s.default_location);
        r
    }
}
