//! The part of a process that serves: its threads, what they listen on, replacing the site, and the end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::channel::Packet;
use super::signals::Received;
use super::sockets::Handle;
use crate::contract::{MainConf, Site};
use crate::engine::changes::Changes;
use crate::log::{Level, process_log};
use crate::serve::{Listening, Shared};

/// What the one who looks after the threads hears of.
pub(super) enum Event {
    /// Every thread has been started.
    Started,
    /// A thread has ended, or could not begin.
    Ended(usize, Result<(), String>),
    /// The process was sent a signal.
    Signal(Received),
    /// The master says something.
    Told(Packet),
}

/// What an event means while the process drains.
pub(super) enum Meanwhile {
    /// The end is to come at once.
    End,
    /// Nothing that matters.
    Nothing,
}

/// The threads and what they were given.
pub(super) struct Serving {
    shared: Arc<Shared>,
    channels: Vec<UnboundedSender<Listening>>,
    threads: usize,
    alive: usize,
    /// Accept loops by the id of their sockets.
    accepting: Vec<(u64, watch::Sender<bool>)>,
    /// `worker_shutdown_timeout`, milliseconds.
    shutdown_timeout: Option<u64>,
    /// When connections that a site up to an epoch ended are cut off.
    cuts: VecDeque<(Instant, u64)>,
}

impl Serving {
    /// As many threads as there are channels.
    pub fn new(shared: Arc<Shared>, channels: Vec<UnboundedSender<Listening>>) -> Serving {
        let threads = channels.len();
        let shutdown_timeout = shared.site.load().main.worker_shutdown_timeout;
        Serving {
            shared,
            channels,
            threads,
            alive: threads,
            accepting: Vec::new(),
            shutdown_timeout,
            cuts: VecDeque::new(),
        }
    }

    /// Serves new requests from another site, on these sockets; says what that changes.
    pub fn replace(&mut self, site: Site, sockets: &[Handle]) -> Changes {
        let before = self.shared.site.load_full();
        let timeout = site.main.worker_shutdown_timeout;
        self.shared.replace(site);
        // nginx bounds the life of what a reload ends by the timeout that was in force before it
        if let Some(due) = end_of(self.shutdown_timeout) {
            let epoch = self.shared.epoch.load(Ordering::Acquire);
            self.cuts.push_back((due, epoch));
        }
        self.shutdown_timeout = timeout;
        self.listen(sockets);
        Changes::between(&before, &self.shared.site.load())
    }

    /// The site in force.
    pub fn site(&self) -> Arc<Site> {
        self.shared.site.load_full()
    }

    /// Accepts on these sockets and no others.
    pub fn listen(&mut self, sockets: &[Handle]) {
        self.accepting.retain(|(id, stop)| {
            let kept = sockets.iter().any(|s| s.id == *id);
            if !kept {
                stop.send_replace(true);
            }
            kept
        });
        for socket in sockets {
            if self.accepting.iter().any(|(id, _)| *id == socket.id) {
                continue;
            }
            let stop = watch::Sender::new(false);
            // several sockets are shared out among the threads, a single one all threads have
            let many = socket.fds.len();
            for n in 0..self.threads.max(many) {
                let thread = n % self.threads.max(1);
                let fd = socket.fds.get(if many > 1 { n % many } else { 0 });
                let (Some(Ok(fd)), Some(channel)) =
                    (fd.map(|fd| fd.try_clone()), self.channels.get(thread))
                else {
                    process_log().write(
                        Level::Alert,
                        None,
                        format_args!("dup() of the socket of {} failed", socket.addr),
                    );
                    continue;
                };
                // a thread that has ended is told of by its own event
                let _ = channel.send(Listening {
                    addr: socket.addr.clone(),
                    fd,
                    stop: stop.subscribe(),
                });
            }
            self.accepting.push((socket.id, stop));
        }
    }

    /// The next event; what is due meanwhile is done.
    ///
    /// # Errors
    /// DetachedConn is left to tell anything.
    pub fn next(&mut self, inbox: &Receiver<Event>) -> Result<Event, RecvError> {
        while let Some((due, epoch)) = self.cuts.front().copied() {
            match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
                Err(RecvTimeoutError::Timeout) => {
                    self.shared.cut_ended.send_replace(epoch);
                    self.cuts.pop_front();
                }
            }
        }
        inbox.recv()
    }

    /// Accepts nothing new and finishes what is under way, within `worker_shutdown_timeout`. Whatever else happens is
    /// told to `meanwhile`.
    pub fn drain(
        &mut self,
        inbox: &Receiver<Event>,
        mut meanwhile: impl FnMut(Event) -> Meanwhile,
    ) {
        process_log().write(
            Level::Notice,
            None,
            format_args!("gracefully shutting down"),
        );
        // another process may take the caches over; requests under way do without
        crate::cache::close_all();
        self.shared.draining.send_replace(true);
        self.accepting.clear();
        self.channels.clear();
        let mut end = end_of(self.shutdown_timeout);
        let mut cut = false;
        while self.alive > 0 {
            let event = match end {
                Some(end) => inbox.recv_timeout(end.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Ended(..)) => self.alive -= 1,
                Ok(event) => {
                    if matches!(meanwhile(event), Meanwhile::End) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) if !cut => {
                    // what is cut off still gets its line in the access log
                    cut = true;
                    self.shared.cut_ended.send_replace(u64::MAX);
                    end = Instant::now().checked_add(LAST_WORDS);
                }
                Err(_) => return,
            }
        }
    }
}

/// Says that a thread has ended that nobody told to. Its connections are gone; to go on without it would hide that.
pub(super) fn report_lost(number: usize, outcome: Result<(), String>) {
    let why = outcome.err().unwrap_or_else(|| "no reason".to_owned());
    process_log().write(
        Level::Alert,
        None,
        format_args!("worker thread {number} ended: {why}"),
    );
}

/// Whether a signal ends a process at once.
pub(super) fn ends(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT)
}

/// How long a request that was cut off may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// When `worker_shutdown_timeout` ends if it begins now.
fn end_of(timeout: Option<u64>) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(timeout.filter(|ms| *ms > 0)?))
}

/// Names of directives that a running worker cannot change.
pub(super) fn fixed(before: &MainConf, now: &MainConf) -> Vec<&'static str> {
    [
        (
            "worker_processes",
            before.worker_threads != now.worker_threads,
        ),
        ("user", before.user != now.user),
        (
            "worker_priority",
            before.worker_priority != now.worker_priority,
        ),
        (
            "worker_rlimit_nofile",
            before.worker_rlimit_nofile != now.worker_rlimit_nofile,
        ),
        (
            "worker_rlimit_core",
            before.worker_rlimit_core != now.worker_rlimit_core,
        ),
        (
            "worker_cpu_affinity",
            before.worker_cpu_affinity != now.worker_cpu_affinity,
        ),
        (
            "working_directory",
            before.working_directory != now.working_directory,
        ),
        ("env", before.env != now.env),
    ]
    .into_iter()
    .filter_map(|(name, changed)| changed.then_some(name))
    .collect()
}
