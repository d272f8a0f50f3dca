//! Setters of the `proxy_*` directives.

use super::cookies::FlagsRule;
use super::redirect::{Match, Rule, default_rule};
use super::{ProxyConf, Rewriting};
use crate::config::addr::parse_ip_port;
use crate::config::value::parse_size;
use crate::module::once;
use crate::module::*;
use std::sync::Arc;

/// `proxy_next_upstream`.
pub const NEXT: &[(&str, u32)] = &[
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("invalid_header", next::INVALID_HEADER),
    ("non_idempotent", next::NON_IDEMPOTENT),
    ("http_500", next::HTTP_500),
    ("http_502", next::HTTP_502),
    ("http_503", next::HTTP_503),
    ("http_504", next::HTTP_504),
    ("http_403", next::HTTP_403),
    ("http_404", next::HTTP_404),
    ("http_429", next::HTTP_429),
    ("updating", next::UPDATING),
    ("off", next::OFF),
];

/// `proxy_ignore_headers`.
pub const IGNORE: &[(&str, u32)] = &[
    ("X-Accel-Redirect", ignore::ACCEL_REDIRECT),
    ("X-Accel-Expires", ignore::ACCEL_EXPIRES),
    ("X-Accel-Limit-Rate", ignore::ACCEL_LIMIT_RATE),
    ("X-Accel-Buffering", ignore::ACCEL_BUFFERING),
    ("X-Accel-Charset", ignore::ACCEL_CHARSET),
    ("Expires", ignore::EXPIRES),
    ("Cache-Control", ignore::CACHE_CONTROL),
    ("Set-Cookie", ignore::SET_COOKIE),
    ("Vary", ignore::VARY),
];

/// A set of words (`ngx_conf_set_bitmask_slot`).
pub fn bits(
    slot: &mut Option<u32>,
    s: &Statement,
    b: &mut Build,
    words: &[(&str, u32)],
) -> ConfResult<()> {
    let set = slot.get_or_insert(0);
    for i in 0..s.len() {
        let bit = s.one_of(i, words)?;
        if *set & bit != 0 {
            b.warn(s.warn_at(
                i,
                format!("duplicate value \"{}\"", String::from_utf8_lossy(s.arg(i))),
            ));
        }
        *set |= bit;
    }
    Ok(())
}

/// A name added to a list.
pub fn name(slot: &mut Option<Vec<Box<[u8]>>>, s: &Statement) -> ConfResult<()> {
    slot.get_or_insert_default()
        .push(s.arg(0).to_ascii_lowercase().into());
    Ok(())
}

/// Text with variables, given once.
pub fn template(slot: &mut Option<Template>, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if slot.is_some() {
        return Err(s.duplicate());
    }
    *slot = Some(b.template(s, 0)?);
    Ok(())
}

pub(super) fn set_header(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let value = b.template(s, 1)?;
    c.headers
        .get_or_insert_default()
        .push((s.arg(0).into(), value));
    Ok(())
}

pub(super) fn http_version(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if s.arg(0) == b"2" {
        return Err(s.error_at(0, "\"proxy_http_version 2\" is not supported yet"));
    }
    once(
        &mut c.http11,
        s,
        s.one_of(0, &[("1.0", false), ("1.1", true)])?,
    )
}

pub(super) fn limit_rate(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    template(&mut c.limit_rate, s, b)?;
    match c.limit_rate.as_ref().and_then(Template::as_literal) {
        Some(size) if parse_size(size).is_none() => {
            Err(s.error_at(0, "\"proxy_limit_rate\" directive invalid value"))
        }
        _ => Ok(()),
    }
}

pub(super) fn buffers(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if c.buffers.is_some() {
        return Err(s.duplicate());
    }
    let invalid = |i| s.error_at(i, "\"proxy_buffers\" directive invalid value");
    let number = s
        .number(0)
        .ok()
        .filter(|n| *n != 0)
        .ok_or_else(|| invalid(0))?;
    let size = s
        .size(1)
        .ok()
        .filter(|n| *n != 0)
        .ok_or_else(|| invalid(1))?;
    c.sizes_at = Some(Arc::new(s.clone()));
    c.buffers = Some((number, size));
    Ok(())
}

pub(super) fn bind(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.bind.is_some() {
        return Err(s.duplicate());
    }
    if s.len() == 1 && s.arg(0) == b"off" {
        c.bind = Some(None);
        return Ok(());
    }
    let address = b.template(s, 0)?;
    if address
        .as_literal()
        .is_some_and(|a| parse_ip_port(a).is_none())
    {
        return Err(s.error_at(
            0,
            format!("invalid address \"{}\"", String::from_utf8_lossy(s.arg(0))),
        ));
    }
    match s.arg(1) {
        b"transparent" => {
            return Err(s.error_at(1, "the \"transparent\" parameter is not supported yet"));
        }
        _ if s.len() > 1 => return Err(s.invalid_parameter(1)),
        _ => {}
    }
    c.bind = Some(Some(address));
    Ok(())
}

pub(super) fn redirect(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if off(&mut c.redirects, s)? {
        return Ok(());
    }
    if s.len() == 1 {
        if s.arg(0) != b"default" {
            return Err(s.invalid_parameter(0));
        }
        let Some(pass) = &c.pass else {
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
        from: path_pattern(s, b)?,
        to: b.template(s, 1)?,
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
        from: path_pattern(s, b)?,
        to: b.template(s, 1)?,
    };
    push(&mut c.cookie_paths, rule);
    Ok(())
}

pub(super) fn cookie_domain(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if off(&mut c.cookie_domains, s)? {
        return Ok(());
    }
    two(s)?;
    let undotted = |text: &[u8]| text.strip_prefix(b".").unwrap_or(text).to_vec();
    let rule = match s.arg(0).strip_prefix(b"~") {
        Some(text) => Rule {
            from: Match::Pattern(b.pattern(s, text, true)?),
            to: b.template(s, 1)?,
        },
        None => Rule {
            from: Match::Domain(b.template_of(s, &undotted(s.arg(0)))?),
            to: b.template_of(s, &undotted(s.arg(1)))?,
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
