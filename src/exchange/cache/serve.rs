//! Serving an object: fresh, stale, or found unchanged.

use super::{note, now};
use crate::cache::file::Meta;
use crate::cache::rules::{Freshness, valid_for};
use crate::cache::{Content, Fill, Object, Status, reason, rfc9111};
use crate::contract::PassEnd;
use crate::contract::{Body, Destination, Pass, Request};
use crate::delivery::output;
use crate::exchange::head;
use crate::http::h1::response::UpstreamHead;
use crate::http::headers::Known;
use std::sync::Arc;

/// Sends an object as if the origin had just sent it.
pub(super) async fn serve(
    r: &mut Request,
    pass: &Arc<Pass>,
    to: &Destination<'_>,
    object: &Arc<Object>,
    status: Status,
) -> PassEnd {
    if let Some(outcome) = present(r, pass, to, (&object.head, &object.meta), status) {
        return outcome;
    }
    // what was stored of HEAD has a length, and no body: after it the connection is of no use
    if !r.is_head() && r.out.content_length.is_some_and(|n| n != object.body.len()) {
        r.keepalive = false;
    }
    let body = match &object.body {
        Content::Memory(bytes) => Body::Bytes(bytes.clone()),
        Content::File(file, offset, len) => Body::File {
            file: file.clone(),
            offset: *offset,
            len: *len,
        },
    };
    match output::send_as_is(r, body).await {
        Ok(()) => PassEnd::Done,
        Err(status) => PassEnd::Status(status),
    }
}

/// Makes a stored head the response's; an outcome where it leads elsewhere (X-Accel-Redirect).
pub(super) fn present(
    r: &mut Request,
    pass: &Arc<Pass>,
    to: &Destination<'_>,
    (stored, meta): (&UpstreamHead, &Meta),
    status: Status,
) -> Option<PassEnd> {
    r.upstream.cache_status = Some(status);
    r.upstream.cache_age = Some((now() - meta.date).max(0));
    r.upstream.from_cache = true;
    r.upstream.head.clone_from(stored);
    r.upstream.has_head = true;
    if let Some(redirect) = head::accel_redirect(pass, r) {
        return Some(redirect);
    }
    head::copy(pass, to, r);
    if pass.conf.cache.as_ref().is_some_and(|c| c.rfc9111) {
        r.out.rfc9110 = true;
        if let Some(sent) = stored.headers.get_id(Known::Date) {
            r.out.date = sent.to_vec();
        }
        let age = rfc9111::age(&stored.headers, meta.date, now());
        r.out
            .headers
            .set(b"Age", itoa::Buffer::new().format(age).as_bytes());
    }
    if stored.is_http09() {
        r.out.http09 = true;
    }
    None
}

/// Whether the old object takes the place of an answer with this condition (`proxy_cache_use_stale`).
pub(in crate::exchange) fn may_be_stale(r: &Request, kind: u32) -> bool {
    r.upstream.cache_status == Some(Status::Expired)
        && r.upstream
            .cache
            .as_ref()
            .is_some_and(|c| c.old.is_some() && c.settings.use_stale & kind != 0)
}

/// Serves the old object where the origin failed; `None` where that is not wanted.
///
/// `failed` is whether there was no answer at all, so that stale-if-error counts too.
pub(in crate::exchange) async fn stale(
    r: &mut Request,
    pass: &Arc<Pass>,
    to: &Destination<'_>,
    kind: u32,
    failed: bool,
) -> Option<PassEnd> {
    let by_origin = failed
        && r.upstream.cache_status == Some(Status::Expired)
        && r.upstream.cache.as_ref().is_some_and(|c| c.stale_error);
    if !by_origin && !may_be_stale(r, kind) {
        return None;
    }
    let call = r.upstream.cache.as_mut()?;
    let object = call.old.take()?;
    call.zone().count(Status::Stale);
    let outcome = Box::pin(serve(r, pass, to, &object, Status::Stale)).await;
    if let Some(call) = &mut r.upstream.cache {
        call.release();
    }
    Some(outcome)
}

/// Serves the old object that the origin says is still the same, and notes until when (`proxy_cache_revalidate`);
/// `None` where the answer is none of that kind.
pub(in crate::exchange) async fn revalidated(
    r: &mut Request,
    pass: &Arc<Pass>,
    to: &Destination<'_>,
) -> Option<PassEnd> {
    if r.upstream.head.status != 304 || r.upstream.cache_status != Some(Status::Expired) {
        return None;
    }
    let call = r
        .upstream
        .cache
        .as_mut()
        .filter(|c| c.settings.revalidate)?;
    let old = call.old.take()?;
    let mut object = old.clone();
    let now = now();
    let ignored = pass.conf.ignore;
    let rfc = call.settings.rfc9111;
    let fresh = if rfc {
        let head = rfc9111::merge(&object.head, &r.upstream.head.headers);
        let fresh = rfc9111::freshness(&head.headers, head.status, ignored, now, false);
        object = renewed(&object, object.meta.clone(), Some(head));
        fresh
    } else {
        let answer = Freshness::of(&r.upstream.head.headers, ignored, now);
        let stored = Freshness::of(&object.head.headers, ignored, now);
        if answer.valid != 0 { answer } else { stored }
    };
    let valid = match (
        fresh.valid,
        valid_for(&call.settings.valid, object.head.status),
    ) {
        (0, 0) => 0,
        (0, rule) => now.saturating_add(rule),
        (valid, _) => valid,
    };
    if valid != 0 {
        let meta = Meta {
            valid,
            updating: fresh.updating,
            error: fresh.error,
            date: now,
            ..object.meta.clone()
        };
        let zone = call.zone().clone();
        let new = renewed(&object, meta, None);
        let written = match &new.body {
            // the head may have another length: the whole file is written anew
            Content::Memory(bytes) if rfc => {
                let (meta, head) = (new.meta.clone(), new.head.clone());
                let temp = pass.conf.temp_path.clone();
                let mut fill = Fill::new(zone.clone(), call.digest, meta, head, temp);
                fill.write(bytes).and_then(|()| fill.finish())
            }
            _ => {
                let written = zone.rewrite(call.digest, &old, &new.meta);
                if written.is_ok() {
                    zone.remember(call.digest, &new);
                }
                zone.index.renew(call.digest);
                written
            }
        };
        if let Err(e) = written {
            let path = zone.path(call.digest);
            zone.trouble(format_args!(
                "updating \"{}\" failed ({})",
                path.display(),
                reason(&e)
            ));
        }
        object = new;
    }
    note_revalidated(r);
    // others who wait need not wait for this client
    if let Some(call) = &mut r.upstream.cache {
        call.release();
    }
    Some(Box::pin(serve(r, pass, to, &object, Status::Revalidated)).await)
}

/// The object with other times, or another head.
fn renewed(object: &Object, meta: Meta, head: Option<UpstreamHead>) -> Arc<Object> {
    Arc::new(Object {
        meta,
        head: head.unwrap_or_else(|| object.head.clone()),
        body: match &object.body {
            Content::Memory(bytes) => Content::Memory(bytes.clone()),
            Content::File(file, at, len) => Content::File(file.clone(), *at, *len),
        },
        generation: object.generation,
        inode: object.inode,
    })
}

fn note_revalidated(r: &mut Request) {
    if let Some(call) = r.upstream.cache.take() {
        note(r, &call, Status::Revalidated);
        r.upstream.cache = Some(call);
    }
}
