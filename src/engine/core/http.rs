//! Directives of `http`, `server` and `location` that the runtime itself reads.

mod parse_args;

use super::super::gzip;
use super::{errors, location, once, server};
use crate::config::Result;
use crate::contract::*;
use crate::files::FileCache;
use crate::inherit;
pub(crate) use parse_args::resolver;
pub use parse_args::temp_path;
use parse_args::{file_cache, size_template, types};
use std::sync::Arc;

/// Core settings of locations.
pub struct HttpCore;

/// What a block says; see [`CoreConf`] for the meaning of each.
#[derive(Default, Clone)]
#[allow(missing_docs)]
pub struct HttpDirectives {
    pub root: Option<Root>,
    pub error_pages: Option<Vec<ErrorPage>>,
    pub recursive_error_pages: Option<bool>,
    pub types: Option<Arc<Types>>,
    pub default_type: Option<Arc<[u8]>>,
    pub error_log: Option<Vec<(crate::log::Target, crate::log::Threshold)>>,
    pub log_not_found: Option<bool>,
    pub log_subrequest: Option<bool>,
    pub subrequest_output_buffer_size: Option<u64>,
    pub post_action: Option<Arc<[u8]>>,
    pub client_max_body_size: Option<u64>,
    pub client_body_buffer_size: Option<u64>,
    pub client_body_timeout: Option<u64>,
    pub client_body_in_file_only: Option<BodyInFile>,
    pub client_body_in_single_buffer: Option<bool>,
    pub client_body_temp_path: Option<Arc<TempPath>>,
    pub send_timeout: Option<u64>,
    pub keepalive_timeout: Option<(u64, u64)>,
    pub keepalive_min_timeout: Option<u64>,
    pub keepalive_requests: Option<u64>,
    pub keepalive_time: Option<u64>,
    pub keepalive_disable: Option<(bool, bool)>,
    pub lingering_close: Option<Lingering>,
    pub lingering_time: Option<u64>,
    pub lingering_timeout: Option<u64>,
    pub reset_timedout_connection: Option<bool>,
    pub tcp_nodelay: Option<bool>,
    pub server_tokens: Option<Tokens>,
    pub absolute_redirect: Option<bool>,
    pub server_name_in_redirect: Option<bool>,
    pub port_in_redirect: Option<bool>,
    pub msie_padding: Option<bool>,
    pub msie_refresh: Option<bool>,
    pub chunked_transfer_encoding: Option<bool>,
    pub etag: Option<bool>,
    pub if_modified_since: Option<IfModifiedSince>,
    pub max_ranges: Option<Option<u64>>,
    pub satisfy: Option<Satisfy>,
    pub internal: bool,
    pub limit_rate: Option<Template>,
    pub limit_rate_after: Option<Template>,
    pub resolver: Option<crate::dns::ResolverConf>,
    pub resolver_timeout: Option<u64>,
    pub disable_symlinks: Option<(u8, Option<Template>)>,
    pub open_file_cache: Option<Option<Arc<FileCache>>>,
    pub open_file_cache_valid: Option<u64>,
    pub open_file_cache_min_uses: Option<u64>,
    pub open_file_cache_errors: Option<bool>,
    pub early_hints: Option<Vec<Template>>,
    pub response_parsing: Option<bool>,
    pub auth_delay: Option<u64>,
    pub gzip: crate::engine::gzip::GzipWritten,
    pub uninitialized_variable_warn: Option<bool>,
}

impl Conf for HttpDirectives {
    fn inherit(&mut self, o: &Self) {
        inherit!(self, o; root, error_pages, recursive_error_pages, types, default_type, error_log, log_not_found,
            log_subrequest, subrequest_output_buffer_size, post_action, client_max_body_size, client_body_buffer_size, client_body_timeout,
            client_body_in_file_only, client_body_in_single_buffer, client_body_temp_path, send_timeout,
            keepalive_timeout, keepalive_min_timeout, keepalive_requests, keepalive_time, keepalive_disable, lingering_close,
            lingering_time, lingering_timeout, reset_timedout_connection, tcp_nodelay, server_tokens,
            absolute_redirect, server_name_in_redirect, port_in_redirect, msie_padding, msie_refresh,
            chunked_transfer_encoding, etag, if_modified_since, max_ranges, satisfy, limit_rate,
            limit_rate_after, resolver, resolver_timeout, disable_symlinks, open_file_cache,
            open_file_cache_valid, open_file_cache_min_uses, open_file_cache_errors, early_hints, response_parsing, auth_delay, uninitialized_variable_warn);
        self.internal |= o.internal;
        self.gzip.inherit(&o.gzip);
    }
}

