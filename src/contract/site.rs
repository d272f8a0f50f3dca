//! One configuration, ready to serve: listeners, servers and locations with their hooks.

use super::{CoreConf, Hooks, ModuleRegistry, PatternList, ServerConf, VarDef, VarId};
use crate::log::ErrorLog;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that requests are served from. Immutable; a reload makes a new one.
pub struct Site {
    /// A number that no other site of this process has; never 0.
    pub serial: u64,
    /// Addresses, each with its servers.
    pub listeners: Vec<Listener>,
    /// Virtual servers, in the order of the configuration.
    pub servers: Vec<Server>,
    /// Locations of every server; a [`LocId`] is an index.
    pub locations: Vec<Location>,
    /// Variables by id.
    pub vars: Box<[VarDef]>,
    /// How many variables keep a value in the request.
    pub var_slots: usize,
    /// How many slots of modules a request has.
    pub module_slots: usize,
    /// `error_log` of the main level.
    pub error_log: ErrorLog,
    /// Settings of the main level and of `events`.
    pub main: MainConf,
    /// Ids of variables by name, for tests and tools.
    pub var_names: HashMap<Box<str>, VarId>,
    /// What runs for as long as the site is in force.
    pub background: Vec<Arc<super::Background>>,
    /// The modules, whose variables can be asked for by name.
    pub registry: Arc<ModuleRegistry>,
    /// The upstreams: those written, and those that addresses imply.
    pub groups: super::GroupsRef,
    /// Fingerprints of what the outer blocks say.
    pub prints: Prints,
    /// Serves the requests that a request makes of its own site.
    pub dispatch: &'static dyn super::Dispatch,
}

/// Fingerprints of what stands in the outer blocks, without the blocks in them that have their own: two
/// configurations of one process that say the same have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prints {
    /// Of the main level.
    pub main: u64,
    /// Of `events`.
    pub events: u64,
    /// Of `http`.
    pub http: u64,
    /// Of `stream` and all that is in it.
    pub stream: u64,
    /// Of each `upstream` of `http`, by its name.
    pub upstreams: Vec<(Box<str>, u64)>,
}

impl Site {
    /// Whether a location connects to its origin from addresses that need not be this host's.
    pub fn binds_foreign(&self) -> bool {
        self.locations
            .iter()
            .any(|location| match &location.hooks.content {
                Some(super::Content::Upstream(pass)) => pass.conf.bind_transparent,
                _ => false,
            })
    }
}

/// A thread's own reference to the site: counting it touches no memory that other threads count in.
#[derive(Clone)]
#[allow(clippy::redundant_allocation)]
pub struct SiteRef(Arc<Arc<Site>>);

impl SiteRef {
    /// A reference of its own.
    pub fn new(site: Arc<Site>) -> SiteRef {
        SiteRef(Arc::new(site))
    }

    /// Whether both are the same reference.
    pub fn same(&self, other: &SiteRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::ops::Deref for SiteRef {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.0
    }
}

/// A location's number in its site.
pub type LocId = u32;

/// Settings outside `http`.
#[derive(Clone, Debug)]
pub struct MainConf {
    /// `-p`: what relative paths begin with.
    pub prefix: PathBuf,
    /// `user`: name and group.
    pub user: Option<(String, Option<String>)>,
    /// `worker_processes`: threads that serve.
    pub worker_threads: usize,
    /// `worker_connections`.
    pub worker_connections: usize,
    /// `daemon`.
    pub daemon: bool,
    /// `master_process`.
    pub master_process: bool,
    /// `pid`.
    pub pid: PathBuf,
    /// `worker_shutdown_timeout`, milliseconds.
    pub worker_shutdown_timeout: Option<u64>,
    /// `worker_rlimit_nofile`.
    pub worker_rlimit_nofile: Option<u64>,
    /// `worker_priority`.
    pub worker_priority: Option<i32>,
    /// `worker_rlimit_core`, bytes.
    pub worker_rlimit_core: Option<u64>,
    /// `worker_cpu_affinity`.
    pub worker_cpu_affinity: Option<Affinity>,
    /// `reload_method`.
    pub reload_method: ReloadMethod,
    /// `working_directory`.
    pub working_directory: Option<PathBuf>,
    /// `env`: name and, if given, value.
    pub env: Vec<(String, Option<String>)>,
    /// Notices about directives that have no meaning here, logged once.
    pub notices: Vec<String>,
}

/// `reload_method`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReloadMethod {
    /// The worker takes the new configuration.
    #[default]
    InPlace,
    /// A new worker takes the old one's place.
    Replace,
}

