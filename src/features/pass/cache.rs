//! `…_cache` and its kin, as written, for every prefix.

use super::set::bits;
use crate::cache::{CachePath, DEFAULT_MEMORY, Params, PathsRef, Zone};
use crate::config::value;
use crate::contract::*;
use crate::features::zones::{self, ZoneRef};
use crate::http::method::Method;
use crate::inherit;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What the cache directives of one prefix wrote in one block.
#[derive(Default, Clone)]
pub struct CacheWritten {
    /// `…_cache`; none inside where it is `off`.
    pub choice: Option<Option<(CacheChoice, PathsRef)>>,
    /// `…_cache_key`.
    pub key: Option<Template>,
    /// `…_cache_valid`: status (0 is any) and seconds.
    pub valid: Option<Vec<(u16, i64)>>,
    /// `…_cache_methods`, bits.
    pub methods: Option<u32>,
    /// `…_cache_min_uses`.
    pub min_uses: Option<u64>,
    /// `…_cache_bypass`.
    pub bypass: Option<Vec<Template>>,
    /// `…_no_cache`.
    pub no_cache: Option<Vec<Template>>,
    /// `…_cache_lock`.
    pub lock: Option<bool>,
    /// `…_cache_lock_timeout`, milliseconds.
    pub lock_timeout: Option<u64>,
    /// `…_cache_lock_age`, milliseconds.
    pub lock_age: Option<u64>,
    /// `…_cache_lock_stream`.
    pub lock_stream: Option<bool>,
    /// `…_cache_use_stale`: bits of [`next`].
    pub use_stale: Option<u32>,
    /// `…_cache_background_update`.
    pub background_update: Option<bool>,
    /// `…_cache_revalidate`.
    pub revalidate: Option<bool>,
    /// `…_cache_convert_head`.
    pub convert_head: Option<bool>,
    /// `…_cache_max_range_offset`, bytes.
    pub max_range_offset: Option<u64>,
    /// `…_cache_purge`.
    pub purge: Option<Vec<Template>>,
    /// `…_cache_purge_soft`.
    pub purge_soft: Option<Vec<Template>>,
    /// `…_cache_purge_tags`.
    pub purge_tags: Option<Template>,
    /// `…_cache_tag`.
    pub tag: Option<Template>,
    /// `…_cache_rfc9111`.
    pub rfc9111: Option<bool>,
}

impl Conf for CacheWritten {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; choice, key, valid, methods, min_uses, bypass, no_cache, lock, lock_timeout, lock_age, lock_stream,
            use_stale, background_update, revalidate, convert_head, max_range_offset, purge, purge_soft, purge_tags,
            tag, rfc9111);
    }
}

/// `…_cache_methods`.
pub const METHODS: &[(&str, u32)] = &[
    ("GET", 1 << Method::Get as u8),
    ("HEAD", 1 << Method::Head as u8),
    ("POST", 1 << Method::Post as u8),
];

impl CacheWritten {
    /// Whether responses are cached here.
    pub fn is_on(&self) -> bool {
        matches!(self.choice, Some(Some(_)))
    }

    /// Whether responses are to be cached, and no key has been given.
    pub fn lacks_key(&self) -> bool {
        self.is_on() && self.key.is_none()
    }

