//! Caching of responses: what a location says, and what one request does.

use super::{Site, Template};
use crate::cache::file::Meta;
use crate::cache::rules::Freshness;
use crate::cache::{CachePath, Digest, Entry, Fill, Object, PathsRef, Zone};
use std::sync::{Arc, OnceLock};

/// Which zone a location uses.
#[derive(Clone)]
pub enum CacheChoice {
    /// This one.
    Fixed(Arc<OnceLock<Arc<CachePath>>>),
    /// The one that the text names; an empty text and `off` are none.
    Dynamic(Template),
}

/// When a request purges.
#[derive(Clone)]
pub struct CachePurge {
    /// Purges where one of them is neither empty nor `0`.
    pub when: Arc<[Template]>,
    /// Marks objects as stale instead of removing them where one of these is neither empty nor `0`.
    pub soft: Option<Arc<[Template]>>,
    /// Tags, separated by spaces, to purge by instead of the key; empty purges by the key.
    pub tags: Option<Template>,
}

/// The cache settings of a location; times in milliseconds where not said otherwise.
#[derive(Clone)]
pub struct CacheSettings {
    /// `proxy_cache`.
    pub choice: CacheChoice,
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
    /// `proxy_cache_use_stale`: bits of [`crate::upstream::next`].
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
    pub purge: Option<CachePurge>,
    /// `proxy_cache_tag`.
    pub tag: Option<Template>,
    /// `proxy_cache_rfc9111`.
    pub rfc9111: bool,
}

/// What one request does with the cache.
pub struct CacheCall {
    /// The settings of the location.
    pub settings: Arc<CacheSettings>,
    /// The zone.
    pub path: Arc<CachePath>,
    /// The key's text.
    pub key: Vec<u8>,
    /// The key's digest.
    pub main: Digest,
    /// The digest in use: the key's, or a variant's.
    pub digest: Digest,
    /// Whether `digest` is a variant's.
    pub secondary: bool,
    /// Whether the answer may still be stored.
    pub cacheable: bool,
    /// The object, while it is held.
    pub entry: Option<Entry>,
    /// The generation that the last look has found; 0 where there was none.
    pub seen: u64,
    /// The object whose time is over.
    pub old: Option<Arc<Object>>,
    /// What the origin's head says.
    pub fresh: Freshness,
    /// Whether the old object may be served where the origin fails (stale-if-error).
    pub stale_error: bool,
    /// The object being written.
    pub fill: Option<Fill>,
}

impl CacheCall {
    /// The zone.
    pub fn zone(&self) -> &Arc<Zone> {
        &self.path.zone
    }

    /// Ends what this request holds.
    pub fn release(&mut self) {
        self.entry = None;
    }

    /// What is known of the object whose time is over.
    pub fn old_meta(&self) -> Option<&Meta> {
        self.old.as_ref().map(|o| &o.meta)
    }
}

impl Site {
    /// The cache zones that locations may use, each once.
    pub fn cache_paths(&self) -> Vec<Arc<CachePath>> {
        let mut found: Vec<Arc<CachePath>> = Vec::new();
        for location in &self.locations {
            if let Some(super::Content::Upstream(pass)) = &location.hooks.content
                && let Some(settings) = &pass.conf.cache
            {
                for path in settings.paths.get().into_iter().flatten() {
                    if !found.iter().any(|p| Arc::ptr_eq(p, path)) {
                        found.push(path.clone());
                    }
                }
            }
        }
        found
    }

    /// Puts the cache zones to use: the site is about to serve.
    pub fn activate_caches(&self) {
        for path in self.cache_paths() {
            path.zone.activate(&path.params);
        }
    }
}
