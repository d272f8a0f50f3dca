//! Variables of the response.

use super::joined;
use crate::config::value::parse_size;
use crate::contract::{Request, Small, Val};
use crate::http::head::Version;
use crate::log::Level;
use std::io::Write;

/// `$status`.
pub fn status<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    let status = match (r.err_status, r.out.status) {
        (0, 0) if r.head.version == Version::V09 => 9,
        // an origin's answer without a head has no status, as in nginx
        (0, _) if r.out.http09 && r.upstream.has_head && r.upstream.head.is_http09() => 9,
        (0, status) => status,
        (forced, _) => forced,
    };
    let mut text = Small::default();
    let _ = write!(text, "{status:03}");
    Val::Small(text)
}

/// `$request_completion`: `OK` once the response has been sent in full.
pub fn completion<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    Val::Bytes(
        if (r.header_sent || r.completed) && !r.aborted && !r.client_closed {
            b"OK"
        } else {
            b""
        },
    )
}

/// `set $limit_rate`.
pub fn set_limit_rate(r: &mut Request, value: &[u8]) {
    match parse_size(value) {
        Some(rate) => {
            r.limit_rate = rate;
            r.limit_rate_set = true;
        }
        None => r.error(
            Level::Error,
            format_args!("invalid $limit_rate \"{}\"", String::from_utf8_lossy(value)),
        ),
    }
}

/// `$sent_http_connection`.
pub fn connection<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    Val::Bytes(match r.out.status {
        101 => b"upgrade",
        // as in nginx: no stream outlives its request
        _ if r.head.http_major_minor.0 == 2 => b"close",
        _ if r.keepalive => b"keep-alive",
        _ => b"close",
    })
}

/// `$sent_http_transfer_encoding`: `chunked` once such a head has been sent; parts of a response have none of their own.
pub fn transfer_encoding<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    if !r.header_sent || r.subrequest || r.head.http_major_minor.0 == 2 {
        return Val::None;
    }
    r.out.by_variable(b"transfer_encoding")
}

/// `$sent_http_keep_alive`.
pub fn keep_alive<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    let seconds = r.core().keepalive_header;
    if !r.keepalive || seconds == 0 || r.head.http_major_minor.0 == 2 {
        return Val::None;
    }
    let mut text = Small::default();
    let _ = write!(text, "timeout={seconds}");
    Val::Small(text)
}

/// `$sent_http_…`: headers without a variable of their own.
pub fn header<'r>(r: &'r Request, name: &'r [u8]) -> Val<'r> {
    match joined(&r.out.headers, name, b", ") {
        Val::None => r.out.by_variable(name),
        value => value,
    }
}
