//! A group of peers: an `upstream {}` block, or an upstream that `proxy_pass` implies.

use super::Clock;
use super::budget::RetryBudget;
use super::members::{FoundName, Held, Live, Members, Servers};
use super::outlier::Detector;
use super::peer::{GroupState, Peer, PeerAddr, PeerState, PeerStateStore, ResolveName, ServerSpec};
pub use super::pick::{AttemptVerdict, PickState, Picked};
use super::queue::Queue;
use super::round_robin::RoundRobin;
use super::selection::{Selection, load_balancer};
pub use super::set::{Balance, End, PeerSet, Sets};
use pingora_load_balancing::LoadBalancer;
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
    /// What the group does besides balancing.
    pub extras: Extras,
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
        registry: &PeerStateStore,
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
        registry: &PeerStateStore,
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

    /// As [`Group::changeable`]; may begin without servers (`state`).
    pub fn empty(
        name: &str,
        servers: Vec<ServerSpec>,
        balance: Arc<dyn Balance>,
        keepalive: KeepaliveConf,
        registry: &PeerStateStore,
        clock: Clock,
    ) -> Result<Self, GroupError> {
        let state = registry.group(name);
        let live =
            Live::new(servers, balance, state.clone(), clock).map_err(GroupError::Address)?;
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
            extras: Extras::default(),
            members,
            balancer: Some(balancer),
        }
    }

    /// The same group with these extras.
    pub fn with(self, extras: Extras) -> Self {
        Self { extras, ..self }
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
            extras: Extras::default(),
            members: Arc::new(Members::Fixed(Arc::new(Sets::new(
                peers,
                Vec::new(),
                Arc::new(RoundRobin),
                Clock::system(),
                None,
            )))),
            balancer: None,
        })
    }

    /// The state of choice for one request.
    pub fn start(&self) -> PickState {
        let held = self.members.hold();
        PickState::new(held.tries(), held.into_kept())
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
        Picked::new(held, r, &self.extras)
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

/// What a group does besides balancing; nothing of it is there unless it is configured.
#[derive(Default)]
pub struct Extras {
    /// `queue`.
    pub queue: Option<Queue>,
    /// `outlier_detection`.
    pub outlier: Option<Detector>,
    /// `retry_budget`.
    pub budget: Option<RetryBudget>,
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extras")
            .field("queue", &self.queue)
            .field("outlier", &self.outlier)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
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

#[cfg(test)]
pub(super) mod tests;
