//! Leaky buckets by key, in bounded memory: the state of a `limit_req_zone`.

use super::limit_stats::Tally;
use super::zones;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Milliseconds of a clock that never goes back.
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // far from zero: a bucket that was never charged has leaked all, whatever its rate
    const LONG_AGO: u64 = 100 * 24 * 3600 * 1000;
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + LONG_AGO
}

/// Buckets by key; the one unused for longest makes room for a new one.
pub struct Zone {
    shards: Box<[Mutex<Buckets>]>,
    hasher: foldhash::fast::RandomState,
    /// Its size, bytes.
    pub size: u64,
    /// The key that it is filled by, as written.
    pub key_text: String,
    /// What became of requests.
    pub tally: Arc<Tally>,
}

/// What looking at a bucket says; excesses are thousandths of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// It has room; so full is it with this request.
    Fits(u64),
    /// It would be fuller than the burst allows.
    Refused(u64),
    /// The key is too long for the zone.
    NoMemory,
}

impl Zone {
    /// A zone of so many bytes; large ones are divided so that threads do not wait for each other.
    pub fn new(size: u64, key_text: &str) -> Zone {
        let n = if size >= 1 << 20 { 16 } else { 1 };
        let shards = (0..n)
            .map(|_| Mutex::new(Buckets::new(zones::usable(size) / n)))
            .collect();
        Zone {
            shards,
            hasher: foldhash::fast::RandomState::default(),
            size,
            key_text: key_text.to_owned(),
            tally: Arc::default(),
        }
    }

    /// Looks whether a request fits; `charge` counts it at once.
    pub fn look(&self, key: &[u8], rate: u64, burst: u64, now: u64, charge: bool) -> Spent {
        let hash = self.hasher.hash_one(key);
        self.shard(hash, |b| b.look(hash, key, rate, burst, now, charge))
            .unwrap_or(Spent::NoMemory)
    }

    /// Counts a request that was looked at before; the excess with it.
    pub fn charge(&self, key: &[u8], rate: u64, now: u64) -> Option<u64> {
        let hash = self.hasher.hash_one(key);
        self.shard(hash, |b| b.charge(hash, key, rate, now))?
    }

    fn shard<T>(&self, hash: u64, f: impl FnOnce(&mut Buckets) -> T) -> Option<T> {
        // the low bits choose within the shard's table
        let i = (hash >> 48) as usize % self.shards.len().max(1);
        self.shards.get(i).map(|s| f(&mut s.lock()))
    }
}

const NONE: u32 = u32::MAX;

struct Bucket {
    key: SmallVec<[u8; 24]>,
    hash: u64,
    excess: u64,
    last: u64,
    /// The next of the same hash.
    chain: u32,
    newer: u32,
    older: u32,
}

/// Buckets in the order of their use, found by hash.
struct Buckets {
    list: Vec<Bucket>,
    free: Vec<u32>,
    heads: HashMap<u64, u32, Identity>,
    newest: u32,
    oldest: u32,
    used: u64,
    limit: u64,
}

impl Buckets {
    fn new(limit: u64) -> Buckets {
        Buckets {
            list: Vec::new(),
            free: Vec::new(),
            heads: HashMap::default(),
            newest: NONE,
            oldest: NONE,
            used: 0,
            limit,
        }
    }

    fn look(
        &mut self,
        hash: u64,
        key: &[u8],
        rate: u64,
        burst: u64,
        now: u64,
        charge: bool,
    ) -> Spent {
        let Some(i) = self.find(hash, key) else {
            self.drop_idle(rate, now);
            let last = if charge { now } else { 0 };
            return if self.insert(hash, key, last) {
                Spent::Fits(0)
            } else {
                Spent::NoMemory
            };
        };
        self.touch(i);
        let Some(b) = self.list.get_mut(i as usize) else {
            return Spent::NoMemory;
        };
        let excess = b.leaked(rate, now);
        if excess > burst {
            return Spent::Refused(excess);
        }
        if charge {
            b.excess = excess;
            b.last = b.last.max(now);
        }
        Spent::Fits(excess)
    }

