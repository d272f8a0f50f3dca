//! What a zone knows of its objects: a sharded table, each shard with its objects in the order of their last use.

use super::key::Digest;
use super::live::Live;
use super::shard::{Node, Shard};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Independent parts of the table.
const SHARDS: usize = 64;

/// The table of a zone.
pub struct Index {
    shards: [Mutex<Shard>; SHARDS],
    count: AtomicUsize,
    /// Blocks on disk.
    blocks: AtomicU64,
    generations: AtomicU64,
}

/// What the table says of an object that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is on disk; the number tells it from what had this key before.
    Cached {
        /// The number.
        generation: u64,
        /// It was purged softly: to be served as one whose time is over.
        stale: bool,
    },
    /// It may be stored, and is not.
    Absent,
    /// It was not asked for before.
    New,
    /// It has been asked for less than `min_uses` times.
    Scarce,
    /// The last answer was this error.
    Error(u16),
}

impl Default for Index {
    fn default() -> Self {
        Index {
            shards: std::array::from_fn(|_| Mutex::default()),
            count: AtomicUsize::new(0),
            blocks: AtomicU64::new(0),
            generations: AtomicU64::new(1),
        }
    }
}

/// An update that is under way.
pub struct Updating {
    /// Its end and its first byte wake those who wait here.
    pub waiters: Arc<Notify>,
    /// When it may be overtaken, milliseconds.
    pub until: u64,
    /// Who does it.
    pub owner: u64,
    /// What it has brought so far, where others may read that.
    pub live: Option<Arc<Live>>,
}

/// What [`Index::evict`] took out.
pub struct Evicted {
    /// The object.
    pub key: Digest,
    /// Whether it has a file.
    pub exists: bool,
}

/// An object as it is saved and listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its key.
    pub key: Digest,
    /// When it is dropped unless it is used, seconds since the epoch.
    pub expire: i64,
    /// Blocks on disk.
    pub blocks: u32,
    /// How often it was asked for.
    pub uses: u16,
    /// Whether it was purged softly.
    pub stale: bool,
}

impl Index {
    /// Objects known.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an object is known.
    pub fn is_known(&self, key: Digest) -> bool {
        self.shard(key).lock().find(key).is_some()
    }

