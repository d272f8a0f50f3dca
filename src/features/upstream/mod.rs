//! `upstream {}`: groups of origins, and the upstreams that `proxy_pass` and its kin imply.

mod implied;
mod limits;
mod methods;
mod resolve;
mod server;
mod sticky;
mod unresolved;

pub use implied::{group_for, groups};

use crate::config::value::parse_size;
use crate::contract::once;
use crate::contract::*;
use crate::features::zones::{self, ZoneRef};
use crate::upstream::budget::{BudgetConf, RetryBudget};
use crate::upstream::outlier::{Detector, OutlierConf};
use crate::upstream::queue::Queue;
use crate::upstream::round_robin::RoundRobin;
use crate::upstream::{Balance, Clock, Extras, Group, KeepaliveConf, ResolveName, ServerSpec};
use implied::{Defined, Table, may_not_have_port, schedule};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `upstream` and what stands in it.
pub struct HttpUpstream;

/// What the directives of one `upstream {}` wrote.
#[derive(Default, Clone)]
pub struct UpstreamDirectives {
    servers: Vec<ServerSpec>,
    /// Names among them that do not resolve (`start_degraded`).
    unresolved: Vec<ResolveName>,
    sticky: Option<sticky::Sticky>,
    queue: Option<(u32, u64)>,
    outlier: Option<Option<OutlierConf>>,
    budget: Option<Option<BudgetConf>>,
    keepalive: Option<(u32, bool)>,
    keepalive_requests: Option<u64>,
    keepalive_time: Option<u64>,
    keepalive_timeout: Option<u64>,
    zone: Option<Arc<str>>,
    resolver: resolve::Own,
    state: Option<PathBuf>,
}

