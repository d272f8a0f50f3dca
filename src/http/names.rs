//! A set of field names, asked for every header of every message.

use super::headers::Known;
use std::collections::HashSet;

/// Field names, whatever their case.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    known: u128,
    /// Lengths of the other names, as bits, so that most lookups end here.
    lengths: u64,
    others: HashSet<Box<[u8]>, foldhash::fast::FixedState>,
}

impl NameSet {
    /// Adds a name.
    pub fn insert(&mut self, name: &[u8]) {
        match Known::of(name) {
            Known::Other => {
                self.lengths |= 1 << (name.len() & 63);
                self.others.insert(name.to_ascii_lowercase().into());
            }
            known => self.known |= known.bit(),
        }
    }

    /// Removes a name.
    pub fn remove(&mut self, name: &[u8]) {
        match Known::of(name) {
            Known::Other => drop(self.others.remove(&*name.to_ascii_lowercase())),
            known => self.known &= !known.bit(),
        }
    }

    /// Whether the name is in the set; `known` is its id.
    pub fn contains(&self, known: Known, name: &[u8]) -> bool {
        if known != Known::Other {
            return self.known & known.bit() != 0;
        }
        if self.lengths & (1 << (name.len() & 63)) == 0 {
            return false;
        }
        let mut small = [0u8; 64];
        match small.get_mut(..name.len()) {
            Some(s) => {
                s.copy_from_slice(name);
                s.make_ascii_lowercase();
                self.others.contains(&*s)
            }
            None => self.others.contains(&*name.to_ascii_lowercase()),
        }
    }
}

impl<'a> FromIterator<&'a [u8]> for NameSet {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(names: T) -> Self {
        let mut set = NameSet::default();
        for n in names {
            set.insert(n);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_known_and_other_names_in_any_case() {
        let mut s: NameSet = [&b"Date"[..], b"X-Pad", b"x-secret"].into_iter().collect();
        assert!(s.contains(Known::of(b"DATE"), b"DATE"));
        assert!(s.contains(Known::Other, b"X-Secret"));
        assert!(!s.contains(Known::Other, b"x-secrex"));
        assert!(!s.contains(Known::Server, b"Server"));
        s.remove(b"x-pad");
        assert!(!s.contains(Known::Other, b"X-Pad"));
    }
}
