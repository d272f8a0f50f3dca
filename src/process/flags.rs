//! What `-V` tells of the modules, in the form of nginx's configure script.
//!
//! Truthful by construction: a module is there if its directives are.

use std::ffi::CStr;

use crate::contract::ModuleRegistry;

/// The TLS library as it names itself: `OpenSSL 3.6.3 9 Jun 2026`.
pub(super) fn tls_library() -> &'static str {
    use pingora_core::tls::ssl_sys;
    // SAFETY: the library returns a text that it never frees
    #[allow(unsafe_code)]
    let text = unsafe { CStr::from_ptr(ssl_sys::OpenSSL_version(ssl_sys::OPENSSL_VERSION)) };
    text.to_str().unwrap_or("OpenSSL")
}

/// The flags for which this list of modules differs from nginx's default, then those that it adds.
pub(super) fn modules(registry: &ModuleRegistry) -> Vec<&'static str> {
    let there = |directive: &str| registry.offers(directive);
    let optional = OPTIONAL.iter().filter(|(_, directive)| there(directive));
    let standard = STANDARD.iter().filter(|(_, directive)| !there(directive));
    optional.chain(standard).map(|(flag, _)| *flag).collect()
}

/// Modules that nginx has only on demand, each with a directive that is its own.
const OPTIONAL: &[(&str, &str)] = &[
    ("--with-http_ssl_module", "ssl_certificate"),
    ("--with-http_v2_module", "http2"),
    ("--with-http_v3_module", "http3"),
    ("--with-http_realip_module", "set_real_ip_from"),
    ("--with-http_addition_module", "add_after_body"),
    ("--with-http_sub_module", "sub_filter"),
    ("--with-http_dav_module", "dav_methods"),
    ("--with-http_flv_module", "flv"),
    ("--with-http_mp4_module", "mp4"),
    ("--with-http_gunzip_module", "gunzip"),
    ("--with-http_gzip_static_module", "gzip_static"),
    ("--with-http_auth_request_module", "auth_request"),
    ("--with-http_random_index_module", "random_index"),
    ("--with-http_secure_link_module", "secure_link"),
    ("--with-http_slice_module", "slice"),
    ("--with-http_stub_status_module", "stub_status"),
    ("--with-http_geoip_module", "geoip_country"),
    ("--with-http_image_filter_module", "image_filter"),
    ("--with-http_xslt_module", "xslt_stylesheet"),
    ("--with-http_perl_module", "perl_modules"),
    ("--with-mail", "mail"),
    ("--with-stream", "stream"),
    ("--with-stream_ssl_module", "ssl_handshake_timeout"),
    ("--with-stream_ssl_preread_module", "ssl_preread"),
];

/// Modules that nginx has unless it is told otherwise.
const STANDARD: &[(&str, &str)] = &[
    ("--without-http-cache", "proxy_cache"),
    ("--without-http_charset_module", "charset"),
    ("--without-http_gzip_module", "gzip"),
    ("--without-http_ssi_module", "ssi"),
    ("--without-http_userid_module", "userid"),
    ("--without-http_access_module", "allow"),
    ("--without-http_auth_basic_module", "auth_basic"),
    ("--without-http_mirror_module", "mirror"),
    ("--without-http_autoindex_module", "autoindex"),
    ("--without-http_geo_module", "geo"),
    ("--without-http_map_module", "map"),
    ("--without-http_split_clients_module", "split_clients"),
    ("--without-http_referer_module", "valid_referers"),
    ("--without-http_rewrite_module", "rewrite"),
    ("--without-http_proxy_module", "proxy_pass"),
    ("--without-http_fastcgi_module", "fastcgi_pass"),
    ("--without-http_uwsgi_module", "uwsgi_pass"),
    ("--without-http_scgi_module", "scgi_pass"),
    ("--without-http_grpc_module", "grpc_pass"),
    ("--without-http_tunnel_module", "tunnel_pass"),
    ("--without-http_memcached_module", "memcached_pass"),
    ("--without-http_limit_conn_module", "limit_conn"),
    ("--without-http_limit_req_module", "limit_req"),
    ("--without-http_empty_gif_module", "empty_gif"),
    ("--without-http_browser_module", "ancient_browser"),
    ("--without-http_upstream_hash_module", "hash"),
    ("--without-http_upstream_ip_hash_module", "ip_hash"),
    ("--without-http_upstream_least_conn_module", "least_conn"),
    ("--without-http_upstream_least_time_module", "least_time"),
    ("--without-http_upstream_random_module", "random"),
    ("--without-http_upstream_keepalive_module", "keepalive"),
    ("--without-http_upstream_zone_module", "zone"),
    ("--without-http_upstream_sticky_module", "sticky"),
];
