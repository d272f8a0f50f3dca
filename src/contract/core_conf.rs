//! The effective core settings of a server and of a location, as the runtime reads them.

use super::Template;
use crate::files::TempPath;
use crate::log::ErrorLog;
use std::collections::HashMap;
use std::sync::Arc;

pub use crate::http::etag::IfModifiedSince;
pub use crate::http::status::Tokens;

/// Settings of a virtual server that are in force before its location is known.
#[derive(Clone, Debug)]
pub struct ServerConf {
    /// `client_header_buffer_size`, bytes.
    pub client_header_buffer_size: usize,
    /// `large_client_header_buffers`: number and size.
    pub large_client_header_buffers: (usize, usize),
    /// `client_header_timeout`, milliseconds.
    pub client_header_timeout: u64,
    /// `ignore_invalid_headers`.
    pub ignore_invalid_headers: bool,
    /// `underscores_in_headers`.
    pub underscores_in_headers: bool,
    /// `request_parsing strict`.
    pub strict: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `max_headers`.
    pub max_headers: usize,
    /// `allow_connect`: whether CONNECT is let through to a module that serves it.
    pub allow_connect: bool,
    /// HTTP/2.
    pub http2: Http2Conf,
}

/// Settings of HTTP/2 (`http2_…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Conf {
    /// `http2`.
    pub enable: bool,
    /// `http2_max_concurrent_streams`.
    pub max_concurrent_streams: u32,
    /// `http2_body_preread_size`: body bytes that a client may send before they are asked for.
    pub preread_size: u32,
    /// `http2_chunk_size`: the largest DATA frame sent, bytes.
    pub chunk_size: usize,
    /// `http2_recv_buffer_size`: the largest read, bytes.
    pub recv_buffer: usize,
}

impl Default for Http2Conf {
    fn default() -> Self {
        Http2Conf {
            enable: false,
            max_concurrent_streams: 128,
            preread_size: 65_536,
            chunk_size: 8192,
            recv_buffer: 256 * 1024,
        }
    }
}

impl Default for ServerConf {
    fn default() -> Self {
        ServerConf {
            client_header_buffer_size: 1024,
            large_client_header_buffers: (4, 8192),
            client_header_timeout: 60_000,
            ignore_invalid_headers: true,
            underscores_in_headers: false,
            strict: false,
            merge_slashes: true,
            max_headers: 1000,
            allow_connect: false,
            http2: Http2Conf::default(),
        }
    }
}

/// `root` or `alias`.
#[derive(Clone, Debug)]
pub struct Root {
    /// The path, absolute unless it begins with a variable.
    pub path: Template,
    /// `alias`: the path replaces the location's prefix instead of preceding the URI.
    pub alias: bool,
    /// How much of the URI an `alias` replaces, bytes: the length of its location's name, or [`Root::WHOLE`].
    pub replaces: usize,
}

impl Root {
    /// [`Root::replaces`] of an `alias` in a regular expression's location.
    pub const WHOLE: usize = usize::MAX;
}

/// One status of `error_page`.
#[derive(Clone, Debug)]
pub struct ErrorPage {
    /// The statuses that it serves.
    pub status: u16,
    /// `=code` (`Some(Some(code))`), `=` (`Some(None)`: the target's own status), or neither.
    pub overwrite: Option<Option<u16>>,
    /// The URI, the URL or `@name`.
    pub target: Template,
    /// The arguments written in a literal URI.
    pub args: Option<Vec<u8>>,
}

/// `satisfy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Satisfy {
    /// Every access hook must agree.
    #[default]
    All,
    /// One is enough.
    Any,
}

/// `lingering_close`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lingering {
    /// Never.
    Off,
    /// Where the client may still be sending.
    #[default]
    On,
    /// Always.
    Always,
}

/// `client_body_in_file_only`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyInFile {
    /// Files only where the buffer is too small.
    #[default]
    Off,
    /// Always, and the file stays.
    On,
    /// Always, and the file is removed.
    Clean,
}

/// Which responses may be compressed, by whatever module.
#[derive(Clone, Debug)]
pub struct GzipRules {
    /// `gzip_vary`.
    pub vary: bool,
    /// `gzip_http_version`: the lowest version.
    pub http_version: crate::http::head::Version,
    /// `gzip_proxied`: bits of [`proxied`].
    pub proxied: u16,
    /// `gzip_disable`: user agents.
    pub disable: Arc<[Arc<super::Pattern>]>,
    /// `gzip_disable msie6`.
    pub disable_msie6: bool,
}

/// Responses to proxies that may be compressed (`gzip_proxied`): bits.
pub mod proxied {
    /// None.
    pub const OFF: u16 = 1;
    /// `Expires` is over.
    pub const EXPIRED: u16 = 1 << 1;
    /// `Cache-Control: no-cache`.
    pub const NO_CACHE: u16 = 1 << 2;
    /// `Cache-Control: no-store`.
    pub const NO_STORE: u16 = 1 << 3;
    /// `Cache-Control: private`.
    pub const PRIVATE: u16 = 1 << 4;
    /// No `Last-Modified`.
    pub const NO_LAST_MODIFIED: u16 = 1 << 5;
    /// No `ETag`.
    pub const NO_ETAG: u16 = 1 << 6;
    /// The request has `Authorization`.
    pub const AUTH: u16 = 1 << 7;
    /// All.
    pub const ANY: u16 = 1 << 8;
}