    /// Blocks that the objects take on disk.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// A number that no stored object has had.
    pub fn generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, key: Digest) -> &Mutex<Shard> {
        let [first, ..] = key.0;
        &self.shards[usize::from(first) % SHARDS]
    }

    /// Marks an object on disk as used; its generation. The cheap way for hits: nothing is held.
    pub fn touch(&self, key: Digest, expire: i64) -> Option<u64> {
        let mut shard = self.shard(key).lock();
        let at = shard.find(key)?;
        let node = shard.get_mut(at)?;
        if !node.exists || node.stale || node.error().is_some() {
            return None;
        }
        node.uses = node.uses.saturating_add(1);
        node.expire = expire;
        let generation = node.generation;
        shard.raise(at);
        Some(generation)
    }

    /// Looks an object up and holds it; makes it where it is new and there are fewer than `limit`.
    ///
    /// `again` is true for a request that has looked already: it is not counted twice. `None`: the table is full.
    pub fn enter(
        &self,
        key: Digest,
        now: i64,
        inactive: i64,
        min_uses: u32,
        limit: usize,
        again: bool,
    ) -> Option<Found> {
        let mut shard = self.shard(key).lock();
        if let Some(at) = shard.find(key) {
            let node = shard.get_mut(at)?;
            node.held += 1;
            if !again {
                node.uses = node.uses.saturating_add(1);
            }
            node.expire = now + inactive;
            let found = if let Some((status, valid)) = node.error() {
                if valid >= now {
                    Found::Error(status)
                } else {
                    node.forget_error();
                    node.exists = false;
                    node.uses = 1;
                    Found::New
                }
            } else if node.exists {
                Found::Cached {
                    generation: node.generation,
                    stale: node.stale,
                }
            } else if u32::from(node.uses) >= min_uses {
                Found::Absent
            } else {
                Found::Scarce
            };
            shard.raise(at);
            return Some(found);
        }
        if self.len() >= limit {
            return None;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        shard.insert(Node::asked_for(key, now + inactive));
        Some(Found::New)
    }

    /// Lets go of an object that [`Index::enter`] held; `owner` ends its update. One that came to nothing is forgotten.
    pub fn leave(&self, key: Digest, owner: u64, forget: bool) {
        let mut shard = self.shard(key).lock();
        let Some(at) = shard.find(key) else {
            return;
        };
        let Some(node) = shard.get_mut(at) else {
            return;
        };
        node.held = node.held.saturating_sub(1);
        node.end_update(owner);
        if forget && !node.exists && node.error().is_none() && node.held == 0 {
            shard.remove(at);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends an update and wakes those who wait for it.
    pub fn end_update(&self, key: Digest, owner: u64) {
        self.with(key, |node| node.end_update(owner));
    }

    /// As [`Index::begin_update`] of an object that was not stored when it was looked for, or whose file was of no use
    /// (`seen`, its generation); `None` where it has been stored meanwhile.
    pub fn begin_fetch(
        &self,
        key: Digest,
        owner: u64,
        now: u64,
        until: u64,
        seen: u64,
    ) -> Option<bool> {
        self.with(key, |node| {
            let stored = node.exists && node.generation != seen;
            (!stored).then(|| node.begin_update(owner, Some(now), until))
        })
        .unwrap_or(Some(true))
    }

    /// Begins an update; false where another one is under way. `until` is when that one may be overtaken, milliseconds;
    /// `now` the time, or `None` where it is waited for without limit.
    pub fn begin_update(&self, key: Digest, owner: u64, now: Option<u64>, until: u64) -> bool {
        self.with(key, |node| node.begin_update(owner, now, until))
            .unwrap_or(true)
    }

    /// The update that is under way.
    pub fn updating(&self, key: Digest) -> Option<Updating> {
        self.with(key, |node| {
            node.updating()?;
            let rare = node.rare();
            Some(Updating {
                waiters: rare.waiters.get_or_insert_default().clone(),
                until: rare.lock_until,
                owner: rare.updating,
                live: rare.live.clone(),
            })
        })?
    }

    /// What the update under way has brought so far, where others may read that.
    pub fn live(&self, key: Digest) -> Option<Arc<Live>> {
        self.with(key, |node| node.rare.as_ref()?.live.clone())?
    }

    /// Lets others read what the update of `owner` brings, and wakes those who wait.
    pub fn publish(&self, key: Digest, owner: u64, live: &Arc<Live>) {
        self.with(key, |node| {
            if let Some(rare) = &mut node.rare
                && owner != 0
                && rare.updating == owner
            {
                rare.live = Some(live.clone());
                if let Some(w) = &rare.waiters {
                    w.notify_waiters();
                }
            }
        });
    }

    /// Notes what was stored; the object's generation.
    pub fn stored(&self, key: Digest, blocks: u32) -> u64 {
        let generation = self.generation();
        let mut before = 0;
        self.with(key, |node| {
            before = if node.exists { node.blocks } else { 0 };
            node.exists = true;
            node.stale = false;
            node.forget_error();
            node.blocks = blocks;
            node.generation = generation;
        });
        self.add_blocks(i64::from(blocks) - i64::from(before));
        generation
    }

    /// Notes an error to be answered until `valid`.
    pub fn failed(&self, key: Digest, status: u16, valid: i64) {
        self.with(key, |node| {
            let rare = node.rare();
            rare.error = status;
            rare.valid = valid;
        });
    }

    /// Notes that the file is gone.
    pub fn lost(&self, key: Digest, generation: u64) {
        let mut before = 0;
        self.with(key, |node| {
            if node.exists && node.generation == generation {
                before = node.blocks;
                node.exists = false;
                node.stale = false;
                node.blocks = 0;
            }
        });
        self.add_blocks(-i64::from(before));
    }

    /// Makes an object count as one whose time is over; false where it is not on disk.
    pub fn expire(&self, key: Digest) -> bool {
        self.with(key, |node| {
            node.stale |= node.exists;
            node.exists
        })
        .unwrap_or(false)
    }

    /// Whether an object was purged softly.
    pub fn is_stale(&self, key: Digest) -> bool {
        self.with(key, |node| node.stale).unwrap_or(false)
    }

    /// Ends what [`Index::expire`] began: the object was found unchanged.
    pub fn renew(&self, key: Digest) {
        self.with(key, |node| node.stale = false);
    }

    /// Notes an object found on disk: by the loader, or by a request while the loader is under way.
    pub fn add(&self, saved: Saved, limit: usize) -> bool {
        let mut shard = self.shard(saved.key).lock();
        let generation = self.generation();
        if let Some(at) = shard.find(saved.key) {
            let Some(node) = shard.get_mut(at) else {
                return false;
            };
            if !node.exists && node.error().is_none() {
                node.exists = true;
                node.generation = generation;
                node.blocks = saved.blocks;
                self.add_blocks(i64::from(saved.blocks));
            }
            return true;
        }
        if self.len() >= limit {
            return false;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.add_blocks(i64::from(saved.blocks));
        shard.insert(Node {
            key: saved.key,
            expire: saved.expire,
            generation,
            blocks: saved.blocks,
            uses: saved.uses.max(1),
            exists: true,
            stale: saved.stale,
            ..Node::default()
        });
        true
    }

    /// Takes an object out, unless requests hold it: then its file is gone and the object stays as one not stored.
    pub fn remove(&self, key: Digest) -> bool {
        let mut shard = self.shard(key).lock();
        let Some(at) = shard.find(key) else {
            return false;
        };
        let Some(node) = shard.get_mut(at) else {
            return false;
        };
        let exists = node.exists;
        if exists {
            self.add_blocks(-i64::from(node.blocks));
        }
        if node.held > 0 {
            node.exists = false;
            node.blocks = 0;
            node.stale = false;
        } else {
            shard.remove(at);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        exists
    }

    /// Takes out the object that was used longest ago and that nobody holds; with `now` only one whose time is over.
    pub fn evict(&self, now: Option<i64>) -> Option<Evicted> {
        let mut best: Option<(usize, i64)> = None;
        for (i, shard) in self.shards.iter().enumerate() {
            if let Some(expire) = shard.lock().oldest().map(|(_, e)| e)
                && now.is_none_or(|now| expire <= now)
                && best.is_none_or(|(_, b)| expire < b)
            {
                best = Some((i, expire));
            }
        }
        let mut shard = self.shards.get(best?.0)?.lock();
        let (at, _) = shard.oldest()?;
        let node = shard.get(at)?;
        let evicted = Evicted {
            key: node.key,
            exists: node.exists,
        };
        if node.exists {
            self.add_blocks(-i64::from(node.blocks));
        }
        shard.remove(at);
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(evicted)
    }

    /// When the next object's time is over, seconds since the epoch.
    pub fn next_expire(&self) -> Option<i64> {
        self.shards
            .iter()
            .filter_map(|s| s.lock().oldest().map(|(_, e)| e))
            .min()
    }

    /// Every object on disk, shard by shard, those used last at the end.
    pub fn saved(&self) -> Vec<Saved> {
        let mut out = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = shard.lock();
            let stored = shard.iter().filter(|n| n.exists && n.error().is_none());
            out.extend(stored.map(|n| Saved {
                key: n.key,
                expire: n.expire,
                blocks: n.blocks,
                uses: n.uses,
                stale: n.stale,
            }));
        }
        out
    }

    fn with<T>(&self, key: Digest, f: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut shard = self.shard(key).lock();
        let at = shard.find(key)?;
        shard.get_mut(at).map(f)
    }

    fn add_blocks(&self, n: i64) {
        // what is taken away was added before
        self.blocks.fetch_add(n as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
