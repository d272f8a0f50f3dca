//! Variables of the core: nginx's ngx_http_core_module.

mod connection;
mod request;
mod response;

use crate::contract::{Val, Variable};
use crate::http::headers::Headers;

use self::connection as c;
use self::request as q;
use self::response as o;

/// Every variable of nginx's ngx_http_core_module.
#[rustfmt::skip] // a table
pub const VARIABLES: &[Variable] = &[
    // the head of the request; those with an entry of their own cannot be redefined
    Variable::new("http_host", |r, _| joined(r.headers(), b"host", b", ")),
    Variable::new("http_user_agent", |r, _| joined(r.headers(), b"user_agent", b", ")),
    Variable::new("http_referer", |r, _| joined(r.headers(), b"referer", b", ")),
    Variable::new("http_via", |r, _| joined(r.headers(), b"via", b", ")),
    Variable::new("http_x_forwarded_for", |r, _| joined(r.headers(), b"x_forwarded_for", b", ")),
    Variable::new("http_cookie", |r, _| joined(r.headers(), b"cookie", b"; ")),
    Variable::prefix("http_", |r, name| joined(r.headers(), name, b", ")),
    Variable::prefix("cookie_", q::cookie),
    Variable::prefix("arg_", |r, name| Val::from_option(crate::http::uri::arg(&r.args, name))),
    Variable::new("content_length", q::content_length),
    Variable::new("content_type", |r, _| joined(r.headers(), b"content_type", b", ")),
    Variable::new("host", q::host),
    Variable::new("server_name", |r, _| Val::Bytes(&r.server().name)),
    Variable::new("request", |r, _| present(&r.head.line)),
    Variable::new("request_uri", |r, _| present(r.unparsed_uri())),
    Variable::new("request_method", |r, _| present(r.main_method_text())),
    Variable::new("server_protocol", q::protocol),
    Variable::new("scheme", |r, _| Val::Bytes(if c::is_tls(r) { b"https" } else { b"http" })),
    Variable::new("https", |r, _| Val::Bytes(if c::is_tls(r) { b"on" } else { b"" })),
    Variable::new("request_port", |r, _| port(r.head.host_port)),
    Variable::new("is_request_port", |r, _| Val::Bytes(if r.head.host_port == 0 { b"" } else { b":" })),
    Variable::new("remote_user", q::remote_user).memo(),
    // the URI in force
    Variable::new("uri", |r, _| present(&r.uri)),
    Variable::new("document_uri", |r, _| present(&r.uri)),
    Variable::new("query_string", |r, _| present(&r.args)),
    Variable::new("args", |r, _| present(&r.args)).setter(q::set_args),
    Variable::new("is_args", |r, _| Val::Bytes(if r.args.is_empty() { b"" } else { b"?" })),
    Variable::new("document_root", |r, _| q::document_root(r)),
    Variable::new("realpath_root", q::realpath_root),
    Variable::new("request_filename", |r, _| Val::Owned(crate::contract::paths::map_path(r))),
    // the body of the request
    Variable::new("request_body", q::body),
    Variable::new("request_body_file", q::body_file),
    Variable::new("request_length", |r, _| Val::number(r.length())),
    Variable::new("request_id", q::id).memo(),
    // the connection
    Variable::new("binary_remote_addr", c::binary_remote_addr),
    Variable::new("remote_addr", |r, _| Val::Bytes(r.remote.text.as_bytes())),
    Variable::new("remote_port", |r, _| port(r.remote.port())),
    Variable::new("server_addr", |r, _| r.local_address()),
    Variable::new("server_port", |r, _| port(r.conn().local.port())),
    Variable::new("proxy_protocol_addr", |r, _| c::proxy(r, |p| Val::Bytes(p.source.text.as_bytes()))),
    Variable::new("proxy_protocol_port", |r, _| c::proxy(r, |p| port(p.source.port()))),
    Variable::new("proxy_protocol_server_addr", |r, _| c::proxy(r, |p| Val::Bytes(p.destination.text.as_bytes()))),
    Variable::new("proxy_protocol_server_port", |r, _| c::proxy(r, |p| port(p.destination.port()))),
    Variable::prefix("proxy_protocol_tlv_", c::proxy_tlv),
    Variable::new("connection", |r, _| Val::number(r.conn().serial)),
    Variable::new("connection_requests", c::requests),
    Variable::new("connection_time", |r, _| Val::seconds(r.conn().start.elapsed().as_millis() as u64)),
    Variable::new("pipe", |r, _| Val::Bytes(if r.pipelined { b"p" } else { b"." })),
    Variable::new("tcpinfo_rtt", |r, _| c::tcp_info(r, |i| i.rtt)),
    Variable::new("tcpinfo_rttvar", |r, _| c::tcp_info(r, |i| i.rttvar)),
    Variable::new("tcpinfo_snd_cwnd", |r, _| c::tcp_info(r, |i| i.snd_cwnd)),
    Variable::new("tcpinfo_rcv_space", |r, _| c::tcp_info(r, |i| i.rcv_space)),
    // the process and the clock
    Variable::new("nginx_version", |_, _| Val::Bytes(c::version())),
    Variable::new("hostname", |_, _| Val::Bytes(c::hostname())),
    Variable::new("pid", |_, _| Val::number(u64::from(std::process::id()))),
    Variable::new("msec", c::msec),
    Variable::new("time_iso8601", c::time_iso8601),
    Variable::new("time_local", c::time_local),
    Variable::new("request_time", |r, _| Val::seconds(r.elapsed())),
    // the response
    Variable::new("status", o::status),
    Variable::new("bytes_sent", |r, _| Val::number(r.down.sent())),
    Variable::new("body_bytes_sent", |r, _| Val::number(r.body_bytes_sent())),
    Variable::new("request_completion", o::completion),
    Variable::new("limit_rate", |r, _| Val::number(r.limit_rate)).setter(o::set_limit_rate),
    Variable::new("sent_http_content_type", |r, _| r.out.by_variable(b"content_type")),
    Variable::new("sent_http_content_length", |r, _| r.out.by_variable(b"content_length")),
    Variable::new("sent_http_location", |r, _| r.out.by_variable(b"location")),
    Variable::new("sent_http_last_modified", |r, _| r.out.by_variable(b"last_modified")),
    Variable::new("sent_http_connection", o::connection),
    Variable::new("sent_http_keep_alive", o::keep_alive),
    Variable::new("sent_http_transfer_encoding", o::transfer_encoding),
    Variable::new("sent_http_cache_control", |r, _| joined(&r.out.headers, b"cache_control", b", ")),
    Variable::new("sent_http_link", |r, _| joined(&r.out.headers, b"link", b", ")),
    Variable::prefix("sent_http_", o::header),
    Variable::prefix("sent_trailer_", |r, name| joined(&r.out.trailers, name, b", ")),
];

