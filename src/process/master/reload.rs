//! Reading the configuration anew: in place, or with a worker that takes the old one's place.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use nix::unistd::Pid;

use super::super::channel::Kind;
use super::super::control_socket::Client;
use super::super::daemon::redirect_stderr;
use super::super::handoff::Package;
use super::super::serving::fixed;
use super::super::sockets::Prepared;
use super::super::start::make_temp_folders;
use super::super::user::{Identity, Rights};
use super::super::{check_process, log_diag, pid};
use super::Master;
use super::workers::{Phase, WorkerBootstrap};
use crate::config::load_inputs::Outside;
use crate::config::{Disk, load_inputs};
use crate::contract::{Listener, MainConf, ReloadMethod};
use crate::engine::load;
use crate::engine::load::Loaded;
use crate::log::{ErrorLog, Level, LogFile, LogFiles, Record, process_log, set_process_log};
use crate::serve::certificates::watched;
use crate::tls::watch::Watch;

/// A configuration that is good as far as the master can tell, and that a worker is trying.
pub(super) struct Pending {
    pub number: u64,
    /// Who tries it.
    pub worker: Option<Pid>,
    /// When it was asked for.
    begun: Instant,
    /// Who waits for the outcome.
    clients: Vec<Client>,
    prepared: Prepared,
    listeners: Vec<Listener>,
    package: Arc<OwnedFd>,
    threads: usize,
    rights: Rights,
    main: MainConf,
    identity: Option<Identity>,
    log: ErrorLog,
    /// The log files that it names.
    pub logs: Vec<Arc<LogFile>>,
    certificates: Watch,
}

impl Master {
    /// HUP: at once, or after what is under way; several wishes are one then.
    pub(super) fn want_reload(&mut self, client: Option<Client>) {
        if self.stopping() {
            if let Some(client) = client {
                client.answer(1, "the server is shutting down");
            }
            return;
        }
        if self.heir.is_some() {
            // nginx: the old process of an upgrade takes up its work again, with what it has
            let text = "a new binary runs: the old one goes on with its configuration";
            process_log().write(Level::Notice, None, format_args!("{text}"));
            self.resume();
            if let Some(client) = client {
                client.answer(1, text);
            }
            return;
        }
        self.again.get_or_insert_default().extend(client);
    }

    /// Whether a reload may begin.
    pub(super) fn may_reload(&self) -> bool {
        self.ready.is_none() && self.pending.is_none() && !self.stopping() && self.heir.is_none()
    }

    /// Has a worker again after WINCH.
    pub(super) fn resume(&mut self) {
        self.resting = false;
        let serves = self.workers.iter().any(|w| w.phase != Phase::Leaving);
        if !serves && !self.start_worker() {
            self.respawn.later();
        }
    }

    /// A configuration that is at fault in any way changes nothing.
    pub(super) fn reload(&mut self, clients: Vec<Client>) {
        process_log().write(Level::Notice, None, format_args!("reconfiguring"));
        self.notify.reloading();
        match self.prepare() {
            Ok(pending) => {
                let pending = self.pending.insert(pending);
                pending.clients = clients;
                self.try_pending();
            }
            Err(text) => {
                self.notify.ready();
                answer(clients, 1, &text);
            }
        }
    }

