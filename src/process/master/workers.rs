//! Beginning, hearing and burying workers.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::channel::{Channel, Kind, Packet};
use super::super::daemon::stderr_of_worker;
use super::super::handoff::{Manifest, SocketEntry};
use super::super::sockets::Handle;
use super::super::worker::STATE_FOLLOWS;
use super::super::{keep_from_programs, user, worker};
use super::{End, Master};
use crate::log::{Errno, Level, LogFile, Record, console, process_log};

/// A process that serves, or is about to, or has done so.
pub(super) struct Worker {
    pub pid: Pid,
    /// `None` once it has closed its end.
    pub channel: Option<Channel>,
    /// The configuration that it was given last.
    pub number: u64,
    pub phase: Phase,
    begun: Instant,
}

/// A worker's stage of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not said yet that it serves.
    Starting,
    /// It accepts.
    Serving,
    /// It was told to finish.
    Leaving,
}

/// When a dead worker is followed by the next: at once, and later if that dies soon.
#[derive(Default)]
pub(super) struct Respawn {
    due: Option<Instant>,
    pause: Duration,
}

/// A worker that lived this long was no failure.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// The longest pause between two attempts.
const MOST: Duration = Duration::from_secs(5);

impl Respawn {
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    pub fn begin(&mut self) {
        self.due = None;
    }

    /// A worker has died that lived so long.
    fn after(&mut self, life: Duration) {
        if life >= LONG_LIFE {
            self.pause = Duration::ZERO;
        }
        self.due = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).clamp(Duration::from_millis(100), MOST);
    }

    /// No worker could be begun.
    pub fn later(&mut self) {
        self.after(Duration::ZERO);
    }
}

/// What a worker is given besides its package.
pub(super) struct WorkerBootstrap<'a> {
    pub package: &'a std::os::fd::OwnedFd,
    pub sockets: &'a [Handle],
    pub logs: &'a [std::sync::Arc<LogFile>],
    /// Whether it waits for the state of the worker before.
    pub state: bool,
}

impl WorkerBootstrap<'_> {
    /// Sends all of it.
    pub fn give(&self, channel: &Channel, number: u64) -> io::Result<()> {
        let entry = |h: &Handle| SocketEntry {
            id: h.id,
            addr: h.addr.clone(),
            count: h.fds.len(),
        };
        let manifest = Manifest {
            sockets: self.sockets.iter().map(entry).collect(),
            logs: self.logs.iter().map(|l| l.path().to_owned()).collect(),
        };
        let manifest = manifest.seal()?;
        let logs: Vec<_> = self.logs.iter().map(|l| l.descriptor()).collect();
        let mut fds = vec![self.package.as_fd(), manifest.as_fd()];
        fds.extend(
            self.sockets
                .iter()
                .flat_map(|h| &h.fds)
                .map(|fd| fd.as_fd()),
        );
        fds.extend(logs.iter().map(|fd| fd.as_fd()));
        let text = if self.state { STATE_FOLLOWS } else { "" };
        channel.send(Kind::Configure, number, text, &fds)
    }
}

impl Master {
    /// Begins a worker for the configuration in force.
    pub(super) fn start_worker(&mut self) -> bool {
        process_log().write(Level::Notice, None, format_args!("start worker processes"));
        let (package, number) = (self.package.clone(), self.number);
        let (sockets, logs) = (self.sockets.all(), self.logs.clone());
        // the first worker after an upgrade goes on where that of the old process stands
        let elder = self
            .elder
            .filter(|_| self.ready.is_some() && self.has_elder());
        let gifts = WorkerBootstrap {
            package: &package,
            sockets: &sockets,
            logs: &logs,
            state: elder.is_some(),
        };
        let main = self.main.clone();
        let Some(pid) = self.spawn(&gifts, number, &main) else {
            return false;
        };
        if let Some(elder) = elder {
            self.take_state_of(elder, pid);
        }
        true
    }

