//! What a worker is handed: how to load the configuration, and all that the master read for it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Gid, Uid};

use super::user::{Identity, Rights};
use crate::config::load_inputs::Outside;
use crate::contract::ListenAddr;
use crate::engine::LoadOptions;
use crate::runtime::handover;

/// Everything but descriptors.
pub(super) struct Package {
    /// How titles begin.
    pub program: String,
    /// Whether the master has left the terminal, and so WINCH means something.
    pub daemonized: bool,
    /// Threads that serve.
    pub threads: usize,
    /// What is to be given away.
    pub rights: Rights,
    /// How the configuration is loaded.
    pub load: LoadOptions,
    /// What the master saw of the outside.
    pub outside: Arc<Outside>,
}

/// Descriptors that go with a package, in this order: sockets, then logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Listening sockets.
    pub sockets: Vec<SocketEntry>,
    /// Log files.
    pub logs: Vec<PathBuf>,
}

/// A listening address with its sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketEntry {
    /// Stays the same for as long as these sockets do.
    pub id: u64,
    /// The address.
    pub addr: ListenAddr,
    /// How many sockets it has.
    pub count: usize,
}

impl Package {
    /// Writes it to memory that can be read by whoever is given the descriptor, and changed by nobody.
    ///
    /// # Errors
    /// What the system says.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let mut out = Out::default();
        out.bytes(self.program.as_bytes());
        out.number(self.daemonized.into());
        out.number(self.threads as u64);
        let r = &self.rights;
        out.option(r.identity.as_ref(), |out, i| {
            out.bytes(i.name.as_bytes());
            out.number(i.uid.as_raw().into());
            out.number(i.gid.as_raw().into());
        });
        out.option(r.priority.as_ref(), |out, n| {
            out.number(i64::from(*n) as u64)
        });
        out.option(r.files.as_ref(), |out, n| out.number(*n));
        out.option(r.core.as_ref(), |out, n| out.number(*n));
        out.option(r.folder.as_ref(), |out, p| out.path(p));
        out.number(r.net_raw.into());
        out.path(&self.load.conf);
        out.path(&self.load.prefix);
        out.bytes(&self.load.directives);
        out.bytes(self.load.error_log.as_bytes());
        out.bytes(self.load.pid.as_bytes());
        out.outside(&self.outside);
        sealed(&out.0)
    }

    /// Reads what [`Package::seal`] wrote.
    ///
    /// # Errors
    /// It cannot be read, or is of another version.
    pub fn open(fd: OwnedFd) -> io::Result<Package> {
        let bytes = contents(fd)?;
        let mut from = In(&bytes);
        from.package()
            .filter(|_| from.0.is_empty())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

impl Manifest {
    /// As [`Package::seal`].
    ///
    /// # Errors
    /// What the system says.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let mut out = Out::default();
        out.list(&self.sockets, |out, s| {
            out.number(s.id);
            out.addr(&s.addr);
            out.number(s.count as u64);
        });
        out.list(&self.logs, |out, p| out.path(p));
        sealed(&out.0)
    }

    /// As [`Package::open`].
    ///
    /// # Errors
    /// As [`Package::open`].
    pub fn open(fd: OwnedFd) -> io::Result<Manifest> {
        let bytes = contents(fd)?;
        let mut from = In(&bytes);
        let read = |from: &mut In<'_>| {
            let sockets = from.list(|from| {
                Some(SocketEntry {
                    id: from.number()?,
                    addr: from.addr()?,
                    count: usize::try_from(from.number()?).ok()?,
                })
            })?;
            let logs = from.list(In::path)?;
            Some(Manifest { sockets, logs })
        };
        read(&mut from)
            .filter(|_| from.0.is_empty())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// As [`Package::seal`], for files alone.
///
/// # Errors
/// What the system says.
pub(super) fn seal_outside(outside: &Outside) -> io::Result<OwnedFd> {
    let mut out = Out::default();
    out.outside(outside);
    sealed(&out.0)
}

/// Reads what [`seal_outside`] wrote.
///
/// # Errors
/// As [`Package::open`].
pub(super) fn open_outside(fd: OwnedFd) -> io::Result<Outside> {
    let bytes = contents(fd)?;
    let mut from = In(&bytes);
    from.outside()
        .filter(|_| from.0.is_empty())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// As [`Package::seal`], for what [`handover::save`] gives.
///
/// # Errors
/// What the system says.
pub(super) fn seal_state(bytes: &[u8]) -> io::Result<OwnedFd> {
    sealed(bytes)
}

/// Reads what [`seal_state`] wrote; anything else than sealed memory of at most [`handover::LIMIT`] bytes is refused, since
/// it comes from a worker.
///
/// # Errors
/// As [`Package::open`].
pub(super) fn open_state(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let seals = fcntl(&fd, FcntlArg::F_GET_SEALS)?;
    let needed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    let file = File::from(fd);
    let fits = file.metadata()?.len() <= handover::LIMIT as u64;
    if !SealFlag::from_bits_truncate(seals).contains(needed) || !fits {
        return Err(io::ErrorKind::InvalidData.into());
    }
    contents(file.into())
}

fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create("configuration", flags)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Reads from the beginning, whatever others with the same descriptor have read.
fn contents(fd: OwnedFd) -> io::Result<Vec<u8>> {
    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read_at(into, self.1)?;
            self.1 += n as u64;
            Ok(n)
        }
    }
    let file = File::from(fd);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(length);
    At(&file, 0).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Numbers of eight bytes, lengths before texts.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn number(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn path(&mut self, path: &Path) {
        self.bytes(path.as_os_str().as_bytes());
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Out, &T)) {
        self.number(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, list: &[T], write: impl Fn(&mut Out, &T)) {
        self.number(list.len() as u64);
        list.iter().for_each(|item| write(self, item));
    }

    fn addr(&mut self, addr: &ListenAddr) {
        match addr {
            ListenAddr::Inet(a) => {
                self.number(0);
                self.bytes(a.to_string().as_bytes());
            }
            ListenAddr::Unix(path) => {
                self.number(1);
                self.path(path);
            }
        }
    }

    fn result<T>(&mut self, result: &Result<T, i32>, write: impl FnOnce(&mut Out, &T)) {
        match result {
            Ok(value) => {
                self.number(0);
                write(self, value);
            }
            Err(errno) => self.number(u64::from(errno.unsigned_abs().max(1))),
        }
    }

    fn outside(&mut self, outside: &Outside) {
        let Outside {
            files,
            globs,
            names,
            root,
        } = outside;
        self.number(u64::from(*root));
        self.number(files.len() as u64);
        for (path, contents) in files {
            self.bytes(path.as_bytes());
            self.result(contents, |out, bytes| out.bytes(bytes));
        }
        self.number(globs.len() as u64);
        for (pattern, paths) in globs {
            self.bytes(pattern.as_bytes());
            self.result(paths, |out, list| out.list(list, |out, p| out.path(p)));
        }
        self.number(names.len() as u64);
        for ((host, port), addresses) in names {
            self.bytes(host.as_bytes());
            self.number(u64::from(*port));
            self.option(addresses.as_ref(), |out, list| {
                out.list(list, |out, a| out.bytes(a.to_string().as_bytes()));
            });
        }
    }
}

/// What is left to read.
struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn path(&mut self) -> Option<PathBuf> {
        Some(OsString::from_vec(self.bytes()?.to_vec()).into())
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.number()? {
            0 => Some(None),
            _ => read(self).map(Some),
        }
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let length = self.number()?;
        let mut list = Vec::new();
        for _ in 0..length {
            list.push(read(self)?);
        }
        Some(list)
    }

    fn addr(&mut self) -> Option<ListenAddr> {
        match self.number()? {
            0 => self.socket_addr().map(ListenAddr::Inet),
            1 => self.path().map(ListenAddr::Unix),
            _ => None,
        }
    }

    fn socket_addr(&mut self) -> Option<SocketAddr> {
        std::str::from_utf8(self.bytes()?).ok()?.parse().ok()
    }

    fn result<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Result<T, i32>> {
        match self.number()? {
            0 => read(self).map(Ok),
            errno => Some(Err(i32::try_from(errno).ok()?)),
        }
    }

    fn outside(&mut self) -> Option<Outside> {
        let root = self.number()? != 0;
        let files = self.list(|from| {
            let path = OsString::from_vec(from.bytes()?.to_vec());
            let contents = from.result(|from| from.bytes().map(Arc::from))?;
            Some((path, contents))
        })?;
        let globs = self.list(|from| {
            let pattern = from.text()?;
            let paths = from.result(|from| from.list(In::path))?;
            Some((pattern, paths))
        })?;
        let names = self.list(|from| {
            let (host, port) = (from.text()?, u16::try_from(from.number()?).ok()?);
            let addresses = from.option(|from| from.list(In::socket_addr))?;
            Some(((host, port), addresses))
        })?;
        Some(Outside {
            files: BTreeMap::from_iter(files),
            globs: BTreeMap::from_iter(globs),
            names: BTreeMap::from_iter(names),
            root,
        })
    }

    fn package(&mut self) -> Option<Package> {
        let program = self.text()?;
        let daemonized = self.number()? != 0;
        let threads = usize::try_from(self.number()?).ok()?;
        let identity = self.option(|from| {
            Some(Identity {
                name: CString::new(from.bytes()?).ok()?,
                uid: Uid::from_raw(u32::try_from(from.number()?).ok()?),
                gid: Gid::from_raw(u32::try_from(from.number()?).ok()?),
            })
        })?;
        let rights = Rights {
            identity,
            priority: self.option(|from| i32::try_from(from.number()? as i64).ok())?,
            files: self.option(In::number)?,
            core: self.option(In::number)?,
            folder: self.option(In::path)?,
            net_raw: self.number()? != 0,
        };
        let load = LoadOptions {
            conf: self.path()?,
            prefix: self.path()?,
            directives: self.bytes()?.to_vec(),
            error_log: self.text()?,
            pid: self.text()?,
            testing: false,
        };
        Some(Package {
            program,
            daemonized,
            threads,
            rights,
            load,
            outside: Arc::new(self.outside()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn state_is_sealed_memory() {
        let fd = seal_state(b"state").unwrap();
        for _ in 0..2 {
            assert_eq!(open_state(fd.try_clone().unwrap()).unwrap(), b"state");
        }
        let (read, _write) = nix::unistd::pipe().unwrap();
        assert!(open_state(read).is_err());
        let large = memfd_create("large", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(
            open_state(large.try_clone().unwrap()).is_err(),
            "not sealed"
        );
        let large = File::from(large);
        large.set_len(handover::LIMIT as u64 + 1).unwrap();
        fcntl(&large, FcntlArg::F_ADD_SEALS(SealFlag::all())).unwrap();
        assert!(open_state(large.into()).is_err());
    }

    #[test]
    fn comes_out_as_it_went_in() {
        let mut outside = Outside {
            root: true,
            ..Outside::default()
        };
        outside
            .files
            .insert("/a".into(), Ok(Arc::from(&b"x\0"[..])));
        outside.files.insert("/b".into(), Err(13));
        outside
            .globs
            .insert("/*".into(), Ok(vec!["/a".into(), "/b".into()]));
        outside.globs.insert("/c/*".into(), Err(2));
        outside.names.insert(
            ("h".into(), 80),
            Some(vec![
                ([127, 0, 0, 1], 80).into(),
                "[::1]:80".parse().unwrap(),
            ]),
        );
        outside.names.insert(("g".into(), 0), None);
        let rights = Rights {
            identity: Some(Identity {
                name: c"www".into(),
                uid: Uid::from_raw(33),
                gid: Gid::from_raw(34),
            }),
            priority: Some(-5),
            files: None,
            core: Some(7),
            folder: Some("/w".into()),
            net_raw: true,
        };
        let package = Package {
            program: "nginx".into(),
            daemonized: true,
            threads: 3,
            rights,
            load: LoadOptions {
                conf: "/c".into(),
                prefix: "/p/".into(),
                directives: b"daemon off;".to_vec(),
                error_log: "stderr".into(),
                pid: "/pid".into(),
                testing: false,
            },
            outside: Arc::new(outside),
        };
        let fd = package.seal().unwrap();
        assert!(
            File::from(fd.try_clone().unwrap()).write_all(b"x").is_err(),
            "sealed"
        );
        for _ in 0..2 {
            let read = Package::open(fd.try_clone().unwrap()).unwrap();
            assert_eq!(
                (read.program.as_str(), read.daemonized, read.threads),
                ("nginx", true, 3)
            );
            assert_eq!(read.rights, package.rights);
            assert_eq!(read.outside, package.outside);
            assert_eq!(read.load.directives, b"daemon off;");
        }
        let manifest = Manifest {
            sockets: vec![
                SocketEntry {
                    id: 1,
                    addr: ListenAddr::Inet("[::]:80".parse().unwrap()),
                    count: 2,
                },
                SocketEntry {
                    id: 2,
                    addr: ListenAddr::Unix("/s".into()),
                    count: 1,
                },
            ],
            logs: vec!["/log".into()],
        };
        assert_eq!(Manifest::open(manifest.seal().unwrap()).unwrap(), manifest);
        assert!(Package::open(manifest.seal().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn nonsense_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut from = In(&bytes);
            let _ = from.package();
            let _ = In(&bytes).outside();
        }
    }
}
