//! Objects in use, and what a look-up came to.

use super::key::Digest;
use super::live::Live;
use super::zone::Zone;
use std::sync::Arc;

/// `$upstream_cache_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not in the cache.
    Miss,
    /// `proxy_cache_bypass`.
    Bypass,
    /// Its time is over: the origin's answer is served.
    Expired,
    /// Its time is over and the origin fails, or is being asked.
    Stale,
    /// Its time is over and another request is asking the origin.
    Updating,
    /// Its time was over and the origin says that it still is the same.
    Revalidated,
    /// From the cache.
    Hit,
}

impl Status {
    /// As the variable shows it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Miss => "MISS",
            Status::Bypass => "BYPASS",
            Status::Expired => "EXPIRED",
            Status::Stale => "STALE",
            Status::Updating => "UPDATING",
            Status::Revalidated => "REVALIDATED",
            Status::Hit => "HIT",
        }
    }

    /// Every status, in the order in which they are counted.
    pub const ALL: [Status; 7] = [
        Status::Miss,
        Status::Bypass,
        Status::Expired,
        Status::Stale,
        Status::Updating,
        Status::Revalidated,
        Status::Hit,
    ];
}

/// An object held by a request: it is not evicted meanwhile, and an update of it ends with this.
pub struct Entry {
    zone: Arc<Zone>,
    digest: Digest,
    /// Names this request as the one who updates the object; 0 where it does not.
    owner: u64,
    /// Whether an object that was not stored is forgotten.
    forget: bool,
}

impl Entry {
    /// Takes over what [`super::index::Index::enter`] held.
    pub fn new(zone: Arc<Zone>, digest: Digest, forget: bool) -> Entry {
        Entry {
            zone,
            digest,
            owner: 0,
            forget,
        }
    }

    /// The object.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The number of the update that this request does; 0 where it does none.
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// Whether this request updates the object.
    pub fn is_updating(&self) -> bool {
        self.owner != 0
    }

    /// Begins an update where none is under way.
    pub fn begin_update(&mut self) -> bool {
        let owner = self.zone.owner();
        let begun = self.zone.index.begin_update(self.digest, owner, None, 0);
        if begun {
            self.owner = owner;
        }
        begun
    }

    /// Begins to fetch what was not there (or of no use: the generation `seen`), or overtakes one who has done that for
    /// `age` milliseconds; `None` where it has been stored meanwhile.
    pub fn begin_fetch(&mut self, now: u64, age: u64, seen: u64) -> Option<bool> {
        let owner = self.zone.owner();
        let until = now.saturating_add(age);
        let index = &self.zone.index;
        let begun = index.begin_fetch(self.digest, owner, now, until, seen)?;
        if begun {
            self.owner = owner;
        }
        Some(begun)
    }

    /// Lets others read what this update brings.
    pub fn publish(&self, live: &Arc<Live>) {
        self.zone.index.publish(self.digest, self.owner, live);
    }

    /// Lets another one end the update.
    pub fn give_update(&mut self) -> Update {
        Update {
            zone: self.zone.clone(),
            digest: self.digest,
            owner: std::mem::take(&mut self.owner),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.zone.index.leave(self.digest, self.owner, self.forget);
    }
}

/// An update that a background request does; it ends with this.
pub struct Update {
    zone: Arc<Zone>,
    digest: Digest,
    owner: u64,
}

impl Drop for Update {
    fn drop(&mut self) {
        self.zone.index.end_update(self.digest, self.owner);
    }
}
