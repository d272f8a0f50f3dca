//! `http/caches` of the API: what the zones hold, what requests found in them, and purging.

use crate::cache::{CachePath, Status};
use crate::contract::Site;
use crate::features::api::{Answer, ApiError, Ask, Endpoint};
use crate::features::metrics::{Source, Text};
use crate::http::method::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The endpoint.
pub struct Caches;

impl Endpoint for Caches {
    fn path(&self) -> &'static str {
        "http/caches"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        let zones = ask.site.cache_paths();
        let Some((name, rest)) = ask.rest.split_first() else {
            return match ask.method {
                Method::Get => Ok(Answer::Collection(Value::Object(
                    zones.iter().map(|z| (z.name.clone(), view(z))).collect(),
                ))),
                _ => Err(ApiError::method_disabled()),
            };
        };
        let Some(path) = zones.iter().find(|z| z.name == *name) else {
            return Err(ApiError::new(404, "cache not found", "CacheNotFound"));
        };
        match (rest, ask.method) {
            ([], Method::Get) => Ok(Answer::Value(view(path))),
            ([], Method::Delete) => {
                let counts = &path.zone.counts;
                let all = counts.status.iter().chain([
                    &counts.evicted,
                    &counts.stored,
                    &counts.fill_ms,
                    &counts.purged,
                ]);
                for n in all {
                    n.store(0, Relaxed);
                }
                Ok(Answer::Done)
            }
            (["purge"], Method::Post) => purge(path, ask),
            ([] | ["purge"], _) => Err(ApiError::method_disabled()),
            _ => Err(ApiError::path_not_found()),
        }
    }
}

fn view(path: &Arc<CachePath>) -> Value {
    let zone = &path.zone;
    let counts = &zone.counts;
    let mut v = json!({
        "size": zone.size(),
        "max_size": path.params.max_size,
        "cold": zone.is_cold(),
        // what follows is Couloir's own
        "serving": zone.is_serving(),
        "objects": zone.index.len(),
        "max_objects": path.params.keys,
        "memory": path.params.memory,
        "stored": counts.stored.load(Relaxed),
        "fill_time": counts.fill_ms.load(Relaxed),
        "evicted": counts.evicted.load(Relaxed),
        "purged": counts.purged.load(Relaxed),
    });
    if let Some(v) = v.as_object_mut() {
        if path.params.max_size == u64::MAX {
            v.remove("max_size");
        }
        for (status, n) in Status::ALL.iter().zip(&counts.status) {
            let name = status.name().to_ascii_lowercase();
            v.insert(name, json!({ "responses": n.load(Relaxed) }));
        }
    }
    v
}

impl Source for Caches {
    fn name(&self) -> &'static str {
        "caches"
    }

    fn write(&self, site: &Site, out: &mut Text) {
        for path in site.cache_paths() {
            write_metrics(&path, out);
        }
    }
}

fn write_metrics(path: &CachePath, out: &mut Text) {
    let (zone, params) = (&path.zone, &path.params);
    let counts = &zone.counts;
    let labels = [("zone", &*path.name)];
    let gauges = [
        (
            "couloir_cache_size_bytes",
            "Bytes of stored responses on disk.",
            zone.size(),
        ),
        (
            "couloir_cache_objects",
            "Stored responses.",
            zone.index.len() as u64,
        ),
        (
            "couloir_cache_max_objects",
            "How many responses keys_zone has room for.",
            params.keys as u64,
        ),
        (
            "couloir_cache_memory_max_bytes",
            "How much of them may be kept in memory.",
            params.memory as u64,
        ),
        (
            "couloir_cache_serving",
            "Whether the folder can be used.",
            zone.is_serving().into(),
        ),
        (
            "couloir_cache_loading",
            "Whether the folder is still being looked through.",
            zone.is_cold().into(),
        ),
    ];
    for (name, help, value) in gauges {
        out.gauge(name, help).add(&labels, value);
    }
    if params.max_size != u64::MAX {
        out.gauge("couloir_cache_max_size_bytes", "max_size.")
            .add(&labels, params.max_size);
    }
    let requests = out.counter(
        "couloir_cache_requests_total",
        "Requests, by what they found ($upstream_cache_status).",
    );
    let [zone_label] = labels;
    for (status, n) in Status::ALL.iter().zip(&counts.status) {
        let status = status.name().to_ascii_lowercase();
        requests.add(&[zone_label, ("status", &status)], n.load(Relaxed));
    }
    out.counter("couloir_cache_stored_total", "Responses stored.")
        .add(&labels, counts.stored.load(Relaxed));
    out.counter(
        "couloir_cache_fill_seconds_total",
        "From the first to the last byte of responses that were stored.",
    )
    .add(&labels, counts.fill_ms.load(Relaxed) as f64 / 1000.0);
    out.counter(
        "couloir_cache_evicted_total",
        "Responses dropped for want of space or of use.",
    )
    .add(&labels, counts.evicted.load(Relaxed));
    out.counter("couloir_cache_purged_total", "Responses purged.")
        .add(&labels, counts.purged.load(Relaxed));
}

/// `{"key": …}`, `{"prefix": …}`, `{"host": …}` or `{"tag": …}`, with `"soft": true` where objects are to stay as stale.
fn purge(path: &CachePath, ask: &Ask<'_>) -> Result<Answer, ApiError> {
    let text = |name: &str| ask.body.get(name).and_then(Value::as_str);
    let soft = ask
        .body
        .get("soft")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let zone = &path.zone;
    let n = if let Some(key) = text("key") {
        zone.purge_key(key.as_bytes(), soft)
    } else if let Some(prefix) = text("prefix") {
        zone.purge_prefix(prefix.as_bytes(), soft)
    } else if let Some(tag) = text("tag") {
        zone.purge_tags(tag.as_bytes(), soft)
    } else if let Some(host) = text("host") {
        // however the key is made: `http://host/…`, `httphost/…`, `host/…`
        ["http://", "https://", "http", "https", ""]
            .iter()
            .flat_map(|scheme| ["/", ":"].map(|end| format!("{scheme}{host}{end}")))
            .map(|prefix| zone.purge_prefix(prefix.as_bytes(), soft))
            .sum()
    } else {
        let text = "one of \"key\", \"prefix\", \"host\" and \"tag\" is needed";
        return Err(ApiError::new(400, text, "CachePurgeInvalid"));
    };
    Ok(Answer::Value(json!({ "purged": n })))
}
