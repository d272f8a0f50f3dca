//! Whether a client may be sent a compressed response, and the directives that decide it.

use super::core::http::HttpDirectives;
use super::core::once;
use crate::config::Result;
use crate::contract::{Build, GzipRules, Request, Statement, proxied};
use crate::http::date;
use crate::http::head::Version;
use crate::http::headers::{Known, has_token};

/// Whether `Accept-Encoding`, `Via` and the `gzip_*` directives let a response be compressed (`ngx_http_gzip_ok`).
///
/// Headers of the response (`Expires`, `Cache-Control`, `Last-Modified`, `ETag`) must be known by then.
pub fn allowed(r: &Request) -> bool {
    let rules = &r.core().gzip;
    let headers = r.headers();
    let Some(accept) = headers.get_id(Known::AcceptEncoding) else {
        return false;
    };
    if r.subrequest || !accepts_gzip(accept) || r.version() < rules.http_version {
        return false;
    }
    let agent = headers.get_id(Known::UserAgent);
    if rules.disable_msie6 && agent.is_some_and(is_msie6) {
        return false;
    }
    if headers.contains_id(Known::Via) && !allowed_to_proxies(r, rules.proxied) {
        return false;
    }
    agent.is_none_or(|a| !rules.disable.iter().any(|p| p.is_match(a)))
}

/// `gzip_proxied`.
fn allowed_to_proxies(r: &Request, bits: u16) -> bool {
    let on = |bit| bits & bit != 0;
    if on(proxied::OFF) {
        return false;
    }
    if on(proxied::ANY) || (on(proxied::AUTH) && r.headers().contains_id(Known::Authorization)) {
        return true;
    }
    if let Some(expires) = r.out.get(b"Expires") {
        let now = match r.out.get(b"Date") {
            Some(d) => date::parse(d),
            None => Some(date::time().0),
        };
        return on(proxied::EXPIRED)
            && matches!((date::parse(expires), now), (Some(e), Some(n)) if e < n);
    }
    if r.out.headers.contains_id(Known::CacheControl) {
        let says = |token: &[u8]| {
            r.out
                .headers
                .get_all_id(Known::CacheControl)
                .any(|v| has_token(v, token))
        };
        return (on(proxied::NO_CACHE) && says(b"no-cache"))
            || (on(proxied::NO_STORE) && says(b"no-store"))
            || (on(proxied::PRIVATE) && says(b"private"));
    }
    let last_modified = r.out.last_modified.is_some() || !r.out.last_modified_text.is_empty();
    let etag = r.out.headers.contains_id(Known::ETag);
    !(on(proxied::NO_LAST_MODIFIED) && last_modified || on(proxied::NO_ETAG) && etag)
}

/// Whether `Accept-Encoding` names gzip with a weight other than 0.
pub fn accepts_gzip(accept: &[u8]) -> bool {
    accepts(accept, b"gzip")
}

/// Whether `Accept-Encoding` names a coding with a weight other than 0.
pub fn accepts(accept: &[u8], coding: &[u8]) -> bool {
    weight(accept, coding) > 0
}

/// The weight with which `Accept-Encoding` names a coding (RFC 9110, section 12.5.3), thousandths; 0 where it does not.
pub fn weight(accept: &[u8], coding: &[u8]) -> u16 {
    let len = coding.len().max(1);
    let mut from = 0;
    let after = loop {
        let rest = accept.get(from..).unwrap_or_default();
        let Some(at) = rest
            .windows(len)
            .position(|w| w.eq_ignore_ascii_case(coding))
        else {
            return 0;
        };
        let at = from + at;
        if at == 0 || matches!(accept.get(at - 1), Some(b',' | b' ')) {
            break accept.get(at + len..).unwrap_or_default();
        }
        from = at + len;
    };
    match after.trim_ascii_start() {
        [] | [b',', ..] => 1000,
        [b';', weight @ ..] => match weight.trim_ascii_start() {
            [] => 1000,
            [b'q' | b'Q', b'=', weight @ ..] => thousandths(weight),
            _ => 0,
        },
        _ => 0,
    }
}

/// A weight (RFC 9110, section 12.4.2); 0 where it is malformed.
fn thousandths(weight: &[u8]) -> u16 {
    let end = weight
        .iter()
        .position(|c| matches!(c, b',' | b' '))
        .unwrap_or(weight.len());
    let (whole, digits) = match weight.get(..end).unwrap_or_default() {
        [whole @ (b'0' | b'1')] => (*whole, &b""[..]),
        [whole @ (b'0' | b'1'), b'.', digits @ ..] => (*whole, digits),
        _ => return 0,
    };
    if digits.len() > 3 || !digits.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let padded = digits.iter().chain(b"000").take(3);
    let part = padded.fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    match (whole, part) {
        (b'1', 0) => 1000,
        (b'1', _) => 0,
        _ => part,
    }
}

fn is_msie6(agent: &[u8]) -> bool {
    if memchr::memmem::find(agent, b"Opera").is_some() {
        return false;
    }
    let at = memchr::memmem::find(agent, b"MSIE ");
    match at.and_then(|at| agent.get(at + 5..)) {
        Some([b'4' | b'5', b'.', _, ..]) => true,
        Some([b'6', b'.', rest @ ..]) => {
            !rest.is_empty() && memchr::memmem::find(rest, b"SV1").is_none()
        }
        _ => false,
    }
}

