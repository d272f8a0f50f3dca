//! Certificates that change while a site serves: their files are looked at by a thread that serves nobody.

use super::thread::Shared;
use crate::log::{Level, process_log};
use crate::module::{Renew, Site, TlsServer};
use crate::tls::ffi;
use crate::tls::load::{Loader, Version};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Starts the thread, once a process.
pub(super) fn watch(shared: &Arc<Shared>) {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let shared = Arc::downgrade(shared);
    let look = move || {
        let mut watch = Watch::default();
        while let Some(shared) = shared.upgrade() {
            let site = shared.site.load_full();
            let pause = watch.look(&site);
            // neither lives on because it is looked at
            drop((site, shared));
            thread::sleep(pause);
        }
    };
    let started = thread::Builder::new()
        .name("certificates".to_owned())
        .spawn(look);
    if let Err(e) = started {
        process_log().write(
            Level::Error,
            None,
            format_args!("certificates are not watched: {e}"),
        );
    }
}

/// Where nothing is watched; a reload may change that.
const IDLE: Duration = Duration::from_secs(1);
/// When a certificate that is about to end is told of.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 86_400;
/// How often that is.
const AGAIN: Duration = Duration::from_secs(DAY as u64);

/// What was seen of the site in force.
#[derive(Default)]
struct Watch {
    site: u64,
    /// By the number of the server.
    servers: HashMap<usize, Seen>,
    /// When certificates that end soon were told of.
    told: Option<Instant>,
}

/// A server's files as they were when its context was made, or when that failed.
struct Seen {
    versions: Vec<Option<Version>>,
    due: Instant,
    trouble: Trouble,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// The files as they are now were refused once: the other one of a pair may be on its way.
    Once,
    /// And are not tried again.
    Told,
}

impl Watch {
    /// Looks at what is due; returns how long nothing will be.
    fn look(&mut self, site: &Site) -> Duration {
        if self.site != site.serial {
            self.site = site.serial;
            self.servers.clear();
            self.told = None;
        }
        let now = Instant::now();
        let mut next = None;
        // files and texts that many servers share are read and told of once
        let mut pass = Pass::default();
        for (n, tls, renew) in watched(site) {
            let seen = self.servers.entry(n).or_insert_with(|| Seen {
                versions: renew.files.iter().map(|(_, s)| *s).collect(),
                due: now,
                trouble: Trouble::None,
            });
            if seen.due <= now {
                seen.due = now + renew.interval;
                pass.look(tls, renew, seen);
            }
            next = Some(next.map_or(seen.due, |n: Instant| n.min(seen.due)));
        }
        pass.tell();
        if self.told.is_none_or(|at| now.duration_since(at) >= AGAIN) || pass.renewed() {
            self.told = Some(now);
            tell_of_ends(site);
        }
        next.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()))
            .min(IDLE.max(Duration::from_secs(5)))
    }
}

fn watched(site: &Site) -> impl Iterator<Item = (usize, &TlsServer, &Renew)> {
    site.servers.iter().enumerate().filter_map(|(n, s)| {
        let tls = s.tls.as_deref()?;
        Some((n, tls, tls.renew.as_ref()?))
    })
}

/// One round.
#[derive(Default)]
struct Pass {
    versions: HashMap<PathBuf, Option<Version>>,
    loader: Loader,
    /// Servers by the files that changed.
    renewed: BTreeMap<PathBuf, usize>,
    refused: HashSet<String>,
}

impl Pass {
    fn look(&mut self, tls: &TlsServer, renew: &Renew, seen: &mut Seen) {
        let present: Vec<_> = renew.files.iter().map(|(p, _)| self.version(p)).collect();
        let changed = present != seen.versions;
        if !changed && seen.trouble != Trouble::Once {
            return;
        }
        match (renew.make)(&mut self.loader) {
            Ok(Some(context)) => {
                tls.context.store(Some(context));
                let files = renew.files.iter().zip(seen.versions.iter().zip(&present));
                for ((path, _), (old, new)) in files {
                    if old != new {
                        *self.renewed.entry(path.clone()).or_default() += 1;
                    }
                }
                seen.trouble = Trouble::None;
            }
            Ok(None) => seen.trouble = Trouble::None,
            Err(_) if changed => seen.trouble = Trouble::Once,
            Err(text) => {
                self.refused.insert(text);
                seen.trouble = Trouble::Told;
            }
        }
        seen.versions = present;
    }

    fn version(&mut self, path: &Path) -> Option<Version> {
        if let Some(known) = self.versions.get(path) {
            return *known;
        }
        let version = Version::of(path);
        self.versions.insert(path.to_owned(), version);
        version
    }

    fn renewed(&self) -> bool {
        !self.renewed.is_empty()
    }

    fn tell(&mut self) {
        if self.renewed() {
            // what a reload must not take for the present
            std::mem::take(&mut self.loader).keep_beside();
        }
        let log = process_log();
        for (path, servers) in &self.renewed {
            log.write(
                Level::Notice,
                None,
                format_args!(
                    "\"{}\" has changed, {servers} servers use it",
                    path.display()
                ),
            );
        }
        for text in &self.refused {
            log.write(
                Level::Error,
                None,
                format_args!("{text}, what was there before stays in use"),
            );
        }
    }
}

/// Warns of certificates that end soon, each once.
fn tell_of_ends(site: &Site) {
    let mut told = HashSet::new();
    let log = process_log();
    for server in &site.servers {
        let Some(made) = server.tls.as_ref().and_then(|t| t.context.load_full()) else {
            continue;
        };
        for (name, cert) in &made.certificates {
            let Some(left) = ffi::remaining(cert).filter(|left| *left < SOON) else {
                continue;
            };
            if !told.insert(name.clone()) {
                continue;
            }
            let end = cert.not_after();
            if left < 0 {
                log.write(
                    Level::Warn,
                    None,
                    format_args!("certificate \"{name}\" has expired at {end}"),
                );
            } else {
                let days = left / DAY;
                log.write(
                    Level::Warn,
                    None,
                    format_args!("certificate \"{name}\" expires in {days} days, at {end}"),
                );
            }
        }
    }
}
