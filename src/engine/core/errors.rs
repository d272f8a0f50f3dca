//! `error_page` and `error_log`.

use super::http::HttpDirectives;
use crate::config::Result;
use crate::contract::{Build, ErrorPage, Statement};
use crate::log::{Target, Threshold};

pub(super) fn error_page(c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    let last = s.len() - 1;
    let mut codes_end = last;
    let mut overwrite = None;
    if let Some(code) = s.arg(last - 1).strip_prefix(b"=") {
        if last == 1 {
            return Err(s.error_at(
                last - 1,
                format!(
                    "invalid value \"{}\"",
                    String::from_utf8_lossy(s.arg(last - 1))
                ),
            ));
        }
        codes_end = last - 1;
        overwrite = Some(match code {
            b"" => None,
            _ => match crate::config::value::parse_number(code) {
                Some(n) if n <= 999 => Some(n as u16),
                _ => return Err(s.invalid_value(last - 1)),
            },
        });
    }
    let uri = s.arg(last);
    let target = b.template(s, last)?;
    let mut args = None;
    let mut target = target;
    if let (Some(_), b'/') = (target.as_literal(), uri.first().copied().unwrap_or(0))
        && let Some(q) = memchr::memchr(b'?', uri)
    {
        args = Some(uri[q + 1..].to_vec());
        target = crate::contract::Template::literal(&uri[..q]);
    }
    let pages = c.error_pages.get_or_insert_default();
    for i in 0..codes_end {
        let code = match s.number(i) {
            Ok(n) => n,
            Err(_) => return Err(s.invalid_value(i)),
        };
        if code == 499 {
            return Err(s.invalid_value(i));
        }
        if !(300..=599).contains(&code) {
            return Err(s.error_at(
                i,
                format!(
                    "value \"{}\" must be between 300 and 599",
                    String::from_utf8_lossy(s.arg(i))
                ),
            ));
        }
        // without "=", a redirect to a URL answers 302 and statuses of TLS errors answer 400
        let overwrite = match (overwrite, code) {
            (None, 494..=497) => Some(Some(400)),
            (o, _) => o,
        };
        pages.push(ErrorPage {
            status: code as u16,
            overwrite,
            target: target.clone(),
            args: args.clone(),
        });
    }
    Ok(())
}

pub(super) fn error_log(c: &mut HttpDirectives, s: &Statement, _b: &mut Build) -> Result<()> {
    let target = Target::parse(s.arg(0)).map_err(|e| s.error(e))?;
    let levels = (1..s.len()).map(|i| s.arg(i));
    let threshold = Threshold::parse(levels).map_err(|e| s.error(e))?;
    c.error_log
        .get_or_insert_default()
        .push((target, threshold));
    Ok(())
}
