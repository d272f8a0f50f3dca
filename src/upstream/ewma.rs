//! `ewma`, Couloir's own: the better of two peers by response time, a rise of which counts at once (peak EWMA).

use super::coarse_millis;
use super::group::End;
use super::peer::Peer;
use super::random::Cost;
use std::sync::atomic::Ordering::Relaxed;

/// The response time that a request may expect: the peer's moving average for each request that it has already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ewma;

/// What a peer costs that has not answered yet but has requests: worse than any that answers.
const UNKNOWN: f64 = 1e12;

impl Cost for Ewma {
    fn cost(&self, peer: &Peer, _now: u64) -> f64 {
        let waiting = f64::from(peer.state.conns.load(Relaxed));
        let cost = peer.state.timing.lock().peak.cost(coarse_millis());
        if cost == 0.0 && waiting > 0.0 {
            return UNKNOWN + waiting;
        }
        cost * (waiting + 1.0)
    }

    fn is_timed(&self) -> bool {
        true
    }

    fn ended(&self, peer: &Peer, end: &End) {
        // a failure that comes fast must not attract requests
        if end.ok {
            let took = end.head.unwrap_or(end.total);
            let mut timing = peer.state.timing.lock();
            timing.peak.observe(took, coarse_millis());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::AttemptVerdict;
    use super::super::group::tests::{group_by, letter_of, spec};
    use super::super::random::RandomTwo;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_peer_ten_times_slower_gets_a_small_share() {
        fastrand::seed(7);
        let (group, _) = group_by((1..=4).map(spec).collect(), RandomTwo(Ewma));
        let mut slow = 0;
        for _ in 0..1000 {
            let mut r = group.start();
            let mut picked = group.pick(&mut r).unwrap();
            let is_slow = letter_of(picked.peer()) == 'a';
            slow += u32::from(is_slow);
            let took = Duration::from_millis(if is_slow { 100 } else { 10 });
            picked.measured(Some(took), took);
            picked.done(AttemptVerdict::Ok, &mut r);
        }
        // it is drawn with itself only by chance, and asked once while nothing is known of it
        assert!(slow < 50, "{slow}");
    }

    #[test]
    fn a_failure_is_not_taken_for_speed() {
        let (group, _) = group_by(vec![spec(1), spec(2)], RandomTwo(Ewma));
        let mut r = group.start();
        let mut picked = group.pick(&mut r).unwrap();
        picked.measured(None, Duration::from_micros(1));
        picked.done(AttemptVerdict::Failed, &mut r);
        let known = group
            .peers()
            .any(|p| p.state.timing.lock().peak.cost(coarse_millis()) != 0.0);
        assert!(!known);
    }
}
