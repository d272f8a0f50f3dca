//! What a running process does when it is told something: reload, reopen, drain, end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::daemon::{Ready, redirect_stderr};
use super::sockets::{Prepared, Sockets};
use super::user::{Identity, Root};
use super::{Program, check_connections, launch, level_of, pid};
use crate::config::Disk;
use crate::engine::changes::Changes;
use crate::engine::load;
use crate::engine::load::Loaded;
use crate::log::{Level, LogFiles, process_log, set_process_log, use_stderr};
use crate::module::MainConf;
use crate::serve::{Listening, Shared};

/// What a supervisor hears of.
pub(super) enum Event {
    /// Every thread has been started.
    Started,
    /// A thread has ended, or could not begin.
    Ended(usize, Result<(), String>),
    /// The process was sent a signal.
    Signal(Signal),
}

/// Holds what the serving threads do not: sockets, PID file, the way to read the configuration anew.
pub(super) struct Supervisor {
    program: Program,
    shared: Arc<Shared>,
    sockets: Sockets,
    channels: Vec<UnboundedSender<Listening>>,
    threads: usize,
    alive: usize,
    identity: Option<Identity>,
    main: MainConf,
    /// When connections of before an epoch are cut off.
    cuts: VecDeque<(Instant, u64)>,
    exit: watch::Sender<Option<i32>>,
}

impl Supervisor {
    /// A supervisor of as many threads as there are channels; it tells `exit` when all is over.
    pub fn new(
        program: Program,
        shared: Arc<Shared>,
        sockets: Sockets,
        channels: Vec<UnboundedSender<Listening>>,
        identity: Option<Identity>,
        exit: watch::Sender<Option<i32>>,
    ) -> Supervisor {
        let (threads, main) = (channels.len(), shared.site.load().main.clone());
        Supervisor {
            program,
            shared,
            sockets,
            channels,
            threads,
            alive: threads,
            identity,
            main,
            cuts: VecDeque::new(),
            exit,
        }
    }

    /// Works until the end of the process.
    pub fn run(mut self, prepared: Prepared, inbox: &Receiver<Event>, ready: Ready) {
        let code = self.serve(prepared, inbox, ready);
        if code == 0 {
            let _root = Root::take(self.identity.as_ref());
            if let Err(error) = pid::remove(&self.main.pid) {
                error.log_at(&process_log(), Level::Alert);
            }
            process_log().write(Level::Notice, None, format_args!("exit"));
        }
        let root = Root::take(self.identity.as_ref());
        self.sockets.close();
        drop(root);
        self.exit.send_replace(Some(code));
    }

    fn serve(&mut self, prepared: Prepared, inbox: &Receiver<Event>, ready: Ready) -> i32 {
        let mut early = Vec::new();
        loop {
            match inbox.recv() {
                Ok(Event::Started) => break,
                Ok(Event::Signal(signal)) => early.push(signal),
                Ok(Event::Ended(number, outcome)) => return self.lost(number, outcome),
                Err(_) => return 1,
            }
        }
        let site = self.shared.site.load_full();
        self.commit(prepared, &site.listeners);
        drop(site);
        if self.write_pid().is_err() {
            return 1;
        }
        let log = process_log();
        log.write(Level::Notice, None, format_args!("start worker processes"));
        redirect_stderr(&log, ready.detached());
        use_stderr(false);
        ready.tell();
        for signal in early {
            if let Some(code) = self.obey(signal, inbox) {
                return code;
            }
        }
        loop {
            let code = match self.next(inbox) {
                Ok(Event::Signal(signal)) => self.obey(signal, inbox),
                Ok(Event::Ended(number, outcome)) => Some(self.lost(number, outcome)),
                Ok(Event::Started) => None,
                Err(_) => Some(1),
            };
            if let Some(code) = code {
                return code;
            }
        }
    }