/// Media types by extension.
pub type Types = HashMap<Box<[u8]>, Arc<[u8]>>;

/// The effective core settings of a location.
#[derive(Clone, Debug)]
pub struct CoreConf {
    /// `root` or `alias`.
    pub root: Root,
    /// `error_page`, in order.
    pub error_pages: Arc<[ErrorPage]>,
    /// `recursive_error_pages`.
    pub recursive_error_pages: bool,
    /// `types`: lower-case extensions.
    pub types: Arc<Types>,
    /// `default_type`.
    pub default_type: Arc<[u8]>,
    /// `error_log`.
    pub error_log: ErrorLog,
    /// `log_not_found`.
    pub log_not_found: bool,
    /// `log_subrequest`.
    pub log_subrequest: bool,
    /// `post_action`: a URI, or a named location.
    pub post_action: Option<std::sync::Arc<[u8]>>,
    /// `subrequest_output_buffer_size`, bytes.
    pub subrequest_output_buffer_size: u64,
    /// `client_max_body_size`, bytes; 0 is without limit.
    pub client_max_body_size: u64,
    /// `client_body_buffer_size`, bytes.
    pub client_body_buffer_size: usize,
    /// `client_body_timeout`, milliseconds between two reads.
    pub client_body_timeout: u64,
    /// `client_body_in_file_only`.
    pub client_body_in_file_only: BodyInFile,
    /// `client_body_in_single_buffer`.
    pub client_body_in_single_buffer: bool,
    /// `client_body_temp_path`.
    pub client_body_temp_path: Arc<TempPath>,
    /// `send_timeout`, milliseconds between two writes.
    pub send_timeout: u64,
    /// `keepalive_timeout`: how long an idle connection is kept, milliseconds; 0 closes.
    pub keepalive_timeout: u64,
    /// `keepalive_min_timeout`: how long it is kept while the process drains, milliseconds.
    pub keepalive_min_timeout: u64,
    /// The second parameter of `keepalive_timeout`: `Keep-Alive: timeout=`, seconds.
    pub keepalive_header: u64,
    /// `keepalive_requests`.
    pub keepalive_requests: u64,
    /// `keepalive_time`, milliseconds.
    pub keepalive_time: u64,
    /// `keepalive_disable`: `msie6` and `safari`.
    pub keepalive_disable: (bool, bool),
    /// `lingering_close`.
    pub lingering_close: Lingering,
    /// `lingering_time`, milliseconds.
    pub lingering_time: u64,
    /// `lingering_timeout`, milliseconds.
    pub lingering_timeout: u64,
    /// `reset_timedout_connection`.
    pub reset_timedout_connection: bool,
    /// `tcp_nodelay`.
    pub tcp_nodelay: bool,
    /// `server_tokens`; a template where it is text of its own.
    pub server_tokens: Tokens,
    /// `absolute_redirect`.
    pub absolute_redirect: bool,
    /// `server_name_in_redirect`.
    pub server_name_in_redirect: bool,
    /// `port_in_redirect`.
    pub port_in_redirect: bool,
    /// `msie_padding`.
    pub msie_padding: bool,
    /// `msie_refresh`.
    pub msie_refresh: bool,
    /// `chunked_transfer_encoding`.
    pub chunked_transfer_encoding: bool,
    /// `etag`.
    pub etag: bool,
    /// `if_modified_since`.
    pub if_modified_since: IfModifiedSince,
    /// `max_ranges`; `None` is without limit.
    pub max_ranges: Option<u64>,
    /// `satisfy`.
    pub satisfy: Satisfy,
    /// `internal`.
    pub internal: bool,
    /// `limit_rate`, bytes a second.
    pub limit_rate: Option<Template>,
    /// `limit_rate_after`, bytes.
    pub limit_rate_after: Option<Template>,
    /// `resolver` with `resolver_timeout`.
    pub resolver: Option<Arc<crate::dns::Resolver>>,
    /// `disable_symlinks`: 0 off, 1 on, 2 if_not_owner; and `from=`.
    pub disable_symlinks: (u8, Option<Template>),
    /// `open_file_cache` and its kin.
    pub open_file_cache: Option<crate::files::FileRules>,
    /// `early_hints`: conditions of which one must hold.
    pub early_hints: Option<Arc<[Template]>>,
    /// `response_parsing strict`: responses of origins are parsed by the rules of RFC 9112.
    pub strict_responses: bool,
    /// `auth_delay`, milliseconds.
    pub auth_delay: u64,
    /// `gzip_vary`, `gzip_http_version`, `gzip_proxied`, `gzip_disable`.
    pub gzip: GzipRules,
    /// `uninitialized_variable_warn`.
    pub uninitialized_variable_warn: bool,
}
