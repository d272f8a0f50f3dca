//! Certificates and keys from files, `data:` and, at run time, a cache of them.

use super::error;
use super::ffi::{self, Source};
use parking_lot::Mutex;
use pingora::tls::pkey::{PKey, Private};
use pingora::tls::ssl::SslRef;
use pingora::tls::x509::X509;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A certificate with its chain.
pub type Chain = Arc<[X509]>;

/// What a parameter of `ssl_certificate` or `ssl_certificate_key` names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// A file.
    Path(PathBuf),
    /// PEM text.
    Data(Vec<u8>),
    /// `engine:` and `store:`, which are not supported.
    Foreign(String),
}

impl Name {
    /// Reads a parameter; relative paths begin at `base`.
    pub fn parse(text: &[u8], base: &Path) -> Name {
        if let Some(data) = text.strip_prefix(b"data:") {
            return Name::Data(data.to_vec());
        }
        let text = String::from_utf8_lossy(text);
        if text.starts_with("engine:") || text.starts_with("store:") {
            return Name::Foreign(text.into_owned());
        }
        Name::Path(base.join(&*text))
    }

    /// The name for messages; `data:` hides what follows it.
    pub fn shown(&self) -> String {
        match self {
            Name::Path(p) => p.display().to_string(),
            Name::Data(_) => "data:...".to_owned(),
            Name::Foreign(text) => text.clone(),
        }
    }

    fn source(&self) -> Result<Source<'_>, String> {
        match self {
            Name::Path(p) => Ok(Source::Path(p)),
            Name::Data(d) => Ok(Source::Data(d)),
            Name::Foreign(text) => {
                let kind = text.split(':').next().unwrap_or_default();
                Err(format!(
                    "loading \"{kind}:...\" certificate keys is not supported"
                ))
            }
        }
    }
}

/// Loads a certificate with its chain.
///
/// # Errors
/// nginx's text.
pub fn chain(name: &Name) -> Result<Chain, String> {
    let failed = |call: &str| {
        error::failure(format!(
            "cannot load certificate \"{}\": {call}",
            name.shown()
        ))
    };
    match name.source().map(ffi::read_chain) {
        Ok(Ok(list)) => Ok(list.into()),
        Ok(Err(call)) => Err(failed(call)),
        Err(text) => Err(failed(&text)),
    }
}

/// Loads a private key, trying each password.
///
/// # Errors
/// nginx's text.
pub fn key(
    name: &Name,
    passwords: Option<&[Vec<u8>]>,
    quiet: bool,
) -> Result<PKey<Private>, String> {
    locked_key(name, passwords, quiet).map(|(key, _)| key)
}

/// As [`key`], with whether it is behind a password.
fn locked_key(
    name: &Name,
    passwords: Option<&[Vec<u8>]>,
    quiet: bool,
) -> Result<(PKey<Private>, bool), String> {
    let failed = |call: &str| {
        error::failure(format!(
            "cannot load certificate key \"{}\": {call}",
            name.shown()
        ))
    };
    match name.source().map(|s| ffi::read_key(s, passwords, quiet)) {
        Ok(Ok(key)) => Ok(key),
        Ok(Err(call)) => Err(failed(call)),
        Err(text) => Err(failed(&text)),
    }
}

/// Loads certificates of authorities.
///
/// # Errors
/// nginx's text.
pub fn authorities(path: &Path) -> Result<Chain, String> {
    let list = ffi::read_authorities(Source::Path(path));
    list.map(Into::into).map_err(|call| {
        error::failure(format!(
            "cannot load certificate \"{}\": {call}",
            path.display()
        ))
    })
}

/// Where certificates come from whose names have variables.
#[derive(Default)]
pub struct ByName {
    /// What relative names begin with.
    pub base: PathBuf,
    /// `ssl_password_file`.
    pub passwords: Vec<Vec<u8>>,
    /// `ssl_certificate_cache`.
    pub cache: Option<Arc<Cache>>,
}

impl ByName {
    /// Gives a connection the certificate and key of these names (evaluated); files that were replaced one after the
    /// other get a second look.
    ///
    /// # Errors
    /// nginx's text.
    pub fn give(&self, ssl: &mut SslRef, certificate: &[u8], key: &[u8]) -> Result<(), String> {
        let shown = String::from_utf8_lossy(certificate);
        let mut fresh = false;
        loop {
            let (chain, pkey, key_name) = self.load(certificate, key, fresh)?;
            let Some((leaf, rest)) = chain.split_first() else {
                return Err(format!("no certificate in \"{shown}\""));
            };
            ssl.set_certificate(leaf).map_err(|e| {
                error::describe(format!("SSL_use_certificate(\"{shown}\") failed"), &e)
            })?;
            for c in rest {
                ssl.add_chain_cert(c.clone()).map_err(|e| {
                    error::describe(format!("SSL_set0_chain(\"{shown}\") failed"), &e)
                })?;
            }
            match ssl.set_private_key(&pkey) {
                Ok(()) => return Ok(()),
                Err(e) if !fresh && error::is_mismatch(&e) => fresh = true,
                Err(e) => {
                    let shown = key_name.shown();
                    return Err(error::describe(
                        format!("SSL_use_PrivateKey(\"{shown}\") failed"),
                        &e,
                    ));
                }
            }
        }
    }

