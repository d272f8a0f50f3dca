//! The peers of a group, and how they change while it serves: names that resolve to other addresses, and servers that
//! the runtime API adds, changes and removes.

use super::Clock;
use super::group::{Balance, Sets};
use super::peer::{GroupState, Peer, PeerAddr, ResolveName, ServerSpec};
use super::state_file;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::watch;

/// The peers of a group: as the configuration has them, or changeable.
#[derive(Debug)]
pub enum Members {
    /// They stay as they are.
    Fixed(Arc<Sets>),
    /// They may change at any time.
    Live(Arc<Live>),
}

impl Members {
    /// The peers as they are now; nothing is counted where they never change.
    pub fn hold(&self) -> Held<'_> {
        match self {
            Self::Fixed(sets) => Held::Fixed(sets),
            Self::Live(live) => Held::Kept(live.snapshot()),
        }
    }

    /// The peers as they are now.
    pub fn snapshot(&self) -> Arc<Sets> {
        match self {
            Self::Fixed(sets) => sets.clone(),
            Self::Live(live) => live.snapshot(),
        }
    }
}

/// The peers of a group at one moment; they stay as they are while this is held.
#[derive(Debug)]
pub enum Held<'g> {
    /// Those of a group that does not change.
    Fixed(&'g Sets),
    /// Those of one that may have changed since.
    Kept(Arc<Sets>),
}

impl Held<'_> {
    /// What a request keeps, so that a change does not confuse which peers it has tried.
    pub(super) fn into_kept(self) -> Option<Arc<Sets>> {
        match self {
            Self::Fixed(_) => None,
            Self::Kept(sets) => Some(sets),
        }
    }
}

impl Deref for Held<'_> {
    type Target = Sets;

    fn deref(&self) -> &Sets {
        match self {
            Self::Fixed(sets) => sets,
            Self::Kept(sets) => sets,
        }
    }
}

/// The servers of a changeable group (`zone`). Every change makes a new array of peers; requests under way keep theirs,
/// and peers that stay keep their state.
pub struct Live {
    current: ArcSwap<Sets>,
    servers: Mutex<Servers>,
    balance: Arc<dyn Balance>,
    clock: Clock,
    state: Arc<GroupState>,
    changes: watch::Sender<u64>,
    /// `zone`.
    zone: OnceLock<Arc<str>>,
    /// `state`: where the servers are kept.
    file: OnceLock<PathBuf>,
    /// Whether somebody resolves the names.
    resolves: AtomicBool,
}

impl Live {
    /// Takes the servers of a configuration; names have the addresses that an earlier one knew.
    ///
    /// # Errors
    /// An address that no socket can have.
    pub fn new(
        specs: Vec<ServerSpec>,
        balance: Arc<dyn Balance>,
        state: Arc<GroupState>,
        clock: Clock,
    ) -> io::Result<Self> {
        let mut servers = Servers::default();
        for spec in specs {
            servers.add(spec);
        }
        servers.take_known(&state);
        let sets = servers.peers(&state, balance.clone(), clock.clone(), None)?;
        Ok(Self {
            current: ArcSwap::from_pointee(sets),
            servers: Mutex::new(servers),
            balance,
            clock,
            state,
            changes: watch::Sender::new(0),
            zone: OnceLock::new(),
            file: OnceLock::new(),
            resolves: AtomicBool::new(false),
        })
    }

    /// The name of the `zone`.
    pub fn zone(&self) -> Option<&str> {
        self.zone.get().map(|name| &**name)
    }

    /// Sets the name of the `zone`, once.
    pub fn set_zone(&self, name: &str) {
        let _ = self.zone.set(name.into());
    }

    /// Keeps the servers in a file from now on (`state`).
    pub fn keep_in(&self, file: PathBuf) {
        let _ = self.file.set(file);
    }

    /// Whether names can be resolved: a resolver is configured.
    pub fn resolves(&self) -> bool {
        self.resolves.load(Relaxed)
    }

    pub(super) fn set_resolves(&self) {
        self.resolves.store(true, Relaxed);
    }

    /// The peers as they are now.
    pub(super) fn snapshot(&self) -> Arc<Sets> {
        self.current.load_full()
    }

    /// Counts the changes of servers and addresses.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The servers as they are now.
    pub fn servers(&self) -> Vec<Row> {
        self.servers.lock().rows.clone()
    }

