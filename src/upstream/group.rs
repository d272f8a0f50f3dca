//! A group of peers: an `upstream {}` block, or an upstream that `proxy_pass` implies.

use super::Clock;
use super::peer::{GroupState, Peer, PeerAddr, PeerState, Registry, ServerSpec};
use super::round_robin::{RoundRobin, Weight};
use super::selection::{Selection, load_balancer};
use parking_lot::Mutex;
use pingora_load_balancing::LoadBalancer;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Peers, how one of them is chosen, and how many connections to them are kept.
///
/// Membership and health are Pingora's `LoadBalancer`'s; [`Group::pick`] reads our own array, which the
/// [`Selection`] built by the `LoadBalancer` keeps in step, so that picking allocates nothing.
pub struct Group {
    /// The name of the `upstream`; `$upstream_addr` shows it if no peer is live.
    pub name: Arc<str>,
    /// Which connections are kept open.
    pub keepalive: KeepaliveConf,
    /// What survives a reload.
    pub state: Arc<GroupState>,
    sets: Arc<Sets>,
    balancer: Option<LoadBalancer<Selection>>,
}

impl Group {
    /// An `upstream {}` block; states of its peers are found again in `registry`.
    pub fn new(
        name: &str,
        servers: Vec<ServerSpec>,
        balance: impl Balance,
        keepalive: KeepaliveConf,
        registry: &Registry,
        clock: Clock,
    ) -> Result<Self, GroupError> {
        let state = registry.group(name);
        let mut seen: HashMap<Arc<str>, u32> = HashMap::new();
        let mut primary = Vec::new();
        let mut backup = Vec::new();
        for spec in servers {
            let server: Arc<str> = spec.server.as_str().into();
            for addr in spec.addrs {
                let shown: Arc<str> = addr.to_string().into();
                let nth = seen.entry(shown.clone()).or_default();
                let mut peer = Peer::new(addr, server.clone(), state.peer(&shown, *nth))
                    .map_err(GroupError::Address)?;
                *nth += 1;
                peer.weight = spec.weight.max(1);
                peer.backend.weight = usize::try_from(peer.weight).unwrap_or(usize::MAX);
                peer.max_fails = spec.max_fails;
                peer.fail_timeout = spec.fail_timeout;
                peer.max_conns = spec.max_conns;
                peer.backup = spec.backup;
                peer.down = spec.down;
                if spec.backup {
                    backup.push(peer);
                } else {
                    primary.push(peer);
                }
            }
        }
        if primary.is_empty() {
            return Err(GroupError::NoServers(name.into()));
        }

        let alone = backup.is_empty();
        let sets = Arc::new(Sets {
            primary: PeerSet::new(primary, alone),
            backup: (!alone).then(|| PeerSet::new(backup, false)),
            balance: Box::new(balance),
            clock,
        });
        let balancer = load_balancer(&sets);
        Ok(Self {
            name: name.into(),
            keepalive,
            state,
            sets,
            balancer: Some(balancer),
        })
    }

    /// An upstream implied by `proxy_pass` to addresses: equal weights and, as in nginx, no kept connections.
    pub fn single(name: &str, addrs: Vec<PeerAddr>) -> Result<Self, GroupError> {
        let server: Arc<str> = name.into();
        let peers = addrs
            .into_iter()
            .map(|addr| Peer::new(addr, server.clone(), Arc::new(PeerState::new())))
            .collect::<io::Result<Vec<_>>>()
            .map_err(GroupError::Address)?;
        if peers.is_empty() {
            return Err(GroupError::NoServers(name.into()));
        }
        Ok(Self {
            name: server,
            keepalive: KeepaliveConf::off(),
            state: Arc::new(GroupState::new()),
            sets: Arc::new(Sets {
                primary: PeerSet::new(peers, true),
                backup: None,
                balance: Box::new(RoundRobin),
                clock: Clock::system(),
            }),
            balancer: None,
        })
    }

    /// The state of choice for one request.
    pub fn start(&self) -> PickState {
        let backup = self.sets.backup.as_ref().map_or(0, |set| set.tries);
        PickState {
            tries: self.sets.primary.tries + backup,
            ..PickState::default()
        }
    }

