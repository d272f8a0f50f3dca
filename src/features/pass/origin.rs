//! `…_pass` of the protocols that have no URL of their own: an address, or the name of an `upstream`.

use crate::config::addr::{Address, parse_server};
use crate::contract::*;
use crate::features::upstream;
use std::sync::Arc;

/// One `fastcgi_pass`, `uwsgi_pass`, `scgi_pass` or `memcached_pass`.
pub struct Origin {
    to: To,
    /// The host as written, without a port: the name that TLS verifies; empty where it has variables.
    pub name: Box<[u8]>,
    /// Whether `/name` is redirected to `/name/`.
    pub slash: bool,
    /// Where responses wait if no `…_temp_path` is given.
    pub temp_path: Arc<TempPath>,
    /// The value of HTTP_HOST where no `…_param` sets it.
    pub host: Template,
}

enum To {
    Group(GroupRef, bool),
    Dynamic(Template, GroupsRef),
}

/// Schemes that may stand before an address, and whether they ask for TLS.
pub type Schemes = &'static [(&'static str, bool)];

impl Origin {
    /// Reads the directive `prefix_pass`.
    ///
    /// # Errors
    /// nginx's texts for addresses.
    pub fn read(
        s: &Statement,
        b: &mut Build,
        prefix: &str,
        schemes: Schemes,
    ) -> ConfResult<Origin> {
        Origin::of(s, b, prefix, schemes, s.arg(0))
    }

    /// The same for a target that the directive does not spell out (`tunnel_pass` without a parameter).
    ///
    /// # Errors
    /// As [`Origin::read`].
    pub fn of(
        s: &Statement,
        b: &mut Build,
        prefix: &str,
        schemes: Schemes,
        text: &[u8],
    ) -> ConfResult<Origin> {
        let temp_path = Arc::new(TempPath {
            path: b.prefixed(&format!("{prefix}_temp")),
            levels: vec![1, 2],
        });
        let slash = match b.kind() {
            BlockKind::Location(LocationName::Exact(n) | LocationName::Prefix(n, _)) => {
                n.ends_with(b"/")
            }
            _ => false,
        };
        let mut name = Box::default();
        let to = if text.contains(&b'$') {
            To::Dynamic(b.template_of(s, text)?, upstream::groups(b))
        } else {
            let target = target(text, schemes).map_err(|e| s.error_at(0, e))?;
            name = match &target.address {
                Address::Inet(a) => a.host.as_bytes().into(),
                Address::Unix(_) => (*b"localhost").into(),
            };
            To::Group(upstream::group_for(b, s, &target.address)?, target.tls)
        };
        let host = b.template_of(s, b"$host$is_request_port$request_port")?;
        Ok(Origin {
            to,
            name,
            slash,
            temp_path,
            host,
        })
    }

    /// The target, for a [`Pass`].
    pub fn target(&self) -> PassTarget {
        match &self.to {
            To::Group(group, tls) => PassTarget::Group(group.clone(), *tls),
            To::Dynamic(url, groups) => PassTarget::Dynamic(url.clone(), groups.clone()),
        }
    }

    /// Whether TLS is or may be spoken.
    pub fn may_use_tls(&self) -> bool {
        !matches!(self.to, To::Group(_, false))
    }
}

/// Reads an address with one of these schemes, or without any.
///
/// # Errors
/// nginx's `… in upstream "…"`.
pub fn target(url: &[u8], schemes: Schemes) -> Result<Target, String> {
    let with = schemes.iter().find_map(|(scheme, tls)| {
        let (start, rest) = url.split_at_checked(scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme.as_bytes())
            .then_some((rest, *tls))
    });
    let (rest, tls) = with.unwrap_or((url, false));
    let address = parse_server(rest, 0)
        .map_err(|e| format!("{e} in upstream \"{}\"", String::from_utf8_lossy(rest)))?;
    Ok(Target {
        address,
        host: rest.to_vec(),
        port: Vec::new(),
        uri: Vec::new(),
        tls,
    })
}
