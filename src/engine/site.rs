//! From blocks of settings to a [`Site`]: inheritance, locations, names, listeners.

use super::core::http::HttpDirectives;
use super::core::main::CoreDirectives;
use super::core::server::{ServerDirectives, ServerName, Servers};
use super::core::{Core, Http2, HttpCore, HttpServer};
use super::inherit;
use crate::config::Result;
use crate::contract::*;
use crate::files::FileRules;
use crate::log::{ErrorLog, LogFiles, Sink, Target, Threshold};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Defaults that depend on how the program was started.
pub struct Defaults {
    /// `-e` or the built-in path of the error log.
    pub error_log: String,
    /// The built-in path of the PID file.
    pub pid: String,
}

/// What belongs to a location's name.
type ByName<T> = HashMap<Box<[u8]>, T>;

/// Assembles the site of a configuration that has been read.
pub(crate) fn assemble(b: &mut Build, defaults: &Defaults) -> Result<Site> {
    let groups = b.groups();
    b.configured()?;
    b.finish()?;
    inherit::all(b);
    let (vars, var_slots) = b.resolve_vars()?;
    let var_names = vars
        .iter()
        .enumerate()
        .map(|(i, v)| (v.name.clone(), VarId(i as u16)))
        .collect();
    let mut logs = Logs {
        cache: Vec::new(),
        default: defaults.error_log.clone(),
        prefix: b.prefix.clone(),
    };

    let main_http = b.effective::<HttpCore>(BlockId(0));
    let mut error_log = logs.of(&main_http)?;
    let main = main_conf(b, defaults);

    let mut assembly = Assembly {
        b,
        logs,
        locations: Vec::new(),
        cores: HashMap::new(),
        resolvers: Vec::new(),
    };
    let ids = std::mem::take(&mut assembly.b.shared::<Servers>().0);
    let mut servers = Vec::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        servers.push(assembly.server(*id, index as u32)?);
    }
    let locations = std::mem::take(&mut assembly.locations);
    if assembly.logs.cache.iter().any(|(_, log)| log.uses_stderr()) {
        error_log.keep_stderr();
    }
    let listeners = super::listeners::collect(b, &ids, &mut servers)?;
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    Ok(Site {
        serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        listeners,
        servers,
        locations,
        vars,
        var_slots,
        module_slots: b.module_slots as usize,
        error_log,
        main,
        var_names,
        background: std::mem::take(&mut b.background),
        registry: b.registry.clone(),
        groups,
        prints: Prints::of(b),
        dispatch: &super::dispatch::Engine,
    })
}

fn main_conf(b: &Build, defaults: &Defaults) -> MainConf {
    let c = b.effective::<Core>(BlockId(0));
    let events = b
        .blocks
        .iter()
        .position(|x| matches!(x.kind, BlockKind::Events));
    let events = events.map(|i| b.effective::<Core>(BlockId(i as u32)));
    let CoreDirectives {
        user,
        worker_processes,
        worker_rlimit_nofile,
        worker_priority,
        worker_rlimit_core,
        worker_cpu_affinity,
        reload_method,
        worker_shutdown_timeout,
        working_directory,
        pid,
        daemon,
        master_process,
        env,
        ..
    } = &*c;
    let threads = match worker_processes {
        Some(0) => std::thread::available_parallelism().map_or(1, |n| n.get()),
        Some(n) => *n,
        None => 1,
    };
    MainConf {
        prefix: b.prefix.clone(),
        user: user.clone(),
        worker_threads: threads,
        worker_connections: events.and_then(|e| e.worker_connections).unwrap_or(512),
        daemon: daemon.unwrap_or(true),
        master_process: master_process.unwrap_or(true),
        pid: b.prefixed(pid.as_deref().unwrap_or(&defaults.pid)),
        worker_shutdown_timeout: *worker_shutdown_timeout,
        worker_rlimit_nofile: *worker_rlimit_nofile,
        worker_priority: *worker_priority,
        worker_rlimit_core: *worker_rlimit_core,
        worker_cpu_affinity: worker_cpu_affinity.clone(),
        reload_method: reload_method.unwrap_or_default(),
        working_directory: working_directory.as_ref().map(Into::into),
        env: env.clone(),
        notices: b.notices.clone(),
    }
}

