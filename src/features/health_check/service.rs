//! The service that asks: one task for each peer of the group.

use super::Settings;
use super::matching::{self, Match};
use crate::contract::*;
use crate::exchange::probe::{self, Probe};
use crate::log::Level;
use crate::upstream::health::{Checker, Verdict};
use crate::upstream::{Group, Peer, PeerAddr, PeerState};
use async_trait::async_trait;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};

/// `type=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Http,
    /// A connection and nothing more.
    Tcp,
    /// A call of gRPC's health checking protocol, over HTTP/2.
    Grpc,
}

/// One `health_check` of one location.
pub struct Check {
    settings: Settings,
    pass: Arc<Pass>,
    group: Arc<Group>,
    /// Gone only while this is being dropped.
    checker: Option<Checker>,
}

impl Check {
    /// From now on the peers that the group does not know yet wait for their check, if it is `mandatory`.
    pub fn new(settings: Settings, pass: Arc<Pass>, group: Arc<Group>) -> Self {
        let Settings {
            kind, uri, port, ..
        } = &settings;
        let match_name = settings.match_name();
        let checker = Checker::new(&format!(
            "{kind:?} {port:?} {uri} {match_name} {:?}",
            settings.grpc
        ));
        if settings.mandatory {
            group.state.require_check(&checker);
            for peer in group.members().peers() {
                if peer.state.verdict(&checker).is_none() {
                    peer.state.judge(&checker, Verdict::Checking);
                }
            }
        }
        Self {
            settings,
            pass,
            group,
            checker: Some(checker),
        }
    }

    /// What is thought of a peer before this configuration has checked it.
    fn first_verdict(&self, known: Option<Verdict>) -> Verdict {
        let Settings {
            mandatory,
            persistent,
            ..
        } = self.settings;
        match known {
            Some(Verdict::Unhealthy) => Verdict::Unhealthy,
            Some(Verdict::Healthy) if !mandatory || persistent => Verdict::Healthy,
            _ if mandatory => Verdict::Checking,
            _ => Verdict::Healthy,
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        // its verdicts end with it, unless the next configuration has taken them over
        self.checker = None;
        for peer in self.group.members().peers() {
            peer.state.review_health();
        }
    }
}

impl Settings {
    pub(super) fn match_name(&self) -> &str {
        self.matching.as_ref().map_or("", |(name, _)| name)
    }

    fn matching(&self) -> Option<&Match> {
        self.matching.as_ref()?.1.get()
    }

    /// The time to the next check.
    fn pause(&self) -> Duration {
        let jitter = u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX);
        if jitter == 0 {
            return self.interval;
        }
        let mut random = [0; 8];
        // without random numbers the checks come all the same
        let _ = openssl::rand::rand_bytes(&mut random);
        let extra = u64::from_ne_bytes(random) % (jitter + 1);
        self.interval + Duration::from_millis(extra)
    }
}

/// Runs a [`Check`] for as long as its configuration is in force.
pub struct Service(Arc<Check>);

impl Service {
    /// A service that has not begun.
    pub fn new(check: Check) -> Self {
        Self(Arc::new(check))
    }
}

