//! Directives whose words take more than one line to read.

use super::HttpDirectives;
use crate::config::Result;
use crate::contract::*;
use crate::files::FileCache;
use std::collections::HashMap;
use std::sync::Arc;

/// A size that may have variables; without them it is checked at load.
pub(super) fn size_template(s: &Statement, b: &mut Build) -> Result<Template> {
    let t = b.template(s, 0)?;
    if t.as_literal().is_some() {
        s.size(0)?;
    }
    Ok(t)
}

/// `off|max=number [inactive=time]`.
pub(super) fn file_cache(s: &Statement) -> Result<Option<Arc<FileCache>>> {
    let (mut off, mut max, mut inactive) = (false, None, 60);
    for i in 0..s.len() {
        let arg = s.arg(i);
        let refused = || {
            let word = String::from_utf8_lossy(arg);
            s.error_at(
                i,
                format!("invalid \"open_file_cache\" parameter \"{word}\""),
            )
        };
        if let Some(n) = arg.strip_prefix(b"max=") {
            let n = std::str::from_utf8(n).ok().and_then(|n| n.parse().ok());
            max = Some(n.filter(|n| *n > 0).ok_or_else(refused)?);
        } else if let Some(time) = arg.strip_prefix(b"inactive=") {
            inactive = crate::config::value::parse_time_sec(time).ok_or_else(refused)?;
        } else if arg == b"off" {
            off = true;
        } else {
            return Err(refused());
        }
    }
    match (off, max) {
        (true, _) => Ok(None),
        (false, Some(max)) => Ok(Some(Arc::new(FileCache::new(max, inactive)))),
        (false, None) => Err(s.error("\"open_file_cache\" must have the \"max\" parameter")),
    }
}

/// `path [level1 [level2 [level3]]]`, relative to the prefix.
pub fn temp_path(s: &Statement, b: &Build) -> Result<Arc<TempPath>> {
    let mut levels = Vec::new();
    for i in 1..s.len() {
        match s.number(i) {
            Ok(n @ 1..=10) => levels.push(n as u8),
            _ => return Err(s.directive_error(i, "invalid value")),
        }
    }
    // a digest has no more digits to spare
    if levels.iter().map(|n| u32::from(*n)).sum::<u32>() > 10 {
        return Err(s.directive_error(0, "invalid value"));
    }
    Ok(Arc::new(TempPath {
        path: b.prefixed(s.str(0)?),
        levels,
    }))
}

/// `resolver address … [valid=time] [ipv4=on|off] [ipv6=on|off] [status_zone=zone]`.
pub(crate) fn resolver(s: &Statement) -> Result<crate::dns::ResolverConf> {
    use crate::config::addr::{Address, parse_server};
    let mut conf = crate::dns::ResolverConf::new(Vec::new());
    for i in 0..s.len() {
        let word = s.str(i)?;
        let switch = |v: &str| match v {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(s.error_at(i, format!("invalid parameter: {word}"))),
        };
        match word.split_once('=') {
            Some(("valid", v)) => match crate::config::value::parse_time_sec(v.as_bytes()) {
                Some(n) => conf.valid = Some(std::time::Duration::from_secs(n)),
                None => return Err(s.error_at(i, format!("invalid parameter: {word}"))),
            },
            Some(("ipv4", v)) => conf.ipv4 = switch(v)?,
            Some(("ipv6", v)) => conf.ipv6 = switch(v)?,
            Some(("status_zone", _)) => {
                return Err(s.error_at(i, "the \"status_zone\" parameter is not supported"));
            }
            _ => match parse_server(s.arg(i), 53) {
                Ok(Address::Inet(a)) => match a.ip {
                    Some(ip) => conf.servers.push(std::net::SocketAddr::new(ip, a.port)),
                    None => match crate::dns::resolve_at_load(&a.host, a.port) {
                        Ok(list) => conf.servers.extend(list),
                        Err(_) => {
                            return Err(
                                s.error_at(i, format!("host not found in resolver \"{word}\""))
                            );
                        }
                    },
                },
                Ok(Address::Unix(_)) => {
                    return Err(s.error_at(i, format!("no port in resolver \"{word}\"")));
                }
                Err(e) => return Err(s.error_at(i, format!("{e} in resolver \"{word}\""))),
            },
        }
    }
    if conf.servers.is_empty() {
        return Err(s.error("no name servers defined"));
    }
    if !conf.ipv4 && !conf.ipv6 {
        return Err(s.error("\"ipv4\" and \"ipv6\" cannot both be \"off\""));
    }
    Ok(conf)
}

pub(super) fn types(c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    let mut table: HashMap<Box<[u8]>, Arc<[u8]>> =
        c.types.take().map(|t| (*t).clone()).unwrap_or_default();
    for item in s.items() {
        if item.block.is_some() {
            return Err(item.unexpected_block());
        }
        let kind: Arc<[u8]> = item.name.text.as_ref().into();
        for ext in &item.args {
            let ext: Box<[u8]> = ext.text.to_ascii_lowercase().into();
            if let Some(old) = table.insert(ext.clone(), kind.clone()) {
                let text = format!(
                    "duplicate extension \"{}\", content type: \"{}\", previous content type: \"{}\"",
                    String::from_utf8_lossy(&ext),
                    String::from_utf8_lossy(&kind),
                    String::from_utf8_lossy(&old)
                );
                b.warn(item.warn(text));
            }
        }
    }
    c.types = Some(Arc::new(table));
    Ok(())
}