    /// The settings, where responses are cached.
    pub fn settings(&self) -> Option<Arc<CacheSettings>> {
        let (choice, paths) = self.choice.as_ref()?.as_ref()?;
        let list = |l: &Option<Vec<Template>>| l.as_deref().unwrap_or_default().into();
        let use_stale = match self.use_stale.unwrap_or(0) {
            bits if bits & next::OFF != 0 => 0,
            bits => bits,
        };
        Some(Arc::new(CacheSettings {
            choice: choice.clone(),
            paths: paths.clone(),
            key: self.key.clone(),
            valid: self.valid.as_deref().unwrap_or_default().into(),
            methods: self.methods.unwrap_or(0) | Method::Get.bit() | Method::Head.bit(),
            min_uses: u32::try_from(self.min_uses.unwrap_or(1)).unwrap_or(u32::MAX),
            bypass: list(&self.bypass),
            no_cache: list(&self.no_cache),
            lock: self.lock.unwrap_or(false),
            lock_timeout: self.lock_timeout.unwrap_or(5000),
            lock_age: self.lock_age.unwrap_or(5000),
            lock_stream: self.lock_stream.unwrap_or(true),
            use_stale,
            background_update: self.background_update.unwrap_or(false),
            revalidate: self.revalidate.unwrap_or(false),
            convert_head: self.convert_head.unwrap_or(false),
            max_range_offset: self.max_range_offset,
            purge: self.purge.as_ref().map(|when| CachePurge {
                when: when.as_slice().into(),
                soft: self.purge_soft.as_deref().map(Into::into),
                tags: self.purge_tags.clone(),
            }),
            tag: self.tag.clone(),
            rfc9111: self.rfc9111.unwrap_or(false),
        }))
    }
}

/// The zones of one prefix while the configuration is read.
struct Caches {
    paths: PathsRef,
    declared: Vec<Declared>,
    wanted: Vec<Wanted>,
    /// Whether objects are purged by key or tag.
    named: bool,
}

/// One `…_cache_path`.
struct Declared {
    name: String,
    root: PathBuf,
    levels: Vec<u8>,
    params: Params,
    cell: ZoneRef<CachePath>,
    at: Statement,
}

/// One `…_cache` that names a zone.
struct Wanted {
    name: String,
    cell: Arc<OnceLock<Arc<CachePath>>>,
    at: Statement,
}

