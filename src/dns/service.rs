//! SRV records (RFC 2782): a service, the names that offer it and their addresses.

use super::{Kind, Known, ResolveError, Resolver, SERVFAIL, within};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Resolver {
    /// Who offers `service` of `name`, by priority, and when that is to be asked for again.
    ///
    /// `http` stands for `_http._tcp`; a service with a dot is taken as it is written. A target whose addresses are
    /// not to be had is in the list with its error.
    pub async fn resolve_service(
        self: &Arc<Self>,
        service: &str,
        name: &str,
        timeout: Duration,
    ) -> Result<(Vec<ServiceTarget>, Instant), ResolveError> {
        let full = if service.contains('.') {
            format!("{service}.{name}")
        } else {
            format!("_{service}._tcp.{name}")
        };
        let found = within(timeout, async {
            let (known, mut until) = self.follow(Kind::Service, &full).await?;
            let Known::Services(list) = known else {
                return Err(SERVFAIL);
            };
            let mut targets = Vec::with_capacity(list.len());
            for service in list.iter() {
                // equal names share one query
                let addrs = match self.follow(Kind::Address, &service.target).await {
                    Ok((Known::Addrs(addrs), least)) => {
                        until = until.min(least);
                        Ok(addrs.ips.to_vec())
                    }
                    Ok(_) => Err(ResolveError::failed(&service.target, SERVFAIL)),
                    Err(code) => Err(ResolveError::failed(&service.target, code)),
                };
                targets.push(ServiceTarget {
                    name: service.target.clone(),
                    priority: service.priority,
                    weight: service.weight,
                    port: service.port,
                    addrs,
                });
            }
            Ok((targets, until))
        });
        found.await.map_err(|code| ResolveError::failed(name, code))
    }
}

/// One SRV record with the addresses of its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTarget {
    /// The target's name.
    pub name: Arc<str>,
    /// The least one serves, the others back it up.
    pub priority: u16,
    /// At least 1.
    pub weight: u16,
    /// The port at every address.
    pub port: u16,
    /// The addresses.
    pub addrs: Result<Vec<IpAddr>, ResolveError>,
}
