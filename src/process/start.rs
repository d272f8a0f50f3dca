//! The start: everything that can fail does so before the process leaves the terminal.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Pid, getppid};

use super::daemon::{Ready, Side};
use super::master::Master;
use super::sockets::{Prepared, Sockets};
use super::user::Identity;
use super::{FileError, Program, check_process, daemon, inherit, single};
use crate::config::load_inputs::{self, Outside};
use crate::contract::{Content, Site};
use crate::http::status::NGINX_VERSION;
use crate::log::{
    ErrorLog, Level, LogFile, LogFiles, install_bridge, process_log, set_process_log,
};

/// A process that has everything it needs and serves nothing yet.
pub(super) struct Started {
    pub program: Program,
    pub site: Site,
    /// What the site was read from.
    pub outside: Outside,
    pub sockets: Sockets,
    pub prepared: Prepared,
    pub identity: Option<Identity>,
    /// Whether an upgrade began this process.
    pub upgrade: bool,
    /// The logs that the configuration names.
    pub logs: Vec<Arc<LogFile>>,
    /// Whose child it is.
    pub elder: Option<Pid>,
}

/// Serves what the configuration says, until a signal ends it; the result is the exit code.
pub(super) fn run(program: Program) -> i32 {
    start(program).unwrap_or_else(|code| code)
}

fn start(mut program: Program) -> Result<i32, i32> {
    install_bridge();
    let elder = getppid();
    let (inherited, list) = inherit::take(&process_log());
    let files = LogFiles::global();
    let load = |program: &Program| files.named_by(|| load_inputs::record(|| program.load()));
    let ((loaded, mut outside), mut named) = load(&program);
    let mut site = loaded.ok_or(1)?.site;
    if site.main.working_directory.is_some() && program.make_absolute() {
        let ((loaded, seen), logs) = load(&program);
        (site, outside, named) = (loaded.ok_or(1)?.site, seen, logs);
    }
    let log = site.error_log.clone();
    set_process_log(log.clone());
    let upgrade = list.is_some();
    if let Some(list) = list {
        log.write(
            Level::Notice,
            None,
            format_args!("using inherited sockets from \"{list}\""),
        );
    }
    let identity = Identity::of(&site.main).map_err(|message| {
        log.write(Level::Emerg, None, format_args!("{message}"));
        1
    })?;
    check_process(&site, &log).map_err(|()| 1)?;
    let mut sockets = Sockets::inheriting(inherited);
    let threads = site.main.worker_threads.max(1);
    let prepared = sockets
        .prepare(&site.listeners, threads, &log)
        .map_err(|()| 1)?;
    make_temp_folders(&site, identity.as_ref(), &log);
    say_hello(&log, &site);

    // the new process of an upgrade has no terminal to leave
    let ready = match site.main.daemon && !upgrade {
        true => match daemon::detach(&log).map_err(|()| 1)? {
            Side::Starter(code) => {
                prepared.disown();
                return Ok(code);
            }
            Side::Daemon(ready) => ready,
        },
        false => Ready::nobody(),
    };
    report_panics();
    // nothing here may hold the log of the first configuration open
    drop(log);
    let alone = !site.main.master_process;
    let started = Started {
        program,
        site,
        outside,
        sockets,
        prepared,
        identity,
        upgrade,
        logs: named,
        elder: Some(elder),
    };
    match alone {
        true => single::run(started, ready),
        false => Ok(Master::run(started, ready)),
    }
}

/// What nginx says of itself when it starts.
fn say_hello(log: &ErrorLog, site: &Site) {
    let notice = |message: std::fmt::Arguments<'_>| log.write(Level::Notice, None, message);
    notice(format_args!("using the \"epoll\" event method"));
    notice(format_args!(
        "nginx/{NGINX_VERSION} (couloir/{})",
        env!("CARGO_PKG_VERSION")
    ));
    let kernel = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default()
    };
    notice(format_args!(
        "OS: {} {}",
        kernel("ostype").trim(),
        kernel("osrelease").trim()
    ));
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        notice(format_args!("getrlimit(RLIMIT_NOFILE): {soft}:{hard}"));
    }
    for message in &site.main.notices {
        log.write(Level::Info, None, format_args!("{message}"));
    }
}

/// Makes the folders of temporary files and gives them to the user that serves. Where that fails, the request that needs
/// a file says so; those that need none go on.
pub(super) fn make_temp_folders(site: &Site, identity: Option<&Identity>, log: &ErrorLog) {
    let mut folders: BTreeSet<&PathBuf> = BTreeSet::new();
    for location in &site.locations {
        folders.insert(&location.core.client_body_temp_path.path);
        if let Some(Content::Upstream(pass)) = &location.hooks.content {
            folders.insert(&pass.conf.temp_path.path);
        }
    }
    let caches = site.cache_paths();
    folders.extend(caches.iter().map(|c| &c.zone.root));
    for folder in folders {
        let failed = |what: &'static str| {
            move |error: std::io::Error| {
                FileError::new(what, folder, &error).log_at(log, Level::Notice)
            }
        };
        if let Err(error) = std::fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(folder)
        {
            failed("mkdir()")(error);
            continue;
        }
        if let Some(identity) = identity
            && std::fs::metadata(folder).is_ok_and(|m| m.uid() != identity.uid.as_raw())
        {
            let owner = Some(identity.uid.as_raw());
            std::os::unix::fs::chown(folder, owner, None).unwrap_or_else(failed("chown()"));
        }
    }
}

/// A panic ends one task at most; what it said belongs in the error log, with its request where it has one.
pub(super) fn report_panics() {
    crate::runtime::panics::install(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        process_log().write(Level::Alert, None, format_args!("thread \"{name}\" {info}"));
    });
}
