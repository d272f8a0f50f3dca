//! The origin's head on its way to the client.

use super::target::Found;
use crate::contract::{Codec, Destination, Pass, Request, UpstreamTls, ignore, next};
use crate::contract::{PassEnd, RedirectTo};
use crate::http::headers::Known;
use crate::log::Level;
use crate::upstream::Peer;
use crate::upstream::connect::{self, ConnectTls, Tag};
use std::sync::Arc;

/// Which condition of `proxy_next_upstream` a status is.
pub(super) fn condition(status: u16) -> u32 {
    match status {
        500 => next::HTTP_500,
        502 => next::HTTP_502,
        503 => next::HTTP_503,
        504 => next::HTTP_504,
        403 => next::HTTP_403,
        404 => next::HTTP_404,
        429 => next::HTTP_429,
        _ => 0,
    }
}

/// Logs the repeated fields that were dropped.
pub(super) fn log_ignored(r: &mut Request) {
    for text in std::mem::take(&mut r.upstream.head.ignored) {
        r.error(
            Level::Warn,
            format_args!("{text} while reading response header from upstream"),
        );
    }
}

/// Whether `error_page` of the location names a status.
pub(super) fn has_error_page(r: &Request, status: u16) -> bool {
    r.core().error_pages.iter().any(|p| p.status == status)
}

/// X-Accel-Redirect: the origin leaves the response to another location.
pub(super) fn accel_redirect(pass: &Pass, r: &mut Request) -> Option<PassEnd> {
    if pass.conf.ignore & ignore::ACCEL_REDIRECT != 0 {
        return None;
    }
    let target = r
        .upstream
        .head
        .headers
        .get_id(Known::XAccelRedirect)?
        .to_vec();
    obey(pass, r);
    let head = std::mem::take(&mut r.upstream.head);
    for (known, name, value) in head.headers.entries() {
        // what nginx lets through in a redirect
        match known {
            Known::ContentType => (r.out.content_type, r.out.type_charset) = (value.to_vec(), true),
            Known::Expires | Known::CacheControl | Known::SetCookie | Known::AcceptRanges => {
                r.out.append(name, value)
            }
            _ if name.eq_ignore_ascii_case(b"content-disposition") => r.out.append(name, value),
            _ => {}
        }
    }
    r.upstream.head = head;
    match RedirectTo::parse(&target) {
        Some(to) => {
            if !r.is_head() && !matches!(to, crate::contract::RedirectTo::Named(_)) {
                r.method = crate::http::method::Method::Get;
            }
            Some(PassEnd::Redirect(to))
        }
        None => {
            r.error(
                Level::Error,
                format_args!(
                    "unsafe URI \"{}\" was detected while reading response header from upstream",
                    crate::http::text::shown(&target)
                ),
            );
            Some(PassEnd::Status(404))
        }
    }
}

/// Does what the origin asks of the response, whether it is its own that is sent or another one in its place:
/// X-Accel-Limit-Rate and X-Accel-Charset.
pub(super) fn obey(pass: &Pass, r: &mut Request) {
    let head = std::mem::take(&mut r.upstream.head);
    for (known, _, value) in head.headers.entries() {
        match known {
            Known::XAccelLimitRate if pass.conf.ignore & ignore::ACCEL_LIMIT_RATE == 0 => {
                if let Some(n) = crate::config::value::parse_number(value) {
                    r.limit_rate = n;
                    r.limit_rate_set = true;
                }
            }
            Known::XAccelCharset if pass.conf.ignore & ignore::ACCEL_CHARSET == 0 => {
                r.out.override_charset = value.to_vec()
            }
            _ => {}
        }
    }
    r.upstream.head = head;
}

