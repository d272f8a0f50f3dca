//! `server` of an `upstream {}`.

use super::implied::addresses;
use super::{UpstreamDirectives, resolve, unresolved};
use crate::config::addr::{Address, parse_server};
use crate::config::value::{parse_number, parse_time_ms, parse_time_sec};
use crate::contract::*;
use crate::upstream::{PeerAddr, ServerSpec};
use std::sync::Arc;

/// `server`.
pub(super) fn server(c: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.state.is_some() {
        return Err(s.error("\"server\" is incompatible with \"state\""));
    }
    read(c, s, b)
}

/// Reads one server, from the configuration or from a `state` file.
pub(super) fn read(c: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
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
            Some(("slow_start", v)) => {
                allows(s, b, i, |limits| limits.slow_start)?;
                spec.slow_start = parse_time_ms(v.as_bytes()).ok_or_else(invalid)?;
            }
            Some(("route", v)) => spec.route = Some(route(s, v)?),
            None if word == "backup" => {
                allows(s, b, i, |limits| limits.backup)?;
                spec.backup = true;
            }
            // nginx keeps one state: what is written last holds
            None if word == "down" => (spec.down, spec.drain) = (true, false),
            None if word == "resolve" => names.resolve = true,
            None if word == "drain" => (spec.down, spec.drain) = (false, true),
            _ => return Err(invalid()),
        }
    }
    let error = |e: &dyn std::fmt::Display| s.error(format!("{e} in upstream \"{}\"", spec.server));
    let address = parse_server(s.arg(0), 80).map_err(|e| error(&e))?;
    spec.resolve = names.name(s, &address)?;
    spec.addrs = match address {
        _ if spec.resolve.is_some() => Vec::new(),
        Address::Unix(path) => vec![PeerAddr::Unix(path)],
        Address::Inet(a) => match addresses(&a) {
            Ok(addrs) => addrs,
            Err(e) => {
                b.degrade(error(&e))?;
                let name = unresolved::name(&a);
                c.unresolved.push(name.clone());
                spec.resolve = Some(name);
                Vec::new()
            }
        },
    };
    c.servers.push(spec);
    Ok(())
}

/// The longest `route=`: as long as the MD5 sum that takes its place.
const ROUTE: usize = 32;

fn route(s: &Statement, text: &str) -> ConfResult<Arc<str>> {
    match text.len() {
        0 => Err(s.error("route is empty")),
        1..=ROUTE => Ok(text.into()),
        _ => Err(s.error(format!("route is longer than {ROUTE}"))),
    }
}

/// Whether the method of balancing written so far supports parameter `i`.
fn allows(
    s: &Statement,
    b: &mut Build,
    i: usize,
    of: impl Fn(&Unsupported) -> bool,
) -> ConfResult<()> {
    let block = b.block();
    match b.balance_method(block) {
        Some(method) if of(&method.unsupported) => Err(s.error_at(
            i,
            format!(
                "balancing method does not support parameter \"{}\"",
                String::from_utf8_lossy(s.arg(i))
            ),
        )),
        _ => Ok(()),
    }
}
