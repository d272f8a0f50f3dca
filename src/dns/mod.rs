//! Names to addresses: the `resolver` directive at run time, the system's resolver while loading.

mod lookup;
mod message;
mod service;

pub use service::ServiceTarget;

use hickory_proto::rr::RecordType;
use lookup::Lookup;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrLike;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Asks the configured name servers, and them only; keeps answers for their TTL or `valid=`.
///
/// The servers take turns, each with its own name; one that is silent for 5 seconds hands it on to the next.
/// Requests for a name that is being asked for wait for that answer. Failures are not kept.
pub struct Resolver {
    conf: ResolverConf,
    /// The server whose turn it is, modulo their number.
    turn: AtomicUsize,
    names: Mutex<HashMap<Box<str>, Entry>>,
    /// Names asked for SRV records.
    services: Mutex<HashMap<Box<str>, Entry>>,
}

impl Resolver {
    /// Fails if no name server is given, or both address families are off.
    pub fn new(conf: ResolverConf) -> io::Result<Self> {
        if conf.servers.is_empty() {
            return Err(io::Error::other("no name servers defined"));
        }
        if !conf.ipv4 && !conf.ipv6 {
            return Err(io::Error::other(
                "\"ipv4\" and \"ipv6\" cannot both be \"off\"",
            ));
        }
        Ok(Self {
            conf,
            turn: AtomicUsize::new(0),
            names: Mutex::default(),
            services: Mutex::default(),
        })
    }

    /// The addresses of `name`, IPv4 ones first, rotated from call to call; never empty.
    ///
    /// An address literal is its own answer. Must be called inside a tokio runtime.
    pub async fn resolve(self: &Arc<Self>, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        self.resolve_within(name, self.conf.timeout).await
    }

    /// As [`Resolver::resolve`], with the `resolver_timeout` of the location.
    pub async fn resolve_within(
        self: &Arc<Self>,
        name: &str,
        timeout: Duration,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let literal = name
            .strip_prefix('[')
            .and_then(|n| n.strip_suffix(']'))
            .unwrap_or(name);
        if let Ok(ip) = literal.parse() {
            return Ok(vec![ip]);
        }
        self.resolve_until(name, timeout).await.map(|(ips, _)| ips)
    }

    /// The addresses of a name that is no literal, and when they are to be asked for again.
    pub async fn resolve_until(
        self: &Arc<Self>,
        name: &str,
        timeout: Duration,
    ) -> Result<(Vec<IpAddr>, Instant), ResolveError> {
        match within(timeout, self.follow(Kind::Address, name)).await {
            Ok((Known::Addrs(addrs), until)) => Ok((addrs.rotated(), until)),
            Ok(_) => Err(ResolveError::failed(name, SERVFAIL)),
            Err(code) => Err(ResolveError::failed(name, code)),
        }
    }

    /// How long an answer that a name does not exist is believed.
    pub fn negative(&self) -> Duration {
        self.conf.valid.unwrap_or(Duration::from_secs(10))
    }

    /// `resolver_timeout`.
    pub fn timeout(&self) -> Duration {
        self.conf.timeout
    }

    /// Goes from CNAME to CNAME until there is what was asked for; the least time for which all of it holds.
    async fn follow(self: &Arc<Self>, kind: Kind, name: &str) -> Result<(Known, Instant), i32> {
        let mut key = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let mut least: Option<Instant> = None;
        for _ in 0..=MAX_CNAMES {
            let answer = match self.find(kind, &key) {
                Found::Known(known, until) => Ok((known, until)),
                Found::Pending(mut pending) => match pending.wait_for(Option::is_some).await {
                    Ok(answer) => answer.clone().unwrap_or(Err(SERVFAIL)),
                    // The asking task is gone, with its runtime.
                    Err(_) => Err(SERVFAIL),
                },
            };
            let (known, until) = answer?;
            let until = least.map_or(until, |least| least.min(until));
            least = Some(until);
            match known {
                Known::Cname(next) => key = next.as_ref().into(),
                known => return Ok((known, until)),
            }
        }
        Err(NXDOMAIN)
    }

    fn entries(&self, kind: Kind) -> &Mutex<HashMap<Box<str>, Entry>> {
        match kind {
            Kind::Address => &self.names,
            Kind::Service => &self.services,
        }
    }