    /// Whether a server has this name.
    pub fn has_name(&self, name: &ResolveName) -> bool {
        let servers = self.servers.lock();
        let key = FoundName::key(name);
        let names = servers
            .rows
            .iter()
            .filter_map(|row| row.spec.resolve.as_ref());
        names.map(FoundName::key).any(|known| known == key)
    }

    /// The names to be resolved, each once, with when the addresses known of it expire.
    pub fn names(&self) -> Vec<(ResolveName, Option<Instant>)> {
        let servers = self.servers.lock();
        let mut names: Vec<(ResolveName, Option<Instant>)> = Vec::new();
        for name in servers
            .rows
            .iter()
            .filter_map(|row| row.spec.resolve.as_ref())
        {
            let key = FoundName::key(name);
            if !names.iter().any(|(known, _)| FoundName::key(known) == key) {
                let until = self.state.found.lock().get(&key).map(|found| found.until);
                names.push((name.clone(), until));
            }
        }
        names
    }

    /// Gives every server of that name these addresses; false if it had them before.
    pub(super) fn set_found(&self, name: &ResolveName, found: FoundName) -> bool {
        let mut servers = self.servers.lock();
        let key = FoundName::key(name);
        let Servers { rows, next_id } = &mut *servers;
        let mut changed = false;
        for row in rows {
            if row.spec.resolve.as_ref().map(FoundName::key).as_ref() == Some(&key) {
                changed |= row.take_found(&found, next_id);
            }
        }
        self.state.found.lock().insert(key, found);
        if changed && let Err(e) = self.renew(&servers) {
            log::error!("addresses of \"{}\" cannot be used: {e}", name.host);
            return false;
        }
        drop(servers);
        if changed {
            self.changes.send_modify(|n| *n += 1);
        }
        changed
    }

    /// Changes the list of servers as a whole: what fails changes nothing.
    ///
    /// # Errors
    /// Those of `change`, or of an address that no socket can have.
    pub(super) fn edit<T, E: From<io::Error>>(
        &self,
        change: impl FnOnce(&mut Servers) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut servers = self.servers.lock();
        let mut changed = servers.clone();
        let outcome = change(&mut changed)?;
        changed.take_known(&self.state);
        let sets = self.prepare(&changed)?;
        // what cannot be kept is not done
        if let Some(file) = self.file.get() {
            state_file::write(file, &changed)?;
        }
        self.current.store(Arc::new(sets));
        *servers = changed;
        drop(servers);
        self.changes.send_modify(|n| *n += 1);
        Ok(outcome)
    }

    fn renew(&self, servers: &Servers) -> io::Result<()> {
        self.current.store(Arc::new(self.prepare(servers)?));
        Ok(())
    }

    fn prepare(&self, servers: &Servers) -> io::Result<Sets> {
        let before = self.current.load_full();
        let (balance, clock) = (self.balance.clone(), self.clock.clone());
        servers.peers(&self.state, balance, clock, Some(&before))
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("servers", &*self.servers.lock())
            .finish_non_exhaustive()
    }
}

/// The servers of a changeable group, in order.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    /// The servers.
    pub rows: Vec<Row>,
    next_id: u32,
}

impl Servers {
    /// The place of a server, or of one of its addresses, by its number.
    pub fn find(&self, id: u32) -> Option<(usize, Option<usize>)> {
        let in_row = |(at, row): (usize, &Row)| {
            if row.id == id {
                return Some((at, None));
            }
            let child = row.found.iter().position(|found| found.id == id)?;
            Some((at, Some(child)))
        };
        self.rows.iter().enumerate().find_map(in_row)
    }

    /// Gives a server whose name has changed the addresses that are known of it.
    pub fn rename(&mut self, at: usize, spec: ServerSpec) {
        if let Some(row) = self.rows.get_mut(at) {
            if row.spec.resolve != spec.resolve {
                row.found.clear();
            }
            row.spec = spec;
        }
    }

    /// Adds a server; one with several addresses becomes several. Returns the number of the first.
    pub fn add(&mut self, mut spec: ServerSpec) -> u32 {
        let first = self.next_id;
        let addrs = std::mem::take(&mut spec.addrs);
        if spec.resolve.is_some() {
            self.push(spec);
            return first;
        }
        for addr in addrs {
            self.push(ServerSpec {
                addrs: vec![addr],
                ..spec.clone()
            });
        }
        first
    }

    /// Gives servers without addresses those that are known of their names.
    fn take_known(&mut self, state: &GroupState) {
        for row in self.rows.iter_mut().filter(|row| row.found.is_empty()) {
            let name = row.spec.resolve.as_ref().map(FoundName::key);
            let found = name.and_then(|key| state.found.lock().get(&key).cloned());
            if let Some(found) = found {
                row.take_found(&found, &mut self.next_id);
            }
        }
    }

