//! Certificates and keys from files, `data:` and, at run time, a cache of them.

use super::error;
use super::ffi::{self, Source};
use parking_lot::Mutex;
use pingora::tls::pkey::{PKey, Private};
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
                Err(format!("loading \"{kind}:...\" certificate keys is not supported"))
            }
        }
    }
}

/// Loads a certificate with its chain.
///
/// # Errors
/// nginx's text.
pub fn chain(name: &Name) -> Result<Chain, String> {
    let failed = |call: &str| error::failure(format!("cannot load certificate \"{}\": {call}", name.shown()));
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
pub fn key(name: &Name, passwords: Option<&[Vec<u8>]>, quiet: bool) -> Result<PKey<Private>, String> {
    let failed = |call: &str| error::failure(format!("cannot load certificate key \"{}\": {call}", name.shown()));
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
    list.map(Into::into).map_err(|call| error::failure(format!("cannot load certificate \"{}\": {call}", path.display())))
}

/// Remembers what one configuration has loaded: thousands of servers may share a certificate.
#[derive(Default)]
pub struct Loader {
    chains: HashMap<Name, Chain>,
    keys: HashMap<Name, PKey<Private>>,
    authorities: HashMap<PathBuf, Chain>,
}

impl Loader {
    /// As [`chain`].
    ///
    /// # Errors
    /// As [`chain`].
    pub fn chain(&mut self, name: &Name) -> Result<Chain, String> {
        if let Some(c) = self.chains.get(name) {
            return Ok(c.clone());
        }
        let c = chain(name)?;
        self.chains.insert(name.clone(), c.clone());
        Ok(c)
    }

    /// As [`key`]; keys that may need a password are not remembered.
    ///
    /// # Errors
    /// As [`key`].
    pub fn key(&mut self, name: &Name, passwords: Option<&[Vec<u8>]>) -> Result<PKey<Private>, String> {
        if let Some(k) = self.keys.get(name).filter(|_| passwords.is_none()) {
            return Ok(k.clone());
        }
        let k = key(name, passwords, false)?;
        if passwords.is_none() {
            self.keys.insert(name.clone(), k.clone());
        }
        Ok(k)
    }

    /// As [`authorities`].
    ///
    /// # Errors
    /// As [`authorities`].
    pub fn authorities(&mut self, path: &Path) -> Result<Chain, String> {
        if let Some(c) = self.authorities.get(path) {
            return Ok(c.clone());
        }
        let c = authorities(path)?;
        self.authorities.insert(path.to_path_buf(), c.clone());
        Ok(c)
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

/// What tells one version of a file from another.
type Stamp = (i64, u64);

fn stamp(name: &Name) -> Option<Stamp> {
    match name {
        Name::Path(p) => std::fs::metadata(p).ok().map(|m| (m.mtime(), m.ino())),
        _ => None,
    }
}

impl Cache {
    /// A cache of up to `max` objects.
    pub fn new(max: usize, valid: Duration, inactive: Duration) -> Cache {
        Cache { max, valid, inactive, entries: Mutex::default() }
    }

    /// As [`chain`]; `fresh` loads the file again if it has changed, however recently it was looked at.
    ///
    /// # Errors
    /// As [`chain`].
    pub fn chain(&self, name: &Name, fresh: bool) -> Result<Chain, String> {
        match self.get(Key::Chain(name.clone()), name, fresh, || chain(name).map(|c| (Value::Chain(c), true)))? {
            Value::Chain(c) => Ok(c),
            Value::Key(_) => chain(name),
        }
    }

    /// As [`key`]; a key that needed a password is not kept.
    ///
    /// # Errors
    /// As [`key`].
    pub fn key(&self, name: &Name, passwords: Option<&[Vec<u8>]>, fresh: bool) -> Result<PKey<Private>, String> {
        let load = || key(name, passwords, true).map(|k| (Value::Key(k), passwords.is_none_or(<[_]>::is_empty)));
        match self.get(Key::Key(name.clone()), name, fresh, load)? {
            Value::Key(k) => Ok(k),
            Value::Chain(_) => key(name, passwords, true),
        }
    }

    fn get(&self, key: Key, name: &Name, fresh: bool, load: impl FnOnce() -> Result<(Value, bool), String>) -> Result<Value, String> {
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
                let Some(oldest) = entries.iter().min_by_key(|(_, e)| e.used).map(|(k, _)| k.clone()) else { break };
                entries.remove(&oldest);
            }
            entries.insert(key, Entry { value: value.clone(), created: now, used: now, stamp });
        }
        Ok(value)
    }
}
