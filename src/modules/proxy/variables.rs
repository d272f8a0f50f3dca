//! `$proxy_*` and `$upstream_*`.

use crate::module::*;

/// The variables of this module.
pub const VARIABLES: &[Variable] = &[
    Variable::new("proxy_host", |r, _| text(r, &r.upstream.host)).changeable(),
    Variable::new("proxy_port", |r, _| text(r, &r.upstream.port)).changeable(),
    Variable::new("proxy_add_x_forwarded_for", forwarded_for),
    Variable::new("proxy_internal_body_length", |r, _| match r.upstream.body {
        Some(BodyLength::Known(n)) => Val::number(n),
        _ => Val::None,
    }),
    Variable::new("proxy_internal_chunked", |r, _| match r.upstream.body {
        Some(BodyLength::Chunked) => Val::Bytes(b"chunked"),
        _ => Val::None,
    }),
];

fn text<'r>(r: &'r Request, value: &'r [u8]) -> Val<'r> {
    if r.upstream.body.is_some() { Val::Bytes(value) } else { Val::None }
}

fn forwarded_for<'r>(r: &'r Request, _: &[u8]) -> Val<'r> {
    let address = r.remote.text.as_bytes();
    let mut list = Vec::new();
    for value in r.head.headers.get_all(b"X-Forwarded-For") {
        list.extend_from_slice(value);
        list.extend_from_slice(b", ");
    }
    if list.is_empty() {
        return Val::Bytes(address);
    }
    list.extend_from_slice(address);
    Val::Owned(list)
}
