//! Log files with variables in their names (`open_log_file_cache`).

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::{fstat, stat};
use parking_lot::Mutex;

use super::file::{open, write_fd};
use super::{Errno, OpenError, RateLimit, WriteError};

/// The parameters of `open_log_file_cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Files kept at most; the one unused for longest goes first.
    pub max: usize,
    /// A file unused for this long is closed; 10 s by default.
    pub inactive: Duration,
    /// Uses within `inactive` from which on a file is kept open; 1 by default.
    pub min_uses: u64,
    /// How long a file is trusted to be the one of that name still; 60 s by default.
    pub valid: Duration,
}

/// Opens log files by name, line by line, and keeps open those in use.
pub struct FileCache {
    limits: Option<CacheLimits>,
    entries: Mutex<Entries>,
    reports: RateLimit,
}

impl FileCache {
    /// `open_log_file_cache off`: every line opens and closes its file.
    pub fn off() -> Self {
        Self::with(None)
    }

    /// Keeps files within `limits`.
    pub fn new(limits: CacheLimits) -> Self {
        Self::with(Some(limits))
    }

    fn with(limits: Option<CacheLimits>) -> Self {
        Self {
            limits,
            entries: Mutex::default(),
            reports: RateLimit::new(60),
        }
    }

    /// The file at `path`, created if need be. It closes when neither the cache nor a caller has it.
    ///
    /// # Errors
    /// Displays as `open() "path" failed (13: Permission denied)`; nginx logs it at `crit`.
    pub fn open_cached(&self, path: &Path) -> Result<Arc<OwnedFd>, OpenError> {
        let fresh = || {
            open(path).map(Arc::new).map_err(|e| OpenError {
                path: path.into(),
                errno: Errno::of(&e),
            })
        };
        let Some(limits) = self.limits else {
            return fresh();
        };
        let now = Instant::now();
        let stale = {
            let mut entries = self.entries.lock();
            entries.expire(now, limits.inactive);
            match entries.touch(path, now) {
                Some((fd, checked)) if now.duration_since(checked) <= limits.valid => {
                    return Ok(fd);
                }
                found => found.map(|(fd, _)| fd),
            }
        };
        // Neither asking for nor opening a file holds up those who have theirs.
        let fd = match stale {
            Some(fd) if is_file_at(&fd, path) => fd,
            _ => match fresh() {
                Ok(fd) => fd,
                Err(error) => {
                    self.entries.lock().remove(path);
                    return Err(error);
                }
            },
        };
        self.entries.lock().keep(path, &fd, now, &limits);
        Ok(fd)
    }