/// Opens each error log once.
struct Logs {
    cache: Vec<(Vec<(Target, Threshold)>, ErrorLog)>,
    default: String,
    prefix: std::path::PathBuf,
}

impl Logs {
    fn of(&mut self, c: &HttpDirectives) -> Result<ErrorLog> {
        let mut specs = c.error_log.clone().unwrap_or_default();
        if specs.is_empty() {
            let target =
                Target::parse(self.default.as_bytes()).map_err(crate::config::Diag::plain)?;
            specs.push((target, Threshold::new(crate::log::Level::Error)));
        }
        if let Some(log) = self.cache.iter().find(|(s, _)| *s == specs).map(|(_, l)| l) {
            return Ok(log.clone());
        }
        let mut sinks = Vec::new();
        for (target, threshold) in &specs {
            sinks.push(match target {
                Target::Stderr => Sink::stderr(*threshold),
                Target::File(path) => {
                    let path = self.prefix.join(path);
                    let file = LogFiles::global()
                        .open(&path)
                        .map_err(|e| crate::config::Diag::plain(e.to_string()))?;
                    Sink::file(file, *threshold)
                }
                Target::Syslog(conf) => Sink::syslog(
                    Arc::new(crate::log::SyslogPeer::new(conf.clone())),
                    *threshold,
                ),
            });
        }
        let log = ErrorLog::new(sinks);
        self.cache.push((specs, log.clone()));
        Ok(log)
    }
}

struct Assembly<'b> {
    b: &'b mut Build,
    logs: Logs,
    locations: Vec<Location>,
    /// Core settings by the address of what they were made from: locations that write nothing share them.
    cores: HashMap<usize, Arc<CoreConf>>,
    resolvers: Vec<(crate::dns::ResolverConf, Arc<crate::dns::Resolver>)>,
}