    /// The error is for who asked; it has been logged.
    fn prepare(&mut self) -> Result<Pending, String> {
        let begun = Instant::now();
        let log = process_log();
        // one module's mistake must not end the process
        let ((outcome, seen), named) = LogFiles::global().named_by(|| {
            load_inputs::record(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    load(&self.program.registry, &self.program.load, &Disk)
                }))
            })
        });
        let report = |diag: &crate::config::Diag| log_diag(&log, diag);
        let loaded = match outcome {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                error.warnings.iter().for_each(|d| report(d));
                report(&error.diag);
                return Err(format!("[{}] {}", error.diag.level.name(), error.diag));
            }
            Err(_) => return Err("a module panicked, the error log has its words".to_owned()),
        };
        loaded.warnings.iter().for_each(|d| report(d));
        let Loaded { site, .. } = loaded;
        let told = |what: &str| format!("{what}, the error log has the details");
        check_process(&site, &log).map_err(|()| told("not enough worker_connections"))?;
        let identity = Identity::of(&site.main).map_err(|text| {
            log.write(Level::Emerg, None, format_args!("{text}"));
            format!("[emerg] {text}")
        })?;
        let threads = site.main.worker_threads.max(1);
        let prepared = self
            .sockets
            .prepare(&site.listeners, threads, &log)
            .map_err(|()| told("[emerg] an address cannot be listened on"))?;
        make_temp_folders(&site, identity.as_ref(), &log);
        // as nginx a new configuration writes to logs opened anew
        LogFiles::global().reopen(&named, None, &log);
        let rights = Rights::of(&site, identity.clone());
        let package = Package {
            program: self.title.program().to_owned(),
            daemonized: self.daemonized,
            threads,
            rights: rights.clone(),
            load: self.program.load.clone(),
            outside: Arc::new(seen),
        };
        let package = package.seal().map_err(|error| {
            let errno = crate::log::Errno::of(&error);
            self.alert("memfd_create() failed", errno);
            format!("memfd_create() failed{errno}")
        })?;
        self.numbers += 1;
        Ok(Pending {
            number: self.numbers,
            worker: None,
            begun,
            clients: Vec::new(),
            prepared,
            package: Arc::new(package),
            threads,
            rights,
            main: site.main.clone(),
            identity,
            log: site.error_log.clone(),
            logs: named,
            certificates: watched(&site),
            listeners: site.listeners,
        })
    }

    /// Hands the configuration to the worker that serves, or to a new one.
    fn try_pending(&mut self) {
        let Some(pending) = &self.pending else { return };
        let sockets = self.sockets.handles(&pending.prepared, &pending.listeners);
        let (package, logs) = (pending.package.clone(), pending.logs.clone());
        let (number, main) = (pending.number, pending.main.clone());
        let mut gifts = WorkerBootstrap {
            package: &package,
            sockets: &sockets,
            logs: &logs,
            state: false,
        };
        let log = process_log();
        for (name, changed) in [
            ("daemon", self.main.daemon != main.daemon),
            (
                "master_process",
                self.main.master_process != main.master_process,
            ),
        ] {
            if changed {
                log.write(Level::Warn, None, format_args!("\"{name}\" cannot be changed while running, it takes effect with the next start"));
            }
        }
        let changed = fixed(&self.main, &main);
        let in_place = main.reload_method == ReloadMethod::InPlace
            && self.threads == pending.threads
            && self.rights == pending.rights
            && changed.is_empty();
        let serving = self
            .workers
            .iter_mut()
            .find(|w| w.phase == Phase::Serving)
            .filter(|_| in_place);
        if let Some(worker) = serving
            && let Some(channel) = &worker.channel
        {
            match gifts.give(channel, number) {
                Ok(()) => {
                    worker.number = number;
                    let pid = worker.pid;
                    if let Some(pending) = &mut self.pending {
                        pending.worker = Some(pid);
                    }
                    return;
                }
                Err(error) => log.record(&Record {
                    errno: Some(crate::log::Errno::of(&error)),
                    ..Record::new(
                        Level::Alert,
                        format_args!("sendmsg() to worker process {} failed", worker.pid),
                    )
                }),
            }
        }
        if !changed.is_empty() {
            let names = changed.join("\", \"");
            log.write(
                Level::Notice,
                None,
                format_args!("\"{names}\" changed: a new worker process takes over"),
            );
        }
        log.write(Level::Notice, None, format_args!("start worker processes"));
        gifts.state = self.ask_for_state();
        match self.spawn(&gifts, number, &main) {
            Some(pid) => {
                if let Some(pending) = &mut self.pending {
                    pending.worker = Some(pid);
                }
            }
            None => self.refuse_pending("a new worker process could not be started"),
        }
    }

    /// The configuration is in force in that worker: it is now the master's own.
    pub(super) fn accept_pending(&mut self, by: Pid, changes: &str) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        let took = pending.begun.elapsed().as_millis();
        set_process_log(pending.log.clone());
        redirect_stderr(&pending.log, self.detached);
        let log = process_log();
        self.sockets
            .commit(pending.prepared, &pending.listeners, &log);
        let before = std::mem::replace(&mut self.main, pending.main);
        self.identity = pending.identity;
        self.package = pending.package;
        self.threads = pending.threads;
        self.rights = pending.rights;
        self.logs = pending.logs;
        self.certificates = pending.certificates;
        self.renewed = Outside::default();
        self.number = pending.number;
        self.resting = false;
        self.respawn = Default::default();
        // what it has learnt since the new one was given its state; first of all, since QUIT ends it
        if self.workers.iter().any(|w| w.pid != by) {
            self.ask_others_for_state(by);
        }
        // what served before drains, as in nginx
        let old: Vec<_> = self
            .workers
            .iter_mut()
            .filter(|w| w.pid != by && w.phase != Phase::Leaving)
            .collect();
        for worker in old {
            worker.phase = Phase::Leaving;
            let told = worker
                .channel
                .as_ref()
                .is_some_and(|c| c.send(Kind::Quit, 0, "", &[]).is_ok());
            if !told {
                let _ = nix::sys::signal::kill(worker.pid, nix::sys::signal::Signal::SIGQUIT);
            }
        }
        if before.pid != self.main.pid {
            match pid::write(&self.main.pid) {
                Ok(()) => {
                    let _ = pid::remove_own(&before.pid);
                }
                Err(error) => {
                    error.log(&log);
                    // the old file still tells the truth
                    self.main.pid = before.pid;
                }
            }
        }
        let changes = match changes {
            "" => "a new worker process serves",
            text => text,
        };
        log.write(
            Level::Notice,
            None,
            format_args!("reload: {changes}, {took} ms"),
        );
        self.notify.ready();
        answer(pending.clients, 0, "");
    }

    /// Everything stays as it was.
    pub(super) fn refuse_pending(&mut self, why: &str) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        process_log().write(
            Level::Emerg,
            None,
            format_args!("the configuration is not taken: {why}"),
        );
        if !self.stopping() {
            self.notify.ready();
        }
        answer(pending.clients, 1, &format!("[emerg] {why}"));
    }

    /// Tells all who wait for a reload that there will be none.
    pub(super) fn give_up_reloads(&mut self, why: &str) {
        if let Some(pending) = self.pending.take() {
            answer(pending.clients, 1, why);
        }
        if let Some(clients) = self.again.take() {
            answer(clients, 1, why);
        }
    }
}

fn answer(clients: Vec<Client>, code: u8, text: &str) {
    for client in clients {
        client.answer(code, text);
    }
}