    /// Executes this program's own file as a worker.
    pub(super) fn spawn(
        &mut self,
        gifts: &WorkerBootstrap<'_>,
        number: u64,
        main: &crate::contract::MainConf,
    ) -> Option<Pid> {
        let failed = |what: &str, errno: Errno| {
            process_log().record(&Record {
                errno: Some(errno),
                ..Record::new(Level::Alert, format_args!("{what}"))
            });
        };
        let (channel, theirs) = Channel::pair()
            .map_err(|e| {
                failed(
                    "socketpair() failed while spawning \"worker process\"",
                    e.into(),
                )
            })
            .ok()?;
        let path = format!("/proc/self/fd/{}", self.executable.as_raw_fd());
        let mut command = Command::new(&path);
        command
            .arg0(format!("{}: worker process", self.title.program()))
            .env_clear()
            .envs(user::environment(main))
            .env(worker::CHANNEL, theirs.as_raw_fd().to_string())
            .stderr(stderr_of_worker(&process_log(), self.detached));
        // no other program is executed between these two
        let _ = keep_from_programs(&theirs, false);
        let child = command.spawn();
        drop(theirs);
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                let call = match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOMEM) => "fork() failed while spawning",
                    _ => "execve() failed while spawning",
                };
                failed(&format!("{call} \"worker process\""), Errno::of(&error));
                return None;
            }
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).ok()?);
        process_log().write(
            Level::Notice,
            None,
            format_args!("start worker process {pid}"),
        );
        if let Err(error) = gifts.give(&channel, number) {
            // it will end by itself, and be reaped
            failed("sendmsg() to a new worker failed", Errno::of(&error));
        }
        self.workers.push(Worker {
            pid,
            channel: Some(channel),
            number,
            phase: Phase::Starting,
            begun: Instant::now(),
        });
        Some(pid)
    }

    /// Tells every worker that was not told so before.
    pub(super) fn tell_workers(&mut self, kind: Kind) {
        for worker in &mut self.workers {
            if kind == Kind::Quit && worker.phase == Phase::Leaving {
                continue;
            }
            worker.phase = Phase::Leaving;
            let told = worker
                .channel
                .as_ref()
                .is_some_and(|c| c.send(kind, 0, "", &[]).is_ok());
            if !told {
                let signal = match kind {
                    Kind::Quit => nix::sys::signal::Signal::SIGQUIT,
                    _ => nix::sys::signal::Signal::SIGTERM,
                };
                // one that has ended is reaped next
                let _ = nix::sys::signal::kill(worker.pid, signal);
            }
        }
    }

    /// Reads what workers say.
    pub(super) fn hear_workers(&mut self) -> Option<End> {
        for index in 0..self.workers.len() {
            while let Some(worker) = self.workers.get_mut(index) {
                let Some(channel) = &worker.channel else {
                    break;
                };
                let mut fds = [PollFd::new(channel.fd().as_fd(), PollFlags::POLLIN)];
                if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) {
                    break;
                }
                match channel.receive() {
                    Ok(Some(packet)) => {
                        let pid = worker.pid;
                        if let Some(end) = self.hear(pid, packet) {
                            return Some(end);
                        }
                    }
                    Ok(None) | Err(_) => worker.channel = None,
                }
            }
        }
        None
    }

    fn hear(&mut self, pid: Pid, packet: Packet) -> Option<End> {
        let worker = self.workers.iter_mut().find(|w| w.pid == pid)?;
        match packet.kind {
            Kind::Accepted => {
                if worker.phase == Phase::Starting {
                    worker.phase = Phase::Serving;
                }
                if packet.number == self.number {
                    // one that took a dead one's place knows the files of when the configuration was read
                    self.catch_up(pid);
                }
                if self
                    .pending
                    .as_ref()
                    .is_some_and(|p| p.number == packet.number)
                {
                    self.accept_pending(pid, &packet.text);
                }
                if self.stopping() {
                    return None;
                }
                self.become_ready()
            }
            Kind::State => {
                self.pass_state(pid, packet.fds);
                None
            }
            Kind::Refused => {
                if self
                    .pending
                    .as_ref()
                    .is_some_and(|p| p.number == packet.number)
                {
                    self.refuse_pending(&packet.text);
                } else if self.ready.is_some() {
                    // it has logged this; the terminal is the master's
                    console(Some(Level::Emerg), format_args!("{}", packet.text));
                }
                None
            }
            _ => None,
        }
    }

    /// Buries children, those of others included: as process 1 of a container everybody's orphans are this one's.
    pub(super) fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    self.say_ended(pid, &format!("exited with code {code}"), Level::Notice);
                    self.bury(pid, Some(code));
                }
                Ok(WaitStatus::Signaled(pid, signal, core)) => {
                    let core = if core { " (core dumped)" } else { "" };
                    let how = format!("exited on signal {}{core}", signal as i32);
                    self.say_ended(pid, &how, Level::Alert);
                    self.bury(pid, None);
                }
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Err(nix::errno::Errno::EINTR) | Ok(_) => {}
                Err(errno) => return self.alert("waitpid() failed", errno.into()),
            }
        }
    }

    fn say_ended(&self, pid: Pid, how: &str, level: Level) {
        let name = if self.workers.iter().any(|w| w.pid == pid) {
            "worker process"
        } else if self.heir == Some(pid) {
            "new binary process"
        } else {
            "unknown process"
        };
        process_log().write(level, None, format_args!("{name} {pid} {how}"));
    }

    fn bury(&mut self, pid: Pid, code: Option<i32>) {
        if self.heir == Some(pid) {
            return self.lose_heir();
        }
        let Some(index) = self.workers.iter().position(|w| w.pid == pid) else {
            return;
        };
        // its last words first
        let ended = self.hear_last_words(pid);
        let worker = self.workers.remove(index);
        // who waits for its state hears that there is none
        self.state_clients.clear();
        let waited = self.pending.as_ref().is_some_and(|p| p.worker == Some(pid));
        if waited {
            self.refuse_pending("the worker process ended while it took the configuration");
        }
        if ended.is_some() || self.stopping() {
            return;
        }
        if self.ready.is_some() {
            // a server whose first worker cannot serve has not started
            let text = match code {
                Some(code) => format!("the worker process exited with code {code}"),
                None => "the worker process was killed".to_owned(),
            };
            process_log().write(Level::Emerg, None, format_args!("{text} before it served"));
            self.failed = true;
            self.quitting = true;
            return;
        }
        let serves = self
            .workers
            .iter()
            .any(|w| w.phase != Phase::Leaving && Some(w.pid) != self.trying());
        if worker.phase != Phase::Leaving && !self.resting && !serves {
            self.respawn.after(worker.begun.elapsed());
        }
    }

    /// The process that tries a configuration, if it is another than the one that serves.
    fn trying(&self) -> Option<Pid> {
        self.pending.as_ref().and_then(|p| p.worker).filter(|pid| {
            self.workers
                .iter()
                .any(|w| w.pid == *pid && w.phase == Phase::Starting)
        })
    }

    fn hear_last_words(&mut self, pid: Pid) -> Option<End> {
        while let Some(channel) = self
            .workers
            .iter()
            .find(|w| w.pid == pid)
            .and_then(|w| w.channel.as_ref())
        {
            match channel.receive() {
                Ok(Some(packet)) => {
                    if let Some(end) = self.hear(pid, packet) {
                        return Some(end);
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        None
    }

    /// Waits for all workers to end, where the process is not to live on.
    pub(super) fn wait_for_workers(&mut self) {
        while let Some(worker) = self.workers.pop() {
            drop(worker.channel);
            let _ = waitpid(worker.pid, None);
        }
    }
}
