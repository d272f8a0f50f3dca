//! The static table and the dynamic one (RFC 7541, section 2.3).

use std::collections::VecDeque;

/// The static table (RFC 7541, appendix A); index 1 comes first.
pub const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// What an entry counts beyond its bytes (RFC 7541, section 4.1).
pub const OVERHEAD: usize = 32;

/// A dynamic table: the newest entry first.
#[derive(Debug, Default)]
pub struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
    /// An evicted entry's memory, for the next one.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
    name: usize,
}

impl Entry {
    fn split(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at_checked(self.name).unwrap_or_default()
    }

    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

impl Table {
    /// An empty table of at most `max` bytes.
    pub fn new(max: usize) -> Table {
        Table {
            max,
            ..Table::default()
        }
    }

    /// The largest size, bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Changes the largest size; what no longer fits is dropped.
    pub fn resize(&mut self, max: usize) {
        self.max = max;
        self.shrink(max);
    }

    /// The entry of an index that counts the static table too.
    pub fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let at = index.checked_sub(1)?;
        match at.checked_sub(STATIC.len()) {
            None => STATIC.get(at).map(|(n, v)| (n.as_bytes(), v.as_bytes())),
            Some(at) => self.entries.get(at).map(Entry::split),
        }
    }

    /// Adds an entry; one that is larger than the table empties it.
    pub fn add(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.shrink(self.max.saturating_sub(size));
        if size > self.max {
            return;
        }
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        self.size += size;
        self.entries.push_front(Entry {
            bytes,
            name: name.len(),
        });
    }

    /// The index of an entry, if the dynamic part has it.
    pub fn find(&self, name: &[u8], value: &[u8]) -> Option<usize> {
        let len = name.len() + value.len();
        let at = self
            .entries
            .iter()
            .position(|e| e.bytes.len() == len && e.split() == (name, value))?;
        Some(at + STATIC.len() + 1)
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Drops all entries, and their memory.
    pub fn release(&mut self) {
        self.entries = VecDeque::new();
        self.spare = Vec::new();
        self.size = 0;
    }

    /// Keeps no more memory than the entries need.
    pub fn fit(&mut self) {
        self.spare = Vec::new();
        self.entries.shrink_to_fit();
        for e in &mut self.entries {
            e.bytes.shrink_to_fit();
        }
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to
            && let Some(e) = self.entries.pop_back()
        {
            self.size -= e.size();
            self.spare = e.bytes;
        }
        if self.entries.is_empty() {
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction() {
        let mut t = Table::new(2 * (OVERHEAD + 2));
        for v in [b"1", b"2", b"3"] {
            t.add(b"a", v);
        }
        assert_eq!(t.get(62), Some((&b"a"[..], &b"3"[..])));
        assert_eq!(t.get(63), Some((&b"a"[..], &b"2"[..])));
        assert_eq!((t.get(64), t.get(0)), (None, None));
        assert_eq!((t.find(b"a", b"2"), t.find(b"a", b"1")), (Some(63), None));
        t.resize(OVERHEAD + 2);
        assert_eq!((t.get(62).is_some(), t.get(63)), (true, None));
        t.add(b"too", &[b'x'; 40]);
        assert_eq!(t.get(62), None);
        assert_eq!(t.get(2), Some((&b":method"[..], &b"GET"[..])));
    }
}
