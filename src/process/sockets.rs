//! Listening sockets: opened before anything is changed, kept by every reload that still names them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use super::inherit::Inherited;
use crate::contract::{ListenAddr, ListenOptions, Listener};
use crate::log::{self, ErrorLog, Level, Record};

/// The open sockets of a process.
#[derive(Default)]
pub(super) struct Sockets {
    open: Vec<Open>,
    inherited: Vec<Inherited>,
    serial: u64,
}

/// One address; with `reuseport` a socket for each thread, otherwise one for all.
struct Open {
    id: u64,
    addr: ListenAddr,
    options: ListenOptions,
    fds: Vec<Arc<OwnedFd>>,
    /// The service manager's, who keeps the file of a UNIX-domain socket.
    foreign: bool,
}

/// What those who serve need to know of a listening address.
#[derive(Clone)]
pub(super) struct Handle {
    /// Stays the same for as long as the sockets do.
    pub id: u64,
    /// The address.
    pub addr: ListenAddr,
    /// Its sockets.
    pub fds: Vec<Arc<OwnedFd>>,
}

/// Sockets opened for a configuration that is not in force yet; dropped, they are closed and their files removed.
#[derive(Default)]
pub(super) struct Prepared {
    new: Vec<Open>,
    /// Files of UNIX-domain sockets among them.
    files: Vec<ListenAddr>,
}

impl Prepared {
    /// Leaves the files to another process that has the same sockets.
    pub fn disown(mut self) {
        self.files.clear();
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.files.iter().for_each(|addr| unlink(addr, None));
    }
}

impl Sockets {
    /// No socket open yet, but these to be taken over.
    pub fn inheriting(inherited: Vec<Inherited>) -> Sockets {
        Sockets {
            inherited,
            ..Sockets::default()
        }
    }

