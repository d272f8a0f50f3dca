//! The worker: a process that a master executed to serve. It owns no right that a request could misuse, and reads
//! nothing for its configuration: all of that is handed to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::signalfd::SfdFlags;
use tokio::sync::watch;

use super::channel::{Channel, Kind, Packet};
use super::handoff::{Manifest, Package, open_outside, open_state, seal_state};
use super::serving::{Event, Meanwhile, Serving, ends, report_lost};
use super::signals::Signals;
use super::sockets::Handle;
use super::start::report_panics;
use super::threads::Threads;
use super::title::Title;
use crate::config::{Disk, load_inputs};
use crate::contract::{ModuleRegistry, Site};
use crate::engine::load;
use crate::engine::load::Loaded;
use crate::log::{
    Errno, ErrorLog, Level, LogFile, LogFiles, Record, install_bridge, process_log,
    set_process_log, use_stderr,
};
use crate::runtime::handover;
use crate::serve::{Shared, certificates};

/// The variable with the number of the descriptor on which the master speaks.
pub(super) const CHANNEL: &str = "COULOIR_WORKER";

/// The text of a worker's first packet where a packet with state follows.
pub(super) const STATE_FOLLOWS: &str = "state";

/// How long a worker waits for the state of the one before.
const STATE_PATIENCE: Duration = Duration::from_secs(2);

/// nginx's exit code for what fails in a worker.
pub(super) const FATAL: i32 = 2;

/// The master's end, if this process was executed by one.
pub(super) fn summoned() -> Option<Channel> {
    let number: RawFd = std::env::var(CHANNEL).ok()?.parse().ok()?;
    Channel::inherited(number)
}

/// Serves what the master says, until it says otherwise; the result is the exit code.
pub(super) fn run(registry: ModuleRegistry, master: Channel) -> i32 {
    match Worker::start(registry, master) {
        Ok(code) | Err(code) => code,
    }
}

struct Worker {
    registry: Arc<ModuleRegistry>,
    master: Arc<Channel>,
    serving: Serving,
    daemonized: bool,
    threads: usize,
    title: Title,
}

/// A configuration with everything that belongs to it.
struct Handed {
    number: u64,
    package: Package,
    sockets: Vec<Handle>,
    /// Kept until the site has its own references.
    _logs: Vec<Arc<LogFile>>,
}

