//! `explain_allow`: a response header that tells how the request was served.

use crate::config::Result;
use crate::config::addr::{Cidr, parse_cidr};
use crate::contract::*;
use crate::engine::{decisions, selection};
use std::net::IpAddr;
use std::sync::Arc;

/// Couloir's own: requests that explain themselves.
pub struct Explain;

/// Who may ask.
#[derive(Clone, Default)]
pub struct ExplainConf {
    allow: Option<Vec<Who>>,
}

#[derive(Clone, Copy)]
enum Who {
    All,
    Unix,
    Net(Cidr),
}

impl Conf for ExplainConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; allow);
    }
}

impl Module for Explain {
    const NAME: &'static str = "http_explain";
    type Conf = ExplainConf;
    const DIRECTIVES: &'static [Directive<ExplainConf>] = &[Directive::own(
        "explain_allow",
        Place::HTTP.or(Place::SERVER),
        Args::AtLeast(1),
        "`explain_allow address|network|unix:|all …;` Responses to these clients have a header Couloir-Explain, which says which server and location were chosen and why, and what each step decided. It tells much of the configuration: name only clients that may know it. Default: nobody.",
        |c, s, _| {
            let list = c.allow.get_or_insert_default();
            for i in 0..s.len() {
                list.push(match s.arg(i) {
                    b"all" => Who::All,
                    b"unix:" => Who::Unix,
                    text => match parse_cidr(text) {
                        Some((cidr, _)) => Who::Net(cidr),
                        None => return Err(s.invalid_parameter(i)),
                    },
                });
            }
            Ok(())
        },
    )];

    fn attach(conf: &Arc<ExplainConf>, on: &mut Hooks) -> Result<()> {
        let Some(list) = &conf.allow else {
            return Ok(());
        };
        if on.level() == Level::Server {
            on.on(Phase::ServerRewrite, Begin(list.clone().into()));
        } else {
            on.response(Tell);
        }
        Ok(())
    }
}

/// Begins to keep what the request goes through.
struct Begin(Box<[Who]>);

impl Begin {
    fn allows(&self, ip: Option<IpAddr>) -> bool {
        let ip = match ip {
            Some(IpAddr::V6(v6)) => Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)),
            ip => ip,
        };
        self.0.iter().any(|who| match (who, &ip) {
            (Who::All, _) => true,
            (Who::Unix, ip) => ip.is_none(),
            (Who::Net(net), Some(ip)) => net.contains(ip),
            (Who::Net(_), None) => false,
        })
    }
}

impl Handler for Begin {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if r.trace.is_none() && self.allows(r.remote.ip()) {
            let trace = Arc::new(Trace::live());
            let site = r.site.clone();
            let at = r.conn().listener.load(std::sync::atomic::Ordering::Relaxed);
            if let Some(listener) = site.listeners.get(at) {
                trace.add(selection::server(listener, r));
            }
            r.trace = Some(trace);
        }
        Next::Continue
    }
}

/// Puts it into the response.
struct Tell;

/// Longest value of the header, bytes: clients and proxies refuse large heads.
const LONGEST: usize = 4000;

impl HeadFilter for Tell {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let trace = r
            .trace
            .clone()
            .filter(|t| !t.is_explain_only() && !r.subrequest)?;
        let mut value: Vec<u8> = Vec::new();
        for step in trace.steps() {
            let place = step.at.map(|at| format!(" [{at}]")).unwrap_or_default();
            let text = format!("{} {}{place}; ", step.kind, step.text);
            // what came from the client must not end the line
            value.extend(text.bytes().map(|c| match c {
                b' '..=b'~' => c,
                _ => b'?',
            }));
        }
        value.extend_from_slice(
            format!("in force: location {}", decisions::location_name(r)).as_bytes(),
        );
        value.truncate(LONGEST);
        r.out.headers.set(b"Couloir-Explain", &value);
        None
    }
}