    /// Opens what `listeners` name and is not open yet.
    ///
    /// An address in use is tried five times within 2.5 s, as a process that is about to end may still hold it.
    ///
    /// # Errors
    /// They have been logged, in nginx's words.
    pub fn prepare(
        &mut self,
        listeners: &[Listener],
        threads: usize,
        log: &ErrorLog,
    ) -> Result<Prepared, ()> {
        const TRIES: u32 = 5;
        let mut prepared = Prepared::default();
        let mut serial = self.serial;
        self.serial += listeners.len() as u64 * u64::from(TRIES);
        for _ in 0..TRIES {
            let mut in_use = false;
            for l in listeners.iter().filter(|l| has_socket(l, listeners)) {
                let kept = self.find(&l.addr);
                let fits = |o: &Open| {
                    o.options.reuseport == l.options.reuseport
                        && (!l.options.reuseport || o.fds.len() >= threads)
                };
                let done = kept.is_some_and(fits);
                if done || prepared.new.iter().any(|o| o.addr == l.addr) {
                    continue;
                }
                let left = self.inherited.iter().find(|i| i.addr == l.addr);
                let (fds, foreign) = match (kept, left) {
                    (Some(open), _) => (open.fds.clone(), open.foreign),
                    (None, Some(left)) => (left.fds.clone(), left.foreign),
                    (None, None) => (Vec::new(), false),
                };
                serial += 1;
                match Open::new(serial, l, fds, foreign, threads, log) {
                    Ok(open) => {
                        let taken = kept.is_some() || left.is_some();
                        if matches!(l.addr, ListenAddr::Unix(_)) && !taken {
                            prepared.files.push(l.addr.clone());
                        }
                        prepared.new.push(open);
                    }
                    Err(Failed::InUse) => in_use = true,
                    Err(Failed::Otherwise) => return Err(()),
                }
            }
            if !in_use {
                return Ok(prepared);
            }
            log.write(
                Level::Notice,
                None,
                format_args!("try again to bind() after 500ms"),
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        log.write(Level::Emerg, None, format_args!("still could not bind()"));
        Err(())
    }

    /// The sockets as they will be once `prepared` is in force.
    pub fn handles(&self, prepared: &Prepared, listeners: &[Listener]) -> Vec<Handle> {
        let is_new = |o: &Open| prepared.new.iter().any(|n| n.addr == o.addr);
        let kept = self
            .open
            .iter()
            .filter(|o| !is_new(o) && wanted(o, listeners).is_some());
        kept.chain(&prepared.new).map(Open::handle).collect()
    }

    /// Puts prepared sockets in force: closes those that `listeners` no longer name.
    pub fn commit(&mut self, mut prepared: Prepared, listeners: &[Listener], log: &ErrorLog) {
        let before = std::mem::take(&mut self.open);
        for mut open in before {
            match wanted(&open, listeners) {
                Some(_) if prepared.new.iter().any(|o| o.addr == open.addr) => {}
                Some(l) => {
                    if open.options != l.options {
                        open.configure(&l.options, log);
                        open.options = l.options.clone();
                    }
                    self.open.push(open);
                }
                None => open.unlink(Some(log)),
            }
        }
        prepared.files.clear();
        for open in std::mem::take(&mut prepared.new) {
            open.configure(&open.options, log);
            self.open.push(open);
        }
        for left in self.inherited.drain(..) {
            if !self.open.iter().any(|o| o.addr == left.addr) {
                left.report_unused(log);
            }
        }
    }

    /// All that are open.
    pub fn all(&self) -> Vec<Handle> {
        self.open.iter().map(Open::handle).collect()
    }

    /// The numbers of all descriptors, for a program that is to take them over.
    pub fn numbers(&self) -> Vec<RawFd> {
        let fds = self.open.iter().flat_map(|o| &o.fds);
        fds.map(|fd| fd.as_raw_fd()).collect()
    }

    /// Closes all; files of UNIX-domain sockets are removed, unless another process goes on with them.
    pub fn close(&mut self, remove_files: bool) {
        for open in self.open.drain(..) {
            if remove_files {
                open.unlink(None);
            }
        }
    }

    fn find(&self, addr: &ListenAddr) -> Option<&Open> {
        self.open.iter().find(|o| o.addr == *addr)
    }
}

/// What the configuration now says of an open address.
fn wanted<'a>(open: &Open, listeners: &'a [Listener]) -> Option<&'a Listener> {
    listeners
        .iter()
        .find(|l| l.addr == open.addr && has_socket(l, listeners))
}

impl Open {
    /// `fds` are there already: those of the same address without the `reuseport` that it now has (or with one that it
    /// now lacks), or inherited. They stay, so that connections that wait in their queues are not lost.
    fn new(
        id: u64,
        l: &Listener,
        mut fds: Vec<Arc<OwnedFd>>,
        foreign: bool,
        threads: usize,
        log: &ErrorLog,
    ) -> Result<Open, Failed> {
        if !l.options.reuseport {
            fds.truncate(1);
        }
        for fd in &fds {
            if l.options.reuseport
                && let Err(errno) = set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
            {
                report(
                    log,
                    Level::Alert,
                    errno,
                    &format!("setsockopt(SO_REUSEPORT) {} failed, ignored", l.addr),
                );
            }
            // an inherited one may have another backlog
            let _ = socket2::SockRef::from(&**fd).listen(l.options.backlog);
        }
        let wanted = if l.options.reuseport { threads } else { 1 };
        while fds.len() < wanted {
            fds.push(Arc::new(listen(&l.addr, &l.options, false, log)?));
        }
        Ok(Open {
            id,
            addr: l.addr.clone(),
            options: l.options.clone(),
            fds,
            foreign,
        })
    }

    fn handle(&self) -> Handle {
        Handle {
            id: self.id,
            addr: self.addr.clone(),
            fds: self.fds.clone(),
        }
    }

    fn unlink(&self, log: Option<&ErrorLog>) {
        if !self.foreign {
            unlink(&self.addr, log);
        }
    }
}

