//! The master: one thread that owns what needs rights and must outlive a worker. It reads the configuration, holds
//! sockets, logs and the PID file, and looks after one worker that serves.

mod certificates;
mod reload;
mod state;
mod upgrade;
mod workers;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SfdFlags;
use nix::unistd::{Pid, getppid};

use self::reload::Pending;
use self::workers::{Respawn, Worker};
use super::channel::Kind;
use super::control_socket::{Client, ControlRequest, DRAINS, Desk, drains};
use super::daemon::{Ready, redirect_stderr};
use super::handoff::{Manifest, Package};
use super::notify::Notify;
use super::serving::ends;
use super::signals::{Received, Signals};
use super::sockets::Sockets;
use super::start::Started;
use super::title::{self, Title};
use super::user::{self, Identity};
use super::{Program, pid};
use crate::config::load_inputs::Outside;
use crate::contract::MainConf;
use crate::log::{Level, LogFile, LogFiles, Record, process_log, use_stderr};
use crate::serve::certificates::watched;
use crate::tls::watch::Watch;

/// All that a master knows.
pub(super) struct Master {
    program: Program,
    signals: Signals,
    /// This program's file, which stays what it is if another is put in its place.
    executable: File,
    /// How this program was called, for its successor and for the title.
    arguments: Vec<OsString>,
    /// How titles begin.
    title: Title,
    sockets: Sockets,
    logs: Vec<Arc<LogFile>>,
    main: MainConf,
    identity: Option<Identity>,
    /// The configuration in force, for a worker that takes a dead one's place.
    package: Arc<OwnedFd>,
    threads: usize,
    /// What its worker was given and gave away.
    rights: user::Rights,
    /// The number of the configuration in force, and the last one given away.
    number: u64,
    numbers: u64,
    workers: Vec<Worker>,
    respawn: Respawn,
    /// A configuration that a worker is trying.
    pending: Option<Pending>,
    /// ControlReply for while that goes on: one more reload, and who waits for it.
    again: Option<Vec<Client>>,
    desk: Option<Desk>,
    notify: Notify,
    /// Who waits for the start to succeed; none once it has.
    ready: Option<Ready>,
    detached: bool,
    /// Whether WINCH means something: the process has left the terminal, or was begun by an upgrade.
    daemonized: bool,
    /// The parent, if it is the old process of an upgrade.
    elder: Option<Pid>,
    /// The new process of an upgrade.
    heir: Option<Pid>,
    /// WINCH: no worker is wanted.
    resting: bool,
    quitting: bool,
    /// Whether the first worker could not serve.
    failed: bool,
    /// The files of the configuration's certificates.
    certificates: Watch,
    /// What of them has changed since it was read.
    renewed: Outside,
    /// TERM: when workers are told again, and how long after that.
    terminating: Option<(Instant, Duration)>,
    /// The new process of an upgrade, which waits for the worker's state.
    state_clients: Vec<Client>,
}

/// What ends the loop.
type End = i32;

/// Workers that do not heed TERM are killed once the pauses between reminders are longer than this.
const KILL_AFTER: Duration = Duration::from_secs(1);

impl Master {
    /// Runs to the end of the process; the result is the exit code.
    pub fn run(started: Started, ready: Ready) -> i32 {
        match Master::new(started, ready) {
            Ok(master) => master.live(),
            Err(code) => code,
        }
    }

    fn new(started: Started, ready: Ready) -> Result<Master, i32> {
        let log = process_log();
        let emerg = |what: &str, errno: crate::log::Errno| {
            log.record(&Record {
                errno: Some(errno),
                ..Record::new(Level::Emerg, format_args!("{what} failed"))
            });
            2
        };
        let signals =
            Signals::block(SfdFlags::SFD_NONBLOCK).map_err(|e| emerg("signalfd()", e.into()))?;
        let executable = File::open("/proc/self/exe")
            .map_err(|e| emerg("open(\"/proc/self/exe\")", crate::log::Errno::of(&e)))?;
        let Started {
            program,
            site,
            outside,
            mut sockets,
            prepared,
            identity,
            upgrade,
            logs: named,
            elder,
        } = started;
        pid::rehearse(&site.main.pid).map_err(|error| {
            error.log(&log);
            1
        })?;
        let title = Title::new(title::program_name());
        let arguments: Vec<OsString> = program.arguments.clone();
        title.set(&title::of_master(&arguments));
        let detached = ready.detached();
        let threads = site.main.worker_threads.max(1);
        let rights = user::Rights::of(&site, identity.clone());
        let package = Package {
            program: title.program().to_owned(),
            daemonized: detached || upgrade,
            threads,
            rights: rights.clone(),
            load: program.load.clone(),
            outside: Arc::new(outside),
        };
        let package = package
            .seal()
            .map_err(|e| emerg("memfd_create()", crate::log::Errno::of(&e)))?;
        let notify = Notify::new(upgrade);
        sockets.commit(prepared, &site.listeners, &log);
        // these keep open what nothing else holds: no more than what the configuration in force names
        let logs = named;
        Ok(Master {
            program,
            signals,
            executable,
            arguments,
            title,
            sockets,
            logs,
            main: site.main.clone(),
            identity,
            package: Arc::new(package),
            threads,
            rights,
            number: 1,
            numbers: 1,
            workers: Vec::new(),
            respawn: Respawn::default(),
            pending: None,
            again: None,
            desk: Desk::open(),
            notify,
            ready: Some(ready),
            detached,
            daemonized: detached || upgrade,
            elder: elder.filter(|_| upgrade),
            heir: None,
            resting: false,
            quitting: false,
            failed: false,
            certificates: watched(&site),
            renewed: Outside::default(),
            terminating: None,
            state_clients: Vec::new(),
        })
    }

