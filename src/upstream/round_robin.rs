//! Smooth weighted round robin, the default method of an upstream.

use super::group::{Balance, PeerSet, PickState};
use std::sync::atomic::Ordering::Relaxed;

/// nginx's smooth weighted round robin: a failing peer loses weight and earns it back pick by pick.
#[derive(Debug, Clone, Copy, Default)]
pub struct RoundRobin;

impl Balance for RoundRobin {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        let mut weights = set.weights.lock();
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;

        for (i, (peer, weight)) in set.peers.iter().zip(weights.iter_mut()).enumerate() {
            if r.is_tried(i) || !peer.usable() || peer.is_failed(now) || peer.is_full() {
                continue;
            }
            weight.current += weight.effective;
            total += weight.effective;
            if weight.effective < i64::from(peer.weight) {
                weight.effective += 1;
            }
            if best.is_none_or(|(_, current)| weight.current > current) {
                best = Some((i, weight.current));
            }
        }

        let (i, _) = best?;
        let peer = set.peers.get(i)?;
        weights.get_mut(i)?.current -= total;
        r.mark_tried(i);
        if now.saturating_sub(peer.state.checked.load(Relaxed)) > peer.fail_timeout {
            peer.state.checked.store(now, Relaxed);
        }
        // Only another configuration's group can have taken the last place meanwhile.
        peer.acquire().then_some(i)
    }
}

/// The moving weights of one peer; they start anew with each configuration.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// Grows by `effective` with each pick that the peer could serve; the highest one is picked.
    pub current: i64,
    /// The configured weight, less what failures cost.
    pub effective: i64,
}

impl Weight {
    /// At rest, with the full configured weight.
    pub fn new(weight: u32) -> Self {
        Self {
            current: 0,
            effective: i64::from(weight),
        }
    }

    /// Takes the share of one failure of `max_fails` off the effective weight.
    pub fn penalise(&mut self, weight: u32, max_fails: u32) {
        if let Some(share) = weight.checked_div(max_fails) {
            self.effective = (self.effective - i64::from(share)).max(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group, letters, spec};
    use super::super::group::{Outcome, ServerSpec};
    use super::*;

    fn sequence(servers: Vec<ServerSpec>, n: usize) -> String {
        let (group, _) = group(servers);
        letters(&group, n)
    }

    fn weighted(port: u16, weight: u32) -> ServerSpec {
        ServerSpec {
            weight,
            ..spec(port)
        }
    }

    #[test]
    fn sequences_are_nginx_s() {
        assert_eq!(sequence(vec![spec(1), spec(2), spec(3)], 7), "abcabca");
        // The table in the commit that brought smooth weighted round robin to nginx.
        assert_eq!(
            sequence(vec![weighted(1, 5), weighted(2, 1), weighted(3, 1)], 14),
            "aabacaaaabacaa"
        );
        assert_eq!(
            sequence(vec![weighted(1, 3), weighted(2, 2), weighted(3, 1)], 12),
            "abacbaabacba"
        );
        assert_eq!(sequence(vec![weighted(1, 2), weighted(2, 4)], 6), "babbab");
    }

    #[test]
    fn a_failed_peer_earns_its_weight_back_slowly() {
        let servers = vec![
            ServerSpec {
                weight: 4,
                max_fails: 2,
                ..spec(1)
            },
            weighted(2, 1),
        ];
        let (group, _) = group(servers);
        let mut r = group.start();
        let picked = group.pick(&mut r).unwrap();
        assert_eq!(picked.peer().addr.to_string(), "127.0.0.1:1");
        picked.done(Outcome::Failed, &mut r);
        // One of two failures took half of the weight: 4 -> 2, then +1 with each pick.
        // (-1,1)+(2,1) b, (1,-1)+(3,1) a, (0,0)+(4,1) a, (-1,1)+(4,1) a, (-2,2)+(4,1) b, ...
        assert_eq!(letters(&group, 7), "baaabaa");
    }

    #[test]
    fn penalty_never_falls_below_zero() {
        let mut weight = Weight::new(3);
        for _ in 0..5 {
            weight.penalise(3, 2);
        }
        assert_eq!(weight.effective, 0);
        let mut unlimited = Weight::new(3);
        unlimited.penalise(3, 0);
        assert_eq!(unlimited.effective, 3);
    }
}