impl Worker {
    fn start(registry: ModuleRegistry, master: Channel) -> Result<i32, i32> {
        // SAFETY: there is one thread
        #[allow(unsafe_code)]
        unsafe {
            std::env::remove_var(CHANNEL);
        }
        // the master tells the terminal what is to be told
        use_stderr(false);
        install_bridge();
        let signals = Signals::block(SfdFlags::empty()).map_err(|_| FATAL)?;
        let first = match master.receive() {
            Ok(Some(packet)) if packet.kind == Kind::Configure => packet,
            _ => return Err(FATAL),
        };
        let awaited = first.text == STATE_FOLLOWS;
        let handed = Handed::unpack(first).map_err(|_| FATAL)?;
        let (master, number) = (Arc::new(master), handed.number);
        let refuse = |text: &str| {
            let _ = master.send(Kind::Refused, number, text, &[]);
            FATAL
        };
        let title = Title::new(&handed.package.program);
        title.set("worker process".as_ref());
        if let Ok(name) = std::ffi::CString::new(handed.package.program.as_str()) {
            let _ = nix::sys::prctl::set_name(&name);
        }
        if let Some(log) = handed.first_log() {
            set_process_log(log);
        }
        report_panics();
        let rights = &handed.package.rights;
        rights
            .apply(&process_log())
            .map_err(|()| refuse("the worker could not become its user"))?;
        let registry = Arc::new(registry);
        let site = handed.load(&registry).map_err(|text| refuse(&text))?;
        set_process_log(site.error_log.clone());

        let threads = handed.package.threads.max(1);
        let (events, inbox) = channel();
        let (exit, exited) = watch::channel(None);
        let shared = Arc::new(Shared::new(site, threads));
        let (service, channels) = Threads::new(shared.clone(), threads, events.clone());
        let worker = Worker {
            registry,
            master: master.clone(),
            serving: Serving::new(shared, channels),
            daemonized: handed.package.daemonized,
            threads,
            title,
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
            spawned.map(drop).map_err(|error| {
                process_log().write(
                    Level::Emerg,
                    None,
                    format_args!("starting a thread failed: {error}"),
                );
                refuse("a thread could not be started")
            })
        };
        let daemonized = worker.daemonized;
        let (told, channel) = (events.clone(), master.clone());
        spawn(
            "signals",
            Box::new(move || {
                while let Ok(Some(received)) = signals.next() {
                    received.log(meaning(received.signal, daemonized));
                    if told.send(Event::Signal(received)).is_err() {
                        return;
                    }
                }
            }),
        )?;
        spawn(
            "channel",
            Box::new(move || {
                // without a master the worker serves on, as nginx's does
                while let Ok(Some(packet)) = channel.receive() {
                    if events.send(Event::Told(packet)).is_err() {
                        return;
                    }
                }
            }),
        )?;
        spawn(
            "supervisor",
            Box::new(move || {
                let code = worker.run(handed, awaited, &inbox);
                exit.send_replace(Some(code));
            }),
        )?;
        let code = service.serve(exited);
        let log = process_log();
        crate::cache::close_all();
        LogFiles::global().flush_all(&log);
        if code == 0 {
            log.write(Level::Notice, None, format_args!("exit"));
        }
        // SAFETY: ends the process. Exit handlers of libraries must not run while other threads still use them.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(code)
        }
    }

    fn run(mut self, first: Handed, awaited: bool, inbox: &Receiver<Event>) -> i32 {
        let mut early = Vec::new();
        loop {
            match inbox.recv() {
                Ok(Event::Started) => break,
                Ok(Event::Ended(number, outcome)) => {
                    report_lost(number, outcome);
                    return FATAL;
                }
                Ok(event) => early.push(event),
                Err(_) => return FATAL,
            }
        }
        if awaited {
            await_state(&mut early, inbox);
        }
        self.serving.listen(&first.sockets);
        self.answer(Kind::Accepted, first.number, "");
        drop(first);
        for event in early {
            if let Some(code) = self.obey(event, inbox) {
                return code;
            }
        }
        loop {
            let Ok(event) = self.serving.next(inbox) else {
                return FATAL;
            };
            if let Some(code) = self.obey(event, inbox) {
                return code;
            }
        }
    }

    /// Does what an event asks for; an exit code ends the process.
    fn obey(&mut self, event: Event, inbox: &Receiver<Event>) -> Option<i32> {
        match event {
            Event::Started => None,
            Event::Ended(number, outcome) => {
                report_lost(number, outcome);
                Some(FATAL)
            }
            Event::Signal(received) => match received.signal {
                Signal::SIGQUIT => Some(self.drain(inbox)),
                Signal::SIGWINCH if self.daemonized => Some(self.drain(inbox)),
                Signal::SIGUSR1 => {
                    reopen_own();
                    None
                }
                signal if ends(signal) => Some(self.end()),
                _ => None,
            },
            Event::Told(packet) => match packet.kind {
                Kind::Configure => {
                    self.configure(packet);
                    None
                }
                Kind::Reopen => {
                    reopen(packet);
                    None
                }
                Kind::Certificates => {
                    self.renew(packet);
                    None
                }
                Kind::GiveState => {
                    self.give_state();
                    None
                }
                Kind::State => {
                    take_state(packet);
                    None
                }
                Kind::Quit => Some(self.drain(inbox)),
                Kind::Terminate => Some(self.end()),
                _ => None,
            },
        }
    }

    /// Takes another configuration, or leaves everything as it was.
    fn configure(&mut self, packet: Packet) {
        let number = packet.number;
        let handed = match Handed::unpack(packet) {
            Ok(handed) => handed,
            Err(error) => {
                let text = format!("the configuration did not reach the worker: {error}");
                return self.answer(Kind::Refused, number, &text);
            }
        };
        if handed.package.threads != self.threads {
            return self.answer(
                Kind::Refused,
                number,
                "the number of threads cannot be changed",
            );
        }
        // one module's mistake must not end the process
        let outcome = catch_unwind(AssertUnwindSafe(|| handed.load(&self.registry)));
        let site = match outcome {
            Ok(Ok(site)) => site,
            Ok(Err(text)) => return self.answer(Kind::Refused, number, &text),
            Err(_) => {
                return self.answer(
                    Kind::Refused,
                    number,
                    "a module panicked, the error log has its words",
                );
            }
        };
        set_process_log(site.error_log.clone());
        let changes = self.serving.replace(site, &handed.sockets);
        self.answer(Kind::Accepted, number, &changes.to_string());
    }

    /// Takes certificates and keys that have changed.
    fn renew(&self, packet: Packet) {
        let seen = packet.fds.into_iter().next().map(open_outside);
        let Some(Ok(seen)) = seen else {
            return process_log().write(
                Level::Alert,
                None,
                format_args!("new certificates did not reach the worker"),
            );
        };
        let files = seen.files.keys().map(Into::into).collect();
        let site = self.serving.site();
        // one module's mistake must not end the process
        let _ = catch_unwind(AssertUnwindSafe(|| {
            load_inputs::replay(Arc::new(seen), || certificates::renew(&site, &files));
        }));
    }

    /// Says what the next worker is to know.
    fn give_state(&self) {
        let sealed = catch_unwind(handover::save).map(|bytes| seal_state(&bytes));
        let state = match sealed {
            Ok(Ok(fd)) => Some(fd),
            Ok(Err(error)) => {
                state_lost(format_args!("memfd_create() failed{}", Errno::of(&error)));
                None
            }
            // the hook has logged it
            Err(_) => None,
        };
        let fds: Vec<_> = state.iter().map(AsFd::as_fd).collect();
        // a master that is gone asks no more
        let _ = self.master.send(Kind::State, 0, "", &fds);
    }

    fn answer(&self, kind: Kind, number: u64, text: &str) {
        // a master that is gone asks no more
        let _ = self.master.send(kind, number, text, &[]);
    }

    fn drain(&mut self, inbox: &Receiver<Event>) -> i32 {
        self.title.set("worker process is shutting down".as_ref());
        self.serving.drain(inbox, |event| {
            match event {
                Event::Signal(received) if ends(received.signal) => return Meanwhile::End,
                Event::Signal(received) if received.signal == Signal::SIGUSR1 => reopen_own(),
                Event::Told(packet) => match packet.kind {
                    Kind::Terminate => return Meanwhile::End,
                    Kind::Reopen => reopen(packet),
                    _ => {}
                },
                _ => {}
            }
            Meanwhile::Nothing
        });
        self.end()
    }

    fn end(&self) -> i32 {
        process_log().write(Level::Notice, None, format_args!("exiting"));
        0
    }
}

