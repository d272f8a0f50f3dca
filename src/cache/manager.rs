//! What keeps a zone in order besides requests: its start, the loader, the manager, and the end.

use super::file;
use super::index::Saved;
use super::key::Digest;
use super::saved;
use super::store::{self, place};
use super::zone::{Pace, Params, Zone, reason};
use crate::log::{Level, process_log};
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The file by which a process claims a folder.
const LOCK: &str = ".couloir.lock";

/// The file in which the table is saved.
const TABLE: &str = ".couloir.index";

/// The longest that the manager rests.
const REST: Duration = Duration::from_secs(10);

/// Zones that are in use.
static ACTIVE: Mutex<Vec<Weak<Zone>>> = Mutex::new(Vec::new());

/// Saves the tables of all zones and lets go of their folders: the process ends, or another one takes over.
pub fn close_all() {
    let zones = std::mem::take(&mut *ACTIVE.lock());
    for zone in zones.iter().filter_map(Weak::upgrade) {
        zone.close();
    }
}

/// Every zone that is in use.
pub fn active() -> Vec<Arc<Zone>> {
    ACTIVE.lock().iter().filter_map(Weak::upgrade).collect()
}

impl Zone {
    /// Puts the zone to use with these settings: claims its folder, loads its table, starts its manager. Settings alone
    /// are changed where it is in use already.
    pub fn activate(self: &Arc<Zone>, params: &Params) {
        let named_before = self.params().named;
        self.set_params(params);
        let mut active = ACTIVE.lock();
        active.retain(|z| z.strong_count() > 0);
        if active
            .iter()
            .any(|z| std::ptr::eq(z.as_ptr(), Arc::as_ptr(self)))
        {
            drop(active);
            if params.named && !named_before && self.is_serving() {
                self.cold.store(true, Ordering::Relaxed);
                self.load_in_background();
            }
            if let Some(t) = &*self.manager.lock() {
                t.unpark();
            }
            return;
        }
        active.push(Arc::downgrade(self));
        drop(active);
        self.open(true);
        let weak = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name("cache manager".to_owned())
            .spawn(move || manage(&weak));
        match spawned {
            Ok(t) => *self.manager.lock() = Some(t.thread().clone()),
            Err(e) => self.trouble(format_args!("starting the manager failed ({})", reason(&e))),
        }
    }