/// Copies the head to `r.out`: hides, rewrites, and obeys what is meant for us.
pub(super) fn copy(pass: &Pass, to: &Destination<'_>, r: &mut Request) {
    let conf = &pass.conf;
    obey(pass, r);
    let head = std::mem::take(&mut r.upstream.head);
    r.out.status = head.status;
    r.out.status_line.clear();
    r.out.status_line.extend_from_slice(&head.status_line);
    r.out.content_length = if head.chunked {
        None
    } else {
        head.content_length
    };
    // a response without a type keeps that of X-Accel-Redirect, which brought the request here
    let mut typed = false;
    let rewrites = pass.protocol.rewrites();
    let mut buffered = None;
    for (known, name, value) in head.headers.entries() {
        match known {
            Known::Connection
            | Known::KeepAlive
            | Known::TransferEncoding
            | Known::ContentLength
            | Known::XAccelRedirect => continue,
            Known::XAccelBuffering if conf.ignore & ignore::ACCEL_BUFFERING == 0 => {
                buffered = Some(value.eq_ignore_ascii_case(b"yes"));
            }
            Known::Upgrade if head.status == 101 => {
                r.out.headers.append(name, value);
                continue;
            }
            _ => {}
        }
        if conf.hide.contains(known, name) {
            continue;
        }
        match known {
            Known::Location | Known::SetCookie | Known::Refresh if rewrites => {
                rewrite(pass, to, r, known, name, value)
            }
            // the first one counts
            Known::ContentType if typed => {}
            Known::ContentType => {
                r.out.set_content_type(value);
                (r.out.type_charset, typed) = (true, true);
            }
            Known::Date => r.out.date = value.to_vec(),
            Known::Server => r.out.server = value.to_vec(),
            Known::LastModified => {
                r.out.last_modified_text.clear();
                r.out.last_modified_text.extend_from_slice(value);
            }
            _ => r.out.headers.append(name, value),
        }
    }
    let codec = pass.protocol.codec();
    // where they are the origin's, none of our own takes their place; applications leave them to the server
    let own = !matches!(codec, Codec::Http1 | Codec::Http2);
    r.out.no_date =
        !own && !head.headers.contains_id(Known::Date) && !conf.hide.contains(Known::Date, b"date");
    r.out.no_server = !own
        && !head.headers.contains_id(Known::Server)
        && !conf.hide.contains(Known::Server, b"server");
    let cached = r.upstream.is_cacheable();
    // whose ranges are cut here depends on who has the whole response
    let cut = conf.force_ranges || (cached && head.headers.contains_id(Known::AcceptRanges));
    if cut {
        r.out.headers.remove_id(Known::AcceptRanges);
    }
    r.out.allow_ranges = cut;
    r.out.single_range = cut && !r.upstream.from_cache;
    r.out.unconditional = !cached;
    r.upstream.head = head;
    r.upstream.buffered = buffered.filter(|_| conf.ignore & ignore::ACCEL_BUFFERING == 0);
    if matches!(codec, Codec::Memcached { .. }) {
        r.set_content_type();
    }
}

fn rewrite(
    pass: &Pass,
    to: &Destination<'_>,
    r: &mut Request,
    known: Known,
    name: &[u8],
    value: &[u8],
) {
    let mut out = Vec::new();
    let changed = pass.protocol.rewrite(r, to, name, value, &mut out);
    let value = if changed { &out[..] } else { value };
    // only what was rewritten is made absolute
    if known == Known::Location && changed && value.starts_with(b"/") {
        r.out.location = value.to_vec();
    } else {
        r.out.headers.append(name, value);
    }
}

/// The name of the target's host, for TLS.
fn tls_host<'r>(r: &'r Request, target: &'r Found) -> &'r [u8] {
    match target.host.is_empty() {
        true => &r.upstream.host,
        false => &target.host,
    }
}

/// What of a connection depends on the request, as [`Tag::own`] compares it; empty, and nothing is done, where nothing
/// does.
pub(super) fn own(r: &Request, pass: &Pass, target: &Found) -> Vec<u8> {
    let mut out = Vec::new();
    if !pass.has_own(target.tls) {
        return out;
    }
    let bind = pass.conf.bind.as_ref();
    if let Some(t) = bind.filter(|t| t.as_literal().is_none()) {
        connect::own(&mut out, b'b', &t.eval(r));
    }
    if let Some(tls) = pass.conf.tls.as_ref().filter(|_| target.tls) {
        tls.own(r, tls_host(r, target), &mut out);
    }
    out
}

/// TLS towards a peer: name, verification, certificate.
///
/// # Errors
/// OpenSSL's text, where it cannot be had at all.
pub(super) fn tls_options(
    r: &Request,
    pass: &Pass,
    target: &Found,
    peer: &Peer,
    tag: &Tag<'_>,
) -> Result<Arc<ConnectTls>, String> {
    let plain;
    let conf = match &pass.conf.tls {
        Some(conf) => conf,
        None => {
            plain = UpstreamTls::plain()?;
            &plain
        }
    };
    let host = tls_host(r, target);
    Ok(Arc::new(conf.connect(
        r,
        host,
        &target.group.name,
        &peer.name,
        tag,
    )))
}
