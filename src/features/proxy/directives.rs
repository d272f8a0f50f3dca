//! Setters of the `proxy_*` directives.

use super::cookies::FlagsRule;
use super::redirect::{Match, Rule, default_rule};
use super::{HttpVersion, ProxyConf, Rewriting};
use crate::contract::once;
use crate::contract::*;
use crate::upstream::proxy_header::ProxyHeader;

pub(super) fn set_header(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let value = b.head_template(s, 1)?;
    check_header_name(s, 0)?;
    c.headers
        .get_or_insert_default()
        .push((s.arg(0).into(), value));
    Ok(())
}

/// `proxy_protocol`.
pub(super) fn proxy_protocol(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    const FORMS: &[(&str, Option<ProxyHeader>)] = &[
        ("off", None),
        ("on", Some(ProxyHeader::V1)),
        ("v1", Some(ProxyHeader::V1)),
        ("v2", Some(ProxyHeader::V2)),
    ];
    once(&mut c.proxy_protocol, s, s.one_of(0, FORMS)?)
}

pub(super) fn http_version(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    let versions = [
        ("1.0", HttpVersion::V10),
        ("1.1", HttpVersion::V11),
        ("2", HttpVersion::V2),
    ];
    once(&mut c.version, s, s.one_of(0, &versions)?)
}

pub(super) fn redirect(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if off(&mut c.redirects, s)? {
        return Ok(());
    }
    if s.len() == 1 {
        if s.arg(0) != b"default" {
            return Err(s.invalid_parameter(0));
        }
        let Some(pass) = &c.to else {
            return Err(s.error(
                "\"proxy_redirect default\" should be placed after the \"proxy_pass\" directive",
            ));
        };
        let Some(target) = pass.target() else {
            return Err(s.error("\"proxy_redirect default\" cannot be used with \"proxy_pass\" directive with variables"));
        };
        let rule = default_rule(pass, target);
        push(&mut c.redirects, rule);
        return Ok(());
    }
    let rule = Rule {
        directive: "proxy_redirect",
        from: path_pattern(s, b)?,
        to: b.head_template(s, 1)?,
    };
    push(&mut c.redirects, rule);
    Ok(())
}

pub(super) fn cookie_path(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if off(&mut c.cookie_paths, s)? {
        return Ok(());
    }
    two(s)?;
    let rule = Rule {
        directive: "proxy_cookie_path",
        from: path_pattern(s, b)?,
        to: b.head_template(s, 1)?,
    };
    push(&mut c.cookie_paths, rule);
    Ok(())
}

pub(super) fn cookie_domain(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if off(&mut c.cookie_domains, s)? {
        return Ok(());
    }
    two(s)?;
    const DOMAIN: &str = "proxy_cookie_domain";
    let undotted = |text: &[u8]| text.strip_prefix(b".").unwrap_or(text).to_vec();
    let rule = match s.arg(0).strip_prefix(b"~") {
        Some(text) => Rule {
            directive: DOMAIN,
            from: Match::Pattern(b.pattern(s, text, true)?),
            to: b.head_template(s, 1)?,
        },
        None => Rule {
            directive: DOMAIN,
            from: Match::Domain(b.template_of(s, &undotted(s.arg(0)))?),
            to: b.template_of(s, &undotted(s.arg(1)))?.unfolded(),
        },
    };
    push(&mut c.cookie_domains, rule);
    Ok(())
}

pub(super) fn cookie_flags(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if off(&mut c.cookie_flags, s)? {
        return Ok(());
    }
    two(s)?;
    let cookie = match s.arg(0).strip_prefix(b"~") {
        Some(text) => Match::Pattern(b.pattern(s, text, true)?),
        None => Match::Domain(b.template(s, 0)?),
    };
    let flags = (1..s.len())
        .map(|i| b.template(s, i))
        .collect::<ConfResult<_>>()?;
    push(&mut c.cookie_flags, FlagsRule { cookie, flags });
    Ok(())
}

/// `off` stands alone; nothing may follow it.
fn off<T>(slot: &mut Option<Rewriting<T>>, s: &Statement) -> ConfResult<bool> {
    let is_off = s.len() == 1 && s.arg(0) == b"off";
    match slot {
        Some(Rewriting::Off) => Err(s.duplicate()),
        Some(Rewriting::Rules(_)) if is_off => Err(s.duplicate()),
        _ if is_off => {
            *slot = Some(Rewriting::Off);
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn two(s: &Statement) -> ConfResult<()> {
    if s.len() < 2 {
        Err(s.invalid_parameter(0))
    } else {
        Ok(())
    }
}

fn push<T: Clone>(slot: &mut Option<Rewriting<T>>, rule: T) {
    let mut list = match slot.take() {
        Some(Rewriting::Rules(list)) => list.to_vec(),
        _ => Vec::new(),
    };
    list.push(rule);
    *slot = Some(Rewriting::Rules(list.into()));
}

/// `~pattern`, `~*pattern`, or a prefix with variables.
fn path_pattern(s: &Statement, b: &mut Build) -> ConfResult<Match> {
    Ok(match s.arg(0) {
        [b'~', b'*', text @ ..] => Match::Pattern(b.pattern(s, text, true)?),
        [b'~', text @ ..] => Match::Pattern(b.pattern(s, text, false)?),
        _ => Match::Prefix(b.template(s, 0)?),
    })
}
