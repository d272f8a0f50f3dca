//! Directives that bound what a group does: `keepalive`, `queue`, `outlier_detection`, `retry_budget`.

use super::UpstreamDirectives;
use crate::config::value::{parse_number, parse_time_ms};
use crate::contract::*;
use crate::upstream::budget::BudgetConf;
use crate::upstream::outlier::OutlierConf;
use std::time::Duration;

/// `keepalive`.
pub(super) fn keepalive(
    c: &mut UpstreamDirectives,
    s: &Statement,
    _b: &mut Build,
) -> ConfResult<()> {
    if c.keepalive.is_some() {
        return Err(s.duplicate());
    }
    let n = parse_number(s.arg(0))
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| {
            s.error_at(
                0,
                format!(
                    "invalid value \"{}\" in \"keepalive\" directive",
                    String::from_utf8_lossy(s.arg(0))
                ),
            )
        })?;
    let local = match s.arg(1) {
        b"local" => true,
        _ if s.len() > 1 => return Err(s.invalid_parameter(1)),
        _ => false,
    };
    c.keepalive = Some((n, local));
    Ok(())
}

/// `queue`.
pub(super) fn queue(c: &mut UpstreamDirectives, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if c.queue.is_some() {
        return Err(s.duplicate());
    }
    let size = number(s.arg(0)).filter(|n| *n != 0);
    let size = size.ok_or_else(|| s.invalid_parameter(0))?;
    let timeout = match s.arg(1).strip_prefix(b"timeout=") {
        Some(text) => parse_time_ms(text).ok_or_else(|| s.invalid_parameter(1))?,
        None if s.len() > 1 => return Err(s.invalid_parameter(1)),
        None => 60_000,
    };
    c.queue = Some((size, timeout));
    Ok(())
}

/// `outlier_detection`.
pub(super) fn outlier_detection(
    c: &mut UpstreamDirectives,
    s: &Statement,
    _b: &mut Build,
) -> ConfResult<()> {
    if c.outlier.is_some() {
        return Err(s.duplicate());
    }
    let mut conf = OutlierConf::default();
    for i in 0..s.len() {
        let invalid = || s.invalid_parameter(i);
        let word = s.str(i)?;
        match word.split_once('=') {
            None if word == "off" && s.len() == 1 => {
                c.outlier = Some(None);
                return Ok(());
            }
            None if word == "on" => {}
            Some(("consecutive_errors", v)) => {
                conf.consecutive_errors = number(v.as_bytes()).ok_or_else(invalid)?
            }
            Some(("error_rate", v)) => conf.error_rate = percent(v).ok_or_else(invalid)?,
            Some(("latency", v)) => {
                let factor: Option<f64> = v.parse().ok();
                let fits = |f: &f64| *f == 0.0 || (f.is_finite() && *f > 1.0);
                conf.latency = factor.filter(fits).ok_or_else(invalid)?
            }
            Some(("min_requests", v)) => {
                conf.min_requests = number(v.as_bytes()).ok_or_else(invalid)?
            }
            Some(("interval", v)) => conf.interval = time(v).ok_or_else(invalid)?,
            Some(("ejection_time", v)) => conf.ejection = time(v).ok_or_else(invalid)?,
            Some(("max_ejection_time", v)) => conf.max_ejection = time(v).ok_or_else(invalid)?,
            Some(("max_ejected", v)) => conf.max_ejected = percent(v).ok_or_else(invalid)?,
            _ => return Err(invalid()),
        }
    }
    c.outlier = Some(Some(conf));
    Ok(())
}

/// `retry_budget`.
pub(super) fn retry_budget(
    c: &mut UpstreamDirectives,
    s: &Statement,
    _b: &mut Build,
) -> ConfResult<()> {
    if c.budget.is_some() {
        return Err(s.duplicate());
    }
    if s.len() == 1 && s.arg(0) == b"off" {
        c.budget = Some(None);
        return Ok(());
    }
    let percent = percent(s.str(0)?).ok_or_else(|| s.invalid_parameter(0))?;
    let min = match s.arg(1).strip_prefix(b"min=") {
        Some(text) => number(text).ok_or_else(|| s.invalid_parameter(1))?,
        None if s.len() > 1 => return Err(s.invalid_parameter(1)),
        None => 10,
    };
    c.budget = Some(Some(BudgetConf { percent, min }));
    Ok(())
}

fn number(text: &[u8]) -> Option<u32> {
    parse_number(text).and_then(|n| u32::try_from(n).ok())
}

/// `20%`, at most a hundred.
fn percent(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    number(digits.as_bytes()).filter(|n| *n <= 100)
}

/// A time that is not zero.
fn time(text: &str) -> Option<Duration> {
    let ms = parse_time_ms(text.as_bytes()).filter(|ms| *ms != 0)?;
    Some(Duration::from_millis(ms))
}