    fn find(self: &Arc<Self>, kind: Kind, key: &str) -> Found {
        let mut names = self.entries(kind).lock();
        match names.get(key) {
            Some(Entry::Known { known, until }) if Instant::now() < *until => {
                return Found::Known(known.clone(), *until);
            }
            // A sender that is gone will never answer.
            Some(Entry::Pending(pending)) if pending.has_changed().is_ok() => {
                return Found::Pending(pending.clone());
            }
            _ => {}
        }
        if names.len() >= MANY_NAMES {
            let now = Instant::now();
            names.retain(|_, entry| entry.is_used(now));
        }

        let (answer, pending) = watch::channel(None);
        names.insert(key.into(), Entry::Pending(pending.clone()));
        // In a task of its own: it goes on for the others when the first one to ask gives up.
        tokio::spawn(self.clone().ask(kind, key.into(), answer));
        Found::Pending(pending)
    }

    async fn ask(
        self: Arc<Self>,
        kind: Kind,
        key: Box<str>,
        answer: watch::Sender<Option<Answer>>,
    ) {
        // The list of names holds a receiver too.
        let is_wanted = || {
            let mut names = self.entries(kind).lock();
            let is_wanted = answer.receiver_count() > 1;
            if !is_wanted {
                names.remove(&key);
            }
            is_wanted
        };
        let Some(result) = self.lookup(kind, &key, is_wanted).await else {
            return;
        };
        let result = result.map(|(known, ttl)| {
            let until = Instant::now() + self.conf.valid.unwrap_or(ttl);
            (known, until)
        });
        let mut names = self.entries(kind).lock();
        match &result {
            Ok((known, until)) => {
                let entry = Entry::Known {
                    known: known.clone(),
                    until: *until,
                };
                drop(names.insert(key, entry));
            }
            Err(_) => drop(names.remove(&key)),
        }
        drop(names);
        answer.send_replace(Some(result));
    }

    /// What the servers say, with its TTL; None if nobody waits for it any longer.
    async fn lookup(
        &self,
        kind: Kind,
        key: &str,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Result<(Known, Duration), i32>> {
        let ResolverConf { ipv4, ipv6, .. } = self.conf;
        let addresses = kind == Kind::Address;
        let kinds = [
            (addresses && ipv4, RecordType::A),
            (addresses && ipv6, RecordType::AAAA),
            (!addresses, RecordType::SRV),
        ];
        let kinds = kinds
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, kind)| kind);
        let lookup = match Lookup::new(&self.conf.servers, key, kinds) {
            Ok(lookup) => lookup,
            Err(code) => return Some(Err(code)),
        };
        let found = lookup
            .run(self.turn.fetch_add(1, Relaxed), is_wanted)
            .await?;
        Some(found.map(|found| {
            let (known, ttl) = match found {
                lookup::Found::Addrs(ips, ttl) => {
                    let next = AtomicUsize::new(0);
                    let ips = ips.into();
                    (Known::Addrs(Arc::new(Addrs { ips, next })), ttl)
                }
                lookup::Found::Services(list, ttl) => (Known::Services(list.into()), ttl),
                lookup::Found::Cname(name, ttl) => (Known::Cname(name.into()), ttl),
            };
            (known, Duration::from_secs(ttl.into()))
        }))
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A and AAAA records.
    Address,
    /// SRV records.
    Service,
}

/// Bounds a wait; zero is without bounds.
async fn within<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, i32>>,
) -> Result<T, i32> {
    if timeout.is_zero() {
        return answer.await;
    }
    let limited = tokio::time::timeout(timeout, answer).await;
    limited.unwrap_or(Err(libc::ETIMEDOUT))
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("conf", &self.conf)
            .finish_non_exhaustive()
    }
}

/// Names known at once before those that expired are looked for; names may come from clients.
const MANY_NAMES: usize = 1024;

/// The longest chain of CNAMEs, as in nginx.
const MAX_CNAMES: usize = 50;

/// The `resolver` and `resolver_timeout` directives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverConf {
    /// Name servers; the port is 53 unless written.
    pub servers: Vec<SocketAddr>,
    /// `valid=`: how long an answer is used, whatever its TTL says.
    pub valid: Option<Duration>,
    /// `ipv4=`: ask for A records.
    pub ipv4: bool,
    /// `ipv6=`: ask for AAAA records.
    pub ipv6: bool,
    /// `resolver_timeout`.
    pub timeout: Duration,
}

