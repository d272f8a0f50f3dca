//! Log files: one descriptor per path, shared by all who name it, reopened on demand.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use arc_swap::ArcSwap;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Uid, fchown};
use parking_lot::Mutex;

use super::{AccessWriter, Errno, ErrorLog, FileCache, Level, RateLimit, Record, monotonic_second};

/// A file open for appending. Its descriptor can be exchanged while others write.
pub struct LogFile {
    path: Arc<Path>,
    fd: ArcSwap<OwnedFd>,
    /// The second in which the disk was found full; 0 if it never was.
    disk_full: AtomicI64,
    reports: RateLimit,
}

impl LogFile {
    pub(super) fn new(path: &Path, fd: OwnedFd) -> Self {
        Self {
            path: path.into(),
            fd: ArcSwap::from_pointee(fd),
            disk_full: AtomicI64::new(0),
            reports: RateLimit::new(REPORT_PERIOD),
        }
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The present descriptor, for handing it to another process.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.fd.load_full()
    }

    /// Writes on to `fd` from now on; writes under way finish on the old descriptor.
    pub fn replace(&self, fd: OwnedFd) {
        self.fd.store(Arc::new(fd));
        self.disk_full.store(0, Ordering::Relaxed);
    }

    /// Appends `bytes` by one `write(2)`, without a lock.
    ///
    /// A full disk is not asked again within the same second; what is written meanwhile is lost.
    ///
    /// # Errors
    /// A failure worth reporting, which is at most one per minute and file; the others pass as success.
    pub fn append(&self, bytes: &[u8]) -> Result<(), WriteError> {
        let failure = match self.write(bytes) {
            None => return Ok(()),
            Some(Ok(written)) if written == bytes.len() => return Ok(()),
            Some(Ok(written)) => Failure::Incomplete {
                written,
                len: bytes.len(),
            },
            Some(Err(errno)) => Failure::Failed(errno),
        };
        if !self.reports.pass() {
            return Ok(());
        }
        Err(WriteError {
            path: self.path.clone(),
            failure,
        })
    }

    /// Appends a line of an error log, whose own failures nobody could be told of.
    pub(super) fn append_silently(&self, bytes: &[u8]) {
        let _ = self.write(bytes);
    }

    fn write(&self, bytes: &[u8]) -> Option<Result<usize, Errno>> {
        let full = self.disk_full.load(Ordering::Relaxed);
        if full != 0 && full == monotonic_second() {
            return None;
        }
        let outcome = write_fd(&**self.fd.load(), bytes);
        if outcome == Err(Errno(libc::ENOSPC)) {
            self.disk_full.store(monotonic_second(), Ordering::Relaxed);
        }
        Some(outcome)
    }

    /// Opens the path anew, gives the file to `owner`, and goes over to it.
    fn reopen(&self, owner: Option<Uid>) -> Result<(), (String, Errno)> {
        let shown = self.path.display();
        let fd = open(&self.path)
            .map_err(|error| (format!("open() \"{shown}\" failed"), Errno::of(&error)))?;
        if let Some(owner) = owner {
            let stat =
                fstat(&fd).map_err(|errno| (format!("stat() \"{shown}\" failed"), errno.into()))?;
            if stat.st_uid != owner.as_raw() {
                fchown(&fd, Some(owner), None).map_err(|errno| {
                    (format!("chown(\"{shown}\", {owner}) failed"), errno.into())
                })?;
            }
            let mode = Mode::from_bits_truncate(stat.st_mode);
            let needed = Mode::S_IRUSR | Mode::S_IWUSR;
            if !mode.contains(needed) {
                fchmod(&fd, mode | needed)
                    .map_err(|errno| (format!("chmod() \"{shown}\" failed"), errno.into()))?;
            }
        }
        self.replace(fd);
        Ok(())
    }
}

impl fmt::Debug for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFile").field(&self.path).finish()
    }
}

/// nginx reports a failing log file once a minute.
const REPORT_PERIOD: i64 = 60;

/// The open log files of a process, by path.
///
/// It owns none of them: a file is closed when the last log that names it is dropped, so those that a new
/// configuration no longer names go with the old one.
#[derive(Default)]
pub struct LogFiles {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    files: HashMap<PathBuf, Weak<LogFile>>,
    /// While a configuration is loaded: the files that it names.
    named: Option<Vec<Arc<LogFile>>>,
    writers: Vec<Weak<AccessWriter>>,
    caches: Vec<Weak<FileCache>>,
}