impl Module for HttpCore {
    const NAME: &'static str = "http_core";
    type Conf = HttpDirectives;
    const DIRECTIVES: &'static [Directive<HttpDirectives>] = &[
        Directive::new(
            "server",
            Place::HTTP,
            Args::Block(0, 0),
            "`server { … }` A virtual server.",
            |_, s, b| {
                let id = b.enter(s, Place::SERVER, BlockKind::Server)?;
                server::register(id, s, b)
            },
        ),
        Directive::new(
            "location",
            Place::SERVER.or(Place::LOCATION),
            Args::Block(1, 2),
            "`location [=|~|~*|^~] uri { … }`, `location @name { … }` Settings for requests by their URI.",
            location::location,
        ),
        Directive::new(
            "limit_except",
            Place::LOCATION,
            Args::Block(1, 255),
            "`limit_except method … { … }` Access rules for all other methods.",
            location::limit_except,
        ),
        Directive::new(
            "root",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`root path;` The folder of documents. Default: html.",
            location::root,
        ),
        Directive::new(
            "alias",
            Place::LOCATION,
            Args::Exactly(1),
            "`alias path;` Replaces the location's prefix.",
            location::alias,
        ),
        Directive::new(
            "error_page",
            Place::ANY_HTTP_IF,
            Args::AtLeast(2),
            "`error_page code … [=[response]] uri;` What is shown for an error.",
            errors::error_page,
        ),
        Directive::new(
            "recursive_error_pages",
            Place::ANY_HTTP,
            Args::Flag,
            "`recursive_error_pages on|off;` Whether error pages may lead to further ones. Default: off.",
            |c, s, _| once(&mut c.recursive_error_pages, s, s.flag(0)?),
        ),
        Directive::new(
            "types",
            Place::ANY_HTTP,
            Args::Block(0, 0),
            "`types { type extension …; }` Media types by extension.",
            types,
        ),
        Directive::new(
            "default_type",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`default_type type;` The type of other extensions. Default: text/plain.",
            |c, s, _| once(&mut c.default_type, s, s.arg(0).into()),
        ),
        Directive::new(
            "error_log",
            Place::ANY_HTTP.or(Place::MAIN),
            Args::AtLeast(1),
            "`error_log file|stderr|syslog:… [level];` Default: logs/error.log error.",
            errors::error_log,
        ),
        Directive::new(
            "log_not_found",
            Place::ANY_HTTP,
            Args::Flag,
            "`log_not_found on|off;` Whether missing files are logged. Default: on.",
            |c, s, _| once(&mut c.log_not_found, s, s.flag(0)?),
        ),
        Directive::new(
            "log_subrequest",
            Place::ANY_HTTP,
            Args::Flag,
            "`log_subrequest on|off;` Whether subrequests are in the access log. Default: off.",
            |c, s, _| once(&mut c.log_subrequest, s, s.flag(0)?),
        ),
        Directive::new(
            "client_max_body_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`client_max_body_size size;` The largest request body; 0 is without limit. Default: 1m.",
            |c, s, _| once(&mut c.client_max_body_size, s, s.offset(0)?),
        ),
        Directive::new(
            "client_body_buffer_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`client_body_buffer_size size;` Request bodies up to this size stay in memory. Default: 16k.",
            |c, s, _| once(&mut c.client_body_buffer_size, s, s.size(0)?),
        ),
        Directive::new(
            "client_body_timeout",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`client_body_timeout time;` Between two reads of a body. Default: 60s.",
            |c, s, _| once(&mut c.client_body_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "client_body_in_file_only",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`client_body_in_file_only on|clean|off;` Default: off.",
            |c, s, _| {
                once(
                    &mut c.client_body_in_file_only,
                    s,
                    s.one_of(
                        0,
                        &[
                            ("off", BodyInFile::Off),
                            ("on", BodyInFile::On),
                            ("clean", BodyInFile::Clean),
                        ],
                    )?,
                )
            },
        ),
        Directive::new(
            "client_body_in_single_buffer",
            Place::ANY_HTTP,
            Args::Flag,
            "`client_body_in_single_buffer on|off;` Bodies in memory are always in one piece. Default: off.",
            |c, s, _| once(&mut c.client_body_in_single_buffer, s, s.flag(0)?),
        ),
        Directive::new(
            "client_body_temp_path",
            Place::ANY_HTTP,
            Args::Between(1, 4),
            "`client_body_temp_path path [level1 [level2 [level3]]];` Default: client_body_temp.",
            |c, s, b| {
                let path = temp_path(s, b)?;
                once(&mut c.client_body_temp_path, s, path)
            },
        ),
        Directive::new(
            "send_timeout",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`send_timeout time;` Between two writes of a response. Default: 60s.",
            |c, s, _| once(&mut c.send_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "keepalive_timeout",
            Place::ANY_HTTP,
            Args::Between(1, 2),
            "`keepalive_timeout timeout [header_timeout];` How long an idle connection is kept. Default: 75s.",
            |c, s, _| {
                let header = if s.len() > 1 { s.sec(1)? } else { 0 };
                once(&mut c.keepalive_timeout, s, (s.msec(0)?, header))
            },
        ),
        Directive::new(
            "keepalive_min_timeout",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`keepalive_min_timeout time;` How long an idle connection is kept even while the process drains. Default: 0.",
            |c, s, _| once(&mut c.keepalive_min_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "keepalive_requests",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`keepalive_requests number;` Requests a connection may serve. Default: 1000.",
            |c, s, _| once(&mut c.keepalive_requests, s, s.number(0)?),
        ),
        Directive::new(
            "keepalive_time",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`keepalive_time time;` How long a connection may serve. Default: 1h.",
            |c, s, _| once(&mut c.keepalive_time, s, s.msec(0)?),
        ),
        Directive::new(
            "keepalive_disable",
            Place::ANY_HTTP,
            Args::Between(1, 2),
            "`keepalive_disable none|browser …;` Default: msie6.",
            |c, s, _| {
                let mut v = (false, false);
                for i in 0..s.len() {
                    match s.arg(i) {
                        b"none" => v = (false, false),
                        b"msie6" => v.0 = true,
                        b"safari" => v.1 = true,
                        _ => return Err(s.invalid_value(i)),
                    }
                }
                once(&mut c.keepalive_disable, s, v)
            },
        ),
        Directive::new(
            "lingering_close",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`lingering_close off|on|always;` Default: on.",
            |c, s, _| {
                once(
                    &mut c.lingering_close,
                    s,
                    s.one_of(
                        0,
                        &[
                            ("off", Lingering::Off),
                            ("on", Lingering::On),
                            ("always", Lingering::Always),
                        ],
                    )?,
                )
            },
        ),
        Directive::new(
            "lingering_time",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`lingering_time time;` Default: 30s.",
            |c, s, _| once(&mut c.lingering_time, s, s.msec(0)?),
        ),
        Directive::new(
            "lingering_timeout",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`lingering_timeout time;` Default: 5s.",
            |c, s, _| once(&mut c.lingering_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "reset_timedout_connection",
            Place::ANY_HTTP,
            Args::Flag,
            "`reset_timedout_connection on|off;` Whether connections that time out are reset. Default: off.",
            |c, s, _| once(&mut c.reset_timedout_connection, s, s.flag(0)?),
        ),
        Directive::new(
            "tcp_nodelay",
            Place::ANY_HTTP,
            Args::Flag,
            "`tcp_nodelay on|off;` The default server of an address decides for its connections. Default: on.",
            |c, s, _| once(&mut c.tcp_nodelay, s, s.flag(0)?),
        ),
        Directive::new(
            "server_tokens",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`server_tokens on|off|build;` How much the Server header tells. Default: on.",
            |c, s, _| {
                once(
                    &mut c.server_tokens,
                    s,
                    s.one_of(
                        0,
                        &[
                            ("on", Tokens::On),
                            ("off", Tokens::Off),
                            ("build", Tokens::Build),
                        ],
                    )?,
                )
            },
        ),
        Directive::new(
            "absolute_redirect",
            Place::ANY_HTTP,
            Args::Flag,
            "`absolute_redirect on|off;` Whether redirects name scheme and host. Default: on.",
            |c, s, _| once(&mut c.absolute_redirect, s, s.flag(0)?),
        ),
        Directive::new(
            "server_name_in_redirect",
            Place::ANY_HTTP,
            Args::Flag,
            "`server_name_in_redirect on|off;` Default: off.",
            |c, s, _| once(&mut c.server_name_in_redirect, s, s.flag(0)?),
        ),
        Directive::new(
            "port_in_redirect",
            Place::ANY_HTTP,
            Args::Flag,
            "`port_in_redirect on|off;` Default: on.",
            |c, s, _| once(&mut c.port_in_redirect, s, s.flag(0)?),
        ),
        Directive::new(
            "msie_padding",
            Place::ANY_HTTP,
            Args::Flag,
            "`msie_padding on|off;` Default: on.",
            |c, s, _| once(&mut c.msie_padding, s, s.flag(0)?),
        ),
        Directive::new(
            "msie_refresh",
            Place::ANY_HTTP,
            Args::Flag,
            "`msie_refresh on|off;` Default: off.",
            |c, s, _| once(&mut c.msie_refresh, s, s.flag(0)?),
        ),
        Directive::new(
            "chunked_transfer_encoding",
            Place::ANY_HTTP,
            Args::Flag,
            "`chunked_transfer_encoding on|off;` Default: on.",
            |c, s, _| once(&mut c.chunked_transfer_encoding, s, s.flag(0)?),
        ),
        Directive::new(
            "etag",
            Place::ANY_HTTP,
            Args::Flag,
            "`etag on|off;` Whether static files have an ETag. Default: on.",
            |c, s, _| once(&mut c.etag, s, s.flag(0)?),
        ),
        Directive::new(
            "if_modified_since",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`if_modified_since off|exact|before;` Default: exact.",
            |c, s, _| {
                let v = s.one_of(
                    0,
                    &[
                        ("off", IfModifiedSince::Off),
                        ("exact", IfModifiedSince::Exact),
                        ("before", IfModifiedSince::Before),
                    ],
                )?;
                once(&mut c.if_modified_since, s, v)
            },
        ),
        Directive::new(
            "max_ranges",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`max_ranges number;` Default: without limit.",
            |c, s, _| once(&mut c.max_ranges, s, Some(s.number(0)?)),
        ),
        Directive::new(
            "satisfy",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`satisfy all|any;` Default: all.",
            |c, s, _| {
                once(
                    &mut c.satisfy,
                    s,
                    s.one_of(0, &[("all", Satisfy::All), ("any", Satisfy::Any)])?,
                )
            },
        ),
        Directive::new(
            "internal",
            Place::LOCATION,
            Args::None,
            "`internal;` Only internal redirects come here; others get 404.",
            |c, _, _| {
                c.internal = true;
                Ok(())
            },
        ),
        Directive::new(
            "limit_rate",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`limit_rate rate;` Bytes a second for each response. Default: 0.",
            |c, s, b| {
                let t = size_template(s, b)?;
                once(&mut c.limit_rate, s, t)
            },
        ),
        Directive::new(
            "limit_rate_after",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`limit_rate_after size;` Bytes sent before the rate holds. Default: 0.",
            |c, s, b| {
                let t = size_template(s, b)?;
                once(&mut c.limit_rate_after, s, t)
            },
        ),
        Directive::new(
            "resolver",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`resolver address … [valid=time] [ipv4=on|off] [ipv6=on|off];` Name servers for names in variables.",
            |c, s, _| {
                let conf = resolver(s)?;
                once(&mut c.resolver, s, conf)
            },
        ),
        Directive::new(
            "resolver_timeout",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`resolver_timeout time;` Default: 30s.",
            |c, s, _| once(&mut c.resolver_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "disable_symlinks",
            Place::ANY_HTTP,
            Args::Between(1, 2),
            "`disable_symlinks off|on|if_not_owner [from=part];` Default: off.",
            |c, s, b| {
                if c.disable_symlinks.is_some() {
                    return Err(s.duplicate());
                }
                let (mut mode, mut from) = (None, None);
                for i in 0..s.len() {
                    match s.arg(i) {
                        b"off" => mode = Some(0u8),
                        b"on" => mode = Some(1),
                        b"if_not_owner" => mode = Some(2),
                        word => match word.strip_prefix(b"from=") {
                            Some(f) => from = Some(b.template_of(s, f)?),
                            None => return Err(s.invalid_parameter(i)),
                        },
                    }
                }
                let Some(mode) = mode else {
                    return Err(s.error("\"disable_symlinks\" must have \"off\", \"on\" or \"if_not_owner\" parameter"));
                };
                if s.len() == 2 && from.is_none() {
                    let (one, two) = (s.str(0)?, s.str(1)?);
                    return Err(s.error(format!("duplicate parameters \"{one} {two}\"")));
                }
                once(&mut c.disable_symlinks, s, (mode, from))
            },
        ),
        Directive::new(
            "early_hints",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`early_hints string …;` Passes 103 responses of origins on where one of the strings is neither empty nor 0. Default: none.",
            |c, s, b| {
                for i in 0..s.len() {
                    let hint = b.template(s, i)?;
                    c.early_hints.get_or_insert_default().push(hint);
                }
                Ok(())
            },
        ),
        Directive::own(
            "response_parsing",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`response_parsing nginx|strict;` How responses of origins over HTTP/1 are parsed: by nginx's rules, or by those of RFC 9112. `strict` answers 502 to bytes behind the end of a response, HTTP/0.9, bare line feeds, invalid field names, lines without a colon, a status line sent twice, status codes above 599, and chunk sizes and extensions that are no such; what is noticed when the response is on its way breaks it off. Default: nginx.",
            |c, s, _| {
                let strict = s.one_of(0, &[("nginx", false), ("strict", true)])?;
                once(&mut c.response_parsing, s, strict)
            },
        ),
        Directive::new(
            "auth_delay",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`auth_delay time;` Slows down requests that are answered 401. Default: 0s.",
            |c, s, _| once(&mut c.auth_delay, s, s.msec(0)?),
        ),
        Directive::new(
            "gzip_vary",
            Place::ANY_HTTP,
            Args::Flag,
            "`gzip_vary on|off;` Whether responses that depend on Accept-Encoding say so in Vary. Default: off.",
            gzip::vary,
        ),
        Directive::new(
            "gzip_http_version",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`gzip_http_version 1.0|1.1;` The lowest version to which responses are compressed. Default: 1.1.",
            gzip::http_version,
        ),
        Directive::new(
            "gzip_proxied",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`gzip_proxied off|expired|no-cache|no-store|private|no_last_modified|no_etag|auth|any …;` Which responses to proxies are compressed. Default: off.",
            gzip::proxied,
        ),
        Directive::new(
            "gzip_disable",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`gzip_disable regex …|msie6;` User agents to which nothing is compressed.",
            gzip::disable,
        ),
        Directive::new(
            "uninitialized_variable_warn",
            Place::ANY_HTTP.or(Place::SERVER_IF).or(Place::LOCATION_IF),
            Args::Flag,
            "`uninitialized_variable_warn on|off;` Whether reading a variable that `set` has not reached is logged. Default: on.",
            |c, s, _| once(&mut c.uninitialized_variable_warn, s, s.flag(0)?),
        ),
        Directive::inert(
            "sendfile",
            Place::ANY_HTTP_IF,
            Args::Flag,
            inert::flag,
            "Files are sent by sendfile where that is possible.",
        ),
        Directive::inert(
            "sendfile_max_chunk",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::size,
            "A fast client never holds up a thread.",
        ),
        Directive::new(
            "post_action",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`post_action uri|@name;` Where a request goes on once it has been answered; what comes of that is not sent. Default: none.",
            |c, s, _| once(&mut c.post_action, s, s.arg(0).into()),
        ),
        Directive::new(
            "subrequest_output_buffer_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`subrequest_output_buffer_size size;` How much of a response may be put in a variable (`include` with `set`). Default: 4k.",
            |c, s, _| once(&mut c.subrequest_output_buffer_size, s, s.size(0)?),
        ),
        Directive::inert(
            "aio",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::aio,
            "File reads need no asynchronous operations.",
        ),
        Directive::inert(
            "aio_write",
            Place::ANY_HTTP,
            Args::Flag,
            inert::flag,
            "File writes need no asynchronous operations.",
        ),
        Directive::inert(
            "read_ahead",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::size,
            "The kernel reads ahead.",
        ),
        Directive::inert(
            "directio",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::off_or_offset,
            "Files are read through the page cache.",
        ),
        Directive::inert(
            "directio_alignment",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::offset,
            "Files are read through the page cache.",
        ),
        Directive::inert(
            "tcp_nopush",
            Place::ANY_HTTP,
            Args::Flag,
            inert::flag,
            "Head and body leave in one packet anyway.",
        ),
        Directive::inert(
            "postpone_output",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::size,
            "Small responses are always sent in one piece.",
        ),
        Directive::inert(
            "output_buffers",
            Place::ANY_HTTP,
            Args::Exactly(2),
            inert::buffers,
            "Buffers are sized as needed.",
        ),
        Directive::inert(
            "send_lowat",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::lowat,
            "Only for kqueue.",
        ),
        Directive::new(
            "open_file_cache",
            Place::ANY_HTTP,
            Args::Between(1, 2),
            "`open_file_cache off|max=number [inactive=time];` Keeps files open, and what is known of them, in each thread. Default: off; inactive is 60s.",
            |c, s, _| {
                let cache = file_cache(s)?;
                once(&mut c.open_file_cache, s, cache)
            },
        ),
        Directive::new(
            "open_file_cache_valid",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`open_file_cache_valid time;` After how long what is known of a file is looked at again. Default: 60s.",
            |c, s, _| once(&mut c.open_file_cache_valid, s, s.sec(0)?),
        ),
        Directive::new(
            "open_file_cache_min_uses",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`open_file_cache_min_uses number;` How often a file is asked for before it stays open. Default: 1.",
            |c, s, _| once(&mut c.open_file_cache_min_uses, s, s.number(0)?),
        ),
        Directive::new(
            "open_file_cache_errors",
            Place::ANY_HTTP,
            Args::Flag,
            "`open_file_cache_errors on|off;` Whether it is kept too that a file cannot be opened. Default: off.",
            |c, s, _| once(&mut c.open_file_cache_errors, s, s.flag(0)?),
        ),
        Directive::inert(
            "open_file_cache_events",
            Place::ANY_HTTP,
            Args::Flag,
            inert::flag,
            "Only for kqueue.",
        ),
        Directive::inert(
            "types_hash_max_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "types_hash_bucket_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "server_names_hash_max_size",
            Place::HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "server_names_hash_bucket_size",
            Place::HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "variables_hash_max_size",
            Place::HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "variables_hash_bucket_size",
            Place::HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "map_hash_max_size",
            Place::HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "map_hash_bucket_size",
            Place::HTTP,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "connection_pool_size",
            Place::HTTP.or(Place::SERVER),
            Args::Exactly(1),
            inert::pool,
            "There are no memory pools.",
        ),
        Directive::inert(
            "request_pool_size",
            Place::HTTP.or(Place::SERVER),
            Args::Exactly(1),
            inert::pool,
            "There are no memory pools.",
        ),
    ];
    const VARIABLES: &'static [Variable] = crate::engine::variables::VARIABLES;

    fn attach(_conf: &Arc<HttpDirectives>, _on: &mut Hooks) -> Result<()> {
        Ok(())
    }
}