/// `worker_cpu_affinity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// One processor for each thread in turn, of those in the mask.
    pub auto: bool,
    /// A mask for each thread, or the one of `auto`.
    pub masks: Vec<CpuMask>,
}

impl Affinity {
    /// The processors of thread `n`.
    pub fn of(&self, n: usize) -> Option<CpuMask> {
        if !self.auto {
            return self.masks.get(n).or(self.masks.last()).copied();
        }
        let all = self.masks.first().copied().unwrap_or(CpuMask::ALL);
        let online = std::thread::available_parallelism().map_or(1, |n| n.get());
        let cpus: Vec<usize> = all.numbers().filter(|c| *c < online).collect();
        let chosen = *cpus.get(n.checked_rem(cpus.len())?)?;
        Some(CpuMask::one(chosen))
    }
}

/// A set of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMask([u64; 16]);

impl CpuMask {
    /// As many as the kernel's own type holds.
    pub const MOST: usize = 1024;
    /// Every processor.
    pub const ALL: CpuMask = CpuMask([u64::MAX; 16]);

    /// Reads `0101`: the last digit is processor 0.
    ///
    /// # Errors
    /// The character at fault, or `None` where there are too many.
    pub fn parse(text: &[u8]) -> Result<CpuMask, Option<u8>> {
        let mut mask = CpuMask([0; 16]);
        let digits = text.iter().rev().filter(|c| **c != b' ');
        for (n, c) in digits.enumerate() {
            match c {
                b'0' if n < Self::MOST => {}
                b'1' if n < Self::MOST => mask.add(n),
                b'0' | b'1' => return Err(None),
                other => return Err(Some(*other)),
            }
        }
        Ok(mask)
    }

    /// The processors in the set.
    pub fn numbers(self) -> impl Iterator<Item = usize> {
        (0..Self::MOST).filter(move |n| {
            let word = self.0.get(n / 64).copied().unwrap_or_default();
            word >> (n % 64) & 1 == 1
        })
    }

    fn one(n: usize) -> CpuMask {
        let mut mask = CpuMask([0; 16]);
        mask.add(n);
        mask
    }

    fn add(&mut self, n: usize) {
        if let Some(word) = self.0.get_mut(n / 64) {
            *word |= 1 << (n % 64);
        }
    }
}

/// An address that is listened on.
#[derive(Clone)]
pub struct Listener {
    /// The address.
    pub addr: ListenAddr,
    /// Socket options.
    pub options: ListenOptions,
    /// The server of requests whose name no other has.
    pub default_server: u32,
    /// Names of the servers on this address.
    pub names: Arc<Names>,
    /// Whether connections begin with a TLS handshake.
    pub tls: Option<Arc<super::TlsListener>>,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Whether HTTP/2 is spoken too.
    pub http2: bool,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// TCP.
    Inet(SocketAddr),
    /// A UNIX-domain socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddr::Inet(a) if a.is_ipv4() && a.ip().is_unspecified() => {
                write!(f, "0.0.0.0:{}", a.port())
            }
            ListenAddr::Inet(a) => write!(f, "{a}"),
            ListenAddr::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

/// Parameters of `listen` that belong to the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// `backlog=`.
    pub backlog: i32,
    /// `rcvbuf=`, bytes.
    pub rcvbuf: Option<usize>,
    /// `sndbuf=`, bytes.
    pub sndbuf: Option<usize>,
    /// `reuseport`.
    pub reuseport: bool,
    /// `ipv6only=`.
    pub ipv6only: bool,
    /// `deferred`.
    pub deferred: bool,
    /// `so_keepalive=`: on with idle, interval (seconds) and count, or off.
    pub keepalive: Option<KeepaliveOption>,
    /// `fastopen=`.
    pub fastopen: Option<i32>,
    /// `multipath`: Multipath TCP (RFC 8684).
    pub multipath: bool,
}

/// `so_keepalive=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepaliveOption {
    /// On or off.
    pub on: bool,
    /// Seconds before the first probe.
    pub idle: Option<u32>,
    /// Seconds between probes.
    pub interval: Option<u32>,
    /// How many probes.
    pub count: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            backlog: 511,
            rcvbuf: None,
            sndbuf: None,
            reuseport: false,
            ipv6only: true,
            deferred: false,
            keepalive: None,
            fastopen: None,
            multipath: false,
        }
    }
}

