//! What the DAV methods do with files and folders. No request is known here, so that it may run on any thread.

use crate::log::{Errno, Level};
use nix::libc::{EACCES, EEXIST, EISDIR, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM, EXDEV};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What there is to log.
#[derive(Default)]
pub struct Journal(Vec<(Level, String)>);

impl Journal {
    fn note(&mut self, level: Level, text: String) {
        self.0.push((level, text));
    }

    /// Notes a call that failed, and gives the status for it; `missing` is that for a path that is not there.
    pub fn failed(&mut self, call: &str, path: &[u8], e: &io::Error, missing: u16) -> u16 {
        let (level, status) = match e.raw_os_error() {
            Some(ENOENT | ENOTDIR | ENAMETOOLONG) => (Level::Error, missing),
            Some(EACCES | EPERM) => (Level::Error, 403),
            Some(EEXIST) => (Level::Error, 405),
            Some(ENOSPC) => (Level::Crit, 507),
            _ => (Level::Crit, 500),
        };
        self.note(level, failure(call, path, e));
        status
    }

    fn critical(&mut self, call: &str, path: &[u8], e: &io::Error) {
        self.note(Level::Crit, failure(call, path, e));
    }

    /// The lines, in order.
    pub fn into_lines(self) -> Vec<(Level, String)> {
        self.0
    }
}

fn failure(call: &str, path: &[u8], e: &io::Error) -> String {
    format!(
        "{call} \"{}\" failed{}",
        String::from_utf8_lossy(path),
        Errno::of(e)
    )
}

/// How a file takes another name.
pub struct Rename {
    /// Its permission bits; 0 leaves them.
    pub access: u32,
    /// Those of files in the folders that are made for it.
    pub folder_access: u32,
    /// Its time, seconds since the epoch.
    pub mtime: Option<i64>,
    /// Whether missing folders are made.
    pub create_path: bool,
    /// Whether the source is deleted if this fails.
    pub delete_source: bool,
}

/// A path of bytes.
pub fn path_of(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// The bytes of a path.
pub fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Looks at a file, not through a link.
pub fn lstat(path: &[u8]) -> io::Result<Metadata> {
    fs::symlink_metadata(path_of(path))
}

/// Makes a folder.
pub fn mkdir(path: &[u8], mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path_of(path))
}

/// Permissions of a folder: what may be read may be searched.
pub fn folder_mode(access: u32) -> u32 {
    access | (access & 0o444) >> 2
}

/// Gives a complete upload its name: 201, or 204 where it replaces a file.
pub fn put(temp: &[u8], path: &[u8], how: &Rename, journal: &mut Journal) -> Result<u16, u16> {
    let status = match fs::metadata(path_of(path)) {
        Ok(info) if info.is_dir() => {
            let errno = Errno(EISDIR);
            journal.note(
                Level::Error,
                format!(
                    "\"{}\" could not be created{errno}",
                    String::from_utf8_lossy(path)
                ),
            );
            if let Err(e) = fs::remove_file(path_of(temp)) {
                journal.critical("unlink()", temp, &e);
            }
            return Err(409);
        }
        Ok(_) => 204,
        Err(_) => 201,
    };
    rename(temp, path, how, journal).map(|()| status)
}

/// Moves a file; folders that are missing are made.
pub fn move_file(from: &[u8], to: &[u8], access: u32, journal: &mut Journal) -> Result<(), u16> {
    let how = Rename {
        access: 0,
        folder_access: access,
        mtime: None,
        create_path: true,
        delete_source: false,
    };
    rename(from, to, &how, journal)
}

fn rename(from: &[u8], to: &[u8], how: &Rename, journal: &mut Journal) -> Result<(), u16> {
    let failed = match try_rename(from, to, how, journal) {
        Ok(()) => return Ok(()),
        Err(e) => e,
    };
    if how.delete_source
        && let Err(e) = fs::remove_file(path_of(from))
    {
        journal.critical("unlink()", from, &e);
    }
    match failed {
        Some(e) => {
            let (from, to) = (String::from_utf8_lossy(from), String::from_utf8_lossy(to));
            journal.note(
                Level::Crit,
                format!("rename() \"{from}\" to \"{to}\" failed{}", Errno::of(&e)),
            );
            Err(if e.raw_os_error() == Some(ENOSPC) {
                507
            } else {
                500
            })
        }
        None => Err(500),
    }
}

