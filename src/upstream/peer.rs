//! One address of an origin, and the state of it that all threads share.

use super::coarse_millis;
use super::health::{Checker, Health, WeakChecker};
use super::members::FoundName;
use super::outlier::Outlier;
use super::stats::Stats;
use super::timing::Timing;
use parking_lot::Mutex;
use pingora_core::protocols::l4::socket::SocketAddr as L4Addr;
use pingora_load_balancing::{Backend, Extensions};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};

/// One address that a group balances over: one per address of a `server` directive.
#[derive(Debug)]
pub struct Peer {
    /// Where to connect to.
    pub addr: PeerAddr,
    /// As shown in logs and `$upstream_addr`: `127.0.0.1:8080`, `[::1]:80`, `unix:/path`.
    pub name: Arc<str>,
    /// As written in the `server` directive.
    pub server: Arc<str>,
    /// `weight=`, at least 1.
    pub weight: u32,
    /// `max_fails=`; 0 turns the accounting of failures off.
    pub max_fails: u32,
    /// `fail_timeout=`, in seconds.
    pub fail_timeout: u64,
    /// `max_conns=`; 0 means no limit.
    pub max_conns: u32,
    /// `backup`.
    pub backup: bool,
    /// `down`.
    pub down: bool,
    /// `drain`: only requests of sessions that are bound to it.
    pub drain: bool,
    /// `slow_start=`, in milliseconds: how long it takes to get its full share after a recovery.
    pub slow_start: u64,
    /// What `sticky` calls it: `route=`, or the MD5 sum of its name in hexadecimal digits.
    pub sid: Arc<str>,
    /// Counters and failure state, shared by all threads and kept over a reload.
    pub state: Arc<PeerState>,
    /// Its number in the runtime API.
    pub id: u32,
    /// The number of the server whose name gave this address.
    pub parent: Option<u32>,
    pub(super) member: AtomicBool,
    pub(super) backend: Backend,
}

impl Peer {
    /// A peer with nginx's defaults: `weight=1 max_fails=1 fail_timeout=10s`.
    ///
    /// Fails if a unix socket's path does not fit into `sockaddr_un`.
    pub fn new(addr: PeerAddr, server: Arc<str>, state: Arc<PeerState>) -> io::Result<Self> {
        let mut ext = Extensions::new();
        // A health check learns by this which state its verdict belongs to.
        ext.insert(state.clone());
        let name: Arc<str> = addr.to_string().into();
        Ok(Self {
            sid: session_id(&name),
            name,
            backend: Backend {
                addr: addr.to_l4()?,
                weight: 1,
                ext,
            },
            addr,
            server,
            weight: 1,
            max_fails: 1,
            fail_timeout: 10,
            max_conns: 0,
            backup: false,
            down: false,
            drain: false,
            slow_start: 0,
            state,
            id: 0,
            parent: None,
            member: AtomicBool::new(true),
        })
    }

    /// A peer at one address of a `server` directive, with its parameters.
    pub(super) fn of(spec: &ServerSpec, addr: PeerAddr, state: Arc<PeerState>) -> io::Result<Self> {
        let mut peer = Self::new(addr, spec.server.as_str().into(), state)?;
        peer.set_weight(spec.weight);
        peer.max_fails = spec.max_fails;
        peer.fail_timeout = spec.fail_timeout;
        peer.max_conns = spec.max_conns;
        peer.backup = spec.backup;
        peer.down = spec.down;
        peer.drain = spec.drain;
        peer.slow_start = spec.slow_start;
        if let Some(route) = &spec.route {
            peer.sid = route.clone();
        }
        Ok(peer)
    }

    pub(super) fn set_weight(&mut self, weight: u32) {
        self.weight = weight.max(1);
        self.backend.weight = usize::try_from(self.weight).unwrap_or(usize::MAX);
    }

    /// May be picked as far as `down`, `drain`, discovery, health checks and ejection are concerned.
    pub fn usable(&self) -> bool {
        !self.drain && self.usable_in_session()
    }

