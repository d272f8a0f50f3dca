//! Leaving the terminal (`daemon on`).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Stdio;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

use crate::log::{ErrorLog, Level, Record};

/// Which of the two processes this is after [`detach`].
pub(super) enum Side {
    /// The one that was started: it ends with this exit code, once the other one serves or has failed.
    Starter(i32),
    /// The one that serves.
    Daemon(Ready),
}

/// Tells the process that was started that it may end; dropped without a word, it ends with 1.
pub(super) struct Ready(Option<File>);

impl Ready {
    /// DetachedConn waits: the process is in the foreground.
    pub fn nobody() -> Ready {
        Ready(None)
    }

    /// Whether the process has left the terminal.
    pub fn detached(&self) -> bool {
        self.0.is_some()
    }

    /// Everything listens.
    pub fn tell(self) {
        if let Some(mut pipe) = self.0 {
            // a starter that was killed needs no answer
            let _ = pipe.write_all(b"1");
        }
    }
}

/// Goes on in a process of its own session. There must be no other thread.
///
/// # Errors
/// The call that failed has been logged.
pub(super) fn detach(log: &ErrorLog) -> Result<Side, ()> {
    let failed = |what: &str, errno: nix::errno::Errno| {
        log.record(&Record {
            errno: Some(errno.into()),
            ..Record::new(Level::Emerg, format_args!("{what} failed"))
        });
    };
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| failed("pipe()", e))?;
    // SAFETY: the process has one thread, so nothing is locked or half done in the copy
    #[allow(unsafe_code)]
    let forked = unsafe { fork() };
    match forked.map_err(|e| failed("fork()", e))? {
        ForkResult::Parent { .. } => {
            drop(write);
            let mut word = [0];
            let served = matches!(File::from(read).read(&mut word), Ok(1));
            Ok(Side::Starter(i32::from(!served)))
        }
        ForkResult::Child => {
            drop(read);
            setsid().map_err(|e| failed("setsid()", e))?;
            // nginx clears the mask; kept narrow here, so that nothing is ever writable by everybody
            umask(Mode::S_IWGRP | Mode::S_IWOTH);
            let null = File::options().read(true).write(true).open("/dev/null");
            let null = null.map_err(|e| {
                failed(
                    "open(\"/dev/null\")",
                    nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
                )
            })?;
            dup2_stdin(&null).map_err(|e| failed("dup2(STDIN)", e))?;
            dup2_stdout(&null).map_err(|e| failed("dup2(STDOUT)", e))?;
            Ok(Side::Daemon(Ready(Some(File::from(write)))))
        }
    }
}

/// What a worker has for an error stream: what [`redirect_stderr`] turns that of its master to.
pub(super) fn stderr_of_worker(log: &ErrorLog, detached: bool) -> Stdio {
    if log.keeps_stderr() {
        return Stdio::inherit();
    }
    match log.file().map(|file| file.descriptor().try_clone()) {
        Some(Ok(fd)) => Stdio::from(fd),
        _ if detached => Stdio::null(),
        _ => Stdio::inherit(),
    }
}

/// Turns the error stream to the error log's first file, as nginx does; `error_log stderr` leaves it, on whichever level it stands.
pub(super) fn redirect_stderr(log: &ErrorLog, detached: bool) {
    if log.keeps_stderr() {
        return;
    }
    if let Some(file) = log.file() {
        let fd = file.descriptor();
        let _ = dup2_stderr(fd.as_fd());
    } else if detached && let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stderr(&null);
    }
}
