//! Another binary takes over, by nginx's procedure: USR2, then QUIT to the old process (or to the new one).

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Pid;

use super::super::{inherit, keep_from_programs, pid, user};
use super::Master;
use crate::log::{Errno, Level, Record, process_log};

impl Master {
    /// USR2: executes what now stands where this program stood, with all sockets.
    pub(super) fn upgrade(&mut self) {
        let log = process_log();
        log.write(Level::Notice, None, format_args!("changing binary"));
        if self.ready.is_some() || self.stopping() {
            log.write(
                Level::Crit,
                None,
                format_args!(
                    "the changing binary signal is ignored: the process is about to start or to end"
                ),
            );
            return;
        }
        let Some((program, arguments)) = self.arguments.split_first() else {
            return;
        };
        let shown = Path::new(program).display().to_string();
        let (path, old) = (self.main.pid.clone(), self.old_pid_path());
        if let Some(elder) = self.elder.filter(|_| self.has_elder()) {
            // the file is this process's from now on
            log.write(
                Level::Notice,
                None,
                format_args!(
                    "process {elder} of an earlier upgrade still finishes what is under way"
                ),
            );
        }
        if let Err(error) = std::fs::rename(&path, &old) {
            return alert(
                &error,
                &format!(
                    "rename() {} to {} failed before executing new binary process \"{shown}\"",
                    path.display(),
                    old.display()
                ),
            );
        }
        let numbers = self.sockets.numbers();
        let list: String = numbers.iter().map(|n| format!("{n};")).collect();
        let mut command = Command::new(program);
        command
            .arg0(program)
            .args(arguments)
            .env_clear()
            .envs(user::environment(&self.main))
            .envs(self.notify.variables().iter().map(|(n, v)| (*n, v)))
            .envs(search_path(program))
            .env(inherit::NGINX, list);
        set_inheritance(&numbers, true);
        let child = command.spawn();
        set_inheritance(&numbers, false);
        let pid = child.and_then(|child| {
            let number = i32::try_from(child.id()).map_err(std::io::Error::other)?;
            Ok(Pid::from_raw(number))
        });
        match pid {
            Ok(pid) => {
                log.write(
                    Level::Notice,
                    None,
                    format_args!("start new binary process {pid}"),
                );
                self.heir = Some(pid);
            }
            Err(error) => {
                let call = match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOMEM) => "fork() failed while spawning",
                    _ => "execve() failed while executing",
                };
                alert(&error, &format!("{call} new binary process \"{shown}\""));
                self.take_pid_file_back(&format!(
                    "after an attempt to execute new binary process \"{shown}\""
                ));
            }
        }
    }

    /// The new process has ended: this one is the only one again.
    pub(super) fn lose_heir(&mut self) {
        self.heir = None;
        let program = self.arguments.first();
        let shown = Path::new(program.map_or(OsStr::new(""), |p| p)).display();
        self.take_pid_file_back(&format!("after the new binary process \"{shown}\" exited"));
        if self.resting && !self.stopping() {
            self.resume();
        }
    }

    fn take_pid_file_back(&self, when: &str) {
        let (path, old) = (&self.main.pid, self.old_pid_path());
        let own = match pid::read(&old) {
            Ok(number) => u32::try_from(number) == Ok(std::process::id()),
            Err(_) => !self.stopping(),
        };
        if !own {
            // the new process has been followed by another, whose upgrade the file belongs to
            return;
        }
        if let Err(error) = std::fs::rename(&old, path) {
            let (old, path) = (old.display(), path.display());
            alert(
                &error,
                &format!("rename() {old} back to {path} failed {when}"),
            );
        }
    }

    /// Where this process's number stands.
    pub(super) fn pid_path(&self) -> PathBuf {
        match self.heir {
            Some(_) => self.old_pid_path(),
            None => self.main.pid.clone(),
        }
    }

    fn old_pid_path(&self) -> PathBuf {
        let mut path = self.main.pid.clone().into_os_string();
        path.push(".oldbin");
        path.into()
    }
}

/// A program that was called by a bare name is looked for where the shell found it.
fn search_path(program: &OsStr) -> Option<(&'static str, std::ffi::OsString)> {
    let bare = !program.as_encoded_bytes().contains(&b'/');
    std::env::var_os("PATH")
        .filter(|_| bare)
        .map(|path| ("PATH", path))
}

fn set_inheritance(numbers: &[RawFd], inherit: bool) {
    for number in numbers {
        // SAFETY: the sockets are open for as long as the list of them is used
        #[allow(unsafe_code)]
        let fd = unsafe { BorrowedFd::borrow_raw(*number) };
        let _ = keep_from_programs(&fd, !inherit);
    }
}

fn alert(error: &std::io::Error, message: &str) {
    process_log().record(&Record {
        errno: Some(Errno::of(error)),
        ..Record::new(Level::Alert, format_args!("{message}"))
    });
}
