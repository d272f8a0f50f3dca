//! The process: from the command line to master and worker, signals, reload, upgrade and the end.
//!
//! [`start`] does what can fail while somebody looks, then [`master`] looks after one [`worker`], which is this same
//! program executed anew and is handed all that it needs ([`handoff`], by a [`channel`]). With `master_process off`
//! [`single`] does both.

mod channel;
mod control;
mod control_socket;
mod daemon;
mod flags;
mod handoff;
mod inherit;
mod master;
mod notify;
mod pid;
mod serving;
mod signals;
mod single;
mod sockets;
mod start;
mod threads;
mod title;
mod user;
mod worker;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::{self, Build, Command, Options, Paths};
use crate::config::{Diag, Disk, dump};
use crate::contract::{ModuleRegistry, Site};
use crate::engine::load::Loaded;
use crate::engine::{LoadOptions, load};
use crate::log::{
    ErrorLog, Level, LogFiles, Record, Sink, Threshold, console, process_log, set_process_log,
    use_stderr,
};

/// Does what the command line (`args`, without the program's name) asks for; the result is the exit code.
pub fn main(registry: ModuleRegistry, args: impl Iterator<Item = OsString>) -> i32 {
    if let Some(master) = worker::summoned() {
        return worker::run(registry, master);
    }
    let command = match cli::parse(args) {
        Ok(command) => command,
        Err(exit) => return exit.report(),
    };
    match command {
        Command::Show(options) => {
            show(&registry, &options);
            0
        }
        Command::Test(options) => {
            show(&registry, &options);
            Program::new(registry, options, true).test()
        }
        Command::Signal(signal, options) => {
            control::send(&Program::new(registry, options, true), signal)
        }
        Command::Run(options) => start::run(Program::new(registry, options, false)),
    }
}