impl Assembly<'_> {
    fn server(&mut self, id: BlockId, index: u32) -> Result<Server> {
        let conf = self.b.effective::<HttpServer>(id);
        let ServerDirectives { names, .. } = &*conf;
        let name: Arc<[u8]> = match names.first() {
            Some(ServerName::Exact(n) | ServerName::Leading(n) | ServerName::Both(n)) => {
                match n.strip_prefix(b".") {
                    Some(_) if matches!(names.first(), Some(ServerName::Leading(_))) => {
                        [b"*", &**n].concat().into()
                    }
                    Some(rest) => rest.into(),
                    None => (**n).into(),
                }
            }
            Some(ServerName::Odd(n, _)) => (**n).into(),
            Some(ServerName::Trailing(n)) => [&**n, b"*"].concat().into(),
            Some(ServerName::Pattern(p)) => format!("~{}", p.source()).into_bytes().into(),
            None => (*b"").into(),
        };
        let d = ServerConf::default();
        let server_conf = ServerConf {
            client_header_buffer_size: conf
                .client_header_buffer_size
                .map_or(d.client_header_buffer_size, |n| n as usize),
            large_client_header_buffers: conf
                .large_client_header_buffers
                .map_or(d.large_client_header_buffers, |(n, s)| {
                    (n as usize, s as usize)
                }),
            client_header_timeout: conf
                .client_header_timeout
                .unwrap_or(d.client_header_timeout),
            ignore_invalid_headers: conf
                .ignore_invalid_headers
                .unwrap_or(d.ignore_invalid_headers),
            underscores_in_headers: conf
                .underscores_in_headers
                .unwrap_or(d.underscores_in_headers),
            strict: conf.strict.unwrap_or(d.strict),
            merge_slashes: conf.merge_slashes.unwrap_or(d.merge_slashes),
            max_headers: conf.max_headers.map_or(d.max_headers, |n| n as usize),
            allow_connect: conf.allow_connect,
            http2: self.b.effective::<Http2>(id).settings(),
        };
        let hooks = self.attach(id, Level::Server)?;
        let (tree, named) = self.tree(id, None)?;
        let default_location = self.location(id, Level::ServerDefault)?;
        let _ = index;
        Ok(Server {
            name,
            conf: Arc::new(server_conf),
            hooks,
            default_location,
            tree,
            named,
            tls: None,
            place: self.at(id),
            print: self.print(id),
            deep_print: self.deep_print(id),
            addrs: Box::default(),
        })
    }

    fn deep_print(&self, id: BlockId) -> u64 {
        let inner = self.b.children_of(id).iter();
        inner.fold(self.print(id), |all, c| {
            all.rotate_left(5) ^ self.deep_print(*c)
        })
    }

    fn claims(&self, id: BlockId) -> Option<usize> {
        self.b.blocks.get(id.0 as usize).and_then(|b| b.content)
    }

    fn print(&self, id: BlockId) -> u64 {
        self.b.blocks.get(id.0 as usize).map_or(0, |b| b.print)
    }

    fn at(&self, id: BlockId) -> Arc<str> {
        self.b
            .blocks
            .get(id.0 as usize)
            .map_or_else(|| "".into(), |b| b.at.clone())
    }

    fn attach(&mut self, id: BlockId, level: Level) -> Result<Hooks> {
        let mut hooks = Hooks {
            level: Some(level),
            block: Some(id),
            ..Hooks::default()
        };
        hooks.named = matches!(
            self.b.kind_of(id),
            BlockKind::Location(LocationName::Named(_))
        );
        let registry = self.b.registry.clone();
        for (m, module) in registry.modules().enumerate() {
            let conf = self
                .b
                .blocks
                .get(id.0 as usize)
                .and_then(|b| b.effective.get(m).cloned().flatten());
            let conf = match conf {
                Some(c) => c,
                None if module.always() => {
                    let mut c = module.new_conf();
                    module.inherit(&mut *c, &*module.new_conf());
                    Arc::from(c)
                }
                None => continue,
            };
            hooks.module = m;
            hooks.module_name = module.name();
            module
                .attach(&conf, &mut hooks)
                .map_err(|diag| self.b.at_merge(diag))?;
        }
        if let Some(m) = self.claims(id)
            && let Some((_, content)) = hooks.offered.iter().find(|(n, _)| *n == m)
        {
            hooks.content = Some(content.clone());
        }
        self.b.background.append(&mut hooks.background);
        for text in std::mem::take(&mut hooks.warnings) {
            self.b.warn_at_merge(id, text);
        }
        // the phases run in order whatever the order of the modules
        hooks.steps.sort_by_key(|(p, _)| *p);
        Ok(hooks)
    }

    fn location(&mut self, id: BlockId, level: Level) -> Result<LocId> {
        let kind = self.b.kind_of(id).clone();
        let mut hooks = self.attach(id, level)?;
        let core = self.core(id)?;
        let (nested, _) = if level == Level::ServerDefault {
            Default::default()
        } else {
            self.tree(id, Some(&kind))?
        };
        let name = match &kind {
            BlockKind::Location(n) => Some(n),
            _ => None,
        };
        let mut ends = [0u16; 7];
        for (i, phase) in [
            Phase::PostRead,
            Phase::ServerRewrite,
            Phase::Rewrite,
            Phase::PreAccess,
            Phase::Access,
            Phase::PreContent,
        ]
        .into_iter()
        .enumerate()
        {
            ends[i + 1] = hooks.steps.iter().filter(|(p, _)| *p <= phase).count() as u16;
        }
        let limit = self
            .b
            .children_of(id)
            .iter()
            .filter(|_| level == Level::Location)
            .find_map(|l| match self.b.kind_of(*l) {
                BlockKind::LimitExcept(methods) => Some((*l, *methods)),
                _ => None,
            });
        let limit_except = match limit {
            Some((l, methods)) => Some((methods, self.inner(l, Level::LimitExcept, &mut hooks)?)),
            None => None,
        };
        let place = self.at(id);
        let location = Location {
            name: name.map_or_else(Default::default, |n| n.text().into()),
            no_regex: matches!(name, Some(LocationName::Prefix(_, true))),
            exact: matches!(name, Some(LocationName::Exact(_))),
            regex: matches!(name, Some(LocationName::Pattern(_))),
            named: matches!(name, Some(LocationName::Named(_))),
            auto_redirect: hooks.auto_redirect
                && matches!(name, Some(LocationName::Prefix(n, _) | LocationName::Exact(n)) if n.ends_with(b"/")),
            core,
            hooks,
            ends,
            nested,
            limit_except,
            place,
            print: self.print(id),
            claims: self.claims(id),
        };
        self.locations.push(location);
        let this = (self.locations.len() - 1) as LocId;
        if level != Level::Server {
            self.ifs(id, this)?;
        }
        Ok(this)
    }

    /// The settings of an `if` or `limit_except`: a location of its own that shares the outer content handlers.
    fn inner(&mut self, id: BlockId, level: Level, outer: &mut Hooks) -> Result<LocId> {
        let loc = self.location(id, level)?;
        if let Some(l) = self.locations.get_mut(loc as usize) {
            let own = &mut l.hooks.offered;
            for (m, content) in &outer.offered {
                if !own.iter().any(|(n, _)| n == m) {
                    own.push((*m, content.clone()));
                }
            }
            if l.hooks.content.is_none() {
                l.hooks.content = match level {
                    // where it has no handler of its own, each module in turn may take that of the outer block over
                    Level::LimitExcept => outer.offered.iter().map(|(_, c)| c).find(
                        |c| matches!(c, Content::Upstream(p) if p.protocol.in_limit_except()),
                    ),
                    _ => outer.content.as_ref(),
                }
                .cloned();
            }
        }
        Ok(loc)
    }

    /// Makes the `if` blocks of a block and tells their numbers to the module that opened them.
    fn ifs(&mut self, id: BlockId, this: LocId) -> Result<()> {
        let blocks: Vec<BlockId> = self
            .b
            .children_of(id)
            .iter()
            .copied()
            .filter(|c| matches!(self.b.kind_of(*c), BlockKind::If))
            .collect();
        for block in blocks {
            // those of a server have no settings of their own
            let Some(cell) = self.b.shared::<IfBlocks>().0.get(&block).cloned() else {
                continue;
            };
            let mut hooks = match self.locations.get(this as usize) {
                Some(l) => l.hooks.clone(),
                None => continue,
            };
            let loc = self.inner(block, Level::If, &mut hooks)?;
            if let Some(l) = self
                .locations
                .get(this as usize)
                .map(|l| (l.name.clone(), l.regex, l.exact, l.named, l.auto_redirect))
                && let Some(inner) = self.locations.get_mut(loc as usize)
            {
                (
                    inner.name,
                    inner.regex,
                    inner.exact,
                    inner.named,
                    inner.auto_redirect,
                ) = l;
            }
            let _ = cell.set(loc);
        }
        Ok(())
    }

    fn tree(
        &mut self,
        outer: BlockId,
        kind: Option<&BlockKind>,
    ) -> Result<(LocationTree, ByName<LocId>)> {
        let list: Vec<BlockId> = self
            .b
            .children_of(outer)
            .iter()
            .copied()
            .filter(|id| matches!(self.b.kind_of(*id), BlockKind::Location(_)))
            .collect();
        let mut names: ByName<(Option<LocId>, Option<LocId>)> = HashMap::new();
        let mut patterns = Vec::new();
        let mut named = HashMap::new();
        for id in list {
            let name = self.b.kind_of(id).clone();
            let loc = self.location(id, Level::Location)?;
            match name {
                // nginx makes no tree of these: only patterns are looked for inside of a pattern
                BlockKind::Location(LocationName::Exact(_) | LocationName::Prefix(..))
                    if matches!(kind, Some(BlockKind::Location(LocationName::Pattern(_)))) => {}
                BlockKind::Location(LocationName::Exact(n)) => {
                    names.entry(n).or_default().0 = Some(loc)
                }
                BlockKind::Location(LocationName::Prefix(n, _)) => {
                    names.entry(n).or_default().1 = Some(loc)
                }
                BlockKind::Location(LocationName::Pattern(p)) => patterns.push((p, loc)),
                BlockKind::Location(LocationName::Named(n)) => {
                    named.entry(n).or_insert(loc);
                }
                _ => {}
            }
        }
        let mut prefixes: Vec<Prefix> = names
            .into_iter()
            .map(|(name, (exact, inclusive))| Prefix {
                name,
                exact,
                inclusive,
                parent: None,
            })
            .collect();
        prefixes.sort_by(|a, b| a.name.cmp(&b.name));
        // a stack of the names that are prefixes of the present one
        let mut stack: Vec<usize> = Vec::new();
        for i in 0..prefixes.len() {
            while let Some(&top) = stack.last() {
                if prefixes[i].name.starts_with(&prefixes[top].name) {
                    break;
                }
                stack.pop();
            }
            prefixes[i].parent = stack.last().map(|t| *t as u32);
            stack.push(i);
        }
        Ok((
            LocationTree {
                prefixes: prefixes.into(),
                patterns: PatternList::new(patterns),
            },
            named,
        ))
    }

    fn core(&mut self, id: BlockId) -> Result<Arc<CoreConf>> {
        let w = self.b.effective::<HttpCore>(id);
        let key = Arc::as_ptr(&w) as usize;
        if let Some(c) = self.cores.get(&key) {
            return Ok(c.clone());
        }
        let conf = Arc::new(self.core_conf(&w)?);
        self.cores.insert(key, conf.clone());
        Ok(conf)
    }

    fn core_conf(&mut self, w: &HttpDirectives) -> Result<CoreConf> {
        let resolver = match &w.resolver {
            Some(conf) => {
                let mut conf = conf.clone();
                conf.timeout =
                    std::time::Duration::from_millis(w.resolver_timeout.unwrap_or(30_000));
                let made = self
                    .resolvers
                    .iter()
                    .find(|(c, _)| *c == conf)
                    .map(|(_, r)| r.clone());
                Some(match made {
                    Some(r) => r,
                    None => {
                        let r = crate::dns::Resolver::new(conf.clone());
                        let r = Arc::new(r.map_err(|e| crate::config::Diag::plain(e.to_string()))?);
                        self.resolvers.push((conf, r.clone()));
                        r
                    }
                })
            }
            None => None,
        };
        let default_root = || Root {
            path: Template::literal(self.b.prefixed("html").to_string_lossy().as_bytes()),
            alias: false,
            replaces: 0,
        };
        let temp = || {
            Arc::new(TempPath {
                path: self.b.prefixed("client_body_temp"),
                levels: Vec::new(),
            })
        };
        let (keepalive_timeout, keepalive_header) = w.keepalive_timeout.unwrap_or((75_000, 0));
        Ok(CoreConf {
            root: w.root.clone().unwrap_or_else(default_root),
            error_pages: w.error_pages.clone().unwrap_or_default().into(),
            recursive_error_pages: w.recursive_error_pages.unwrap_or(false),
            types: w.types.clone().unwrap_or_else(default_types),
            default_type: w
                .default_type
                .clone()
                .unwrap_or_else(|| (*b"text/plain").into()),
            error_log: self.logs.of(w)?,
            log_not_found: w.log_not_found.unwrap_or(true),
            log_subrequest: w.log_subrequest.unwrap_or(false),
            post_action: w.post_action.clone().filter(|a| !a.is_empty()),
            subrequest_output_buffer_size: w.subrequest_output_buffer_size.unwrap_or(4096),
            client_max_body_size: w.client_max_body_size.unwrap_or(1 << 20),
            client_body_buffer_size: w.client_body_buffer_size.unwrap_or(16 * 1024) as usize,
            client_body_timeout: w.client_body_timeout.unwrap_or(60_000),
            client_body_in_file_only: w.client_body_in_file_only.unwrap_or_default(),
            client_body_in_single_buffer: w.client_body_in_single_buffer.unwrap_or(false),
            client_body_temp_path: w.client_body_temp_path.clone().unwrap_or_else(temp),
            send_timeout: w.send_timeout.unwrap_or(60_000),
            keepalive_timeout,
            keepalive_min_timeout: w.keepalive_min_timeout.unwrap_or(0),
            keepalive_header,
            keepalive_requests: w.keepalive_requests.unwrap_or(1000),
            keepalive_time: w.keepalive_time.unwrap_or(3_600_000),
            keepalive_disable: w.keepalive_disable.unwrap_or((true, false)),
            lingering_close: w.lingering_close.unwrap_or_default(),
            lingering_time: w.lingering_time.unwrap_or(30_000),
            lingering_timeout: w.lingering_timeout.unwrap_or(5_000),
            reset_timedout_connection: w.reset_timedout_connection.unwrap_or(false),
            tcp_nodelay: w.tcp_nodelay.unwrap_or(true),
            server_tokens: w.server_tokens.unwrap_or_default(),
            absolute_redirect: w.absolute_redirect.unwrap_or(true),
            server_name_in_redirect: w.server_name_in_redirect.unwrap_or(false),
            port_in_redirect: w.port_in_redirect.unwrap_or(true),
            msie_padding: w.msie_padding.unwrap_or(true),
            msie_refresh: w.msie_refresh.unwrap_or(false),
            chunked_transfer_encoding: w.chunked_transfer_encoding.unwrap_or(true),
            etag: w.etag.unwrap_or(true),
            if_modified_since: w.if_modified_since.unwrap_or_default(),
            max_ranges: w.max_ranges.unwrap_or(None),
            satisfy: w.satisfy.unwrap_or_default(),
            internal: w.internal,
            limit_rate: w.limit_rate.clone(),
            limit_rate_after: w.limit_rate_after.clone(),
            resolver,
            disable_symlinks: w.disable_symlinks.clone().unwrap_or((0, None)),
            open_file_cache: w.open_file_cache.clone().flatten().map(|cache| FileRules {
                cache,
                valid: w.open_file_cache_valid.unwrap_or(60),
                min_uses: w.open_file_cache_min_uses.unwrap_or(1),
                errors: w.open_file_cache_errors.unwrap_or(false),
            }),
            early_hints: w.early_hints.as_deref().map(Arc::from),
            strict_responses: w.response_parsing.unwrap_or(false),
            auth_delay: w.auth_delay.unwrap_or(0),
            gzip: w.gzip.rules(),
            uninitialized_variable_warn: w.uninitialized_variable_warn.unwrap_or(true),
        })
    }
}

fn default_types() -> Arc<Types> {
    let list: [(&[u8], &[u8]); 3] = [
        (b"html", b"text/html"),
        (b"gif", b"image/gif"),
        (b"jpg", b"image/jpeg"),
    ];
    Arc::new(
        list.into_iter()
            .map(|(e, t)| (e.into(), t.into()))
            .collect(),
    )
}
