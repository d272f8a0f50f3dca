//! State that a worker process hands to the one that takes its place: named, each with a format of its own.
//!
//! Who keeps such state registers it; `process` takes all of it from the old worker ([`save`]) and gives it to the new one
//! ([`restore`]). The bytes come from a process of the same rights, and possibly of another version.

use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// The most that is handed over, bytes. What is found most worth keeping goes first; the rest is lost.
pub const LIMIT: usize = 64 * 1024 * 1024;

/// How the bytes begin; what stands behind it changes with this.
const MAGIC: &[u8; 8] = b"state/1\n";

/// Something that is to survive the process.
pub trait Handover: Send + Sync {
    /// What it is, and the version of its format; state of another version is not taken.
    fn format(&self) -> (&'static str, u64);

    /// Which of its kind it is: what the configuration calls it.
    fn name(&self) -> String;

    /// Its contents in at most `room` bytes.
    fn save(&self, room: usize) -> Vec<u8>;

    /// Adds contents that [`Handover::save`] wrote, whatever is there already; `None` where they cannot be read.
    fn restore(&self, bytes: &[u8]) -> Option<()>;
}

/// What lives; the same may be there twice, for an older configuration and a newer one.
static REGISTERED: Mutex<Vec<Weak<dyn Handover>>> = Mutex::new(Vec::new());

/// Hands this over for as long as it lives.
pub fn register(state: Weak<dyn Handover>) {
    let mut registered = REGISTERED.lock();
    registered.retain(|r| r.strong_count() > 0);
    registered.push(state);
}

fn registered() -> Vec<Arc<dyn Handover>> {
    REGISTERED.lock().iter().filter_map(Weak::upgrade).collect()
}

/// All that is registered, in at most [`LIMIT`] bytes.
pub fn save() -> Vec<u8> {
    save_of(&registered(), LIMIT)
}

fn save_of(all: &[Arc<dyn Handover>], limit: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for state in all {
        let (kind, version) = state.format();
        let name = state.name();
        // a version and three lengths
        let head = 4 * 8 + kind.len() + name.len();
        let Some(room) = limit.checked_sub(out.len() + head) else {
            break;
        };
        let contents = state.save(room);
        if contents.is_empty() || contents.len() > room {
            continue;
        }
        put(&mut out, kind.as_bytes());
        put_number(&mut out, version);
        put(&mut out, name.as_bytes());
        put(&mut out, &contents);
    }
    out
}

/// Gives what [`save`] wrote to those that are registered; what belongs to none of them is left out.
///
/// # Errors
/// What could not be taken, for the log.
pub fn restore(bytes: &[u8]) -> Result<(), String> {
    restore_to(&registered(), bytes)
}

fn restore_to(all: &[Arc<dyn Handover>], bytes: &[u8]) -> Result<(), String> {
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        return Err("it has another format".to_owned());
    };
    let mut refused = Vec::new();
    while !rest.is_empty() {
        let mut next = || {
            let kind = get(&mut rest)?;
            let version = get_number(&mut rest)?;
            Some((kind, version, get(&mut rest)?, get(&mut rest)?))
        };
        let Some((kind, version, name, contents)) = next() else {
            return Err("it is cut short".to_owned());
        };
        let mut own = all
            .iter()
            .filter(|s| s.format().0.as_bytes() == kind && s.name().as_bytes() == name);
        let taken = own.all(|s| s.format().1 == version && s.restore(contents).is_some());
        if !taken {
            let (kind, name) = (String::from_utf8_lossy(kind), String::from_utf8_lossy(name));
            refused.push(format!("{kind} \"{name}\""));
        }
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(format!("the format of {} is another", refused.join(", "))),
    }
}

/// Appends a number.
pub fn put_number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Appends a length and bytes.
pub fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what [`put_number`] wrote.
pub fn get_number(from: &mut &[u8]) -> Option<u64> {
    let (number, rest) = from.split_first_chunk::<8>()?;
    *from = rest;
    Some(u64::from_le_bytes(*number))
}

/// Reads what [`put`] wrote.
pub fn get<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(get_number(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text(&'static str, u64, Mutex<Vec<u8>>);

    impl Handover for Text {
        fn format(&self) -> (&'static str, u64) {
            ("text", self.1)
        }
        fn name(&self) -> String {
            self.0.to_owned()
        }
        fn save(&self, room: usize) -> Vec<u8> {
            let text = self.2.lock();
            text[..text.len().min(room)].to_vec()
        }
        fn restore(&self, bytes: &[u8]) -> Option<()> {
            (!bytes.contains(&0)).then(|| self.2.lock().extend_from_slice(bytes))
        }
    }

    fn text(name: &'static str, version: u64, text: &[u8]) -> Arc<Text> {
        Arc::new(Text(name, version, Mutex::new(text.to_vec())))
    }

    #[test]
    fn goes_to_what_has_the_same_name_and_format() {
        let old: [Arc<dyn Handover>; 4] = [
            text("a", 1, b"one"),
            text("gone", 1, b"two"),
            text("newer", 1, b"three"),
            text("bad", 1, b"\0"),
        ];
        let bytes = save_of(&old, LIMIT);
        let (a, newer, bad) = (
            text("a", 1, b""),
            text("newer", 2, b""),
            text("bad", 1, b""),
        );
        let new: [Arc<dyn Handover>; 3] = [a.clone(), newer.clone(), bad];
        let refused = restore_to(&new, &bytes).unwrap_err();
        assert_eq!(
            refused,
            "the format of text \"newer\", text \"bad\" is another"
        );
        assert_eq!(*a.2.lock(), b"one");
        assert!(newer.2.lock().is_empty());
        assert_eq!(restore_to(&new[..1], &bytes), Ok(()));
        // cut anywhere between two entries it is whole, elsewhere it is refused, and never a panic
        let whole = (MAGIC.len()..=bytes.len())
            .filter(|n| restore_to(&[], &bytes[..*n]).is_ok())
            .count();
        assert_eq!(whole, 5);
        assert!(restore_to(&new, b"state/9\n").is_err());
    }

    #[test]
    fn takes_no_more_than_its_limit() {
        let all: [Arc<dyn Handover>; 2] = [text("a", 1, &[b'x'; 1000]), text("b", 1, b"y")];
        for limit in [0, 8, 45, 100, 1045, 1100] {
            let bytes = save_of(&all, limit);
            assert!(bytes.len() <= limit.max(MAGIC.len()), "{limit}");
            assert_eq!(restore_to(&[], &bytes), Ok(()));
        }
    }
}