/// Prints what `-v`, `-V` and `-h` ask for.
fn show(registry: &ModuleRegistry, options: &Options) {
    let build = Build {
        tls: flags::tls_library(),
        modules: &flags::modules(registry),
    };
    if let Some(text) = options.show(&build) {
        // an error stream that is gone leaves nobody to tell
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// How this program was called, and what it is made of: enough to read the configuration, again and again.
struct Program {
    registry: Arc<ModuleRegistry>,
    options: Options,
    paths: Paths,
    load: LoadOptions,
    /// The command line, the program's name included.
    arguments: Vec<OsString>,
}

impl Program {
    /// Opens the first error log, which is the process log until a configuration names another.
    fn new(registry: ModuleRegistry, options: Options, testing: bool) -> Program {
        let paths = options.paths();
        let error_log = paths
            .error_log
            .as_ref()
            .map_or_else(|| "stderr".to_owned(), |p| p.to_string_lossy().into_owned());
        let load = LoadOptions {
            conf: paths.conf_file.clone(),
            prefix: paths.prefix.clone(),
            directives: options.directives().to_vec(),
            error_log,
            pid: cli::PID_PATH.to_owned(),
            testing,
        };
        set_process_log(first_log(&paths));
        Program {
            registry: Arc::new(registry),
            options,
            paths,
            load,
            arguments: std::env::args_os().collect(),
        }
    }

    /// Reads the configuration; what is wrong with it goes to the terminal and to the first error log.
    fn load(&self) -> Option<Loaded> {
        match load(&self.registry, &self.load, &Disk) {
            Ok(loaded) => {
                loaded.warnings.iter().for_each(|d| tell(d));
                Some(loaded)
            }
            Err(error) => {
                error.warnings.iter().for_each(|d| tell(d));
                if self.options.test && !self.options.quiet && self.is_after_syntax(&error.diag) {
                    self.say_syntax_is_ok();
                }
                tell(&error.diag);
                None
            }
        }
    }

    /// Makes paths independent of the folder that the process runs in; says whether any was not.
    fn make_absolute(&mut self) -> bool {
        let before = (
            self.load.conf.clone(),
            self.load.prefix.clone(),
            self.load.error_log.clone(),
        );
        for path in [&mut self.load.conf, &mut self.load.prefix] {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        if self.load.error_log != "stderr"
            && let Ok(absolute) = std::path::absolute(&self.load.error_log)
        {
            self.load.error_log = absolute.to_string_lossy().into_owned();
        }
        let load = &self.load;
        before
            != (
                load.conf.clone(),
                load.prefix.clone(),
                load.error_log.clone(),
            )
    }

    /// `-t` and `-T`: everything that a start would do short of serving, ports in use excepted.
    fn test(&self) -> i32 {
        let passed = self.load().filter(|loaded| self.rehearse(loaded));
        let file = self.paths.conf_file.display();
        let Some(loaded) = passed else {
            console(None, format_args!("configuration file {file} test failed"));
            return 1;
        };
        if !self.options.quiet {
            console(
                None,
                format_args!("configuration file {file} test is successful"),
            );
        }
        if self.options.dump {
            // a reader that has gone needs no more of it
            let _ = dump(&loaded.sources, &mut std::io::stdout().lock());
        }
        0
    }

    /// Whether nginx finds this fault only after it has called the syntax good: the process's files, no `events`.
    fn is_after_syntax(&self, diag: &Diag) -> bool {
        let text = &diag.message;
        if text.starts_with("unknown thread pool") {
            return true;
        }
        let unreadable = format!("open() \"{}\" failed ", self.paths.conf_file.display());
        diag.file.is_none()
            && (text.starts_with("no \"events\"")
                || text.starts_with("zero size shared memory zone")
                || text.starts_with("open() \"") && !text.starts_with(&unreadable))
    }

    fn rehearse(&self, loaded: &Loaded) -> bool {
        if !self.options.quiet {
            self.say_syntax_is_ok();
        }
        let log = process_log();
        let main = &loaded.site.main;
        user::Identity::of(main)
            .map_err(|e| log.write(Level::Emerg, None, format_args!("{e}")))
            .is_ok()
            && check_process(&loaded.site, &log).is_ok()
            && pid::rehearse(&main.pid).map_err(|e| e.log(&log)).is_ok()
            && sockets::rehearse(&loaded.site.listeners, &log).is_ok()
    }

    fn say_syntax_is_ok(&self) {
        console(
            None,
            format_args!(
                "the configuration file {} syntax is ok",
                self.paths.conf_file.display()
            ),
        );
    }
}

/// An operation on a file that failed, in nginx's words: `open() "path" failed (2: No such file or directory)`.
#[derive(Debug)]
struct FileError {
    what: &'static str,
    path: PathBuf,
    errno: crate::log::Errno,
}

impl FileError {
    fn new(what: &'static str, path: &std::path::Path, error: &std::io::Error) -> FileError {
        FileError {
            what,
            path: path.into(),
            errno: crate::log::Errno::of(error),
        }
    }

    fn log_at(&self, log: &ErrorLog, level: Level) {
        let (what, path) = (self.what, self.path.display());
        log.record(&Record {
            errno: Some(self.errno),
            ..Record::new(level, format_args!("{what} \"{path}\" failed"))
        });
    }

    fn log(&self, log: &ErrorLog) {
        self.log_at(log, Level::Emerg);
    }
}

/// The log of everything until the configuration's own `error_log` is known.
fn first_log(paths: &Paths) -> ErrorLog {
    let Some(path) = &paths.error_log else {
        return ErrorLog::stderr(Level::Notice);
    };
    match LogFiles::global().open(path) {
        Ok(file) => ErrorLog::new([Sink::file(file, Threshold::new(Level::Notice))]),
        Err(error) => {
            console(
                Some(Level::Alert),
                format_args!("could not open error log file: {error}"),
            );
            ErrorLog::stderr(Level::Notice)
        }
    }
}

/// Tells of a fault in the configuration: nginx's one line to the log, all there is to say to the terminal.
fn tell(diag: &Diag) {
    let log = process_log();
    let level = level_of(diag);
    if log.uses_stderr() {
        log.write(level, None, format_args!("{}", diag.first_line()));
        if let Some((_, rest)) = diag.to_string().split_once('\n') {
            // an error stream that is gone leaves nobody to tell
            let _ = writeln!(std::io::stderr(), "{rest}");
        }
        return;
    }
    use_stderr(false);
    log_diag(&log, diag);
    use_stderr(true);
    console(Some(level), format_args!("{diag}"));
}

/// nginx's line, and a line with the place where nginx names another one or none.
fn log_diag(log: &ErrorLog, diag: &Diag) {
    let level = level_of(diag);
    log.write(level, None, format_args!("{}", diag.first_line()));
    if let Some(place) = &diag.written_at {
        log.write(level, None, format_args!("it stands in {place}"));
    }
}

fn level_of(diag: &Diag) -> Level {
    Level::from_name(diag.level.name().as_bytes()).unwrap_or(Level::Emerg)
}

/// What nginx looks at once it has called the syntax good: whether there is room for a connection beside the listening
/// sockets, by its reckoning, and whether there are as many masks of processors as threads.
fn check_process(site: &Site, log: &ErrorLog) -> Result<(), ()> {
    let masks = site.main.worker_cpu_affinity.as_ref().filter(|a| !a.auto);
    if masks.is_some_and(|a| a.masks.len() != 1 && a.masks.len() != site.main.worker_threads) {
        log.write(
            Level::Warn,
            None,
            format_args!("the number of \"worker_processes\" is not equal to the number of \"worker_cpu_affinity\" masks, using last mask for remaining worker processes"),
        );
    }
    let (most, sockets) = (site.main.worker_connections, site.listeners.len());
    if most > sockets {
        check_files(site, log);
        return Ok(());
    }
    log.write(
        Level::Emerg,
        None,
        format_args!("{most} worker_connections are not enough for {sockets} listening sockets"),
    );
    Err(())
}

/// Warns where fewer files may be open than connections, as nginx does.
fn check_files(site: &Site, log: &ErrorLog) {
    use nix::sys::resource::{Resource, getrlimit};
    let most = site.main.worker_connections as u64;
    let own = site.main.worker_rlimit_nofile;
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let limit = own.unwrap_or(soft);
    if most > soft && most > limit {
        log.write(
            Level::Warn,
            None,
            format_args!("{most} worker_connections exceed open file resource limit: {limit}"),
        );
    }
}

/// Whether programs that are executed are to be without this descriptor.
fn keep_from_programs(fd: &impl std::os::fd::AsFd, keep: bool) -> nix::Result<()> {
    let flags = if keep {
        nix::fcntl::FdFlag::FD_CLOEXEC
    } else {
        nix::fcntl::FdFlag::empty()
    };
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(flags)).map(drop)
}