    /// Claims the folder; false where that is not possible now.
    fn open(self: &Arc<Zone>, tell: bool) -> bool {
        match self.claim() {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if tell {
                    self.trouble(format_args!(
                        "the folder \"{}\" is in use by another process: requests go on without it",
                        self.root.display()
                    ));
                }
                return false;
            }
            Err(e) => {
                if tell {
                    self.trouble(format_args!(
                        "the folder \"{}\" cannot be used ({}): requests go on without it",
                        self.root.display(),
                        reason(&e)
                    ));
                }
                return false;
            }
        }
        if self.load_table() {
            self.cold.store(false, Ordering::Relaxed);
        } else {
            self.load_in_background();
        }
        self.serving.store(true, Ordering::Release);
        true
    }

    fn claim(&self) -> io::Result<()> {
        let mut make = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(make.recursive(true), 0o700);
        make.create(&self.root)?;
        let mut open = std::fs::OpenOptions::new();
        open.create(true).truncate(false).write(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o600);
        let file = open.open(self.root.join(LOCK))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| io::Error::from(e))?;
        *self.lock.lock() = Some(lock);
        Ok(())
    }

    /// Saves the table and lets go of the folder.
    pub fn close(&self) {
        ACTIVE.lock().retain(|z| !std::ptr::eq(z.as_ptr(), self));
        if !self.serving.swap(false, Ordering::AcqRel) {
            return;
        }
        if !self.is_cold()
            && let Err(e) = self.save_table()
        {
            self.trouble(format_args!("saving the table failed ({})", reason(&e)));
        }
        *self.lock.lock() = None;
    }

    fn save_table(&self) -> io::Result<()> {
        let list = self.index.saved();
        let names = self.names.lock();
        let mut table = saved::Writer::new(names.is_enabled(), list.len());
        list.iter().for_each(|object| table.object(object));
        for (digest, key) in names.iter() {
            let tags: Vec<&[u8]> = names.tags(digest).map(|t| &**t).collect();
            table.names((digest, key, &tags.join(&b' ')));
        }
        drop(names);
        let bytes = table.finish();
        let temp = self.root.join(format!("{TABLE}.new"));
        std::fs::write(&temp, bytes)?;
        place(&temp, &self.root.join(TABLE))
    }

    /// Loads the table that the last process saved; false where there is none.
    fn load_table(&self) -> bool {
        let path = self.root.join(TABLE);
        let Ok(bytes) = std::fs::read(&path) else {
            return false;
        };
        // what is loaded is soon no longer true: after a crash the files are counted instead
        if std::fs::remove_file(&path).is_err() {
            return false;
        }
        let params = self.params();
        let Some(mut table) = saved::Table::read(&bytes, params.named) else {
            return false;
        };
        while let Some(object) = table.object() {
            if !self.index.add(object, params.keys) {
                // there is room for fewer than before: the loader drops the rest
                return false;
            }
        }
        if params.named {
            let known = std::iter::from_fn(|| table.names());
            let known = known.filter(|(digest, ..)| self.index.is_known(*digest));
            self.names.lock().fill(known);
        }
        true
    }

    fn load_in_background(self: &Arc<Zone>) {
        let weak = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name("cache loader".to_owned())
            .spawn(move || {
                let Some(root) = weak.upgrade().map(|z| z.root.clone()) else {
                    return;
                };
                let mut loader = Loader {
                    zone: weak,
                    began: SystemTime::now(),
                    round: Instant::now(),
                    files: 0,
                };
                if loader.folder(&root, 0).is_some() {
                    loader.done();
                }
            });
        if let Err(e) = spawned {
            self.trouble(format_args!("starting the loader failed ({})", reason(&e)));
        }
    }

    /// One round of the manager; how long to rest then.
    fn manage(&self) -> Duration {
        let params = self.params();
        let pace = params.manager;
        let mut round = Round::new(pace);
        let now = crate::http::date::time().0;
        while let Some(e) = self.index.evict(Some(now)) {
            self.evicted(&e);
            if round.is_over() {
                return Duration::from_millis(pace.sleep);
            }
        }
        let block = self.block();
        loop {
            let stored = self.index.blocks();
            let max = params.max_size / block;
            let fits = stored < max && self.index.len() < self.watermark.load(Ordering::Relaxed);
            if fits && (params.min_free == 0 || self.free() > params.min_free) {
                break;
            }
            let Some(e) = self.index.evict(None) else {
                break;
            };
            self.evicted(&e);
            // far too much: no time to rest
            let pressed = stored > max.saturating_add(self.slack(params.max_size) / block);
            if round.is_over() && !pressed {
                return Duration::from_millis(pace.sleep);
            }
        }
        let next = self.index.next_expire().map_or(REST, |at| {
            Duration::from_secs(u64::try_from(at - now).unwrap_or(0).max(1))
        });
        next.min(REST)
    }

    /// Bytes free in the folder's file system.
    pub(super) fn free(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.root).map_or(u64::MAX, |fs| {
            fs.blocks_available().saturating_mul(fs.fragment_size())
        })
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        self.close();
        if let Some(t) = &*self.manager.lock() {
            t.unpark();
        }
    }
}

fn manage(zone: &Weak<Zone>) {
    loop {
        let rest = {
            let Some(zone) = zone.upgrade() else { return };
            if zone.is_serving() {
                zone.manage()
            } else if ACTIVE
                .lock()
                .iter()
                .any(|z| std::ptr::eq(z.as_ptr(), Arc::as_ptr(&zone)))
            {
                zone.open(false);
                Duration::from_secs(1)
            } else {
                // closed for good
                return;
            }
        };
        thread::park_timeout(rest);
    }
}

