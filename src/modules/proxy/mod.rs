//! `proxy_pass`: HTTP/1 origins, with the `proxy_*` directives and the `$proxy_*` and `$upstream_*` variables.

mod build;
mod cookies;
mod directives;
mod pass;
mod redirect;
mod request;
#[cfg(test)]
mod tests;
mod tls;
mod variables;

use crate::inherit;
use crate::module::*;
use cookies::FlagsRule;
use directives as set;
use pass::PassWritten;
use redirect::Rule;
use std::sync::Arc;
use tls::TlsWritten;

/// HTTP origins.
pub struct Proxy;

/// What the `proxy_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct ProxyConf {
    /// `proxy_pass`; inner locations do not inherit it.
    pass: Option<Arc<PassWritten>>,
    redirects: Option<Rewriting<Rule>>,
    cookie_domains: Option<Rewriting<Rule>>,
    cookie_paths: Option<Rewriting<Rule>>,
    cookie_flags: Option<Rewriting<FlagsRule>>,
    headers: Option<Vec<(Box<[u8]>, Template)>>,
    hide: Option<Vec<Box<[u8]>>>,
    pass_headers: Option<Vec<Box<[u8]>>>,
    method: Option<Template>,
    body: Option<Template>,
    http11: Option<bool>,
    connect_timeout: Option<u64>,
    send_timeout: Option<u64>,
    read_timeout: Option<u64>,
    next_upstream_timeout: Option<u64>,
    next_upstream_tries: Option<u64>,
    next_upstream: Option<u32>,
    ignore: Option<u32>,
    buffering: Option<bool>,
    request_buffering: Option<bool>,
    ignore_client_abort: Option<bool>,
    intercept_errors: Option<bool>,
    force_ranges: Option<bool>,
    pass_request_headers: Option<bool>,
    pass_request_body: Option<bool>,
    pass_trailers: Option<bool>,
    socket_keepalive: Option<bool>,
    bind: Option<Option<Template>>,
    limit_rate: Option<Template>,
    buffer_size: Option<u64>,
    buffers: Option<(u64, u64)>,
    busy_buffers_size: Option<u64>,
    max_temp_file_size: Option<u64>,
    temp_file_write_size: Option<u64>,
    temp_path: Option<Arc<TempPath>>,
    headers_hash_max_size: Option<u64>,
    headers_hash_bucket_size: Option<u64>,
    tls: TlsWritten,
    /// The last directive about buffers: where a contradiction among them is reported.
    sizes_at: Option<Arc<Statement>>,
}

/// A list of rewriting rules, or `off`.
#[derive(Clone)]
pub(super) enum Rewriting<T> {
    /// Nothing is rewritten.
    Off,
    /// The first rule that fits is used.
    Rules(Arc<[T]>),
}

impl Conf for ProxyConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; redirects, cookie_domains, cookie_paths, cookie_flags, headers, hide, pass_headers,
            method, body, http11, connect_timeout, send_timeout, read_timeout, next_upstream_timeout,
            next_upstream_tries, next_upstream, ignore, buffering, request_buffering, ignore_client_abort,
            intercept_errors, force_ranges, pass_request_headers, pass_request_body, pass_trailers, socket_keepalive,
            bind, limit_rate, buffer_size, buffers, busy_buffers_size,
            max_temp_file_size, temp_file_write_size, temp_path, headers_hash_max_size, headers_hash_bucket_size,
            sizes_at);
        self.tls.inherit(&outer.tls);
    }
}

const A: Place = Place::ANY_HTTP;
const PASS: Place = Place::LOCATION
    .or(Place::LOCATION_IF)
    .or(Place::LIMIT_EXCEPT);

/// A directive that stores one value once.
macro_rules! plain {
    ($name:literal, $args:expr, $field:ident, $read:ident, $help:literal) => {
        Directive::new($name, A, $args, $help, |c, s, _| {
            crate::engine::core::once(&mut c.$field, s, s.$read(0)?)
        })
    };
}

