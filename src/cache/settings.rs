//! What the directives of a location say about caching.

use super::zone::{Params, Zone};
use crate::module::Template;
use std::sync::{Arc, OnceLock};

/// One `proxy_cache_path`: a zone with the settings that this configuration gives it.
pub struct CachePath {
    /// The zone's name.
    pub name: String,
    /// The settings.
    pub params: Params,
    /// The zone.
    pub zone: Arc<Zone>,
}

/// Every `…_cache_path` of a protocol; known once the whole configuration has been read.
pub type PathsRef = Arc<OnceLock<Vec<Arc<CachePath>>>>;

/// Which zone a location uses.
#[derive(Clone)]
pub enum Choice {
    /// This one.
    Fixed(Arc<OnceLock<Arc<CachePath>>>),
    /// The one that the text names; an empty text and `off` are none.
    Dynamic(Template),
}

/// When a request purges.
#[derive(Clone)]
pub struct Purge {
    /// Purges where one of them is neither empty nor `0`.
    pub when: Arc<[Template]>,
    /// Marks objects as stale instead of removing them where one of these is neither empty nor `0`.
    pub soft: Option<Arc<[Template]>>,
    /// Tags, separated by spaces, to purge by instead of the key; empty purges by the key.
    pub tags: Option<Template>,
}

/// The cache settings of a location; times in milliseconds where not said otherwise.
#[derive(Clone)]
pub struct Settings {
    /// `proxy_cache`.
    pub choice: Choice,
    /// The zones that may be chosen.
    pub paths: PathsRef,
    /// `proxy_cache_key`; `None` is the protocol's own.
    pub key: Option<Template>,
    /// `proxy_cache_valid`: status (0 is any) and seconds, in order.
    pub valid: Arc<[(u16, i64)]>,
    /// `proxy_cache_methods`, bits.
    pub methods: u32,
    /// `proxy_cache_min_uses`.
    pub min_uses: u32,
    /// `proxy_cache_bypass`.
    pub bypass: Arc<[Template]>,
    /// `proxy_no_cache`.
    pub no_cache: Arc<[Template]>,
    /// `proxy_cache_lock`.
    pub lock: bool,
    /// `proxy_cache_lock_timeout`.
    pub lock_timeout: u64,
    /// `proxy_cache_lock_age`.
    pub lock_age: u64,
    /// `proxy_cache_lock_stream`.
    pub lock_stream: bool,
    /// `proxy_cache_use_stale`: bits of [`crate::module::next`].
    pub use_stale: u32,
    /// `proxy_cache_background_update`.
    pub background_update: bool,
    /// `proxy_cache_revalidate`.
    pub revalidate: bool,
    /// `proxy_cache_convert_head`.
    pub convert_head: bool,
    /// `proxy_cache_max_range_offset`, bytes.
    pub max_range_offset: Option<u64>,
    /// `proxy_cache_purge`.
    pub purge: Option<Purge>,
    /// `proxy_cache_tag`.
    pub tag: Option<Template>,
    /// `proxy_cache_rfc9111`.
    pub rfc9111: bool,
}