/// A value that nginx has only where it is not empty.
fn present(text: &[u8]) -> Val<'_> {
    if text.is_empty() {
        Val::None
    } else {
        Val::Bytes(text)
    }
}

/// A port; empty where there is none.
fn port(n: u16) -> Val<'static> {
    if n == 0 {
        Val::EMPTY
    } else {
        Val::number(u64::from(n))
    }
}

/// Every value of a header, by the variable's spelling of its name.
fn joined<'r>(headers: &'r Headers, name: &[u8], separator: &[u8]) -> Val<'r> {
    let mut values = headers.all_by_variable(name);
    let Some(first) = values.next() else {
        return Val::None;
    };
    if values.next().is_none() {
        return Val::Bytes(first);
    }
    let mut all = Vec::with_capacity(128);
    headers.joined_by_variable(name, separator, &mut all);
    Val::Owned(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_headers_are_joined() {
        let mut h = Headers::new();
        for (name, value) in [
            ("X-Foo", "a"),
            ("Cookie", "c=1"),
            ("x-foo", "b"),
            ("Cookie", "d=2"),
            ("X-Bar", ""),
        ] {
            h.append(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(joined(&h, b"x_foo", b", ").as_bytes(), b"a, b");
        assert_eq!(joined(&h, b"cookie", b"; ").as_bytes(), b"c=1; d=2");
        assert!(matches!(joined(&h, b"x_bar", b", "), Val::Bytes(b"")));
        assert!(joined(&h, b"x-foo", b", ").is_none());
    }

    #[test]
    fn names_are_declared_once() {
        let mut names: Vec<_> = VARIABLES.iter().map(|v| (v.name, v.prefix)).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
