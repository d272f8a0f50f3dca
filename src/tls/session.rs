//! Sessions that all threads, servers and configurations share: zones of sessions, and the keys of tickets.

use super::ffi;
use crate::runtime::handover::{self, get, get_number, put, put_number};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Weak};

/// `ssl_session_cache shared:name:size`.
pub struct Zone {
    name: String,
    size: usize,
    sessions: Mutex<Sessions>,
    keys: Mutex<Rotating>,
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<Box<[u8]>, Session>,
    /// Ids in the order of their making, with a number that tells a later session of the same id.
    order: VecDeque<(Box<[u8]>, u64)>,
    used: usize,
    serial: u64,
}

struct Session {
    der: Vec<u8>,
    expires: i64,
    serial: u64,
}

/// What a session costs beyond its encoding, bytes.
const OVERHEAD: usize = 128;

impl Zone {
    /// The zone of this name; one of the same size lives on through reloads.
    pub fn named(name: &str, size: usize) -> Arc<Zone> {
        static ZONES: LazyLock<Mutex<HashMap<String, Arc<Zone>>>> = LazyLock::new(Mutex::default);
        let mut zones = ZONES.lock();
        match zones.get(name) {
            Some(z) if z.size == size => z.clone(),
            _ => {
                let z = Arc::new(Zone::new(name, size));
                let weak: Weak<Zone> = Arc::downgrade(&z);
                handover::register(weak);
                zones.insert(name.to_owned(), z.clone());
                z
            }
        }
    }

    fn new(name: &str, size: usize) -> Zone {
        Zone {
            name: name.to_owned(),
            size,
            sessions: Mutex::default(),
            keys: Mutex::default(),
        }
    }

    /// Keeps a session for `timeout` seconds; the oldest ones make room.
    pub fn insert(&self, id: &[u8], der: Vec<u8>, timeout: u64) {
        self.insert_until(id, der, now().saturating_add_unsigned(timeout));
    }

    fn insert_until(&self, id: &[u8], der: Vec<u8>, expires: i64) {
        // nginx's NGX_SSL_MAX_SESSION_SIZE
        const LARGEST: usize = 4096;
        if der.len() > LARGEST || id.is_empty() || id.len() > 32 {
            return;
        }
        let now = now();
        let mut s = self.sessions.lock();
        for _ in 0..2 {
            if s.oldest_expires().is_some_and(|at| at <= now) {
                s.drop_oldest();
            }
        }
        let cost = der.len() + OVERHEAD;
        while s.used + cost > self.size && s.drop_oldest() {}
        s.remove(id);
        s.serial += 1;
        let serial = s.serial;
        s.used += cost;
        s.by_id.insert(
            id.into(),
            Session {
                der,
                expires,
                serial,
            },
        );
        s.order.push_back((id.into(), serial));
    }

    /// A session that has not expired.
    pub fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        let mut s = self.sessions.lock();
        let found = s.by_id.get(id)?;
        if found.expires > now() {
            return Some(found.der.clone());
        }
        s.remove(id);
        None
    }

    /// Forgets a session.
    pub fn remove(&self, id: &[u8]) {
        self.sessions.lock().remove(id);
    }
}

