//! Which group a target stands for: an `upstream {}`, or one that an address implies.

use super::unresolved;
use crate::config::addr::Address;
use crate::contract::*;
use crate::dns::resolve_at_load;
use crate::upstream::{Group, PeerAddr, ResolveName};
use std::sync::Arc;

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
    b.groups()
}

/// Every group that the configuration names.
#[derive(Default)]
pub(super) struct Table {
    pub(super) blocks: Vec<Defined>,
    pub(super) implied: Vec<Implied>,
    scheduled: bool,
}

/// An `upstream {}`.
pub(super) struct Defined {
    pub(super) name: String,
    pub(super) group: GroupRef,
}

/// An upstream that an address implies.
pub(super) struct Implied {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) port_given: bool,
    address: Address,
    pub(super) at: Statement,
    group: GroupRef,
}

pub(super) fn schedule(b: &mut Build) {
    let table = b.shared::<Table>();
    if !std::mem::replace(&mut table.scheduled, true) {
        b.at_end(resolve);
    }
}

/// A name that does not resolve, and what there is to say of it.
type Later = (ResolveName, Box<Diag>);

/// Resolves the implied upstreams once every `upstream {}` is known.
fn resolve(b: &mut Build) -> ConfResult<()> {
    let degraded = b.start_degraded;
    let mut later = Vec::new();
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
                let (g, name) = implied(i, degraded)?;
                let g = Arc::new(g);
                later.extend(name.map(|name| (g.clone(), name)));
                let g = Arc::new(Upstream::plain(g));
                all.list.push((i.name.as_str().into(), i.port, g.clone()));
                g
            }
        };
        let _ = i.group.set(group);
    }
    let _ = b.groups().set(all);
    for (group, (name, diag)) in later {
        b.degrade(diag)?;
        unresolved::ask_later(b, group, name);
    }
    Ok(())
}

/// The group of an address; with `start_degraded` a name that does not resolve is left for later.
fn implied(i: &Implied, degraded: bool) -> ConfResult<(Group, Option<Later>)> {
    let error = |e: &dyn std::fmt::Display| i.at.error(format!("{e} in upstream \"{}\"", i.name));
    let addrs = match &i.address {
        Address::Unix(path) => vec![PeerAddr::Unix(path.clone())],
        Address::Inet(_) if i.port == 0 => return Err(error(&"no port")),
        Address::Inet(a) => match addresses(a) {
            Err(e) if degraded => {
                let name = unresolved::name(a);
                let made = unresolved::group(&i.name, &name);
                let made = made.map_err(|e| i.at.error(e.to_string()))?;
                return Ok((made, Some((name, error(&e)))));
            }
            found => found.map_err(|e| error(&e))?,
        },
    };
    let group = Group::single(&i.name, addrs).map_err(|e| i.at.error(e.to_string()))?;
    Ok((group, None))
}

pub(super) fn addresses(a: &crate::config::addr::Inet) -> std::io::Result<Vec<PeerAddr>> {
    match a.ip {
        Some(ip) => Ok(vec![std::net::SocketAddr::new(ip, a.port).into()]),
        None => Ok(resolve_at_load(&a.host, a.port)?
            .into_iter()
            .map(PeerAddr::from)
            .collect()),
    }
}

pub(super) fn may_not_have_port(s: &Statement, name: &str, port: u16) -> Box<Diag> {
    s.error(format!("upstream \"{name}\" may not have port {port}"))
}
