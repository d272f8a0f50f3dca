//! Certificates that change while a site serves. Where there is a master it looks at their files, which a worker may not
//! be able to read, and hands over what is new; else a thread that serves nobody does.

use super::thread::Shared;
use crate::contract::{Renew, Site, TlsServer};
use crate::log::{Level, process_log};
use crate::tls::ffi;
use crate::tls::load::Loader;
use crate::tls::watch::{Group, Watch};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// When a certificate that is about to end is told of.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 86_400;
/// How often that is.
const AGAIN: Duration = Duration::from_secs(DAY as u64);
/// The longest sleep: a reload may have changed what there is to do.
const LONGEST: Duration = Duration::from_secs(1);

/// Starts the thread, once a process.
pub(super) fn watch(shared: &Arc<Shared>) {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let shared = Arc::downgrade(shared);
    let look = move || {
        let mut rounds = Rounds::default();
        while let Some(shared) = shared.upgrade() {
            let site = shared.site.load_full();
            let pause = rounds.next(&site);
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

/// The files of a site's servers that are to be watched.
pub fn watched(site: &Site) -> Watch {
    Watch::new(servers(site).map(|(_, renew)| Group {
        interval: renew.interval,
        files: renew.files.clone(),
    }))
}

fn servers(site: &Site) -> impl Iterator<Item = (&TlsServer, &Renew)> {
    site.servers.iter().filter_map(|s| {
        let tls = s.tls.as_deref()?;
        Some((tls, tls.renew.as_ref()?))
    })
}

#[derive(Default)]
struct Rounds {
    site: u64,
    watch: Watch,
    /// When certificates that end soon were told of.
    told: Option<Instant>,
}

impl Rounds {
    /// Does what is due; returns how long to sleep.
    fn next(&mut self, site: &Site) -> Duration {
        if self.site != site.serial {
            self.site = site.serial;
            self.told = None;
            self.watch = if site.main.master_process {
                Watch::default()
            } else {
                watched(site)
            };
        }
        let now = Instant::now();
        let changed = self.watch.look(now);
        if !changed.is_empty() {
            renew(site, &changed);
        }
        if self.told.is_none_or(|at| now.duration_since(at) >= AGAIN) {
            self.told = Some(now);
            tell_of_ends(site);
        }
        let due = self.watch.due();
        due.map_or(LONGEST, |at| at.saturating_duration_since(now).min(LONGEST))
    }
}

/// Makes the contexts anew of servers that use any of these files. A server whose files are at fault keeps what it has.
pub fn renew(site: &Site, files: &BTreeSet<PathBuf>) {
    // what many servers share is read and told of once
    let mut loader = Loader::default();
    let mut renewed: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for (tls, renew) in servers(site) {
        if !renew.files.iter().any(|(path, _)| files.contains(path)) {
            continue;
        }
        match (renew.make)(&mut loader) {
            Ok(made) => {
                for (name, _) in made.iter().flat_map(|m| &m.certificates) {
                    *renewed.entry(name.clone()).or_default() += 1;
                }
                tls.context.store(made);
            }
            Err(text) => {
                refused.insert(text);
            }
        }
    }
    let log = process_log();
    for (name, servers) in &renewed {
        log.write(
            Level::Notice,
            None,
            format_args!("certificate \"{name}\" was read anew, {servers} servers use it"),
        );
    }
    for text in &refused {
        log.write(
            Level::Error,
            None,
            format_args!("{text}, what was there before stays in use"),
        );
    }
    // what a reload must not take for the present
    loader.keep_beside();
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