/// The sessions, and the keys of tickets, go to the next worker process.
impl handover::Handover for Zone {
    fn format(&self) -> (&'static str, u64) {
        ("TLS sessions", 1)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn save(&self, room: usize) -> Vec<u8> {
        let mut out = self.keys.lock().save();
        let (now, s) = (now(), self.sessions.lock());
        for (id, serial) in s.order.iter().rev() {
            let Some(session) = s.by_id.get(id).filter(|s| s.serial == *serial) else {
                continue;
            };
            // a time and two lengths
            if out.len() + id.len() + session.der.len() + 24 > room {
                break;
            }
            if session.expires > now {
                put(&mut out, id);
                put_number(&mut out, session.expires.cast_unsigned());
                put(&mut out, &session.der);
            }
        }
        out
    }

    fn restore(&self, mut bytes: &[u8]) -> Option<()> {
        let keys = Rotating::restore(&mut bytes)?;
        let mut sessions = Vec::new();
        while !bytes.is_empty() {
            let id = get(&mut bytes)?;
            let expires = get_number(&mut bytes)?.cast_signed();
            sessions.push((id, expires, get(&mut bytes)?));
        }
        let mut own = self.keys.lock();
        if own.current.is_none() {
            *own = keys;
        }
        drop(own);
        // the newest were written first
        for (id, expires, der) in sessions.into_iter().rev() {
            let known = self.sessions.lock().by_id.contains_key(id);
            if !known {
                self.insert_until(id, der.to_vec(), expires);
            }
        }
        Some(())
    }
}

impl Sessions {
    fn remove(&mut self, id: &[u8]) {
        if let Some(s) = self.by_id.remove(id) {
            self.used = self.used.saturating_sub(s.der.len() + OVERHEAD);
            // the list keeps what is gone until it reaches its head; it must not outgrow the table by much
            if self.order.len() > 64 + 2 * self.by_id.len() {
                let by_id = &self.by_id;
                self.order
                    .retain(|(id, serial)| by_id.get(id).is_some_and(|s| s.serial == *serial));
            }
        }
    }

    fn oldest_expires(&self) -> Option<i64> {
        let (id, serial) = self.order.front()?;
        match self.by_id.get(id).filter(|s| s.serial == *serial) {
            Some(s) => Some(s.expires),
            None => Some(i64::MIN),
        }
    }

    /// False where there is none.
    fn drop_oldest(&mut self) -> bool {
        let Some((id, serial)) = self.order.pop_front() else {
            return false;
        };
        if self.by_id.get(&id).is_some_and(|s| s.serial == serial) {
            self.remove(&id);
        }
        true
    }
}

/// A key of session tickets.
#[derive(Clone)]
pub struct TicketKey {
    /// By which a ticket tells its key.
    pub name: [u8; 16],
    /// For the cipher: AES-256-CBC, or AES-128-CBC with the first half.
    pub aes: [u8; 32],
    /// For HMAC-SHA256, likewise.
    pub hmac: [u8; 32],
    /// A key from a file of 48 bytes.
    pub short: bool,
}

impl TicketKey {
    /// From a file of 48 or 80 bytes.
    pub fn from_file(text: &[u8]) -> Option<TicketKey> {
        let mut key = TicketKey {
            name: [0; 16],
            aes: [0; 32],
            hmac: [0; 32],
            short: text.len() == 48,
        };
        let (name, rest) = text.split_first_chunk::<16>()?;
        key.name = *name;
        match rest.len() {
            32 => {
                let (aes, hmac) = rest.split_at(16);
                key.aes.get_mut(..16)?.copy_from_slice(aes);
                key.hmac.get_mut(..16)?.copy_from_slice(hmac);
            }
            64 => {
                let (hmac, aes) = rest.split_at(32);
                key.hmac.copy_from_slice(hmac);
                key.aes.copy_from_slice(aes);
            }
            _ => return None,
        }
        Some(key)
    }

    fn random() -> Option<TicketKey> {
        let mut text = [0; 80];
        ffi::random(&mut text)
            .then(|| TicketKey::from_file(&text))
            .flatten()
    }
}

/// The keys that a context's tickets are made with.
#[derive(Clone)]
pub enum Tickets {
    /// `ssl_session_ticket_key`: the first encrypts.
    Files(Arc<[TicketKey]>),
    /// Made at random and shared by a zone; renewed as sessions expire (seconds).
    Zone(Arc<Zone>, u64),
}

/// The keys of a zone: present, previous and next, with the time until which each is needed.
#[derive(Default)]
struct Rotating {
    current: Option<(TicketKey, i64)>,
    previous: Option<(TicketKey, i64)>,
    next: Option<TicketKey>,
}

impl Rotating {
    fn save(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let next = self.next.as_ref().map(|k| (k, 0));
        let dated = [&self.current, &self.previous].map(|k| k.as_ref().map(|(k, at)| (k, *at)));
        for key in dated.into_iter().chain([next]) {
            put_number(&mut out, key.is_some().into());
            if let Some((key, until)) = key {
                put_number(&mut out, until.cast_unsigned());
                out.extend_from_slice(&key.name);
                out.extend_from_slice(&key.aes);
                out.extend_from_slice(&key.hmac);
            }
        }
        out
    }