    /// The next event; what is due meanwhile is done.
    fn next(&mut self, inbox: &Receiver<Event>) -> Result<Event, RecvError> {
        while let Some((due, epoch)) = self.cuts.front().copied() {
            match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
                Err(RecvTimeoutError::Timeout) => {
                    self.shared.cut_before.send_replace(epoch);
                    self.cuts.pop_front();
                }
            }
        }
        inbox.recv()
    }

    /// Does what a signal says; an exit code ends the process.
    fn obey(&mut self, signal: Signal, inbox: &Receiver<Event>) -> Option<i32> {
        match signal {
            Signal::SIGHUP => self.reload(),
            Signal::SIGUSR1 => self.reopen(),
            Signal::SIGQUIT => return Some(self.drain(inbox)),
            Signal::SIGTERM | Signal::SIGINT => {
                process_log().write(Level::Notice, None, format_args!("exiting"));
                return Some(0);
            }
            _ => {}
        }
        None
    }

    /// HUP: a configuration that is at fault in any way changes nothing.
    fn reload(&mut self) {
        let log = process_log();
        log.write(Level::Notice, None, format_args!("reconfiguring"));
        let begun = Instant::now();
        let identity = self.identity.clone();
        let _root = Root::take(identity.as_ref());
        // one module's mistake must not end the process
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            load(&self.program.registry, &self.program.load, &Disk)
        }));
        let loaded = match outcome {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                for diag in error.warnings.iter().chain([&error.diag]) {
                    log.write(level_of(diag), None, format_args!("{}", diag.first_line()));
                }
                return;
            }
            Err(_) => return,
        };
        for diag in &loaded.warnings {
            log.write(level_of(diag), None, format_args!("{}", diag.first_line()));
        }
        let Loaded { site, .. } = loaded;
        if check_connections(&site, &log).is_err() {
            return;
        }
        let Ok(prepared) = self.sockets.prepare(&site.listeners, self.threads, &log) else {
            return;
        };
        launch::make_temp_folders(&site, identity.as_ref(), &log);

        let before = self.shared.site.load_full();
        let main = site.main.clone();
        let new_log = site.error_log.clone();
        set_process_log(new_log.clone());
        redirect_stderr(&new_log, false);
        self.shared.replace(site);
        // nginx bounds the life of what began before a reload by the timeout that was in force then
        if let Some(due) = shutdown_end(&self.main) {
            let epoch = self.shared.epoch.load(Ordering::Acquire);
            self.cuts.push_back((due, epoch));
        }
        let site = self.shared.site.load_full();
        self.commit(prepared, &site.listeners);
        let took = begun.elapsed().as_millis();
        self.settle(main);
        let changes = Changes::between(&before, &site);
        process_log().write(
            Level::Notice,
            None,
            format_args!("reload: {changes}, {took} ms"),
        );
    }

    fn commit(&mut self, prepared: Prepared, listeners: &[crate::module::Listener]) {
        let channels = &self.channels;
        self.sockets.commit(
            prepared,
            listeners,
            self.threads,
            &process_log(),
            |thread, listening| {
                if let Some(channel) = channels.get(thread) {
                    // a thread that has ended is told of by its own event
                    let _ = channel.send(listening);
                }
            },
        );
    }

    /// Takes over what a reload can change outside of the site, and says what it cannot.
    fn settle(&mut self, main: MainConf) {
        let log = process_log();
        let before = std::mem::replace(&mut self.main, main);
        let fixed = [
            (
                "worker_processes",
                before.worker_threads != self.main.worker_threads,
            ),
            ("user", before.user != self.main.user),
            ("daemon", before.daemon != self.main.daemon),
        ];
        for (name, _) in fixed.iter().filter(|(_, changed)| *changed) {
            log.write(Level::Warn, None, format_args!("\"{name}\" cannot be changed while running, it takes effect with the next start"));
        }
        if before.pid != self.main.pid && self.write_pid().is_ok() {
            let _ = pid::remove(&before.pid);
        }
    }

    fn write_pid(&self) -> Result<(), ()> {
        let _root = Root::take(self.identity.as_ref());
        let path: &Path = &self.main.pid;
        pid::write(path).map_err(|error| error.log(&process_log()))
    }

    /// USR1.
    fn reopen(&self) {
        let log = process_log();
        log.write(Level::Notice, None, format_args!("reopening logs"));
        let _root = Root::take(self.identity.as_ref());
        LogFiles::global().reopen_all(self.identity.as_ref().map(Identity::uid), &log);
        redirect_stderr(&log, false);
    }

    /// QUIT: nothing new is accepted, what is under way is finished within `worker_shutdown_timeout`.
    fn drain(&mut self, inbox: &Receiver<Event>) -> i32 {
        let log = process_log();
        log.write(
            Level::Notice,
            None,
            format_args!("gracefully shutting down"),
        );
        self.shared.draining.send_replace(true);
        let root = Root::take(self.identity.as_ref());
        self.sockets.close();
        drop(root);
        self.channels.clear();
        let mut end = shutdown_end(&self.main);
        let mut cut = false;
        while self.alive > 0 {
            let event = match end {
                Some(end) => inbox.recv_timeout(end.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Ended(..)) => self.alive -= 1,
                Ok(Event::Signal(Signal::SIGTERM | Signal::SIGINT)) => break,
                Ok(Event::Signal(Signal::SIGUSR1)) => self.reopen(),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if !cut => {
                    // what is cut off still gets its line in the access log
                    cut = true;
                    self.shared.cut_before.send_replace(u64::MAX);
                    end = Instant::now().checked_add(LAST_WORDS);
                }
                Err(_) => break,
            }
        }
        log.write(Level::Notice, None, format_args!("exiting"));
        0
    }

    /// A thread has ended that nobody told to. Its connections are gone; to go on without it would hide that.
    fn lost(&self, number: usize, outcome: Result<(), String>) -> i32 {
        let why = outcome.err().unwrap_or_else(|| "no reason".to_owned());
        process_log().write(
            Level::Alert,
            None,
            format_args!("worker thread {number} ended: {why}"),
        );
        let _root = Root::take(self.identity.as_ref());
        let _ = pid::remove(&self.main.pid);
        2
    }
}

/// How long a request that was cut off may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// When `worker_shutdown_timeout` ends if it begins now.
fn shutdown_end(main: &MainConf) -> Option<Instant> {
    let limit = main.worker_shutdown_timeout.filter(|ms| *ms > 0)?;
    Instant::now().checked_add(Duration::from_millis(limit))
}
