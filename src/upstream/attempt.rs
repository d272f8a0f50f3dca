//! Attempts at an origin: what is learnt of one, and what makes another one follow.

use std::sync::Arc;

/// What was learnt of one try at an origin: the `$upstream_*` variables.
#[derive(Clone, Debug, Default)]
pub struct UpstreamState {
    /// The peer's name; the group's where none was live.
    pub addr: Arc<str>,
    /// The status; 0 until there is one.
    pub status: u16,
    /// Milliseconds to connect.
    pub connect_time: Option<u64>,
    /// Milliseconds to the head.
    pub header_time: Option<u64>,
    /// Milliseconds to the end.
    pub response_time: Option<u64>,
    /// Body bytes received.
    pub response_length: u64,
    /// Bytes received, head included.
    pub bytes_received: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Milliseconds in the group's `queue`.
    pub queue_time: Option<u64>,
    /// The peer's server as written in the configuration: `$upstream_last_server_name`.
    pub server: Arc<str>,
    /// Begins a new group after an internal redirect: written after `:` instead of `,`.
    pub new_group: bool,
}

/// When the next origin may be tried (`proxy_next_upstream`): bits.
pub mod next {
    /// Connecting, sending or reading failed.
    pub const ERROR: u32 = 1;
    /// A timeout passed.
    pub const TIMEOUT: u32 = 1 << 1;
    /// An empty or invalid response.
    pub const INVALID_HEADER: u32 = 1 << 2;
    /// 500.
    pub const HTTP_500: u32 = 1 << 3;
    /// 502.
    pub const HTTP_502: u32 = 1 << 4;
    /// 503.
    pub const HTTP_503: u32 = 1 << 5;
    /// 504.
    pub const HTTP_504: u32 = 1 << 6;
    /// 403.
    pub const HTTP_403: u32 = 1 << 7;
    /// 404.
    pub const HTTP_404: u32 = 1 << 8;
    /// 429.
    pub const HTTP_429: u32 = 1 << 9;
    /// POST, LOCK, PATCH too, even after they were sent.
    pub const NON_IDEMPOTENT: u32 = 1 << 10;
    /// Never.
    pub const OFF: u32 = 1 << 11;
    /// `updating`, which only a cache has a use for.
    pub const UPDATING: u32 = 1 << 12;
}

/// Headers of the origin that are not obeyed (`proxy_ignore_headers`): bits.
pub mod ignore {
    /// X-Accel-Redirect.
    pub const ACCEL_REDIRECT: u32 = 1;
    /// X-Accel-Expires.
    pub const ACCEL_EXPIRES: u32 = 1 << 1;
    /// X-Accel-Limit-Rate.
    pub const ACCEL_LIMIT_RATE: u32 = 1 << 2;
    /// X-Accel-Buffering.
    pub const ACCEL_BUFFERING: u32 = 1 << 3;
    /// X-Accel-Charset.
    pub const ACCEL_CHARSET: u32 = 1 << 4;
    /// Expires.
    pub const EXPIRES: u32 = 1 << 5;
    /// Cache-Control.
    pub const CACHE_CONTROL: u32 = 1 << 6;
    /// Set-Cookie.
    pub const SET_COOKIE: u32 = 1 << 7;
    /// Vary.
    pub const VARY: u32 = 1 << 8;
}
