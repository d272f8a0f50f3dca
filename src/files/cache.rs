//! `open_file_cache`: files that stay open, what is known of them, and which are not there.

use super::open::{Failure, Info, Kind, Links};
use foldhash::fast::RandomState;
use lru::LruCache;
use parking_lot::Mutex;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A cache, as one directive makes it; what is in it goes with the configuration.
///
/// Every thread has a table of its own, as every process of nginx has, so that nothing is waited for.
pub struct FileCache {
    /// `max=`: entries of a table.
    max: usize,
    /// `inactive=`, seconds without use after which an entry goes.
    inactive: u64,
    tables: Box<[Table]>,
}

type Table = Mutex<LruCache<Box<[u8]>, Entry, RandomState>>;

/// How a location uses its cache.
#[derive(Clone, Debug)]
pub struct FileRules {
    /// `open_file_cache`.
    pub cache: Arc<FileCache>,
    /// `open_file_cache_valid`, seconds for which an entry is believed.
    pub valid: u64,
    /// `open_file_cache_min_uses`: how often a file is asked for before it stays open.
    pub min_uses: u64,
    /// `open_file_cache_errors`.
    pub errors: bool,
}

impl std::fmt::Debug for FileCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "max={} inactive={}s", self.max, self.inactive)
    }
}

struct Entry {
    known: Result<Info, Failure>,
    /// Kept open: only files, and only after `min_uses`.
    file: Option<Arc<File>>,
    links: Links,
    uses: u64,
    /// When it was looked at, seconds.
    checked: i64,
    /// When it was asked for, seconds.
    used: i64,
}

/// A file; a folder is not open where it was known to be one.
pub type Found = (Option<Arc<File>>, Info);

/// What the table says of a path.
enum Known {
    Fresh(Result<Found, Failure>),
    /// Open, but not looked at for a while.
    Old(Arc<File>, Info),
    Nothing,
}

impl FileCache {
    const TABLES: usize = 32;

    /// An empty cache.
    pub fn new(max: usize, inactive: u64) -> FileCache {
        let table = || Mutex::new(LruCache::unbounded_with_hasher(RandomState::default()));
        FileCache {
            max,
            inactive,
            tables: (0..Self::TABLES).map(|_| table()).collect(),
        }
    }

    fn table(&self) -> Option<&Table> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        self.tables.get(MINE.with(|n| *n) % Self::TABLES)
    }
}

impl FileRules {
    /// Opens a file, or takes it from the cache. `open` and `look` are what is done where the cache does not know.
    pub(crate) fn open(
        &self,
        path: &[u8],
        links: Links,
        now: i64,
        open: impl FnOnce() -> Result<(File, Info), Failure>,
        look: impl FnOnce() -> Result<Info, Failure>,
    ) -> Result<Found, Failure> {
        let Some(table) = self.cache.table() else {
            return open().map(|(file, info)| (Some(Arc::new(file)), info));
        };
        // the system is asked while nobody else waits for the table
        let known = self.known(&mut table.lock(), path, links, now);
        match known {
            Known::Fresh(found) => return found,
            Known::Old(file, before) => {
                if let Ok(info) = look()
                    && info.id == before.id
                    && info.kind == Kind::File
                {
                    if let Some(e) = table.lock().get_mut(path) {
                        e.known = Ok(info);
                        e.checked = now;
                    }
                    return Ok((Some(file), info));
                }
            }
            Known::Nothing => {}
        }
        let opened = open().map(|(file, info)| (Some(Arc::new(file)), info));
        self.store(&mut table.lock(), path, links, now, &opened);
        opened
    }

    fn known(
        &self,
        table: &mut LruCache<Box<[u8]>, Entry, RandomState>,
        path: &[u8],
        links: Links,
        now: i64,
    ) -> Known {
        self.expire(table, now);
        let Some(e) = table.get_mut(path) else {
            return Known::Nothing;
        };
        e.uses += 1;
        e.used = now;
        let fresh = now.saturating_sub(e.checked) < self.valid as i64 && e.links == links;
        match (&e.known, &e.file) {
            (Err(failure), _) if fresh => Known::Fresh(Err(*failure)),
            (Ok(info), None) if fresh && info.is_dir() => Known::Fresh(Ok((None, *info))),
            (Ok(info), Some(file)) if fresh => Known::Fresh(Ok((Some(file.clone()), *info))),
            (Ok(info), Some(file)) if e.links == links => Known::Old(file.clone(), *info),
            _ => Known::Nothing,
        }
    }