impl Handed {
    fn unpack(packet: Packet) -> io::Result<Handed> {
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let mut fds = packet.fds.into_iter();
        let package = Package::open(fds.next().ok_or_else(short)?)?;
        let manifest = Manifest::open(fds.next().ok_or_else(short)?)?;
        let mut sockets = Vec::new();
        for entry in manifest.sockets {
            let own: Vec<Arc<OwnedFd>> = fds.by_ref().take(entry.count).map(Arc::new).collect();
            if own.len() < entry.count {
                return Err(short());
            }
            sockets.push(Handle {
                id: entry.id,
                addr: entry.addr,
                fds: own,
            });
        }
        let logs = manifest.logs.iter().zip(fds);
        let logs = logs.map(|(path, fd)| LogFiles::global().adopt(path, fd));
        Ok(Handed {
            number: packet.number,
            package,
            _logs: logs.collect(),
            sockets,
        })
    }

    /// Where to log until the site's own log is known.
    fn first_log(&self) -> Option<ErrorLog> {
        use crate::log::{Sink, Threshold};
        let path = std::path::Path::new(&self.package.load.error_log);
        let file = self._logs.iter().find(|l| l.path() == path);
        let file = file.or(self._logs.first())?;
        let sink = Sink::file(file.clone(), Threshold::new(Level::Notice));
        Some(ErrorLog::new([sink]))
    }

