//! The peers of a group at one moment, and what a method of balancing chooses from.

use super::Clock;
use super::peer::Peer;
use super::pick::PickState;
use super::ring::Ring;
use super::round_robin::Weight;
use crate::runtime::panics::{self, HookName};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A method of balancing. What it works out beforehand belongs to a [`PeerSet`], which is made anew with every change.
/// It must not block; a panic ends the request with 500.
///
/// ```
/// use couloir::prelude::*;
///
/// /// The last server that can serve.
/// struct LastFirst;
///
/// impl Balance for LastFirst {
///     fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
///         (0..set.peers.len()).rev().find(|i| set.claim(*i, r, now))
///     }
/// }
/// ```
pub trait Balance: Send + Sync + 'static {
    /// Chooses a peer that `r` has not tried, marks it tried and takes a place on it ([`PeerSet::claim`]).
    ///
    /// `now` is in seconds of the group's clock. `None`: no peer of this set can take the request.
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize>;

    /// Its name where it panics.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// Whether sets of peers need a [`Ring`].
    fn wants_ring(&self) -> bool {
        false
    }

    /// Whether it learns from the calls below.
    fn is_timed(&self) -> bool {
        false
    }

    /// A request goes to the peer.
    fn started(&self, peer: &Peer) {
        let _ = peer;
    }

    /// The head of its response has come.
    fn head(&self, peer: &Peer, took: Duration) {
        let _ = (peer, took);
    }

    /// The request has ended, or was given up.
    fn ended(&self, peer: &Peer, end: &End) {
        let _ = (peer, end);
    }
}

/// A method that was chosen by a directive.
impl Balance for Arc<dyn Balance> {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        (**self).pick(set, r, now)
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn wants_ring(&self) -> bool {
        (**self).wants_ring()
    }

    fn is_timed(&self) -> bool {
        (**self).is_timed()
    }

    fn started(&self, peer: &Peer) {
        (**self).started(peer);
    }

    fn head(&self, peer: &Peer, took: Duration) {
        (**self).head(peer, took);
    }

    fn ended(&self, peer: &Peer, end: &End) {
        (**self).ended(peer, end);
    }
}

/// How a request at a peer ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct End {
    /// Whether the peer did well.
    pub ok: bool,
    /// How long the head of the response took, if it came.
    pub head: Option<Duration>,
    /// How long all of it took.
    pub total: Duration,
    /// The status; 0 without a response.
    pub status: u16,
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
    /// For each peer, the sum of the weights up to its own, which methods that draw by weight search.
    sums: Box<[u64]>,
    ring: Option<Ring>,
    single: bool,
    slow: bool,
    tries: u32,
}

impl PeerSet {
    /// `before` is the set that this one follows: peers that stay keep their moving weights.
    fn new(peers: Vec<Peer>, alone: bool, balance: &dyn Balance, before: Option<&PeerSet>) -> Self {
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
        let mut total_weight = 0;
        let sum = |peer: &Peer| {
            total_weight += u64::from(peer.weight);
            total_weight
        };
        let sums = peers.iter().map(sum).collect();
        let serves = |p: &&Peer| !p.down && !p.drain;
        Self {
            weights: Mutex::new(weights),
            sums,
            total_weight,
            ring: balance.wants_ring().then(|| Ring::new(&peers)),
            single: alone && peers.len() == 1,
            slow: peers.iter().any(|p| p.slow_start != 0),
            tries: u32::try_from(peers.iter().filter(serves).count()).unwrap_or(u32::MAX),
            peers: peers.into(),
        }
    }

    /// The only address of a group: it is never given up.
    pub fn is_single(&self) -> bool {
        self.single
    }

    /// The ring of a method that wants one.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// The peer that `point` falls on if each takes as much room as its weight; `point` may lie beyond the end.
    pub fn at_weight(&self, point: u64) -> Option<usize> {
        let point = point.checked_rem(self.total_weight)?;
        Some(self.sums.partition_point(|sum| *sum <= point))
    }

    /// Whether the `i`th peer may take this request at `now`.
    pub fn is_open(&self, i: usize, r: &PickState, now: u64) -> bool {
        !r.is_tried(i) && self.peers.get(i).is_some_and(|peer| peer.is_open(now))
    }

