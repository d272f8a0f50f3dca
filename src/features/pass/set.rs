//! Setters of the directives that every prefix has.

use super::PassWritten;
use crate::config::addr::parse_ip_port;
use crate::config::value::parse_size;
use crate::contract::*;
use std::sync::Arc;

/// `…_next_upstream`, as `proxy` has it.
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

/// `…_cache_use_stale`.
pub const STALE: &[(&str, u32)] = &[
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("invalid_header", next::INVALID_HEADER),
    ("updating", next::UPDATING),
    ("http_500", next::HTTP_500),
    ("http_502", next::HTTP_502),
    ("http_503", next::HTTP_503),
    ("http_504", next::HTTP_504),
    ("http_403", next::HTTP_403),
    ("http_404", next::HTTP_404),
    ("http_429", next::HTTP_429),
    ("non_idempotent", next::NON_IDEMPOTENT),
    ("off", next::OFF),
];

/// `…_next_upstream`, as applications' protocols have it.
pub const NEXT_CGI: &[(&str, u32)] = &[
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("invalid_header", next::INVALID_HEADER),
    ("non_idempotent", next::NON_IDEMPOTENT),
    ("http_500", next::HTTP_500),
    ("http_503", next::HTTP_503),
    ("http_403", next::HTTP_403),
    ("http_404", next::HTTP_404),
    ("http_429", next::HTTP_429),
    ("updating", next::UPDATING),
    ("off", next::OFF),
];

/// `…_ignore_headers`.
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
///
/// # Errors
/// nginx's `invalid value "…"`.
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
///
/// # Errors
/// None; setters have this form.
pub fn name(slot: &mut Option<Vec<Box<[u8]>>>, s: &Statement) -> ConfResult<()> {
    slot.get_or_insert_default()
        .push(s.arg(0).to_ascii_lowercase().into());
    Ok(())
}

/// Text with variables, given once.
///
/// # Errors
/// `"…" directive is duplicate`, and what is wrong with the variables.
pub fn template(slot: &mut Option<Template>, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if slot.is_some() {
        return Err(s.duplicate());
    }
    *slot = Some(b.template(s, 0)?);
    Ok(())
}

/// `…_store`.
///
/// # Errors
/// `"…" directive is duplicate`, `empty path`, or a cache in the same block.
pub fn store(c: &mut PassWritten, s: &Statement, b: &mut Build, cache: &str) -> ConfResult<()> {
    if c.store.is_some() {
        return Err(s.duplicate());
    }
    if s.arg(0) == b"off" {
        c.store = Some(None);
        return Ok(());
    }
    if s.arg(0).is_empty() {
        return Err(s.error("empty path"));
    }
    if c.cache.is_on() {
        let name = s.name();
        return Err(s.error(format!(
            "\"{name}\" directive is incompatible with \"{cache}\""
        )));
    }
    c.store = Some(Some(match s.arg(0) {
        b"on" => None,
        _ => Some(b.template(s, 0)?),
    }));
    Ok(())
}

/// `…_limit_rate`.
///
/// # Errors
/// A rate without variables that is no size.
pub fn limit_rate(c: &mut PassWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    template(&mut c.limit_rate, s, b)?;
    match c.limit_rate.as_ref().and_then(Template::as_literal) {
        Some(size) if parse_size(size).is_none() => Err(invalid_value(s, 0)),
        _ => Ok(()),
    }
}

/// `…_buffers`.
///
/// # Errors
/// A number or a size that is none, or zero.
pub fn buffers(c: &mut PassWritten, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if c.buffers.is_some() {
        return Err(s.duplicate());
    }
    let number = s
        .number(0)
        .ok()
        .filter(|n| *n != 0)
        .ok_or_else(|| invalid_value(s, 0))?;
    let size = s
        .size(1)
        .ok()
        .filter(|n| *n != 0)
        .ok_or_else(|| invalid_value(s, 1))?;
    c.sizes_at = Some(Arc::new(s.clone()));
    c.buffers = Some((number, size));
    Ok(())
}

fn invalid_value(s: &Statement, i: usize) -> Box<Diag> {
    s.error_at(i, format!("\"{}\" directive invalid value", s.name()))
}

/// `…_temp_path`.
///
/// # Errors
/// nginx's texts for levels that are none.
pub fn temp_path(c: &mut PassWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    once(
        &mut c.temp_path,
        s,
        crate::engine::core::http::temp_path(s, b)?,
    )
}

/// `…_bind`.
///
/// # Errors
/// An address that is none, or a parameter that is not known.
pub fn bind(c: &mut PassWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
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
        b"transparent" => c.bind_transparent = true,
        _ if s.len() > 1 => return Err(s.invalid_parameter(1)),
        _ => {}
    }
    c.bind = Some(Some(address));
    Ok(())
}
