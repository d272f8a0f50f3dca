//! `proxy_cache_purge`.

use crate::cache::CachePath;
use crate::contract::PassEnd;
use crate::contract::{Body, CachePurge, Request};

/// Purges the object of a key, or all whose keys begin with what precedes its `*`.
pub(super) fn run(r: &mut Request, path: &CachePath, purge: &CachePurge, key: &[u8]) -> PassEnd {
    let soft = purge.soft.as_ref().is_some_and(|t| super::any(t, r));
    let tags = purge.tags.as_ref().map(|t| t.eval(r).into_owned());
    let zone = &path.zone;
    let found = match (tags.filter(|t| !t.is_empty()), key.strip_suffix(b"*")) {
        (Some(tags), _) => zone.purge_tags(&tags, soft),
        (None, Some(prefix)) => zone.purge_prefix(prefix, soft),
        (None, None) => zone.purge_key(key, soft),
    };
    // what the loader will find is purged then
    if found == 0 && !zone.is_cold() {
        return PassEnd::Status(404);
    }
    r.out.status = 204;
    PassEnd::Respond(Body::Empty)
}
