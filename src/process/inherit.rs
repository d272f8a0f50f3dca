//! Listening sockets that were open before this process began: an upgrade's (`NGINX=6;7;`), a service manager's
//! (`LISTEN_FDS`, sd_listen_fds(3)).

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::socket::SockType;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{AcceptConn, SockType as TypeOption};

use crate::contract::ListenAddr;
use crate::log::{ErrorLog, Level};

/// The variable of nginx's by which an upgrade hands its sockets on.
pub(super) const NGINX: &str = "NGINX";

/// The first descriptor of a service manager.
const FIRST: RawFd = 3;

/// Sockets of one address.
pub(super) struct Inherited {
    /// Where they listen.
    pub addr: ListenAddr,
    /// Several with `reuseport`.
    pub fds: Vec<Arc<OwnedFd>>,
    /// A service manager's, who keeps the file of a UNIX-domain socket.
    pub foreign: bool,
}

impl Inherited {
    /// Says that no `listen` names the address.
    pub fn report_unused(&self, log: &ErrorLog) {
        let (addr, from) = (&self.addr, if self.foreign { "LISTEN_FDS" } else { NGINX });
        log.write(
            Level::Warn,
            None,
            format_args!("the socket of {addr} from {from} is not used, no \"listen\" names it"),
        );
    }
}

/// What was left to this process, and the list by which an upgrade did so. The variables are gone afterwards.
///
/// To be called once, while there is one thread and before descriptors are opened.
pub(super) fn take(log: &ErrorLog) -> (Vec<Inherited>, Option<String>) {
    let upgrade = variable(NGINX);
    let listen = (variable("LISTEN_PID"), variable("LISTEN_FDS"));
    let _ = variable("LISTEN_FDNAMES");
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    if let Some(list) = &upgrade {
        let (numbers, bad) = parse(list);
        if let Some(bad) = bad {
            log.write(
                Level::Emerg,
                None,
                format_args!(
                    "invalid socket number \"{bad}\" in {NGINX} environment variable, ignoring the rest of the variable"
                ),
            );
        }
        for number in numbers.into_iter().filter(|n| seen.insert(*n)) {
            add(&mut all, number, false, log);
        }
    }
    if let (Some(pid), Some(count)) = listen
        && pid.parse() == Ok(std::process::id())
        && let Ok(count) = count.parse::<RawFd>()
    {
        for number in (FIRST..FIRST.saturating_add(count)).filter(|n| seen.insert(*n)) {
            add(&mut all, number, true, log);
        }
    }
    (all, upgrade)
}

/// The numbers of nginx's list, each with a `;` or `:` behind it, and the text at which it goes wrong.
fn parse(list: &str) -> (Vec<RawFd>, Option<&str>) {
    let mut numbers = Vec::new();
    let mut rest = list;
    while let Some(end) = rest.find([';', ':']) {
        let (number, behind) = rest.split_at(end);
        match number.parse::<RawFd>() {
            Ok(n) if n > 2 && number.bytes().all(|b| b.is_ascii_digit()) => numbers.push(n),
            _ => return (numbers, Some(rest)),
        }
        rest = behind.get(1..).unwrap_or_default();
    }
    (numbers, Some(rest).filter(|rest| !rest.is_empty()))
}

fn add(all: &mut Vec<Inherited>, number: RawFd, foreign: bool, log: &ErrorLog) {
    let Some((addr, fd)) = adopt(number) else {
        log.write(
            Level::Warn,
            None,
            format_args!("the inherited descriptor {number} is no listening socket, ignored"),
        );
        return;
    };
    match all.iter_mut().find(|i| i.addr == addr) {
        Some(known) => known.fds.push(Arc::new(fd)),
        None => all.push(Inherited {
            addr,
            fds: vec![Arc::new(fd)],
            foreign,
        }),
    }
}

/// A listening stream socket of that number, made this process's own.
fn adopt(number: RawFd) -> Option<(ListenAddr, OwnedFd)> {
    // SAFETY: only asked what it is; a number that is not open gives an error
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let listens = getsockopt(&borrowed, AcceptConn).ok()?;
    let stream = getsockopt(&borrowed, TypeOption).ok()? == SockType::Stream;
    (listens && stream).then_some(())?;
    let addr = socket2::SockRef::from(&borrowed).local_addr().ok()?;
    let addr = match addr.as_socket() {
        Some(inet) => ListenAddr::Inet(inet),
        None => ListenAddr::Unix(PathBuf::from(addr.as_pathname()?)),
    };
    // SAFETY: it is open, was left to this process for this purpose, and nothing else here knows it
    #[allow(unsafe_code)]
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    super::keep_from_programs(&fd, true).ok()?;
    socket2::SockRef::from(&fd).set_nonblocking(true).ok()?;
    Some((addr, fd))
}

/// Takes a variable out of the environment.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?;
    // SAFETY: there is one thread
    #[allow(unsafe_code)]
    unsafe {
        std::env::remove_var(name);
    }
    Some(value.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(parse("6;7;"), (vec![6, 7], None));
        assert_eq!(parse("10:11;"), (vec![10, 11], None));
        assert_eq!(parse(""), (vec![], None));
        assert_eq!(parse("6;x;7;"), (vec![6], Some("x;7;")));
        assert_eq!(parse("6;7"), (vec![6], Some("7")));
        assert_eq!(parse("+6;"), (vec![], Some("+6;")));
        assert_eq!(parse("1;"), (vec![], Some("1;")));
        assert_eq!(parse("99999999999;"), (vec![], Some("99999999999;")));
    }

    #[test]
    fn only_listening_sockets_are_adopted() {
        use std::os::fd::IntoRawFd;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (found, fd) = adopt(listener.into_raw_fd()).unwrap();
        assert_eq!(found, ListenAddr::Inet(addr));
        drop(fd);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(adopt(std::os::fd::AsRawFd::as_raw_fd(&file)).is_none());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(adopt(std::os::fd::AsRawFd::as_raw_fd(&udp)).is_none());
    }
}
