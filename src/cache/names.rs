//! Objects by key and by tag, so that purging costs what it hits and not what is stored.

use super::key::Digest;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::Arc;

/// The digest of an object and its key, in one piece of memory: there may be millions.
#[derive(Clone, PartialEq, Eq)]
struct Name(Arc<[u8]>);

impl Name {
    fn new(digest: Digest, key: &[u8]) -> Name {
        Name(digest.0.iter().chain(key).copied().collect())
    }

    fn digest(&self) -> Digest {
        self.0
            .first_chunk()
            .copied()
            .map(Digest)
            .unwrap_or_default()
    }

    fn key(&self) -> &[u8] {
        self.0.get(16..).unwrap_or_default()
    }
}

impl Ord for Name {
    /// By key: those that begin alike stand together.
    fn cmp(&self, other: &Self) -> Ordering {
        let digests = || self.digest().cmp(&other.digest());
        self.key().cmp(other.key()).then_with(digests)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

type Tags = Box<[Arc<[u8]>]>;

/// The keys and tags of a zone's objects; empty unless the zone is purged by them.
#[derive(Default)]
pub struct Names {
    enabled: bool,
    by_key: BTreeSet<Name>,
    by_digest: HashTable<Name>,
    hasher: RandomState,
    by_tag: HashMap<Arc<[u8]>, HashSet<Digest>>,
    /// The tags of those that have some.
    tags: HashMap<Digest, Tags, RandomState>,
}

impl Names {
    /// Begins or stops to keep names.
    pub fn enable(&mut self, on: bool) {
        *self = Names {
            enabled: on,
            ..Names::default()
        };
    }

    /// Whether names are kept.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Notes an object; `tags` are separated by spaces or commas.
    pub fn insert(&mut self, digest: Digest, key: &[u8], tags: &[u8]) {
        if !self.enabled {
            return;
        }
        // what is stored anew has mostly the same names
        if self.key(digest) == Some(key) && self.tags(digest).map(|t| &**t).eq(split(tags)) {
            return;
        }
        self.remove(digest);
        let name = Name::new(digest, key);
        self.by_key.insert(name.clone());
        self.note(name);
        self.tag(digest, tags);
    }

    /// Notes many objects where there was none; faster where they come in the order of their keys.
    pub fn fill<'k>(&mut self, objects: impl Iterator<Item = (Digest, &'k [u8], &'k [u8])>) {
        if !self.enabled {
            return;
        }
        let mut list = Vec::new();
        for (digest, key, tags) in objects {
            let name = Name::new(digest, key);
            self.note(name.clone());
            self.tag(digest, tags);
            list.push(name);
        }
        self.by_key = list.into_iter().collect();
    }

    fn note(&mut self, name: Name) {
        let hash = self.hasher.hash_one(name.digest());
        let hasher = &self.hasher;
        self.by_digest
            .insert_unique(hash, name, |n| hasher.hash_one(n.digest()));
    }

    fn tag(&mut self, digest: Digest, tags: &[u8]) {
        let mut list: Vec<Arc<[u8]>> = Vec::new();
        for tag in split(tags) {
            let tag: Arc<[u8]> = match self.by_tag.get_key_value(tag) {
                Some((known, _)) => known.clone(),
                None => tag.into(),
            };
            self.by_tag.entry(tag.clone()).or_default().insert(digest);
            list.push(tag);
        }
        if !list.is_empty() {
            self.tags.insert(digest, list.into());
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, digest: Digest) {
        let hash = self.hasher.hash_one(digest);
        let Ok(entry) = self.by_digest.find_entry(hash, |n| n.digest() == digest) else {
            return;
        };
        let (name, _) = entry.remove();
        self.by_key.remove(&name);
        for tag in self.tags.remove(&digest).unwrap_or_default() {
            if let Some(set) = self.by_tag.get_mut(&tag) {
                set.remove(&digest);
                if set.is_empty() {
                    self.by_tag.remove(&tag);
                }
            }
        }
    }

    /// Objects whose key is just this one: every variant.
    pub fn with_key(&self, key: &[u8]) -> Vec<Digest> {
        self.from(key)
            .take_while(|n| n.key() == key)
            .map(Name::digest)
            .collect()
    }

    /// Objects whose key begins so.
    pub fn with_prefix(&self, prefix: &[u8]) -> Vec<Digest> {
        self.from(prefix)
            .take_while(|n| n.key().starts_with(prefix))
            .map(Name::digest)
            .collect()
    }

    /// Objects with this tag.
    pub fn with_tag(&self, tag: &[u8]) -> Vec<Digest> {
        self.by_tag
            .get(tag)
            .map(|set| set.iter().copied().collect())
            .unwrap_or_default()
    }

    /// The key of an object.
    pub fn key(&self, digest: Digest) -> Option<&[u8]> {
        let hash = self.hasher.hash_one(digest);
        self.by_digest
            .find(hash, |n| n.digest() == digest)
            .map(Name::key)
    }

    /// The tags of an object.
    pub fn tags(&self, digest: Digest) -> impl Iterator<Item = &Arc<[u8]>> {
        self.tags.get(&digest).into_iter().flatten()
    }

    /// Every object in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        self.by_key.iter().map(|n| (n.digest(), n.key()))
    }

    fn from(&self, key: &[u8]) -> impl Iterator<Item = &Name> {
        let begin = Name::new(Digest::default(), key);
        self.by_key
            .range((Bound::Included(begin), Bound::Unbounded))
    }
}

/// The tags of a header such as `Surrogate-Key`.
pub fn split(tags: &[u8]) -> impl Iterator<Item = &[u8]> {
    tags.split(|b| matches!(b, b' ' | b',' | b'\t'))
        .filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_key_prefix_and_tag() {
        let d = |n: u8| Digest([n; 16]);
        let mut names = Names::default();
        names.insert(d(1), b"/a", b"x");
        assert!(names.with_prefix(b"/").is_empty(), "not enabled");
        names.enable(true);
        names.insert(d(1), b"/a", b"x y");
        names.insert(d(2), b"/a", b"x,z");
        names.insert(d(3), b"/a/b", b"");
        names.insert(d(4), b"/b", b"y");
        let sorted = |mut v: Vec<Digest>| {
            v.sort();
            v
        };
        assert_eq!(sorted(names.with_key(b"/a")), [d(1), d(2)]);
        assert_eq!(sorted(names.with_prefix(b"/a")), [d(1), d(2), d(3)]);
        assert_eq!(sorted(names.with_prefix(b"")).len(), 4);
        assert_eq!(sorted(names.with_tag(b"x")), [d(1), d(2)]);
        names.insert(d(1), b"/c", b"z");
        assert_eq!(names.with_tag(b"x"), [d(2)]);
        names.remove(d(2));
        names.remove(d(9));
        assert!(names.with_tag(b"x").is_empty());
        assert_eq!(names.with_key(b"/a"), []);
        assert_eq!(names.key(d(1)), Some(&b"/c"[..]));
        assert_eq!(names.tags(d(1)).count(), 1);
        let list: Vec<(Digest, Vec<u8>)> = names.iter().map(|(d, k)| (d, k.to_vec())).collect();
        let mut again = Names::default();
        again.enable(true);
        again.fill(list.iter().map(|(d, k)| (*d, &k[..], &b"t"[..])));
        assert_eq!(
            again.iter().map(|(d, _)| d).collect::<Vec<_>>(),
            [d(3), d(4), d(1)]
        );
        assert_eq!(sorted(again.with_tag(b"t")), [d(1), d(3), d(4)]);
        again.remove(d(3));
        assert_eq!(again.with_prefix(b"/a"), []);
    }
}