    /// Chooses a peer that this request has not tried; `None` is nginx's "no live upstreams".
    ///
    /// Backup servers come in when no primary one is left, and stay for the rest of the request.
    pub fn pick(&self, r: &mut PickState) -> Option<Picked<'_>> {
        let (set, peer, index) = self.sets.pick(r)?;
        Some(Picked {
            sets: &self.sets,
            set,
            peer,
            index,
        })
    }

    /// All peers, primary ones first.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.sets.peers()
    }

    /// Pingora's view of the group: membership and health; none for an implied upstream.
    pub fn load_balancer(&self) -> Option<&LoadBalancer<Selection>> {
        self.balancer.as_ref()
    }

    /// Copies the verdicts of the `LoadBalancer`'s health checks to where [`Group::pick`] reads them.
    pub fn sync_health(&self) {
        if let Some(balancer) = &self.balancer {
            for peer in self.peers() {
                let ready = balancer.backends().ready(&peer.backend);
                peer.state.healthy.store(ready, Relaxed);
            }
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name)
            .field("keepalive", &self.keepalive)
            .field("peers", &self.peers().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Why a group cannot be built.
#[derive(Debug)]
pub enum GroupError {
    /// No server, or backup servers only.
    NoServers(String),
    /// An address that no socket can have.
    Address(io::Error),
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServers(name) => write!(f, "no servers in upstream \"{name}\""),
            Self::Address(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for GroupError {}

/// `keepalive`, `keepalive_requests`, `keepalive_time` and `keepalive_timeout` of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepaliveConf {
    /// Idle connections kept per thread, over all peers of the group; 0 keeps none.
    pub connections: u32,
    /// Requests after which a connection is closed.
    pub requests: u64,
    /// Age beyond which a connection is closed after a request.
    pub time: Duration,
    /// How long a connection may be idle.
    pub timeout: Duration,
    /// Only the location that opened a connection uses it again.
    pub local: bool,
}

impl KeepaliveConf {
    /// Keeps nothing: what an implied upstream has.
    pub fn off() -> Self {
        Self {
            connections: 0,
            ..Self::default()
        }
    }
}

impl Default for KeepaliveConf {
    /// What an `upstream {}` without `keepalive` has.
    fn default() -> Self {
        Self {
            connections: 32,
            requests: 1000,
            time: Duration::from_secs(3600),
            timeout: Duration::from_secs(60),
            local: true,
        }
    }
}

/// A method of balancing.
pub trait Balance: Send + Sync + 'static {
    /// Chooses a peer that `r` has not tried, marks it tried and takes a place on it (`Peer::acquire`).
    ///
    /// `now` is in seconds of the group's clock. `None`: no peer of this set can take the request.
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize>;
}

/// The primary or the backup servers of a group.
#[derive(Debug)]
pub struct PeerSet {
    /// The peers, in the order of the configuration.
    pub peers: Box<[Peer]>,
    /// The moving weights of round robin, which other methods fall back to.
    pub weights: Mutex<Box<[Weight]>>,
    /// The sum of all configured weights.
    pub total_weight: u64,
    single: bool,
    tries: u32,
}

impl PeerSet {
    fn new(peers: Vec<Peer>, alone: bool) -> Self {
        Self {
            weights: Mutex::new(peers.iter().map(|p| Weight::new(p.weight)).collect()),
            total_weight: peers.iter().map(|p| u64::from(p.weight)).sum(),
            single: alone && peers.len() == 1,
            tries: u32::try_from(peers.iter().filter(|p| !p.down).count()).unwrap_or(u32::MAX),
            peers: peers.into(),
        }
    }
}

/// What one request has tried so far.
#[derive(Debug, Clone, Default)]
pub struct PickState {
    /// Attempts left; `proxy_next_upstream_tries` lowers it, see [`PickState::limit_tries`].
    pub tries: u32,
    /// What hashing methods hash.
    pub key: SmallVec<[u8; 16]>,
    on_backup: bool,
    tried: SmallVec<[u64; 2]>,
}

impl PickState {
    /// A first attempt of a hashing method over `key`.
    pub fn with_key(key: &[u8]) -> Self {
        Self {
            key: SmallVec::from_slice(key),
            ..Self::default()
        }
    }

    /// Applies `proxy_next_upstream_tries`; 0 means no limit.
    pub fn limit_tries(&mut self, limit: u32) {
        if limit != 0 {
            self.tries = self.tries.min(limit);
        }
    }

    /// Whether the `i`th peer of the current set was tried.
    pub fn is_tried(&self, i: usize) -> bool {
        self.tried
            .get(i / 64)
            .is_some_and(|word| word & (1 << (i % 64)) != 0)
    }

    /// Keeps the `i`th peer of the current set from being picked again.
    pub fn mark_tried(&mut self, i: usize) {
        let word = i / 64;
        if self.tried.len() <= word {
            self.tried.resize(word + 1, 0);
        }
        if let Some(word) = self.tried.get_mut(word) {
            *word |= 1 << (i % 64);
        }
    }
}

/// How an attempt ended, for the peer's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, or the request ended for a reason that is not the peer's.
    Ok,
    /// It answered 403 or 404 and the next peer is asked: no failure of the peer.
    Next,
    /// Error, timeout, invalid header, or a status that `proxy_next_upstream` names.
    Failed,
}

/// A peer in use. Dropping it is the same as [`Outcome::Ok`], except that no attempt is counted.
#[derive(Debug)]
pub struct Picked<'g> {
    sets: &'g Sets,
    set: &'g PeerSet,
    peer: &'g Peer,
    index: usize,
}