    fn charge(&mut self, hash: u64, key: &[u8], rate: u64, now: u64) -> Option<u64> {
        let i = self.find(hash, key)?;
        let b = self.list.get_mut(i as usize)?;
        b.excess = b.leaked(rate, now);
        b.last = b.last.max(now);
        Some(b.excess)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let mut i = *self.heads.get(&hash)?;
        while let Some(b) = self.list.get(i as usize) {
            if *b.key == *key {
                return Some(i);
            }
            i = b.chain;
        }
        None
    }

    /// Adds a bucket, in place of the oldest ones if there is no room.
    fn insert(&mut self, hash: u64, key: &[u8], last: u64) -> bool {
        let cost = cost(key);
        if cost > self.limit {
            return false;
        }
        while self.used + cost > self.limit {
            if !self.remove_oldest() {
                return false;
            }
        }
        let i = self.free.pop().unwrap_or(self.list.len() as u32);
        let chain = self.heads.insert(hash, i).unwrap_or(NONE);
        let bucket = Bucket {
            key: key.into(),
            hash,
            excess: 0,
            last,
            chain,
            newer: NONE,
            older: NONE,
        };
        match self.list.get_mut(i as usize) {
            Some(slot) => *slot = bucket,
            None => self.list.push(bucket),
        }
        self.used += cost;
        self.link(i);
        true
    }

    /// Removes one or two buckets that have been empty for a minute.
    fn drop_idle(&mut self, rate: u64, now: u64) {
        for _ in 0..2 {
            let Some(b) = self.list.get(self.oldest as usize) else {
                return;
            };
            let idle = now.saturating_sub(b.last);
            if idle < 60_000 || b.excess > rate.saturating_mul(idle) / 1000 {
                return;
            }
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) -> bool {
        let i = self.oldest;
        self.unlink(i);
        let Some(b) = self.list.get_mut(i as usize) else {
            return false;
        };
        let (hash, chain) = (b.hash, b.chain);
        self.used = self.used.saturating_sub(cost(&b.key));
        b.key = SmallVec::new();
        match self.heads.get_mut(&hash) {
            Some(head) if *head == i && chain == NONE => {
                self.heads.remove(&hash);
            }
            Some(head) if *head == i => *head = chain,
            Some(head) => {
                let mut at = *head;
                while let Some(b) = self.list.get_mut(at as usize) {
                    if b.chain == i {
                        b.chain = chain;
                        break;
                    }
                    at = b.chain;
                }
            }
            None => {}
        }
        self.free.push(i);
        true
    }

    fn touch(&mut self, i: u32) {
        if self.newest != i {
            self.unlink(i);
            self.link(i);
        }
    }

    /// Makes a bucket the newest.
    fn link(&mut self, i: u32) {
        let newest = self.newest;
        if let Some(b) = self.list.get_mut(i as usize) {
            (b.newer, b.older) = (NONE, newest);
        }
        match self.list.get_mut(newest as usize) {
            Some(b) => b.newer = i,
            None => self.oldest = i,
        }
        self.newest = i;
    }

    fn unlink(&mut self, i: u32) {
        let Some((newer, older)) = self.list.get(i as usize).map(|b| (b.newer, b.older)) else {
            return;
        };
        match self.list.get_mut(newer as usize) {
            Some(b) => b.older = older,
            None => self.newest = older,
        }
        match self.list.get_mut(older as usize) {
            Some(b) => b.newer = newer,
            None => self.oldest = newer,
        }
    }
}

impl Bucket {
    /// How full the bucket is with one more request, after what has leaked since the last.
    fn leaked(&self, rate: u64, now: u64) -> u64 {
        let ms = now.saturating_sub(self.last);
        (self.excess + 1000).saturating_sub(rate.saturating_mul(ms) / 1000)
    }
}

/// What nginx takes for a bucket: its node and the key in one piece.
fn cost(key: &[u8]) -> u64 {
    zones::slab_size(80 + key.len())
}

/// Keys are hashes already.
#[derive(Default, Clone)]
struct Identity;

impl BuildHasher for Identity {
    type Hasher = IdentityHasher;