impl LogFiles {
    /// The files of this process.
    pub fn global() -> &'static Self {
        static GLOBAL: LazyLock<LogFiles> = LazyLock::new(LogFiles::default);
        &GLOBAL
    }

    /// The file at `path`, opened for appending and created with mode 0644 if need be.
    ///
    /// # Errors
    /// Displays as `open() "path" failed (2: No such file or directory)`.
    pub fn open(&self, path: &Path) -> Result<Arc<LogFile>, OpenError> {
        let mut known = self.known.lock();
        if let Some(file) = known.files.get(path).and_then(Weak::upgrade) {
            known.named.iter_mut().for_each(|n| n.push(file.clone()));
            return Ok(file);
        }
        let fd = open(path).map_err(|error| OpenError {
            path: path.into(),
            errno: Errno::of(&error),
        })?;
        let file = known.insert(path, fd);
        known.named.iter_mut().for_each(|n| n.push(file.clone()));
        Ok(file)
    }

    /// Loads a configuration; also returns every file that it names, once each, those that it then makes no use of
    /// included.
    pub fn named_by<T>(&self, load: impl FnOnce() -> T) -> (T, Vec<Arc<LogFile>>) {
        self.known.lock().named = Some(Vec::new());
        let value = load();
        let named = self.known.lock().named.take().unwrap_or_default();
        let mut seen = HashSet::new();
        let named = named
            .into_iter()
            .filter(|file| seen.insert(Arc::as_ptr(file)));
        (value, named.collect())
    }

    /// Takes over a descriptor that another process opened for `path`.
    pub fn adopt(&self, path: &Path, fd: OwnedFd) -> Arc<LogFile> {
        let mut known = self.known.lock();
        if let Some(file) = known.files.get(path).and_then(Weak::upgrade) {
            file.replace(fd);
            return file;
        }
        known.insert(path, fd)
    }

    /// All files that are in use.
    pub fn files(&self) -> Vec<Arc<LogFile>> {
        self.known
            .lock()
            .files
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Flushes buffers, then opens every path anew (USR1); `owner` is given those that belong to another.
    ///
    /// A file that cannot be reopened keeps its old descriptor and is reported to `log`.
    pub fn reopen_all(&self, owner: Option<Uid>, log: &ErrorLog) {
        self.reopen(&self.files(), owner, log);
    }

    /// As [`Self::reopen_all`], for these files alone.
    pub fn reopen(&self, files: &[Arc<LogFile>], owner: Option<Uid>, log: &ErrorLog) {
        self.flush_all(log);
        for file in files {
            if let Err((message, errno)) = file.reopen(owner) {
                log.record(&Record {
                    errno: Some(errno),
                    ..Record::new(Level::Emerg, format_args!("{message}"))
                });
            }
        }
        self.clear_caches();
    }

    /// As [`Self::reopen_all`], with descriptors that another process opened anew.
    pub fn exchange_all(
        &self,
        files: impl IntoIterator<Item = (PathBuf, OwnedFd)>,
        log: &ErrorLog,
    ) {
        self.flush_all(log);
        for (path, fd) in files {
            let known = self.known.lock().files.get(&path).and_then(Weak::upgrade);
            if let Some(file) = known {
                file.replace(fd);
            }
        }
        self.clear_caches();
    }

    fn clear_caches(&self) {
        let caches: Vec<_> = self
            .known
            .lock()
            .caches
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for cache in caches {
            cache.clear();
        }
    }

    /// Writes out every buffer; failures go to `log`.
    pub fn flush_all(&self, log: &ErrorLog) {
        let writers: Vec<_> = self
            .known
            .lock()
            .writers
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for writer in writers {
            if let Err(error) = writer.flush() {
                log.write(Level::Alert, None, format_args!("{error}"));
            }
        }
    }

    pub(super) fn watch_writer(&self, writer: &Arc<AccessWriter>) {
        let writers = &mut self.known.lock().writers;
        writers.retain(|writer| writer.strong_count() > 0);
        writers.push(Arc::downgrade(writer));
    }

    /// Registers a cache of files with variables in their names, so that it is emptied by [`Self::reopen_all`].
    pub fn watch_cache(&self, cache: &Arc<FileCache>) {
        let caches = &mut self.known.lock().caches;
        caches.retain(|cache| cache.strong_count() > 0);
        caches.push(Arc::downgrade(cache));
    }
}

impl Known {
    fn insert(&mut self, path: &Path, fd: OwnedFd) -> Arc<LogFile> {
        self.files.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(LogFile::new(path, fd));
        self.files.insert(path.to_owned(), Arc::downgrade(&file));
        file
    }
}

/// Opens for appending as nginx does.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map(OwnedFd::from)
}

/// One `write(2)`, begun again if a signal came first.
pub(super) fn write_fd(fd: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match nix::unistd::write(fd.as_fd(), bytes) {
            Err(nix::errno::Errno::EINTR) => continue,
            outcome => return outcome.map_err(Errno::from),
        }
    }
}

