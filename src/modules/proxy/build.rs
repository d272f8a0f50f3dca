//! From written settings to a [`Pass`].

use super::pass::{PassWritten, WrittenTarget};
use super::redirect::default_rule;
use super::request::{HttpProxy, RequestHeaders, Rewrites, Uri};
use super::{ProxyConf, Rewriting};
use crate::http::names::NameSet;
use crate::module::*;
use std::sync::Arc;

/// A memory page: nginx's unit of buffers.
const PAGE: u64 = 4096;

/// Sizes of buffers, once they are known to agree with each other.
pub struct Buffers {
    size: usize,
    list: (usize, usize),
    busy: usize,
    max_temp_file: u64,
    temp_file_write: usize,
}

/// Works the sizes of buffers out.
///
/// # Errors
/// nginx's texts where they contradict each other.
pub fn buffers(c: &ProxyConf) -> ConfResult<Buffers> {
    let error = |text: &str| match &c.sizes_at {
        Some(s) => s.error(text),
        None => Diag::plain(text),
    };
    let head = c.buffer_size.unwrap_or(PAGE);
    let (number, each) = c.buffers.unwrap_or((8, PAGE));
    if number < 2 {
        return Err(error("there must be at least 2 \"proxy_buffers\""));
    }
    let largest = head.max(each);
    let busy = c.busy_buffers_size.unwrap_or(2 * largest);
    if busy < largest {
        return Err(error(
            "\"proxy_busy_buffers_size\" must be equal to or greater than the maximum of the value of \
             \"proxy_buffer_size\" and one of the \"proxy_buffers\"",
        ));
    }
    if busy > (number - 1).saturating_mul(each) {
        return Err(error(
            "\"proxy_busy_buffers_size\" must be less than the size of all \"proxy_buffers\" minus one buffer",
        ));
    }
    let write = c.temp_file_write_size.unwrap_or(2 * largest);
    if write < largest {
        return Err(error(
            "\"proxy_temp_file_write_size\" must be equal to or greater than the maximum of the value of \
             \"proxy_buffer_size\" and one of the \"proxy_buffers\"",
        ));
    }
    let max_temp_file = c.max_temp_file_size.unwrap_or(1 << 30);
    if max_temp_file != 0 && max_temp_file < largest {
        return Err(error(
            "\"proxy_max_temp_file_size\" must be equal to zero to disable temporary files usage or must be equal to \
             or greater than the maximum of the value of \"proxy_buffer_size\" and one of the \"proxy_buffers\"",
        ));
    }
    Ok(Buffers {
        size: head as usize,
        list: (number as usize, each as usize),
        busy: busy as usize,
        max_temp_file,
        temp_file_write: write as usize,
    })
}

/// Assembles the content of a location with `proxy_pass`.
///
/// # Errors
/// nginx's texts for certificates that are missing.
pub fn pass(c: &ProxyConf, written: &PassWritten, buffers: Buffers) -> ConfResult<Pass> {
    let target = match &written.target {
        WrittenTarget::Static(group, t) => PassTarget::Group(group.clone(), t.tls),
        WrittenTarget::Dynamic(url, groups) => PassTarget::Dynamic(url.clone(), groups.clone()),
    };
    let mut conf = conf(c, written, buffers);
    if written.target().is_none_or(|t| t.tls) {
        conf.tls = Some(Arc::new(c.tls.build()?));
    }
    Ok(Pass {
        protocol: Box::new(protocol(c, written)),
        target,
        conf,
    })
}

fn protocol(c: &ProxyConf, written: &PassWritten) -> HttpProxy {
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
        http11: c.http11.unwrap_or(true),
        method: c.method.clone(),
        body: c.body.clone(),
        headers: RequestHeaders::new(c.headers.as_deref().unwrap_or_default()),
        pass_headers: c.pass_request_headers.unwrap_or(true),
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

fn conf(c: &ProxyConf, written: &PassWritten, buffers: Buffers) -> PassConf {
    let next_upstream = match c.next_upstream.unwrap_or(next::ERROR | next::TIMEOUT) {
        bits if bits & next::OFF != 0 => next::OFF,
        bits => bits,
    };
    PassConf {
        connect_timeout: c.connect_timeout.unwrap_or(60_000),
        send_timeout: c.send_timeout.unwrap_or(60_000),
        read_timeout: c.read_timeout.unwrap_or(60_000),
        buffering: c.buffering.unwrap_or(true),
        request_buffering: c.request_buffering.unwrap_or(true),
        buffer_size: buffers.size,
        buffers: buffers.list,
        busy_buffers_size: buffers.busy,
        max_temp_file_size: buffers.max_temp_file,
        temp_file_write_size: buffers.temp_file_write,
        temp_path: c
            .temp_path
            .clone()
            .unwrap_or_else(|| written.temp_path.clone()),
        limit_rate: c.limit_rate.clone(),
        ignore_client_abort: c.ignore_client_abort.unwrap_or(false),
        intercept_errors: c.intercept_errors.unwrap_or(false),
        next_upstream,
        next_upstream_tries: c
            .next_upstream_tries
            .map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        next_upstream_timeout: c.next_upstream_timeout.unwrap_or(0),
        pass_request_body: c.pass_request_body.unwrap_or(true),
        pass_trailers: c.pass_trailers.unwrap_or(false),
        force_ranges: c.force_ranges.unwrap_or(false),
        socket_keepalive: c.socket_keepalive.unwrap_or(false),
        bind: c.bind.clone().flatten(),
        hide: Arc::new(hidden(c)),
        ignore: c.ignore.unwrap_or(0),
        tls: None,
    }
}

/// nginx's list of headers that stay behind, with `proxy_hide_header` and without `proxy_pass_header`.
fn hidden(c: &ProxyConf) -> NameSet {
    const DEFAULT: [&[u8]; 8] = [
        b"date",
        b"server",
        b"x-pad",
        b"x-accel-expires",
        b"x-accel-redirect",
        b"x-accel-limit-rate",
        b"x-accel-buffering",
        b"x-accel-charset",
    ];
    let mut set: NameSet = DEFAULT
        .into_iter()
        .chain(c.hide.iter().flatten().map(|n| &**n))
        .collect();
    for name in c.pass_headers.iter().flatten() {
        set.remove(name);
    }
    set
}