    fn build_hasher(&self) -> IdentityHasher {
        IdentityHasher(0)
    }
}

struct IdentityHasher(u64);

impl std::hash::Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_leaks_by_its_rate() {
        let z = Zone::new(32 * 1024, "$key");
        // 2 r/s, burst 1
        let look = |now| z.look(b"key", 2000, 1000, now, true);
        assert_eq!(look(100_000), Spent::Fits(0));
        assert_eq!(look(100_000), Spent::Fits(1000));
        assert_eq!(look(100_000), Spent::Refused(2000));
        assert_eq!(look(100_250), Spent::Refused(1500));
        assert_eq!(look(100_500), Spent::Fits(1000));
        assert_eq!(look(102_000), Spent::Fits(0));
        // a clock that stands still or goes back leaks nothing
        assert_eq!(look(101_999), Spent::Fits(1000));
    }

    #[test]
    fn looking_does_not_count() {
        let z = Zone::new(32 * 1024, "$key");
        for _ in 0..3 {
            assert_eq!(z.look(b"k", 1000, 0, 100_000, false), Spent::Fits(0));
        }
        assert_eq!(z.charge(b"k", 1000, 100_000), Some(0));
        assert_eq!(z.charge(b"k", 1000, 100_000), Some(1000));
        assert_eq!(z.charge(b"other", 1000, 100_000), None);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let z = Zone::new(32 * 1024, "$key");
        let fits = (zones::usable(32 * 1024) / cost(b"abcd")) as u32;
        for i in 0..10_000u32 {
            assert_eq!(
                z.look(&i.to_be_bytes(), 1, 10_000, 100_000, true),
                Spent::Fits(0)
            );
        }
        let b = z.shards[0].lock();
        assert_eq!(b.heads.len() as u32, fits);
        assert_eq!(b.list.len() as u32, fits);
        drop(b);
        // the newest are there, the oldest are forgotten
        assert_eq!(
            z.look(&9_999u32.to_be_bytes(), 1, 10_000, 100_000, true),
            Spent::Fits(1000)
        );
        assert_eq!(
            z.look(&0u32.to_be_bytes(), 1, 10_000, 100_000, true),
            Spent::Fits(0)
        );
        assert_eq!(z.look(&[0; 40_000], 1, 0, 100_000, true), Spent::NoMemory);
    }

    #[test]
    fn idle_buckets_make_room_first() {
        let mut b = Buckets::new(1 << 20);
        assert_eq!(b.look(1, b"a", 1000, 0, 100_000, true), Spent::Fits(0));
        assert_eq!(b.look(2, b"b", 1000, 0, 200_000, true), Spent::Fits(0));
        assert_eq!(b.find(1, b"a"), None);
        assert_eq!(b.heads.len(), 1);
    }

    proptest::proptest! {
        /// Chains of equal hashes and the order of use stay whole under any sequence.
        #[test]
        fn the_lists_stay_whole(ops in proptest::collection::vec((0u8..40, 0u64..4), 0..400)) {
            let mut b = Buckets::new(16 * 128);
            for (key, hash) in ops {
                b.look(hash, &[key], 1000, u64::MAX, 100_000, true);
                let (mut n, mut i) = (0, b.newest);
                while let Some(x) = b.list.get(i as usize) {
                    proptest::prop_assert_eq!(b.find(x.hash, &x.key), Some(i));
                    n += 1;
                    i = x.older;
                }
                proptest::prop_assert_eq!(n, b.list.len() - b.free.len());
                proptest::prop_assert_eq!(b.used, n as u64 * 128);
            }
        }
    }
}
