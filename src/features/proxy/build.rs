//! From written settings to a [`Pass`].

use super::pass::{ProxyPass, WrittenTarget};
use super::redirect::default_rule;
use super::request::{HttpProxy, RequestHeaders, Rewrites, Uri, key_start};
use super::{HttpVersion, ProxyConf, Rewriting};
use crate::contract::*;
use crate::features::pass::Buffers;
use std::sync::Arc;

/// Assembles the content of a location with `proxy_pass`.
///
/// # Errors
/// nginx's texts for certificates that are missing.
pub fn pass(c: &ProxyConf, written: &ProxyPass, buffers: Buffers) -> ConfResult<Pass> {
    let target = match &written.target {
        WrittenTarget::Static(group, t) => PassTarget::Group(group.clone(), t.tls),
        WrittenTarget::Dynamic(url, groups) => PassTarget::Dynamic(url.clone(), groups.clone()),
    };
    let mut conf = c.pass.conf(buffers, HIDDEN, &written.temp_path);
    if let Some(cache) = &mut conf.cache {
        Arc::make_mut(cache).convert_head = c.pass.cache.convert_head.unwrap_or(true);
    }
    conf.pass_trailers = c.pass_trailers.unwrap_or(false);
    conf.proxy_protocol = c.proxy_protocol.flatten();
    if written.target().is_none_or(|t| t.tls) {
        let host = written.target().map(|t| t.host.as_slice());
        let alpn: &[u8] = match c.version {
            Some(HttpVersion::V2) => b"\x02h2",
            _ => b"",
        };
        conf.tls = Some(Arc::new(c.tls.build("proxy", host, alpn)?));
    }
    Ok(Pass::new(Box::new(protocol(c, written)), target, conf))
}

fn protocol(c: &ProxyConf, written: &ProxyPass) -> HttpProxy {
    let uri = match written.target() {
        None => Uri::Dynamic,
        Some(t) if t.uri.is_empty() => Uri::Same,
        Some(t) => Uri::Replace {
            location: written.location.clone(),
            with: t.uri.as_slice().into(),
        },
    };
    let redirects = match (&c.redirects, written.target()) {
        (Some(Rewriting::Off), _) | (None, None) => Arc::default(),
        (Some(Rewriting::Rules(rules)), _) => rules.clone(),
        (None, Some(target)) => Arc::new([default_rule(written, target)]),
    };
    HttpProxy {
        tls: written.target().is_some_and(|t| t.tls),
        host: written
            .target()
            .map(|t| t.host.as_slice().into())
            .unwrap_or_default(),
        port: written
            .target()
            .map(|t| t.port.as_slice().into())
            .unwrap_or_default(),
        uri,
        version: c.version.unwrap_or(HttpVersion::V11),
        method: c.method.clone(),
        body: c.body.clone(),
        headers: RequestHeaders::new(c.headers.as_deref().unwrap_or_default()),
        cached_headers: c
            .pass
            .cache
            .is_on()
            .then(|| RequestHeaders::cached(c.headers.as_deref().unwrap_or_default())),
        key_start: {
            let mut start = Vec::new();
            if let Some(t) = written.target() {
                key_start(t, &mut start);
            }
            start.into()
        },
        pass_headers: c.pass.pass_request_headers.unwrap_or(true),
        rewrites: Rewrites {
            redirects,
            domains: rules(&c.cookie_domains),
            paths: rules(&c.cookie_paths),
            flags: rules(&c.cookie_flags),
        },
    }
}

fn rules<T>(r: &Option<Rewriting<T>>) -> Arc<[T]> {
    match r {
        Some(Rewriting::Rules(list)) => list.clone(),
        _ => Arc::new([]),
    }
}

/// Headers of the answer that stay behind unless `proxy_pass_header` names them.
const HIDDEN: &[&[u8]] = &[
    b"date",
    b"server",
    b"x-pad",
    b"x-accel-expires",
    b"x-accel-redirect",
    b"x-accel-limit-rate",
    b"x-accel-buffering",
    b"x-accel-charset",
];
