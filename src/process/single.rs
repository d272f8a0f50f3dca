//! `master_process off`: one process that does everything, for debugging, as whoever started it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signalfd::SfdFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::sync::watch;

use super::daemon::{Ready, redirect_stderr};
use super::serving::{Event, Meanwhile, Serving, ends, fixed, report_lost};
use super::signals::{Received, Signals};
use super::sockets::{Prepared, Sockets};
use super::start::{Started, make_temp_folders};
use super::threads::Threads;
use super::worker::FATAL;
use super::{Program, check_process, log_diag, pid, user};
use crate::config::Disk;
use crate::contract::{Listener, MainConf};
use crate::engine::load;
use crate::engine::load::Loaded;
use crate::log::{Level, LogFiles, Record, process_log, set_process_log, use_stderr};
use crate::serve::Shared;

/// Serves; returns only what went wrong before.
///
/// # Errors
/// The exit code.
pub(super) fn run(started: Started, ready: Ready) -> Result<i32, i32> {
    let Started {
        program,
        site,
        sockets,
        prepared,
        ..
    } = started;
    let log = process_log();
    user::set_environment(&site.main);
    let signals = Signals::block(SfdFlags::empty()).map_err(|errno| {
        log.record(&Record {
            errno: Some(errno.into()),
            ..Record::new(Level::Emerg, format_args!("signalfd() failed"))
        });
        FATAL
    })?;
    let threads = site.main.worker_threads.max(1);
    let (main, listeners) = (site.main.clone(), site.listeners.clone());
    let (events, inbox) = channel();
    let (exit, exited) = watch::channel(None);
    let shared = Arc::new(Shared::new(site, threads));
    let (service, channels) = Threads::new(shared.clone(), threads, events.clone());
    let single = Single {
        program,
        serving: Serving::new(shared, channels),
        sockets,
        threads,
        main,
    };
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
        spawned.map(drop).map_err(|error| {
            log.write(
                Level::Emerg,
                None,
                format_args!("starting a thread failed: {error}"),
            );
            1
        })
    };
    spawn(
        "signals",
        Box::new(move || {
            while let Ok(Some(received)) = signals.next() {
                if received.signal == Signal::SIGCHLD {
                    reap();
                    continue;
                }
                received.log(meaning(received.signal));
                if events.send(Event::Signal(received)).is_err() {
                    return;
                }
            }
        }),
    )?;
    spawn(
        "supervisor",
        Box::new(move || {
            let code = single.run(prepared, &listeners, &inbox, ready);
            exit.send_replace(Some(code));
        }),
    )?;
    let code = service.serve(exited);
    crate::cache::close_all();
    LogFiles::global().flush_all(&process_log());
    // SAFETY: ends the process. Exit handlers of libraries must not run while other threads still use them.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}

struct Single {
    program: Program,
    serving: Serving,
    sockets: Sockets,
    threads: usize,
    main: MainConf,
}

impl Single {
    fn run(
        mut self,
        prepared: Prepared,
        listeners: &[Listener],
        inbox: &Receiver<Event>,
        ready: Ready,
    ) -> i32 {
        let code = self.serve(prepared, listeners, inbox, ready);
        if code == 0 {
            if let Err(error) = pid::remove(&self.main.pid) {
                error.log_at(&process_log(), Level::Alert);
            }
            process_log().write(Level::Notice, None, format_args!("exit"));
        }
        self.sockets.close(true);
        code
    }

