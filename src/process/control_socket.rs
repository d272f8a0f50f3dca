//! Where `-s` asks a running master, and waits for its answer: a socket in the abstract namespace, named after the
//! master's process, so that nothing is left behind on a disk. Whoever asks falls back to a signal where there is none.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recv, recvmsg, send, sendmsg, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

/// What a master that only finishes what is under way says of its status.
pub(super) const DRAINS: &str = "draining";

/// Whether the master of that number serves no more, and only finishes what is under way.
pub(super) fn drains(master: Pid) -> bool {
    let asked = ask(master, ControlRequest::Status, Some(Duration::from_secs(1)));
    matches!(asked, ControlReply::Answer(0, text) if text == DRAINS)
}

/// What a master can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlRequest {
    /// To say that it serves.
    Status,
    /// To read the configuration anew.
    Reload,
    /// The new process of an upgrade: to hand over what its worker is to know.
    State,
}

impl ControlRequest {
    fn word(self) -> &'static [u8] {
        match self {
            ControlRequest::Status => b"status",
            ControlRequest::Reload => b"reload",
            ControlRequest::State => b"state",
        }
    }
}

/// The master's side.
pub(super) struct Desk {
    fd: OwnedFd,
}

/// Somebody who waits for an answer.
pub(super) struct Client {
    fd: OwnedFd,
    /// His process.
    pub pid: u32,
}

/// Bytes of an answer; a packet must fit the socket's buffer.
const ANSWER: usize = 64 * 1024;

impl Desk {
    /// `None` where it cannot be had; the master then hears signals alone.
    pub fn open() -> Option<Desk> {
        let address = address(Pid::this())?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).ok()?;
        bind(fd.as_raw_fd(), &address).ok()?;
        listen(&fd, Backlog::new(16).ok()?).ok()?;
        Some(Desk { fd })
    }

    /// To wait for somebody.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Who is next, and what he wants. Others than root and the master's own user are sent away.
    pub fn next(&self) -> Option<(Client, ControlRequest)> {
        loop {
            let number = match accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(number) => number,
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(_) => return None,
            };
            // SAFETY: the kernel has just made it for this process, and nobody else knows it
            #[allow(unsafe_code)]
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            let Ok(peer) = getsockopt(&fd, PeerCredentials) else {
                continue;
            };
            if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
                continue;
            }
            // he speaks at once; the master has no time for one who does not
            let patience = TimeVal::milliseconds(200);
            let _ = setsockopt(&fd, ReceiveTimeout, &patience);
            let _ = setsockopt(&fd, SendTimeout, &patience);
            let mut word = [0; 16];
            let Ok(length) = recv(fd.as_raw_fd(), &mut word, MsgFlags::empty()) else {
                continue;
            };
            let word = word.get(..length).unwrap_or_default();
            let wish = [
                ControlRequest::Status,
                ControlRequest::Reload,
                ControlRequest::State,
            ]
            .into_iter()
            .find(|w| w.word() == word);
            if let Some(wish) = wish {
                let pid = u32::try_from(peer.pid()).unwrap_or(0);
                return Some((Client { fd, pid }, wish));
            }
        }
    }
}

impl Client {
    /// The exit code that `-s` is to have, and what it is to print.
    pub fn answer(self, code: u8, text: &str) {
        let mut bytes = vec![code];
        bytes.extend_from_slice(text.as_bytes());
        bytes.truncate(ANSWER);
        // one who has gone is not told
        let _ = send(self.fd.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
    }

    /// The answer to [`ControlRequest::State`].
    pub fn answer_state(self, state: Option<BorrowedFd<'_>>) {
        let rights: Vec<_> = state.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&rights)];
        let control: &[ControlMessage<'_>] = if state.is_some() { &rights } else { &[] };
        let parts = [IoSlice::new(&[0])];
        let flags = MsgFlags::MSG_NOSIGNAL;
        // one who has gone is not told
        let _ = sendmsg::<()>(self.fd.as_raw_fd(), &parts, control, flags, None);
    }
}

/// What became of asking.
pub(super) enum ControlReply {
    /// There is no desk: another program, or an older one.
    NoDesk,
    /// It ended without an answer.
    Silence,
    /// Exit code and text.
    Answer(u8, String),
}

/// Asks the master of that number and waits for its answer, for as long as `patience` says.
pub(super) fn ask(master: Pid, wish: ControlRequest, patience: Option<Duration>) -> ControlReply {
    let Some(fd) = connected(master) else {
        return ControlReply::NoDesk;
    };
    if !request(&fd, wish, patience) {
        return ControlReply::Silence;
    }
    let mut bytes = vec![0; ANSWER];
    loop {
        match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(length) => {
                return match bytes.get(..length).and_then(|b| b.split_first()) {
                    Some((code, text)) => {
                        ControlReply::Answer(*code, String::from_utf8_lossy(text).into_owned())
                    }
                    None => ControlReply::Silence,
                };
            }
            Err(Errno::EINTR) => continue,
            Err(_) => return ControlReply::Silence,
        }
    }
}

/// What the worker of the old process of an upgrade leaves to the next; `None` if it has nothing, does not know of this, or
/// does not answer in time.
pub(super) fn state_of(master: Pid, patience: Duration) -> Option<OwnedFd> {
    let fd = connected(master)?;
    request(&fd, ControlRequest::State, Some(patience)).then_some(())?;
    let mut byte = [0; 1];
    let mut control = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let mut fds = Vec::new();
    for c in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(list) = c {
            // SAFETY: the kernel has just made them for this process, and nobody else knows them
            #[allow(unsafe_code)]
            fds.extend(
                list.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    fds.into_iter().next()
}

fn connected(master: Pid) -> Option<OwnedFd> {
    let address = address(master)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    connect(fd.as_raw_fd(), &address).ok()?;
    // a process of another namespace may have the same name
    let peer = getsockopt(&fd, PeerCredentials).ok()?;
    (peer.pid() == master.as_raw()).then_some(fd)
}

/// False if the other side has gone.
fn request(fd: &OwnedFd, wish: ControlRequest, patience: Option<Duration>) -> bool {
    if let Some(patience) = patience {
        let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
        let _ = setsockopt(fd, ReceiveTimeout, &limit);
    }
    send(fd.as_raw_fd(), wish.word(), MsgFlags::MSG_NOSIGNAL).is_ok()
}

/// Numbers of processes mean something within their namespace only.
fn address(master: Pid) -> Option<UnixAddr> {
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let name = format!("couloir/{}/{master}", namespace.display());
    UnixAddr::new_abstract(name.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_and_answered() {
        let desk = Desk::open().unwrap();
        assert!(desk.next().is_none());
        let asking = std::thread::spawn(|| ask(Pid::this(), ControlRequest::Reload, None));
        let (client, wish) = loop {
            if let Some(found) = desk.next() {
                break found;
            }
            std::thread::yield_now();
        };
        assert_eq!(
            (wish, client.pid),
            (ControlRequest::Reload, std::process::id())
        );
        client.answer(1, "no");
        assert!(matches!(asking.join().unwrap(), ControlReply::Answer(1, text) if text == "no"));
        let asking = std::thread::spawn(|| ask(Pid::this(), ControlRequest::Status, None));
        let client = loop {
            if let Some((client, _)) = desk.next() {
                break client;
            }
            std::thread::yield_now();
        };
        drop(client);
        assert!(matches!(asking.join().unwrap(), ControlReply::Silence));
        drop(desk);
        assert!(matches!(
            ask(Pid::this(), ControlRequest::Status, None),
            ControlReply::NoDesk
        ));
    }
}
