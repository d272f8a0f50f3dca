//! A group of peers: an `upstream {}` block, or an upstream that `proxy_pass` implies.

use super::Clock;
use super::members::{FoundName, Held, Live, Members, Servers};
use super::peer::{GroupState, Peer, PeerAddr, PeerState, Registry, ResolveName, ServerSpec};
use super::round_robin::{RoundRobin, Weight};
use super::selection::{Selection, load_balancer};
use parking_lot::Mutex;
use pingora_load_balancing::LoadBalancer;
use smallvec::SmallVec;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Peers, how one of them is chosen, and how many connections to them are kept.
///
/// Membership and health are Pingora's `LoadBalancer`'s; [`Group::pick`] reads our own array, which the
/// [`Selection`] built by the `LoadBalancer` keeps in step, so that picking allocates nothing. In a group with a
/// `zone` the array is replaced as a whole when names resolve to other addresses or the runtime API changes a server.
pub struct Group {
    /// The name of the `upstream`; `$upstream_addr` shows it if no peer is live.
    pub name: Arc<str>,
    /// Which connections are kept open.
    pub keepalive: KeepaliveConf,
    /// What survives a reload.
    pub state: Arc<GroupState>,
    members: Arc<Members>,
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
        if servers
            .iter()
            .all(|spec| spec.backup || spec.addrs.is_empty())
        {
            return Err(GroupError::NoServers(name.into()));
        }
        let live = Live::new(servers, Arc::new(balance), state.clone(), clock)
            .map_err(GroupError::Address)?;
        let members = Members::Fixed(live.snapshot());
        Ok(Self::with_members(name, keepalive, state, members))
    }

    /// An `upstream {}` with a `zone`: its peers may change while it serves ([`Group::live`]).
    pub fn changeable(
        name: &str,
        servers: Vec<ServerSpec>,
        balance: impl Balance,
        keepalive: KeepaliveConf,
        registry: &Registry,
        clock: Clock,
    ) -> Result<Self, GroupError> {
        let state = registry.group(name);
        let serves = |spec: &ServerSpec| !spec.addrs.is_empty() || spec.resolve.is_some();
        if !servers.iter().any(|spec| !spec.backup && serves(spec)) {
            return Err(GroupError::NoServers(name.into()));
        }
        let live = Live::new(servers, Arc::new(balance), state.clone(), clock)
            .map_err(GroupError::Address)?;
        let members = Members::Live(Arc::new(live));
        Ok(Self::with_members(name, keepalive, state, members))
    }

    fn with_members(
        name: &str,
        keepalive: KeepaliveConf,
        state: Arc<GroupState>,
        members: Members,
    ) -> Self {
        let members = Arc::new(members);
        let balancer = load_balancer(&members);
        Self {
            name: name.into(),
            keepalive,
            state,
            members,
            balancer: Some(balancer),
        }
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
            members: Arc::new(Members::Fixed(Arc::new(Sets {
                primary: PeerSet::new(peers, true, None),
                backup: None,
                balance: Arc::new(RoundRobin),
                clock: Clock::system(),
            }))),
            balancer: None,
        })
    }

    /// The state of choice for one request.
    pub fn start(&self) -> PickState {
        let held = self.members.hold();
        PickState {
            tries: held.tries(),
            peers: held.into_kept(),
            ..PickState::default()
        }
    }

    /// Chooses a peer that this request has not tried; `None` is nginx's "no live upstreams".
    ///
    /// Backup servers come in when no primary one is left, and stay for the rest of the request. A request keeps to
    /// the peers that there were when it began.
    pub fn pick(&self, r: &mut PickState) -> Option<Picked<'_>> {
        let held = match (&*self.members, &r.peers) {
            (Members::Fixed(sets), _) => Held::Fixed(sets),
            (Members::Live(_), Some(kept)) => Held::Kept(kept.clone()),
            (Members::Live(live), None) => {
                let now = live.snapshot();
                r.peers = Some(now.clone());
                Held::Kept(now)
            }
        };
        let (backup, index) = held.pick(r)?;
        Some(Picked {
            held,
            backup,
            index,
        })
    }

    /// The peers as they are now, primary ones first; they stay as they are while this is held.
    pub fn members(&self) -> Held<'_> {
        self.members.hold()
    }

    /// What can be changed of the group while it serves; none without a `zone`.
    pub fn live(&self) -> Option<&Arc<Live>> {
        match &*self.members {
            Members::Fixed(_) => None,
            Members::Live(live) => Some(live),
        }
    }

    /// The peers of a group that does not change, primary ones first.
    #[cfg(test)]
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        let fixed = match &*self.members {
            Members::Fixed(sets) => Some(sets),
            Members::Live(_) => None,
        };
        fixed.into_iter().flat_map(|sets| sets.peers())
    }

    /// Gives every server of that name other addresses.
    pub fn set_found(&self, name: &ResolveName, found: FoundName) {
        if self.live().is_some_and(|live| live.set_found(name, found)) {
            self.sync_members();
        }
    }

    /// Changes the servers of a group with a `zone` as a whole; `None` for one without. What fails changes nothing.
    pub fn edit<T, E: From<io::Error>>(
        &self,
        change: impl FnOnce(&mut Servers) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let outcome = self.live()?.edit(change);
        self.sync_members();
        Some(outcome)
    }

    /// Follows a change of the peers in Pingora's view of the group.
    fn sync_members(&self) {
        if let Some(balancer) = &self.balancer {
            super::selection::discover(balancer);
        }
    }

    /// Pingora's view of the group: membership and health; none for an implied upstream.
    pub fn load_balancer(&self) -> Option<&LoadBalancer<Selection>> {
        self.balancer.as_ref()
    }

    /// Copies the verdicts of the `LoadBalancer`'s health checks to where [`Group::pick`] reads them.
    pub fn sync_health(&self) {
        if let Some(balancer) = &self.balancer {
            for peer in self.members().peers() {
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
            .field("peers", &self.members().peers().collect::<Vec<_>>())
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

/// A method of balancing. What it works out beforehand belongs to a [`PeerSet`], which is made anew with every change.
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
    /// `before` is the set that this one follows: peers that stay keep their moving weights.
    pub(super) fn new(peers: Vec<Peer>, alone: bool, before: Option<&PeerSet>) -> Self {
        let moving = before.map(|set| (set, set.weights.lock()));
        let weight = |peer: &Peer| {
            let kept = moving.as_ref().and_then(|(set, weights)| {
                let same = |p: &Peer| Arc::ptr_eq(&p.state, &peer.state) && p.weight == peer.weight;
                let at = set.peers.iter().position(same)?;
                weights.get(at).copied()
            });
            kept.unwrap_or_else(|| Weight::new(peer.weight))
        };
        let weights = peers.iter().map(weight).collect();
        Self {
            weights: Mutex::new(weights),
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
    /// The peers that `tried` counts, where the group's may change.
    peers: Option<Arc<Sets>>,
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
    held: Held<'g>,
    backup: bool,
    index: usize,
}

impl Picked<'_> {
    /// The chosen peer.
    pub fn peer(&self) -> &Peer {
        self.held.peer(self.backup, self.index)
    }

    fn set(&self) -> &PeerSet {
        self.held.set(self.backup)
    }

    /// Books the end of the attempt.
    ///
    /// True if the peer is out of use now: nginx warns "upstream server temporarily disabled".
    pub fn done(self, outcome: Outcome, r: &mut PickState) -> bool {
        if self.set().single {
            r.tries = 0;
            return false;
        }
        r.tries = r.tries.saturating_sub(1);
        if outcome != Outcome::Failed {
            return false;
        }

        let peer = self.peer();
        let state = &peer.state;
        let now = self.held.clock.now();
        let fails = state.fails.fetch_add(1, Relaxed).saturating_add(1);
        state.accessed.store(now, Relaxed);
        state.checked.store(now, Relaxed);
        if let Some(weight) = self.set().weights.lock().get_mut(self.index) {
            weight.penalise(peer.weight, peer.max_fails);
        }
        peer.max_fails != 0 && fails >= peer.max_fails
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        let peer = self.peer();
        let state = &peer.state;
        // A success after a check; right after `Outcome::Failed` both times are equal.
        let passed =
            self.set().single || state.accessed.load(Relaxed) < state.checked.load(Relaxed);
        if passed && state.fails.load(Relaxed) != 0 {
            state.fails.store(0, Relaxed);
        }
        peer.release();
    }
}

/// The peers of a group and how they are balanced.
pub struct Sets {
    pub(super) primary: PeerSet,
    pub(super) backup: Option<PeerSet>,
    pub(super) balance: Arc<dyn Balance>,
    pub(super) clock: Clock,
}

impl Sets {
    /// `before` are the peers that these follow.
    pub(super) fn new(
        primary: Vec<Peer>,
        backup: Vec<Peer>,
        balance: Arc<dyn Balance>,
        clock: Clock,
        before: Option<&Sets>,
    ) -> Self {
        let alone = backup.is_empty();
        let backup_before = before.and_then(|sets| sets.backup.as_ref());
        Self {
            primary: PeerSet::new(primary, alone, before.map(|sets| &sets.primary)),
            backup: (!alone).then(|| PeerSet::new(backup, false, backup_before)),
            balance,
            clock,
        }
    }

    /// One address without a backup: it is never given up.
    pub(super) fn is_single(&self) -> bool {
        self.primary.single
    }

    /// How many attempts a request may make.
    pub fn tries(&self) -> u32 {
        let backup = self.backup.as_ref().map_or(0, |set| set.tries);
        self.primary.tries.saturating_add(backup)
    }

    /// Whether the peer is a backup one, and its index among those.
    pub(super) fn pick(&self, r: &mut PickState) -> Option<(bool, usize)> {
        if !r.on_backup {
            if let Some(index) = self.pick_from(&self.primary, r) {
                return Some((false, index));
            }
            if self.backup.is_some() {
                r.on_backup = true;
                r.tried.clear();
            }
        }
        let index = self.pick_from(self.backup.as_ref()?, r)?;
        Some((true, index))
    }

    fn pick_from(&self, set: &PeerSet, r: &mut PickState) -> Option<usize> {
        if set.single {
            // A lone peer is asked whatever it did before.
            set.peers.first().filter(|p| p.usable() && p.acquire())?;
            Some(0)
        } else {
            let index = self.balance.pick(set, r, self.clock.now())?;
            (index < set.peers.len()).then_some(index)
        }
    }

    /// The backup or the primary servers.
    pub(super) fn set(&self, backup: bool) -> &PeerSet {
        match &self.backup {
            Some(set) if backup => set,
            _ => &self.primary,
        }
    }

    /// A peer that [`Sets::pick`] has chosen.
    pub(super) fn peer(&self, backup: bool, index: usize) -> &Peer {
        &self.set(backup).peers[index]
    }

    /// Primary ones first.
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
