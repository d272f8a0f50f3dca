//! What a master and a worker tell each other: packets with descriptors, over a pair of sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{SendTimeout, SockType};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, getsockopt, recvmsg,
    sendmsg, setsockopt, socketpair,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Further descriptors of the packet that follows.
    More = 0,
    /// To a worker: load this configuration. Descriptors: the package, the list of the others, the others.
    Configure = 1,
    /// To a worker: write on to these logs. Descriptors: the list of them, then they.
    Reopen = 2,
    /// To a worker: finish what is under way and end.
    Quit = 3,
    /// To a worker: end at once.
    Terminate = 4,
    /// From a worker: the configuration is in force. The text says what changed.
    Accepted = 5,
    /// From a worker: the configuration cannot be had. The text says why.
    Refused = 6,
    /// To a worker: these files are new. Descriptor: their contents.
    Certificates = 7,
    /// To a worker: say what the next worker is to know.
    GiveState = 8,
    /// From a worker, and to the next: what it is to know. Descriptor: the state; none where there is none.
    State = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::*;
        let all = [
            More,
            Configure,
            Reopen,
            Quit,
            Terminate,
            Accepted,
            Refused,
            Certificates,
            GiveState,
            State,
        ];
        all.into_iter().find(|k| *k as u8 == byte)
    }
}

/// One message.
#[derive(Debug)]
pub(super) struct Packet {
    /// What it is about.
    pub kind: Kind,
    /// The configuration that it is about.
    pub number: u64,
    /// For the log and the terminal.
    pub text: String,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// One end.
pub(super) struct Channel {
    fd: OwnedFd,
}

/// Descriptors in one packet; the kernel takes 253.
const FDS: usize = 200;

/// Bytes of a text; a packet must fit the socket's buffer.
const TEXT: usize = 32 * 1024;

/// How long a sender waits for one who does not read.
const PATIENCE: Duration = Duration::from_secs(10);

impl Channel {
    /// Two ends that see each other; neither is left to programs that are executed.
    ///
    /// # Errors
    /// What the system says.
    pub fn pair() -> nix::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Channel::new(ours), theirs))
    }

    /// The end that was inherited under this number; `None` if there is no such socket.
    pub fn inherited(number: RawFd) -> Option<Channel> {
        // SAFETY: only asked what it is; a number that is not open gives an error
        #[allow(unsafe_code)]
        let borrowed = (number > 2).then(|| unsafe { BorrowedFd::borrow_raw(number) })?;
        let kind = getsockopt(&borrowed, SockType).ok()?;
        (kind == nix::sys::socket::SockType::SeqPacket).then_some(())?;
        // SAFETY: it is open, was left to this process by the master for this purpose, and nobody else has it
        #[allow(unsafe_code)]
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        super::keep_from_programs(&fd, true).ok()?;
        Some(Channel::new(fd))
    }

    fn new(fd: OwnedFd) -> Channel {
        let patience = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
        // without it a sender would wait longer, no more
        let _ = setsockopt(&fd, SendTimeout, &patience);
        Channel { fd }
    }

    /// The socket, to wait for packets.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Sends a message. Descriptors beyond what one packet takes go ahead in packets of their own.
    ///
    /// # Errors
    /// The other end is gone, or has not read for long.
    pub fn send(
        &self,
        kind: Kind,
        number: u64,
        text: &str,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut rest: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        while rest.len() > FDS {
            let later = rest.split_off(FDS);
            self.packet(Kind::More, number, "", &rest)?;
            rest = later;
        }
        self.packet(kind, number, text, &rest)
    }

    fn packet(&self, kind: Kind, number: u64, text: &str, fds: &[RawFd]) -> io::Result<()> {
        let mut end = text.len().min(TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let head = [&[kind as u8][..], &number.to_le_bytes()].concat();
        let text = text.get(..end).unwrap_or_default().as_bytes();
        let parts = [IoSlice::new(&head), IoSlice::new(text)];
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        loop {
            match sendmsg::<()>(
                self.fd.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next message; `None` when the other end is gone.
    ///
    /// # Errors
    /// What the system says, or a packet that makes no sense.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        let mut all = Vec::new();
        loop {
            let Some(mut packet) = self.receive_one()? else {
                return Ok(None);
            };
            all.append(&mut packet.fds);
            if packet.kind != Kind::More {
                packet.fds = all;
                return Ok(Some(packet));
            }
        }
    }

    fn receive_one(&self) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; 9 + TEXT];
        let mut control = cmsg_space!([RawFd; FDS]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let (length, fds) = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.fd.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => {
                    let mut fds = Vec::new();
                    for c in message.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(list) = c {
                            // SAFETY: the kernel has just made them for this process, and nobody else knows them
                            #[allow(unsafe_code)]
                            fds.extend(
                                list.into_iter()
                                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                            );
                        }
                    }
                    break (message.bytes, fds);
                }
                Err(Errno::EINTR) => continue,
                // the other end died with unread packets
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let packet = bytes.get(..length).and_then(|packet| {
            let (kind, rest) = packet.split_first()?;
            let (number, text) = rest.split_first_chunk::<8>()?;
            Some(Packet {
                kind: Kind::of(*kind)?,
                number: u64::from_le_bytes(*number),
                text: String::from_utf8_lossy(text).into_owned(),
                fds,
            })
        });
        packet
            .map(Some)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn packets_with_many_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::new(b);
        let null = std::fs::File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); 450];
        a.send(Kind::Configure, 7, "text", &many).unwrap();
        let packet = b.receive().unwrap().unwrap();
        assert_eq!((packet.kind, packet.number), (Kind::Configure, 7));
        assert_eq!((packet.text.as_str(), packet.fds.len()), ("text", 450));
        b.send(Kind::Refused, 8, &"ä".repeat(TEXT), &[]).unwrap();
        assert_eq!(a.receive().unwrap().unwrap().text, "ä".repeat(TEXT / 2));
        drop(b);
        assert!(a.receive().unwrap().is_none());
        assert!(Channel::inherited(null.as_raw_fd()).is_none());
    }
}