    fn live(mut self) -> i32 {
        if !self.start_worker() {
            self.close();
            return 1;
        }
        let code = loop {
            if let Some(code) = self.turn() {
                break code;
            }
        };
        self.leave(code);
        code
    }

    /// Waits for something to happen, and does what follows from it.
    fn turn(&mut self) -> Option<End> {
        self.wait();
        loop {
            match self.signals.next() {
                Ok(Some(received)) => self.obey(received),
                Ok(None) => break,
                Err(errno) => {
                    self.alert("read() from signalfd failed", errno.into());
                    return Some(2);
                }
            }
        }
        if let Some(end) = self.hear_workers() {
            return Some(end);
        }
        self.serve_desk();
        self.do_what_is_due();
        let over = self.quitting || self.terminating.is_some();
        (over && self.workers.is_empty()).then_some(i32::from(self.failed))
    }

    fn wait(&mut self) {
        let now = Instant::now();
        let due = [
            self.terminating.map(|(due, _)| due),
            self.respawn.due(),
            self.certificates.due().filter(|_| !self.stopping()),
            self.notify.keep_alive(now),
            // a reload that was asked for meanwhile
            (self.again.is_some() && self.may_reload()).then_some(now),
        ];
        let timeout = match due.into_iter().flatten().min() {
            Some(due) => {
                let wait = due.saturating_duration_since(now) + Duration::from_millis(1);
                PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        let channels = self.workers.iter().filter_map(|w| w.channel.as_ref());
        fds.extend(channels.map(|c| PollFd::new(c.fd().as_fd(), PollFlags::POLLIN)));
        if let Some(desk) = &self.desk {
            fds.push(PollFd::new(desk.fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => self.alert("poll() failed", errno.into()),
        }
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        if let Some((due, pause)) = self.terminating
            && due <= now
        {
            self.terminate_workers(pause);
        }
        self.look_at_certificates();
        if self.respawn.due().is_some_and(|due| due <= now) {
            self.respawn.begin();
            if !self.stopping() && !self.resting && !self.start_worker() {
                self.respawn.later();
            }
        }
        if self.may_reload()
            && let Some(clients) = self.again.take()
        {
            self.reload(clients);
        }
    }

    fn stopping(&self) -> bool {
        self.quitting || self.terminating.is_some()
    }

    fn obey(&mut self, received: Received) {
        let Received { signal, .. } = received;
        match signal {
            Signal::SIGHUP => {
                received.log(", reconfiguring");
                self.want_reload(None);
            }
            Signal::SIGQUIT => {
                received.log(", shutting down");
                self.quit();
            }
            signal if ends(signal) => {
                received.log(", exiting");
                self.terminate();
            }
            Signal::SIGUSR1 => {
                received.log(", reopening logs");
                self.reopen();
            }
            Signal::SIGUSR2 => {
                let ignored = self.heir.is_some() || (self.has_elder() && !self.elder_drains());
                received.log(if ignored {
                    ", ignoring"
                } else {
                    ", changing binary"
                });
                match ignored {
                    true => process_log().write(
                        Level::Crit,
                        None,
                        format_args!("the changing binary signal is ignored: you should shutdown or terminate before either old or new binary's process"),
                    ),
                    false => self.upgrade(),
                }
            }
            Signal::SIGWINCH => {
                let heeded = self.daemonized && !self.stopping();
                received.log(if heeded {
                    ", stop accepting connections"
                } else {
                    ""
                });
                if heeded {
                    self.rest();
                }
            }
            Signal::SIGCHLD => {
                received.log("");
                self.reap();
            }
            _ => received.log(""),
        }
    }

    /// QUIT: workers finish what is under way, and then the process ends.
    fn quit(&mut self) {
        if self.quitting {
            return;
        }
        self.quitting = true;
        self.say_stopping();
        self.give_up_reloads("the server is shutting down");
        self.tell_workers(Kind::Quit);
        // connections that wait in the queues of these are the workers' no more
        self.sockets.close(self.removes_files());
    }

    /// The service stops, or goes on in the new process of an upgrade.
    fn say_stopping(&self) {
        match self.heir {
            Some(heir) => self.notify.hand_over(heir),
            None => self.notify.stopping(),
        }
    }

    /// TERM, INT: workers end at once, and so does the process.
    fn terminate(&mut self) {
        if self.terminating.is_none() {
            self.say_stopping();
            self.give_up_reloads("the server is exiting");
            self.tell_workers(Kind::Terminate);
            let pause = Duration::from_millis(50);
            self.terminating = Some((Instant::now() + pause, pause));
        }
    }

    fn terminate_workers(&mut self, pause: Duration) {
        let signal = if pause > KILL_AFTER {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        for worker in &self.workers {
            // one that has just ended is reaped next
            let _ = kill(worker.pid, signal);
        }
        let pause = pause * 2;
        self.terminating = Some((Instant::now() + pause, pause));
    }

    /// WINCH: workers end when they are done, the master stays.
    fn rest(&mut self) {
        self.resting = true;
        self.tell_workers(Kind::Quit);
    }

    /// USR1.
    fn reopen(&mut self) {
        let log = process_log();
        log.write(Level::Notice, None, format_args!("reopening logs"));
        let owner = self.identity.as_ref().map(|i| i.uid);
        // a configuration that a worker is trying may be in force in a moment
        let mut logs = self.logs.clone();
        let new = self.pending.iter().flat_map(|p| &p.logs);
        let new: Vec<_> = new
            .filter(|log| !logs.iter().any(|own| Arc::ptr_eq(own, log)))
            .cloned()
            .collect();
        logs.extend(new);
        LogFiles::global().reopen(&logs, owner, &log);
        redirect_stderr(&log, self.detached);
        let manifest = Manifest {
            sockets: Vec::new(),
            logs: logs.iter().map(|l| l.path().to_owned()).collect(),
        };
        let list = match manifest.seal() {
            Ok(list) => list,
            Err(error) => {
                return self.alert("memfd_create() failed", crate::log::Errno::of(&error));
            }
        };
        let files: Vec<_> = logs.iter().map(|l| l.descriptor()).collect();
        let mut fds = vec![list.as_fd()];
        fds.extend(files.iter().map(|fd| fd.as_fd()));
        for worker in &self.workers {
            if let Some(channel) = &worker.channel
                && let Err(error) = channel.send(Kind::Reopen, 0, "", &fds)
            {
                let errno = crate::log::Errno::of(&error);
                self.alert("sendmsg() to a worker failed", errno);
            }
        }
    }

    /// The first worker serves: from now on the process is what it was started to be.
    fn become_ready(&mut self) -> Option<End> {
        let ready = self.ready.take()?;
        let log = process_log();
        if let Err(error) = pid::write(&self.main.pid) {
            error.log(&log);
            drop(ready);
            self.terminate();
            self.wait_for_workers();
            return Some(1);
        }
        redirect_stderr(&log, self.detached);
        use_stderr(false);
        self.notify.ready();
        ready.tell();
        None
    }

    fn serve_desk(&mut self) {
        let Some(desk) = &self.desk else { return };
        let Some((client, wish)) = desk.next() else {
            return;
        };
        match wish {
            ControlRequest::Status => client.answer(0, if self.stopping() { DRAINS } else { "" }),
            ControlRequest::State => self.want_state(client),
            ControlRequest::Reload => {
                let received = Received {
                    signal: Signal::SIGHUP,
                    from: client.pid,
                };
                received.log(", reconfiguring");
                self.want_reload(Some(client));
            }
        }
    }

    fn has_elder(&self) -> bool {
        self.elder.is_some_and(|pid| getppid() == pid)
    }

    /// Whether the old process of the last upgrade only finishes what is under way. nginx cannot be asked.
    fn elder_drains(&self) -> bool {
        self.elder.is_some_and(drains)
    }

    /// Whether files of UNIX-domain sockets go with this process: no other one listens on them.
    fn removes_files(&self) -> bool {
        self.heir.is_none() && (!self.has_elder() || self.elder_drains())
    }

    fn leave(&mut self, code: i32) {
        self.give_up_reloads("the server has ended");
        if code == 0 {
            let path = self.pid_path();
            if self.ready.is_none()
                && let Err(error) = pid::remove_own(&path)
            {
                error.log_at(&process_log(), Level::Alert);
            }
            process_log().write(Level::Notice, None, format_args!("exit"));
        }
        self.close();
    }

    fn close(&mut self) {
        self.sockets.close(self.removes_files());
    }

    fn alert(&self, message: &str, errno: crate::log::Errno) {
        process_log().record(&Record {
            errno: Some(errno),
            ..Record::new(Level::Alert, format_args!("{message}"))
        });
    }
}
