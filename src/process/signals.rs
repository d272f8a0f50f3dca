//! Signals, read one after the other.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::log::{Level, process_log};

/// What a process is told by signals.
const WATCHED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCHLD,
];

/// The signals of this process, from now on kept until they are read.
pub(super) struct Signals {
    fd: SignalFd,
}

/// A signal and who sent it (0: the kernel).
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// The signal.
    pub signal: Signal,
    /// The sender's process.
    pub from: u32,
}

impl Signals {
    /// Blocks them in the calling thread and so in all that it starts: to be called before there are others.
    ///
    /// # Errors
    /// What the system says.
    pub fn block(flags: SfdFlags) -> nix::Result<Signals> {
        let set: SigSet = WATCHED.into_iter().collect();
        set.thread_block()?;
        Ok(Signals {
            fd: SignalFd::with_flags(&set, flags | SfdFlags::SFD_CLOEXEC)?,
        })
    }

    /// The next signal: waited for, or `None` where that is not wanted.
    ///
    /// # Errors
    /// What the system says.
    pub fn next(&self) -> nix::Result<Option<Received>> {
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => {
                    let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                    if let Ok(signal) = Signal::try_from(number) {
                        return Ok(Some(Received {
                            signal,
                            from: info.ssi_pid,
                        }));
                    }
                }
                Ok(None) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
        }
    }

    /// To wait for signals together with others.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Received {
    /// Logs it as nginx does; `action` is what follows from it.
    pub fn log(self, action: &str) {
        let (number, name, from) = (self.signal as i32, self.signal.as_str(), self.from);
        let log = process_log();
        match from {
            0 => log.write(
                Level::Notice,
                None,
                format_args!("signal {number} ({name}) received{action}"),
            ),
            _ => log.write(
                Level::Notice,
                None,
                format_args!("signal {number} ({name}) received from {from}{action}"),
            ),
        }
    }
}