/// Counts what is done in one round.
struct Round {
    pace: Pace,
    begun: Instant,
    files: u64,
}

impl Round {
    fn new(pace: Pace) -> Round {
        Round {
            pace,
            begun: Instant::now(),
            files: 0,
        }
    }

    fn is_over(&mut self) -> bool {
        self.files += 1;
        self.files >= self.pace.files
            || self.begun.elapsed() >= Duration::from_millis(self.pace.threshold)
    }
}

/// Walks a folder and tells the table of every object; `None` ends it early.
struct Loader {
    zone: Weak<Zone>,
    began: SystemTime,
    round: Instant,
    files: u64,
}

impl Loader {
    fn folder(&mut self, path: &Path, depth: usize) -> Option<()> {
        let Ok(entries) = std::fs::read_dir(path) else {
            return Some(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                if depth < 3 && name.len() <= 2 {
                    self.folder(&entry.path(), depth + 1)?;
                }
            } else if kind.is_file() {
                self.file(&entry, &name)?;
            }
        }
        Some(())
    }

    fn file(&mut self, entry: &std::fs::DirEntry, name: &str) -> Option<()> {
        let zone = self.zone.upgrade()?;
        let Ok(info) = entry.metadata() else {
            return Some(());
        };
        if let Some(key) = Digest::from_hex(name) {
            if info.len() < file::FIXED as u64 {
                process_log().write(
                    Level::Crit,
                    None,
                    format_args!("cache file \"{}\" is too small", entry.path().display()),
                );
                let _ = std::fs::remove_file(entry.path());
                return Some(());
            }
            let params = zone.params();
            let saved = Saved {
                key,
                expire: crate::http::date::time().0 + params.inactive,
                blocks: zone.blocks(&info),
                uses: 1,
                stale: false,
            };
            if !zone.index.add(saved, params.keys) {
                zone.make_room();
                zone.index.add(saved, params.keys);
            }
            if params.named
                && let Ok(o) = store::read(&entry.path(), 0)
            {
                zone.names.lock().insert(key, &o.meta.key, &o.meta.tags);
                zone.survives_purges(key, &o.meta);
            }
        } else if is_leftover(name)
            && info
                .modified()
                .is_ok_and(|t| t + Duration::from_secs(1) < self.began)
        {
            // of a process that was killed while it wrote
            let _ = std::fs::remove_file(entry.path());
        }
        self.files += 1;
        let pace = zone.params().loader;
        drop(zone);
        if self.files >= pace.files || self.round.elapsed() >= Duration::from_millis(pace.threshold)
        {
            thread::sleep(Duration::from_millis(pace.sleep));
            (self.files, self.round) = (0, Instant::now());
        }
        Some(())
    }

    fn done(&self) {
        let Some(zone) = self.zone.upgrade() else {
            return;
        };
        zone.cold.store(false, Ordering::Relaxed);
        zone.purges.lock().clear();
        process_log().write(
            Level::Notice,
            None,
            format_args!(
                "http file cache: {} {:.3}M, bsize: {}",
                zone.root.display(),
                zone.size() as f64 / f64::from(1 << 20),
                zone.block()
            ),
        );
    }
}

