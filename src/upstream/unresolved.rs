//! Names of servers that did not resolve when the configuration was read (`start_degraded`): asked for until they do.

use super::members::{FoundAddr, FoundName};
use super::{Group, ResolveName};
use crate::dns::{Resolver, resolve_at_load};
use crate::error_log;
use crate::log::{Level, process_log};
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Gives a group the addresses of one name as soon as there are any.
#[derive(Debug)]
pub struct Unresolved {
    group: Arc<Group>,
    name: ResolveName,
    resolver: Option<Arc<Resolver>>,
}

impl Unresolved {
    /// Asks `resolver`, if there is one, and then the system. The group has the name as one that changes.
    pub fn new(group: Arc<Group>, name: ResolveName, resolver: Option<Arc<Resolver>>) -> Self {
        Self {
            group,
            name,
            resolver,
        }
    }

    async fn ask(&self) -> Option<Vec<SocketAddr>> {
        let (host, port) = (self.name.host.clone(), self.name.port);
        if let Some(resolver) = &self.resolver
            && let Ok(ips) = resolver.resolve(&host).await
        {
            return Some(ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect());
        }
        // the system's resolver blocks
        let asked = tokio::task::spawn_blocking(move || resolve_at_load(&host, port));
        asked.await.ok()?.ok()
    }
}

#[async_trait]
impl BackgroundService for Unresolved {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut pause = FIRST_PAUSE;
        loop {
            let found = tokio::select! {
                // another configuration is in force
                _ = shutdown.changed() => return,
                found = async { tokio::time::sleep(pause).await; self.ask().await } => found,
            };
            let Some(addrs) = found else {
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            };
            let found = |addr| FoundAddr {
                addr,
                service: None,
                backup: false,
            };
            let found = FoundName {
                addrs: addrs.into_iter().map(found).collect(),
                until: Instant::now() + KEPT,
            };
            self.group.set_found(&self.name, found);
            error_log!(
                process_log(),
                Level::Notice,
                None,
                "host \"{}\" in upstream \"{}\" is found now",
                self.name.host,
                self.group.name
            );
            return;
        }
    }
}

/// Before a name is asked for again for the first time; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest time between two questions.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// As with any name that is resolved at the start, the addresses stay until the next reload.
const KEPT: Duration = Duration::from_secs(365 * 24 * 3600);
