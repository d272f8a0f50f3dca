//! The connections of a thread, and which of them give way to new ones: nginx's reusable connections.
//!
//! A connection is reusable while nothing is asked for on it: before its first byte, before its TLS handshake, between
//! two requests, as HTTP/2 without a stream, and while it only waits for the client to close. Where connections or
//! descriptors run short, those that have been reusable for the longest time are closed.

use crate::contract::Stat;
use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::Mutex;
use std::os::fd::RawFd;
use std::time::Instant;

/// The connections of a thread.
#[derive(Default)]
pub(super) struct Roster(Mutex<List>);

struct List {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// The ends of the list of reusable ones, by the time at which they became so.
    oldest: u32,
    newest: u32,
    reusable: usize,
    /// Open connections that have not been told to give way.
    open: usize,
    /// When it was last logged that connections give way.
    told: Option<Instant>,
}

struct Entry {
    fd: RawFd,
    state: State,
    older: u32,
    newer: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Busy,
    Reusable,
    /// It was told to give way, and is no longer counted.
    Retired,
}

/// No entry.
const NONE: u32 = u32::MAX;
/// At most so many connections give way at a time.
const MOST: usize = 32;

impl Default for List {
    fn default() -> List {
        List {
            entries: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            reusable: 0,
            open: 0,
            told: None,
        }
    }
}

impl Roster {
    /// Adds a connection, which is reusable: many may be accepted before the first of them is looked at. Its number,
    /// until [`Roster::remove`].
    pub fn add(&self, fd: RawFd) -> u32 {
        let list = &mut *self.0.lock();
        list.open += 1;
        let entry = Entry {
            fd,
            state: State::Busy,
            older: NONE,
            newer: NONE,
        };
        let id = match list.free.pop() {
            Some(id) => id,
            None => list.entries.len() as u32,
        };
        match list.entries.get_mut(id as usize) {
            Some(place) => *place = entry,
            None => list.entries.push(entry),
        }
        list.set(id, State::Reusable);
        id
    }

    /// Forgets a connection that ends.
    pub fn remove(&self, id: u32) {
        let list = &mut *self.0.lock();
        list.set(id, State::Busy);
        if let Some(entry) = list.entries.get_mut(id as usize) {
            if entry.state == State::Busy {
                list.open -= 1;
            }
            entry.state = State::Free;
            list.free.push(id);
        }
    }

    /// Says whether a connection gives way from now on. Its descriptor must stay open for as long as it does.
    pub fn set_reusable(&self, id: u32, reusable: bool) {
        let state = match reusable {
            true => State::Reusable,
            false => State::Busy,
        };
        self.0.lock().set(id, state);
    }

    /// Whether a connection has been told to give way.
    pub fn is_retired(&self, id: u32) -> bool {
        self.0.lock().state(id) == Some(State::Retired)
    }

    /// Open connections, those that have been told to give way aside.
    pub fn open(&self) -> usize {
        self.0.lock().open
    }

    /// Tells the oldest reusable connections to give way, an eighth of them, at most 32 and at least one; how many
    /// there were. Also whether that is to be logged, which it is once a second.
    pub fn retire(&self) -> (usize, bool) {
        let list = &mut *self.0.lock();
        let most = (list.reusable / 8).clamp(1, MOST);
        let mut retired = 0;
        while retired < most && list.oldest != NONE {
            let id = list.oldest;
            list.set(id, State::Retired);
            if let Some(entry) = list.entries.get(id as usize) {
                // whoever waits for input finds the end of it; what is to be said at the end can still be sent
                let _ = shutdown(entry.fd, Shutdown::Read);
            }
            list.open -= 1;
            retired += 1;
        }
        let now = Instant::now();
        let log = retired > 0 && list.told.is_none_or(|t| (now - t).as_secs() >= 1);
        if log {
            list.told = Some(now);
        }
        (retired, log)
    }
}

impl List {
    fn state(&self, id: u32) -> Option<State> {
        self.entries.get(id as usize).map(|e| e.state)
    }

    fn set(&mut self, id: u32, state: State) {
        match self.state(id) {
            Some(State::Reusable) => self.unlink(id),
            Some(State::Busy) => {}
            // there is no way back
            _ => return,
        }
        if state == State::Reusable {
            self.link(id);
        }
        if let Some(entry) = self.entries.get_mut(id as usize) {
            entry.state = state;
        }
    }

    fn link(&mut self, id: u32) {
        let newest = std::mem::replace(&mut self.newest, id);
        match self.entries.get_mut(newest as usize) {
            Some(before) => before.newer = id,
            None => self.oldest = id,
        }
        if let Some(entry) = self.entries.get_mut(id as usize) {
            (entry.older, entry.newer) = (newest, NONE);
        }
        self.reusable += 1;
        Stat::Waiting.up();
    }

    fn unlink(&mut self, id: u32) {
        let Some((older, newer)) = self.entries.get(id as usize).map(|e| (e.older, e.newer)) else {
            return;
        };
        match self.entries.get_mut(older as usize) {
            Some(e) => e.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(e) => e.older = older,
            None => self.newest = older,
        }
        self.reusable -= 1;
        Stat::Waiting.down();
    }
}

/// A connection is reusable for as long as this lives.
pub(super) struct Reusable {
    roster: &'static Roster,
    id: u32,
}

impl Reusable {
    /// Makes a connection of the roster reusable.
    pub fn new(roster: &'static Roster, id: u32) -> Reusable {
        roster.set_reusable(id, true);
        Reusable { roster, id }
    }

    /// Whether it has been told to give way.
    pub fn is_retired(&self) -> bool {
        self.roster.is_retired(self.id)
    }
}

impl Drop for Reusable {
    fn drop(&mut self) {
        self.roster.set_reusable(self.id, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_give_way_first() {
        let roster = Roster::default();
        // no descriptor: shutting it down fails, which is nobody's business here
        let ids: Vec<u32> = (0..20).map(|_| roster.add(-1)).collect();
        ids.iter().for_each(|id| roster.set_reusable(*id, false));
        assert_eq!(roster.retire(), (0, false));
        for id in &ids {
            roster.set_reusable(*id, true);
        }
        assert_eq!(roster.open(), 20);
        // one that was in use meanwhile is the newest
        roster.set_reusable(ids[0], false);
        roster.set_reusable(ids[0], true);
        roster.set_reusable(ids[19], false);
        assert_eq!(roster.retire(), (2, true));
        assert_eq!(roster.retire(), (2, false));
        let retired = |roster: &Roster| -> Vec<usize> {
            (0..20).filter(|n| roster.is_retired(ids[*n])).collect()
        };
        assert_eq!(retired(&roster), [1, 2, 3, 4]);
        assert_eq!(roster.open(), 16);
        // it cannot become reusable again, and its end is counted once
        roster.set_reusable(ids[1], true);
        roster.remove(ids[1]);
        assert_eq!(roster.open(), 16);
        roster.remove(ids[19]);
        assert_eq!(roster.open(), 15);
        while roster.retire().0 > 0 {}
        assert_eq!(roster.open(), 0);
        assert!(roster.is_retired(ids[0]));
        // places are used again
        assert!([ids[1], ids[19]].contains(&roster.add(-1)));
        assert_eq!(roster.open(), 1);
    }
}
