//! Who may ask the API and the metrics: not a page of another site in somebody's browser.
//!
//! A browser on the machine is a client on loopback. What a foreign page makes it send differs in `Host` (DNS rebinding:
//! a foreign name that stands for 127.0.0.1), `Origin` and `Sec-Fetch-Site`, which pages cannot change.

use crate::contract::{ListenAddr, Request};
use crate::engine::lookup;
use crate::http::headers::Known;
use crate::http::host::parse_host;
use crate::http::method::Method;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

/// Why a request is not answered: the status and what is logged.
pub type Refused = (u16, String);

/// Checks the host of any request, and for those that change something where they come from.
///
/// # Errors
/// 403 or 415.
pub fn check(r: &mut Request, what: &str) -> Result<(), Refused> {
    if r.remote.ip().is_none() {
        // by a UNIX socket no browser comes
        return Ok(());
    }
    if !is_configured(r) {
        let host = String::from_utf8_lossy(&r.head.host).into_owned();
        return Err((
            403,
            format!(
                "{what} answers to names of its server, addresses of its listener and localhost only, not to \"{host}\""
            ),
        ));
    }
    if matches!(r.method, Method::Get | Method::Head) {
        return Ok(());
    }
    let headers = r.headers();
    if let Some(origin) = foreign_origin(r) {
        let origin = String::from_utf8_lossy(origin);
        return Err((
            403,
            format!("{what} takes no changes from pages of \"{origin}\""),
        ));
    }
    if let Some(site) = headers.get(b"sec-fetch-site")
        && !matches!(site, b"same-origin" | b"none")
    {
        let site = String::from_utf8_lossy(site);
        return Err((
            403,
            format!("{what} takes no changes from pages of other sites (Sec-Fetch-Site: {site})"),
        ));
    }
    let browser = [
        &b"origin"[..],
        b"sec-fetch-site",
        b"sec-fetch-mode",
        b"referer",
    ];
    let browser = browser.iter().any(|name| headers.contains(name));
    let mut types = headers.get_all_id(Known::ContentType);
    let usual = match types.next() {
        None => true,
        Some(kind) => is_json(kind) || (is_form(kind) && !browser),
    };
    if !usual || types.next().is_some() {
        return Err((415, format!("{what} takes application/json only")));
    }
    Ok(())
}

/// Whether the request's host is a name of its server, an address of its listener, or localhost. Who sends none is no
/// browser.
fn is_configured(r: &mut Request) -> bool {
    if r.head.host.is_empty() {
        return true;
    }
    let host = String::from_utf8_lossy(&r.head.host).into_owned();
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let site = r.site.clone();
    let listener = site
        .listeners
        .get(r.conn().listener.load(Ordering::Relaxed));
    if let Ok(ip) = literal.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let local = r.conn().local.addr.map(|a| a.ip().to_canonical());
        let listens = match listener.map(|l| &l.addr) {
            Some(ListenAddr::Inet(a)) => Some(a.ip().to_canonical()),
            _ => None,
        };
        if Some(ip) == local || Some(ip) == listens {
            return true;
        }
    }
    let (Some(listener), server) = (listener, r.server) else {
        return false;
    };
    lookup::by_host(listener, r) == Some(server)
}

/// `Origin`, where it is not the one that the request went to.
fn foreign_origin(r: &Request) -> Option<&[u8]> {
    let mut origins = r.headers().get_all_id(Known::Origin);
    let origin = origins.next()?;
    let authority = [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(*scheme));
    let own = r.headers().get_id(Known::Host).unwrap_or_default();
    let same = authority.is_some_and(|a| {
        parse_host(a).is_some() && a.eq_ignore_ascii_case(own) && origins.next().is_none()
    });
    (!same).then_some(origin)
}

fn bare(kind: &[u8]) -> &[u8] {
    kind.split(|b| *b == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

fn is_json(kind: &[u8]) -> bool {
    bare(kind).eq_ignore_ascii_case(b"application/json")
}

/// What `curl -d` says of a body where nobody tells it what the body is.
fn is_form(kind: &[u8]) -> bool {
    bare(kind).eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}