impl<'g> Picked<'g> {
    /// The chosen peer.
    pub fn peer(&self) -> &'g Peer {
        self.peer
    }

    /// Books the end of the attempt.
    ///
    /// True if the peer is out of use now: nginx warns "upstream server temporarily disabled".
    pub fn done(self, outcome: Outcome, r: &mut PickState) -> bool {
        if self.set.single {
            r.tries = 0;
            return false;
        }
        r.tries = r.tries.saturating_sub(1);
        if outcome != Outcome::Failed {
            return false;
        }

        let state = &self.peer.state;
        let now = self.sets.clock.now();
        let fails = state.fails.fetch_add(1, Relaxed).saturating_add(1);
        state.accessed.store(now, Relaxed);
        state.checked.store(now, Relaxed);
        if let Some(weight) = self.set.weights.lock().get_mut(self.index) {
            weight.penalise(self.peer.weight, self.peer.max_fails);
        }
        self.peer.max_fails != 0 && fails >= self.peer.max_fails
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        let state = &self.peer.state;
        // A success after a check; right after `Outcome::Failed` both times are equal.
        let passed = self.set.single || state.accessed.load(Relaxed) < state.checked.load(Relaxed);
        if passed && state.fails.load(Relaxed) != 0 {
            state.fails.store(0, Relaxed);
        }
        self.peer.release();
    }
}

/// The peers of a group and how they are balanced.
pub(super) struct Sets {
    primary: PeerSet,
    backup: Option<PeerSet>,
    balance: Box<dyn Balance>,
    clock: Clock,
}

impl Sets {
    /// One address without a backup: it is never given up.
    pub fn is_single(&self) -> bool {
        self.primary.single
    }

    pub fn pick(&self, r: &mut PickState) -> Option<(&PeerSet, &Peer, usize)> {
        if !r.on_backup {
            let found = self.pick_from(&self.primary, r);
            if found.is_some() {
                return found;
            }
            if self.backup.is_some() {
                r.on_backup = true;
                r.tried.clear();
            }
        }
        self.pick_from(self.backup.as_ref()?, r)
    }

    fn pick_from<'s>(
        &self,
        set: &'s PeerSet,
        r: &mut PickState,
    ) -> Option<(&'s PeerSet, &'s Peer, usize)> {
        let index = if set.single {
            // A lone peer is asked whatever it did before.
            set.peers.first().filter(|p| p.usable() && p.acquire())?;
            0
        } else {
            self.balance.pick(set, r, self.clock.now())?
        };
        Some((set, set.peers.get(index)?, index))
    }

    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        let backup = self.backup.iter().flat_map(|set| set.peers.iter());
        self.primary.peers.iter().chain(backup)
    }
}