    fn load(
        &self,
        certificate: &[u8],
        key: &[u8],
        fresh: bool,
    ) -> Result<(Chain, PKey<Private>, Name), String> {
        let certificate = Name::parse(certificate, &self.base);
        let name = Name::parse(key, &self.base);
        let (chain, pkey) = match &self.cache {
            Some(c) => (
                c.chain(&certificate, fresh)?,
                c.key(&name, Some(&self.passwords), fresh)?,
            ),
            None => (
                chain(&certificate)?,
                self::key(&name, Some(&self.passwords), true)?,
            ),
        };
        Ok((chain, pkey, name))
    }
}

/// Remembers what one configuration has loaded: thousands of servers may share a certificate.
///
/// A reload takes over what the configuration before it loaded from files that are the same still.
#[derive(Default, Clone)]
pub struct Loader {
    chains: HashMap<Name, (Chain, Option<Stamp>)>,
    keys: HashMap<Name, (PKey<Private>, Option<Stamp>)>,
    authorities: HashMap<PathBuf, (Chain, Option<Stamp>)>,
    revoked: HashMap<PathBuf, (Arc<[u8]>, Option<Stamp>)>,
    /// What the configuration in force has loaded (`ssl_object_cache_inheritable`).
    before: Option<Arc<Loader>>,
}

/// The loader of a configuration that is being read, for all who load.
pub type SharedLoader = Arc<Mutex<Loader>>;

static IN_FORCE: Mutex<Option<Arc<Loader>>> = Mutex::new(None);

impl Loader {
    /// Takes over from the configuration in force, where its files are the same.
    pub fn inherit(&mut self) {
        // one who hands on what he read must read it
        if crate::config::load_inputs::recording() {
            return;
        }
        self.before.clone_from(&IN_FORCE.lock());
    }

    /// Leaves what has been loaded to the next configuration.
    pub fn keep(&mut self) {
        self.before = None;
        *IN_FORCE.lock() = Some(Arc::new(self.clone()));
    }

    /// As [`chain`].
    ///
    /// # Errors
    /// As [`chain`].
    pub fn chain(&mut self, name: &Name) -> Result<Chain, String> {
        if let Some((c, _)) = self.chains.get(name) {
            return Ok(c.clone());
        }
        let stamp = stamp(name);
        let old = self
            .before
            .as_ref()
            .and_then(|b| b.chains.get(name))
            .filter(|(_, s)| same(name, *s, stamp));
        let c = match old {
            Some((c, _)) => c.clone(),
            None => chain(name)?,
        };
        self.chains.insert(name.clone(), (c.clone(), stamp));
        Ok(c)
    }

    /// As [`key`]; keys that may need a password are not remembered.
    ///
    /// # Errors
    /// As [`key`].
    pub fn key(
        &mut self,
        name: &Name,
        passwords: Option<&[Vec<u8>]>,
    ) -> Result<PKey<Private>, String> {
        if passwords.is_some() {
            return key(name, passwords, false);
        }
        if let Some((k, _)) = self.keys.get(name) {
            return Ok(k.clone());
        }
        let stamp = stamp(name);
        let old = self
            .before
            .as_ref()
            .and_then(|b| b.keys.get(name))
            .filter(|(_, s)| same(name, *s, stamp));
        let k = match old {
            Some((k, _)) => k.clone(),
            None => key(name, None, false)?,
        };
        self.keys.insert(name.clone(), (k.clone(), stamp));
        Ok(k)
    }

    /// Forgets a pair that does not fit together: one of its files was replaced, and only the other is known anew.
    pub fn forget(&mut self, certificate: &Name, key: &Name) {
        self.chains.remove(certificate);
        self.keys.remove(key);
        self.before = None;
    }

    /// Leaves what has been loaded to the next configuration, beside what is there.
    pub fn keep_beside(self) {
        let mut in_force = IN_FORCE.lock();
        let mut all = in_force.as_deref().cloned().unwrap_or_default();
        all.chains.extend(self.chains);
        all.keys.extend(self.keys);
        all.authorities.extend(self.authorities);
        all.revoked.extend(self.revoked);
        *in_force = Some(Arc::new(all));
    }

    /// The text of a file of revocation lists; `None` where it cannot be read.
    pub fn revoked(&mut self, path: &Path) -> Option<Arc<[u8]>> {
        if let Some((text, _)) = self.revoked.get(path) {
            return Some(text.clone());
        }
        let stamp = stamp_of(path);
        let old = self
            .before
            .as_ref()
            .and_then(|b| b.revoked.get(path))
            .filter(|(_, s)| s.is_some() && *s == stamp);
        let text = match old {
            Some((text, _)) => text.clone(),
            None => crate::config::load_inputs::read(path).ok()?.into(),
        };
        self.revoked
            .insert(path.to_path_buf(), (text.clone(), stamp));
        Some(text)
    }

