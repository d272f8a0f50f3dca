//! Purges that come while the loader still looks through the folder: what it finds later is measured by them.

use super::file::Meta;
use super::names::split;

/// What is purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Every variant of a key.
    Key(Vec<u8>),
    /// Keys that begin so.
    Prefix(Vec<u8>),
    /// Objects with one of these tags.
    Tags(Vec<u8>),
}

impl What {
    fn covers(&self, meta: &Meta) -> bool {
        match self {
            What::Key(key) => meta.key == *key,
            What::Prefix(prefix) => meta.key.starts_with(prefix),
            What::Tags(tags) => split(tags).any(|tag| split(&meta.tags).any(|t| t == tag)),
        }
    }
}

/// The purges, each with whether it was a soft one and when it came.
#[derive(Debug, Default)]
pub struct Purges(Vec<(What, bool, i64)>);

impl Purges {
    /// Notes a purge; times are seconds since the epoch.
    pub fn note(&mut self, what: What, soft: bool, now: i64) {
        match self.0.iter_mut().find(|(w, s, _)| *s == soft && *w == what) {
            Some((_, _, at)) => *at = now,
            None => self.0.push((what, soft, now)),
        }
    }

    /// Whether an object was purged, and softly.
    pub fn soft(&self, meta: &Meta) -> Option<bool> {
        let mut found = None;
        for (what, soft, at) in &self.0 {
            if meta.date <= *at && what.covers(meta) {
                found = Some(*soft && found.unwrap_or(true));
            }
        }
        found
    }

    /// The folder is known now.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_before_is_covered() {
        let meta = |key: &str, tags: &str, date| Meta {
            key: key.into(),
            tags: tags.into(),
            date,
            ..Meta::default()
        };
        let mut purges = Purges::default();
        purges.note(What::Key(b"/a".to_vec()), false, 5);
        purges.note(What::Prefix(b"/b".to_vec()), true, 5);
        purges.note(What::Tags(b"x y".to_vec()), false, 5);
        for (object, soft) in [
            (meta("/a", "", 5), Some(false)),
            (meta("/a", "", 6), None),
            (meta("/ab", "", 1), None),
            (meta("/b/c", "", 1), Some(true)),
            (meta("/b", "z,y", 1), Some(false)),
            (meta("/c", "xy", 1), None),
        ] {
            assert_eq!(purges.soft(&object), soft, "{object:?}");
        }
        purges.note(What::Key(b"/a".to_vec()), false, 7);
        assert_eq!(purges.soft(&meta("/a", "", 6)), Some(false));
        assert_eq!(purges.0.len(), 3);
    }
}
