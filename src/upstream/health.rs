//! What active health checks have found out about a peer. It outlives a configuration with the peer's state.

use super::peer::PeerState;
use parking_lot::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

/// Who checks: lives as long as the `health_check` of one configuration.
#[derive(Debug, Clone)]
pub struct Checker(Arc<CheckerId>);

#[derive(Debug)]
struct CheckerId {
    /// Names the check: equal ones of two configurations go on with each other's verdicts.
    name: Box<str>,
}

impl Checker {
    /// A checker; `name` tells checks of one group apart.
    pub fn new(name: &str) -> Self {
        Self(Arc::new(CheckerId { name: name.into() }))
    }

    pub(super) fn weak(&self) -> WeakChecker {
        WeakChecker(Arc::downgrade(&self.0))
    }

    fn is(&self, verdict: &Standing) -> bool {
        verdict.name == self.0.name
    }
}

/// A checker that may be gone.
#[derive(Debug)]
pub(super) struct WeakChecker(Weak<CheckerId>);

impl WeakChecker {
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// What a check thinks of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be used.
    Healthy,
    /// It may be used once it has passed (`mandatory`).
    Checking,
    /// It has failed too often.
    Unhealthy,
}

/// The verdicts on one peer, and what the runtime API shows of its checks.
#[derive(Debug, Default)]
pub struct Health(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    standings: Vec<Standing>,
    record: HealthRecord,
}

#[derive(Debug)]
struct Standing {
    name: Box<str>,
    by: Weak<CheckerId>,
    verdict: Verdict,
}

/// The account of a peer's checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthRecord {
    /// Checks made.
    pub checks: u64,
    /// Checks failed.
    pub fails: u64,
    /// How often it became unhealthy.
    pub unhealthy: u64,
    /// Whether the last check was passed.
    pub last_passed: Option<bool>,
    /// Milliseconds that it was out of use, not counting what goes on now.
    pub downtime: u64,
    /// Since when it is out of use, milliseconds since the epoch.
    pub down_since: Option<u64>,
}

impl HealthRecord {
    /// Milliseconds that it was out of use, up to now.
    pub fn downtime(&self) -> u64 {
        let now = self
            .down_since
            .map_or(0, |since| millis().saturating_sub(since));
        self.downtime + now
    }
}

impl PeerState {
    /// What `checker` thinks of the peer; `None` if it has not said yet.
    pub fn verdict(&self, checker: &Checker) -> Option<Verdict> {
        let inner = self.health.0.lock();
        let standing = inner.standings.iter().find(|s| checker.is(s))?;
        Some(standing.verdict)
    }

    /// Sets what `checker` thinks; a peer is used while no check is against it.
    pub fn judge(&self, checker: &Checker, verdict: Verdict) {
        let mut inner = self.health.0.lock();
        let (by, mut changed) = (Arc::downgrade(&checker.0), true);
        match inner.standings.iter_mut().find(|s| checker.is(s)) {
            Some(standing) => {
                let before = std::mem::replace(&mut standing.verdict, verdict);
                standing.by = by;
                changed = before != verdict;
            }
            None => inner.standings.push(Standing {
                name: checker.0.name.clone(),
                by,
                verdict,
            }),
        }
        inner.record.unhealthy += u64::from(changed && verdict == Verdict::Unhealthy);
        self.settle(&mut inner);
    }

    /// Counts a check.
    pub fn count_check(&self, passed: bool) {
        let record = &mut self.health.0.lock().record;
        record.checks += 1;
        record.fails += u64::from(!passed);
        record.last_passed = Some(passed);
    }

    /// Begins the account anew; verdicts stay.
    pub fn reset_health_record(&self) {
        let record = &mut self.health.0.lock().record;
        *record = HealthRecord {
            last_passed: record.last_passed,
            down_since: record.down_since,
            ..HealthRecord::default()
        };
    }

    /// Forgets what checkers said that are gone.
    pub fn review_health(&self) {
        self.settle(&mut self.health.0.lock());
    }

    /// Waits for a first check.
    pub(super) fn await_check(&self) {
        self.healthy.store(false, Relaxed);
        self.health.0.lock().record.down_since = Some(millis());
    }

    /// The account of the checks.
    pub fn health_record(&self) -> HealthRecord {
        self.health.0.lock().record.clone()
    }

    /// Whether some check found it unhealthy, rather than not having looked yet.
    pub fn is_unhealthy(&self) -> bool {
        let inner = self.health.0.lock();
        let against = |s: &Standing| s.verdict == Verdict::Unhealthy;
        inner.standings.iter().any(against)
    }

    fn settle(&self, inner: &mut Inner) {
        inner.standings.retain(|s| s.by.strong_count() > 0);
        let healthy = inner
            .standings
            .iter()
            .all(|s| s.verdict == Verdict::Healthy);
        self.set_healthy(healthy);
        let record = &mut inner.record;
        match (healthy, record.down_since) {
            (true, Some(since)) => {
                record.downtime += millis().saturating_sub(since);
                record.down_since = None;
            }
            (false, None) => record.down_since = Some(millis()),
            _ => {}
        }
    }
}

/// Milliseconds since the epoch.
pub(crate) fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_say() {
        let peer = PeerState::new();
        let (a, b) = (Checker::new("a"), Checker::new("b"));
        let healthy = || peer.healthy.load(Relaxed);
        peer.judge(&a, Verdict::Healthy);
        peer.judge(&b, Verdict::Unhealthy);
        assert!(!healthy() && peer.is_unhealthy());
        assert!(peer.health_record().down_since.is_some());
        peer.judge(&b, Verdict::Unhealthy);
        assert_eq!(peer.health_record().unhealthy, 1, "counts changes");
        peer.judge(&b, Verdict::Healthy);
        assert!(healthy() && peer.health_record().down_since.is_none());
        peer.judge(&a, Verdict::Checking);
        assert!(!healthy() && !peer.is_unhealthy());
        drop(a);
        peer.review_health();
        assert!(healthy(), "who is gone has no say");
    }

    #[test]
    fn the_next_configuration_s_check_goes_on_where_the_last_one_was() {
        let peer = PeerState::new();
        let old = Checker::new("http /");
        peer.judge(&old, Verdict::Unhealthy);
        let new = Checker::new("http /");
        assert_eq!(peer.verdict(&new), Some(Verdict::Unhealthy));
        peer.judge(&new, Verdict::Unhealthy);
        drop(old);
        peer.review_health();
        assert!(!peer.healthy.load(Relaxed));
        assert_eq!(peer.health_record().unhealthy, 1);
    }

    #[test]
    fn checks_are_counted() {
        let peer = PeerState::new();
        peer.count_check(true);
        peer.count_check(false);
        let record = peer.health_record();
        assert_eq!((record.checks, record.fails), (2, 1));
        assert_eq!(record.last_passed, Some(false));
    }
}
