//! The cache: zones of stored responses, on disk as nginx lays them out and in memory while they are hot.
//!
//! What a request does with a zone is `exchange/cache`; the directives are `modules/cache`.

mod call;
pub mod file;
pub mod index;
pub mod key;
mod live;
mod manager;
mod names;
mod pingora;
mod purged;
pub mod rfc9111;
pub mod rules;
mod saved;
mod settings;
mod shard;
pub mod store;
mod zone;

pub use call::{Call, Entry, Status, Update};
pub use key::Digest;
pub use live::{Live, Piece};
pub use manager::{active, close_all};
pub use names::{Names, split as split_tags};
pub use pingora::ZoneStorage;
pub use settings::{CachePath, Choice, PathsRef, Purge, Settings};
pub use store::{Content, Fill, Object, ReadError};
pub use zone::{Counts, DEFAULT_MEMORY, Pace, Params, Zone, reason};

use crate::module::{Content as LocationContent, Site};

/// Puts the zones of a site to use: it is about to serve.
pub fn activate(site: &Site) {
    for path in paths(site) {
        path.zone.activate(&path.params);
    }
}

/// The zones that a site's locations may use, each once.
pub fn paths(site: &Site) -> Vec<std::sync::Arc<CachePath>> {
    let mut found: Vec<std::sync::Arc<CachePath>> = Vec::new();
    for location in &site.locations {
        if let Some(LocationContent::Upstream(pass)) = &location.hooks.content
            && let Some(settings) = &pass.conf.cache
        {
            for path in settings.paths.get().into_iter().flatten() {
                if !found.iter().any(|p| std::sync::Arc::ptr_eq(p, path)) {
                    found.push(path.clone());
                }
            }
        }
    }
    found
}
