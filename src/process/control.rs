//! `-s`: telling a running process what to do.

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Program, pid};
use crate::cli;
use crate::log::{Level, Record, process_log};

/// Sends the signal to the process that the configuration's PID file names; the result is the exit code.
///
/// The configuration is read first, so `-s reload` refuses a bad one here, where somebody sees it.
pub(super) fn send(program: &Program, signal: cli::Signal) -> i32 {
    use nix::sys::signal::Signal;
    let signal = match signal {
        cli::Signal::Stop => Signal::SIGTERM,
        cli::Signal::Quit => Signal::SIGQUIT,
        cli::Signal::Reopen => Signal::SIGUSR1,
        cli::Signal::Reload => Signal::SIGHUP,
    };
    let Some(loaded) = program.load() else {
        return 1;
    };
    let log = process_log();
    log.write(Level::Notice, None, format_args!("signal process started"));
    let path = &loaded.site.main.pid;
    let number = match pid::read(path) {
        Ok(number) => number,
        Err(pid::ReadError::File(error)) => {
            error.log_at(&log, Level::Error);
            return 1;
        }
        Err(pid::ReadError::Invalid(text)) => {
            let path = path.display();
            log.write(
                Level::Error,
                None,
                format_args!("invalid PID number \"{text}\" in \"{path}\""),
            );
            return 1;
        }
    };
    match kill(Pid::from_raw(number), signal) {
        Ok(()) => 0,
        Err(errno) => {
            let signal = signal as i32;
            log.record(&Record {
                errno: Some(errno.into()),
                ..Record::new(
                    Level::Alert,
                    format_args!("kill({number}, {signal}) failed"),
                )
            });
            1
        }
    }
}