/// The error is that of `rename()`, or `None` where what failed has been noted.
fn try_rename(
    from: &[u8],
    to: &[u8],
    how: &Rename,
    journal: &mut Journal,
) -> Result<(), Option<io::Error>> {
    let (source, target) = (path_of(from), path_of(to));
    if how.access != 0
        && let Err(e) = fs::set_permissions(source, Permissions::from_mode(how.access))
    {
        journal.critical("chmod()", from, &e);
        return Err(None);
    }
    if let Some(mtime) = how.mtime
        && let Err(e) = set_time(from, mtime)
    {
        journal.critical("utimes()", from, &e);
        return Err(None);
    }
    let mut error = match fs::rename(source, target) {
        Ok(()) => return Ok(()),
        Err(e) => e,
    };
    if error.raw_os_error() == Some(ENOENT) && how.create_path {
        if let Err(e) = create_full_path(to, folder_mode(how.folder_access)) {
            journal.critical("mkdir()", to, &e);
            return Err(None);
        }
        error = match fs::rename(source, target) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
    }
    if error.raw_os_error() != Some(EXDEV) {
        return Err(Some(error));
    }
    // across file systems: a copy beside the target takes its name at once
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let suffix = format!(".{:010}", NEXT.fetch_add(1, Ordering::Relaxed));
    let beside = [to, suffix.as_bytes()].concat();
    if copy_file(from, &beside, None, how.access, how.mtime, journal).is_err() {
        let _ = fs::remove_file(path_of(&beside));
        return Err(None);
    }
    if let Err(e) = fs::rename(path_of(&beside), target) {
        journal.note(
            Level::Crit,
            format!(
                "rename() \"{}\" to \"{}\" failed{}",
                String::from_utf8_lossy(&beside),
                target.display(),
                Errno::of(&e)
            ),
        );
        if let Err(e) = fs::remove_file(path_of(&beside)) {
            journal.critical("unlink()", &beside, &e);
        }
        return Err(None);
    }
    fs::remove_file(source).map_err(|e| {
        journal.critical("unlink()", from, &e);
        None
    })
}

/// Makes the folders above `path`.
fn create_full_path(path: &[u8], mode: u32) -> io::Result<()> {
    let mut last = Ok(());
    for (at, _) in path.iter().enumerate().skip(1).filter(|(_, c)| **c == b'/') {
        last = match mkdir(path.get(..at).unwrap_or_default(), mode) {
            Err(e) => match e.raw_os_error() {
                Some(EEXIST) => Ok(()),
                // a folder that may not be written may still have the next one in it
                Some(EACCES) => Err(e),
                _ => return Err(e),
            },
            made => made,
        };
    }
    last
}

/// Sets a file's time; its time of access becomes the present.
fn set_time(path: &[u8], mtime: i64) -> io::Result<()> {
    let times = (TimeSpec::UTIME_NOW, TimeSpec::new(mtime, 0));
    utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &times.0,
        &times.1,
        UtimensatFlags::FollowSymlink,
    )?;
    Ok(())
}

/// Copies a file with its permissions and time, or with those that are given.
pub fn copy_file(
    from: &[u8],
    to: &[u8],
    info: Option<&Metadata>,
    access: u32,
    mtime: Option<i64>,
    journal: &mut Journal,
) -> Result<(), ()> {
    let mut note =
        |level, call: &str, path: &[u8], e: io::Error| journal.note(level, failure(call, path, &e));
    // a FIFO must not hold up the thread
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path_of(from));
    let source = open.map_err(|e| note(Level::Crit, "open()", from, e))?;
    let found = match info.filter(|i| i.is_file()) {
        Some(i) => i.clone(),
        // a link is copied as what it leads to
        None => source
            .metadata()
            .map_err(|e| note(Level::Alert, "fstat()", from, e))?,
    };
    let access = if access != 0 {
        access
    } else {
        found.mode() & 0o777
    };
    let create = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(access)
        .open(path_of(to));
    let mut target: File = create.map_err(|e| note(Level::Crit, "open()", to, e))?;
    let size = found.len();
    let copied = io::copy(&mut (&source).take(size), &mut target)
        .map_err(|e| note(Level::Alert, "write()", to, e))?;
    if copied != size {
        let name = String::from_utf8_lossy(from);
        journal.note(
            Level::Alert,
            format!("read() has read only {copied} of {size} from {name}"),
        );
        return Err(());
    }
    set_time(to, mtime.unwrap_or(found.mtime()))
        .map_err(|e| journal.note(Level::Alert, failure("utimes()", to, &e)))
}

