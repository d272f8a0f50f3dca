//! Objects by key and by tag, so that purging costs what it hits and not what is stored.

use super::key::Digest;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

/// The key and the tags of an object.
type Named = (Arc<[u8]>, Box<[Arc<[u8]>]>);

/// The same, lent.
pub type KeyAndTags<'n> = (&'n [u8], &'n [Arc<[u8]>]);

/// The keys and tags of a zone's objects; empty unless the zone is purged by them.
#[derive(Default)]
pub struct Names {
    enabled: bool,
    by_key: BTreeSet<(Arc<[u8]>, Digest)>,
    by_tag: HashMap<Arc<[u8]>, HashSet<Digest>>,
    of: HashMap<Digest, Named>,
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
        self.remove(digest);
        let key: Arc<[u8]> = key.into();
        let mut list: Vec<Arc<[u8]>> = Vec::new();
        for tag in split(tags) {
            let tag: Arc<[u8]> = match self.by_tag.get_key_value(tag) {
                Some((known, _)) => known.clone(),
                None => tag.into(),
            };
            self.by_tag.entry(tag.clone()).or_default().insert(digest);
            list.push(tag);
        }
        self.by_key.insert((key.clone(), digest));
        self.of.insert(digest, (key, list.into()));
    }

    /// Forgets an object.
    pub fn remove(&mut self, digest: Digest) {
        let Some((key, tags)) = self.of.remove(&digest) else {
            return;
        };
        self.by_key.remove(&(key, digest));
        for tag in &tags {
            if let Some(set) = self.by_tag.get_mut(tag) {
                set.remove(&digest);
                if set.is_empty() {
                    self.by_tag.remove(tag);
                }
            }
        }
    }

    /// Objects whose key is just this one: every variant.
    pub fn with_key(&self, key: &[u8]) -> Vec<Digest> {
        self.from(key)
            .take_while(|(k, _)| **k == *key)
            .map(|(_, d)| *d)
            .collect()
    }

    /// Objects whose key begins so.
    pub fn with_prefix(&self, prefix: &[u8]) -> Vec<Digest> {
        self.from(prefix)
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(_, d)| *d)
            .collect()
    }

    /// Objects with this tag.
    pub fn with_tag(&self, tag: &[u8]) -> Vec<Digest> {
        self.by_tag
            .get(tag)
            .map(|set| set.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Key and tags of an object.
    pub fn get(&self, digest: Digest) -> Option<KeyAndTags<'_>> {
        self.of.get(&digest).map(|(k, t)| (&**k, &**t))
    }

    fn from(&self, key: &[u8]) -> impl Iterator<Item = &(Arc<[u8]>, Digest)> {
        let begin = (Arc::from(key), Digest::default());
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
        assert_eq!(
            names.get(d(1)).map(|(k, t)| (k.to_vec(), t.len())),
            Some((b"/c".to_vec(), 1))
        );
    }
}
