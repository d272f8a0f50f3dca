//! The table of a zone in a file: written when the process ends, read and removed when it starts.

use super::index::Saved;
use super::key::Digest;

/// The first bytes; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"clrindx\x02";

/// The digest, the key and the tags of an object, where names are kept.
pub type Named<'b> = (Digest, &'b [u8], &'b [u8]);

/// A table being written: what is known of its objects, and then, where names are kept, those in the order of the keys.
pub struct Writer(Vec<u8>);

impl Writer {
    /// Begins with `count` objects.
    pub fn new(named: bool, count: usize) -> Writer {
        let mut out = Vec::with_capacity(32 * (count + 1));
        out.extend_from_slice(&MAGIC);
        out.push(u8::from(named));
        out.extend_from_slice(&(count as u64).to_le_bytes());
        Writer(out)
    }

    /// Adds an object.
    pub fn object(&mut self, saved: &Saved) {
        let out = &mut self.0;
        out.extend_from_slice(&saved.key.0);
        out.extend_from_slice(&saved.expire.to_le_bytes());
        out.extend_from_slice(&saved.blocks.to_le_bytes());
        out.extend_from_slice(&saved.uses.to_le_bytes());
        out.push(u8::from(saved.stale));
    }

    /// Adds the names of one.
    pub fn names(&mut self, (digest, key, tags): Named<'_>) {
        self.0.extend_from_slice(&digest.0);
        for text in [key, tags] {
            self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
            self.0.extend_from_slice(text);
        }
    }

    /// All of it.
    pub fn finish(mut self) -> Vec<u8> {
        let sum = crc32fast::hash(&self.0);
        self.0.extend_from_slice(&sum.to_le_bytes());
        self.0
    }
}

/// A table that was saved.
pub struct Table<'b> {
    count: u64,
    rest: &'b [u8],
}

impl<'b> Table<'b> {
    /// Reads a table; `None` where the file is broken, or has no names and `named` asks for them.
    pub fn read(bytes: &'b [u8], named: bool) -> Option<Table<'b>> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (has_names, rest) = body.strip_prefix(&MAGIC)?.split_first()?;
        if named && *has_names == 0 {
            return None;
        }
        let (count, rest) = rest.split_first_chunk()?;
        let count = u64::from_le_bytes(*count);
        Some(Table { count, rest })
    }

    /// The next object; after the last one come the names.
    pub fn object(&mut self) -> Option<Saved> {
        self.count = self.count.checked_sub(1)?;
        let mut take = |n: usize| self.rest.split_off(..n);
        Some(Saved {
            key: Digest(take(16)?.try_into().ok()?),
            expire: i64::from_le_bytes(take(8)?.try_into().ok()?),
            blocks: u32::from_le_bytes(take(4)?.try_into().ok()?),
            uses: u16::from_le_bytes(take(2)?.try_into().ok()?),
            stale: take(1)? != [0],
        })
    }

    /// The names of the next object.
    pub fn names(&mut self) -> Option<Named<'b>> {
        let mut take = |n: usize| self.rest.split_off(..n);
        let digest = Digest(take(16)?.try_into().ok()?);
        let mut text = || {
            let len = u32::from_le_bytes(take(4)?.try_into().ok()?);
            take(len as usize)
        };
        Some((digest, text()?, text()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(n: u8) -> Saved {
        Saved {
            key: Digest([n; 16]),
            expire: -5 + i64::from(n),
            blocks: u32::from(n) * 7,
            uses: n.into(),
            stale: n % 2 == 1,
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        for named in [false, true] {
            let mut w = Writer::new(named, 9);
            (0..9).for_each(|n| w.object(&sample(n)));
            if named {
                (0..9).for_each(|n| w.names((sample(n).key, b"key", b"a b")));
            }
            let bytes = w.finish();
            let mut table = Table::read(&bytes, named).unwrap();
            for n in 0..9 {
                assert_eq!(table.object(), Some(sample(n)));
            }
            assert_eq!(table.object(), None);
            let names = named.then_some((sample(0).key, &b"key"[..], &b"a b"[..]));
            assert_eq!(table.names(), names);
            assert_eq!(Table::read(&bytes, true).is_some(), named);
            for cut in 0..bytes.len() {
                assert!(Table::read(&bytes[..cut], false).is_none());
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(body: Vec<u8>, named: bool) {
            let mut bytes = MAGIC.to_vec();
            bytes.push(u8::from(named));
            bytes.extend_from_slice(&body);
            let sum = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            if let Some(mut table) = Table::read(&bytes, named) {
                while table.object().is_some() {}
                while table.names().is_some() {}
            }
        }
    }
}
