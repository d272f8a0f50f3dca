//! `outlier_detection`, Couloir's own: peers that do worse than the rest of their group rest for a while.

use super::peer::Peer;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// When a peer is ejected, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierConf {
    /// Errors in a row; 0 does not count them.
    pub consecutive_errors: u32,
    /// Share of errors in an interval, percent; 0 does not look at it.
    pub error_rate: u32,
    /// How many times the group's median a peer's mean time may be; 0 does not look at it.
    pub latency: f64,
    /// Requests of an interval below which nothing is concluded from it.
    pub min_requests: u32,
    /// How often rates and times are compared.
    pub interval: Duration,
    /// How long the first ejection lasts; each one that follows lasts twice as long.
    pub ejection: Duration,
    /// The longest ejection.
    pub max_ejection: Duration,
    /// How much of the group may be ejected at once, percent; one peer may be in any case.
    pub max_ejected: u32,
}

impl Default for OutlierConf {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            error_rate: 0,
            latency: 0.0,
            min_requests: 20,
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected: 50,
        }
    }
}

/// What is known of one peer; kept over a reload.
#[derive(Debug, Default)]
pub struct Outlier {
    /// Until when the peer is out, milliseconds of the clock; 0 is "not at all".
    pub ejected_until: AtomicU64,
    /// Ejections that are not forgiven yet: an interval without one takes one off.
    pub ejections: AtomicU32,
    consecutive: AtomicU32,
    answers: AtomicU32,
    errors: AtomicU32,
    /// Microseconds of all answers of this interval.
    time: AtomicU64,
}

/// How one request at a peer went.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// It failed, or was answered with 5xx.
    pub error: bool,
    /// How long its head took, where there was one.
    pub took: Option<Duration>,
}

/// Differences below this are noise, whatever factor they are, microseconds.
const NOISE: u64 = 5000;

/// The detector of a group.
#[derive(Debug)]
pub struct Detector {
    conf: OutlierConf,
    /// When intervals are compared next, milliseconds.
    next: AtomicU64,
    /// One ejection at a time, so that the share holds.
    ejecting: Mutex<()>,
}

/// An ejection, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ejection {
    /// The peer's name.
    pub peer: std::sync::Arc<str>,
    /// Why.
    pub reason: &'static str,
    /// For how long.
    pub time: Duration,
}

impl Detector {
    /// A detector whose first interval begins with its first request.
    pub fn new(conf: OutlierConf) -> Self {
        Self {
            conf,
            next: AtomicU64::new(0),
            ejecting: Mutex::new(()),
        }
    }

    /// Books a request of `peer`; `peers` is the whole group, `now` in milliseconds. Ejections go to `tell`.
    pub fn record<'p>(
        &self,
        peer: &Peer,
        peers: impl Iterator<Item = &'p Peer> + Clone,
        sample: Sample,
        now: u64,
        mut tell: impl FnMut(Ejection),
    ) {
        let seen = &peer.state.outlier;
        if sample.error {
            seen.errors.fetch_add(1, Relaxed);
            let row = seen.consecutive.fetch_add(1, Relaxed).saturating_add(1);
            let limit = self.conf.consecutive_errors;
            if limit != 0
                && row >= limit
                && let Some(e) = self.eject(peer, peers.clone(), "errors in a row", now)
            {
                tell(e);
            }
        } else {
            seen.consecutive.store(0, Relaxed);
        }
        if let Some(took) = sample.took {
            seen.time.fetch_add(micros(took), Relaxed);
        }
        seen.answers.fetch_add(1, Relaxed);
        self.interval(peers, now, tell);
    }

    /// Compares the peers once an interval is over.
    fn interval<'p>(
        &self,
        peers: impl Iterator<Item = &'p Peer> + Clone,
        now: u64,
        mut tell: impl FnMut(Ejection),
    ) {
        let next = self.next.load(Relaxed);
        if now < next {
            return;
        }
        let later = now.saturating_add(millis(self.conf.interval)).max(1);
        let mine = self.next.compare_exchange(next, later, Relaxed, Relaxed);
        if mine.is_err() || next == 0 {
            return;
        }
        let windows: Vec<(&Peer, Window)> = peers
            .clone()
            .map(|p| (p, Window::take(&p.state.outlier)))
            .collect();
        let known = |w: &Window| w.answers >= u64::from(self.conf.min_requests.max(1));
        let mut times: Vec<u64> = windows
            .iter()
            .filter(|(_, w)| known(w))
            .map(|(_, w)| w.mean())
            .collect();
        times.sort_unstable();
        let median = times.get(times.len().saturating_sub(1) / 2).copied();
        for (peer, w) in windows.iter().filter(|(_, w)| known(w)) {
            let conf = &self.conf;
            let failing =
                conf.error_rate != 0 && w.errors * 100 > w.answers * u64::from(conf.error_rate);
            let slow = median.is_some_and(|m| {
                conf.latency > 0.0
                    && w.mean() > m.saturating_add(NOISE)
                    && w.mean() as f64 > m as f64 * conf.latency
            });
            if failing || slow {
                let reason = if failing { "rate of errors" } else { "latency" };
                if let Some(e) = self.eject(peer, peers.clone(), reason, now) {
                    tell(e);
                }
            } else if !is_out(peer, now) {
                let fewer = |n: u32| n.checked_sub(1);
                let seen = &peer.state.outlier;
                let _ = seen.ejections.fetch_update(Relaxed, Relaxed, fewer);
            }
        }
    }

    fn eject<'p>(
        &self,
        peer: &Peer,
        peers: impl Iterator<Item = &'p Peer>,
        reason: &'static str,
        now: u64,
    ) -> Option<Ejection> {
        let _one = self.ejecting.lock();
        let (mut all, mut out) = (0u64, 0u64);
        for p in peers {
            all += 1;
            out += u64::from(is_out(p, now));
        }
        let most = (all * u64::from(self.conf.max_ejected) / 100).max(1);
        // the last one is never taken away
        if is_out(peer, now) || out >= most || out + 1 >= all {
            return None;
        }
        let seen = &peer.state.outlier;
        let before = seen.ejections.fetch_add(1, Relaxed);
        let time = self
            .conf
            .ejection
            .saturating_mul(1 << before.min(20))
            .min(self.conf.max_ejection.max(self.conf.ejection));
        let until = now.saturating_add(millis(time));
        seen.consecutive.store(0, Relaxed);
        seen.ejected_until.store(until, Relaxed);
        peer.state.came_back(until);
        Some(Ejection {
            peer: peer.name.clone(),
            reason,
            time,
        })
    }
}