impl Conf for UpstreamDirectives {
    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for HttpUpstream {
    const NAME: &'static str = "http_upstream";
    type Conf = UpstreamDirectives;
    const DIRECTIVES: &'static [Directive<UpstreamDirectives>] = &[
        Directive::new(
            "upstream",
            Place::HTTP,
            Args::Block(1, 1),
            "`upstream name { … }` A group of servers for `proxy_pass` and its kin.",
            upstream,
        ),
        Directive::new(
            "server",
            Place::UPSTREAM,
            Args::AtLeast(1),
            "`server address [weight=number] [max_conns=number] [max_fails=number] [fail_timeout=time] [slow_start=time] [route=string] [backup] [down] [drain] [resolve] [service=name];` A server of the group; the addresses of a name with `resolve`, or the SRV records of its service, are followed as they change. Defaults: weight=1, max_conns=0 (no limit), max_fails=1, fail_timeout=10s.",
            server::server,
        ),
        Directive::new(
            "zone",
            Place::UPSTREAM,
            Args::Between(1, 2),
            "`zone name [size];` Lets the servers change while they are in use (`resolve`, `api`); all threads share the state of a group in any case.",
            zone,
        ),
        Directive::new(
            "keepalive",
            Place::UPSTREAM,
            Args::Between(1, 2),
            "`keepalive connections [local];` Idle connections kept by each thread; `local` keeps them for the location that opened them. Default: 32 local.",
            limits::keepalive,
        ),
        Directive::new(
            "keepalive_requests",
            Place::UPSTREAM,
            Args::Exactly(1),
            "`keepalive_requests number;` Requests after which a connection is closed. Default: 1000.",
            |c, s, _| once(&mut c.keepalive_requests, s, s.number(0)?),
        ),
        Directive::new(
            "keepalive_time",
            Place::UPSTREAM,
            Args::Exactly(1),
            "`keepalive_time time;` Age at which a connection is closed after a request. Default: 1h.",
            |c, s, _| once(&mut c.keepalive_time, s, s.msec(0)?),
        ),
        Directive::new(
            "keepalive_timeout",
            Place::UPSTREAM,
            Args::Exactly(1),
            "`keepalive_timeout time;` How long a connection may be idle. Default: 60s.",
            |c, s, _| once(&mut c.keepalive_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "resolver",
            Place::UPSTREAM,
            Args::AtLeast(1),
            "`resolver address … [valid=time] [ipv4=on|off] [ipv6=on|off];` Name servers for servers with `resolve`. Default: those of `http`.",
            |c, s, _| {
                let conf = crate::engine::core::http::resolver(s)?;
                once(&mut c.resolver.conf, s, conf)
            },
        ),
        Directive::new(
            "resolver_timeout",
            Place::UPSTREAM,
            Args::Exactly(1),
            "`resolver_timeout time;` Default: 30s.",
            |c, s, _| once(&mut c.resolver.timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "least_conn",
            Place::UPSTREAM,
            Args::None,
            "`least_conn;` The server with the fewest requests under way for its weight; round robin among equals.",
            methods::least_conn,
        ),
        Directive::new(
            "least_time",
            Place::UPSTREAM,
            Args::Between(1, 2),
            "`least_time header|last_byte [inflight];` The server that is expected to be done first, by its mean time up to the head or to the end of the response and its requests under way; `inflight` counts how long those have waited too.",
            methods::least_time,
        ),
        Directive::new(
            "ip_hash",
            Place::UPSTREAM,
            Args::None,
            "`ip_hash;` Clients of one network (the first three bytes of an IPv4 address, a whole IPv6 address) keep their server.",
            methods::ip_hash,
        ),
        Directive::new(
            "hash",
            Place::UPSTREAM,
            Args::Between(1, 2),
            "`hash key [consistent];` Equal keys go to the same server, with nginx's distribution; with `consistent` (ketama) few keys move when servers come or go.",
            methods::hash,
        ),
        Directive::new(
            "random",
            Place::UPSTREAM,
            Args::Between(0, 2),
            "`random [two [least_conn|least_time=header|least_time=last_byte]];` A server drawn by weight, or the better of two. Default for two: least_conn.",
            methods::random,
        ),
        Directive::own(
            "ewma",
            Place::UPSTREAM,
            Args::None,
            "`ewma;` The better of two servers drawn by weight, by a moving average of response times that follows a rise at once (peak EWMA) and the requests under way.",
            methods::ewma,
        ),
        Directive::new(
            "sticky",
            Place::UPSTREAM,
            Args::AtLeast(2),
            "`sticky cookie name [expires=time|max] [domain=domain] [httponly] [secure] [samesite=strict|lax|none|$variable] [path=path];`, `sticky route $variable …;`, `sticky learn create=$variable … lookup=$variable … zone=name:size [timeout=time] [header];` Requests of a session go to one server, as long as it can serve. Default for timeout: 10m.",
            sticky::sticky,
        ),
        Directive::new(
            "queue",
            Place::UPSTREAM,
            Args::Between(1, 2),
            "`queue number [timeout=time];` So many requests wait where no server can take them at once; the others, and those that wait longer, are answered 502. Default for timeout: 60s.",
            limits::queue,
        ),
        Directive::own(
            "outlier_detection",
            Place::UPSTREAM,
            Args::AtLeast(1),
            "`outlier_detection on|off|[consecutive_errors=number] [error_rate=percent%] [latency=factor] [min_requests=number] [interval=time] [ejection_time=time] [max_ejection_time=time] [max_ejected=percent%];` Servers that fail (5xx included), or answer more slowly than so many times the median of the group, rest; each ejection that follows lasts twice as long. Defaults: off; of its parameters 5, 0 (off), 0 (off), 20, 10s, 30s, 300s, 50%.",
            limits::outlier_detection,
        ),
        Directive::own(
            "retry_budget",
            Place::UPSTREAM,
            Args::Between(1, 2),
            "`retry_budget percent% [min=number];`, `retry_budget off;` Requests are tried at another server only as often as this share of all requests; so many retries a second are free. Defaults: off; min=10.",
            limits::retry_budget,
        ),
        Directive::new(
            "state",
            Place::UPSTREAM,
            Args::Exactly(1),
            "`state file;` Keeps the servers in a file, which the runtime API changes, instead of `server` directives; requires `zone`.",
            resolve::state,
        ),
        Directive::new(
            "ntlm",
            Place::UPSTREAM,
            Args::None,
            "`ntlm;` Not supported yet.",
            unsupported,
        ),
    ];

    fn configured(b: &mut Build) -> ConfResult<()> {
        schedule(b);
        Ok(())
    }

    fn attach(_conf: &Arc<UpstreamDirectives>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

fn upstream(_c: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
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
    if written.state.is_some() && written.zone.is_none() {
        return Err(s.error(format!(
            "\"state\" requires \"zone\" in upstream \"{name}\""
        )));
    }
    if written.servers.is_empty() && written.state.is_none() {
        // nginx finds it at the closing brace
        let mut end = s.clone();
        end.line = s.block.as_ref().map_or(s.line, |block| block.end_line);
        return Err(end.error("no servers are inside upstream"));
    }
    let keepalive = written.keepalive_conf();
    let extras = written.extras();
    let (balance, key): (Arc<dyn Balance>, _) = match b.balance_method(id) {
        Some(method) => (method.balance.clone(), method.key.clone()),
        None => (Arc::new(RoundRobin), None),
    };
    let selector = written.selector(key);
    let registry = crate::upstream::PeerStateStore::global();
    let names = written.servers.iter().any(|server| {
        let name = server.resolve.as_ref();
        name.is_some_and(|n| !written.unresolved.contains(n))
    });
    let make = if written.state.is_some() {
        Group::empty
    } else if written.zone.is_some() {
        Group::changeable
    } else if names {
        return Err(s.error(format!(
            "resolving names at run time requires upstream \"{name}\" in {} to be in shared memory",
            s.place()
        ))
        .unplaced());
    } else if !written.unresolved.is_empty() {
        Group::changeable
    } else {
        Group::new
    };
    let made = make(
        &name,
        written.servers,
        balance,
        keepalive,
        registry,
        Clock::system(),
    );
    let made = Arc::new(made.map_err(|e| s.error(e.to_string()))?.with(extras));
    if let (Some(live), Some(zone)) = (made.live(), &written.zone) {
        live.set_zone(zone);
        if let Some(file) = written.state {
            live.keep_in(file);
        }
    }
    if written.zone.is_some() && (names || written.unresolved.is_empty()) {
        resolve::keep_resolved(b, s, written.resolver, made.clone());
    }
    for name in written.unresolved {
        unresolved::ask_later(b, made.clone(), name);
    }
    let _ = group.set(Arc::new(Upstream {
        group: made,
        selector,
    }));
    Ok(())
}

impl UpstreamDirectives {
    fn selector(&self, key: Option<BalanceKey>) -> Option<Arc<dyn PeerSelector>> {
        let sticky = self.sticky.clone();
        if key.is_none() && sticky.is_none() {
            return None;
        }
        Some(Arc::new(sticky::RequestSelector { key, sticky }))
    }

    fn extras(&self) -> Extras {
        let queue = |(size, ms): (u32, u64)| Queue::new(size, Duration::from_millis(ms));
        Extras {
            queue: self.queue.map(queue),
            outlier: self.outlier.clone().flatten().map(Detector::new),
            budget: self.budget.flatten().map(RetryBudget::new),
        }
    }

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

fn unsupported(_c: &mut UpstreamDirectives, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    Err(s.error(format!(
        "the \"{}\" directive is not supported yet",
        s.name()
    )))
}

/// The zone of an `upstream`; it has a name to be unique, its memory is not used.
struct UpstreamZone;

fn zone(c: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let name = s.str(0)?;
    if name.is_empty() {
        return Err(s.error_at(0, "invalid zone name \"\""));
    }
    let zone: ZoneRef<UpstreamZone> = if s.len() > 1 {
        let Some(size) = parse_size(s.arg(1)) else {
            let text = String::from_utf8_lossy(s.arg(1));
            return Err(s.error_at(1, format!("invalid zone size \"{text}\"")));
        };
        if size < 8 * 4096 {
            return Err(s.error_at(1, format!("zone \"{name}\" is too small")));
        }
        let zone = zones::declare(b, s, "upstream", name, size)?;
        let _ = zone.set(Arc::new(UpstreamZone));
        zone
    } else {
        zones::reference(b, s, "upstream", name)?
    };
    drop(zone);
    c.zone = Some(name.into());
    Ok(())
}