impl ResolverConf {
    /// With nginx's defaults.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            valid: None,
            ipv4: true,
            ipv6: true,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Why a name has no addresses; displays as in nginx's error log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveError {
    /// No `resolver` is configured where one is needed.
    NoResolver {
        /// The name.
        name: String,
    },
    /// The name servers gave none.
    Failed {
        /// The name as asked for.
        name: String,
        /// The DNS response code, or ETIMEDOUT.
        code: i32,
    },
}

impl ResolveError {
    fn failed(name: &str, code: i32) -> Self {
        Self::Failed {
            name: name.into(),
            code,
        }
    }

    /// The DNS response code, or ETIMEDOUT; 0 without a resolver.
    pub fn code(&self) -> i32 {
        match self {
            Self::NoResolver { .. } => 0,
            Self::Failed { code, .. } => *code,
        }
    }

    /// The name servers said that the name does not exist, or has no such records.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed { code: NXDOMAIN, .. })
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoResolver { name } => write!(f, "no resolver defined to resolve {name}"),
            Self::Failed { name, code } => {
                write!(
                    f,
                    "{name} could not be resolved ({code}: {})",
                    code_text(*code)
                )
            }
        }
    }
}

impl std::error::Error for ResolveError {}

/// The addresses of a name by the system's resolver, `/etc/hosts` included, IPv4 ones first; blocks.
///
/// As with getaddrinfo(3)'s AI_ADDRCONFIG, a family that no interface but loopback has is left out if the
/// other one is there. The error reads `host not found`, to be followed by `in upstream "x"`.
pub fn resolve_at_load(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    crate::config::load_inputs::resolve(host, port, || by_the_system(host, port))
}

fn by_the_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let not_found = || io::Error::new(io::ErrorKind::NotFound, "host not found");
    let mut found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|_| not_found())?
        .collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.dedup();
    let is_literal = host.parse::<IpAddr>().is_ok();
    let (has_v4, has_v6) = configured_families();
    if !is_literal && has_v4 != has_v6 {
        found.retain(|addr| addr.is_ipv4() == has_v4);
    }
    if found.is_empty() {
        return Err(not_found());
    }
    Ok(found)
}

/// Whether an interface other than loopback has an IPv4, and an IPv6 address.
fn configured_families() -> (bool, bool) {
    let mut seen = (false, false);
    for address in getifaddrs().into_iter().flatten().filter_map(|i| i.address) {
        match address.family() {
            Some(nix::sys::socket::AddressFamily::Inet) => {
                seen.0 |= address
                    .as_sockaddr_in()
                    .is_some_and(|a| !a.ip().is_loopback());
            }
            Some(nix::sys::socket::AddressFamily::Inet6) => {
                seen.1 |= address
                    .as_sockaddr_in6()
                    .is_some_and(|a| !a.ip().is_loopback());
            }
            _ => {}
        }
    }
    seen
}

type Answer = Result<(Known, Instant), i32>;

/// What a name stands for.
#[derive(Debug, Clone)]
enum Known {
    Addrs(Arc<Addrs>),
    Services(Arc<[message::Service]>),
    Cname(Arc<str>),
}

enum Entry {
    Known { known: Known, until: Instant },
    Pending(watch::Receiver<Option<Answer>>),
}

impl Entry {
    fn is_used(&self, now: Instant) -> bool {
        match self {
            Self::Known { until, .. } => now < *until,
            Self::Pending(pending) => pending.has_changed().is_ok(),
        }
    }
}

enum Found {
    Known(Known, Instant),
    Pending(watch::Receiver<Option<Answer>>),
}

#[derive(Debug)]
struct Addrs {
    ips: Box<[IpAddr]>,
    next: AtomicUsize,
}

impl Addrs {
    fn rotated(&self) -> Vec<IpAddr> {
        let start = self.next.fetch_add(1, Relaxed) % self.ips.len().max(1);
        let (before, after) = self.ips.split_at(start);
        [after, before].concat()
    }
}

const SERVFAIL: i32 = 2;
pub(super) const NXDOMAIN: i32 = 3;

pub(super) fn code_text(code: i32) -> &'static str {
    match code {
        1 => "Format error",
        SERVFAIL => "Server failure",
        NXDOMAIN => "Host not found",
        4 => "Unimplemented",
        5 => "Operation refused",
        libc::ETIMEDOUT => "Operation timed out",
        _ => "Unknown error",
    }
}

#[cfg(test)]
mod tests;
