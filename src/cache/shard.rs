//! One part of a zone's table: its objects, found by key and kept in the order of their last use.
//!
//! An object takes 64 bytes here, and about ten in the table of places: there may be millions.

use super::key::Digest;
use super::live::Live;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use std::sync::Arc;
use tokio::sync::Notify;

/// How many objects from the end of the order are looked at for one that nobody uses.
const TRIES: usize = 20;

/// No object.
const NONE: u32 = u32::MAX;

/// Objects are allocated by so many: a table that grows is not moved.
const CHUNK: usize = 128;

/// One object.
#[derive(Default)]
pub(super) struct Node {
    pub key: Digest,
    /// When it is dropped unless it is used again, seconds since the epoch.
    pub expire: i64,
    pub generation: u64,
    /// What few objects have at a time.
    pub rare: Option<Box<Rare>>,
    pub blocks: u32,
    pub prev: u32,
    pub next: u32,
    /// Requests that hold it.
    pub held: u32,
    pub uses: u16,
    pub exists: bool,
    pub stale: bool,
}

/// An error that is remembered, or an update under way.
#[derive(Default)]
pub(super) struct Rare {
    /// The status that is answered; 0 is none.
    pub error: u16,
    /// Until when, seconds since the epoch.
    pub valid: i64,
    /// Who updates the object; 0 is nobody.
    pub updating: u64,
    /// When an update may be begun anew, milliseconds.
    pub lock_until: u64,
    pub waiters: Option<Arc<Notify>>,
    /// What the update has brought so far.
    pub live: Option<Arc<Live>>,
}

impl Node {
    /// A new object that one request holds.
    pub fn asked_for(key: Digest, expire: i64) -> Node {
        Node {
            key,
            expire,
            held: 1,
            uses: 1,
            ..Node::default()
        }
    }

    /// The error that is remembered, and until when.
    pub fn error(&self) -> Option<(u16, i64)> {
        let rare = self.rare.as_ref()?;
        (rare.error != 0).then_some((rare.error, rare.valid))
    }

    pub fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub fn forget_error(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.error = 0;
        }
        self.tidy();
    }

    /// Who updates it.
    pub fn updating(&self) -> Option<&Rare> {
        self.rare.as_deref().filter(|r| r.updating != 0)
    }

    /// Begins an update unless one is under way that may not be overtaken yet.
    pub fn begin_update(&mut self, owner: u64, now: Option<u64>, until: u64) -> bool {
        let under_way = self.updating().map(|u| u.lock_until);
        let free = under_way.is_none_or(|until| now.is_some_and(|now| until <= now));
        if free {
            let rare = self.rare();
            rare.updating = owner;
            rare.lock_until = until;
        }
        free
    }

    pub fn end_update(&mut self, owner: u64) {
        if let Some(rare) = &mut self.rare
            && owner != 0
            && rare.updating == owner
        {
            rare.updating = 0;
            rare.live = None;
            if let Some(w) = rare.waiters.take() {
                w.notify_waiters();
            }
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        if let Some(rare) = &self.rare
            && rare.error == 0
            && rare.updating == 0
        {
            self.rare = None;
        }
    }
}

/// Part of the table.
#[derive(Default)]
pub(super) struct Shard {
    places: HashTable<u32>,
    nodes: Nodes,
    hasher: RandomState,
    /// The one used last.
    first: Option<u32>,
    last: Option<u32>,
}

/// Objects by their places.
#[derive(Default)]
struct Nodes {
    chunks: Vec<Box<[Node]>>,
    /// Places that were used, linked by `next`; 0 is none, else one more than the place.
    free: u32,
    /// How many places there are, used or free.
    used: u32,
}

