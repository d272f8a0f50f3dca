//! `least_time`: the peer that is expected to be done first; round robin among equals.

use super::group::{Balance, End, PeerSet, PickState};
use super::peer::Peer;
use super::timing::average;
use super::{coarse_millis, timing::Timing};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// nginx's `least_time`.
#[derive(Debug, Clone, Copy)]
pub struct LeastTime {
    /// `header`: up to the response's head; otherwise `last_byte`.
    pub header: bool,
    /// `inflight`: requests that are not answered yet count too.
    pub inflight: bool,
}

/// Slower peers than this are all equally bad, milliseconds.
const SLOWEST: u64 = 5000;
/// Times that fall into one step of so many milliseconds are equal.
const STEP: u64 = 20;

impl LeastTime {
    /// How long the peer is expected to take for what it has and one request more; `now` in seconds.
    pub(super) fn expected(&self, peer: &Peer, now: u64) -> u64 {
        self.estimate(peer, &peer.state.timing.lock(), now)
    }

    fn estimate(&self, peer: &Peer, timing: &Timing, now: u64) -> u64 {
        let mut time = if self.header {
            timing.header
        } else {
            timing.response
        };
        let idle = now.saturating_sub(peer.state.checked.load(Relaxed));
        if idle > peer.fail_timeout {
            // a slow peer gets another chance: each fail_timeout halves its time
            let halves = idle / peer.fail_timeout.saturating_add(1);
            time = time
                .checked_shr(u32::try_from(halves).unwrap_or(64))
                .unwrap_or(0);
        }
        if timing.inflight.requests > 0 {
            time = time.max(timing.inflight.time);
        }
        let time = if time > SLOWEST {
            SLOWEST
        } else {
            time + STEP - time % STEP
        };
        time.saturating_mul(1 + u64::from(peer.state.conns.load(Relaxed)))
    }
}

impl Balance for LeastTime {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        let ms = coarse_millis();
        set.pick_least(r, now, |peer| {
            let mut timing = peer.state.timing.lock();
            timing.inflight.sample(ms);
            self.estimate(peer, &timing, now)
        })
    }

    fn is_timed(&self) -> bool {
        true
    }

    fn started(&self, peer: &Peer) {
        if self.inflight {
            peer.state.timing.lock().inflight.begin(coarse_millis());
        }
    }

    fn head(&self, peer: &Peer, took: Duration) {
        if self.inflight && self.header {
            let took = millis(took);
            let mut timing = peer.state.timing.lock();
            timing.header = average(timing.header, took);
            timing.inflight.end(took, coarse_millis());
        }
    }

    fn ended(&self, peer: &Peer, end: &End) {
        let mut timing = peer.state.timing.lock();
        let settled = self.header && end.head.is_some();
        if self.inflight && !settled {
            timing.inflight.end(millis(end.total), coarse_millis());
        }
        // what failed must not look fast
        let Some(head) = end.head.filter(|_| end.ok) else {
            return;
        };
        timing.response = average(timing.response, millis(end.total));
        if !(self.inflight && self.header) {
            timing.header = average(timing.header, millis(head));
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::group::AttemptVerdict;
    use super::super::group::tests::{group_by, letter_of, letters, spec};
    use super::*;

    const HEADER: LeastTime = LeastTime {
        header: true,
        inflight: false,
    };

    #[test]
    fn the_fastest_gets_more() {
        let (group, _) = group_by(vec![spec(1), spec(2)], HEADER);
        // a takes ten times as long as b
        for _ in 0..20 {
            let mut r = group.start();
            let mut picked = group.pick(&mut r).unwrap();
            let slow = letter_of(picked.peer()) == 'a';
            let took = Duration::from_millis(if slow { 500 } else { 50 });
            picked.measured(Some(took), took);
            picked.done(AttemptVerdict::Ok, &mut r);
        }
        assert_eq!(letters(&group, 3), "bbb");
    }

    #[test]
    fn steps_and_halves() {
        let (group, _) = group_by(vec![spec(1), spec(2)], HEADER);
        let peer = group.peers().next().unwrap();
        let timing = |header| Timing {
            header,
            ..Timing::default()
        };
        peer.state.checked.store(1000, Relaxed);
        assert_eq!(HEADER.estimate(peer, &timing(0), 1000), 20);
        assert_eq!(HEADER.estimate(peer, &timing(19), 1000), 20);
        assert_eq!(HEADER.estimate(peer, &timing(20), 1000), 40);
        assert_eq!(HEADER.estimate(peer, &timing(9999), 1000), 5000);
        assert_eq!(HEADER.estimate(peer, &timing(400), 1011), 220);
        assert_eq!(HEADER.estimate(peer, &timing(400), 1_000_000), 20);
    }

    #[test]
    fn waiting_requests_settle_however_they_end() {
        let method = LeastTime {
            header: true,
            inflight: true,
        };
        let (group, _) = group_by(vec![spec(1), spec(2)], method);
        let waiting = || -> u64 {
            let of = |p: &Peer| p.state.timing.lock().inflight.requests;
            group.peers().map(of).sum()
        };
        let mut r = group.start();
        let answered = group.pick(&mut r).unwrap();
        let dropped = group.pick(&mut group.start()).unwrap();
        let mut failed = group.pick(&mut group.start()).unwrap();
        assert_eq!(waiting(), 3);
        answered.head(Duration::from_millis(5));
        assert_eq!(waiting(), 2);
        answered.done(AttemptVerdict::Ok, &mut r);
        drop(dropped);
        failed.measured(None, Duration::from_millis(5));
        failed.done(AttemptVerdict::Failed, &mut group.start());
        assert_eq!(waiting(), 0);
    }
}