    fn serve(
        &mut self,
        prepared: Prepared,
        listeners: &[Listener],
        inbox: &Receiver<Event>,
        ready: Ready,
    ) -> i32 {
        let mut early = Vec::new();
        loop {
            match inbox.recv() {
                Ok(Event::Started) => break,
                Ok(Event::Ended(number, outcome)) => {
                    report_lost(number, outcome);
                    return FATAL;
                }
                Ok(event) => early.push(event),
                Err(_) => return 1,
            }
        }
        let log = process_log();
        self.sockets.commit(prepared, listeners, &log);
        self.serving.listen(&self.sockets.all());
        if let Err(error) = pid::write(&self.main.pid) {
            error.log(&log);
            return 1;
        }
        redirect_stderr(&log, ready.detached());
        use_stderr(false);
        ready.tell();
        for event in early {
            if let Some(code) = self.obey(event, inbox) {
                return code;
            }
        }
        loop {
            let Ok(event) = self.serving.next(inbox) else {
                return 1;
            };
            if let Some(code) = self.obey(event, inbox) {
                return code;
            }
        }
    }

    /// Does what an event asks for; an exit code ends the process.
    fn obey(&mut self, event: Event, inbox: &Receiver<Event>) -> Option<i32> {
        let signal = match event {
            Event::Ended(number, outcome) => {
                report_lost(number, outcome);
                let _ = pid::remove(&self.main.pid);
                return Some(FATAL);
            }
            Event::Signal(Received { signal, .. }) => signal,
            _ => return None,
        };
        match signal {
            Signal::SIGHUP => self.reload(),
            Signal::SIGUSR1 => reopen(),
            Signal::SIGQUIT => return Some(self.drain(inbox)),
            signal if ends(signal) => {
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
        // one module's mistake must not end the process
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            load(&self.program.registry, &self.program.load, &Disk)
        }));
        let report = |diag: &crate::config::Diag| {
            log_diag(&log, diag);
        };
        let loaded = match outcome {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                error.warnings.iter().for_each(|d| report(d));
                return report(&error.diag);
            }
            Err(_) => return,
        };
        loaded.warnings.iter().for_each(|d| report(d));
        let Loaded { site, .. } = loaded;
        if check_process(&site, &log).is_err() {
            return;
        }
        let Ok(prepared) = self.sockets.prepare(&site.listeners, self.threads, &log) else {
            return;
        };
        make_temp_folders(&site, None, &log);
        let (main, listeners) = (site.main.clone(), site.listeners.clone());
        set_process_log(site.error_log.clone());
        redirect_stderr(&site.error_log, false);
        let log = process_log();
        self.sockets.commit(prepared, &listeners, &log);
        let changes = self.serving.replace(site, &self.sockets.all());
        let took = begun.elapsed().as_millis();
        log.write(
            Level::Notice,
            None,
            format_args!("reload: {changes}, {took} ms"),
        );
        let before = std::mem::replace(&mut self.main, main);
        for name in fixed(&before, &self.main) {
            log.write(Level::Warn, None, format_args!("\"{name}\" cannot be changed while running, it takes effect with the next start"));
        }
        if before.pid != self.main.pid {
            match pid::write(&self.main.pid) {
                Ok(()) => {
                    let _ = pid::remove(&before.pid);
                }
                Err(error) => error.log(&log),
            }
        }
    }

    /// QUIT.
    fn drain(&mut self, inbox: &Receiver<Event>) -> i32 {
        self.sockets.close(true);
        self.serving.drain(inbox, |event| {
            if let Event::Signal(Received { signal, .. }) = event {
                match signal {
                    signal if ends(signal) => return Meanwhile::End,
                    Signal::SIGUSR1 => reopen(),
                    _ => {}
                }
            }
            Meanwhile::Nothing
        });
        process_log().write(Level::Notice, None, format_args!("exiting"));
        0
    }
}

/// USR1.
fn reopen() {
    let log = process_log();
    log.write(Level::Notice, None, format_args!("reopening logs"));
    LogFiles::global().reopen_all(None, &log);
    redirect_stderr(&log, false);
}

fn meaning(signal: Signal) -> &'static str {
    match signal {
        Signal::SIGHUP => ", reconfiguring",
        Signal::SIGQUIT => ", shutting down",
        Signal::SIGTERM | Signal::SIGINT => ", exiting",
        Signal::SIGUSR1 => ", reopening logs",
        Signal::SIGUSR2 | Signal::SIGWINCH => ", ignoring: there is no master process",
        _ => "",
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