impl fmt::Debug for Sets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sets")
            .field("primary", &self.primary)
            .field("backup", &self.backup)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    pub(in super::super) fn spec(port: u16) -> ServerSpec {
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        ServerSpec::new(addr.to_string(), vec![addr.into()])
    }

    pub(in super::super) fn group(servers: Vec<ServerSpec>) -> (Group, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(1000));
        let clock = Clock::manual(now.clone());
        let registry = Registry::new();
        let keepalive = KeepaliveConf::default();
        let group = Group::new("app", servers, RoundRobin, keepalive, &registry, clock);
        (group.unwrap(), now)
    }

    /// Picks of `n` successful requests; port 1 is `a`.
    pub(in super::super) fn letters(group: &Group, n: usize) -> String {
        let letter = |_| {
            let mut r = group.start();
            let Some(picked) = group.pick(&mut r) else {
                return '-';
            };
            let letter = letter_of(picked.peer());
            picked.done(Outcome::Ok, &mut r);
            letter
        };
        (0..n).map(letter).collect()
    }

    pub(in super::super) fn letter_of(peer: &Peer) -> char {
        match peer.addr {
            PeerAddr::Inet(addr) => char::from(b'a' - 1 + addr.port() as u8),
            PeerAddr::Unix(_) => 'u',
        }
    }

    fn fail_all(group: &Group) -> String {
        let mut r = group.start();
        let mut tried = String::new();
        while let Some(picked) = group.pick(&mut r) {
            tried.push(letter_of(picked.peer()));
            picked.done(Outcome::Failed, &mut r);
        }
        tried
    }

    #[test]
    fn a_failed_peer_rests_for_fail_timeout_and_is_forgiven_after_a_success() {
        let (group, now) = group(vec![spec(1), spec(2)]);
        let mut r = group.start();
        assert_eq!(r.tries, 2);
        let picked = group.pick(&mut r).unwrap();
        assert!(picked.done(Outcome::Failed, &mut r), "disabled");
        assert_eq!(r.tries, 1);
        assert_eq!(letters(&group, 4), "bbbb");

        now.fetch_add(10, Relaxed);
        assert_eq!(letters(&group, 3), "bbb", "not before fail_timeout is over");
        now.fetch_add(1, Relaxed);
        let after: String = letters(&group, 6);
        assert!(after.contains('a'), "{after}");
        assert_eq!(group.peers().next().unwrap().state.fails.load(Relaxed), 0);
    }

    #[test]
    fn a_peer_is_tried_once_in_a_request() {
        let (group, _) = group((1..=70).map(spec).collect());
        let mut r = group.start();
        let mut seen = BTreeSet::new();
        while let Some(picked) = group.pick(&mut r) {
            assert!(seen.insert(picked.peer().name.clone()));
            picked.done(Outcome::Next, &mut r);
        }
        assert_eq!((seen.len(), r.tries), (70, 0));
    }

    #[test]
    fn no_live_upstreams_until_fail_timeout() {
        let (group, now) = group(vec![spec(1), spec(2)]);
        assert_eq!(fail_all(&group), "ab");
        assert_eq!(letters(&group, 2), "--");
        now.fetch_add(11, Relaxed);
        assert!(!letters(&group, 2).contains('-'));
    }

    #[test]
    fn a_lone_peer_is_never_given_up() {
        let (group, _) = group(vec![spec(1)]);
        for _ in 0..3 {
            let mut r = group.start();
            let picked = group.pick(&mut r).unwrap();
            assert!(!picked.done(Outcome::Failed, &mut r));
            assert_eq!(r.tries, 0);
        }
    }

    #[test]
    fn backups_serve_when_no_primary_can() {
        let backup = |port| ServerSpec {
            backup: true,
            ..spec(port)
        };
        let (group, now) = group(vec![spec(1), backup(2), backup(3)]);
        assert_eq!(letters(&group, 2), "aa");
        assert_eq!(fail_all(&group), "abc");
        // With a backup a lone primary may fail too.
        now.fetch_add(5, Relaxed);
        assert_eq!(letters(&group, 1), "-");
        now.fetch_add(6, Relaxed);
        assert_eq!(letters(&group, 2), "aa");
    }

    #[test]
    fn max_conns_and_down_keep_a_peer_out() {
        let limited = ServerSpec {
            max_conns: 1,
            ..spec(1)
        };
        let down = ServerSpec {
            down: true,
            ..spec(2)
        };
        let (group, _) = group(vec![limited, down]);
        let mut r = group.start();
        assert_eq!(r.tries, 1);
        let held = group.pick(&mut r).unwrap();
        assert!(group.pick(&mut group.start()).is_none());
        drop(held);
        assert_eq!(letters(&group, 2), "aa");
        let conns = |p: &Peer| p.state.conns.load(Relaxed);
        assert_eq!(group.peers().map(conns).sum::<u32>(), 0);
    }

    #[test]
    fn max_fails_zero_never_disables() {
        let stubborn = |port| ServerSpec {
            max_fails: 0,
            ..spec(port)
        };
        let (group, _) = group(vec![stubborn(1), stubborn(2)]);
        assert_eq!(fail_all(&group), "ab");
        // A tried peer gains no weight, so `b` is ahead now.
        assert_eq!(letters(&group, 4), "baba");
    }

    #[test]
    fn next_upstream_tries_only_lowers() {
        let (group, _) = group(vec![spec(1), spec(2)]);
        let mut r = group.start();
        r.limit_tries(0);
        r.limit_tries(5);
        assert_eq!(r.tries, 2);
        r.limit_tries(1);
        assert_eq!(r.tries, 1);
    }

    #[test]
    fn failures_survive_a_new_configuration() {
        let registry = Registry::new();
        let now = Arc::new(AtomicU64::new(1000));
        let build = |servers| {
            let (keepalive, clock) = (KeepaliveConf::default(), Clock::manual(now.clone()));
            Group::new("app", servers, RoundRobin, keepalive, &registry, clock).unwrap()
        };
        let old = build(vec![spec(1), spec(2)]);
        let mut r = old.start();
        old.pick(&mut r).unwrap().done(Outcome::Failed, &mut r);
        let new = build(vec![spec(1), spec(2), spec(3)]);
        drop(old);
        assert!(!letters(&new, 6).contains('a'));
    }

    #[test]
    fn a_group_needs_a_primary_server() {
        let (keepalive, clock) = (KeepaliveConf::default(), Clock::system());
        let backup = ServerSpec {
            backup: true,
            ..spec(1)
        };
        let registry = Registry::new();
        let group = Group::new("x", vec![backup], RoundRobin, keepalive, &registry, clock);
        assert_eq!(
            group.unwrap_err().to_string(),
            "no servers in upstream \"x\""
        );
    }
}
