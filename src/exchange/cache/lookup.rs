//! Finding a request's object, or the right to fetch it.

use super::now;
use crate::cache::index::{Found, Saved};
use crate::cache::{CachePath, Digest, Entry, Live, Object, ReadError, Status, reason};
use crate::contract::{CacheCall, Request, next};
use crate::log::Level;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a lookup came to.
pub(super) enum Verdict {
    /// Serve this object.
    Serve(Arc<Object>, Status),
    /// Serve what another request is storing, while it comes.
    Join(Arc<Live>),
    /// Serve this old object; a background request, which ends the update, asks the origin.
    Background(Arc<Object>),
    /// Answer with this status, as the last time.
    Error(u16),
    /// The client went away.
    Gone,
    /// Ask the origin.
    Fetch(Status),
}

/// What became of one look.
enum Look {
    Verdict(Verdict),
    /// Look again: at a variant, or after a wait.
    Again,
    /// There is nothing to serve.
    Miss,
}

/// An object in memory that is fresh and has no variants: the way of most hits.
pub(super) fn hot(path: &CachePath, digest: Digest, key: &[u8]) -> Option<Arc<Object>> {
    let zone = &path.zone;
    let now = now();
    let generation = zone.index.touch(digest, now + path.params.inactive)?;
    let object = zone.in_memory(digest, generation)?;
    let plain = object.meta.vary.is_empty() && object.meta.valid >= now && object.meta.key == key;
    plain.then_some(object)
}

/// The slow way: from disk, by variant, waiting for others who fetch the same.
pub(super) async fn find(r: &mut Request, call: &mut CacheCall, watch: bool) -> Verdict {
    let mut wait = Wait {
        until: None,
        over: false,
    };
    let mut again = false;
    loop {
        match look(r, call, again) {
            Look::Verdict(v) => return v,
            Look::Again => {
                again = false;
                continue;
            }
            Look::Miss => {}
        }
        if !call.settings.lock {
            return Verdict::Fetch(Status::Miss);
        }
        match join(r, call) {
            Look::Verdict(v) => return v,
            Look::Again => {
                again = false;
                continue;
            }
            Look::Miss => {}
        }
        let age = call.settings.lock_age;
        let Some(entry) = &mut call.entry else {
            return Verdict::Fetch(Status::Miss);
        };
        match entry.begin_fetch(millis(), age, call.seen) {
            Some(true) => return Verdict::Fetch(Status::Miss),
            Some(false) => {}
            None => {
                again = true;
                continue;
            }
        }
        if wait.over || call.settings.lock_timeout == 0 {
            call.cacheable = false;
            return Verdict::Fetch(Status::Miss);
        }
        if !wait.run(r, call, watch).await {
            return Verdict::Gone;
        }
        again = true;
    }
}

/// One look into the zone; `again` where this request has been counted already.
fn look(r: &mut Request, call: &mut CacheCall, again: bool) -> Look {
    let path = call.path.clone();
    let zone = &path.zone;
    let now = now();
    call.entry = None;
    call.seen = 0;
    let min_uses = call.settings.min_uses;
    let enter = || {
        zone.index.enter(
            call.digest,
            now,
            path.params.inactive,
            min_uses,
            path.params.keys,
            again,
        )
    };
    let found = match enter() {
        None if zone.make_room() => enter(),
        found => found,
    };
    let Some(found) = found else {
        r.error(
            Level::Alert,
            format_args!(
                "could not allocate node in cache keys zone \"{}\"",
                zone.name
            ),
        );
        call.cacheable = false;
        return Look::Verdict(Verdict::Fetch(Status::Miss));
    };
    call.entry = Some(Entry::new(zone.clone(), call.digest, min_uses <= 1));
    let scarce = match found {
        Found::Error(status) => {
            call.entry = None;
            return Look::Verdict(Verdict::Error(status));
        }
        Found::Cached { generation, stale } => {
            call.seen = generation;
            return match read(r, call, generation) {
                Ok(Some(object)) => judge(r, call, object, stale, now),
                Ok(None) => Look::Miss,
                Err(()) => uncached(call),
            };
        }
        Found::Absent => false,
        Found::Scarce => true,
        Found::New => min_uses > 1,
    };
    // the loader may not have come to it yet
    if found == Found::New && zone.is_cold() {
        match read(r, call, 0) {
            Ok(Some(object)) => {
                let blocks = object.body.len().div_ceil(zone.block()) + 1;
                zone.index.add(
                    Saved {
                        key: call.digest,
                        expire: now + path.params.inactive,
                        blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
                        uses: 1,
                        stale: false,
                    },
                    usize::MAX,
                );
                if !zone.survives_purges(call.digest, &object.meta) {
                    return Look::Miss;
                }
                let purged = zone.index.is_stale(call.digest);
                return judge(r, call, object, purged, now);
            }
            Ok(None) => {}
            Err(()) => return uncached(call),
        }
    }
    if scarce { uncached(call) } else { Look::Miss }
}

fn uncached(call: &mut CacheCall) -> Look {
    call.cacheable = false;
    Look::Verdict(Verdict::Fetch(Status::Miss))
}

