//! `server … resolve`, `service=` and the `resolver` of an `upstream {}`.

use super::{UpstreamDirectives, server};
use crate::config;
use crate::config::addr::{Address, Inet};
use crate::contract::*;
use crate::dns::{Resolver, ResolverConf};
use crate::engine::core::HttpCore;
use crate::upstream::discovery::Discovery;
use crate::upstream::{Group, ResolveName};
use std::sync::Arc;
use std::time::Duration;

/// The `resolve` and `service=` parameters of one `server`.
#[derive(Default)]
pub(super) struct Written<'s> {
    /// `resolve`.
    pub resolve: bool,
    /// `service=`.
    pub service: Option<&'s str>,
}

impl Written<'_> {
    /// The name to be resolved while it is in use; `None` where the address is known.
    ///
    /// # Errors
    /// nginx's messages about a service that cannot be looked for.
    pub fn name(&self, s: &Statement, address: &Address) -> ConfResult<Option<ResolveName>> {
        let error = |problem: &str| {
            let url = String::from_utf8_lossy(s.arg(0));
            s.error(format!("service upstream \"{url}\" {problem}"))
        };
        if self.service.is_some() && !self.resolve {
            return Err(error("requires \"resolve\" parameter"));
        }
        let service = self.service.map(str::to_owned);
        match address {
            Address::Inet(Inet {
                port_given: true, ..
            }) if service.is_some() => Err(error("may not have port")),
            Address::Inet(a) if a.ip.is_none() && self.resolve => Ok(Some(ResolveName {
                host: a.host.to_string(),
                port: a.port,
                service,
            })),
            _ if service.is_some() => Err(error("requires domain name")),
            _ => Ok(None),
        }
    }
}

/// `state file`: reads the servers that the file holds; there is none yet where there is no file.
pub(super) fn state(c: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.state.is_some() {
        return Err(s.duplicate());
    }
    if !c.servers.is_empty() {
        return Err(s.error("\"state\" is incompatible with \"server\""));
    }
    let path = b.prefixed(s.str(0)?);
    if path.exists() {
        let tree = config::parse_file(&path, &b.conf_prefix, &config::Disk);
        for line in &tree.root.items {
            if line.name() != "server" || line.block.is_some() {
                return Err(line.unknown_directive(["server"]));
            }
            if line.is_empty() {
                return Err(line.invalid_number_of_arguments());
            }
            server::read(c, line, b)?;
        }
        if let Some(e) = &tree.root.error {
            return Err(e.clone());
        }
    }
    c.state = Some(path);
    Ok(())
}

/// The resolver of one `upstream {}`, as written in it.
#[derive(Clone, Default)]
pub(super) struct Own {
    /// `resolver`.
    pub conf: Option<ResolverConf>,
    /// `resolver_timeout`, milliseconds.
    pub timeout: Option<u64>,
}

/// Resolves the names of `group` from when the configuration is in force; `s` is its `upstream`.
pub(super) fn keep_resolved(b: &mut Build, s: &Statement, own: Own, group: Arc<Group>) {
    let (s, outer) = (s.clone(), b.block());
    b.at_end(move |b| {
        let inherited = b.written::<HttpCore>(outer);
        let conf = own
            .conf
            .or_else(|| inherited.and_then(|c| c.resolver.clone()));
        let timeout = own
            .timeout
            .or_else(|| inherited.and_then(|c| c.resolver_timeout));
        let resolver = conf.map(|conf| shared(b, conf));
        let has_names = group.live().is_some_and(|live| !live.names().is_empty());
        let resolver = match resolver {
            Some(found) => found.map_err(|e| s.error(e.to_string()))?,
            None if has_names => {
                return Err(s.error(format!(
                    "no resolver defined to resolve names at run time in upstream \"{}\"",
                    group.name
                )));
            }
            None => return Ok(()),
        };
        let timeout = Duration::from_millis(timeout.unwrap_or(30_000));
        b.background(Arc::new(Discovery::new(group, resolver, timeout)));
        Ok(())
    });
}

/// The resolvers of all upstreams: what one of them has learnt, another one need not ask.
#[derive(Default)]
struct Resolvers(Vec<(ResolverConf, Arc<Resolver>)>);

pub(super) fn shared(b: &mut Build, conf: ResolverConf) -> std::io::Result<Arc<Resolver>> {
    let known = &mut b.shared::<Resolvers>().0;
    if let Some((_, resolver)) = known.iter().find(|(c, _)| *c == conf) {
        return Ok(resolver.clone());
    }
    let resolver = Arc::new(Resolver::new(conf.clone())?);
    known.push((conf, resolver.clone()));
    Ok(resolver)
}