/// The same for sizes of buffers, which must agree with each other.
macro_rules! sized {
    ($name:literal, $field:ident, $help:literal) => {
        Directive::new($name, A, Args::Exactly(1), $help, |c, s, _| {
            c.sizes_at = Some(Arc::new(s.clone()));
            crate::engine::core::once(&mut c.$field, s, s.size(0)?)
        })
    };
}

const ONE: Args = Args::Exactly(1);
const FLAG: Args = Args::Flag;

impl Module for Proxy {
    const NAME: &'static str = "http_proxy";
    type Conf = ProxyConf;
    const DIRECTIVES: &'static [Directive<ProxyConf>] = &[
        Directive::new(
            "proxy_pass",
            PASS,
            ONE,
            "`proxy_pass URL;` Passes requests to `http://` or `https://` and an address, `unix:/path:`, or the name of an `upstream`; a URI replaces the location's name.",
            pass::proxy_pass,
        ),
        Directive::new(
            "proxy_redirect",
            A,
            Args::Between(1, 2),
            "`proxy_redirect default|off;`, `proxy_redirect redirect replacement;` Rewrites Location and Refresh. Default: default.",
            set::redirect,
        ),
        Directive::new(
            "proxy_cookie_domain",
            A,
            Args::Between(1, 2),
            "`proxy_cookie_domain off;`, `proxy_cookie_domain domain replacement;` Default: off.",
            set::cookie_domain,
        ),
        Directive::new(
            "proxy_cookie_path",
            A,
            Args::Between(1, 2),
            "`proxy_cookie_path off;`, `proxy_cookie_path path replacement;` Default: off.",
            set::cookie_path,
        ),
        Directive::new(
            "proxy_cookie_flags",
            A,
            Args::Between(1, 4),
            "`proxy_cookie_flags off|cookie [flag …];` Default: off.",
            set::cookie_flags,
        ),
        Directive::new(
            "proxy_set_header",
            A,
            Args::Exactly(2),
            "`proxy_set_header field value;` A header of the request; an empty value drops it. Defaults: Host $proxy_host, Connection \"\".",
            set::set_header,
        ),
        Directive::new(
            "proxy_hide_header",
            A,
            ONE,
            "`proxy_hide_header field;` A header of the response that is not passed on, besides Date, Server, X-Pad and X-Accel-….",
            |c, s, _| set::name(&mut c.hide, s),
        ),
        Directive::new(
            "proxy_pass_header",
            A,
            ONE,
            "`proxy_pass_header field;` Passes on a header that would be hidden.",
            |c, s, _| set::name(&mut c.pass_headers, s),
        ),
        Directive::new(
            "proxy_ignore_headers",
            A,
            Args::AtLeast(1),
            "`proxy_ignore_headers field …;` Headers of the response that are not obeyed.",
            |c, s, b| set::bits(&mut c.ignore, s, b, set::IGNORE),
        ),
        Directive::new(
            "proxy_method",
            A,
            ONE,
            "`proxy_method method;` The method sent to the origin. Default: the client's.",
            |c, s, b| set::template(&mut c.method, s, b),
        ),
        Directive::new(
            "proxy_set_body",
            A,
            ONE,
            "`proxy_set_body value;` Replaces the body of the request.",
            |c, s, b| set::template(&mut c.body, s, b),
        ),
        Directive::new(
            "proxy_http_version",
            A,
            ONE,
            "`proxy_http_version 1.0|1.1;` Default: 1.1.",
            set::http_version,
        ),
        plain!(
            "proxy_pass_request_headers",
            FLAG,
            pass_request_headers,
            flag,
            "`proxy_pass_request_headers on|off;` Default: on."
        ),
        plain!(
            "proxy_pass_request_body",
            FLAG,
            pass_request_body,
            flag,
            "`proxy_pass_request_body on|off;` Default: on."
        ),
        plain!(
            "proxy_pass_trailers",
            FLAG,
            pass_trailers,
            flag,
            "`proxy_pass_trailers on|off;` Passes trailers of the response on. Default: off."
        ),
        plain!(
            "proxy_buffering",
            FLAG,
            buffering,
            flag,
            "`proxy_buffering on|off;` Reads the response as fast as the origin sends it. Default: on."
        ),
        plain!(
            "proxy_request_buffering",
            FLAG,
            request_buffering,
            flag,
            "`proxy_request_buffering on|off;` Reads the whole body before the origin is asked. Default: on."
        ),
        plain!(
            "proxy_ignore_client_abort",
            FLAG,
            ignore_client_abort,
            flag,
            "`proxy_ignore_client_abort on|off;` Goes on when the client has closed. Default: off."
        ),
        plain!(
            "proxy_intercept_errors",
            FLAG,
            intercept_errors,
            flag,
            "`proxy_intercept_errors on|off;` Statuses of 300 and above go to `error_page`. Default: off."
        ),
        plain!(
            "proxy_force_ranges",
            FLAG,
            force_ranges,
            flag,
            "`proxy_force_ranges on|off;` Serves ranges whatever Accept-Ranges says. Default: off."
        ),
        plain!(
            "proxy_connect_timeout",
            ONE,
            connect_timeout,
            msec,
            "`proxy_connect_timeout time;` Default: 60s."
        ),
        plain!(
            "proxy_send_timeout",
            ONE,
            send_timeout,
            msec,
            "`proxy_send_timeout time;` Between two writes of the request. Default: 60s."
        ),
        plain!(
            "proxy_read_timeout",
            ONE,
            read_timeout,
            msec,
            "`proxy_read_timeout time;` Between two reads of the response. Default: 60s."
        ),
        Directive::new(
            "proxy_next_upstream",
            A,
            Args::AtLeast(1),
            "`proxy_next_upstream error|timeout|invalid_header|http_500|…|non_idempotent|off …;` When the next server is tried. Default: error timeout.",
            |c, s, b| set::bits(&mut c.next_upstream, s, b, set::NEXT),
        ),
        plain!(
            "proxy_next_upstream_tries",
            ONE,
            next_upstream_tries,
            number,
            "`proxy_next_upstream_tries number;` 0 is without limit. Default: 0."
        ),
        plain!(
            "proxy_next_upstream_timeout",
            ONE,
            next_upstream_timeout,
            msec,
            "`proxy_next_upstream_timeout time;` 0 is without limit. Default: 0."
        ),
        Directive::new(
            "proxy_bind",
            A,
            Args::Between(1, 2),
            "`proxy_bind address|off;` The local address of connections to the origin.",
            set::bind,
        ),
        plain!(
            "proxy_socket_keepalive",
            FLAG,
            socket_keepalive,
            flag,
            "`proxy_socket_keepalive on|off;` TCP keepalive towards the origin. Default: off."
        ),
        Directive::inert(
            "proxy_send_lowat",
            A,
            ONE,
            "Has no effect on Linux, in nginx neither.",
        ),
        Directive::new(
            "proxy_limit_rate",
            A,
            ONE,
            "`proxy_limit_rate rate;` Bytes a second read from the origin. Default: 0 (no limit).",
            set::limit_rate,
        ),
        sized!(
            "proxy_buffer_size",
            buffer_size,
            "`proxy_buffer_size size;` The head of the response must fit. Default: 4k."
        ),
        Directive::new(
            "proxy_buffers",
            A,
            Args::Exactly(2),
            "`proxy_buffers number size;` Buffers of one response. Default: 8 4k.",
            set::buffers,
        ),
        sized!(
            "proxy_busy_buffers_size",
            busy_buffers_size,
            "`proxy_busy_buffers_size size;` Checked as in nginx and not used: what is on its way is bounded by proxy_buffers. Default: 8k."
        ),
        sized!(
            "proxy_max_temp_file_size",
            max_temp_file_size,
            "`proxy_max_temp_file_size size;` 0 keeps responses out of files. Default: 1024m."
        ),
        sized!(
            "proxy_temp_file_write_size",
            temp_file_write_size,
            "`proxy_temp_file_write_size size;` Checked as in nginx and not used: pieces are written as they come. Default: 8k."
        ),
        Directive::new(
            "proxy_temp_path",
            A,
            Args::Between(1, 4),
            "`proxy_temp_path path [level1 [level2 [level3]]];` Default: proxy_temp 1 2.",
            |c, s, b| {
                crate::engine::core::once(
                    &mut c.temp_path,
                    s,
                    crate::engine::core::http::temp_path(s, b)?,
                )
            },
        ),
        plain!(
            "proxy_headers_hash_max_size",
            ONE,
            headers_hash_max_size,
            number,
            "`proxy_headers_hash_max_size size;` Accepted and not used: tables size themselves."
        ),
        plain!(
            "proxy_headers_hash_bucket_size",
            ONE,
            headers_hash_bucket_size,
            number,
            "`proxy_headers_hash_bucket_size size;` Accepted and not used: tables size themselves."
        ),
        Directive::new(
            "proxy_ssl_server_name",
            A,
            FLAG,
            "`proxy_ssl_server_name on|off;` Sends the server's name (SNI); it is sent in any case where it is verified. Default: off.",
            tls::server_name,
        ),
        Directive::new(
            "proxy_ssl_name",
            A,
            ONE,
            "`proxy_ssl_name name;` The name to send and to verify. Default: $proxy_host.",
            tls::name,
        ),
        Directive::new(
            "proxy_ssl_verify",
            A,
            FLAG,
            "`proxy_ssl_verify on|off;` Verifies the origin's certificate. Default: off.",
            tls::verify,
        ),
        Directive::new(
            "proxy_ssl_verify_depth",
            A,
            ONE,
            "`proxy_ssl_verify_depth number;` Accepted; the length of chains is not limited.",
            tls::verify_depth,
        ),
        Directive::new(
            "proxy_ssl_trusted_certificate",
            A,
            ONE,
            "`proxy_ssl_trusted_certificate file;` CA certificates (PEM) for `proxy_ssl_verify`.",
            tls::trusted,
        ),
        Directive::new(
            "proxy_ssl_protocols",
            A,
            Args::AtLeast(1),
            "`proxy_ssl_protocols protocol …;` TLSv1.2 and TLSv1.3 must be among them. Default: TLSv1.2 TLSv1.3.",
            tls::protocols,
        ),
        Directive::new(
            "proxy_ssl_ciphers",
            A,
            ONE,
            "`proxy_ssl_ciphers DEFAULT;` Other lists are not supported yet.",
            tls::ciphers,
        ),
        Directive::new(
            "proxy_ssl_session_reuse",
            A,
            FLAG,
            "`proxy_ssl_session_reuse on|off;` Accepted; every handshake is a full one.",
            tls::session_reuse,
        ),
        Directive::new(
            "proxy_ssl_certificate",
            A,
            ONE,
            "`proxy_ssl_certificate file;` The client's certificate (PEM).",
            tls::certificate,
        ),
        Directive::new(
            "proxy_ssl_certificate_key",
            A,
            ONE,
            "`proxy_ssl_certificate_key file;` Its key (PEM, without a password).",
            tls::certificate_key,
        ),
        Directive::new(
            "proxy_ssl_certificate_cache",
            A,
            Args::Between(1, 3),
            "`proxy_ssl_certificate_cache off|max=N …;` Not supported yet.",
            tls::unsupported,
        ),
        Directive::new(
            "proxy_ssl_password_file",
            A,
            ONE,
            "`proxy_ssl_password_file file;` Not supported yet.",
            tls::unsupported,
        ),
        Directive::new(
            "proxy_ssl_crl",
            A,
            ONE,
            "`proxy_ssl_crl file;` Not supported yet.",
            tls::unsupported,
        ),
        Directive::new(
            "proxy_ssl_conf_command",
            A,
            Args::Exactly(2),
            "`proxy_ssl_conf_command name value;` Not supported yet.",
            tls::unsupported,
        ),
    ];
    const VARIABLES: &'static [Variable] = variables::VARIABLES;

    fn attach(conf: &Arc<ProxyConf>, on: &mut Hooks) -> ConfResult<()> {
        let buffers = build::buffers(conf)?;
        if let Some(written) = &conf.pass {
            on.upstream(Arc::new(build::pass(conf, written, buffers)?));
            if written.slash {
                on.redirect_to_slash();
            }
        }
        Ok(())
    }
}