impl Open {
    /// Sets what may be changed while a socket listens; failures are logged and nothing more.
    fn configure(&self, options: &ListenOptions, log: &ErrorLog) {
        let addr = &self.addr;
        let tcp = matches!(addr, ListenAddr::Inet(_));
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let seconds = |n: Option<u32>| n.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let k = options.keepalive.filter(|_| tcp);
        let defer = options
            .deferred
            .then_some(1)
            .or_else(|| self.options.deferred.then_some(0))
            .filter(|_| tcp);
        let list: [(&str, i32, i32, Option<i32>); 8] = [
            (
                "SO_RCVBUF",
                libc::SOL_SOCKET,
                libc::SO_RCVBUF,
                options.rcvbuf.map(number),
            ),
            (
                "SO_SNDBUF",
                libc::SOL_SOCKET,
                libc::SO_SNDBUF,
                options.sndbuf.map(number),
            ),
            (
                "SO_KEEPALIVE",
                libc::SOL_SOCKET,
                libc::SO_KEEPALIVE,
                k.map(|k| i32::from(k.on)),
            ),
            (
                "TCP_KEEPIDLE",
                libc::IPPROTO_TCP,
                libc::TCP_KEEPIDLE,
                k.and_then(|k| seconds(k.idle)),
            ),
            (
                "TCP_KEEPINTVL",
                libc::IPPROTO_TCP,
                libc::TCP_KEEPINTVL,
                k.and_then(|k| seconds(k.interval)),
            ),
            (
                "TCP_KEEPCNT",
                libc::IPPROTO_TCP,
                libc::TCP_KEEPCNT,
                k.and_then(|k| seconds(k.count)),
            ),
            (
                "TCP_FASTOPEN",
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN,
                options.fastopen.filter(|_| tcp),
            ),
            (
                "TCP_DEFER_ACCEPT",
                libc::IPPROTO_TCP,
                libc::TCP_DEFER_ACCEPT,
                defer,
            ),
        ];
        for fd in &self.fds {
            for (name, level, option, value) in list {
                if let Some(value) = value
                    && let Err(errno) = set(fd, level, option, value)
                {
                    report(
                        log,
                        Level::Alert,
                        errno,
                        &format!("setsockopt({name}, {value}) {addr} failed, ignored"),
                    );
                }
            }
            // changes the backlog of a socket that listens already
            if options.backlog != self.options.backlog
                && let Err(error) = socket2::SockRef::from(&**fd).listen(options.backlog)
            {
                let message = format!(
                    "listen() to {addr}, backlog {} failed, ignored",
                    options.backlog
                );
                report(log, Level::Alert, errno_of(&error), &message);
            }
        }
    }
}

/// `-t`: whether every address can be bound; one in use is taken for that of the running process.
///
/// # Errors
/// They have been logged.
pub(super) fn rehearse(listeners: &[Listener], log: &ErrorLog) -> Result<(), ()> {
    for l in listeners.iter().filter(|l| has_socket(l, listeners)) {
        match listen(&l.addr, &l.options, true, log) {
            Ok(_) => unlink(&l.addr, None),
            Err(Failed::InUse) => {}
            Err(Failed::Otherwise) => return Err(()),
        }
    }
    Ok(())
}

/// Whether an address has a socket of its own. As in nginx one that is covered by a wildcard of its port has not, unless
/// socket options were written for it: the wildcard's socket takes its connections.
fn has_socket(l: &Listener, all: &[Listener]) -> bool {
    let ListenAddr::Inet(addr) = l.addr else {
        return true;
    };
    if addr.ip().is_unspecified() || l.options != ListenOptions::default() {
        return true;
    }
    !all.iter().any(|other| {
        matches!(other.addr, ListenAddr::Inet(o)
            if o.ip().is_unspecified() && o.port() == addr.port() && o.is_ipv4() == addr.is_ipv4())
    })
}

