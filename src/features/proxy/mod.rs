//! `proxy_pass`: HTTP/1 origins, with the `proxy_*` directives and the `$proxy_*` and `$upstream_*` variables.

mod build;
mod cookies;
mod directives;
mod pass;
mod redirect;
pub(crate) mod request;
#[cfg(test)]
mod tests;
mod variables;

use crate::contract::*;
use crate::features::pass::tls::{TlsWritten, tls_directives};
use crate::features::pass::{self as shared, PassWritten};
use crate::inherit;
use crate::upstream::proxy_header::ProxyHeader;
use cookies::FlagsRule;
use directives as set;
use pass::ProxyPass;
use redirect::Rule;
use std::sync::Arc;

/// HTTP origins.
pub struct Proxy;

/// What the `proxy_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct ProxyConf {
    /// `proxy_pass`; inner locations do not inherit it.
    to: Option<Arc<ProxyPass>>,
    /// What it shares with the other protocols.
    pass: PassWritten,
    redirects: Option<Rewriting<Rule>>,
    cookie_domains: Option<Rewriting<Rule>>,
    cookie_paths: Option<Rewriting<Rule>>,
    cookie_flags: Option<Rewriting<FlagsRule>>,
    headers: Option<Vec<(Box<[u8]>, Template)>>,
    method: Option<Template>,
    body: Option<Template>,
    version: Option<HttpVersion>,
    proxy_protocol: Option<Option<ProxyHeader>>,
    pass_trailers: Option<bool>,
    headers_hash_max_size: Option<u64>,
    headers_hash_bucket_size: Option<u64>,
    tls: TlsWritten,
}

/// `proxy_http_version`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0.
    V10,
    /// HTTP/1.1.
    V11,
    /// HTTP/2.
    V2,
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
        inherit!(self, outer; redirects, cookie_domains, cookie_paths, cookie_flags, headers, method, body, version, proxy_protocol,
            pass_trailers, headers_hash_max_size, headers_hash_bucket_size);
        self.pass.inherit(&outer.pass);
        self.tls.inherit(&outer.tls);
    }
}

const PASS: Place = Place::LOCATION
    .or(Place::LOCATION_IF)
    .or(Place::LIMIT_EXCEPT);

/// A directive that stores one value once.
macro_rules! plain {
    ($name:literal, $args:expr, $field:ident, $read:ident, $help:literal) => {
        Directive::new($name, Place::ANY_HTTP, $args, $help, |c, s, _| {
            crate::engine::core::once(&mut c.$field, s, s.$read(0)?)
        })
    };
}

const ONE: Args = Args::Exactly(1);
const FLAG: Args = Args::Flag;

impl Module for Proxy {
    const NAME: &'static str = "http_proxy";
    type Conf = ProxyConf;
    const DIRECTIVES: &'static [Directive<ProxyConf>] = shared::join_directives!(
        ProxyConf;
        OWN,
        shared::connect_directives!(
            "proxy",
            ProxyConf,
            shared::NEXT,
            "error|timeout|invalid_header|http_500|…|non_idempotent|off"
        ),
        shared::response_directives!("proxy", ProxyConf, shared::IGNORE, "Date, Server, X-Pad and "),
        shared::buffer_directives!("proxy", ProxyConf),
        shared::socket_directives!("proxy", ProxyConf),
        shared::cache_directives!("proxy", ProxyConf, " Default: $scheme$proxy_host$request_uri."),
        CONVERT_HEAD,
        tls_directives!("proxy", ProxyConf),
    );
    const VARIABLES: &'static [Variable] = variables::VARIABLES;

    fn attach(conf: &Arc<ProxyConf>, on: &mut Hooks) -> ConfResult<()> {
        let buffers = conf.pass.buffers("proxy")?;
        if let Some(written) = &conf.to {
            on.upstream(Arc::new(build::pass(conf, written, buffers)?));
            if written.slash {
                on.redirect_to_slash();
            }
        }
        Ok(())
    }
}

/// What of the cache only HTTP has.
const CONVERT_HEAD: &[Directive<ProxyConf>] = &[Directive::new(
    "proxy_cache_convert_head",
    Place::ANY_HTTP,
    FLAG,
    "`proxy_cache_convert_head on|off;` Asks for the whole response where the client asks for its head, so that it can be stored. Default: on.",
    |c, s, _| once(&mut c.pass.cache.convert_head, s, s.flag(0)?),
)];

/// The directives that only this module has.
const OWN: &[Directive<ProxyConf>] = &[
    Directive::content(Directive::new(
        "proxy_pass",
        PASS,
        ONE,
        "`proxy_pass URL;` Passes requests to `http://` or `https://` and an address, `unix:/path:`, or the name of an `upstream`; a URI replaces the location's name.",
        pass::proxy_pass,
    )),
    Directive::new(
        "proxy_redirect",
        Place::ANY_HTTP,
        Args::Between(1, 2),
        "`proxy_redirect default|off;`, `proxy_redirect redirect replacement;` Rewrites Location and Refresh. Default: default.",
        set::redirect,
    ),
    Directive::new(
        "proxy_cookie_domain",
        Place::ANY_HTTP,
        Args::Between(1, 2),
        "`proxy_cookie_domain off;`, `proxy_cookie_domain domain replacement;` Default: off.",
        set::cookie_domain,
    ),
    Directive::new(
        "proxy_cookie_path",
        Place::ANY_HTTP,
        Args::Between(1, 2),
        "`proxy_cookie_path off;`, `proxy_cookie_path path replacement;` Default: off.",
        set::cookie_path,
    ),
    Directive::new(
        "proxy_cookie_flags",
        Place::ANY_HTTP,
        Args::Between(1, 4),
        "`proxy_cookie_flags off|cookie [flag …];` Default: off.",
        set::cookie_flags,
    ),
    Directive::new(
        "proxy_set_header",
        Place::ANY_HTTP,
        Args::Exactly(2),
        "`proxy_set_header field value;` A header of the request; an empty value drops it. Defaults: Host $proxy_host, Connection \"\".",
        set::set_header,
    ),
    Directive::new(
        "proxy_method",
        Place::ANY_HTTP,
        ONE,
        "`proxy_method method;` The method sent to the origin. Default: the client's.",
        |c, s, b| shared::template(&mut c.method, s, b),
    ),
    Directive::new(
        "proxy_set_body",
        Place::ANY_HTTP,
        ONE,
        "`proxy_set_body value;` Replaces the body of the request.",
        |c, s, b| shared::template(&mut c.body, s, b),
    ),
    Directive::new(
        "proxy_http_version",
        Place::ANY_HTTP,
        ONE,
        "`proxy_http_version 1.0|1.1|2;` 2 is HTTP/2, without TLS by prior knowledge. Default: 1.1.",
        set::http_version,
    ),
    Directive::own(
        "proxy_protocol",
        Place::ANY_HTTP,
        ONE,
        "`proxy_protocol off|on|v1|v2;` Connections to the origin begin with a PROXY protocol header (`on` is v1) that tells the client's address; they serve one request each. Default: off.",
        set::proxy_protocol,
    ),
    plain!(
        "proxy_pass_trailers",
        FLAG,
        pass_trailers,
        flag,
        "`proxy_pass_trailers on|off;` Passes trailers of the response on. Default: off."
    ),
    Directive::inert(
        "proxy_send_lowat",
        Place::ANY_HTTP,
        ONE,
        inert::lowat,
        "Has no effect on Linux, in nginx neither.",
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
];
