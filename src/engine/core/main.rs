//! Directives outside `http`: the process and its workers.

use super::once;
use crate::config::Result;
use crate::contract::{Affinity, CpuMask, ReloadMethod};
use crate::contract::{
    Args, BlockKind, Build, Conf, Directive, Hooks, Module, Place, Statement, inert,
};
use std::sync::Arc;

/// The main level and `events`.
pub struct Core;

/// What the main level says.
#[derive(Default, Clone)]
pub struct CoreDirectives {
    /// `user`.
    pub user: Option<(String, Option<String>)>,
    /// `worker_processes`; 0 is `auto`.
    pub worker_processes: Option<usize>,
    /// `worker_connections`.
    pub worker_connections: Option<usize>,
    /// `worker_rlimit_nofile`.
    pub worker_rlimit_nofile: Option<u64>,
    /// `worker_priority`.
    pub worker_priority: Option<i32>,
    /// `worker_shutdown_timeout`, milliseconds.
    pub worker_shutdown_timeout: Option<u64>,
    /// `worker_rlimit_core`, bytes.
    pub worker_rlimit_core: Option<u64>,
    /// `worker_cpu_affinity`.
    pub worker_cpu_affinity: Option<Affinity>,
    /// `reload_method`.
    pub reload_method: Option<ReloadMethod>,
    /// `working_directory`.
    pub working_directory: Option<String>,
    /// `pid`.
    pub pid: Option<String>,
    /// `daemon`.
    pub daemon: Option<bool>,
    /// `master_process`.
    pub master_process: Option<bool>,
    /// `start_degraded`.
    pub start_degraded: Option<bool>,
    /// `env`.
    pub env: Vec<(String, Option<String>)>,
    /// `events` has been seen.
    pub events: bool,
    /// `http` has been seen.
    pub http: bool,
}