/// The object from memory or disk; `Err` where the folder cannot be read.
fn read(r: &Request, call: &CacheCall, generation: u64) -> Result<Option<Arc<Object>>, ()> {
    let zone = call.zone();
    if generation != 0
        && let Some(o) = zone.in_memory(call.digest, generation)
        && o.meta.key == call.key
    {
        return Ok(Some(o));
    }
    let error = match zone.read(call.digest, &call.key, generation) {
        Ok(object) => {
            let object = Arc::new(object);
            if generation != 0 {
                zone.remember(call.digest, &object);
            }
            return Ok(Some(object));
        }
        Err(e) => e,
    };
    let file = zone.path(call.digest);
    let file = file.display();
    match error {
        ReadError::Missing => {}
        ReadError::Collision => {
            r.error(
                Level::Crit,
                format_args!("cache file \"{file}\" has md5 collision"),
            );
            // another key's: it is not served, and is replaced by what is fetched now
            return Ok(None);
        }
        ReadError::Damaged(damage) => {
            r.error(Level::Crit, format_args!("cache file \"{file}\" {damage}"));
            zone.forget(call.digest);
            let _ = std::fs::remove_file(zone.path(call.digest));
        }
        ReadError::Io(e) => {
            zone.trouble(format_args!("open() \"{file}\" failed ({})", reason(&e)));
            return Err(());
        }
    }
    zone.index.lost(call.digest, generation);
    Ok(None)
}

/// Whether an object that was found may be served to this request.
fn judge(
    r: &mut Request,
    call: &mut CacheCall,
    object: Arc<Object>,
    purged: bool,
    now: i64,
) -> Look {
    let meta = &object.meta;
    if !meta.vary.is_empty() {
        let variant = Digest::of_variant(call.main, &meta.vary, &r.head.headers);
        if variant != meta.variant {
            if call.secondary {
                let file = call.zone().path(call.digest);
                r.error(
                    Level::Crit,
                    format_args!("cache file \"{}\" has incorrect vary hash", file.display()),
                );
                return Look::Miss;
            }
            call.entry = None;
            call.secondary = true;
            call.digest = variant;
            return Look::Again;
        }
    }
    let valid = if purged {
        meta.valid.min(now - 1)
    } else {
        meta.valid
    };
    if valid >= now {
        return Look::Verdict(Verdict::Serve(object, Status::Hit));
    }
    call.stale_error = valid.saturating_add(meta.error) >= now;
    let while_updating = r.upstream.background.is_none()
        && (call.settings.use_stale & next::UPDATING != 0
            || valid.saturating_add(meta.updating) >= now);
    let first = call.entry.as_mut().is_some_and(|e| e.begin_update());
    if while_updating && !first {
        return Look::Verdict(Verdict::Serve(object, Status::Updating));
    }
    // stale-while-revalidate needs no directive of nginx's
    let background = call.settings.background_update
        || call.settings.rfc9111 && meta.updating > 0 && valid.saturating_add(meta.updating) >= now;
    if while_updating && background {
        return Look::Verdict(Verdict::Background(object));
    }
    call.old = Some(object);
    Look::Verdict(Verdict::Fetch(Status::Expired))
}

/// What another request is storing under this key, if it may be read meanwhile (`proxy_cache_lock_stream`).
fn join(r: &Request, call: &mut CacheCall) -> Look {
    let Some(live) = joinable(call) else {
        return Look::Miss;
    };
    let meta = &live.meta;
    if !meta.vary.is_empty() {
        let variant = Digest::of_variant(call.main, &meta.vary, &r.head.headers);
        if variant != meta.variant {
            if call.secondary {
                return Look::Miss;
            }
            call.entry = None;
            call.secondary = true;
            call.digest = variant;
            return Look::Again;
        }
    }
    Look::Verdict(Verdict::Join(live))
}

fn joinable(call: &CacheCall) -> Option<Arc<Live>> {
    if !call.settings.lock_stream {
        return None;
    }
    let live = call.zone().index.live(call.digest)?;
    let age = Duration::from_millis(call.settings.lock_age);
    let fits = live.meta.key == call.key && live.meta.valid >= now() && live.is_lively(age);
    fits.then_some(live)
}

/// Waiting for another request that fetches the same (`proxy_cache_lock`).
struct Wait {
    until: Option<u64>,
    over: bool,
}

impl Wait {
    /// Waits until that one has ended, may be read or may be overtaken; false where the client went away.
    async fn run(&mut self, r: &mut Request, call: &CacheCall, watch: bool) -> bool {
        let zone = call.zone();
        let until = *self
            .until
            .get_or_insert_with(|| millis().saturating_add(call.settings.lock_timeout));
        let Some(update) = zone.index.updating(call.digest) else {
            return true;
        };
        let mut changed = std::pin::pin!(update.waiters.notified());
        changed.as_mut().enable();
        // it may have ended, or begun to be read, before this one was on the list
        if zone.index.updating(call.digest).is_none() || joinable(call).is_some() {
            return true;
        }
        let left = until.min(update.until).saturating_sub(millis());
        let down = r.down.clone();
        tokio::select! {
            biased;
            () = changed => {}
            () = tokio::time::sleep(Duration::from_millis(left)) => {
                if millis() >= until {
                    self.over = true;
                    r.error(Level::Info, format_args!("cache lock timeout"));
                }
            }
            () = poll_fn(|cx| down.poll_closed(cx)), if watch => return false,
        }
        true
    }
}

/// Milliseconds since some moment of this process.
fn millis() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}