fn is_out(peer: &Peer, now: u64) -> bool {
    now < peer.state.outlier.ejected_until.load(Relaxed)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What one peer did in one interval.
struct Window {
    answers: u64,
    errors: u64,
    time: u64,
}

impl Window {
    fn take(seen: &Outlier) -> Self {
        Self {
            answers: u64::from(seen.answers.swap(0, Relaxed)),
            errors: u64::from(seen.errors.swap(0, Relaxed)),
            time: seen.time.swap(0, Relaxed),
        }
    }

    /// Microseconds an answer.
    fn mean(&self) -> u64 {
        self.time / self.answers.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::Group;
    use super::super::group::tests::{group, letters, spec};
    use super::*;

    fn conf() -> OutlierConf {
        OutlierConf {
            consecutive_errors: 3,
            error_rate: 50,
            latency: 3.0,
            min_requests: 10,
            ..OutlierConf::default()
        }
    }

    fn feed(
        d: &Detector,
        group: &Group,
        i: usize,
        error: bool,
        ms: u64,
        now: u64,
    ) -> Vec<Ejection> {
        let mut told = Vec::new();
        let sample = Sample {
            error,
            took: Some(Duration::from_millis(ms)),
        };
        let peer = group.peers().nth(i).unwrap();
        let all: Vec<&Peer> = group.peers().collect();
        d.record(peer, all.into_iter(), sample, now, |e| told.push(e));
        told
    }

    #[test]
    fn errors_in_a_row_eject_and_the_time_grows() {
        let (group, _) = group(vec![spec(1), spec(2), spec(3)]);
        let d = Detector::new(conf());
        let mut now = 1_000_000;
        for (round, seconds) in [(0, 30), (1, 60), (2, 120), (3, 240), (4, 300), (5, 300)] {
            assert!(feed(&d, &group, 0, true, 1, now).is_empty());
            assert!(feed(&d, &group, 0, true, 1, now).is_empty());
            let told = feed(&d, &group, 0, true, 1, now);
            assert_eq!(told.len(), 1, "round {round}");
            assert_eq!(told[0].time, Duration::from_secs(seconds));
            now += seconds * 1000 + 1;
        }
    }

    #[test]
    fn a_success_breaks_the_row() {
        let (group, _) = group(vec![spec(1), spec(2)]);
        let d = Detector::new(conf());
        for _ in 0..5 {
            assert!(feed(&d, &group, 0, true, 1, 1000).is_empty());
            assert!(feed(&d, &group, 0, true, 1, 1000).is_empty());
            assert!(feed(&d, &group, 0, false, 1, 1000).is_empty());
        }
    }

    #[test]
    fn the_slow_and_the_failing_are_found_at_the_end_of_an_interval() {
        let (group, _) = group((1..=6).map(spec).collect());
        let mut rate = conf();
        rate.consecutive_errors = 0;
        let d = Detector::new(rate);
        for n in 0..20 {
            for i in 0..6 {
                let ms = if i == 1 { 100 } else { 10 };
                let told = feed(&d, &group, i, i == 4 && n % 4 != 0, ms, 1000);
                assert!(told.is_empty());
            }
        }
        let told = feed(&d, &group, 0, false, 10, 12_000);
        let names: Vec<_> = told.iter().map(|e| (&*e.peer, e.reason)).collect();
        assert_eq!(
            names,
            [
                ("127.0.0.1:2", "latency"),
                ("127.0.0.1:5", "rate of errors")
            ]
        );
    }

    #[test]
    fn the_share_holds_and_one_peer_is_always_left() {
        let (two, _) = group(vec![spec(1), spec(2)]);
        let mut all = conf();
        all.max_ejected = 100;
        let d = Detector::new(all);
        let now = super::super::coarse_millis();
        let mut told = 0;
        for _ in 0..10 {
            for i in 0..2 {
                told += feed(&d, &two, i, true, 1, now).len();
            }
        }
        assert_eq!(told, 1);
        assert_eq!(letters(&two, 3), "bbb");
    }
}