    fn push(&mut self, spec: ServerSpec) {
        let id = self.next_id;
        self.next_id += 1;
        self.rows.push(Row {
            id,
            spec,
            found: Vec::new(),
        });
    }

    fn peers(
        &self,
        state: &GroupState,
        balance: Arc<dyn Balance>,
        clock: Clock,
        before: Option<&Sets>,
    ) -> io::Result<Sets> {
        let mut seen: HashMap<Arc<str>, u32> = HashMap::new();
        let mut peer = |spec: &ServerSpec, addr: PeerAddr| {
            let shown: Arc<str> = addr.to_string().into();
            let nth = seen.entry(shown.clone()).or_default();
            let peer = Peer::of(spec, addr, state.peer(&shown, *nth));
            *nth += 1;
            peer
        };
        let (mut primary, mut backup) = (Vec::new(), Vec::new());
        for row in &self.rows {
            let spec = &row.spec;
            for addr in &spec.addrs {
                let peer = Peer {
                    id: row.id,
                    ..peer(spec, addr.clone())?
                };
                if spec.backup {
                    &mut backup
                } else {
                    &mut primary
                }
                .push(peer);
            }
            for found in &row.found {
                let mut peer = Peer {
                    id: found.id,
                    parent: Some(row.id),
                    backup: spec.backup || found.addr.backup,
                    ..peer(spec, found.addr.addr.into())?
                };
                peer.down = found.down.unwrap_or(peer.down);
                peer.drain = found.drain.unwrap_or(peer.drain);
                if let Some(service) = &found.addr.service {
                    peer.server = service.name.clone();
                    if spec.weight == 1 {
                        peer.set_weight(service.weight);
                    }
                }
                if peer.backup {
                    &mut backup
                } else {
                    &mut primary
                }
                .push(peer);
            }
        }
        Ok(Sets::new(primary, backup, balance, clock, before))
    }
}

/// A server of a changeable group.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its number in the runtime API.
    pub id: u32,
    /// Its parameters; one address, or none where it is a name to be resolved.
    pub spec: ServerSpec,
    /// The addresses of its name.
    pub found: Vec<Found>,
}

impl Row {
    /// Takes over the addresses of its name; what was there before keeps its number.
    fn take_found(&mut self, found: &FoundName, next_id: &mut u32) -> bool {
        let Some(name) = &self.spec.resolve else {
            return false;
        };
        let mut before = std::mem::take(&mut self.found);
        let mut changed = false;
        for addr in &found.addrs {
            let mut addr = addr.clone();
            if name.service.is_none() {
                addr.addr.set_port(name.port);
            } else if self.spec.backup && std::mem::take(&mut addr.backup) {
                // servers of a lesser priority would back up a backup
                continue;
            }
            match before.iter().position(|known| known.addr == addr) {
                Some(at) => self.found.push(before.remove(at)),
                None => {
                    let id = *next_id;
                    *next_id += 1;
                    self.found.push(Found {
                        id,
                        addr,
                        down: None,
                        drain: None,
                    });
                    changed = true;
                }
            }
        }
        changed || !before.is_empty()
    }
}

/// One address of a name, with its number in the runtime API.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its number.
    pub id: u32,
    /// The address, with the port in use.
    pub addr: FoundAddr,
    /// `down` set for this address alone.
    pub down: Option<bool>,
    /// `drain` set for this address alone.
    pub drain: Option<bool>,
}

/// What a name stood for when it was last resolved; outlives a configuration.
#[derive(Debug, Clone)]
pub struct FoundName {
    /// Its addresses; empty where the name does not exist.
    pub addrs: Vec<FoundAddr>,
    /// When it is to be asked for again.
    pub until: Instant,
}

impl FoundName {
    fn key(name: &ResolveName) -> (String, Option<String>) {
        (name.host.to_ascii_lowercase(), name.service.clone())
    }
}

/// One address of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundAddr {
    /// The address; the port counts only with `service`.
    pub addr: SocketAddr,
    /// The SRV record that led to it.
    pub service: Option<ServiceRecord>,
    /// Its priority is not the best one.
    pub backup: bool,
}

/// What an SRV record says of a server besides its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// The target's name.
    pub name: Arc<str>,
    /// Its weight, at least 1.
    pub weight: u32,
}

#[cfg(test)]
mod tests;
