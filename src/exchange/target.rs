//! Which group of peers a request goes to.

use crate::config::addr::Address;
use crate::contract::{Codec, Destination, Pass, PassTarget, Request, Target, Upstream};
use crate::log::Level;
use crate::upstream::{Group, PeerAddr};
use std::net::SocketAddr;
use std::sync::Arc;

/// The group and what the protocol needs to know of the target.
pub(super) struct Found {
    pub group: Arc<Upstream>,
    pub host: Vec<u8>,
    pub port: Vec<u8>,
    pub uri: Option<Vec<u8>>,
    pub tls: bool,
}

impl Found {
    /// As the protocol is told of it.
    pub fn destination(&self) -> Destination<'_> {
        Destination {
            host: &self.host,
            port: &self.port,
            uri: self.uri.as_deref(),
            tls: self.tls,
        }
    }
}

/// The target where it has no variables.
pub(super) fn fixed(pass: &Pass) -> Option<Found> {
    match &pass.target {
        PassTarget::Group(group, tls) => {
            let group = group.get()?.clone();
            Some(Found {
                group,
                host: Vec::new(),
                port: Vec::new(),
                uri: None,
                tls: *tls,
            })
        }
        PassTarget::Dynamic(..) => None,
    }
}

/// Evaluates the target where it has variables.
///
/// # Errors
/// The status with which the request ends.
pub(super) fn evaluate(r: &mut Request, pass: &Pass) -> Result<Target, u16> {
    let PassTarget::Dynamic(template, _) = &pass.target else {
        return Err(500);
    };
    let mut url = Vec::with_capacity(128);
    template.write(r, &mut url);
    let t = pass.protocol.target(&url).map_err(|e| {
        // where the client names the target, the fault is the client's
        let level = match pass.protocol.codec() {
            Codec::Tunnel => Level::Info,
            _ => Level::Error,
        };
        r.error(level, format_args!("{e}"));
        500u16
    })?;
    if pass.protocol.codec() != Codec::Tunnel {
        r.upstream.host.clone_from(&t.host);
        r.upstream.port.clone_from(&t.port);
    }
    Ok(t)
}

/// Evaluates the target where it has variables, and resolves its name.
///
/// # Errors
/// The status with which the request ends.
pub(super) async fn find(r: &mut Request, pass: &Pass) -> Result<Found, u16> {
    let PassTarget::Dynamic(_, groups) = &pass.target else {
        return Err(500);
    };
    let t = evaluate(r, pass)?;
    let name = String::from_utf8_lossy(&t.host).into_owned();
    let single = |addrs: Vec<PeerAddr>| {
        Group::single(&name, addrs)
            .map(|group| Arc::new(Upstream::plain(Arc::new(group))))
            .map_err(|_| 502u16)
    };
    let group = match &t.address {
        Address::Unix(path) => single(vec![PeerAddr::Unix(path.clone())])?,
        Address::Inet(a) => match groups
            .get()
            .and_then(|g| g.find(&a.host, a.port, a.port_given))
        {
            Some(g) => g.clone(),
            None if a.port == 0 => {
                r.error(
                    Level::Error,
                    format_args!("no port in upstream \"{}\"", a.host),
                );
                return Err(500);
            }
            None => match a.ip {
                Some(ip) => single(vec![PeerAddr::Inet(SocketAddr::new(ip, a.port))])?,
                None => single(resolve(r, &a.host, a.port).await?)?,
            },
        },
    };
    Ok(Found {
        group,
        host: t.host,
        port: t.port,
        uri: (!t.uri.is_empty()).then_some(t.uri),
        tls: t.tls,
    })
}

async fn resolve(r: &mut Request, host: &str, port: u16) -> Result<Vec<PeerAddr>, u16> {
    let Some(resolver) = r.core().resolver.clone() else {
        r.error(
            Level::Error,
            format_args!("no resolver defined to resolve {host}"),
        );
        return Err(502);
    };
    match resolver.resolve(host).await {
        Ok(list) => Ok(list
            .into_iter()
            .map(|ip| PeerAddr::Inet(SocketAddr::new(ip, port)))
            .collect()),
        Err(e) => {
            r.error(Level::Error, format_args!("{e}"));
            Err(502)
        }
    }
}