/// The zones of every prefix.
#[derive(Default)]
struct Prefixes(HashMap<&'static str, Caches>);

/// The zones of the directive's own prefix; what is left to do is done when all has been read.
fn caches<'b>(b: &'b mut Build, prefix: &'static str) -> &'b mut Caches {
    if !b.shared::<Prefixes>().0.contains_key(prefix) {
        b.at_end(move |b| match b.shared::<Prefixes>().0.remove(prefix) {
            Some(mut caches) => {
                // who may change the state may purge by prefix and tag
                caches.named |= b.shared::<crate::features::api::Writable>().0;
                caches.finish(b)
            }
            None => Ok(()),
        });
    }
    b.shared::<Prefixes>()
        .0
        .entry(prefix)
        .or_insert_with(|| Caches {
            paths: PathsRef::default(),
            declared: Vec::new(),
            wanted: Vec::new(),
            named: false,
        })
}

impl Caches {
    fn finish(self, b: &Build) -> ConfResult<()> {
        let mut list = Vec::new();
        for d in self.declared {
            let zone = zones::keep::<Zone>(
                "cache",
                &d.name,
                |_| true,
                || Zone::new(&d.name, &d.root, &d.levels),
            );
            if zone.root != d.root {
                return Err(Diag::plain(format!(
                    "cache \"{}\" uses the \"{}\" cache path while previously it used the \"{}\" cache path",
                    d.name,
                    d.root.display(),
                    zone.root.display()
                )));
            }
            if zone.levels != d.levels {
                return Err(Diag::plain(format!(
                    "cache \"{}\" had previously different levels",
                    d.name
                )));
            }
            let path = Arc::new(CachePath {
                name: d.name,
                params: Params {
                    named: self.named,
                    ..d.params
                },
                zone,
            });
            let _ = d.cell.set(path.clone());
            list.push(path);
        }
        for w in self.wanted {
            match list.iter().find(|p| p.name == w.name) {
                Some(p) => {
                    let _ = w.cell.set(p.clone());
                }
                None => {
                    let (directive, name) = (w.at.name().to_owned(), w.name);
                    let text = format!("\"{directive}\" zone \"{name}\" is unknown");
                    return Err(b.at_merge(w.at.error(text)));
                }
            }
        }
        let _ = self.paths.set(list);
        Ok(())
    }
}

/// `…_cache`.
///
/// # Errors
/// `"…" directive is duplicate`, and what is wrong with the variables.
pub fn off_or_zone(
    c: &mut CacheWritten,
    s: &Statement,
    b: &mut Build,
    prefix: &'static str,
) -> ConfResult<()> {
    if c.choice.is_some() {
        return Err(s.duplicate());
    }
    if s.arg(0) == b"off" {
        c.choice = Some(None);
        return Ok(());
    }
    let template = b.template(s, 0)?;
    let caches = caches(b, prefix);
    let paths = caches.paths.clone();
    let choice = match template.as_literal() {
        None => CacheChoice::Dynamic(template),
        Some(name) => {
            let cell = Arc::<OnceLock<_>>::default();
            caches.wanted.push(Wanted {
                name: String::from_utf8_lossy(name).into_owned(),
                cell: cell.clone(),
                at: s.clone(),
            });
            CacheChoice::Fixed(cell)
        }
    };
    c.choice = Some(Some((choice, paths)));
    Ok(())
}

/// `…_cache_valid`.
///
/// # Errors
/// nginx's `invalid time value "…"` and `invalid status "…"`.
pub fn valid(c: &mut CacheWritten, s: &Statement) -> ConfResult<()> {
    let last = s.len().saturating_sub(1);
    let shown = |i: usize| String::from_utf8_lossy(s.arg(i)).into_owned();
    let time = value::parse_time_sec(s.arg(last))
        .ok_or_else(|| s.error_at(last, format!("invalid time value \"{}\"", shown(last))))?;
    let time = i64::try_from(time).unwrap_or(i64::MAX);
    let list = c.valid.get_or_insert_default();
    if last == 0 {
        list.extend([200, 301, 302].map(|status| (status, time)));
        return Ok(());
    }
    for i in 0..last {
        let status = match s.arg(i) {
            b"any" => 0,
            text => value::parse_number(text)
                .and_then(|n| u16::try_from(n).ok())
                .filter(|n| (100..=599).contains(n))
                .ok_or_else(|| s.error_at(i, format!("invalid status \"{}\"", shown(i))))?,
        };
        list.push((status, time));
    }
    Ok(())
}

/// A list of texts of which one that is neither empty nor `0` decides.
///
/// # Errors
/// What is wrong with the variables.
pub fn predicate(slot: &mut Option<Vec<Template>>, s: &Statement, b: &mut Build) -> ConfResult<()> {
    for i in 0..s.len() {
        let t = b.template(s, i)?;
        slot.get_or_insert_default().push(t);
    }
    Ok(())
}

/// `…_cache_purge` and `…_cache_tag`: objects can be found by key and tag from now on.
pub fn named(b: &mut Build, prefix: &'static str) {
    caches(b, prefix).named = true;
}

/// `…_cache_methods`.
///
/// # Errors
/// nginx's `invalid value "…"`.
pub fn methods(c: &mut CacheWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    bits(&mut c.methods, s, b, METHODS)
}

/// `…_cache_path`.
///
/// # Errors
/// nginx's texts.
pub fn path(
    s: &Statement,
    b: &mut Build,
    prefix: &'static str,
    kind: &'static str,
) -> ConfResult<()> {
    let text = s.str(0)?;
    let root = b.prefixed(text.strip_suffix('/').unwrap_or(text));
    let mut levels = Vec::new();
    let mut zone = None;
    let mut params = Params {
        memory: DEFAULT_MEMORY,
        ..Params::default()
    };
    for i in 1..s.len() {
        let word = s.str(i)?;
        let Some((name, v)) = word.split_once('=') else {
            return Err(s.invalid_parameter(i));
        };
        let v = v.as_bytes();
        let invalid = || s.error_at(i, format!("invalid {name} value \"{word}\""));
        let msec = || value::parse_time_ms(v).ok_or_else(invalid);
        let number = || value::parse_number(v).ok_or_else(invalid);
        match name {
            "levels" => {
                levels = parse_levels(v)
                    .ok_or_else(|| s.error_at(i, format!("invalid \"levels\" \"{word}\"")))?;
            }
            "use_temp_path" => {
                params.use_temp_path = match v {
                    b"on" => true,
                    b"off" => false,
                    _ => {
                        return Err(s.error_at(
                            i,
                            format!(
                                "invalid use_temp_path value \"{word}\", it must be \"on\" or \"off\""
                            ),
                        ));
                    }
                }
            }
            "keys_zone" => {
                let bad = || s.error_at(i, format!("invalid keys zone size \"{word}\""));
                let (name, size) = word
                    .strip_prefix("keys_zone=")
                    .and_then(|w| w.split_once(':'))
                    .ok_or_else(bad)?;
                let size = value::parse_size(size.as_bytes()).ok_or_else(bad)?;
                if size < 2 * 4096 {
                    return Err(s.error_at(i, format!("keys zone \"{word}\" is too small")));
                }
                zone = Some((name.to_owned(), size));
            }
            "inactive" => {
                let n = value::parse_time_sec(v).ok_or_else(invalid)?;
                params.inactive = i64::try_from(n).unwrap_or(i64::MAX / 2);
            }
            "max_size" => params.max_size = value::parse_offset(v).ok_or_else(invalid)?,
            "min_free" => params.min_free = value::parse_offset(v).ok_or_else(invalid)?,
            "memory" => {
                let n = value::parse_size(v).ok_or_else(invalid)?;
                params.memory = usize::try_from(n).map_err(|_| invalid())?;
            }
            "loader_files" => params.loader.files = number()?,
            "loader_sleep" => params.loader.sleep = msec()?,
            "loader_threshold" => params.loader.threshold = msec()?,
            "manager_files" => params.manager.files = number()?,
            "manager_sleep" => params.manager.sleep = msec()?,
            "manager_threshold" => params.manager.threshold = msec()?,
            _ => return Err(s.invalid_parameter(i)),
        }
    }
    let Some((name, size)) = zone.filter(|(name, size)| !name.is_empty() && *size > 0) else {
        return Err(s.error(format!("\"{kind}\" must have \"keys_zone\" parameter")));
    };
    params.keys = keys(size);
    crate::features::api::add_endpoint(b, super::cache_api::Caches);
    crate::features::metrics::add_source(b, super::cache_api::Caches);
    let at = caches(b, prefix);
    if let Some(d) = at.declared.iter().find(|d| d.root == root) {
        let place = d.at.place();
        return Err(s.error(format!(
            "the same path name \"{}\" used in {place} and",
            root.display()
        )));
    }
    if at.declared.iter().any(|d| d.name == name) {
        return Err(s.error(format!("duplicate zone \"{name}\"")));
    }
    let cell = zones::declare::<CachePath>(b, s, kind, &name, size)?;
    caches(b, prefix).declared.push(Declared {
        name,
        root,
        levels,
        params,
        cell,
        at: s.clone(),
    });
    Ok(())
}

/// `levels=1:2`: up to three numbers, each 1 or 2.
fn parse_levels(text: &[u8]) -> Option<Vec<u8>> {
    let list: Option<Vec<u8>> = text
        .split(|b| *b == b':')
        .map(|n| match n {
            b"1" => Some(1),
            b"2" => Some(2),
            _ => None,
        })
        .collect();
    list.filter(|l| l.len() <= 3)
}

/// How many keys a zone of this size holds: nginx's nodes take 128 bytes, and the zone's own needs come first.
fn keys(size: u64) -> usize {
    let pages = zones::usable(size) / 4096;
    (pages.saturating_sub(1).max(1) as usize).saturating_mul(4096 / 128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_nginxs() {
        assert_eq!(parse_levels(b"1:2"), Some(vec![1, 2]));
        assert_eq!(parse_levels(b"2:2:1"), Some(vec![2, 2, 1]));
        for bad in [&b""[..], b"3", b"1:", b"1:2:1:2", b"1:2:", b":1", b"12"] {
            assert_eq!(parse_levels(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_megabyte_holds_some_eight_thousand_keys() {
        assert!((7800..8192).contains(&keys(1 << 20)), "{}", keys(1 << 20));
        assert!(keys(8192) > 0);
    }
}