    fn store(
        &self,
        table: &mut LruCache<Box<[u8]>, Entry, RandomState>,
        path: &[u8],
        links: Links,
        now: i64,
        opened: &Result<Found, Failure>,
    ) {
        let known = match opened {
            Ok((_, info)) => Ok(*info),
            Err(failure) if self.errors => Err(*failure),
            Err(_) => {
                table.pop(path);
                return;
            }
        };
        let uses = table.peek(path).map_or(1, |e| e.uses);
        let file = match opened {
            Ok((file, info)) if info.kind == Kind::File && uses >= self.min_uses => file.clone(),
            _ => None,
        };
        let entry = Entry {
            known,
            file,
            links,
            uses,
            checked: now,
            used: now,
        };
        match table.get_mut(path) {
            Some(e) => *e = entry,
            None => {
                table.put(path.into(), entry);
            }
        }
        while table.len() > self.cache.max {
            table.pop_lru();
        }
    }

    /// Drops what was not asked for, a few at a time.
    fn expire(&self, table: &mut LruCache<Box<[u8]>, Entry, RandomState>, now: i64) {
        for _ in 0..2 {
            match table.peek_lru() {
                Some((_, e)) if now.saturating_sub(e.used) > self.cache.inactive as i64 => {
                    table.pop_lru();
                }
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::path::Path;

    struct Disk {
        rules: FileRules,
        opened: Cell<usize>,
    }

    impl Disk {
        fn new(max: usize, min_uses: u64, errors: bool) -> Disk {
            Disk {
                rules: FileRules {
                    cache: Arc::new(FileCache::new(max, 100)),
                    valid: 10,
                    min_uses,
                    errors,
                },
                opened: Cell::new(0),
            }
        }

        fn open(&self, path: &Path, now: i64) -> Result<Found, Failure> {
            let bytes = path.as_os_str().as_encoded_bytes();
            let open = || {
                self.opened.set(self.opened.get() + 1);
                let file = File::open(path).map_err(|e| Failure::new("open()", &e))?;
                let info = Info::from(&file.metadata().unwrap());
                Ok((file, info))
            };
            let look = || {
                std::fs::metadata(path)
                    .map(|m| Info::from(&m))
                    .map_err(|e| Failure::new("stat()", &e))
            };
            self.rules.open(bytes, Links::Followed, now, open, look)
        }

        /// How many times it was opened for this.
        fn times(&self, path: &Path, now: i64) -> usize {
            let before = self.opened.get();
            let _ = self.open(path, now);
            self.opened.get() - before
        }
    }

    #[test]
    fn keeps_files_open_while_they_are_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let disk = Disk::new(10, 1, false);
        assert_eq!(
            [
                disk.times(&path, 0),
                disk.times(&path, 9),
                disk.times(&path, 10)
            ],
            [1, 0, 0]
        );
        // the same file with another size: found when it is looked at again
        std::fs::write(&path, "three").unwrap();
        assert_eq!(disk.open(&path, 19).unwrap().1.size, 3);
        assert_eq!(disk.open(&path, 20).unwrap().1.size, 5);
        // another file of that name
        std::fs::write(dir.path().join("b"), "other").unwrap();
        std::fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!([disk.times(&path, 29), disk.times(&path, 30)], [0, 1]);
        // gone
        std::fs::remove_file(&path).unwrap();
        assert!(disk.open(&path, 39).is_ok());
        assert!(disk.open(&path, 40).is_err());
        assert_eq!(disk.times(&path, 40), 1);
    }

    #[test]
    fn uses_errors_and_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let often = Disk::new(10, 3, false);
        let times: Vec<_> = (0..5).map(|now| often.times(&path, now)).collect();
        assert_eq!(times, [1, 1, 1, 0, 0]);
        let none = dir.path().join("none");
        assert_eq!([often.times(&none, 0), often.times(&none, 1)], [1, 1]);
        let errors = Disk::new(10, 1, true);
        assert_eq!([errors.times(&none, 0), errors.times(&none, 9)], [1, 0]);
        std::fs::write(&none, "there").unwrap();
        assert!(errors.open(&none, 9).is_err());
        assert!(errors.open(&none, 10).is_ok());
        assert_eq!(
            [errors.times(dir.path(), 0), errors.times(dir.path(), 9)],
            [1, 0]
        );
        assert_eq!(errors.times(dir.path(), 10), 1);
    }

    #[test]
    fn is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..5).map(|n| dir.path().join(n.to_string())).collect();
        let disk = Disk::new(3, 1, false);
        for path in &paths {
            std::fs::write(path, "x").unwrap();
            assert_eq!(disk.times(path, 0), 1);
        }
        let times: Vec<_> = paths.iter().rev().map(|p| disk.times(p, 1)).collect();
        assert_eq!(times, [0, 0, 0, 1, 1]);
        // without use for a while: two go with each request
        let len = || disk.rules.cache.table().unwrap().lock().len();
        let _ = disk.open(&dir.path().join("0"), 200);
        assert_eq!(len(), 1);
    }
}
