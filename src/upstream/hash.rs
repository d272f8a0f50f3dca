//! `hash key` and `ip_hash`: the same key goes to the same peer, with nginx's exact distribution.

use super::group::{Balance, PeerSet, PickState};
use super::round_robin::RoundRobin;

/// nginx's `hash key` without `consistent`, the same as Cache::Memcached's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hash;

/// How many places are looked at before round robin decides.
pub(super) const TRIES: u8 = 20;

impl Balance for Hash {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        if r.places > TRIES || set.peers.len() < 2 || r.key.is_empty() {
            return RoundRobin.pick(set, r, now);
        }
        if let Some(i) = set.session(r, now) {
            return Some(i);
        }
        loop {
            let mut crc = crc32fast::Hasher::new();
            if r.rehash > 0 {
                crc.update(itoa::Buffer::new().format(r.rehash).as_bytes());
            }
            crc.update(&r.key);
            r.hash = r.hash.wrapping_add((crc.finalize() >> 16) & 0x7fff);
            r.rehash += 1;
            let i = set.at_weight(u64::from(r.hash))?;
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

/// nginx's `ip_hash`; the key is the first three bytes of an IPv4 address, or a whole IPv6 one.
#[derive(Debug, Clone, Copy, Default)]
pub struct IpHash;

impl Balance for IpHash {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        if r.places > TRIES || set.peers.len() < 2 {
            return RoundRobin.pick(set, r, now);
        }
        if let Some(i) = set.session(r, now) {
            return Some(i);
        }
        let mut hash = if r.rehash == 0 { 89 } else { r.hash };
        loop {
            for byte in &r.key {
                hash = (hash * 113 + u32::from(*byte)) % 6271;
            }
            let i = set.at_weight(u64::from(hash))?;
            if set.claim(i, r, now) {
                (r.hash, r.rehash) = (hash, 1);
                return Some(i);
            }
            r.places += 1;
            if r.places > TRIES {
                return RoundRobin.pick(set, r, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group_by, letter_of, spec};
    use super::super::group::{AttemptVerdict, Group};
    use super::super::peer::ServerSpec;
    use super::*;

    fn letter(group: &Group, key: &[u8]) -> char {
        let mut r = group.start();
        r.key.extend_from_slice(key);
        let picked = group.pick(&mut r).unwrap();
        let letter = letter_of(picked.peer());
        picked.done(AttemptVerdict::Ok, &mut r);
        letter
    }

    fn servers() -> Vec<ServerSpec> {
        let heavy = ServerSpec {
            weight: 3,
            ..spec(2)
        };
        vec![spec(1), heavy, spec(3)]
    }

    #[test]
    fn keys_keep_their_peer() {
        let (group, _) = group_by(servers(), Hash);
        for i in 0..100 {
            let key = format!("/{i}");
            assert_eq!(
                letter(&group, key.as_bytes()),
                letter(&group, key.as_bytes())
            );
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let (group, _) = group_by(servers(), Hash);
        let all: String = (0..5000)
            .map(|i| letter(&group, format!("key {i}").as_bytes()))
            .collect();
        let share = |c| all.chars().filter(|l| *l == c).count();
        let expected = [('a', 1000.0), ('b', 3000.0), ('c', 1000.0)];
        let chi: f64 = expected
            .map(|(c, n)| (share(c) as f64 - n).powi(2) / n)
            .iter()
            .sum();
        // two degrees of freedom; keys in a row are not random, so the bound is a wide one
        assert!(chi < 20.0, "{chi}");
    }

    #[test]
    fn a_key_moves_on_when_its_peer_fails_and_comes_back() {
        let (group, now) = group_by(servers(), Hash);
        let first = letter(&group, b"x");
        let mut r = group.start();
        r.key.extend_from_slice(b"x");
        let picked = group.pick(&mut r).unwrap();
        picked.done(AttemptVerdict::Failed, &mut r);
        let second = letter_of(group.pick(&mut r).unwrap().peer());
        assert_ne!(first, second);
        assert_eq!(letter(&group, b"x"), second);
        now.fetch_add(11, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(letter(&group, b"x"), first);
    }

    #[test]
    fn an_empty_key_is_balanced_by_round_robin() {
        let (group, _) = group_by(vec![spec(1), spec(2)], Hash);
        let all: String = (0..4).map(|_| letter(&group, b"")).collect();
        assert_eq!(all, "abab");
    }

    #[test]
    fn neighbours_of_a_network_share_a_peer() {
        let (group, _) = group_by((1..=5).map(spec).collect(), IpHash);
        let first = letter(&group, &[10, 0, 7]);
        for _ in 0..3 {
            assert_eq!(letter(&group, &[10, 0, 7]), first);
        }
        let others: std::collections::BTreeSet<char> =
            (0..=255).map(|i| letter(&group, &[10, i, 7])).collect();
        assert_eq!(others.len(), 5);
    }
}
