//! Names of servers, resolved again whenever their addresses expire (`server name resolve`).

use super::members::{FoundAddr, FoundName, ServiceRecord};
use super::{Group, ResolveName};
use crate::dns::{NXDOMAIN, code_text};
use crate::dns::{ResolveError, Resolver};
use crate::error_log;
use crate::log::{Level, process_log};
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Keeps the addresses of one group's names up to date, for as long as its configuration is in force.
pub struct Discovery {
    group: Arc<Group>,
    resolver: Arc<Resolver>,
    timeout: Duration,
}

impl Discovery {
    /// `timeout` is the `resolver_timeout` of the upstream.
    pub fn new(group: Arc<Group>, resolver: Arc<Resolver>, timeout: Duration) -> Self {
        if let Some(live) = group.live() {
            live.set_resolves();
        }
        Self {
            group,
            resolver,
            timeout,
        }
    }
}

#[async_trait]
impl BackgroundService for Discovery {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(live) = self.group.live() else {
            return;
        };
        let mut changes = live.changes();
        let mut asked: HashSet<ResolveName> = HashSet::new();
        let mut tasks = JoinSet::new();
        loop {
            changes.borrow_and_update();
            for (name, until) in live.names() {
                if asked.insert(name.clone()) {
                    let watch = Watch {
                        group: self.group.clone(),
                        resolver: self.resolver.clone(),
                        timeout: self.timeout,
                        name,
                    };
                    tasks.spawn(watch.run(until));
                }
            }
            tokio::select! {
                // the configuration is no longer in force; queries end with their tasks
                _ = shutdown.changed() => return,
                _ = changes.changed() => {}
                Some(ended) = tasks.join_next() => match ended {
                    Ok(name) => drop(asked.remove(&name)),
                    // it cannot be known whose end it was: all are looked for anew
                    Err(_) => asked.clear(),
                },
            }
        }
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery")
            .field("group", &self.group.name)
            .finish_non_exhaustive()
    }
}

/// One name.
struct Watch {
    group: Arc<Group>,
    resolver: Arc<Resolver>,
    timeout: Duration,
    name: ResolveName,
}

impl Watch {
    /// Resolves the name until no server has it any more.
    async fn run(self, known_until: Option<std::time::Instant>) -> ResolveName {
        let mut due = known_until.map_or_else(Instant::now, Instant::from_std);
        loop {
            sleep_until(due).await;
            let wanted = |live: &Arc<super::members::Live>| live.has_name(&self.name);
            if !self.group.live().is_some_and(wanted) {
                return self.name;
            }
            due = match self.ask().await {
                Ok((addrs, until)) => {
                    let until = until.max(Instant::now() + MIN_PAUSE);
                    let found = FoundName {
                        addrs,
                        until: until.into_std(),
                    };
                    self.group.set_found(&self.name, found);
                    until
                }
                // what it had last is kept
                Err(_) => Instant::now() + self.timeout.max(MIN_PAUSE),
            };
        }
    }

    async fn ask(&self) -> Result<(Vec<FoundAddr>, Instant), ResolveError> {
        let found = match &self.name.service {
            None => self.ask_addresses().await,
            Some(service) => self.ask_service(service).await,
        };
        match found {
            // a name that is known not to exist has no addresses
            Err(e) if e.is_not_found() => {
                self.complain(&e);
                Ok((Vec::new(), Instant::now() + self.resolver.negative()))
            }
            Err(e) => {
                self.complain(&e);
                Err(e)
            }
            found => found,
        }
    }

    async fn ask_addresses(&self) -> Result<(Vec<FoundAddr>, Instant), ResolveError> {
        let host = &self.name.host;
        let (mut ips, until) = self.resolver.resolve_until(host, self.timeout).await?;
        // rotation is for those who take the first
        ips.sort_unstable();
        let addr = |ip| FoundAddr {
            addr: SocketAddr::new(ip, self.name.port),
            service: None,
            backup: false,
        };
        Ok((ips.into_iter().map(addr).collect(), until))
    }

    async fn ask_service(&self, service: &str) -> Result<(Vec<FoundAddr>, Instant), ResolveError> {
        let host = &self.name.host;
        let asked = self.resolver.resolve_service(service, host, self.timeout);
        let (targets, until) = asked.await?;
        let (mut errors, mut found) = (Vec::new(), Vec::new());
        for target in &targets {
            match &target.addrs {
                Ok(ips) => {
                    let at = |ip: &_| (SocketAddr::new(*ip, target.port), target);
                    found.extend(ips.iter().map(at));
                }
                Err(e) => {
                    complain(format_args!(
                        "{e} while resolving service {service} of {host}"
                    ));
                    errors.push(e.code());
                }
            }
        }
        if found.is_empty() {
            let absent = errors.contains(&NXDOMAIN);
            let code = errors.first().copied().unwrap_or(NXDOMAIN);
            return Err(ResolveError::Failed {
                name: host.clone(),
                code: if absent { NXDOMAIN } else { code },
            });
        }
        let best = found.iter().map(|(_, target)| target.priority).min();
        let addr = |(addr, target): (SocketAddr, &crate::dns::ServiceTarget)| FoundAddr {
            addr,
            service: Some(ServiceRecord {
                name: target.name.clone(),
                weight: target.weight.into(),
            }),
            backup: Some(target.priority) != best,
        };
        Ok((found.into_iter().map(addr).collect(), until))
    }

    fn complain(&self, e: &ResolveError) {
        match &self.name.service {
            None => complain(format_args!("{e}")),
            Some(service) => {
                let code = e.code();
                let (host, text) = (&self.name.host, code_text(code));
                complain(format_args!(
                    "service {service} of {host} could not be resolved ({code}: {text})"
                ));
            }
        }
    }
}

/// How soon a name may be asked for again.
const MIN_PAUSE: Duration = Duration::from_secs(1);

fn complain(message: fmt::Arguments<'_>) {
    error_log!(process_log(), Level::Error, None, "{message}");
}
