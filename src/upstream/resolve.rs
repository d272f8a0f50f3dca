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
    crate::config::outside::resolve(host, port, || by_the_system(host, port))
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
mod tests {
    use super::*;
    use tokio::net::UdpSocket;

    /// A name server on loopback; counts the queries that it answered.
    struct Server {
        addr: SocketAddr,
        queries: Arc<AtomicUsize>,
    }

    impl Server {
        async fn start() -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let addr = socket.local_addr().unwrap();
            let queries = Arc::new(AtomicUsize::new(0));
            let counter = queries.clone();
            tokio::spawn(async move {
                let mut buf = [0; 1500];
                while let Ok((n, from)) = socket.recv_from(&mut buf).await {
                    if let Some(reply) = reply(&buf[..n]) {
                        counter.fetch_add(1, Relaxed);
                        socket.send_to(&reply, from).await.unwrap();
                    }
                }
            });
            Self { addr, queries }
        }

        fn resolver(&self, change: impl FnOnce(&mut ResolverConf)) -> Arc<Resolver> {
            let mut conf = ResolverConf::new(vec![self.addr]);
            change(&mut conf);
            Arc::new(Resolver::new(conf).unwrap())
        }
    }

    /// `two.test` has two A and one AAAA record, `four.test` one A, `short.test` TTL 0; `mute.test` gets
    /// no answer, `broken.test` SERVFAIL and the rest NXDOMAIN.
    fn reply(query: &[u8]) -> Option<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = 12;
        while query[at] != 0 {
            let len = usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..=at + len]).to_lowercase());
            at += len + 1;
        }
        let question = &query[12..at + 5];
        let kind = query[at + 2];
        let name = labels.join(".");
        let (a, aaaa) = (1, 28);
        let v4 = |last: u8| vec![127, 0, 0, last];
        let (rcode, ttl, data) = match (name.as_str(), kind) {
            ("mute.test", _) => return None,
            ("broken.test", _) => (2, 0, vec![]),
            ("two.test", k) if k == a => (0, 300, vec![v4(1), v4(2)]),
            ("two.test", k) if k == aaaa => {
                let mut v6 = vec![0; 15];
                v6.push(1);
                (0, 300, vec![v6])
            }
            ("four.test", k) if k == a => (0, 300, vec![v4(4)]),
            ("short.test", k) if k == a => (0, 0, vec![v4(5)]),
            ("four.test" | "short.test", _) => (0, 0, vec![]),
            _ => (3, 0, vec![]),
        };
        let mut out = query[..2].to_vec();
        out.extend([0x81, 0x80 | rcode, 0, 1, 0, data.len() as u8, 0, 0, 0, 0]);
        out.extend(question);
        for rdata in data {
            out.extend([0xc0, 12, 0, kind, 0, 1]);
            out.extend(u32::to_be_bytes(ttl));
            out.extend([0, rdata.len() as u8]);
            out.extend(rdata);
        }
        Some(out)
    }

    fn text(ips: Result<Vec<IpAddr>, ResolveError>) -> String {
        match ips {
            Ok(ips) => ips.iter().map(|ip| format!("{ip} ")).collect(),
            Err(e) => e.to_string(),
        }
    }

    #[tokio::test]
    async fn both_families_rotated_and_kept() {
        let server = Server::start().await;
        let resolver = server.resolver(|_| ());
        let ask = |name: &'static str| {
            let resolver = resolver.clone();
            async move { text(resolver.resolve(name).await) }
        };
        assert_eq!(ask("two.test").await, "127.0.0.1 127.0.0.2 ::1 ");
        assert_eq!(ask("TWO.test").await, "127.0.0.2 ::1 127.0.0.1 ");
        assert_eq!(ask("two.test.").await, "::1 127.0.0.1 127.0.0.2 ");
        assert_eq!(server.queries.load(Relaxed), 2, "A and AAAA, once");
        assert_eq!(ask("four.test").await, "127.0.0.4 ");
        assert_eq!(ask("192.0.2.7").await, "192.0.2.7 ");
        assert_eq!(ask("[::1]").await, "::1 ");
    }

    #[tokio::test]
    async fn families_can_be_off() {
        let server = Server::start().await;
        let v4 = server.resolver(|conf| conf.ipv6 = false);
        let v6 = server.resolver(|conf| conf.ipv4 = false);
        assert_eq!(text(v4.resolve("two.test").await), "127.0.0.1 127.0.0.2 ");
        assert_eq!(server.queries.load(Relaxed), 1);
        assert_eq!(text(v6.resolve("two.test").await), "::1 ");
        assert_eq!(
            text(v6.resolve("four.test").await),
            "four.test could not be resolved (3: Host not found)"
        );
    }

    #[tokio::test]
    async fn ttl_and_valid() {
        let server = Server::start().await;
        let by_ttl = server.resolver(|conf| conf.ipv6 = false);
        by_ttl.resolve("short.test").await.unwrap();
        by_ttl.resolve("short.test").await.unwrap();
        assert_eq!(server.queries.load(Relaxed), 2, "TTL 0 is not kept");
        let by_valid = server.resolver(|conf| {
            conf.ipv6 = false;
            conf.valid = Some(Duration::from_secs(30));
        });
        by_valid.resolve("short.test").await.unwrap();
        by_valid.resolve("short.test").await.unwrap();
        assert_eq!(server.queries.load(Relaxed), 3);
    }

    #[tokio::test]
    async fn requests_at_once_share_one_query() {
        let server = Server::start().await;
        let resolver = server.resolver(|conf| conf.ipv6 = false);
        let (a, b, c) = tokio::join!(
            resolver.resolve("four.test"),
            resolver.resolve("four.test"),
            resolver.resolve("FOUR.test"),
        );
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(server.queries.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn errors_read_as_in_nginx() {
        let server = Server::start().await;
        let resolver = server.resolver(|conf| conf.timeout = Duration::from_millis(200));
        let fail = |name: &'static str| {
            let resolver = resolver.clone();
            async move { text(resolver.resolve(name).await) }
        };
        assert_eq!(
            fail("none.test").await,
            "none.test could not be resolved (3: Host not found)"
        );
        assert_eq!(
            fail("mute.test").await,
            "mute.test could not be resolved (110: Operation timed out)"
        );
        assert_eq!(
            fail("a..b").await,
            "a..b could not be resolved (3: Host not found)"
        );
        assert_eq!(fail("").await, " could not be resolved (3: Host not found)");
        let patient = server.resolver(|_| ());
        assert_eq!(
            text(patient.resolve("broken.test").await),
            "broken.test could not be resolved (2: Server failure)"
        );
        let name = "x.test".to_owned();
        assert_eq!(
            ResolveError::NoResolver { name }.to_string(),
            "no resolver defined to resolve x.test"
        );
    }

    #[test]
    fn a_resolver_needs_servers_and_a_family() {
        assert!(Resolver::new(ResolverConf::new(vec![])).is_err());
        let mut conf = ResolverConf::new(vec!["127.0.0.1:53".parse().unwrap()]);
        (conf.ipv4, conf.ipv6) = (false, false);
        assert!(Resolver::new(conf).is_err());
    }

    #[test]
    fn names_at_load() {
        let found = resolve_at_load("localhost", 80).unwrap();
        assert_eq!(found[0], "127.0.0.1:80".parse().unwrap());
        assert_eq!(
            resolve_at_load("::1", 80).unwrap(),
            ["[::1]:80".parse().unwrap()]
        );
        let e = resolve_at_load("no such host", 80).unwrap_err();
        assert_eq!(e.to_string(), "host not found");
    }
}
