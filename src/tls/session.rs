//! Sessions that all threads, servers and configurations share: zones of sessions, and the keys of tickets.

use super::ffi;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock};

/// `ssl_session_cache shared:name:size`.
pub struct Zone {
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
                let z = Arc::new(Zone::new(size));
                zones.insert(name.to_owned(), z.clone());
                z
            }
        }
    }

    fn new(size: usize) -> Zone {
        Zone {
            size,
            sessions: Mutex::default(),
            keys: Mutex::default(),
        }
    }

    /// Keeps a session for `timeout` seconds; the oldest ones make room.
    pub fn insert(&self, id: &[u8], der: Vec<u8>, timeout: u64) {
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
                expires: now.saturating_add_unsigned(timeout),
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
        let z = Zone::new(10 * (100 + OVERHEAD));
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
        let z = Zone::new(4096);
        z.insert(&[1; 32], vec![1], 0);
        assert!(z.get(&[1; 32]).is_none());
        assert_eq!(z.sessions.lock().used, 0);
        z.insert(&[1; 32], vec![0; 5000], 300);
        z.insert(b"", vec![0], 300);
        assert_eq!(z.sessions.lock().used, 0);
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