impl Conf for CoreDirectives {
    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for Core {
    const NAME: &'static str = "core";
    type Conf = CoreDirectives;
    const DIRECTIVES: &'static [Directive<CoreDirectives>] = &[
        Directive::new(
            "user",
            Place::MAIN,
            Args::Between(1, 2),
            "`user name [group];` The user that requests are served as. Default: nobody nogroup.",
            |c, s, b| {
                if c.user.is_some() {
                    return Err(s.duplicate());
                }
                if !crate::config::load_inputs::is_root() {
                    b.warn(s.warn("the \"user\" directive makes sense only if the master process runs with super-user privileges, ignored"));
                    return Ok(());
                }
                let user = s.str(0)?;
                if nix::unistd::User::from_name(user).ok().flatten().is_none() {
                    return Err(s.error(format!("getpwnam(\"{user}\") failed")));
                }
                let group = (s.len() > 1)
                    .then(|| s.str(1).map(str::to_owned))
                    .transpose()?;
                let name = group.as_deref().unwrap_or(user);
                if nix::unistd::Group::from_name(name).ok().flatten().is_none() {
                    return Err(s.error(format!("getgrnam(\"{name}\") failed")));
                }
                once(&mut c.user, s, (user.to_owned(), group))
            },
        ),
        Directive::new(
            "worker_processes",
            Place::MAIN,
            Args::Exactly(1),
            "`worker_processes number|auto;` How many threads serve. Default: 1.",
            |c, s, b| {
                if c.worker_processes.is_some() {
                    return Err(s.duplicate());
                }
                let n = match (s.arg(0), s.number(0)) {
                    (b"auto", _) => 0,
                    (_, Ok(0)) => {
                        b.warn(s.warn_at(
                            0,
                            "\"worker_processes 0\" would serve nothing, one thread serves",
                        ));
                        1
                    }
                    (_, Ok(n)) => n as usize,
                    (_, Err(_)) => return Err(s.directive_error(0, "invalid value")),
                };
                once(&mut c.worker_processes, s, n)
            },
        ),
        Directive::new(
            "worker_rlimit_nofile",
            Place::MAIN,
            Args::Exactly(1),
            "`worker_rlimit_nofile number;` Limit of open files.",
            |c, s, _| once(&mut c.worker_rlimit_nofile, s, s.number(0)?),
        ),
        Directive::new(
            "worker_priority",
            Place::MAIN,
            Args::Exactly(1),
            "`worker_priority number;` Scheduling priority (nice), -20 to 20. Default: 0.",
            |c, s, _| match s.str(0)?.parse::<i32>() {
                Ok(n) => once(&mut c.worker_priority, s, n),
                Err(_) => Err(s.directive_error(0, "invalid number")),
            },
        ),
        Directive::new(
            "worker_shutdown_timeout",
            Place::MAIN,
            Args::Exactly(1),
            "`worker_shutdown_timeout time;` How long a graceful stop waits for connections, and a reload for those that it ends. Default: without limit.",
            |c, s, _| once(&mut c.worker_shutdown_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "working_directory",
            Place::MAIN,
            Args::Exactly(1),
            "`working_directory folder;` The folder in which the process runs.",
            |c, s, _| once(&mut c.working_directory, s, s.str(0)?.to_owned()),
        ),
        Directive::new(
            "pid",
            Place::MAIN,
            Args::Exactly(1),
            "`pid file;` Where the process id is written. Default: logs/nginx.pid.",
            |c, s, _| once(&mut c.pid, s, s.str(0)?.to_owned()),
        ),
        Directive::new(
            "daemon",
            Place::MAIN,
            Args::Flag,
            "`daemon on|off;` Whether the process leaves the terminal. Default: on.",
            |c, s, _| once(&mut c.daemon, s, s.flag(0)?),
        ),
        Directive::new(
            "master_process",
            Place::MAIN,
            Args::Flag,
            "`master_process on|off;` For debugging. Default: on.",
            |c, s, _| once(&mut c.master_process, s, s.flag(0)?),
        ),
        Directive::own(
            "start_degraded",
            Place::MAIN,
            Args::Flag,
            "`start_degraded on|off;` Starts, and reloads, although the name of an upstream's server does not resolve or a server's certificate cannot be loaded: what needs it answers 502 or refuses handshakes until the name resolves or the files are good, which is tried again and again. What is wrong is logged at `emerg`. Default: off (refused, as in nginx).",
            |c, s, _| once(&mut c.start_degraded, s, s.flag(0)?),
        ),
        Directive::new(
            "env",
            Place::MAIN,
            Args::Exactly(1),
            "`env name[=value];` A variable of the environment that is kept or set.",
            |c, s, _| {
                let (name, value) = match s.str(0)?.split_once('=') {
                    Some((n, v)) => (n.to_owned(), Some(v.to_owned())),
                    None => (s.str(0)?.to_owned(), None),
                };
                c.env.push((name, value));
                Ok(())
            },
        ),
        Directive::new(
            "events",
            Place::MAIN,
            Args::Block(0, 0),
            "`events { … }` Settings of connection processing.",
            |c, s, b| {
                if std::mem::replace(&mut c.events, true) {
                    return Err(s.duplicate());
                }
                b.enter(s, Place::EVENTS, BlockKind::Events).map(drop)
            },
        ),
        Directive::new(
            "http",
            Place::MAIN,
            Args::Block(0, 0),
            "`http { … }` The HTTP servers.",
            |c, s, b| {
                if std::mem::replace(&mut c.http, true) {
                    return Err(s.duplicate());
                }
                b.http_ends(s);
                b.enter(s, Place::HTTP, BlockKind::Http).map(drop)
            },
        ),
        Directive::new(
            "worker_connections",
            Place::EVENTS,
            Args::Exactly(1),
            "`worker_connections number;` How many connections a thread holds at once. Default: 512.",
            |c, s, _| {
                if c.worker_connections.is_some() {
                    return Err(s.duplicate());
                }
                let n = s.number(0).map_err(|_| {
                    let shown = String::from_utf8_lossy(s.arg(0));
                    s.error_at(0, format!("invalid number \"{shown}\""))
                })?;
                once(&mut c.worker_connections, s, n as usize)
            },
        ),
        Directive::new(
            "load_module",
            Place::MAIN,
            Args::Exactly(1),
            "`load_module file;` Modules of nginx's are not loaded. What is built in is used; a module that is not is noted, and refused where one of its directives is met.",
            load_module,
        ),
        Directive::new(
            "worker_cpu_affinity",
            Place::MAIN,
            Args::AtLeast(1),
            "`worker_cpu_affinity mask …|auto [mask];` The processors of each thread; the last mask goes for the rest of them. Default: all.",
            affinity,
        ),
        Directive::new(
            "worker_rlimit_core",
            Place::MAIN,
            Args::Exactly(1),
            "`worker_rlimit_core size;` Limit of the size of core files of a worker.",
            |c, s, _| once(&mut c.worker_rlimit_core, s, s.size(0)?),
        ),
        Directive::own(
            "reload_method",
            Place::MAIN,
            Args::Exactly(1),
            "`reload_method in_place|replace;` Whether the worker takes a new configuration itself, or a new worker takes its place as in nginx. Directives that a running worker cannot change replace it always. Default: in_place.",
            |c, s, _| {
                let method = match s.arg(0) {
                    b"in_place" => ReloadMethod::InPlace,
                    b"replace" => ReloadMethod::Replace,
                    other => {
                        let shown = String::from_utf8_lossy(other).into_owned();
                        return Err(s.error_at(
                            0,
                            format!(
                                "invalid value \"{shown}\", it must be \"in_place\" or \"replace\""
                            ),
                        ));
                    }
                };
                once(&mut c.reload_method, s, method)
            },
        ),
        Directive::inert(
            "pcre_jit",
            Place::MAIN,
            Args::Flag,
            inert::flag,
            "Patterns are always compiled to machine code where PCRE can.",
        ),
        Directive::inert(
            "timer_resolution",
            Place::MAIN,
            Args::Exactly(1),
            inert::msec,
            "The clock is read from memory; there is nothing to save.",
        ),
        Directive::inert(
            "lock_file",
            Place::MAIN,
            Args::Exactly(1),
            inert::once,
            "Threads need no lock file.",
        ),
        Directive::inert(
            "thread_pool",
            Place::MAIN,
            Args::Between(2, 3),
            inert::thread_pool,
            "File reads need no thread pool.",
        ),
        Directive::inert(
            "debug_points",
            Place::MAIN,
            Args::Exactly(1),
            inert::debug_points,
            "For debugging nginx itself.",
        ),
        Directive::inert(
            "use",
            Place::EVENTS,
            Args::Exactly(1),
            inert::event_method,
            "The connection method is epoll.",
        ),
        Directive::inert(
            "epoll_events",
            Place::EVENTS,
            Args::Exactly(1),
            inert::number,
            "As many events are taken as there are.",
        ),
        Directive::inert(
            "multi_accept",
            Place::EVENTS,
            Args::Flag,
            inert::flag,
            "Every ready connection is accepted.",
        ),
        Directive::inert(
            "accept_mutex",
            Place::EVENTS,
            Args::Flag,
            inert::flag,
            "Threads share the listening sockets without a mutex.",
        ),
        Directive::inert(
            "accept_mutex_delay",
            Place::EVENTS,
            Args::Exactly(1),
            inert::msec,
            "There is no accept mutex.",
        ),
        Directive::inert(
            "worker_aio_requests",
            Place::EVENTS,
            Args::Exactly(1),
            inert::number,
            "No asynchronous file operations are used.",
        ),
        Directive::inert(
            "debug_connection",
            Place::EVENTS,
            Args::Exactly(1),
            inert::debug_connection,
            "There is no debug build.",
        ),
    ];

    fn attach(_conf: &Arc<CoreDirectives>, _on: &mut Hooks) -> Result<()> {
        Ok(())
    }
}

fn affinity(c: &mut CoreDirectives, s: &Statement, _: &mut Build) -> Result<()> {
    let auto = s.arg(0) == b"auto";
    if auto && s.len() > 2 {
        return Err(s.error(format!(
            "invalid number of arguments in \"{}\" directive",
            s.name()
        )));
    }
    let mut masks = Vec::new();
    for n in usize::from(auto)..s.len() {
        let mask = CpuMask::parse(s.arg(n)).map_err(|e| match e {
            Some(c) => s.error_at(
                n,
                format!(
                    "invalid character \"{}\" in \"worker_cpu_affinity\"",
                    char::from(c)
                ),
            ),
            None => s.error_at(
                n,
                format!(
                    "\"worker_cpu_affinity\" supports up to {} CPUs only",
                    CpuMask::MOST
                ),
            ),
        })?;
        masks.push(mask);
    }
    once(&mut c.worker_cpu_affinity, s, Affinity { auto, masks })
}

fn load_module(_c: &mut CoreDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    let file = s.str(0)?.rsplit('/').next().unwrap_or_default();
    let name = file
        .trim_end_matches(".so")
        .trim_end_matches("_module")
        .trim_start_matches("ngx_");
    let known = b.registry.modules().any(|m| m.name() == name);
    let notice = match known {
        true => format!("\"load_module {file}\": the module is built in"),
        false => format!(
            "\"load_module {file}\": modules of nginx are not loaded, and none of this name is built in"
        ),
    };
    b.notices.push(notice);
    if !known {
        b.absent_modules.push(file.to_owned());
    }
    Ok(())
}
