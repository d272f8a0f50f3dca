//! Storing an origin's answer while it passes.

use super::{any, now};
use crate::cache::file::Meta;
use crate::cache::rules::{Freshness, MAX_ETAG, valid_for};
use crate::cache::{Digest, Entry, Fill, Status, reason, rfc9111};
use crate::contract::PassEnd;
use crate::contract::StoredCopy;
use crate::contract::{CacheCall, Pass, Request};
use crate::http::date;
use crate::http::headers::Known;
use crate::log::Level;

/// Reads what the origin's head says about storing the answer.
pub(in crate::exchange) fn judge(r: &mut Request, pass: &Pass) {
    let Some(call) = &mut r.upstream.cache else {
        return;
    };
    let (headers, ignored) = (&r.upstream.head.headers, pass.conf.ignore);
    call.fresh = match call.settings.rfc9111 {
        true => {
            let authorized = r.head.headers.contains_id(Known::Authorization);
            rfc9111::freshness(headers, r.upstream.head.status, ignored, now(), authorized)
        }
        false => Freshness::of(headers, ignored, now()),
    };
    if !call.fresh.may_store() {
        call.cacheable = false;
    }
}

/// Begins to store the answer, whose head is on its way to the client, where it may be stored.
///
/// `delimited` is whether its end is told: others may follow it then, for they can see whether it broke off.
pub(in crate::exchange) fn begin(r: &mut Request, pass: &Pass, delimited: bool) {
    if pass.conf.store.is_some() {
        r.upstream.copy = StoredCopy::begin(r, pass);
    }
    let Some(mut call) = r.upstream.cache.take() else {
        return;
    };
    let buffered = r.upstream.buffered.unwrap_or(pass.conf.buffering);
    call.fill = if buffered {
        start(r, &mut call, pass)
    } else {
        None
    };
    match &mut call.fill {
        Some(fill) => {
            let followed = call.settings.lock && call.settings.lock_stream;
            if followed
                && delimited
                && has_body(r)
                && let Some(entry) = call.entry.as_ref().filter(|e| e.is_updating())
            {
                entry.publish(&fill.share());
            }
        }
        None => {
            call.cacheable = false;
            call.release();
        }
    }
    r.upstream.cache = Some(call);
}

fn start(r: &Request, call: &mut CacheCall, pass: &Pass) -> Option<Fill> {
    if any(&call.settings.no_cache, r) || !call.cacheable {
        return None;
    }
    let now = now();
    let head = &r.upstream.head;
    let valid = match call.fresh.valid {
        0 => match valid_for(&call.settings.valid, head.status) {
            0 => return None,
            seconds => now.saturating_add(seconds),
        },
        valid => valid,
    };
    let mut meta = Meta {
        valid,
        updating: call.fresh.updating,
        error: call.fresh.error,
        last_modified: -1,
        date: now,
        key: call.key.clone(),
        vary: std::mem::take(&mut call.fresh.vary),
        ..Meta::default()
    };
    if matches!(head.status, 200 | 206) {
        let modified = head.headers.get_id(Known::LastModified);
        meta.last_modified = modified.and_then(date::parse).unwrap_or(-1);
        let etag = head.headers.get_id(Known::ETag).unwrap_or_default();
        if etag.len() <= MAX_ETAG {
            meta.etag = etag.to_vec();
        }
    }
    if let Some(t) = &call.settings.tag {
        meta.tags = t.eval(r).into_owned();
    }
    if !meta.vary.is_empty() {
        meta.variant = Digest::of_variant(call.main, &meta.vary, &r.head.headers);
    }
    // the variant that was asked for is not the one that came: it takes the main key's place
    if call.secondary && (meta.vary.is_empty() || meta.variant != call.digest) {
        call.digest = call.main;
        call.secondary = false;
        call.entry = None;
    }
    if call.entry.is_none() {
        // bypassed before, or the key has changed
        let path = &call.path;
        let enter = || {
            path.zone.index.enter(
                call.digest,
                now,
                path.params.inactive,
                1,
                path.params.keys,
                false,
            )
        };
        if enter().is_none() && !(path.zone.make_room() && enter().is_some()) {
            return None;
        }
        call.entry = Some(Entry::new(path.zone.clone(), call.digest, true));
    }
    Some(Fill::new(
        call.zone().clone(),
        call.digest,
        meta,
        head.clone(),
        pass.conf.temp_path.clone(),
    ))
}