/// Server names of one address: exact, wildcard and regular expression.
#[derive(Default)]
pub struct Names {
    /// `example.com`, lower case.
    pub exact: HashMap<Box<[u8]>, u32, foldhash::fast::FixedState>,
    /// `*.example.com` and `.example.com`: the part after `*`, dot included.
    pub leading: HashMap<Box<[u8]>, u32, foldhash::fast::FixedState>,
    /// `example.*`: the part before `*`, dot included.
    pub trailing: HashMap<Box<[u8]>, u32, foldhash::fast::FixedState>,
    /// `~pattern`, in order.
    pub patterns: PatternList<u32>,
}

/// A virtual server.
#[derive(Clone)]
pub struct Server {
    /// The first `server_name`: `$server_name`.
    pub name: Arc<[u8]>,
    /// Settings in force before the location is known.
    pub conf: Arc<ServerConf>,
    /// Hooks of the phases before the location.
    pub hooks: Hooks,
    /// The location of requests that no other matches.
    pub default_location: LocId,
    /// The locations.
    pub tree: LocationTree,
    /// `@name` locations.
    pub named: HashMap<Box<[u8]>, LocId>,
    /// TLS settings, where a listener of this server has TLS.
    pub tls: Option<Arc<super::TlsServer>>,
    /// Where in the configuration the server stands (`FILE:LINE`).
    pub place: Arc<str>,
    /// A fingerprint of what the server says outside of its locations.
    pub print: u64,
    /// A fingerprint of the server with its locations.
    pub deep_print: u64,
    /// The addresses that it listens on.
    pub addrs: Box<[ListenAddr]>,
}

/// How locations are found: the exact and prefix ones sorted, the patterns in order.
#[derive(Default, Clone)]
pub struct LocationTree {
    /// Exact names and prefixes, sorted by name.
    pub prefixes: Box<[Prefix]>,
    /// `~` and `~*`, in order.
    pub patterns: PatternList<LocId>,
}

/// A prefix or exact location in a [`LocationTree`].
#[derive(Clone)]
pub struct Prefix {
    /// Its name.
    pub name: Box<[u8]>,
    /// `location = name`.
    pub exact: Option<LocId>,
    /// `location name`.
    pub inclusive: Option<LocId>,
    /// The longest other prefix that is a prefix of this name: an index.
    pub parent: Option<u32>,
}

/// A location, or the settings of an `if` or `limit_except` inside one.
#[derive(Clone)]
pub struct Location {
    /// Its name as written: `/api/`, `\.php$`, `@name`.
    pub name: Box<[u8]>,
    /// `^~`: patterns are not tried after it.
    pub no_regex: bool,
    /// Whether it is exact (`=`).
    pub exact: bool,
    /// Whether it is a regular expression.
    pub regex: bool,
    /// Whether it is named (`@`).
    pub named: bool,
    /// `proxy_pass` and its kin redirect `/name` to `/name/`.
    pub auto_redirect: bool,
    /// Core settings.
    pub core: Arc<CoreConf>,
    /// Hooks, flat.
    pub hooks: Hooks,
    /// The module whose directive in this very block gives the content handler.
    pub claims: Option<usize>,
    /// Where the steps of the access phase end and of those before it begin.
    pub ends: [u16; 7],
    /// Locations inside this one.
    pub nested: LocationTree,
    /// `limit_except`: methods let through and the settings of all others.
    pub limit_except: Option<(u32, LocId)>,
    /// Where in the configuration the location stands (`FILE:LINE`).
    pub place: Arc<str>,
    /// A fingerprint of what the location says outside of the locations in it.
    pub print: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_processors() {
        let mask = CpuMask::parse(b"1 0101").unwrap();
        assert_eq!(mask.numbers().collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(CpuMask::parse(b"012"), Err(Some(b'2')));
        assert_eq!(CpuMask::parse(&[b'0'; 1025]), Err(None));
        let affinity = Affinity {
            auto: false,
            masks: vec![mask, CpuMask::one(7)],
        };
        assert_eq!(affinity.of(0), Some(mask));
        assert_eq!(affinity.of(5), Some(CpuMask::one(7)));
        let auto = Affinity {
            auto: true,
            masks: Vec::new(),
        };
        assert_eq!(auto.of(0), Some(CpuMask::one(0)));
    }
}