    /// The site; the error is nginx's line. The master has told of warnings.
    fn load(&self, registry: &Arc<ModuleRegistry>) -> Result<Site, String> {
        let seen = self.package.outside.clone();
        let loaded = load_inputs::replay(seen, || load(registry, &self.package.load, &Disk));
        match loaded {
            Ok(Loaded { site, .. }) => Ok(site),
            Err(error) => {
                let text = error.diag.first_line().to_string();
                process_log().write(super::level_of(&error.diag), None, format_args!("{text}"));
                Err(text)
            }
        }
    }
}

/// Waits for the state of the worker whose place this one takes, and takes it; other events are kept for later.
fn await_state(early: &mut Vec<Event>, inbox: &Receiver<Event>) {
    let is_state = |event: &Event| matches!(event, Event::Told(p) if p.kind == Kind::State);
    let deadline = Instant::now() + STATE_PATIENCE;
    loop {
        if let Some(at) = early.iter().position(is_state) {
            if let Event::Told(packet) = early.remove(at) {
                take_state(packet);
            }
            return;
        }
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => early.push(event),
            Err(_) => return state_lost(format_args!("it did not come in time")),
        }
    }
}

/// Takes what another worker knew.
fn take_state(packet: Packet) {
    let Some(fd) = packet.fds.into_iter().next() else {
        return;
    };
    let taken = match open_state(fd) {
        // one module's mistake must not end the process
        Ok(bytes) => catch_unwind(|| handover::restore(&bytes)),
        Err(error) => Ok(Err(format!("it cannot be read{}", Errno::of(&error)))),
    };
    if let Ok(Err(why)) = taken {
        state_lost(format_args!("{why}"));
    }
}

fn state_lost(why: std::fmt::Arguments<'_>) {
    process_log().write(
        Level::Warn,
        None,
        format_args!("state of the worker process before is lost: {why}"),
    );
}

/// Goes over to logs that the master opened anew.
fn reopen(packet: Packet) {
    let log = process_log();
    log.write(Level::Notice, None, format_args!("reopening logs"));
    let mut fds = packet.fds.into_iter();
    let manifest = fds.next().ok_or(io::ErrorKind::UnexpectedEof.into());
    match manifest.and_then(Manifest::open) {
        Ok(manifest) => {
            let files = manifest.logs.into_iter().zip(fds);
            LogFiles::global().exchange_all(files, &log);
        }
        Err(error) => log.record(&Record {
            errno: Some(crate::log::Errno::of(&error)),
            ..Record::new(
                Level::Emerg,
                format_args!("reopening logs failed: the list of them cannot be read"),
            )
        }),
    }
}

/// USR1 to the worker itself: it opens what its user may open.
fn reopen_own() {
    let log = process_log();
    log.write(Level::Notice, None, format_args!("reopening logs"));
    LogFiles::global().reopen_all(None, &log);
}

/// What nginx's worker says of a signal.
fn meaning(signal: Signal, daemonized: bool) -> &'static str {
    match signal {
        Signal::SIGQUIT => ", shutting down",
        Signal::SIGWINCH if daemonized => ", shutting down",
        Signal::SIGTERM | Signal::SIGINT => ", exiting",
        Signal::SIGUSR1 => ", reopening logs",
        Signal::SIGHUP | Signal::SIGUSR2 => ", ignoring",
        _ => "",
    }
}
