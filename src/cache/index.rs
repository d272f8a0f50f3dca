//! What a zone knows of its objects: a sharded table, each shard with its objects in the order of their last use.

use super::key::Digest;
use foldhash::fast::FixedState;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Independent parts of the table.
const SHARDS: usize = 16;

/// How many objects from the end of the order are looked at for one that nobody uses.
const TRIES: usize = 20;

/// No object.
const NONE: u32 = u32::MAX;

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

/// One object.
#[derive(Default)]
struct Node {
    key: u128,
    /// When it is dropped unless it is used again, seconds since the epoch.
    expire: i64,
    /// Until when an error is answered, seconds since the epoch.
    valid: i64,
    generation: u64,
    /// When an update may be begun anew, milliseconds.
    lock_until: u64,
    /// Who updates it; 0 is nobody.
    updating: u64,
    waiters: Option<Arc<Notify>>,
    blocks: u32,
    prev: u32,
    next: u32,
    /// Requests that hold it.
    held: u32,
    uses: u16,
    error: u16,
    exists: bool,
    stale: bool,
}

struct Shard {
    table: HashMap<u128, u32, FixedState>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// The one used last.
    first: u32,
    last: u32,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard {
                    table: HashMap::default(),
                    nodes: Vec::new(),
                    free: Vec::new(),
                    first: NONE,
                    last: NONE,
                })
            }),
            count: AtomicUsize::new(0),
            blocks: AtomicU64::new(0),
            generations: AtomicU64::new(1),
        }
    }
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
        let at = *shard.table.get(&key.number())?;
        let node = shard.nodes.get_mut(at as usize)?;
        if !node.exists || node.stale || node.error != 0 {
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
        if let Some(&at) = shard.table.get(&key.number()) {
            let node = shard.nodes.get_mut(at as usize)?;
            node.held += 1;
            if !again {
                node.uses = node.uses.saturating_add(1);
            }
            node.expire = now + inactive;
            let found = if node.error != 0 && node.valid >= now {
                Found::Error(node.error)
            } else if node.error != 0 {
                node.error = 0;
                node.exists = false;
                node.uses = 1;
                Found::New
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
        shard.insert(Node {
            key: key.number(),
            expire: now + inactive,
            held: 1,
            uses: 1,
            ..Node::default()
        });
        Some(Found::New)
    }

    /// Lets go of an object that [`Index::enter`] held; `owner` ends its update. One that came to nothing is forgotten.
    pub fn leave(&self, key: Digest, owner: u64, forget: bool) {
        let mut shard = self.shard(key).lock();
        let Some(&at) = shard.table.get(&key.number()) else {
            return;
        };
        let Some(node) = shard.nodes.get_mut(at as usize) else {
            return;
        };
        node.held = node.held.saturating_sub(1);
        node.end_update(owner);
        if forget && !node.exists && node.error == 0 && node.held == 0 {
            shard.remove(at);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends an update and wakes those who wait for it.
    pub fn end_update(&self, key: Digest, owner: u64) {
        self.with(key, |node| node.end_update(owner));
    }

    /// Begins an update; false where another one is under way. `until` is when that one may be overtaken, milliseconds;
    /// `now` the time, or `None` where it is waited for without limit.
    pub fn begin_update(&self, key: Digest, owner: u64, now: Option<u64>, until: u64) -> bool {
        self.with(key, |node| {
            let free = node.updating == 0 || now.is_some_and(|now| node.lock_until <= now);
            if free {
                node.updating = owner;
                node.lock_until = until;
            }
            free
        })
        .unwrap_or(true)
    }

    /// Where to wait for the end of an update, and when it may be overtaken; `None` where there is none.
    pub fn updating(&self, key: Digest) -> Option<(Arc<Notify>, u64)> {
        self.with(key, |node| {
            (node.updating != 0).then(|| {
                let notify = node.waiters.get_or_insert_default();
                (notify.clone(), node.lock_until)
            })
        })?
    }

    /// Notes what was stored; the object's generation.
    pub fn stored(&self, key: Digest, blocks: u32) -> u64 {
        let generation = self.generation();
        let mut before = 0;
        self.with(key, |node| {
            before = if node.exists { node.blocks } else { 0 };
            node.exists = true;
            node.stale = false;
            node.error = 0;
            node.blocks = blocks;
            node.generation = generation;
        });
        self.add_blocks(i64::from(blocks) - i64::from(before));
        generation
    }

    /// Notes an error to be answered until `valid`.
    pub fn failed(&self, key: Digest, status: u16, valid: i64) {
        self.with(key, |node| {
            node.error = status;
            node.valid = valid;
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

    /// Ends what [`Index::expire`] began: the object was found unchanged.
    pub fn renew(&self, key: Digest) {
        self.with(key, |node| node.stale = false);
    }

    /// Notes an object found on disk: by the loader, or by a request while the loader is under way.
    pub fn add(&self, saved: Saved, limit: usize) -> bool {
        let mut shard = self.shard(saved.key).lock();
        let generation = self.generation();
        if let Some(&at) = shard.table.get(&saved.key.number()) {
            let Some(node) = shard.nodes.get_mut(at as usize) else {
                return false;
            };
            if !node.exists && node.error == 0 {
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
            key: saved.key.number(),
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
        let Some(&at) = shard.table.get(&key.number()) else {
            return false;
        };
        let Some(node) = shard.nodes.get_mut(at as usize) else {
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
        let node = shard.nodes.get(at as usize)?;
        let evicted = Evicted {
            key: Digest(node.key.to_ne_bytes()),
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
            let mut at = shard.last;
            while let Some(node) = shard.nodes.get(at as usize) {
                if node.exists && node.error == 0 {
                    out.push(Saved {
                        key: Digest(node.key.to_ne_bytes()),
                        expire: node.expire,
                        blocks: node.blocks,
                        uses: node.uses,
                        stale: node.stale,
                    });
                }
                at = node.prev;
            }
        }
        out
    }

    fn with<T>(&self, key: Digest, f: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut shard = self.shard(key).lock();
        let at = *shard.table.get(&key.number())?;
        shard.nodes.get_mut(at as usize).map(f)
    }

    fn add_blocks(&self, n: i64) {
        // what is taken away was added before
        self.blocks.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl Node {
    fn end_update(&mut self, owner: u64) {
        if owner != 0 && self.updating == owner {
            self.updating = 0;
            if let Some(w) = self.waiters.take() {
                w.notify_waiters();
            }
        }
    }
}

impl Shard {
    fn insert(&mut self, node: Node) {
        let key = node.key;
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.nodes.push(Node::default());
                (self.nodes.len() - 1) as u32
            }
        };
        if let Some(slot) = self.nodes.get_mut(at as usize) {
            *slot = node;
        }
        self.table.insert(key, at);
        self.link(at);
    }

    fn remove(&mut self, at: u32) {
        self.unlink(at);
        if let Some(node) = self.nodes.get_mut(at as usize) {
            let node = std::mem::take(node);
            if let Some(w) = node.waiters {
                w.notify_waiters();
            }
            self.table.remove(&node.key);
            self.free.push(at);
        }
    }

    fn raise(&mut self, at: u32) {
        if self.first != at {
            self.unlink(at);
            self.link(at);
        }
    }

    fn link(&mut self, at: u32) {
        let first = self.first;
        if let Some(n) = self.nodes.get_mut(at as usize) {
            (n.prev, n.next) = (NONE, first);
        }
        match self.nodes.get_mut(first as usize) {
            Some(n) => n.prev = at,
            None => self.last = at,
        }
        self.first = at;
    }

    fn unlink(&mut self, at: u32) {
        let Some(n) = self.nodes.get(at as usize) else {
            return;
        };
        let (prev, next) = (n.prev, n.next);
        match self.nodes.get_mut(prev as usize) {
            Some(n) => n.next = next,
            None => self.first = next,
        }
        match self.nodes.get_mut(next as usize) {
            Some(n) => n.prev = prev,
            None => self.last = prev,
        }
    }

    /// The object used longest ago that nobody holds.
    fn oldest(&self) -> Option<(u32, i64)> {
        let mut at = self.last;
        for _ in 0..TRIES {
            let node = self.nodes.get(at as usize)?;
            if node.held == 0 {
                return Some((at, node.expire));
            }
            at = node.prev;
        }
        None
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
