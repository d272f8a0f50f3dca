//! `random`: a peer by lot, or the better of two.

use super::group::{Balance, End, PeerSet, PickState};
use super::hash::TRIES;
use super::least_time::LeastTime;
use super::peer::Peer;
use super::round_robin::RoundRobin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// `random`, each peer drawn as often as its weight says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random;

impl Balance for Random {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        if r.places > TRIES || set.peers.len() < 2 {
            return RoundRobin.pick(set, r, now);
        }
        if let Some(i) = set.session(r, now) {
            return Some(i);
        }
        loop {
            let i = draw(set)?;
            if set.claim(i, r, now) {
                return Some(i);
            }
            r.places += 1;
            if r.places > TRIES {
                return RoundRobin.pick(set, r, now);
            }
        }
    }
}

/// `random two`: two are drawn, and the one with the lower cost for its weight is taken.
#[derive(Debug, Clone, Copy)]
pub struct RandomTwo<C>(pub C);

/// What a peer costs now, for [`RandomTwo`].
pub trait Cost: Send + Sync + 'static {
    /// The cost, before it is divided by the weight.
    fn cost(&self, peer: &Peer, now: u64) -> f64;

    /// Whether it learns from [`Cost::ended`].
    fn is_timed(&self) -> bool {
        false
    }

    /// The head of a response has come.
    fn head(&self, peer: &Peer, took: Duration) {
        let _ = (peer, took);
    }

    /// A request has ended.
    fn ended(&self, peer: &Peer, end: &End) {
        let _ = (peer, end);
    }
}

/// `least_conn`: requests under way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Busy;

impl Cost for Busy {
    fn cost(&self, peer: &Peer, _now: u64) -> f64 {
        f64::from(peer.state.conns.load(Relaxed))
    }
}

impl Cost for LeastTime {
    fn cost(&self, peer: &Peer, now: u64) -> f64 {
        self.expected(peer, now) as f64
    }

    fn is_timed(&self) -> bool {
        true
    }

    fn head(&self, peer: &Peer, took: Duration) {
        Balance::head(self, peer, took);
    }

    fn ended(&self, peer: &Peer, end: &End) {
        Balance::ended(self, peer, end);
    }
}

impl<C: Cost> Balance for RandomTwo<C> {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        if r.places > TRIES || set.peers.len() < 2 {
            return RoundRobin.pick(set, r, now);
        }
        if let Some(i) = set.session(r, now) {
            return Some(i);
        }
        let mut first = None;
        loop {
            let i = draw(set)?;
            let open = Some(i) != first
                && !r.is_tried(i)
                && set.peers.get(i).is_some_and(|peer| peer.is_open(now));
            match first {
                None if open => first = Some(i),
                Some(one) if open => {
                    let i = if self.is_worse(set, i, one, now) {
                        one
                    } else {
                        i
                    };
                    if set.claim(i, r, now) {
                        return Some(i);
                    }
                    first = None;
                }
                _ => {}
            }
            r.places += 1;
            if r.places > TRIES {
                return RoundRobin.pick(set, r, now);
            }
        }
    }

    fn is_timed(&self) -> bool {
        self.0.is_timed()
    }

    fn head(&self, peer: &Peer, took: Duration) {
        self.0.head(peer, took);
    }

    fn ended(&self, peer: &Peer, end: &End) {
        self.0.ended(peer, end);
    }
}

impl<C: Cost> RandomTwo<C> {
    fn is_worse(&self, set: &PeerSet, i: usize, than: usize, now: u64) -> bool {
        let (Some(a), Some(b)) = (set.peers.get(i), set.peers.get(than)) else {
            return false;
        };
        self.0.cost(a, now) * f64::from(b.weight) > self.0.cost(b, now) * f64::from(a.weight)
    }
}

/// A peer drawn by weight.
fn draw(set: &PeerSet) -> Option<usize> {
    set.at_weight(fastrand::u64(..set.total_weight.max(1)))
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group_by, letter_of, letters, spec};
    use super::super::peer::ServerSpec;
    use super::*;

    fn weighted(port: u16, weight: u32) -> ServerSpec {
        ServerSpec {
            weight,
            ..spec(port)
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        fastrand::seed(7);
        let (group, _) = group_by(vec![weighted(1, 1), weighted(2, 2), weighted(3, 3)], Random);
        let all = letters(&group, 6000);
        let expected = [('a', 1000.0), ('b', 2000.0), ('c', 3000.0)];
        let chi: f64 = expected
            .map(|(c, n)| (all.chars().filter(|l| *l == c).count() as f64 - n).powi(2) / n)
            .iter()
            .sum();
        // two degrees of freedom, one in ten thousand
        assert!(chi < 18.4, "{chi}");
    }

    #[test]
    fn the_less_busy_of_two_is_taken() {
        fastrand::seed(7);
        let (group, _) = group_by(vec![spec(1), spec(2)], RandomTwo(Busy));
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(group.pick(&mut group.start()).unwrap());
        }
        let first = held.iter().filter(|p| letter_of(p.peer()) == 'a').count();
        // with two peers both are always compared, unless one is drawn too often in a row
        assert!((49..=51).contains(&first), "{first}");
    }

    #[test]
    fn all_peers_are_found_however_the_dice_fall() {
        fastrand::seed(7);
        let (group, _) = group_by(
            vec![weighted(1, 1000), weighted(2, 1), weighted(3, 1)],
            Random,
        );
        let mut r = group.start();
        let mut seen = Vec::new();
        while let Some(picked) = group.pick(&mut r) {
            seen.push(letter_of(picked.peer()));
            drop(picked);
        }
        seen.sort_unstable();
        assert_eq!(seen, ['a', 'b', 'c']);
    }
}