/// Whether what comes is the whole response: the answer to HEAD is not.
fn has_body(r: &Request) -> bool {
    !r.is_head() || r.upstream.convert_head
}

/// Whether the answer is being stored: it is read to its end even where the client has gone.
pub(in crate::exchange) fn filling(r: &Request) -> bool {
    r.upstream.copy.is_some() || r.upstream.cache.as_ref().is_some_and(|c| c.fill.is_some())
}

/// Whether the origin is asked to the end even where the client has gone.
pub(in crate::exchange) fn outlives_client(r: &Request, pass: &Pass) -> bool {
    pass.conf.store.is_some() || r.upstream.is_cacheable()
}

/// Takes a piece of the body; `done` is its end.
pub(in crate::exchange) fn tee(r: &mut Request, data: &[u8], done: bool) {
    if let Some(copy) = &mut r.upstream.copy
        && let Err(e) = copy.write(data)
    {
        r.upstream.copy = None;
        r.error(
            Level::Crit,
            format_args!("pwrite() failed ({}) while reading upstream", reason(&e)),
        );
    }
    if done && let Some(copy) = r.upstream.copy.take() {
        copy.place(r);
    }
    let Some(call) = &mut r.upstream.cache else {
        return;
    };
    let Some(fill) = &mut call.fill else { return };
    if let Err(e) = fill.write(data) {
        call.fill = None;
        call.release();
        call.zone().trouble(format_args!("{e}"));
        return;
    }
    if done {
        complete(r);
    }
}

/// The body has come to its end: the object gets its name, and those who wait for it go on.
pub(in crate::exchange) fn complete(r: &mut Request) {
    if let Some(copy) = r.upstream.copy.take() {
        copy.place(r);
    }
    let Some(call) = &mut r.upstream.cache else {
        return;
    };
    let Some(fill) = call.fill.take() else { return };
    if let Err(e) = fill.finish() {
        call.zone().trouble(format_args!("{}", reason(&e)));
    }
    call.release();
}

/// The body broke off: nothing is stored.
pub(in crate::exchange) fn abandon(r: &mut Request) {
    r.upstream.copy = None;
    if let Some(call) = &mut r.upstream.cache {
        call.fill = None;
        call.release();
    }
}

/// Notes that requests are answered with this status for a while, where `proxy_cache_valid` says so.
pub(in crate::exchange) fn failed_with(r: &mut Request, status: u16) {
    let Some(call) = &mut r.upstream.cache else {
        return;
    };
    if call.cacheable && call.entry.is_some() {
        let now = now();
        let until = match call.fresh.valid {
            0 => valid_for(&call.settings.valid, status),
            valid => valid - now,
        };
        if until > 0 {
            call.zone()
                .index
                .failed(call.digest, status, now.saturating_add(until));
        }
    }
    call.release();
}

/// Ends what the request does with the cache.
pub(in crate::exchange) fn close(r: &mut Request, outcome: &PassEnd) {
    // RFC 9111, section 4.4
    if let Some((path, key)) = r.upstream.invalidates.take()
        && r.upstream.has_head
        && (200..400).contains(&r.upstream.head.status)
    {
        path.zone.purge_key(&key, false);
    }
    let Some(call) = &mut r.upstream.cache else {
        return;
    };
    call.fill = None;
    if let PassEnd::Status(status @ (502 | 504)) = outcome
        && r.upstream.cache_status != Some(Status::Bypass)
    {
        // what the head of a broken answer said does not count
        call.fresh = Freshness::default();
        failed_with(r, *status);
    } else {
        call.release();
    }
}
