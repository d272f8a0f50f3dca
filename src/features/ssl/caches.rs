//! Caches of certificates, sessions and OCSP answers, and files of passwords, as directives name them.

use super::{Builtin, SslConf};
use crate::config::value;
use crate::contract::once;
use crate::contract::*;
use crate::tls::load::Cache;
use crate::tls::ocsp;
use crate::tls::session::Zone;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn certificate_cache(c: &mut SslConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if c.cache.is_some() {
        return Err(s.duplicate());
    }
    c.cache = Some(cache(s)?);
    Ok(())
}

/// The parameters of `ssl_certificate_cache` and its kin; none inside where it is `off`.
///
/// # Errors
/// nginx's texts.
pub fn cache(s: &Statement) -> ConfResult<Option<Arc<Cache>>> {
    let (mut max, mut inactive, mut valid, mut off) = (0, 10, 60, false);
    for i in 0..s.len() {
        let word = s.arg(i);
        let bad = || s.invalid_parameter(i);
        if let Some(n) = word.strip_prefix(b"max=") {
            max = value::parse_number(n).filter(|n| *n > 0).ok_or_else(bad)?;
        } else if let Some(t) = word.strip_prefix(b"inactive=") {
            inactive = value::parse_time_sec(t).ok_or_else(bad)?;
        } else if let Some(t) = word.strip_prefix(b"valid=") {
            valid = value::parse_time_sec(t).ok_or_else(bad)?;
        } else if word == b"off" {
            off = true;
        } else {
            return Err(bad());
        }
    }
    if off {
        return Ok(None);
    }
    if max == 0 {
        let name = s.name();
        return Err(s.error(format!("\"{name}\" must have the \"max\" parameter")));
    }
    let (valid, inactive) = (Duration::from_secs(valid), Duration::from_secs(inactive));
    Ok(Some(Arc::new(Cache::new(max as usize, valid, inactive))))
}

pub(super) fn password_file(c: &mut SslConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    once(&mut c.passwords, s, passwords(s, b)?)
}

/// The lines of `ssl_password_file` and its kin.
///
/// # Errors
/// nginx's text.
pub fn passwords(s: &Statement, b: &mut Build) -> ConfResult<Arc<Vec<Vec<u8>>>> {
    let path = b.conf_prefixed(s.str(0)?);
    let text = crate::config::load_inputs::read(&path).map_err(|e| {
        let errno = crate::log::Errno::of(&e);
        s.error_at(0, format!("open() \"{}\" failed{errno}", path.display()))
    })?;
    let lines = text
        .split(|c| *c == b'\n')
        .map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let list = lines
        .filter(|l| !l.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    Ok(Arc::new(list))
}

/// Sizes of zones by name: a name stands for one zone wherever it is written.
#[derive(Default)]
struct Zones(HashMap<String, usize>);

pub(super) fn session_cache(c: &mut SslConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    for i in 0..s.len() {
        let word = s.str(i)?;
        match word {
            "off" => c.builtin = Some(Builtin::Off),
            "none" => c.builtin = Some(Builtin::None),
            "builtin" => c.builtin = Some(Builtin::Size(None)),
            _ => {
                let invalid = || s.error_at(i, format!("invalid session cache \"{word}\""));
                if let Some(n) = word.strip_prefix("builtin:") {
                    let n = value::parse_number(n.as_bytes()).and_then(|n| i32::try_from(n).ok());
                    c.builtin = Some(Builtin::Size(Some(n.ok_or_else(invalid)?)));
                } else {
                    let (name, size) = zone(word).ok_or_else(invalid)?;
                    if size < 8 * PAGE {
                        return Err(s.error_at(i, format!("session cache \"{word}\" is too small")));
                    }
                    let known = *b.shared::<Zones>().0.entry(name.to_owned()).or_insert(size);
                    if known != size {
                        return Err(s.error_at(i, format!("the size {size} of shared memory zone \"{name}\" conflicts with already declared size {known}")));
                    }
                    c.zone = Some(Zone::named(name, size));
                }
            }
        }
    }
    if c.zone.is_some() {
        c.builtin.get_or_insert(Builtin::Unused);
    }
    Ok(())
}

/// nginx's ngx_pagesize where it matters: the smallest zone is eight pages.
const PAGE: usize = 4096;

/// `shared:name:size`.
fn zone(word: &str) -> Option<(&str, usize)> {
    let (name, size) = word.strip_prefix("shared:")?.split_once(':')?;
    let size = value::parse_size(size.as_bytes())?;
    (!name.is_empty()).then_some((name, size as usize))
}

pub(super) fn ocsp_cache(c: &mut SslConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let word = s.str(0)?;
    if word == "off" {
        return once(&mut c.ocsp_cache, s, None);
    }
    let (name, size) =
        zone(word).ok_or_else(|| s.error_at(0, format!("invalid OCSP cache \"{word}\"")))?;
    if size < 8 * PAGE {
        return Err(s.error_at(0, format!("OCSP cache \"{word}\" is too small")));
    }
    let known = *b
        .shared::<OcspZones>()
        .0
        .entry(name.to_owned())
        .or_insert(size);
    if known != size {
        return Err(s.error_at(0, format!("the size {size} of shared memory zone \"{name}\" conflicts with already declared size {known}")));
    }
    once(&mut c.ocsp_cache, s, Some(ocsp::Cache::named(name, size)))
}

/// As [`Zones`], of answers of responders.
#[derive(Default)]
struct OcspZones(HashMap<String, usize>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones() {
        assert_eq!(zone("shared:SSL:1m"), Some(("SSL", 1 << 20)));
        for bad in [
            "shared:SSL",
            "shared::1m",
            "shared:SSL:x",
            "share:SSL:1m",
            "shared:SSL:",
        ] {
            assert_eq!(zone(bad), None, "{bad}");
        }
    }
}
