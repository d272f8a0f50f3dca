//! What a load takes from outside: files, patterns of file names, names of hosts.
//!
//! A master reads with its own rights and notes all that it saw ([`record`]); a worker, whose rights are gone, loads the
//! same configuration from those notes ([`replay`]). What reads a file while a configuration is loaded does so by
//! [`read`] (or asks [`given`] first); what is not in the notes is read from the disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// All that one load saw of the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Files by the path that they were asked for with: the contents, or the number of the error.
    pub files: BTreeMap<OsString, Result<Arc<[u8]>, i32>>,
    /// Matches of patterns, or the number of the error.
    pub globs: BTreeMap<String, Result<Vec<PathBuf>, i32>>,
    /// Addresses of hosts (with a port); `None` where there are none.
    pub names: BTreeMap<(String, u16), Option<Vec<SocketAddr>>>,
    /// Whether who looked was root.
    pub root: bool,
}

enum Mode {
    Recording(Outside),
    Replaying(Arc<Outside>),
}

/// A process loads one configuration at a time; the threads that load it share this.
static MODE: Mutex<Option<Mode>> = Mutex::new(None);

/// Notes everything that `load` takes from outside.
pub fn record<T>(load: impl FnOnce() -> T) -> (T, Outside) {
    let over = begin(Mode::Recording(Outside {
        root: is_root(),
        ..Outside::default()
    }));
    let value = load();
    let seen = match MODE.lock().take() {
        Some(Mode::Recording(seen)) => seen,
        _ => Outside::default(),
    };
    drop(over);
    (value, seen)
}

/// Gives `load` what another load has seen.
pub fn replay<T>(seen: Arc<Outside>, load: impl FnOnce() -> T) -> T {
    let _over = begin(Mode::Replaying(seen));
    load()
}

/// Whether the configuration is loaded by root, or was by the master that took the notes: what follows from that (the
/// default port, `user`) must be the same in its worker.
pub fn is_root() -> bool {
    match &*MODE.lock() {
        Some(Mode::Replaying(seen)) => seen.root,
        _ => nix::unistd::geteuid().is_root(),
    }
}

/// Whether the load under way is one whose notes go to another process, so that nothing may be left out of them.
pub fn recording() -> bool {
    matches!(&*MODE.lock(), Some(Mode::Recording(_)))
}

/// Reads a whole file.
///
/// # Errors
/// What the system says, or said when the notes were taken.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    if let Some(Mode::Replaying(seen)) = &*MODE.lock()
        && let Some(noted) = seen.files.get(path.as_os_str())
    {
        return match noted {
            Ok(bytes) => Ok(bytes.to_vec()),
            Err(errno) => Err(io::Error::from_raw_os_error(*errno)),
        };
    }
    let read = std::fs::read(path);
    if let Some(Mode::Recording(seen)) = &mut *MODE.lock() {
        let noted = read.as_deref().map(Arc::from).map_err(number);
        seen.files.insert(path.as_os_str().to_owned(), noted);
    }
    read
}

/// The contents of a file while notes are taken or used; `None` leaves the reading, and its errors, to the caller.
pub fn recorded(path: &Path) -> Option<Vec<u8>> {
    if MODE.lock().is_none() {
        return None;
    }
    read(path).ok()
}

/// Expands a pattern; `disk` does so in earnest.
pub(super) fn glob(
    pattern: &str,
    disk: impl FnOnce() -> io::Result<Vec<PathBuf>>,
) -> io::Result<Vec<PathBuf>> {
    if let Some(Mode::Replaying(seen)) = &*MODE.lock()
        && let Some(noted) = seen.globs.get(pattern)
    {
        return noted.clone().map_err(io::Error::from_raw_os_error);
    }
    let found = disk();
    if let Some(Mode::Recording(seen)) = &mut *MODE.lock() {
        let noted = found.as_ref().map(Vec::clone).map_err(number);
        seen.globs.insert(pattern.to_owned(), noted);
    }
    found
}

/// The addresses of a host; `ask` asks for them in earnest.
///
/// # Errors
/// As `ask`; noted ones read `host not found`.
pub fn resolve(
    host: &str,
    port: u16,
    ask: impl FnOnce() -> io::Result<Vec<SocketAddr>>,
) -> io::Result<Vec<SocketAddr>> {
    if let Some(Mode::Replaying(seen)) = &*MODE.lock()
        && let Some(noted) = seen.names.get(&(host.to_owned(), port))
    {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "host not found");
        return noted.clone().ok_or_else(missing);
    }
    let found = ask();
    if let Some(Mode::Recording(seen)) = &mut *MODE.lock() {
        let noted = found.as_ref().ok().cloned();
        seen.names.insert((host.to_owned(), port), noted);
    }
    found
}

fn begin(mode: Mode) -> Over {
    *MODE.lock() = Some(mode);
    Over
}

/// Ends a mode, be it by a panic.
struct Over;

impl Drop for Over {
    fn drop(&mut self) {
        *MODE.lock() = None;
    }
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(nix::libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_seen_again() {
        let dir = tempfile::tempdir().unwrap();
        let (file, missing) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&file, "text").unwrap();
        let look = || {
            let found = read(&file).unwrap();
            let error = read(&missing).unwrap_err().raw_os_error();
            let name = resolve("h", 1, || Ok(vec![([127, 0, 0, 1], 1).into()])).unwrap();
            let none = resolve("g", 1, || Err(io::Error::other("x"))).is_err();
            (found, error, name, none)
        };
        let (first, seen) = record(look);
        std::fs::write(&file, "other").unwrap();
        std::fs::write(&missing, "is there now").unwrap();
        assert_eq!(replay(Arc::new(seen), look), first);
        assert_eq!(recorded(&file), None);
        assert_eq!(read(&file).unwrap(), b"other");
    }
}