    /// Writes `line`, which ends with its own line feed, to the file at `path`.
    ///
    /// # Errors
    /// Failure to open is always returned, to write once a minute.
    pub fn write(&self, path: &Path, line: &[u8]) -> Result<(), WriteError> {
        let fd = self
            .open_cached(path)
            .map_err(|error| WriteError::open(path, error.errno))?;
        match WriteError::of_write(path, write_fd(&*fd, line), line.len()) {
            Some(error) if self.reports.pass() => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets all files, as after their rotation.
    pub fn clear(&self) {
        *self.entries.lock() = Entries::default();
    }
}

#[derive(Default)]
struct Entries {
    by_path: HashMap<Arc<Path>, Entry>,
    /// Least recently used first.
    by_use: BTreeMap<u64, Arc<Path>>,
    serial: u64,
}

struct Entry {
    /// Absent as long as the file is not used often enough to be kept open.
    fd: Option<Arc<OwnedFd>>,
    uses: u64,
    used: Instant,
    checked: Instant,
    serial: u64,
}

impl Entries {
    /// Counts a use, and returns the open file with the time of its last check.
    fn touch(&mut self, path: &Path, now: Instant) -> Option<(Arc<OwnedFd>, Instant)> {
        let entry = self.by_path.get_mut(path)?;
        entry.uses += 1;
        entry.used = now;
        self.serial += 1;
        if let Some(path) = self.by_use.remove(&entry.serial) {
            self.by_use.insert(self.serial, path);
        }
        entry.serial = self.serial;
        entry.fd.clone().map(|fd| (fd, entry.checked))
    }

    fn keep(&mut self, path: &Path, fd: &Arc<OwnedFd>, now: Instant, limits: &CacheLimits) {
        if !self.by_path.contains_key(path) {
            while self.by_path.len() >= limits.max.max(1) {
                let Some((_, oldest)) = self.by_use.pop_first() else {
                    break;
                };
                self.by_path.remove(&oldest);
            }
            self.serial += 1;
            let path: Arc<Path> = path.into();
            self.by_use.insert(self.serial, path.clone());
            let entry = Entry {
                fd: None,
                uses: 1,
                used: now,
                checked: now,
                serial: self.serial,
            };
            self.by_path.insert(path, entry);
        }
        if let Some(entry) = self.by_path.get_mut(path)
            && entry.uses >= limits.min_uses
        {
            entry.fd = Some(fd.clone());
            entry.checked = now;
        }
    }

    fn remove(&mut self, path: &Path) {
        if let Some(entry) = self.by_path.remove(path) {
            self.by_use.remove(&entry.serial);
        }
    }

    /// Drops the longest unused; a few at a time keep pace with any rate of use.
    fn expire(&mut self, now: Instant, inactive: Duration) {
        for _ in 0..2 {
            let Some((_, path)) = self.by_use.first_key_value() else {
                return;
            };
            let path: PathBuf = path.to_path_buf();
            match self.by_path.get(&*path) {
                Some(entry) if now.saturating_duration_since(entry.used) <= inactive => return,
                _ => self.remove(&path),
            }
        }
    }
}

fn is_file_at(fd: impl AsFd, path: &Path) -> bool {
    match (fstat(fd), stat(path)) {
        (Ok(open), Ok(named)) => (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn cache(max: usize, min_uses: u64, inactive: Duration, valid: Duration) -> FileCache {
        FileCache::new(CacheLimits {
            max,
            inactive,
            min_uses,
            valid,
        })
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn off_follows_every_rename() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a"), dir.path().join("b"));
        let cache = FileCache::off();
        cache.write(&path, b"1\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        cache.write(&path, b"2\n").unwrap();
        assert_eq!((read(&old), read(&path)), ("1\n".into(), "2\n".into()));
    }

    #[test]
    fn kept_files_are_checked_when_no_longer_valid_or_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a"), dir.path().join("b"));
        let trusting = cache(8, 1, LONG, LONG);
        trusting.write(&path, b"1\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        trusting.write(&path, b"2\n").unwrap();
        assert_eq!(read(&old), "1\n2\n");
        trusting.clear();
        trusting.write(&path, b"3\n").unwrap();
        assert_eq!(read(&path), "3\n");

        let wary = cache(8, 1, LONG, Duration::ZERO);
        let first = wary.open_cached(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &wary.open_cached(&path).unwrap()));
        std::fs::rename(&path, &old).unwrap();
        assert!(!Arc::ptr_eq(&first, &wary.open_cached(&path).unwrap()));
    }

    #[test]
    fn keeps_the_most_recent_and_the_often_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let two = cache(2, 1, LONG, LONG);
        let a = two.open_cached(&path("a")).unwrap();
        two.open_cached(&path("b")).unwrap();
        assert!(Arc::ptr_eq(&a, &two.open_cached(&path("a")).unwrap()));
        two.open_cached(&path("c")).unwrap();
        assert!(Arc::ptr_eq(&a, &two.open_cached(&path("a")).unwrap()));
        assert!(!two.entries.lock().by_path.contains_key(&*path("b")));
        assert_eq!(two.entries.lock().by_use.len(), 2);

        let picky = cache(2, 2, LONG, LONG);
        let first = picky.open_cached(&path("a")).unwrap();
        let second = picky.open_cached(&path("a")).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(
            &second,
            &picky.open_cached(&path("a")).unwrap()
        ));

        let forgetful = cache(2, 1, Duration::ZERO, LONG);
        let first = forgetful.open_cached(&path("a")).unwrap();
        while Instant::now() == forgetful.entries.lock().by_path[&*path("a")].used {}
        assert!(!Arc::ptr_eq(
            &first,
            &forgetful.open_cached(&path("a")).unwrap()
        ));
    }

    #[test]
    fn failures_have_nginxs_words() {
        let error = FileCache::off()
            .write(Path::new("/nonexistent/a"), b"x\n")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "open() \"/nonexistent/a\" failed (2: No such file or directory)"
        );
        let full = cache(2, 1, LONG, LONG);
        let error = full.write(Path::new("/dev/full"), b"x\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "write() to \"/dev/full\" failed (28: No space left on device)"
        );
        assert!(full.write(Path::new("/dev/full"), b"x\n").is_ok());
    }
}