    /// The same for a request whose session is bound to this peer, which `drain` does not keep out.
    pub fn usable_in_session(&self) -> bool {
        !self.down
            && self.member.load(Relaxed)
            && self.state.healthy.load(Relaxed)
            && !self.state.is_ejected()
    }

    /// May take a request at `now` (seconds) as far as anything but the request is concerned.
    pub fn is_open(&self, now: u64) -> bool {
        self.usable() && !self.is_failed(now) && !self.is_full()
    }

    /// Failed `max_fails` times and still inside `fail_timeout`; `now` in seconds.
    pub fn is_failed(&self, now: u64) -> bool {
        self.max_fails != 0
            && self.state.fails.load(Relaxed) >= self.max_fails
            && now.saturating_sub(self.state.checked.load(Relaxed)) <= self.fail_timeout
    }

    /// Has `max_conns` connections in use.
    pub fn is_full(&self) -> bool {
        self.max_conns != 0 && self.state.conns.load(Relaxed) >= self.max_conns
    }

    /// Counts one request more; false (and nothing counted) if `max_conns` is reached.
    pub fn acquire(&self) -> bool {
        let counted = if self.max_conns == 0 {
            self.state.conns.fetch_add(1, Relaxed);
            true
        } else {
            let below_limit = |n| (n < self.max_conns).then_some(n + 1);
            self.state
                .conns
                .fetch_update(Relaxed, Relaxed, below_limit)
                .is_ok()
        };
        if counted {
            self.state.requests.fetch_add(1, Relaxed);
        }
        counted
    }

    /// Takes a place, and the only one in a `fail_timeout` if the peer failed; false if another request was faster.
    pub fn claim(&self, now: u64) -> bool {
        if !self.acquire() {
            return false;
        }
        let state = &self.state;
        let checked = state.checked.load(Relaxed);
        if now.saturating_sub(checked) <= self.fail_timeout {
            return true;
        }
        let first = state
            .checked
            .compare_exchange(checked, now, Relaxed, Relaxed)
            .is_ok();
        if first || self.max_fails == 0 || state.fails.load(Relaxed) < self.max_fails {
            return true;
        }
        state.requests.fetch_sub(1, Relaxed);
        self.release();
        false
    }

    /// How much of its share the peer gets while `slow_start` lasts, in thousandths; `now_ms` as [`Clock::millis`].
    ///
    /// [`Clock::millis`]: super::Clock::millis
    pub fn share(&self, now_ms: u64) -> u32 {
        let since = self.state.warm_from.load(Relaxed);
        if self.slow_start == 0 || since == 0 {
            return 1000;
        }
        let part = now_ms.saturating_sub(since).saturating_mul(1000) / self.slow_start;
        u32::try_from(part.min(1000)).unwrap_or(1000)
    }

    pub(super) fn release(&self) {
        self.state.conns.fetch_sub(1, Relaxed);
    }
}