    /// As [`authorities`].
    ///
    /// # Errors
    /// As [`authorities`].
    pub fn authorities(&mut self, path: &Path) -> Result<Chain, String> {
        if let Some((c, _)) = self.authorities.get(path) {
            return Ok(c.clone());
        }
        let stamp = stamp_of(path);
        let old = self
            .before
            .as_ref()
            .and_then(|b| b.authorities.get(path))
            .filter(|(_, s)| s.is_some() && *s == stamp);
        let c = match old {
            Some((c, _)) => c.clone(),
            None => authorities(path)?,
        };
        self.authorities
            .insert(path.to_path_buf(), (c.clone(), stamp));
        Ok(c)
    }
}

/// Whether what was loaded then is what would be loaded now.
fn same(name: &Name, then: Option<Stamp>, now: Option<Stamp>) -> bool {
    match name {
        Name::Path(_) => now.is_some() && then == now,
        Name::Data(_) => true,
        Name::Foreign(_) => false,
    }
}

/// `ssl_certificate_cache`: what names with variables have led to, for handshakes to come.
pub struct Cache {
    max: usize,
    valid: Duration,
    inactive: Duration,
    entries: Mutex<HashMap<Key, Entry>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Chain(Name),
    Key(Name),
}

struct Entry {
    value: Value,
    created: Instant,
    used: Instant,
    stamp: Option<Stamp>,
}

#[derive(Clone)]
enum Value {
    Chain(Chain),
    Key(PKey<Private>),
}

/// What tells one version of a file from another, as nginx does.
type Stamp = (i64, u64);

/// The same for files that are watched: also a file that is written in place within a second is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    modified: (i64, i64),
    inode: u64,
    size: u64,
}

impl Version {
    /// The present version of a regular file; `None` where there is none.
    pub fn of(path: &Path) -> Option<Version> {
        let m = std::fs::metadata(path).ok().filter(|m| m.is_file())?;
        Some(Version {
            modified: (m.mtime(), m.mtime_nsec()),
            inode: m.ino(),
            size: m.size(),
        })
    }
}

fn stamp(name: &Name) -> Option<Stamp> {
    match name {
        Name::Path(p) => stamp_of(p),
        _ => None,
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|m| (m.mtime(), m.ino()))
}

impl Cache {
    /// A cache of up to `max` objects.
    pub fn new(max: usize, valid: Duration, inactive: Duration) -> Cache {
        Cache {
            max,
            valid,
            inactive,
            entries: Mutex::default(),
        }
    }

    /// As [`chain`]; `fresh` loads the file again if it has changed, however recently it was looked at.
    ///
    /// # Errors
    /// As [`chain`].
    pub fn chain(&self, name: &Name, fresh: bool) -> Result<Chain, String> {
        match self.get(Key::Chain(name.clone()), name, fresh, || {
            chain(name).map(|c| (Value::Chain(c), true))
        })? {
            Value::Chain(c) => Ok(c),
            Value::Key(_) => chain(name),
        }
    }

    /// As [`key`]; a key that needed a password is not kept.
    ///
    /// # Errors
    /// As [`key`].
    pub fn key(
        &self,
        name: &Name,
        passwords: Option<&[Vec<u8>]>,
        fresh: bool,
    ) -> Result<PKey<Private>, String> {
        let load = || locked_key(name, passwords, true).map(|(k, locked)| (Value::Key(k), !locked));
        match self.get(Key::Key(name.clone()), name, fresh, load)? {
            Value::Key(k) => Ok(k),
            Value::Chain(_) => key(name, passwords, true),
        }
    }

    fn get(
        &self,
        key: Key,
        name: &Name,
        fresh: bool,
        load: impl FnOnce() -> Result<(Value, bool), String>,
    ) -> Result<Value, String> {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        if let Some(e) = entries.get_mut(&key) {
            let data = matches!(name, Name::Data(_));
            let recent = !fresh && now.duration_since(e.created) <= self.valid;
            if data || recent {
                e.used = now;
                return Ok(e.value.clone());
            }
            let stamp = stamp(name);
            if !fresh && stamp.is_some() && stamp == e.stamp {
                (e.created, e.used) = (now, now);
                return Ok(e.value.clone());
            }
            entries.remove(&key);
        }
        let stamp = stamp(name);
        let (value, keep) = load()?;
        if keep {
            entries.retain(|_, e| now.duration_since(e.used) <= self.inactive);
            while entries.len() >= self.max {
                let Some(oldest) = entries
                    .iter()
                    .min_by_key(|(_, e)| e.used)
                    .map(|(k, _)| k.clone())
                else {
                    break;
                };
                entries.remove(&oldest);
            }
            entries.insert(
                key,
                Entry {
                    value: value.clone(),
                    created: now,
                    used: now,
                    stamp,
                },
            );
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
