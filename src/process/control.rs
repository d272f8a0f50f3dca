//! `-s`: telling a running process what to do, and whether it did.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::control_socket::{ControlReply, ControlRequest, ask};
use super::{Program, control_socket, pid};
use crate::cli;
use crate::log::{ErrorLog, Level, Record, console, process_log};

/// Does to the process that the configuration's PID file names what was asked for; the result is the exit code.
///
/// The configuration is read first, so `-s reload` refuses a bad one here, where somebody sees it.
pub(super) fn send(program: &Program, signal: cli::Signal) -> i32 {
    let Some(loaded) = program.load() else {
        return 1;
    };
    let log = process_log();
    log.write(Level::Notice, None, format_args!("signal process started"));
    let path = loaded.site.main.pid.clone();
    drop(loaded);
    let Some(master) = number(&path, &log) else {
        return 1;
    };
    let signal = match signal {
        cli::Signal::Stop => Signal::SIGTERM,
        cli::Signal::Quit => Signal::SIGQUIT,
        cli::Signal::Reopen => Signal::SIGUSR1,
        cli::Signal::Reload => return reload(master, &log),
        cli::Signal::Upgrade => return upgrade(master, &path, &log),
    };
    i32::from(!tell(master, signal, &log))
}

/// The number that stands in the file; what is wrong with it has been logged.
fn number(path: &Path, log: &ErrorLog) -> Option<Pid> {
    match pid::read(path) {
        Ok(number) => Some(Pid::from_raw(number)),
        Err(pid::ReadError::File(error)) => {
            error.log_at(log, Level::Error);
            None
        }
        Err(pid::ReadError::Invalid(text)) => {
            let path = path.display();
            log.write(
                Level::Error,
                None,
                format_args!("invalid PID number \"{text}\" in \"{path}\""),
            );
            None
        }
    }
}

fn tell(master: Pid, signal: Signal, log: &ErrorLog) -> bool {
    let Err(errno) = kill(master, signal) else {
        return true;
    };
    log.record(&Record {
        errno: Some(errno.into()),
        ..Record::new(
            Level::Alert,
            format_args!("kill({master}, {}) failed", signal as i32),
        )
    });
    false
}

/// Waits for the master to have taken the configuration, or to say why not; one that cannot be asked gets a signal.
fn reload(master: Pid, log: &ErrorLog) -> i32 {
    match ask(master, ControlRequest::Reload, None) {
        ControlReply::NoDesk => i32::from(!tell(master, Signal::SIGHUP, log)),
        ControlReply::Silence => {
            console(
                Some(Level::Emerg),
                format_args!("the server ended before it answered"),
            );
            1
        }
        ControlReply::Answer(code, text) => {
            if !text.is_empty() {
                console(None, format_args!("{text}"));
            }
            i32::from(code)
        }
    }
}

/// How long a new process may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);

/// USR2, wait until the new process serves, QUIT to the old one; or back to that.
fn upgrade(old: Pid, path: &Path, log: &ErrorLog) -> i32 {
    let fail = |text: &str| {
        console(Some(Level::Emerg), format_args!("{text}"));
        log.write(Level::Error, None, format_args!("{text}"));
        1
    };
    let old_path = old_path(path);
    if let Some(why) = obstacle(&old_path) {
        return fail(&why);
    }
    if !tell(old, Signal::SIGUSR2, log) {
        return 1;
    }
    let end = Instant::now() + PATIENCE;
    let new = match await_heir(old, path, &old_path, end) {
        Ok(new) => new,
        Err(why) => {
            return fail(&format!(
                "the new process does not serve ({why}), process {old} goes on; the error log has the details"
            ));
        }
    };
    match ask(new, ControlRequest::Status, Some(PATIENCE)) {
        // nginx itself, or an older binary: that it wrote its number is all there is to know
        ControlReply::Answer(0, _) | ControlReply::NoDesk if kill(new, None).is_ok() => {}
        _ => {
            let _ = kill(new, Signal::SIGTERM);
            return fail(&format!(
                "the new process {new} does not answer and was ended, process {old} goes on"
            ));
        }
    }
    if !tell(old, Signal::SIGQUIT, log) {
        return 1;
    }
    log.write(
        Level::Notice,
        None,
        format_args!("upgraded: process {new} serves, process {old} finishes what is under way"),
    );
    console(
        None,
        format_args!("process {new} serves, process {old} finishes what is under way"),
    );
    0
}

/// What stands in the way of an upgrade: the old process of another one that may yet go back to work. One that only
/// finishes what is under way (open WebSockets take long) may be joined by the next, and one that has ended without
/// removing its file is forgotten.
fn obstacle(old_path: &Path) -> Option<String> {
    if !old_path.exists() {
        return None;
    }
    let shown = old_path.display();
    let Ok(number) = pid::read(old_path) else {
        return Some(format!("\"{shown}\" is there, and no number stands in it"));
    };
    let earlier = Pid::from_raw(number);
    if kill(earlier, None) == Err(nix::errno::Errno::ESRCH) {
        // the process that upgrades puts its own number there
        return None;
    }
    if control_socket::drains(earlier) {
        return None;
    }
    Some(format!(
        "\"{shown}\" is there: another upgrade is under way. Process {earlier} is to be told to finish (QUIT) or to end (TERM) first"
    ))
}

/// Waits until the new process has written its number, which it does once it serves.
fn await_heir(old: Pid, path: &Path, old_path: &Path, end: Instant) -> Result<Pid, &'static str> {
    let mut begun = false;
    let mut patience_for_start = Instant::now() + Duration::from_secs(5);
    loop {
        let renamed = pid::read(old_path).is_ok_and(|n| n == old.as_raw());
        let number = pid::read(path).ok().map(Pid::from_raw);
        begun |= renamed;
        match number {
            Some(new) if new != old && kill(new, None).is_ok() => return Ok(new),
            Some(new) if new == old && begun => return Err("it has ended"),
            _ => {}
        }
        if kill(old, None).is_err() {
            return Err("the old process has ended");
        }
        if !begun && Instant::now() > patience_for_start {
            // the file is renamed for a moment only if the new process fails at once
            return Err("the old process did not begin one");
        }
        if begun {
            patience_for_start = end;
        }
        if Instant::now() > end {
            return Err("it took too long");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn old_path(path: &Path) -> PathBuf {
    let mut old = path.as_os_str().to_owned();
    old.push(".oldbin");
    old.into()
}