    fn restore(from: &mut &[u8]) -> Option<Rotating> {
        let mut key = || {
            if get_number(from)? == 0 {
                return Some(None);
            }
            let until = get_number(from)?.cast_signed();
            let (name, rest) = from.split_first_chunk::<16>()?;
            let (aes, rest) = rest.split_first_chunk::<32>()?;
            let (hmac, rest) = rest.split_first_chunk::<32>()?;
            *from = rest;
            let key = TicketKey {
                name: *name,
                aes: *aes,
                hmac: *hmac,
                short: false,
            };
            Some(Some((key, until)))
        };
        let (current, previous, next) = (key()?, key()?, key()?);
        Some(Rotating {
            current,
            previous,
            next: next.map(|(k, _)| k),
        })
    }

    fn rotate(&mut self, now: i64, timeout: u64) -> Option<()> {
        let expire = now.saturating_add_unsigned(timeout);
        if self.current.is_none() {
            let key = TicketKey::random()?;
            self.next = Some(key.clone());
            self.current = Some((key, expire));
        }
        if self.previous.as_ref().is_none_or(|(_, at)| *at < now) {
            // the previous key is needed no longer: each moves on by one place
            let next = TicketKey::random()?;
            self.previous = self.current.take();
            self.current = self.next.replace(next).map(|k| (k, 0));
        }
        if let Some((_, at)) = &mut self.current {
            *at = expire.max(*at);
        }
        Some(())
    }
}

impl Tickets {
    /// The key for new tickets.
    pub fn current(&self) -> Option<TicketKey> {
        match self {
            Tickets::Files(keys) => keys.first().cloned(),
            Tickets::Zone(zone, timeout) => {
                let mut keys = zone.keys.lock();
                keys.rotate(now(), *timeout)?;
                keys.current.as_ref().map(|(k, _)| k.clone())
            }
        }
    }