impl Nodes {
    fn get(&self, at: u32) -> Option<&Node> {
        let at = at as usize;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    fn get_mut(&mut self, at: u32) -> Option<&mut Node> {
        let at = at as usize;
        self.chunks.get_mut(at / CHUNK)?.get_mut(at % CHUNK)
    }

    fn place(&mut self) -> u32 {
        if let Some(at) = self.free.checked_sub(1) {
            self.free = self.get(at).map_or(0, |n| n.next);
            return at;
        }
        let at = self.used;
        if at as usize / CHUNK == self.chunks.len() {
            let chunk = std::iter::repeat_with(Node::default);
            self.chunks.push(chunk.take(CHUNK).collect());
        }
        self.used += 1;
        at
    }

    fn free(&mut self, at: u32) {
        let next = self.free;
        if let Some(node) = self.get_mut(at) {
            node.next = next;
            self.free = at + 1;
        }
    }
}

impl Shard {
    /// The place of an object.
    pub fn find(&self, key: Digest) -> Option<u32> {
        let same = |at: &u32| self.nodes.get(*at).is_some_and(|n| n.key == key);
        self.places.find(self.hasher.hash_one(key), same).copied()
    }

    pub fn get(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at)
    }

    pub fn get_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(at)
    }

    /// Adds an object, as the one used last.
    pub fn insert(&mut self, node: Node) {
        let hash = self.hasher.hash_one(node.key);
        let at = self.nodes.place();
        if let Some(slot) = self.nodes.get_mut(at) {
            *slot = node;
        }
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.places.insert_unique(hash, at, |at| {
            hasher.hash_one(nodes.get(*at).map_or(Digest::default(), |n| n.key))
        });
        self.link(at);
    }

    pub fn remove(&mut self, at: u32) {
        self.unlink(at);
        let Some(node) = self.nodes.get_mut(at).map(std::mem::take) else {
            return;
        };
        if let Some(w) = node.rare.and_then(|r| r.waiters) {
            w.notify_waiters();
        }
        let hash = self.hasher.hash_one(node.key);
        if let Ok(entry) = self.places.find_entry(hash, |place| *place == at) {
            entry.remove();
        }
        self.nodes.free(at);
    }

    /// Makes an object the one used last.
    pub fn raise(&mut self, at: u32) {
        if self.first != Some(at) {
            self.unlink(at);
            self.link(at);
        }
    }

    /// The object used longest ago that nobody holds, and when its time is over.
    pub fn oldest(&self) -> Option<(u32, i64)> {
        let mut at = self.last?;
        for _ in 0..TRIES {
            let node = self.nodes.get(at)?;
            if node.held == 0 {
                return Some((at, node.expire));
            }
            at = node.prev;
        }
        None
    }

    /// All objects, from the one used longest ago on.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        let first = self.last.and_then(|at| self.nodes.get(at));
        std::iter::successors(first, |n| self.nodes.get(n.prev))
    }

    fn link(&mut self, at: u32) {
        let first = self.first.unwrap_or(NONE);
        if let Some(n) = self.nodes.get_mut(at) {
            (n.prev, n.next) = (NONE, first);
        }
        match self.nodes.get_mut(first) {
            Some(n) => n.prev = at,
            None => self.last = Some(at),
        }
        self.first = Some(at);
    }

    fn unlink(&mut self, at: u32) {
        let Some(n) = self.nodes.get(at) else {
            return;
        };
        let (prev, next) = (n.prev, n.next);
        match self.nodes.get_mut(prev) {
            Some(n) => n.next = next,
            None => self.first = (next != NONE).then_some(next),
        }
        match self.nodes.get_mut(next) {
            Some(n) => n.prev = prev,
            None => self.last = (prev != NONE).then_some(prev),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_small() {
        assert!(size_of::<Node>() <= 64, "{}", size_of::<Node>());
    }

    #[test]
    fn places_are_used_again() {
        let mut shard = Shard::default();
        let key = |n: u32| Digest::of(&n.to_le_bytes());
        for n in 0..500 {
            shard.insert(Node::asked_for(key(n), n.into()));
        }
        for n in (0..500).step_by(2) {
            let at = shard.find(key(n)).unwrap();
            shard.remove(at);
        }
        for n in 500..750 {
            shard.insert(Node::asked_for(key(n), n.into()));
        }
        assert_eq!(shard.nodes.used, 500);
        let order: Vec<i64> = shard.iter().map(|n| n.expire).collect();
        let odd = (0..500).filter(|n| n % 2 == 1);
        assert_eq!(order, odd.chain(500..750).collect::<Vec<_>>());
        assert!(shard.find(key(0)).is_none());
        assert_eq!(shard.get(shard.find(key(1)).unwrap()).unwrap().expire, 1);
    }
}