/// What `sticky` calls a peer without `route=`.
pub fn session_id(name: &str) -> Arc<str> {
    use md5::{Digest, Md5};
    use std::fmt::Write;
    let mut text = String::with_capacity(32);
    for byte in Md5::digest(name.as_bytes()) {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

/// The address of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerAddr {
    /// TCP over IPv4 or IPv6.
    Inet(SocketAddr),
    /// A unix domain socket with a path name.
    Unix(PathBuf),
}

impl PeerAddr {
    /// In Pingora's own type; fails if a path is too long for `sockaddr_un`.
    pub fn to_l4(&self) -> io::Result<L4Addr> {
        Ok(match self {
            Self::Inet(addr) => L4Addr::Inet(*addr),
            Self::Unix(path) => L4Addr::Unix(std::os::unix::net::SocketAddr::from_pathname(path)?),
        })
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(addr: SocketAddr) -> Self {
        Self::Inet(addr)
    }
}

/// One `server` directive with the addresses that its name stands for.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// The address as written.
    pub server: String,
    /// Its addresses; each one is a peer. None where `resolve` is given.
    pub addrs: Vec<PeerAddr>,
    /// `resolve` and `service=`: the name whose addresses are asked for again and again.
    pub resolve: Option<ResolveName>,
    /// `weight=`.
    pub weight: u32,
    /// `max_fails=`.
    pub max_fails: u32,
    /// `fail_timeout=`, in seconds.
    pub fail_timeout: u64,
    /// `max_conns=`.
    pub max_conns: u32,
    /// `backup`.
    pub backup: bool,
    /// `down`.
    pub down: bool,
    /// `drain`.
    pub drain: bool,
    /// `slow_start=`, in milliseconds.
    pub slow_start: u64,
    /// `route=`.
    pub route: Option<Arc<str>>,
}

impl ServerSpec {
    /// A server with nginx's defaults.
    pub fn new(server: impl Into<String>, addrs: Vec<PeerAddr>) -> Self {
        Self {
            server: server.into(),
            addrs,
            resolve: None,
            weight: 1,
            max_fails: 1,
            fail_timeout: 10,
            max_conns: 0,
            backup: false,
            down: false,
            drain: false,
            slow_start: 0,
            route: None,
        }
    }
}

/// A name that is resolved while it is in use (`server name resolve`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResolveName {
    /// The host.
    pub host: String,
    /// The port of every address; with `service` it comes from the SRV records.
    pub port: u16,
    /// `service=`: SRV records are asked for.
    pub service: Option<String>,
}

/// What all threads know about a peer. Times are seconds of the group's clock, 0 is never.
#[derive(Debug)]
pub struct PeerState {
    /// Identifies the peer in connection pools; never given twice in one process.
    pub id: u32,
    /// Requests that use the peer now.
    pub conns: AtomicU32,
    /// Requests sent to the peer so far.
    pub requests: AtomicU64,
    /// Failures since the last success after a check.
    pub fails: AtomicU32,
    /// When it failed last.
    pub accessed: AtomicU64,
    /// When it was last tried, or failed, for `fail_timeout`.
    pub checked: AtomicU64,
    /// The verdict of active health checks; true without them. Set it with [`PeerState::set_healthy`].
    pub healthy: AtomicBool,
    pub(super) health: Health,
    /// What the runtime API shows.
    pub stats: Stats,
    /// When the peer came back, in milliseconds of the clock: where `slow_start` begins; 0 is never.
    pub warm_from: AtomicU64,
    /// How long it takes to answer, for methods that look at it.
    pub timing: Mutex<Timing>,
    /// What `outlier_detection` knows of it.
    pub outlier: Outlier,
}

impl PeerState {
    /// A peer that nobody has used yet.
    pub fn new() -> Self {
        Self {
            id: next_id(),
            conns: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            fails: AtomicU32::new(0),
            accessed: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
            health: Health::default(),
            stats: Stats::default(),
            warm_from: AtomicU64::new(0),
            timing: Mutex::default(),
            outlier: Outlier::default(),
        }
    }

    /// Takes a verdict of a health check; a peer that becomes healthy starts slowly.
    pub fn set_healthy(&self, healthy: bool) {
        if self.healthy.swap(healthy, Relaxed) != healthy && healthy {
            self.came_back(coarse_millis());
        }
    }

    /// The peer is there again after it was not: `slow_start` begins.
    pub fn came_back(&self, now_ms: u64) {
        self.warm_from.store(now_ms.max(1), Relaxed);
    }

    /// Whether `outlier_detection` keeps it out now.
    pub fn is_ejected(&self) -> bool {
        let until = self.outlier.ejected_until.load(Relaxed);
        until != 0 && coarse_millis() < until
    }
}

impl Default for PeerState {
    fn default() -> Self {
        Self::new()
    }
}

/// What outlives a configuration of a group: its identity, its peers' states, its shared idle connections.
#[derive(Debug)]
pub struct GroupState {
    /// Identifies the group in connection pools; never given twice in one process.
    pub id: u32,
    /// Idle connections of the group in the pool that all threads share.
    pub shared_idle: AtomicU32,
    /// The addresses that names had last, by name and service.
    pub(super) found: Mutex<HashMap<(String, Option<String>), FoundName>>,
    /// Checks that a new peer must pass before it is used.
    mandatory: Mutex<Vec<WeakChecker>>,
    peers: Mutex<HashMap<PeerKey, Weak<PeerState>>>,
}