/// A log file could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// The path asked for.
    pub path: PathBuf,
    /// Why.
    pub errno: Errno,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open() \"{}\" failed{}", self.path.display(), self.errno)
    }
}

impl std::error::Error for OpenError {}

/// A line was lost, or a part of it; for a log at `alert`.
#[derive(Debug)]
pub struct WriteError {
    path: Arc<Path>,
    failure: Failure,
}

#[derive(Debug)]
enum Failure {
    Open(Errno),
    Failed(Errno),
    Incomplete { written: usize, len: usize },
}

impl WriteError {
    pub(super) fn open(path: &Path, errno: Errno) -> Self {
        Self {
            path: path.into(),
            failure: Failure::Open(errno),
        }
    }

    pub(super) fn of_write(path: &Path, outcome: Result<usize, Errno>, len: usize) -> Option<Self> {
        let failure = match outcome {
            Ok(written) if written == len => return None,
            Ok(written) => Failure::Incomplete { written, len },
            Err(errno) => Failure::Failed(errno),
        };
        Some(Self {
            path: path.into(),
            failure,
        })
    }

    /// The level that nginx reports it at.
    pub fn level(&self) -> Level {
        match self.failure {
            Failure::Open(_) => Level::Crit,
            Failure::Failed(_) | Failure::Incomplete { .. } => Level::Alert,
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.failure {
            Failure::Open(errno) => write!(f, "open() \"{path}\" failed{errno}"),
            Failure::Failed(errno) => write!(f, "write() to \"{path}\" failed{errno}"),
            Failure::Incomplete { written, len } => {
                write!(
                    f,
                    "write() to \"{path}\" was incomplete: {written} of {len}"
                )
            }
        }
    }
}

impl std::error::Error for WriteError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_descriptor_per_path_and_none_when_unused() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::default();
        let path = dir.path().join("a.log");
        let first = files.open(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &files.open(&path).unwrap()));
        drop(first);
        assert!(files.files().is_empty());
    }

    #[test]
    fn reopens_after_rotation_and_keeps_what_cannot_be_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::default();
        let report_path = dir.path().join("error.log");
        let log = ErrorLog::new([super::super::Sink::file(
            files.open(&report_path).unwrap(),
            super::super::Threshold::new(Level::Error),
        )]);
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        let (good, bad) = (dir.path().join("good.log"), sub.join("bad.log"));
        let (good_file, bad_file) = (files.open(&good).unwrap(), files.open(&bad).unwrap());
        good_file.append(b"one\n").unwrap();
        std::fs::rename(&good, dir.path().join("good.1")).unwrap();
        std::fs::rename(&sub, dir.path().join("gone")).unwrap();

        super::super::use_stderr(false);
        files.reopen_all(Some(Uid::effective()), &log);
        good_file.append(b"two\n").unwrap();
        bad_file.append(b"kept\n").unwrap();

        assert_eq!(std::fs::read(dir.path().join("good.1")).unwrap(), b"one\n");
        assert_eq!(std::fs::read(&good).unwrap(), b"two\n");
        assert_eq!(
            std::fs::read(dir.path().join("gone/bad.log")).unwrap(),
            b"kept\n"
        );
        let report = std::fs::read_to_string(&report_path).unwrap();
        assert_eq!(report.lines().count(), 1);
        let expected = format!(
            "open() \"{}\" failed (2: No such file or directory)\n",
            bad.display()
        );
        assert!(
            report.contains(" [emerg] ") && report.ends_with(&expected),
            "{report}"
        );
    }

    #[test]
    fn reopening_gives_back_the_owners_permissions() {
        use std::os::unix::fs::PermissionsExt;
        if !Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let files = LogFiles::default();
        let _file = files.open(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o040)).unwrap();
        files.reopen_all(Some(Uid::from_raw(12345)), &ErrorLog::stderr(Level::Error));
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), 12345);
        assert_eq!(meta.permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn full_disk_is_reported_once_and_costs_nothing_else() {
        let files = LogFiles::default();
        let file = files.open(Path::new("/dev/full")).unwrap();
        let reports: Vec<_> = (0..1000)
            .filter_map(|_| file.append(b"line\n").err())
            .collect();
        assert_eq!(reports.len(), 1);
        assert_eq!(
            reports[0].to_string(),
            "write() to \"/dev/full\" failed (28: No space left on device)"
        );
        assert_eq!(reports[0].level(), Level::Alert);
        // A new descriptor is tried at once.
        let (here, there) = std::os::unix::net::UnixDatagram::pair().unwrap();
        file.replace(here.into());
        file.append(b"again\n").unwrap();
        let mut buf = [0; 16];
        assert_eq!(there.recv(&mut buf).unwrap(), 6);
    }
}