/// Whether this is the name of a file that was being written: a digest, a dot and ten digits.
fn is_leftover(name: &str) -> bool {
    name.split_once('.').is_some_and(|(digest, n)| {
        Digest::from_hex(digest).is_some() && n.len() == 10 && n.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::file::Meta;
    use crate::cache::store::Fill;
    use crate::files::TempPath;
    use crate::http::h1::response::UpstreamHead;

    fn zone(root: &Path, params: &Params) -> Arc<Zone> {
        let zone = Arc::new(Zone::new("z", root, &[1, 2]));
        zone.activate(params);
        zone
    }

    fn store(zone: &Arc<Zone>, n: usize, len: usize) {
        let key = format!("http://h/{n}").into_bytes();
        let digest = Digest::of(&key);
        let params = zone.params();
        let now = crate::http::date::time().0;
        zone.index
            .enter(digest, now, params.inactive, 1, params.keys, false);
        let meta = Meta {
            tags: format!("t{}", n % 3).into_bytes(),
            key,
            ..Meta::default()
        };
        let temp = TempPath {
            path: zone.root.join("temp"),
            levels: vec![],
        };
        let head = UpstreamHead {
            status: 200,
            ..UpstreamHead::default()
        };
        let mut fill = Fill::new(zone.clone(), digest, meta, head, Arc::new(temp));
        fill.write(&vec![b'x'; len]).unwrap();
        fill.finish().unwrap();
        zone.index.leave(digest, 0, true);
    }

    fn wait(what: &str, f: impl Fn() -> bool) {
        let begun = Instant::now();
        while !f() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_table_survives_an_end_and_a_crash() {
        let d = tempfile::tempdir().unwrap();
        let params = Params {
            named: true,
            use_temp_path: false,
            ..Params::default()
        };
        let first = zone(d.path(), &params);
        wait("an empty folder", || !first.is_cold());
        for n in 0..20 {
            store(&first, n, 100);
        }
        let (blocks, len) = (first.index.blocks(), first.index.len());
        assert_eq!(len, 20);
        drop(first);
        let second = zone(d.path(), &params);
        assert!(!second.is_cold(), "from the saved table");
        assert_eq!((second.index.blocks(), second.index.len()), (blocks, len));
        assert_eq!(second.names.lock().with_tag(b"t0").len(), 7);
        assert_eq!(second.names.lock().with_prefix(b"http://h/1").len(), 11);
        second.close();
        assert!(d.path().join(TABLE).exists());
        std::fs::remove_file(d.path().join(TABLE)).unwrap();
        std::fs::write(
            d.path().join("0123456789abcdef0123456789abcdef.0000000001"),
            "x",
        )
        .unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        std::fs::File::open(d.path().join("0123456789abcdef0123456789abcdef.0000000001"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        let third = zone(d.path(), &params);
        wait("the loader", || !third.is_cold());
        assert_eq!((third.index.blocks(), third.index.len()), (blocks, len));
        assert_eq!(third.names.lock().with_tag(b"t0").len(), 7);
        assert!(
            !d.path()
                .join("0123456789abcdef0123456789abcdef.0000000001")
                .exists()
        );
    }

    #[test]
    fn a_folder_serves_one_at_a_time() {
        let d = tempfile::tempdir().unwrap();
        let first = zone(d.path(), &Params::default());
        let second = zone(d.path(), &Params::default());
        assert!(first.is_serving() && !second.is_serving());
        first.close();
        wait("the second takes over", || second.is_serving());
    }

    #[test]
    fn the_manager_keeps_the_size() {
        let d = tempfile::tempdir().unwrap();
        let max = 256 * 4096;
        let params = Params {
            max_size: max,
            use_temp_path: false,
            ..Params::default()
        };
        let z = zone(d.path(), &params);
        for n in 0..400 {
            store(&z, n, 4000);
            if n % 20 == 0 {
                assert!(z.size() <= max + max / 100, "{}", z.size());
            }
        }
        assert!(z.counts.evicted.load(Ordering::Relaxed) > 200);
    }

    #[test]
    fn leftovers_are_told_by_their_names() {
        let digest = "0123456789abcdef0123456789abcdef";
        assert!(is_leftover(&format!("{digest}.0000000012")));
        for name in ["a.0000000012", digest, &format!("{digest}.12")] {
            assert!(!is_leftover(name), "{name}");
        }
    }
}
