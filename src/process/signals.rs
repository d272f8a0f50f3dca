//! Signals, taken one after the other by a thread that does nothing else.

use std::sync::mpsc::Sender;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::supervisor::Event;
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

impl Signals {
    /// Blocks them in the calling thread and so in all that it starts: to be called before there are others.
    ///
    /// # Errors
    /// What the system says.
    pub fn block() -> nix::Result<Signals> {
        let set: SigSet = WATCHED.into_iter().collect();
        set.thread_block()?;
        Ok(Signals {
            fd: SignalFd::new(&set)?,
        })
    }

    /// Logs each signal as nginx does and passes it on, until nobody listens.
    pub fn forward(self, to: &Sender<Event>) {
        loop {
            let info = match self.fd.read_signal() {
                Ok(Some(info)) => info,
                Ok(None) => continue,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            let Some(signal) = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok())
            else {
                continue;
            };
            if signal == Signal::SIGCHLD {
                reap();
                continue;
            }
            let action = match signal {
                Signal::SIGHUP => ", reconfiguring",
                Signal::SIGQUIT => ", shutting down",
                Signal::SIGTERM | Signal::SIGINT => ", exiting",
                Signal::SIGUSR1 => ", reopening logs",
                _ => ", not supported yet",
            };
            let (number, name, pid) = (signal as i32, signal.as_str(), info.ssi_pid);
            let log = process_log();
            match pid {
                0 => log.write(
                    Level::Notice,
                    None,
                    format_args!("signal {number} ({name}) received{action}"),
                ),
                _ => log.write(
                    Level::Notice,
                    None,
                    format_args!("signal {number} ({name}) received from {pid}{action}"),
                ),
            }
            if to.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    }
}

/// Buries orphans: as process 1 of a container, everybody's children become this one's.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