/// Name of a peer and how many equal ones stand before it in the group.
type PeerKey = (Arc<str>, u32);

impl GroupState {
    /// A group that no configuration shares.
    pub fn new() -> Self {
        Self {
            id: next_id(),
            shared_idle: AtomicU32::new(0),
            found: Mutex::default(),
            mandatory: Mutex::default(),
            peers: Mutex::default(),
        }
    }

    /// The state of the `nth` peer called `name`: kept from an earlier configuration, or new.
    pub fn peer(&self, name: &Arc<str>, nth: u32) -> Arc<PeerState> {
        let mut peers = self.peers.lock();
        let key = (name.clone(), nth);
        if let Some(kept) = peers.get(&key).and_then(Weak::upgrade) {
            return kept;
        }
        // now and then, so that thousands of peers do not look at each other
        if peers.len().is_power_of_two() {
            peers.retain(|_, state| state.strong_count() > 0);
        }
        let state = Arc::new(PeerState::new());
        let mut mandatory = self.mandatory.lock();
        mandatory.retain(WeakChecker::is_there);
        if !mandatory.is_empty() {
            state.await_check();
        }
        peers.insert(key, Arc::downgrade(&state));
        state
    }

    /// From now on a new peer is not used before `checker` has found it healthy (`health_check mandatory`).
    pub fn require_check(&self, checker: &Checker) {
        self.mandatory.lock().push(checker.weak());
    }
}

impl Default for GroupState {
    fn default() -> Self {
        Self::new()
    }
}

/// The states of groups by name, outside any configuration; what nobody uses any more is dropped.
#[derive(Debug, Default)]
pub struct PeerStateStore {
    groups: Mutex<HashMap<Box<str>, Weak<GroupState>>>,
}

impl PeerStateStore {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The registry of the process.
    pub fn global() -> &'static Self {
        static GLOBAL: LazyLock<PeerStateStore> = LazyLock::new(PeerStateStore::new);
        &GLOBAL
    }

    /// The state of the group `name`: kept from an earlier configuration, or new.
    pub fn group(&self, name: &str) -> Arc<GroupState> {
        let mut groups = self.groups.lock();
        if let Some(kept) = groups.get(name).and_then(Weak::upgrade) {
            return kept;
        }
        groups.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(GroupState::new());
        groups.insert(name.into(), Arc::downgrade(&state));
        state
    }
}

fn next_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_nginx_does() {
        let name = |a: &str| PeerAddr::from(a.parse::<SocketAddr>().unwrap()).to_string();
        assert_eq!(name("127.0.0.1:8080"), "127.0.0.1:8080");
        assert_eq!(name("[::1]:80"), "[::1]:80");
        assert_eq!(
            PeerAddr::Unix("/run/app.sock".into()).to_string(),
            "unix:/run/app.sock"
        );
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        let long = PeerAddr::Unix("/x".repeat(100).into());
        assert!(Peer::new(long, "x".into(), Arc::default()).is_err());
    }

    #[test]
    fn state_survives_while_somebody_holds_it() {
        let registry = PeerStateStore::new();
        let name: Arc<str> = "127.0.0.1:80".into();
        let group = registry.group("app");
        let first = group.peer(&name, 0);
        first.fails.store(3, Relaxed);

        let again = registry.group("app").peer(&name, 0);
        assert_eq!(again.fails.load(Relaxed), 3);
        // The same address written twice is two peers.
        assert_ne!(registry.group("app").peer(&name, 1).id, first.id);
        assert_ne!(registry.group("other").peer(&name, 0).id, first.id);

        drop((first, again, group));
        let fresh = registry.group("app").peer(&name, 0);
        assert_eq!(fresh.fails.load(Relaxed), 0);
    }
}