#[async_trait]
impl BackgroundService for Service {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let check = &self.0;
        let Some(site) = crate::contract::background_site() else {
            return;
        };
        let is_here = |l: &Location| {
            l.hooks
                .origin()
                .is_some_and(|p| Arc::ptr_eq(p, &check.pass))
        };
        let Some(at) = site.locations.iter().position(is_here) else {
            return;
        };
        let at = at as LocId;
        let mut changes = check.group.live().map(|live| live.changes());
        let mut running: HashMap<u32, AbortHandle> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            if let Some(changes) = &mut changes {
                changes.borrow_and_update();
            }
            let mut before = std::mem::take(&mut running);
            for peer in check.group.members().peers().filter(|p| !p.down) {
                let id = peer.state.id;
                if let Some(task) = before.remove(&id).filter(|task| !task.is_finished()) {
                    running.insert(id, task);
                } else if let Ok(target) = Target::new(check, peer, &site, at) {
                    running.insert(id, tasks.spawn(target.watch()));
                }
            }
            before.into_values().for_each(|task| task.abort());
            let changed = async {
                match &mut changes {
                    // the group is gone with its last request
                    Some(changes) => changes.changed().await.unwrap_or_default(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // the tasks end with this function
                _ = shutdown.changed() => return,
                () = changed => {}
                // one that ended by itself begins again
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

/// One peer.
struct Target {
    check: Arc<Check>,
    site: SiteRef,
    at: LocId,
    /// Where the check connects to.
    peer: Peer,
    /// The name of the peer that it is for.
    name: Arc<str>,
    state: Arc<PeerState>,
    /// What is thought of it at first.
    verdict: Verdict,
}

impl Target {
    fn new(check: &Arc<Check>, peer: &Peer, site: &SiteRef, at: LocId) -> std::io::Result<Self> {
        let mut addr = peer.addr.clone();
        if let (PeerAddr::Inet(inet), Some(port)) = (&mut addr, check.settings.port) {
            inet.set_port(port);
        }
        let state = peer.state.clone();
        let known = check.checker.as_ref().and_then(|c| state.verdict(c));
        let verdict = check.first_verdict(known);
        // at once: the configuration before may be about to forget what it knows
        if let Some(checker) = &check.checker {
            state.judge(checker, verdict);
        }
        Ok(Self {
            check: check.clone(),
            site: site.clone(),
            at,
            // with a state of its own: checks are no requests
            peer: Peer::new(addr, peer.server.clone(), Arc::default())?,
            name: peer.name.clone(),
            state,
            verdict,
        })
    }

    /// Checks the peer again and again; never ends.
    async fn watch(self) {
        let Check {
            settings, checker, ..
        } = &*self.check;
        let Some(checker) = checker else {
            return;
        };
        let mut verdict = self.verdict;
        let (mut passes, mut fails) = (0u32, 0u32);
        let mut idle = None;
        loop {
            let outcome = self.ask(&mut idle).await;
            self.state.count_check(outcome.is_ok());
            match outcome {
                Ok(doing) => {
                    (passes, fails) = (passes.saturating_add(1), 0);
                    let enough = verdict == Verdict::Checking || passes >= settings.passes;
                    if verdict != Verdict::Healthy && enough {
                        verdict = Verdict::Healthy;
                        self.log(Level::Notice, format_args!("peer is healthy while {doing}"));
                    }
                }
                Err(doing) => {
                    (passes, fails) = (0, fails.saturating_add(1));
                    if verdict != Verdict::Unhealthy && fails >= settings.fails {
                        verdict = Verdict::Unhealthy;
                        self.log(Level::Warn, format_args!("peer is unhealthy while {doing}"));
                    }
                }
            }
            self.state.judge(checker, verdict);
            tokio::time::sleep(settings.pause()).await;
        }
    }

    /// One check: what was done last, in the words of the log.
    async fn ask(
        &self,
        idle: &mut Option<crate::upstream::UpConn>,
    ) -> Result<&'static str, &'static str> {
        let Check {
            settings,
            pass,
            group,
            ..
        } = &*self.check;
        let matching = settings.matching();
        let probe = Probe {
            pass,
            group,
            peer: &self.peer,
            uri: &settings.uri,
            keepalive: settings.keepalive,
            body: match matching {
                Some(m) if m.wants_body() => matching::BODY,
                // a connection is used again only once its body has been read
                _ if !settings.keepalive.is_zero() => matching::BODY,
                _ => 0,
            },
        };
        let mut r = probe::request(&self.site, self.at);
        let result = match settings.kind {
            Kind::Tcp => {
                let opened = probe.connect(&mut r).await;
                return match opened {
                    Ok(_) => Ok("connecting to upstream"),
                    Err(e) => Err(self.broken(&e)),
                };
            }
            Kind::Grpc => {
                const DOING: &str = "checking grpc status";
                let (service, status) = &settings.grpc;
                let health = probe.grpc(&mut r, service).await;
                let health = health.map_err(|e| self.broken(&e))?;
                let good = match status {
                    Some(wanted) => health.status == *wanted,
                    None => health.status == 0 && health.serving,
                };
                return if good { Ok(DOING) } else { Err(DOING) };
            }
            Kind::Http => probe.exchange(&mut r, idle).await,
        };
        match result {
            Err(e) => Err(self.broken(&e)),
            Ok(body) => match matching {
                Some(m) => m.test(&r, &body),
                None => matching::default_test(&r),
            },
        }
    }

    fn broken(&self, e: &probe::ProbeError) -> &'static str {
        self.log(Level::Error, format_args!("{e}"));
        e.doing
    }

    fn log(&self, level: Level, message: fmt::Arguments<'_>) {
        let Some(location) = self.site.locations.get(self.at as usize) else {
            return;
        };
        let Check {
            settings, group, ..
        } = &*self.check;
        let port = settings.port.map(|p| format!(", port {p}"));
        location.core.error_log.write(
            level,
            None,
            format_args!(
                "{message}, health check \"{}\" of peer {} in upstream \"{}\"{}",
                settings.match_name(),
                self.name,
                group.name,
                port.unwrap_or_default()
            ),
        );
    }
}
