//! Smooth weighted round robin, the default method of an upstream.

use super::group::{Balance, PeerSet, PickState};
use super::set::Turn;

/// nginx's smooth weighted round robin: a failing peer loses weight and earns it back pick by pick.
#[derive(Debug, Clone, Copy, Default)]
pub struct RoundRobin;

impl Balance for RoundRobin {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        match set.bound(r, now) {
            Some(i) => self.pick_bound(set, i, r, now),
            None => set.pick_weighted(r, now, 0..set.peers.len()),
        }
    }
}

impl RoundRobin {
    /// A request of a session goes to its peer, which pays for it with its turn as long as it can.
    fn pick_bound(&self, set: &PeerSet, i: usize, r: &mut PickState, now: u64) -> Option<usize> {
        {
            let mut weights = set.weights.lock();
            let own = set.peers.get(i).map_or(0, |peer| u64::from(peer.weight));
            let others = set.total_weight.saturating_sub(own);
            let lowest = -i64::try_from(others).unwrap_or(i64::MAX);
            if weights.get(i).is_some_and(|w| w.current > lowest) {
                let mut turn = Turn::default();
                for (j, (peer, weight)) in set.peers.iter().zip(weights.iter_mut()).enumerate() {
                    if set.is_open(j, r, now) {
                        turn.offer(j, peer, weight);
                    }
                }
                turn.end_with(i, &mut weights);
            }
        }
        if set.take_open(i, r, now) {
            return Some(i);
        }
        set.pick_weighted(r, now, 0..set.peers.len())
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
    use super::super::group::AttemptVerdict;
    use super::super::group::tests::{group, letter_of, letters, spec};
    use super::super::peer::ServerSpec;
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

    /// The peers that `n` requests go to, where the peers of `dead` refuse connections.
    fn walk(servers: &[(u32, u32, bool)], dead: &str, n: usize) -> String {
        let spec = |(i, &(weight, max_fails, backup)): (usize, &(u32, u32, bool))| ServerSpec {
            weight,
            max_fails,
            backup,
            ..spec(u16::try_from(i).unwrap() + 1)
        };
        let (group, _) = group(servers.iter().enumerate().map(spec).collect());
        let mut requests = Vec::new();
        for _ in 0..n {
            let mut r = group.start();
            let mut tried = String::new();
            loop {
                let Some(picked) = group.pick(&mut r) else {
                    tried.push('-');
                    break;
                };
                let letter = letter_of(picked.peer());
                tried.push(letter);
                if !dead.contains(letter) {
                    picked.done(AttemptVerdict::Ok, &mut r);
                    break;
                }
                picked.done(AttemptVerdict::Failed, &mut r);
                if r.tries == 0 {
                    break;
                }
            }
            requests.push(tried);
        }
        requests.join(" ")
    }

    /// What `$upstream_addr` of nginx 1.31.5 with one worker showed for the same servers.
    #[test]
    fn retries_go_where_nginx_s_go() {
        let (primary, backup) = (false, true);
        assert_eq!(
            walk(
                &[(5, 3, primary), (1, 1, primary), (1, 1, primary)],
                "a",
                14
            ),
            "ab c ab ab b c b c b c b c b c"
        );
        assert_eq!(
            walk(
                &[(4, 2, primary), (3, 0, primary), (2, 1, backup)],
                "ab",
                10
            ),
            "abc bac bc bc bc bc bc bc bc bc"
        );
        assert_eq!(
            walk(
                &[(1, 1, primary), (1, 1, primary), (1, 1, backup)],
                "abc",
                5
            ),
            "abc - - - -"
        );
        assert_eq!(
            walk(
                &[(7, 4, primary), (3, 2, primary), (2, 9, primary)],
                "bc",
                25
            ),
            "a ba ca a a ba ca a a a a ca a a a ca a a a a ca a a a ca"
        );
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
        picked.done(AttemptVerdict::Failed, &mut r);
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