/// Deletes a file, or a folder with all that is in it.
pub fn delete(path: &[u8], folder: bool, journal: &mut Journal) -> Result<(), u16> {
    if !folder {
        return fs::remove_file(path_of(path))
            .map_err(|e| journal.failed("unlink()", path, &e, 404));
    }
    empty_folder(path, journal)?;
    fs::remove_dir(path_of(path)).map_err(|e| journal.failed("rmdir()", path, &e, 404))
}

/// Deletes what is in a folder; what cannot be deleted is noted and left.
fn empty_folder(path: &[u8], journal: &mut Journal) -> Result<(), u16> {
    for name in names(path, journal)? {
        let entry = [path, b"/", &name].concat();
        // a link is deleted, never what it leads to
        match lstat(&entry) {
            Ok(info) if info.is_dir() => {
                let _ = empty_folder(&entry, journal);
                if let Err(e) = fs::remove_dir(path_of(&entry)) {
                    journal.failed("rmdir()", &entry, &e, 0);
                }
            }
            Ok(_) => {
                if let Err(e) = fs::remove_file(path_of(&entry)) {
                    journal.failed("unlink()", &entry, &e, 0);
                }
            }
            Err(e) => journal.critical("lstat()", &entry, &e),
        }
    }
    Ok(())
}

fn names(path: &[u8], journal: &mut Journal) -> Result<Vec<Vec<u8>>, u16> {
    let list = fs::read_dir(path_of(path)).and_then(|entries| {
        entries
            .map(|e| e.map(|e| std::os::unix::ffi::OsStringExt::into_vec(e.file_name())))
            .collect()
    });
    list.map_err(|e| {
        journal.critical("opendir()", path, &e);
        500
    })
}

/// Copies a folder with all that is in it to a name that is free, or moves it there.
pub fn copy_folder(
    from: &[u8],
    to: &[u8],
    info: &Metadata,
    moves: bool,
    journal: &mut Journal,
) -> Result<(), u16> {
    if moves && fs::rename(path_of(from), path_of(to)).is_ok() {
        return Ok(());
    }
    mkdir(to, info.mode() & 0o777).map_err(|e| journal.failed("mkdir()", to, &e, 404))?;
    copy_entries(from, to, 0, journal)?;
    if moves {
        delete(from, true, journal)?;
    }
    Ok(())
}

/// Links to folders that go round in a circle end here.
const MAX_DEPTH: usize = 256;

