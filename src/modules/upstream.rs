//! `upstream {}`: groups of origins, and the upstreams that `proxy_pass` and its kin imply.

mod resolve;

use crate::config::addr::{Address, parse_server};
use crate::config::value::{parse_number, parse_size, parse_time_sec};
use crate::module::once;
use crate::module::*;
use crate::upstream::round_robin::RoundRobin;
use crate::upstream::{Clock, Group, KeepaliveConf, PeerAddr, ServerSpec, resolve_at_load};
use std::sync::Arc;
use std::time::Duration;

/// `upstream` and what stands in it.
pub struct HttpUpstream;

/// What the directives of one `upstream {}` wrote.
#[derive(Default, Clone)]
pub struct UpstreamWritten {
    servers: Vec<ServerSpec>,
    keepalive: Option<(u32, bool)>,
    keepalive_requests: Option<u64>,
    keepalive_time: Option<u64>,
    keepalive_timeout: Option<u64>,
    zone: Option<()>,
    resolver: resolve::Own,
}

impl Conf for UpstreamWritten {
    fn inherit(&mut self, _outer: &Self) {}
}

const U: Place = Place::UPSTREAM;

impl Module for HttpUpstream {
    const NAME: &'static str = "http_upstream";
    type Conf = UpstreamWritten;
    const DIRECTIVES: &'static [Directive<UpstreamWritten>] = &[
        Directive::new(
            "upstream",
            Place::HTTP,
            Args::Block(1, 1),
            "`upstream name { … }` A group of servers for `proxy_pass` and its kin.",
            upstream,
        ),
        Directive::new(
            "server",
            U,
            Args::AtLeast(1),
            "`server address [weight=number] [max_conns=number] [max_fails=number] [fail_timeout=time] [backup] [down] [resolve] [service=name];` A server of the group; the addresses of a name with `resolve`, or the SRV records of its service, are followed as they change. Defaults: weight=1, max_conns=0 (no limit), max_fails=1, fail_timeout=10s.",
            server,
        ),
        Directive::new(
            "zone",
            U,
            Args::Between(1, 2),
            "`zone name [size];` Accepted: all threads share the state of a group in any case.",
            zone,
        ),
        Directive::new(
            "keepalive",
            U,
            Args::Between(1, 2),
            "`keepalive connections [local];` Idle connections kept by each thread; `local` keeps them for the location that opened them. Default: 32 local.",
            keepalive,
        ),
        Directive::new(
            "keepalive_requests",
            U,
            Args::Exactly(1),
            "`keepalive_requests number;` Requests after which a connection is closed. Default: 1000.",
            |c, s, _| once(&mut c.keepalive_requests, s, s.number(0)?),
        ),
        Directive::new(
            "keepalive_time",
            U,
            Args::Exactly(1),
            "`keepalive_time time;` Age at which a connection is closed after a request. Default: 1h.",
            |c, s, _| once(&mut c.keepalive_time, s, s.msec(0)?),
        ),
        Directive::new(
            "keepalive_timeout",
            U,
            Args::Exactly(1),
            "`keepalive_timeout time;` How long a connection may be idle. Default: 60s.",
            |c, s, _| once(&mut c.keepalive_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "resolver",
            U,
            Args::AtLeast(1),
            "`resolver address … [valid=time] [ipv4=on|off] [ipv6=on|off];` Name servers for servers with `resolve`. Default: those of `http`.",
            |c, s, _| {
                let conf = crate::engine::core::http::resolver(s)?;
                once(&mut c.resolver.conf, s, conf)
            },
        ),
        Directive::new(
            "resolver_timeout",
            U,
            Args::Exactly(1),
            "`resolver_timeout time;` Default: 30s.",
            |c, s, _| once(&mut c.resolver.timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "ip_hash",
            U,
            Args::None,
            "`ip_hash;` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "least_conn",
            U,
            Args::None,
            "`least_conn;` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "hash",
            U,
            Args::Between(1, 2),
            "`hash key [consistent];` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "random",
            U,
            Args::Between(0, 2),
            "`random [two [method]];` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "least_time",
            U,
            Args::Between(1, 2),
            "`least_time header|last_byte [inflight];` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "sticky",
            U,
            Args::AtLeast(1),
            "`sticky cookie|route|learn …;` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "queue",
            U,
            Args::Between(1, 2),
            "`queue number [timeout=time];` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "state",
            U,
            Args::Exactly(1),
            "`state file;` Not supported yet.",
            unsupported,
        ),
        Directive::new(
            "ntlm",
            U,
            Args::None,
            "`ntlm;` Not supported yet.",
            unsupported,
        ),
    ];

    fn attach(_conf: &Arc<UpstreamWritten>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

/// The group that a target without variables stands for: the `upstream {}` of that name wherever it is written, else
/// an upstream implied by the address.
///
/// # Errors
/// nginx's `upstream "x" may not have port 80`.
pub fn group_for(b: &mut Build, s: &Statement, address: &Address) -> ConfResult<GroupRef> {
    let (name, port, port_given) = match address {
        Address::Unix(path) => (path.to_string_lossy().into_owned(), 0, true),
        Address::Inet(a) => (a.host.to_string(), a.port, a.port_given),
    };
    schedule(b);
    let table = b.shared::<Table>();
    if let Some(block) = table
        .blocks
        .iter()
        .find(|u| u.name.eq_ignore_ascii_case(&name))
    {
        if port_given && port != 0 {
            return Err(may_not_have_port(s, &name, port));
        }
        return Ok(block.group.clone());
    }
    let same = |i: &&Implied| i.port == port && i.name.eq_ignore_ascii_case(&name);
    if let Some(i) = table.implied.iter().find(same) {
        return Ok(i.group.clone());
    }
    let group = GroupRef::default();
    table.implied.push(Implied {
        name,
        port,
        port_given,
        address: address.clone(),
        at: s.clone(),
        group: group.clone(),
    });
    Ok(group)
}

/// The groups of the site, for targets with variables.
pub fn groups(b: &mut Build) -> GroupsRef {
    schedule(b);
    b.shared::<Table>().groups.clone()
}

/// Every group that the configuration names.
#[derive(Default)]
struct Table {
    blocks: Vec<Defined>,
    implied: Vec<Implied>,
    groups: GroupsRef,
    scheduled: bool,
}

/// An `upstream {}`.
struct Defined {
    name: String,
    group: GroupRef,
}

/// An upstream that an address implies.
struct Implied {
    name: String,
    port: u16,
    port_given: bool,
    address: Address,
    at: Statement,
    group: GroupRef,
}

fn schedule(b: &mut Build) {
    let table = b.shared::<Table>();
    if !std::mem::replace(&mut table.scheduled, true) {
        b.at_end(resolve);
    }
}

/// Resolves the implied upstreams once every `upstream {}` is known.
fn resolve(b: &mut Build) -> ConfResult<()> {
    let table = b.shared::<Table>();
    let mut all = Groups::default();
    for block in &table.blocks {
        if let Some(g) = block.group.get() {
            all.list.push((block.name.as_str().into(), 0, g.clone()));
        }
    }
    for i in &table.implied {
        let block = table
            .blocks
            .iter()
            .find(|u| u.name.eq_ignore_ascii_case(&i.name));
        let group = match block.and_then(|u| u.group.get()) {
            Some(g) => g.clone(),
            None => {
                let g = Arc::new(implied(i)?);
                all.list.push((i.name.as_str().into(), i.port, g.clone()));
                g
            }
        };
        let _ = i.group.set(group);
    }
    let _ = table.groups.set(all);
    Ok(())
}

fn implied(i: &Implied) -> ConfResult<Group> {
    let error = |e: &dyn std::fmt::Display| i.at.error(format!("{e} in upstream \"{}\"", i.name));
    let addrs = match &i.address {
        Address::Unix(path) => vec![PeerAddr::Unix(path.clone())],
        Address::Inet(_) if i.port == 0 => return Err(error(&"no port")),
        Address::Inet(a) => addresses(a).map_err(|e| error(&e))?,
    };
    Group::single(&i.name, addrs).map_err(|e| i.at.error(e.to_string()))
}

fn addresses(a: &crate::config::addr::Inet) -> std::io::Result<Vec<PeerAddr>> {
    match a.ip {
        Some(ip) => Ok(vec![std::net::SocketAddr::new(ip, a.port).into()]),
        None => Ok(resolve_at_load(&a.host, a.port)?
            .into_iter()
            .map(PeerAddr::from)
            .collect()),
    }
}

fn may_not_have_port(s: &Statement, name: &str, port: u16) -> Box<Diag> {
    s.error(format!("upstream \"{name}\" may not have port {port}"))
}

fn upstream(_c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let name = s.str(0)?.to_owned();
    schedule(b);
    let table = b.shared::<Table>();
    if table
        .blocks
        .iter()
        .any(|u| u.name.eq_ignore_ascii_case(&name))
    {
        return Err(s.error(format!("duplicate upstream \"{name}\"")));
    }
    let earlier = table
        .implied
        .iter()
        .find(|i| i.port != 0 && i.port_given && i.name.eq_ignore_ascii_case(&name));
    if let Some(i) = earlier {
        return Err(may_not_have_port(&i.at, &name, i.port));
    }
    let group = GroupRef::default();
    table.blocks.push(Defined {
        name: name.clone(),
        group: group.clone(),
    });

    let id = b.enter(s, Place::UPSTREAM, BlockKind::Upstream(name.clone()))?;
    if let Some(e) = s.syntax_error() {
        return Err(e);
    }
    let written = b.conf_of::<HttpUpstream>(id).cloned().unwrap_or_default();
    if written.servers.is_empty() {
        // nginx finds it at the closing brace
        let mut end = s.clone();
        end.line = s.block.as_ref().map_or(s.line, |block| block.end_line);
        return Err(end.error("no servers are inside upstream"));
    }
    let keepalive = written.keepalive_conf();
    let registry = crate::upstream::Registry::global();
    let make = if written.zone.is_some() {
        Group::changeable
    } else if written
        .servers
        .iter()
        .any(|server| server.resolve.is_some())
    {
        return Err(s.error(format!(
            "resolving names at run time requires upstream \"{name}\" in {} to be in shared memory",
            s.place()
        )));
    } else {
        Group::new
    };
    let made = make(
        &name,
        written.servers,
        RoundRobin,
        keepalive,
        registry,
        Clock::system(),
    );
    let made = Arc::new(made.map_err(|e| s.error(e.to_string()))?);
    if made.live().is_some() {
        resolve::keep_resolved(b, s, written.resolver, made.clone());
    }
    let _ = group.set(made);
    Ok(())
}

impl UpstreamWritten {
    fn keepalive_conf(&self) -> KeepaliveConf {
        let d = KeepaliveConf::default();
        let (connections, local) = self.keepalive.unwrap_or((d.connections, d.local));
        KeepaliveConf {
            connections,
            local,
            requests: self.keepalive_requests.unwrap_or(d.requests),
            time: self.keepalive_time.map_or(d.time, Duration::from_millis),
            timeout: self
                .keepalive_timeout
                .map_or(d.timeout, Duration::from_millis),
        }
    }
}

fn server(c: &mut UpstreamWritten, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    let mut spec = ServerSpec::new(s.str(0)?, Vec::new());
    let mut names = resolve::Written::default();
    for i in 1..s.len() {
        let word = s.str(i)?;
        let invalid = || s.invalid_parameter(i);
        let number = |text: &str| {
            parse_number(text.as_bytes())
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(invalid)
        };
        match word.split_once('=') {
            Some(("weight", v)) => match number(v)? {
                0 => return Err(invalid()),
                n => spec.weight = n,
            },
            Some(("max_conns", v)) => spec.max_conns = number(v)?,
            Some(("max_fails", v)) => spec.max_fails = number(v)?,
            Some(("fail_timeout", v)) => {
                spec.fail_timeout = parse_time_sec(v.as_bytes()).ok_or_else(invalid)?
            }
            Some(("service", "")) => return Err(s.error("service is empty")),
            Some(("service", v)) => names.service = Some(v),
            Some(("slow_start" | "route", _)) => return Err(not_supported(s, i)),
            None if word == "backup" => spec.backup = true,
            None if word == "down" => spec.down = true,
            None if word == "resolve" => names.resolve = true,
            None if word == "drain" => return Err(not_supported(s, i)),
            _ => return Err(invalid()),
        }
    }
    let error = |e: &dyn std::fmt::Display| s.error(format!("{e} in upstream \"{}\"", spec.server));
    let address = parse_server(s.arg(0), 80).map_err(|e| error(&e))?;
    spec.resolve = names.name(s, &address)?;
    spec.addrs = match address {
        _ if spec.resolve.is_some() => Vec::new(),
        Address::Unix(path) => vec![PeerAddr::Unix(path)],
        Address::Inet(a) => addresses(&a).map_err(|e| error(&e))?,
    };
    c.servers.push(spec);
    Ok(())
}

fn not_supported(s: &Statement, i: usize) -> Box<Diag> {
    s.error_at(
        i,
        format!(
            "the \"{}\" parameter of \"server\" is not supported yet",
            String::from_utf8_lossy(s.arg(i))
        ),
    )
}

fn unsupported(_c: &mut UpstreamWritten, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    Err(s.error(format!(
        "the \"{}\" directive is not supported yet",
        s.name()
    )))
}

fn keepalive(c: &mut UpstreamWritten, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if c.keepalive.is_some() {
        return Err(s.duplicate());
    }
    let n = parse_number(s.arg(0))
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| {
            s.error_at(
                0,
                format!(
                    "invalid value \"{}\" in \"keepalive\" directive",
                    String::from_utf8_lossy(s.arg(0))
                ),
            )
        })?;
    let local = match s.arg(1) {
        b"local" => true,
        _ if s.len() > 1 => return Err(s.invalid_parameter(1)),
        _ => false,
    };
    c.keepalive = Some((n, local));
    Ok(())
}

fn zone(c: &mut UpstreamWritten, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    let name = s.str(0)?;
    if name.is_empty() {
        return Err(s.error_at(0, "invalid zone name \"\""));
    }
    if s.len() > 1 {
        match parse_size(s.arg(1)) {
            None => {
                return Err(s.error_at(
                    1,
                    format!(
                        "invalid zone size \"{}\"",
                        String::from_utf8_lossy(s.arg(1))
                    ),
                ));
            }
            Some(n) if n < 8 * 4096 => {
                return Err(s.error_at(1, format!("zone \"{name}\" is too small")));
            }
            Some(_) => {}
        }
    }
    c.zone = Some(());
    Ok(())
}
