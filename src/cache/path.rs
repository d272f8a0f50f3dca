//! Zones as a configuration declares them.

use super::zone::{Params, Zone};
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
