//! `proxy_pass`, and what is known of its target when the configuration is read.

use super::{Proxy, ProxyConf};
use crate::config::addr::{Address, parse_target};
use crate::contract::*;
use crate::features::upstream;
use std::sync::Arc;

/// One `proxy_pass`.
pub struct ProxyPass {
    /// The group, or a URL with variables.
    pub target: WrittenTarget,
    /// The URL as written; empty where it has variables.
    pub url: Box<[u8]>,
    /// The name of the location, which a URI in the URL replaces.
    pub location: Box<[u8]>,
    /// Whether `/name` is redirected to `/name/`.
    pub slash: bool,
    /// `proxy_temp_path` where none is given.
    pub temp_path: Arc<TempPath>,
}

/// The target of one `proxy_pass`.
pub enum WrittenTarget {
    /// Without variables.
    Static(GroupRef, Target),
    /// With variables.
    Dynamic(Template, GroupsRef),
}

impl ProxyPass {
    /// The target, where it has no variables.
    pub fn target(&self) -> Option<&Target> {
        match &self.target {
            WrittenTarget::Static(_, t) => Some(t),
            WrittenTarget::Dynamic(..) => None,
        }
    }
}

/// Splits the scheme from a URL: whether it asks for TLS, and the rest.
pub fn scheme(url: &[u8]) -> Option<(bool, &[u8])> {
    for (prefix, tls) in [(&b"http://"[..], false), (b"https://", true)] {
        if let Some((start, rest)) = url.split_at_checked(prefix.len())
            && start.eq_ignore_ascii_case(prefix)
        {
            return Some((tls, rest));
        }
    }
    None
}

/// Reads what follows the scheme.
///
/// # Errors
/// nginx's `invalid host in upstream "…"` and its kin.
pub fn target(rest: &[u8], tls: bool) -> Result<Target, String> {
    let default = if tls { 443 } else { 80 };
    let (address, uri) = parse_target(rest, default)
        .map_err(|e| format!("{e} in upstream \"{}\"", String::from_utf8_lossy(rest)))?;
    let (host, port) = match &address {
        Address::Unix(_) => (b"localhost".to_vec(), Vec::new()),
        Address::Inet(a) if a.port == default => {
            (a.host.as_bytes().to_vec(), default.to_string().into_bytes())
        }
        Address::Inet(a) => (
            format!("{}:{}", a.host, a.port).into_bytes(),
            a.port.to_string().into_bytes(),
        ),
    };
    Ok(Target {
        address,
        host,
        port,
        uri: uri.to_vec(),
        tls,
    })
}

pub(super) fn proxy_pass(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.to.is_some() {
        return Err(s.duplicate());
    }
    let temp_path = Arc::new(TempPath {
        path: b.prefixed("proxy_temp"),
        levels: vec![1, 2],
    });
    let (name, replaceable) = match b.kind() {
        BlockKind::Location(LocationName::Exact(n) | LocationName::Prefix(n, _)) => {
            (n.clone(), true)
        }
        _ => (Box::default(), false),
    };
    let slash = name.ends_with(b"/");
    let url = s.arg(0);
    let written = if url.contains(&b'$') {
        let target = WrittenTarget::Dynamic(b.template(s, 0)?, upstream::groups(b));
        ProxyPass {
            target,
            url: Box::default(),
            location: Box::default(),
            slash,
            temp_path,
        }
    } else {
        let Some((tls, rest)) = scheme(url) else {
            return Err(s.error_at(0, "invalid URL prefix"));
        };
        let target = target(rest, tls).map_err(|e| s.error_at(0, e))?;
        let group = upstream::group_for(b, s, &target.address)?;
        if !replaceable && !target.uri.is_empty() {
            return Err(s.error_at(
                0,
                "\"proxy_pass\" cannot have URI part in location given by regular expression, or inside named \
                 location, or inside \"if\" statement, or inside \"limit_except\" block",
            ));
        }
        ProxyPass {
            target: WrittenTarget::Static(group, target),
            url: url.into(),
            location: name,
            slash,
            temp_path,
        }
    };
    c.to = Some(Arc::new(written));
    crate::features::pass::shield::<Proxy>(b);
    Ok(())
}
