//! What one request has tried so far, and the peer that it uses.

use super::UpstreamState;
use super::group::Extras;
use super::members::Held;
use super::outlier::Sample;
use super::peer::Peer;
use super::set::{End, PeerSet, Sets};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// What one request has tried so far.
#[derive(Debug, Clone, Default)]
pub struct PickState {
    /// Attempts left; `proxy_next_upstream_tries` lowers it, see [`PickState::limit_tries`].
    pub tries: u32,
    /// What hashing methods hash.
    pub key: SmallVec<[u8; 16]>,
    /// The peer that the request's session is bound to, as `sticky` calls it.
    pub hint: Option<Arc<str>>,
    /// Where hashing methods are: the hash, how often it was made anew, and how many places were looked at in vain.
    pub(super) hash: u32,
    pub(super) rehash: u32,
    pub(super) places: u8,
    pub(super) on_backup: bool,
    tried: Tried,
    /// The peers that `tried` counts, where the group's may change.
    pub(super) peers: Option<Arc<Sets>>,
}

impl PickState {
    pub(super) fn new(tries: u32, peers: Option<Arc<Sets>>) -> Self {
        Self {
            tries,
            peers,
            ..Self::default()
        }
    }

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
        self.tried.has(i)
    }

    /// Keeps the `i`th peer of the current set from being picked again.
    pub fn mark_tried(&mut self, i: usize) {
        self.tried.add(i);
    }

    /// The backup servers are counted from now on.
    pub(super) fn turn_to_backup(&mut self) {
        self.on_backup = true;
        self.tried = Tried::default();
    }

    /// Goes back to what was tried before.
    pub(super) fn restore(&mut self, before: PickState) {
        self.tried = before.tried;
    }
}

/// The peers that were tried: a short list; many of them in a bitmap.
#[derive(Debug, Clone, Default)]
struct Tried {
    few: SmallVec<[u32; 4]>,
    many: Vec<u64>,
}

/// Beyond so many a bitmap is searched faster than the list.
const FEW: usize = 4;

impl Tried {
    fn has(&self, i: usize) -> bool {
        if self.many.is_empty() {
            return self.few.iter().any(|n| *n as usize == i);
        }
        self.many
            .get(i / 64)
            .is_some_and(|word| word & (1 << (i % 64)) != 0)
    }

    fn add(&mut self, i: usize) {
        if self.has(i) {
            return;
        }
        if self.many.is_empty() && self.few.len() < FEW {
            self.few.push(u32::try_from(i).unwrap_or(u32::MAX));
            return;
        }
        for n in std::mem::take(&mut self.few) {
            self.set(n as usize);
        }
        self.set(i);
    }

    fn set(&mut self, i: usize) {
        let word = i / 64;
        if self.many.len() <= word {
            self.many.resize(word + 1, 0);
        }
        if let Some(word) = self.many.get_mut(word) {
            *word |= 1 << (i % 64);
        }
    }
}

/// How an attempt ended, for the peer's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptVerdict {
    /// It answered, or the request ended for a reason that is not the peer's.
    Ok,
    /// It answered 403 or 404 and the next peer is asked: no failure of the peer.
    Next,
    /// Error, timeout, invalid header, or a status that `proxy_next_upstream` names.
    Failed,
}

/// A peer in use. Dropping it is the same as [`AttemptVerdict::Ok`], except that no attempt is counted.
#[derive(Debug)]
pub struct Picked<'g> {
    held: Held<'g>,
    extras: &'g Extras,
    backup: bool,
    index: usize,
    /// Whether the method of balancing was told of the response's head.
    told: AtomicBool,
    end: End,
    booked: bool,
}

impl<'g> Picked<'g> {
    pub(super) fn new(held: Held<'g>, r: &mut PickState, extras: &'g Extras) -> Option<Self> {
        let (backup, index) = held.pick(r)?;
        if held.balance.is_timed() {
            held.balance.started(held.peer(backup, index));
        }
        Some(Self {
            held,
            extras,
            backup,
            index,
            told: AtomicBool::new(false),
            end: End::default(),
            booked: false,
        })
    }
}

impl Picked<'_> {
    /// The chosen peer.
    pub fn peer(&self) -> &Peer {
        self.held.peer(self.backup, self.index)
    }

    fn set(&self) -> &PeerSet {
        self.held.set(self.backup)
    }

    /// Whether anybody wants to know how long the peer takes.
    pub fn is_timed(&self) -> bool {
        self.held.balance.is_timed() || self.extras.outlier.is_some()
    }

    /// The head of the response has come.
    pub fn head(&self, took: Duration) {
        if self.held.balance.is_timed() && !self.told.swap(true, Relaxed) {
            self.held.balance.head(self.peer(), took);
        }
    }

    /// The status of the response.
    pub fn answered(&mut self, status: u16) {
        self.end.status = status;
    }

    /// Counts the attempt for the runtime API, where the group has a `zone`.
    pub fn account(&self, state: Option<&UpstreamState>) {
        if let (Held::Kept(_), Some(state)) = (&self.held, state) {
            self.peer().state.stats.add(state);
        }
    }

    /// How long the head (if it came) and all of the response took; counted by [`Picked::done`].
    pub fn measured(&mut self, head: Option<Duration>, total: Duration) {
        (self.end.head, self.end.total) = (head, total);
        if let Some(took) = head {
            self.head(took);
        }
    }

    /// Books the end of the attempt.
    ///
    /// True if the peer is out of use now: nginx warns "upstream server temporarily disabled".
    pub fn done(mut self, outcome: AttemptVerdict, r: &mut PickState) -> bool {
        self.end.ok = outcome == AttemptVerdict::Ok;
        self.booked = true;
        let counted = matches!(self.held, Held::Kept(_)) && outcome == AttemptVerdict::Failed;
        if counted {
            self.peer().state.stats.fails.fetch_add(1, Relaxed);
        }
        if let Some(outlier) = &self.extras.outlier {
            let sample = Sample {
                error: outcome == AttemptVerdict::Failed || matches!(self.end.status, 500..=599),
                took: self.end.head,
            };
            let now = self.held.clock.millis();
            outlier.record(self.peer(), self.held.peers(), sample, now, |e| {
                log::warn!(
                    "upstream server {} is ejected for {} s: {}",
                    e.peer,
                    e.time.as_secs(),
                    e.reason
                );
            });
        }
        if self.set().is_single() {
            r.tries = 0;
            return false;
        }
        r.tries = r.tries.saturating_sub(1);
        let disabled =
            outcome == AttemptVerdict::Failed && self.held.failed(self.backup, self.index);
        if counted && disabled {
            self.peer().state.stats.unavail.fetch_add(1, Relaxed);
        }
        disabled
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.held.passed(self.backup, self.index);
        if self.held.balance.is_timed() {
            if !self.booked {
                self.end.ok = false;
            }
            if self.end.head.is_none() && self.told.load(Relaxed) {
                // given up between head and end
                self.end.head = Some(Duration::ZERO);
            }
            self.held.balance.ended(self.peer(), &self.end);
        }
        self.peer().release();
        if let Some(queue) = &self.extras.queue {
            queue.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_remembered() {
        let mut r = PickState::default();
        for i in (0..1000).step_by(7) {
            assert!(!r.is_tried(i));
            r.mark_tried(i);
            r.mark_tried(i);
            assert!(r.is_tried(i) && !r.is_tried(i + 1));
        }
        assert!((0..1000).all(|i| r.is_tried(i) == (i % 7 == 0)));
    }
}
