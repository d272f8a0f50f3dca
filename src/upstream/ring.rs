//! `hash key consistent`: a ring of points, so that few keys move when a peer comes or goes.

use super::group::{Balance, PeerSet, PickState};
use super::hash::TRIES;
use super::peer::Peer;
use super::round_robin::RoundRobin;
use std::collections::HashMap;

/// nginx's `hash key consistent` (ketama), the same as Cache::Memcached::Fast's.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConsistentHash;

/// How many points a peer has for each unit of its weight.
const POINTS: u64 = 160;

impl Balance for ConsistentHash {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        let Some(ring) = set.ring().filter(|ring| !ring.points.is_empty()) else {
            return RoundRobin.pick(set, r, now);
        };
        if r.places > TRIES || r.key.is_empty() {
            return RoundRobin.pick(set, r, now);
        }
        if r.rehash == 0 {
            (r.hash, r.rehash) = (ring.find(crc32fast::hash(&r.key)), 1);
        }
        if let Some(i) = set.session(r, now) {
            return Some(i);
        }
        loop {
            // several addresses of one name are balanced by round robin
            let members = ring.members(r.hash);
            if let Some(i) = set.pick_weighted(r, now, members.iter().map(|i| *i as usize)) {
                return Some(i);
            }
            r.hash = r.hash.wrapping_add(1);
            r.places += 1;
            if r.places > TRIES {
                return RoundRobin.pick(set, r, now);
            }
        }
    }

    fn wants_ring(&self) -> bool {
        true
    }
}

/// The points of a set of peers, by hash.
#[derive(Debug, Default)]
pub struct Ring {
    /// Hash, and the server that it belongs to.
    points: Box<[(u32, u32)]>,
    /// For each server, as written in the configuration, the peers that its name stands for.
    servers: Box<[Box<[u32]>]>,
}

impl Ring {
    /// The ring of these peers.
    pub fn new(peers: &[Peer]) -> Self {
        let mut index: HashMap<&str, u32> = HashMap::new();
        let mut servers: Vec<Vec<u32>> = Vec::new();
        let mut points = Vec::new();
        for (i, peer) in (0u32..).zip(peers) {
            let next = u32::try_from(servers.len()).unwrap_or(u32::MAX);
            let server = *index.entry(&peer.server).or_insert_with(|| {
                servers.push(Vec::new());
                next
            });
            if let Some(members) = servers.get_mut(server as usize) {
                members.push(i);
            }
            let base = base(&peer.server);
            let mut last = 0u32;
            for _ in 0..u64::from(peer.weight) * POINTS {
                let mut crc = base.clone();
                crc.update(&last.to_le_bytes());
                last = crc.finalize();
                points.push((last, server));
            }
        }
        points.sort_by_key(|(hash, _)| *hash);
        points.dedup_by_key(|(hash, _)| *hash);
        Self {
            points: points.into(),
            servers: servers.into_iter().map(Vec::into_boxed_slice).collect(),
        }
    }

    /// The number of the first point at or after `hash`; it may lie one beyond the last.
    fn find(&self, hash: u32) -> u32 {
        let at = self.points.partition_point(|(point, _)| *point < hash);
        u32::try_from(at).unwrap_or(0)
    }

    /// The peers of the server that the point belongs to.
    fn members(&self, point: u32) -> &[u32] {
        let at = (point as usize).checked_rem(self.points.len());
        at.and_then(|at| self.points.get(at))
            .and_then(|(_, server)| self.servers.get(*server as usize))
            .map_or(&[], |members| members)
    }
}

/// The hash that all points of a server begin with: of its host, a zero byte and its port.
fn base(server: &str) -> crc32fast::Hasher {
    let unix = server
        .get(..5)
        .filter(|scheme| scheme.eq_ignore_ascii_case("unix:"))
        .and_then(|_| server.get(5..));
    let (host, port) = match (unix, server.rsplit_once(':')) {
        (Some(path), _) => (path, ""),
        (None, Some((host, port))) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (server, ""),
    };
    let mut crc = crc32fast::Hasher::new();
    crc.update(host.as_bytes());
    crc.update(&[0]);
    crc.update(port.as_bytes());
    crc
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group_by, letter_of, spec};
    use super::super::group::{AttemptVerdict, Group};
    use super::super::peer::ServerSpec;
    use super::*;

    fn letter(group: &Group, key: &str) -> char {
        let mut r = group.start();
        r.key.extend_from_slice(key.as_bytes());
        let picked = group.pick(&mut r).unwrap();
        let letter = letter_of(picked.peer());
        picked.done(AttemptVerdict::Ok, &mut r);
        letter
    }

    #[test]
    fn host_and_port() {
        let of = |server: &str| base(server).finalize();
        let plain = |bytes: &[u8]| crc32fast::hash(bytes);
        assert_eq!(of("127.0.0.1:80"), plain(b"127.0.0.1\x0080"));
        assert_eq!(of("backend"), plain(b"backend\0"));
        assert_eq!(of("UNIX:/a:1"), plain(b"/a:1\0"));
        assert_eq!(of("[::1]:8080"), plain(b"[::1]\x008080"));
        assert_eq!(of("[::1]"), plain(b"[::1]\0"));
        assert_eq!(of("host:"), plain(b"host\0"));
    }

    #[test]
    fn few_keys_move_when_a_peer_goes() {
        let (all, _) = group_by((1..=5).map(spec).collect(), ConsistentHash);
        let (fewer, _) = group_by((1..=4).map(spec).collect(), ConsistentHash);
        let mut moved = 0;
        for i in 0..2000 {
            let key = format!("/page/{i}");
            let (before, after) = (letter(&all, &key), letter(&fewer, &key));
            if before == 'e' {
                moved += 1;
            } else {
                assert_eq!(before, after, "{key}");
            }
        }
        assert!((200..600).contains(&moved), "{moved}");
    }

    #[test]
    fn addresses_of_one_name_take_turns() {
        let mut name = ServerSpec::new("app.example:80", Vec::new());
        name.addrs = (1..=2).flat_map(|port| spec(port).addrs).collect();
        let (group, _) = group_by(vec![name, spec(3)], ConsistentHash);
        let key = (0..100)
            .map(|i| i.to_string())
            .find(|key| letter(&group, key) != 'c')
            .unwrap();
        let turns: String = (0..4).map(|_| letter(&group, &key)).collect();
        assert!(turns == "abab" || turns == "baba", "{turns}");
    }

    #[test]
    fn weights_are_shares_of_the_ring() {
        let heavy = ServerSpec {
            weight: 3,
            ..spec(2)
        };
        let (group, _) = group_by(vec![spec(1), heavy], ConsistentHash);
        let second = (0..4000)
            .filter(|i| letter(&group, &format!("k{i}")) == 'b')
            .count();
        assert!((2600..3400).contains(&second), "{second}");
    }
}