    /// Takes a place on the `i`th peer and marks it tried; false if it may not have the request.
    pub fn claim(&self, i: usize, r: &mut PickState, now: u64) -> bool {
        self.is_open(i, r, now) && self.take(i, r, now)
    }

    /// The peer that the request's session is bound to, with a place on it.
    pub fn session(&self, r: &mut PickState, now: u64) -> Option<usize> {
        let i = self.bound(r, now)?;
        self.take(i, r, now).then_some(i)
    }

    /// The peer that the request's session is bound to, if it may have the request.
    pub fn bound(&self, r: &PickState, now: u64) -> Option<usize> {
        let hint = r.hint.as_deref()?;
        let i = self.peers.iter().position(|peer| *peer.sid == *hint)?;
        let peer = self.peers.get(i)?;
        let open =
            !r.is_tried(i) && peer.usable_in_session() && !peer.is_failed(now) && !peer.is_full();
        open.then_some(i)
    }

    /// Smooth weighted round robin among `candidates`; takes a place on the peer found.
    pub fn pick_weighted(
        &self,
        r: &mut PickState,
        now: u64,
        candidates: impl Iterator<Item = usize> + Clone,
    ) -> Option<usize> {
        let mut weights = self.weights.lock();
        // a place that another request took meanwhile makes the peer look full or failed in the next round
        for _ in 0..ROUNDS {
            let mut turn = Turn::default();
            for i in candidates.clone() {
                if self.is_open(i, r, now)
                    && let (Some(peer), Some(weight)) = (self.peers.get(i), weights.get_mut(i))
                {
                    turn.offer(i, peer, weight);
                }
            }
            let i = turn.end(&mut weights)?;
            if self.take(i, r, now) {
                return Some(i);
            }
        }
        None
    }

    /// The peer with the least `cost` for its weight, round robin among equals; takes a place on it.
    pub fn pick_least(
        &self,
        r: &mut PickState,
        now: u64,
        cost: impl Fn(&Peer) -> u64,
    ) -> Option<usize> {
        if let Some(i) = self.session(r, now) {
            return Some(i);
        }
        let mut weights = self.weights.lock();
        for _ in 0..ROUNDS {
            let mut best: Option<(usize, &Peer, u64)> = None;
            let mut many = false;
            let weighs = |cost: u64, peer: &Peer| u128::from(cost) * u128::from(peer.weight);
            for (i, peer) in self.peers.iter().enumerate() {
                if !self.is_open(i, r, now) {
                    continue;
                }
                let own = cost(peer);
                match best {
                    Some((_, first, least)) if weighs(own, first) == weighs(least, peer) => {
                        many = true;
                    }
                    Some((_, first, least)) if weighs(own, first) > weighs(least, peer) => {}
                    _ => (best, many) = (Some((i, peer, own)), false),
                }
            }
            let (mut i, first, least) = best?;
            if many {
                let mut turn = Turn::default();
                let equals = self.peers.iter().enumerate().skip(i);
                for (j, peer) in equals {
                    if (j == i || weighs(cost(peer), first) == weighs(least, peer))
                        && self.is_open(j, r, now)
                        && let Some(weight) = weights.get_mut(j)
                    {
                        turn.offer(j, peer, weight);
                    }
                }
                i = turn.end(&mut weights).unwrap_or(i);
            }
            if self.take(i, r, now) {
                return Some(i);
            }
        }
        None
    }

    fn take(&self, i: usize, r: &mut PickState, now: u64) -> bool {
        let taken = self.peers.get(i).is_some_and(|peer| peer.claim(now));
        if taken {
            r.mark_tried(i);
        }
        taken
    }

    /// Takes a place on a peer that is bound or known to be open; for methods with an order of their own.
    pub(super) fn take_open(&self, i: usize, r: &mut PickState, now: u64) -> bool {
        self.take(i, r, now)
    }
}

/// How often a pick begins anew because another request was faster.
const ROUNDS: usize = 8;

/// One turn of smooth weighted round robin.
#[derive(Default)]
pub(super) struct Turn {
    best: Option<(usize, i64)>,
    total: i64,
}

