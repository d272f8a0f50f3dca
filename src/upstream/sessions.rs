//! Sessions that `sticky learn` has learnt: which peer each of them is bound to.

use crate::runtime::handover::{get, get_number, put, put_number};
use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The sessions of a zone, shared by all threads and kept over a reload.
#[derive(Debug)]
pub struct Sessions {
    /// The most that are kept; the one not used for longest makes room.
    limit: usize,
    table: Mutex<Table>,
}

/// A session's name is hashed, as in nginx: its length is the client's choice.
type Key = [u8; 16];

#[derive(Debug, Default)]
struct Table {
    by_key: HashMap<Key, Session>,
    /// By last use and a number that makes it unique.
    by_age: BTreeMap<(u64, u64), Key>,
    count: u64,
}

#[derive(Debug)]
struct Session {
    sid: Arc<str>,
    age: (u64, u64),
}

impl Sessions {
    /// At most `limit` sessions.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            table: Mutex::default(),
        }
    }

    /// What the peer of that session is called; `now` and `timeout` in milliseconds.
    pub fn find(&self, name: &[u8], now: u64, timeout: u64) -> Option<Arc<str>> {
        let table = self.table.lock();
        let session = table.by_key.get(&key(name))?;
        (session.age.0.saturating_add(timeout) > now).then(|| session.sid.clone())
    }

    /// Binds a session to a peer, or notes its use; one that is not known is begun only if `create` says so.
    ///
    /// True if the zone was full and another session had to go.
    pub fn learn(&self, name: &[u8], sid: &Arc<str>, create: bool, now: u64, timeout: u64) -> bool {
        let key = key(name);
        let mut table = self.table.lock();
        table.expire(now, timeout);
        table.count += 1;
        let age = (now, table.count);
        if let Some(session) = table.by_key.get_mut(&key) {
            session.sid = sid.clone();
            let before = std::mem::replace(&mut session.age, age);
            table.by_age.remove(&before);
            table.by_age.insert(age, key);
            return false;
        }
        if !create {
            return false;
        }
        let full = table.by_key.len() >= self.limit;
        if full {
            table.drop_oldest();
        }
        let sid = sid.clone();
        table.by_key.insert(key, Session { sid, age });
        table.by_age.insert(age, key);
        full
    }

    /// The sessions in at most `room` bytes, those used last first.
    pub fn save(&self, room: usize) -> Vec<u8> {
        let table = self.table.lock();
        let mut out = Vec::new();
        for ((used, _), key) in table.by_age.iter().rev() {
            let Some(session) = table.by_key.get(key) else {
                continue;
            };
            // the key, a time and a length
            if out.len() + key.len() + 16 + session.sid.len() > room {
                break;
            }
            out.extend_from_slice(key);
            put_number(&mut out, *used);
            put(&mut out, session.sid.as_bytes());
        }
        out
    }

    /// Adds sessions that [`Sessions::save`] wrote; of a session that is known, what was learnt last counts. `None` where
    /// they cannot be read.
    pub fn restore(&self, mut bytes: &[u8]) -> Option<()> {
        let mut table = self.table.lock();
        // peers are few
        let mut last: Arc<str> = "".into();
        while let Some((key, rest)) = bytes.split_first_chunk::<16>() {
            bytes = rest;
            let used = get_number(&mut bytes)?;
            let sid = std::str::from_utf8(get(&mut bytes)?).ok()?;
            if *last != *sid {
                last = sid.into();
            }
            table.count += 1;
            let age = (used, table.count);
            match table.by_key.get(key).map(|s| s.age) {
                Some(known) if known.0 >= used => continue,
                Some(known) => drop(table.by_age.remove(&known)),
                None if table.by_key.len() >= self.limit => {
                    let oldest = table.by_age.first_key_value().map(|(age, _)| age.0);
                    if oldest.is_none_or(|oldest| oldest >= used) {
                        continue;
                    }
                    table.drop_oldest();
                }
                None => {}
            }
            let sid = last.clone();
            table.by_key.insert(*key, Session { sid, age });
            table.by_age.insert(age, *key);
        }
        bytes.is_empty().then_some(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.lock().by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    fn expire(&mut self, now: u64, timeout: u64) {
        while let Some((age, _)) = self.by_age.first_key_value()
            && age.0.saturating_add(timeout) <= now
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_first() {
            self.by_key.remove(&key);
        }
    }
}

fn key(name: &[u8]) -> Key {
    Md5::digest(name).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_begun_moved_and_forgotten() {
        let sessions = Sessions::new(10);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert!(!sessions.learn(b"x", &a, false, 0, 100));
        assert_eq!(sessions.find(b"x", 0, 100), None);
        sessions.learn(b"x", &a, true, 0, 100);
        assert_eq!(sessions.find(b"x", 99, 100).as_deref(), Some("a"));
        sessions.learn(b"x", &b, false, 90, 100);
        assert_eq!(sessions.find(b"x", 150, 100).as_deref(), Some("b"));
        assert_eq!(sessions.find(b"x", 190, 100), None);
        sessions.learn(b"y", &a, true, 200, 100);
        assert_eq!(sessions.len(), 1);
    }

    #[test]
    fn sessions_are_handed_over() {
        let old = Sessions::new(10);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "bb".into());
        for (name, sid, now) in [(b"x", &a, 10), (b"y", &b, 20), (b"z", &a, 30)] {
            old.learn(name, sid, true, now, 100);
        }
        let bytes = old.save(1000);
        let find = |s: &Sessions, name: &[u8; 1]| s.find(name, 40, 100).map(|sid| sid.to_string());
        let new = Sessions::new(10);
        // learnt by the new process since
        new.learn(b"x", &b, true, 15, 100);
        new.learn(b"y", &a, true, 15, 100);
        for _ in 0..2 {
            assert_eq!(new.restore(&bytes), Some(()));
            assert_eq!(find(&new, b"x").as_deref(), Some("bb"));
            assert_eq!(find(&new, b"y").as_deref(), Some("bb"));
            assert_eq!(find(&new, b"z").as_deref(), Some("a"));
            assert_eq!((new.len(), new.table.lock().by_age.len()), (3, 3));
        }
        // times go along
        assert!(new.find(b"z", 131, 100).is_none());
        // where there is no room, those used last
        let small = Sessions::new(2);
        assert_eq!(small.restore(&old.save(1000)), Some(()));
        assert_eq!((small.len(), find(&small, b"x")), (2, None));
        let some = old.save(33 + 34);
        assert_eq!(some.len(), 33 + 34);
        let new = Sessions::new(10);
        assert_eq!(new.restore(&some), Some(()));
        assert_eq!((new.len(), find(&new, b"x")), (2, None));
        // they came from another process
        for n in [1, 16, 24, 32, 34] {
            assert_eq!(Sessions::new(10).restore(&bytes[..n]), None, "{n}");
        }
    }

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let sessions = Sessions::new(2);
        let a: Arc<str> = "a".into();
        for (name, now) in [(b"x", 1), (b"y", 2), (b"x", 3)] {
            assert!(!sessions.learn(name, &a, true, now, 100));
        }
        assert!(sessions.learn(b"z", &a, true, 4, 100));
        assert!(sessions.find(b"y", 4, 100).is_none());
        assert!(sessions.find(b"x", 4, 100).is_some());
    }
}
