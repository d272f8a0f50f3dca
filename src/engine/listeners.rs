//! Addresses with their servers and names.

use super::core::HttpServer;
use super::core::listen::ListenSpec;
use super::core::server::ServerName;
use crate::config::{Diag, Result};
use crate::contract::{
    BlockId, Build, ListenAddr, ListenOptions, Listener, Names, PatternList, Server,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// One address while it is put together.
struct Address {
    spec: ListenSpec,
    set_by: Option<ListenSpec>,
    default: u32,
    default_given: bool,
    servers: Vec<u32>,
}

/// Makes the listeners of all servers.
pub(super) fn collect(
    b: &mut Build,
    ids: &[BlockId],
    servers: &mut [Server],
) -> Result<Vec<Listener>> {
    b.assembled(ids, servers)?;
    let mut order: Vec<Address> = Vec::new();
    let mut index: HashMap<ListenAddr, usize> = HashMap::new();
    for (n, id) in ids.iter().enumerate() {
        let conf = b.effective::<HttpServer>(*id);
        let mut listens = conf.listens.clone();
        if listens.is_empty() {
            // nginx: *:80 where it may, else *:8000
            let port = if crate::config::load_inputs::is_root() {
                80
            } else {
                8000
            };
            listens.push(ListenSpec {
                addr: ListenAddr::Inet(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
                options: ListenOptions::default(),
                set: false,
                default_server: false,
                ssl: false,
                http2: false,
                proxy_protocol: false,
                at: Diag::plain(""),
            });
        }
        for spec in listens {
            let at = |message: String| Diag {
                message,
                ..(*spec.at).clone()
            };
            let Some(&i) = index.get(&spec.addr) else {
                index.insert(spec.addr.clone(), order.len());
                order.push(Address {
                    set_by: spec.set.then(|| spec.clone()),
                    default: n as u32,
                    default_given: spec.default_server,
                    servers: vec![n as u32],
                    spec,
                });
                continue;
            };
            let Some(a) = order.get_mut(i) else { continue };
            if a.servers.last() == Some(&(n as u32)) {
                return Err(Box::new(at(format!("a duplicate listen {}", spec.addr))));
            }
            a.servers.push(n as u32);
            if spec.set {
                if a.set_by.is_some() {
                    return Err(Box::new(at(format!(
                        "duplicate listen options for {}",
                        spec.addr
                    ))));
                }
                a.spec.options = spec.options.clone();
                a.set_by = Some(spec.clone());
            }
            if spec.default_server {
                if a.default_given {
                    return Err(Box::new(at(format!(
                        "a duplicate default server for {}",
                        spec.addr
                    ))));
                }
                a.default = n as u32;
                a.default_given = true;
            }
            let protocols = (a.spec.ssl, a.spec.http2, a.spec.proxy_protocol);
            a.spec.ssl |= spec.ssl;
            a.spec.http2 |= spec.http2;
            a.spec.proxy_protocol |= spec.proxy_protocol;
            let now = (a.spec.ssl, a.spec.http2, a.spec.proxy_protocol);
            let asked = (spec.ssl, spec.http2, spec.proxy_protocol);
            if protocols != now && (protocols != (false, false, false)) && asked != now {
                b.warnings.push(Box::new(Diag {
                    level: crate::config::Level::Warn,
                    ..at(format!("protocol options redefined for {}", spec.addr))
                }));
            }
        }
    }
    let mut addrs = vec![Vec::new(); servers.len()];
    for a in &order {
        for n in &a.servers {
            if let Some(list) = addrs.get_mut(*n as usize) {
                list.push(a.spec.addr.clone());
            }
        }
    }
    for (server, list) in servers.iter_mut().zip(addrs) {
        server.addrs = list.into();
    }
    // what certificates lack is told before what is wrong with names
    let mut tls = Vec::with_capacity(order.len());
    for a in &mut order {
        // `ssl on`, as in nginx until 1.25
        a.spec.ssl |= is_enabled(servers, a.default);
        tls.push(match a.spec.ssl {
            true => Some(super::tls::listener(&a.servers, a.default, servers)?),
            false => None,
        });
    }
    let mut listeners = Vec::with_capacity(order.len());
    for (a, tls) in order.into_iter().zip(tls) {
        let names = names(b, ids, &a.servers, &a.spec.addr)?;
        let http2 = a.spec.http2;
        listeners.push(Listener {
            addr: a.spec.addr,
            options: a.spec.options,
            default_server: a.default,
            names: Arc::new(names),
            tls,
            proxy_protocol: a.spec.proxy_protocol,
            http2,
        });
    }
    Ok(listeners)
}

/// Whether the server says `ssl on`.
fn is_enabled(servers: &[Server], server: u32) -> bool {
    let tls = servers.get(server as usize).and_then(|s| s.tls.as_ref());
    tls.is_some_and(|tls| tls.enabled)
}

/// Whether the last of a server's patterns has captures.
fn captures(b: &Build, ids: &[BlockId], server: u32) -> bool {
    let conf = ids
        .get(server as usize)
        .map(|id| b.effective::<HttpServer>(*id));
    conf.is_some_and(|conf| {
        let mut patterns = conf.names.iter().rev().filter_map(|n| match n {
            ServerName::Pattern(p) => Some(p),
            _ => None,
        });
        patterns.next().is_some_and(|p| p.groups() > 0)
    })
}

fn names(b: &mut Build, ids: &[BlockId], servers: &[u32], addr: &ListenAddr) -> Result<Names> {
    let mut t = Names::default();
    let mut patterns = Vec::new();
    // nginx looks at the names of an address only if they decide something
    let decides = servers.len() > 1 || servers.first().is_some_and(|n| captures(b, ids, *n));
    for n in servers {
        let Some(id) = ids.get(*n as usize) else {
            continue;
        };
        let conf = b.effective::<HttpServer>(*id);
        let none = [ServerName::Exact(Default::default())];
        let list = if conf.names.is_empty() {
            &none[..]
        } else {
            &conf.names[..]
        };
        for name in list {
            let mut conflict = None;
            let mut put = |map: &mut HashMap<Box<[u8]>, u32, _>, key: &[u8], shown: &[u8]| match map
                .get(key)
            {
                Some(_) => conflict = Some(String::from_utf8_lossy(shown).into_owned()),
                None => {
                    map.insert(key.into(), *n);
                }
            };
            match name {
                ServerName::Exact(x) => put(&mut t.exact, x, x),
                ServerName::Leading(x) => put(&mut t.leading, x, x),
                ServerName::Both(x) => {
                    put(&mut t.exact, x.get(1..).unwrap_or_default(), x);
                    put(&mut t.leading, x, x);
                }
                ServerName::Trailing(x) => put(&mut t.trailing, x, &[x, &b"*"[..]].concat()),
                ServerName::Odd(_, _) if !decides => {}
                ServerName::Odd(x, at) => {
                    let shown = String::from_utf8_lossy(x);
                    let text = format!("invalid server name or wildcard \"{shown}\" on {addr}");
                    return Err(at.error(text).unplaced());
                }
                ServerName::Pattern(p) => patterns.push((p.clone(), *n)),
            }
            if let Some(name) = conflict.filter(|_| decides) {
                let d = Diag::new(
                    crate::config::Level::Warn,
                    format!("conflicting server name \"{name}\" on {addr}, ignored"),
                );
                b.warnings.push(d);
            }
        }
    }
    t.patterns = PatternList::new(patterns);
    Ok(t)
}