impl Turn {
    /// A peer that could serve gains its weight.
    pub fn offer(&mut self, i: usize, peer: &Peer, weight: &mut Weight) {
        weight.current += weight.effective;
        self.total += weight.effective;
        if weight.effective < i64::from(peer.weight) {
            weight.effective += 1;
        }
        if self
            .best
            .is_none_or(|(_, current)| weight.current > current)
        {
            self.best = Some((i, weight.current));
        }
    }

    /// The one with most; it pays for all that the others gained.
    pub fn end(self, weights: &mut [Weight]) -> Option<usize> {
        let (i, _) = self.best?;
        self.end_with(i, weights)
    }

    /// The same where the choice was made otherwise.
    pub fn end_with(self, i: usize, weights: &mut [Weight]) -> Option<usize> {
        weights.get_mut(i)?.current -= self.total;
        Some(i)
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
        let primary_before = before.map(|sets| &sets.primary);
        Self {
            primary: PeerSet::new(primary, alone, &*balance, primary_before),
            backup: (!alone).then(|| PeerSet::new(backup, false, &*balance, backup_before)),
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
                r.turn_to_backup();
            }
        }
        let index = self.pick_from(self.backup.as_ref()?, r)?;
        Some((true, index))
    }

    fn pick_from(&self, set: &PeerSet, r: &mut PickState) -> Option<usize> {
        if set.single {
            // a lone peer is asked whatever it did before
            let peer = set.peers.first()?;
            let bound = r.hint.as_deref().is_some_and(|hint| *peer.sid == *hint);
            let usable = if bound {
                peer.usable_in_session()
            } else {
                peer.usable()
            };
            return (usable && peer.acquire()).then_some(0);
        }
        let now = self.clock.now();
        if set.slow
            && let Some(index) = self.pick_warm(set, r, now)
        {
            return Some(index);
        }
        let index = self.choose(set, r, now)?;
        (index < set.peers.len()).then_some(index)
    }

    /// Asks the method, so that a panic is reported with its name.
    #[inline]
    fn choose(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        panics::named(
            || HookName {
                text: format!("balancing method \"{}\"", self.balance.name()),
                id: 0,
            },
            || self.balance.pick(set, r, now),
        )
    }

    /// Peers under `slow_start` draw lots for taking part; `None` if none of those that do can serve.
    fn pick_warm(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        let ms = self.clock.millis();
        let before = r.clone();
        let mut resting = false;
        for (i, peer) in set.peers.iter().enumerate() {
            let share = peer.share(ms);
            if share < 1000 && fastrand::u32(..1000) >= share {
                r.mark_tried(i);
                resting = true;
            }
        }
        if !resting {
            return None;
        }
        let found = self.choose(set, r, now);
        r.restore(before);
        r.mark_tried(found?);
        found
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
    pub fn peers(&self) -> impl Iterator<Item = &Peer> + Clone {
        let backup = self.backup.iter().flat_map(|set| set.peers.iter());
        self.primary.peers.iter().chain(backup)
    }

    /// Books a failure of a peer for nginx's `max_fails`; true if it is out of use now.
    pub(super) fn failed(&self, backup: bool, index: usize) -> bool {
        let (set, peer) = (self.set(backup), self.peer(backup, index));
        let state = &peer.state;
        let now = self.clock.now();
        let fails = state.fails.fetch_add(1, Relaxed).saturating_add(1);
        state.accessed.store(now, Relaxed);
        state.checked.store(now, Relaxed);
        if let Some(weight) = set.weights.lock().get_mut(index) {
            weight.penalise(peer.weight, peer.max_fails);
        }
        peer.max_fails != 0 && fails >= peer.max_fails
    }

    /// Books that a peer served: one that failed before is trusted again if it was asked after that.
    pub(super) fn passed(&self, backup: bool, index: usize) {
        let (set, peer) = (self.set(backup), self.peer(backup, index));
        let state = &peer.state;
        // right after a failure both times are equal
        let passed = set.single || state.accessed.load(Relaxed) < state.checked.load(Relaxed);
        if passed && state.fails.load(Relaxed) != 0 {
            let fails = state.fails.swap(0, Relaxed);
            if peer.max_fails != 0 && fails >= peer.max_fails {
                state.came_back(self.clock.millis());
            }
        }
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
