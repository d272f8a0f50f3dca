//! Opening files and reading their metadata, with the rules of `disable_symlinks`.

use crate::log::Errno;
use nix::errno::Errno as Os;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A device, socket or FIFO.
    Other,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// When it was changed, seconds since the epoch.
    pub mtime: i64,
    /// Permission bits.
    pub mode: u32,
    /// The number that the file system knows it by.
    pub id: u64,
}

impl Info {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}

impl From<&Metadata> for Info {
    fn from(m: &Metadata) -> Info {
        let t = m.file_type();
        let kind = match () {
            () if t.is_file() => Kind::File,
            () if t.is_dir() => Kind::Directory,
            () => Kind::Other,
        };
        Info {
            kind,
            size: m.len(),
            mtime: m.mtime(),
            mode: m.mode() & 0o777,
            id: m.ino(),
        }
    }
}

/// A system call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `open()`, `stat()`, …
    pub call: &'static str,
    /// Why.
    pub errno: Errno,
}

impl Failure {
    pub(crate) fn new(call: &'static str, error: &io::Error) -> Failure {
        // a path with a NUL in it names nothing
        let nul = error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none();
        Failure {
            call,
            errno: if nul {
                Os::ENOENT.into()
            } else {
                Errno::of(error)
            },
        }
    }

    fn os(call: &'static str, errno: Os) -> Failure {
        Failure {
            call,
            errno: errno.into(),
        }
    }

    fn is(&self, errno: Os) -> bool {
        self.errno.0 == errno as i32
    }

    /// Whether nothing has that name.
    pub fn is_not_found(&self) -> bool {
        self.is(Os::ENOENT)
    }

    /// Whether nothing has, or could have, that name: the causes that are answered 404.
    pub fn is_missing(&self) -> bool {
        self.is_not_found() || self.is(Os::ENOTDIR) || self.is(Os::ENAMETOOLONG)
    }

    /// Whether permissions forbid it.
    pub fn is_denied(&self) -> bool {
        self.is(Os::EACCES)
    }

    /// Whether `disable_symlinks` forbids it (or links go round in a circle).
    pub fn is_link(&self) -> bool {
        self.is(Os::ELOOP) || self.is(Os::EMLINK)
    }
}

/// Opens a file without `open_file_cache`.
///
/// # Errors
/// The system call that failed.
pub fn open_now(path: &[u8], links: Links) -> Result<(File, Info), Failure> {
    let file = match links {
        Links::Followed => OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(Path::new(OsStr::from_bytes(path)))
            .map_err(|e| Failure::new("open()", &e))?,
        Links::Checked { owner, from } => walk(path, owner, from)?.into(),
    };
    let info = file.metadata().map_err(|e| Failure::new("fstat()", &e))?;
    Ok((file, Info::from(&info)))
}

/// Reads the metadata of a file without `open_file_cache`.
///
/// # Errors
/// The system call that failed.
pub fn stat_now(path: &[u8], links: Links) -> Result<Info, Failure> {
    if links == Links::Followed {
        let info = std::fs::metadata(Path::new(OsStr::from_bytes(path)))
            .map_err(|e| Failure::new("stat()", &e))?;
        return Ok(Info::from(&info));
    }
    open_now(path, links).map(|(_, info)| info)
}

/// What `disable_symlinks` says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Links are followed.
    Followed,
    /// Refused after the first `from` bytes; `owner` lets those through that belong to the owner of what they lead to.
    Checked {
        /// `if_not_owner`.
        owner: bool,
        /// Bytes of the path that are not checked (`from=`).
        from: usize,
    },
}

/// How much of the path is not checked, up to a slash; `None` is all of it.
pub fn trusted(path: &[u8], from: &[u8]) -> Option<usize> {
    let Some(rest) = path.strip_prefix(from) else {
        return Some(0);
    };
    match (from, rest) {
        (b"", _) => Some(0),
        (_, []) => None,
        (from, [b'/', ..]) => Some(from.len()),
        ([before @ .., b'/'], _) => Some(before.len()),
        _ => Some(0),
    }
}

/// Opens a path from folder to folder, so that no symbolic link is followed unseen.
fn walk(path: &[u8], owner: bool, from: usize) -> Result<OwnedFd, Failure> {
    let search = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let read = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let (begin, mut rest) = match path {
        _ if from > 0 => path.split_at_checked(from).unwrap_or((path, b"")),
        [b'/', rest @ ..] => (&b"/"[..], rest),
        _ => (&b"."[..], path),
    };
    let mut folder =
        nix::fcntl::open(begin, search, Mode::empty()).map_err(|e| Failure::os("open()", e))?;
    while let Some(at) = memchr::memchr(b'/', rest) {
        let (name, tail) = rest.split_at_checked(at).unwrap_or_default();
        rest = tail.get(1..).unwrap_or_default();
        if !name.is_empty() {
            folder = step(&folder, name, search, owner)?;
        }
    }
    if rest.is_empty() {
        return openat(&folder, ".", read, Mode::empty()).map_err(|e| Failure::os("openat()", e));
    }
    step(&folder, rest, read, owner)
}

fn step(folder: &OwnedFd, name: &[u8], flags: OFlag, owner: bool) -> Result<OwnedFd, Failure> {
    let failed = |e| Failure::os("openat()", e);
    if !owner {
        return openat(folder, name, flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(failed);
    }
    let fd = openat(folder, name, flags, Mode::empty()).map_err(failed)?;
    // whether a link was followed is not known for sure: owners must be the same in any case
    let link = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
    let target = fstat(&fd).map_err(failed)?;
    if link.st_uid != target.st_uid {
        return Err(failed(Os::ELOOP));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn trusts_what_from_names() {
        for (path, from, want) in [
            ("/a/b/c", "/a", Some(2)),
            ("/a/b/c", "/a/", Some(2)),
            ("/a/b/c", "/a/b/c", None),
            ("/a/bc", "/a/b", Some(0)),
            ("/a/b", "/x", Some(0)),
            ("/a/b", "", Some(0)),
            ("/a", "/a/b", Some(0)),
        ] {
            assert_eq!(
                trusted(path.as_bytes(), from.as_bytes()),
                want,
                "{path} {from}"
            );
        }
    }

    #[test]
    fn refuses_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/file"), b"x").unwrap();
        symlink("real", root.join("folder")).unwrap();
        symlink("real/file", root.join("link")).unwrap();
        let open = |name: &str, owner, trust: bool| {
            let path = root.join(name);
            let from = if trust {
                root.as_os_str().len() + "/folder".len()
            } else {
                0
            };
            walk(path.as_os_str().as_bytes(), owner, from).map(|_| ())
        };
        assert_eq!(open("real/file", false, false), Ok(()));
        assert_eq!(open("real//", false, false), Ok(()));
        assert!(open("link", false, false).unwrap_err().is_link());
        assert!(open("folder/file", false, false).is_err());
        assert_eq!(open("folder/file", false, true), Ok(()));
        assert_eq!(open("link", true, false), Ok(()));
        assert!(open("real/none", true, false).unwrap_err().is_not_found());
        assert!(open("real/file/", false, false).unwrap_err().is_missing());
    }
}
