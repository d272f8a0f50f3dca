//! `least_conn`: the peer with the fewest requests under way for its weight; round robin among equals.

use super::group::{Balance, PeerSet, PickState};
use super::peer::Peer;
use std::sync::atomic::Ordering::Relaxed;

/// nginx's `least_conn`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeastConn;

impl Balance for LeastConn {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        set.pick_least(r, now, |peer: &Peer| {
            u64::from(peer.state.conns.load(Relaxed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group_by, letter_of, spec};
    use super::super::peer::ServerSpec;
    use super::*;

    #[test]
    fn the_least_busy_for_its_weight_is_picked() {
        let heavy = ServerSpec {
            weight: 2,
            ..spec(1)
        };
        let (group, _) = group_by(vec![heavy, spec(2), spec(3)], LeastConn);
        // nobody is given back: a gets twice as many
        let mut held = Vec::new();
        let mut order = String::new();
        for _ in 0..8 {
            let picked = group.pick(&mut group.start()).unwrap();
            order.push(letter_of(picked.peer()));
            held.push(picked);
        }
        let count = |c| order.chars().filter(|l| *l == c).count();
        assert_eq!((count('a'), count('b'), count('c')), (4, 2, 2), "{order}");
    }

    #[test]
    fn equals_take_turns() {
        let (group, _) = group_by(vec![spec(1), spec(2), spec(3)], LeastConn);
        assert_eq!(super::super::group::tests::letters(&group, 6), "abcabc");
    }

    #[test]
    fn a_busy_peer_is_passed_over() {
        let (group, _) = group_by(vec![spec(1), spec(2)], LeastConn);
        let held = group.pick(&mut group.start()).unwrap();
        assert_eq!(letter_of(held.peer()), 'a');
        assert_eq!(super::super::group::tests::letters(&group, 3), "bbb");
    }
}