/// What a block says of compression.
#[derive(Default, Clone)]
#[allow(missing_docs)]
pub struct GzipWritten {
    pub vary: Option<bool>,
    pub http_version: Option<Version>,
    pub proxied: Option<u16>,
    pub disable: Option<Vec<std::sync::Arc<crate::contract::Pattern>>>,
    pub disable_msie6: Option<bool>,
}

impl GzipWritten {
    /// Fills what is not written from the outer block.
    pub fn inherit(&mut self, o: &Self) {
        crate::inherit!(self, o; vary, http_version, proxied, disable, disable_msie6);
    }

    /// The effective rules.
    pub fn rules(&self) -> GzipRules {
        GzipRules {
            vary: self.vary.unwrap_or(false),
            http_version: self.http_version.unwrap_or(Version::V11),
            proxied: self.proxied.unwrap_or(proxied::OFF),
            disable: self.disable.clone().unwrap_or_default().into(),
            disable_msie6: self.disable_msie6.unwrap_or(false),
        }
    }
}

pub(super) fn vary(c: &mut HttpDirectives, s: &Statement, _b: &mut Build) -> Result<()> {
    once(&mut c.gzip.vary, s, s.flag(0)?)
}

pub(super) fn http_version(c: &mut HttpDirectives, s: &Statement, _b: &mut Build) -> Result<()> {
    once(
        &mut c.gzip.http_version,
        s,
        s.one_of(0, &[("1.0", Version::V10), ("1.1", Version::V11)])?,
    )
}

pub(super) fn proxied(c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    const WORDS: [(&str, u16); 9] = [
        ("off", proxied::OFF),
        ("expired", proxied::EXPIRED),
        ("no-cache", proxied::NO_CACHE),
        ("no-store", proxied::NO_STORE),
        ("private", proxied::PRIVATE),
        ("no_last_modified", proxied::NO_LAST_MODIFIED),
        ("no_etag", proxied::NO_ETAG),
        ("auth", proxied::AUTH),
        ("any", proxied::ANY),
    ];
    let bits = c.gzip.proxied.get_or_insert_default();
    for i in 0..s.len() {
        let bit = s.one_of(i, &WORDS)?;
        if *bits & bit != 0 {
            b.warn(s.warn_at(
                i,
                format!("duplicate value \"{}\"", String::from_utf8_lossy(s.arg(i))),
            ));
        }
        *bits |= bit;
    }
    Ok(())
}

pub(super) fn disable(c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    for i in 0..s.len() {
        if s.arg(i) == b"msie6" {
            c.gzip.disable_msie6 = Some(true);
            continue;
        }
        let pattern = b.pattern(s, s.arg(i), true)?;
        c.gzip.disable.get_or_insert_default().push(pattern);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_accept_encoding() {
        for (value, want) in [
            ("gzip", true),
            ("gzip, deflate", true),
            ("deflate, GZIP", true),
            ("deflate,gzip;q=0.5", true),
            ("gzip;q=1", true),
            ("gzip; q=1.000", true),
            ("gzip;q=0", false),
            ("gzip;q=0.0, deflate", false),
            ("gzip;q=0.001", true),
            ("gzip;q=0.0001", false),
            ("gzip;q=1.1", false),
            ("gzip;q=2", false),
            ("gzip;q", false),
            ("gzip;", true),
            ("x-gzip", false),
            ("x-gzip, gzip", true),
            ("gzipped", false),
            ("deflate", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(value.as_bytes()), want, "{value}");
        }
    }

    #[test]
    fn reads_other_codings() {
        for (value, want) in [
            ("gzip, deflate, br, zstd", true),
            ("br;q=1.0", true),
            ("brotli", false),
            ("xbr, br;q=0", false),
            ("gzip", false),
        ] {
            assert_eq!(accepts(value.as_bytes(), b"br"), want, "{value}");
        }
        assert!(accepts(b"gzip,zstd", b"zstd"));
        for (value, want) in [
            ("br", 1000),
            ("br;q=1.0", 1000),
            ("br;q=0.5, gzip", 500),
            ("br; q=0.25", 250),
            ("br;q=0.001", 1),
            ("br;q=1.001", 0),
            ("gzip;q=0.3,br;Q=0.9", 900),
            ("br;q=0.9999", 0),
            ("br;q=", 0),
        ] {
            assert_eq!(weight(value.as_bytes(), b"br"), want, "{value}");
        }
    }

    #[test]
    fn knows_old_browsers() {
        assert!(is_msie6(b"Mozilla/4.0 (compatible; MSIE 6.0; Windows 98)"));
        assert!(is_msie6(b"Mozilla/4.0 (compatible; MSIE 5.5; Windows 98)"));
        assert!(!is_msie6(
            b"Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1; SV1)"
        ));
        assert!(!is_msie6(b"Mozilla/4.0 (compatible; MSIE 7.0)"));
        assert!(!is_msie6(b"Mozilla/4.0 (compatible; MSIE 6.0) Opera 8"));
    }

    proptest! {
        #[test]
        fn never_panics(value in "[gzip;q=.01, x]{0,24}") {
            let _ = accepts_gzip(value.as_bytes());
            let _ = is_msie6(value.as_bytes());
        }
    }
}