/// Why a socket was not opened; the log has the details.
enum Failed {
    InUse,
    Otherwise,
}

fn listen(
    addr: &ListenAddr,
    options: &ListenOptions,
    testing: bool,
    log: &ErrorLog,
) -> Result<OwnedFd, Failed> {
    let failed = |what: String, error: io::Error| {
        let errno = errno_of(&error);
        let in_use = errno == Errno::EADDRINUSE;
        if !(in_use && testing) {
            report(log, Level::Emerg, errno, &what);
        }
        if in_use {
            Failed::InUse
        } else {
            Failed::Otherwise
        }
    };
    let (domain, sockaddr) = match addr {
        ListenAddr::Inet(a) => (Domain::for_address(*a), Ok(SockAddr::from(*a))),
        ListenAddr::Unix(path) => (Domain::UNIX, SockAddr::unix(path)),
    };
    let tcp = domain != Domain::UNIX;
    let protocol = (tcp && options.multipath).then_some(socket2::Protocol::MPTCP);
    let socket = Socket::new(domain, Type::STREAM, protocol)
        .map_err(|e| failed(format!("socket() {addr} failed"), e))?;
    let option = |name: &str, level: i32, option: i32, value: i32| {
        set(&socket, level, option, value)
            .map_err(|e| failed(format!("setsockopt({name}) {addr} failed"), e.into()))
    };
    option("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if tcp && options.reuseport && !testing {
        option("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if domain == Domain::IPV6 {
        option(
            "IPV6_V6ONLY",
            libc::IPPROTO_IPV6,
            libc::IPV6_V6ONLY,
            i32::from(options.ipv6only),
        )?;
    }
    socket
        .set_nonblocking(true)
        .map_err(|e| failed(format!("fcntl(O_NONBLOCK) {addr} failed"), e))?;
    let sockaddr = sockaddr.map_err(|e| failed(format!("bind() to {addr} failed"), e))?;
    if let ListenAddr::Unix(path) = addr
        && is_stale(path)
    {
        if testing {
            return Err(Failed::InUse);
        }
        log.write(
            Level::Notice,
            None,
            format_args!("taking over the stale socket {}", path.display()),
        );
        let _ = remove(path);
    }
    socket
        .bind(&sockaddr)
        .map_err(|e| failed(format!("bind() to {addr} failed"), e))?;
    if let ListenAddr::Unix(path) = addr
        && let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o666))
    {
        report(
            log,
            Level::Emerg,
            errno_of(&error),
            &format!("chmod() \"{}\" failed", path.display()),
        );
    }
    let backlog = options.backlog;
    let listening = socket.listen(backlog);
    listening.map_err(|e| failed(format!("listen() to {addr}, backlog {backlog} failed"), e))?;
    Ok(socket.into())
}

/// Removes the file of a UNIX-domain socket.
fn unlink(addr: &ListenAddr, log: Option<&ErrorLog>) {
    let ListenAddr::Unix(path) = addr else { return };
    if let Some(log) = log {
        log.write(
            Level::Warn,
            None,
            format_args!("deleting socket {}", path.display()),
        );
    }
    if let Err(error) = remove(path)
        && let Some(log) = log
    {
        report(
            log,
            Level::Emerg,
            errno_of(&error),
            &format!("unlink() {} failed", path.display()),
        );
    }
}

/// Whether a socket's file was left behind: nobody listens there.
fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

fn set(fd: &impl AsRawFd, level: i32, option: i32, value: i32) -> Result<(), Errno> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value lives through the call, and its length is told
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    Errno::result(done).map(drop)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL))
}

fn report(log: &ErrorLog, level: Level, errno: Errno, message: &str) {
    log.record(&Record {
        errno: Some(log::Errno::from(errno)),
        ..Record::new(level, format_args!("{message}"))
    });
}

#[cfg(test)]
mod tests;