    /// The key of a ticket; true if it is not the one for new tickets.
    pub fn find(&self, name: &[u8]) -> Option<(TicketKey, bool)> {
        match self {
            Tickets::Files(keys) => keys
                .iter()
                .enumerate()
                .find(|(_, k)| k.name == *name)
                .map(|(i, k)| (k.clone(), i > 0)),
            Tickets::Zone(zone, timeout) => {
                let mut keys = zone.keys.lock();
                keys.rotate(now(), *timeout)?;
                let current = keys.current.iter().map(|(k, _)| (k, false));
                let previous = keys.previous.iter().map(|(k, _)| (k, true));
                current
                    .chain(previous)
                    .find(|(k, _)| k.name == *name)
                    .map(|(k, old)| (k.clone(), old))
            }
        }
    }
}

fn now() -> i64 {
    crate::http::date::time().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_stays_within_its_size() {
        let z = Zone::new("z", 10 * (100 + OVERHEAD));
        for i in 0..100u8 {
            z.insert(&[i; 32], vec![i; 100], 300);
        }
        assert!(z.get(&[0; 32]).is_none());
        assert_eq!(z.get(&[99; 32]), Some(vec![99; 100]));
        assert_eq!(z.sessions.lock().by_id.len(), 10);
        assert!(z.sessions.lock().used <= z.size);
        z.remove(&[99; 32]);
        assert!(z.get(&[99; 32]).is_none());
        for _ in 0..1000 {
            z.insert(&[7; 32], vec![7; 50], 300);
        }
        assert!(z.sessions.lock().order.len() < 100);
    }

    #[test]
    fn a_session_expires() {
        let z = Zone::new("z", 4096);
        z.insert(&[1; 32], vec![1], 0);
        assert!(z.get(&[1; 32]).is_none());
        assert_eq!(z.sessions.lock().used, 0);
        z.insert(&[1; 32], vec![0; 5000], 300);
        z.insert(b"", vec![0], 300);
        assert_eq!(z.sessions.lock().used, 0);
    }

    #[test]
    fn a_zone_is_handed_over() {
        use handover::Handover;
        let old = Arc::new(Zone::new("a", 4096));
        let tickets = Tickets::Zone(old.clone(), 300);
        let key = tickets.current().unwrap();
        for i in 0..5u8 {
            old.insert(&[i; 32], vec![i; 100], 300);
        }
        old.insert(&[9; 32], vec![9; 100], 0);
        let bytes = old.save(100_000);
        let new = Arc::new(Zone::new("a", 4096));
        new.insert(&[1; 32], vec![7; 10], 300);
        for _ in 0..2 {
            assert_eq!(new.restore(&bytes), Some(()));
            assert_eq!(new.get(&[0; 32]), Some(vec![0; 100]));
            assert_eq!(new.get(&[1; 32]), Some(vec![7; 10]));
            assert_eq!(new.sessions.lock().by_id.len(), 5);
        }
        let tickets = Tickets::Zone(new, 300);
        let (found, old_one) = tickets.find(&key.name).unwrap();
        assert!(!old_one && found.aes == key.aes && found.hmac == key.hmac);
        // the newest where there is no room for all, in the bytes and in the zone
        let keys = old.keys.lock().save().len();
        let small = Zone::new("a", 2 * (100 + OVERHEAD));
        for bytes in [&bytes, &old.save(keys + 2 * (100 + 32 + 24))] {
            assert_eq!(small.restore(bytes), Some(()));
            assert_eq!(small.sessions.lock().by_id.len(), 2);
            assert!(small.get(&[4; 32]).is_some() && small.get(&[3; 32]).is_some());
        }
        // a zone that is not used
        let unused = Zone::new("b", 4096);
        let bytes = unused.save(1000);
        assert_eq!(unused.restore(&bytes), Some(()));
        for n in 0..bytes.len() {
            assert_eq!(unused.restore(&bytes[..n]), None);
        }
    }

    #[test]
    fn ticket_keys_from_files() {
        let text: Vec<u8> = (0..80).collect();
        let long = TicketKey::from_file(&text).unwrap();
        assert_eq!(
            (long.name[0], long.hmac[0], long.aes[0], long.short),
            (0, 16, 48, false)
        );
        let short = TicketKey::from_file(&text[..48]).unwrap();
        assert_eq!(
            (
                short.aes[0],
                short.aes[15],
                short.hmac[0],
                short.aes[16],
                short.short
            ),
            (16, 31, 32, 0, true)
        );
        assert!(TicketKey::from_file(&text[..79]).is_none());
        assert!(TicketKey::from_file(b"").is_none());
    }

    #[test]
    fn keys_rotate_and_old_tickets_stay_readable() {
        let mut r = Rotating::default();
        r.rotate(1000, 300).unwrap();
        let first = r.current.clone().unwrap().0;
        r.rotate(1200, 300).unwrap();
        assert_eq!(r.current.as_ref().unwrap().0.name, first.name);
        // the previous key's time is over: the present one becomes the previous
        r.rotate(1301, 300).unwrap();
        assert_ne!(r.current.as_ref().unwrap().0.name, first.name);
        assert_eq!(r.previous.as_ref().unwrap().0.name, first.name);
        assert_eq!(r.previous.as_ref().unwrap().1, 1500);
    }
}
