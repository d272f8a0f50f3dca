//! The start: everything that can fail does so before the process leaves the terminal.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::watch;

use super::daemon::{Ready, Side};
use super::signals::Signals;
use super::sockets::Sockets;
use super::supervisor::Supervisor;
use super::threads::Threads;
use super::user::{self, Identity, Root};
use super::{FileError, Program, check_connections, daemon};
use crate::cli::NGINX_VERSION;
use crate::log::{ErrorLog, Level, LogFiles, Record, install_bridge, process_log, set_process_log};
use crate::module::{Content, Site};
use crate::serve::Shared;

/// nginx's exit code for what fails in a worker.
const FATAL: i32 = 2;

/// Serves what the configuration says, until a signal ends it; the result is the exit code.
pub(super) fn run(program: Program) -> i32 {
    start(program).unwrap_or_else(|code| code)
}

fn start(mut program: Program) -> Result<i32, i32> {
    install_bridge();
    let site = program.load().ok_or(1)?.site;
    let log = site.error_log.clone();
    set_process_log(log.clone());
    let emerg = |message: String| {
        log.write(Level::Emerg, None, format_args!("{message}"));
        1
    };
    let main = site.main.clone();
    let identity = Identity::of(&main).map_err(emerg)?;
    check_connections(&site, &log).map_err(|()| 1)?;
    let threads = main.worker_threads.max(1);
    let sockets = Sockets::default();
    let prepared = sockets
        .prepare(&site.listeners, threads, &log)
        .map_err(|()| 1)?;
    make_temp_folders(&site, identity.as_ref(), &log);
    say_hello(&log, &site);

    let ready = match main.daemon {
        true => match daemon::detach(&log).map_err(|()| 1)? {
            Side::Starter(code) => {
                prepared.disown();
                return Ok(code);
            }
            Side::Daemon(ready) => ready,
        },
        false => Ready::nobody(),
    };
    // from here on there may be threads, and what they inherit is settled first
    report_panics();
    user::set_environment(&main);
    user::set_limits(&main, &log);
    let signals = Signals::block().map_err(|errno| {
        log.record(&Record {
            errno: Some(errno.into()),
            ..Record::new(Level::Emerg, format_args!("signalfd() failed"))
        });
        FATAL
    })?;
    if let Some(identity) = &identity {
        identity.assume().map_err(|(message, errno)| {
            log.record(&Record {
                errno: Some(errno.into()),
                ..Record::new(Level::Emerg, format_args!("{message}"))
            });
            FATAL
        })?;
    }
    if let Some(folder) = &main.working_directory {
        program.make_absolute();
        user::enter(folder, &log).map_err(|()| FATAL)?;
    }

    let (events, inbox) = channel();
    let (exit, exited) = watch::channel(None);
    let shared = Arc::new(Shared::new(site, threads));
    let (service, channels) = Threads::new(shared.clone(), threads, events.clone());
    let supervisor = Supervisor::new(program, shared, sockets, channels, identity, exit);
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|e| emerg(format!("starting a thread failed: {e}")))
    };
    spawn("signals", Box::new(move || signals.forward(&events)))?;
    spawn(
        "supervisor",
        Box::new(move || supervisor.run(prepared, &inbox, ready)),
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
    let _root = Root::take(identity);
    let mut folders: BTreeSet<&PathBuf> = BTreeSet::new();
    for location in &site.locations {
        folders.insert(&location.core.client_body_temp_path.path);
        if let Some(Content::Upstream(pass)) = &location.hooks.content {
            folders.insert(&pass.conf.temp_path.path);
        }
    }
    let caches = crate::cache::paths(site);
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
            && std::fs::metadata(folder).is_ok_and(|m| m.uid() != identity.uid().as_raw())
        {
            let owner = Some(identity.uid().as_raw());
            std::os::unix::fs::chown(folder, owner, None).unwrap_or_else(failed("chown()"));
        }
    }
}

/// A panic ends one task at most; what it said belongs in the error log.
fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        process_log().write(Level::Alert, None, format_args!("thread \"{name}\" {info}"));
    }));
}