fn copy_entries(from: &[u8], to: &[u8], depth: usize, journal: &mut Journal) -> Result<(), u16> {
    if depth > MAX_DEPTH {
        journal.note(
            Level::Crit,
            format!(
                "\"{}\" is too deep a folder to be copied",
                String::from_utf8_lossy(from)
            ),
        );
        return Err(500);
    }
    for name in names(from, journal)? {
        let (source, target) = ([from, b"/", &name].concat(), [to, b"/", &name].concat());
        let info = match fs::metadata(path_of(&source)) {
            Ok(info) => info,
            Err(e) => {
                journal.critical("stat()", &source, &e);
                continue;
            }
        };
        if info.is_file() {
            let _ = copy_file(&source, &target, Some(&info), 0, None, journal);
        } else if info.is_dir() {
            if let Err(e) = mkdir(&target, folder_mode(info.mode() & 0o777)) {
                journal.failed("mkdir()", &target, &e, 0);
            }
            copy_entries(&source, &target, depth + 1, journal)?;
            if let Err(e) = set_time(&target, info.mtime()) {
                journal.note(Level::Alert, failure("utimes()", &target, &e));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn texts(journal: &Journal) -> Vec<&str> {
        journal.0.iter().map(|(_, t)| t.as_str()).collect()
    }

    fn plain(create_path: bool) -> Rename {
        Rename {
            access: 0o640,
            folder_access: 0o640,
            mtime: Some(1_000_000_000),
            create_path,
            delete_source: true,
        }
    }

    #[test]
    fn puts_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut j = Journal::default();
        for (status, data) in [(201, "one"), (204, "two")] {
            fs::write(at("temp"), data).unwrap();
            assert_eq!(
                put(
                    bytes_of(&at("temp")),
                    bytes_of(&at("a/b/file")),
                    &plain(true),
                    &mut j
                ),
                Ok(status)
            );
            assert_eq!(fs::read_to_string(at("a/b/file")).unwrap(), data);
        }
        let info = fs::metadata(at("a/b/file")).unwrap();
        assert_eq!((info.mode() & 0o777, info.mtime()), (0o640, 1_000_000_000));
        assert!(!at("temp").exists() && texts(&j).is_empty());

        fs::write(at("temp"), "x").unwrap();
        assert_eq!(
            put(
                bytes_of(&at("temp")),
                bytes_of(&at("none/file")),
                &plain(false),
                &mut j
            ),
            Err(500)
        );
        assert!(
            texts(&j)[0].starts_with("rename() \"")
                && texts(&j)[0].ends_with("failed (2: No such file or directory)")
        );
        assert!(!at("temp").exists());
        fs::write(at("temp"), "x").unwrap();
        assert_eq!(
            put(
                bytes_of(&at("temp")),
                bytes_of(&at("a")),
                &plain(true),
                &mut j
            ),
            Err(409)
        );
        assert!(!at("temp").exists());
    }

    #[test]
    fn copies_moves_and_deletes_folders() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut j = Journal::default();
        fs::create_dir_all(at("from/sub")).unwrap();
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("outside/keep"), "k").unwrap();
        fs::write(at("from/sub/file"), "f").unwrap();
        symlink(at("outside"), at("from/link")).unwrap();
        let info = lstat(bytes_of(&at("from"))).unwrap();
        copy_folder(
            bytes_of(&at("from")),
            bytes_of(&at("copy")),
            &info,
            false,
            &mut j,
        )
        .unwrap();
        assert_eq!(fs::read_to_string(at("copy/sub/file")).unwrap(), "f");
        assert_eq!(fs::read_to_string(at("copy/link/keep")).unwrap(), "k");
        copy_folder(
            bytes_of(&at("copy")),
            bytes_of(&at("moved")),
            &info,
            true,
            &mut j,
        )
        .unwrap();
        assert!(!at("copy").exists() && at("moved/sub/file").exists());
        delete(bytes_of(&at("from")), true, &mut j).unwrap();
        assert!(!at("from").exists() && at("outside/keep").exists());
        assert_eq!(texts(&j), [""; 0]);
        assert_eq!(delete(bytes_of(&at("from")), false, &mut j), Err(404));
        assert_eq!(
            mkdir(bytes_of(&at("moved")), 0o700).map_err(|e| j.failed("mkdir()", b"x", &e, 409)),
            Err(405)
        );
    }

    #[test]
    fn copying_in_a_circle_ends() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("from")).unwrap();
        symlink(".", at("from/self")).unwrap();
        let info = lstat(bytes_of(&at("from"))).unwrap();
        let mut j = Journal::default();
        let _ = copy_folder(
            bytes_of(&at("from")),
            bytes_of(&at("to")),
            &info,
            false,
            &mut j,
        );
        assert!(!texts(&j).is_empty());
    }

    #[test]
    fn folders_may_be_searched_by_who_may_read() {
        assert_eq!(folder_mode(0o600), 0o700);
        assert_eq!(folder_mode(0o644), 0o755);
    }
}
