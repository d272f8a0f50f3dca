//! The table of a zone in a file: written when the process ends, read and removed when it starts.

use super::index::Saved;
use super::key::Digest;

/// The first bytes; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"clrindx\x01";

/// An entry with its key and tags, where names are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'b> {
    /// What the table knows.
    pub saved: Saved,
    /// Key and tags.
    pub names: Option<(&'b [u8], &'b [u8])>,
}

/// Writes entries.
pub fn write<'a>(
    named: bool,
    entries: impl Iterator<Item = (Saved, &'a [u8], Vec<u8>)>,
) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(u8::from(named));
    for (saved, key, tags) in entries {
        out.extend_from_slice(&saved.key.0);
        out.extend_from_slice(&saved.expire.to_le_bytes());
        out.extend_from_slice(&saved.blocks.to_le_bytes());
        out.extend_from_slice(&saved.uses.to_le_bytes());
        out.push(u8::from(saved.stale));
        if named {
            for text in [key, &tags] {
                out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                out.extend_from_slice(text);
            }
        }
    }
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// Reads entries; `None` where the file is broken, or has no names and `named` asks for them.
pub fn read(bytes: &[u8], named: bool) -> Option<impl Iterator<Item = Entry<'_>>> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (has_names, mut rest) = body.strip_prefix(&MAGIC)?.split_first()?;
    let has_names = *has_names != 0;
    if named && !has_names {
        return None;
    }
    Some(std::iter::from_fn(move || entry(&mut rest, has_names)))
}

fn entry<'b>(rest: &mut &'b [u8], has_names: bool) -> Option<Entry<'b>> {
    let mut take = |n: usize| rest.split_off(..n);
    let saved = Saved {
        key: Digest(take(16)?.try_into().ok()?),
        expire: i64::from_le_bytes(take(8)?.try_into().ok()?),
        blocks: u32::from_le_bytes(take(4)?.try_into().ok()?),
        uses: u16::from_le_bytes(take(2)?.try_into().ok()?),
        stale: take(1)? != [0],
    };
    let mut text = || {
        let len = u32::from_le_bytes(take(4)?.try_into().ok()?);
        take(len as usize)
    };
    let names = if has_names {
        Some((text()?, text()?))
    } else {
        None
    };
    Some(Entry { saved, names })
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
            let list = (0..9).map(|n| (sample(n), &b"key"[..], b"a b".to_vec()));
            let bytes = write(named, list);
            let got: Vec<Entry<'_>> = read(&bytes, named).unwrap().collect();
            assert_eq!(got.len(), 9);
            assert_eq!(got[3].saved, sample(3));
            assert_eq!(got[3].names.is_some(), named);
            assert_eq!(read(&bytes, true).is_some(), named);
            for cut in 0..bytes.len() {
                assert!(read(&bytes[..cut], false).is_none());
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
            let _ = read(&bytes, named).map(Iterator::count);
        }
    }
}
