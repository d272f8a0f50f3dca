//! The cache in the exchange: what nginx does with a cached location, on zones of [`crate::cache`].
//!
//! A request is looked up before an origin is asked ([`open`]); a hit is served and nothing else happens. Otherwise the
//! exchange goes on as for any location, and what the origin says is judged, stored while it passes ([`fill`]), or the
//! old object is served instead. Others who ask for what is being stored may follow it ([`follow`]).

mod fill;
mod follow;
mod lookup;
mod purge;
mod serve;

pub(super) use fill::{
    abandon, begin, close, complete, failed_with, filling, judge, outlives_client, tee,
};
pub(super) use serve::{may_be_stale, revalidated, stale};

use super::target;
use crate::cache::{CachePath, Digest, Status};
use crate::contract::PassEnd;
use crate::contract::{
    CacheCall, CacheChoice, CacheSettings, Destination, Pass, PassTarget, Request, Template,
};
use crate::http::date;
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::log::Level;
use lookup::Verdict;
use std::sync::Arc;

/// Looks the request up; `None`: the origin is to be asked.
pub(super) async fn open(
    r: &mut Request,
    pass: &Arc<Pass>,
    settings: &Arc<CacheSettings>,
) -> Option<PassEnd> {
    if r.is_explain_only() {
        return None;
    }
    let purging = settings.purge.as_ref().filter(|p| any(&p.when, r)).cloned();
    let served = settings.methods & r.method.bit() != 0;
    let safe = matches!(
        r.method,
        Method::Get | Method::Head | Method::Options | Method::Trace
    );
    let invalidates = settings.rfc9111 && !safe;
    if purging.is_none() && !served && !invalidates {
        return None;
    }
    let path = match choose(r, settings) {
        Ok(Some(path)) => path,
        Ok(None) => return None,
        Err(status) => return Some(PassEnd::Status(status)),
    };
    let evaluated = match &pass.target {
        PassTarget::Dynamic(..) => match target::evaluate(r, pass) {
            Ok(t) => Some(t),
            Err(status) => return Some(PassEnd::Status(status)),
        },
        PassTarget::Group(..) => None,
    };
    let to = evaluated.as_ref().map_or(
        Destination {
            host: b"",
            port: b"",
            uri: None,
            tls: matches!(pass.target, PassTarget::Group(_, true)),
        },
        |t| Destination {
            host: &t.host,
            port: &t.port,
            uri: (!t.uri.is_empty()).then_some(&t.uri[..]),
            tls: t.tls,
        },
    );
    let mut key = r.scratch();
    pass.protocol
        .cache_key(r, &to, evaluated.as_ref(), &mut key);
    if let Some(t) = &settings.key {
        key.clear();
        t.write(r, &mut key);
    }
    if let Some(purging) = purging {
        let outcome = purge::run(r, &path, &purging, &key);
        r.put_scratch(key);
        return Some(outcome);
    }
    if invalidates {
        r.upstream.invalidates = Some((path.clone(), key.as_slice().into()));
    }
    if !path.zone.is_serving() || !served {
        r.put_scratch(key);
        return None;
    }
    r.upstream.convert_head = r.method == Method::Head && settings.convert_head;
    let main = Digest::of(&key);
    let bypass = any(&settings.bypass, r);
    if !bypass && let Some(object) = lookup::hot(&path, main, &key) {
        r.put_scratch(key);
        path.zone.count(Status::Hit);
        return Some(serve::serve(r, pass, &to, &object, Status::Hit).await);
    }
    let call = Box::new(CacheCall {
        settings: settings.clone(),
        path,
        key: key.as_slice().into(),
        main,
        digest: main,
        secondary: false,
        cacheable: true,
        entry: None,
        seen: 0,
        old: None,
        fresh: Default::default(),
        stale_error: false,
        fill: None,
    });
    r.put_scratch(key);
    if bypass {
        note(r, &call, Status::Bypass);
        r.upstream.cache = Some(call);
        return None;
    }
    Box::pin(cold(r, pass, &to, call)).await
}

/// The way of a request that the fast lookup has not answered.
async fn cold(
    r: &mut Request,
    pass: &Arc<Pass>,
    to: &Destination<'_>,
    mut call: Box<CacheCall>,
) -> Option<PassEnd> {
    let watch = !pass.conf.ignore_client_abort;
    match lookup::find(r, &mut call, watch).await {
        Verdict::Serve(object, status) => {
            call.release();
            call.zone().count(status);
            Some(serve::serve(r, pass, to, &object, status).await)
        }
        Verdict::Join(live) => {
            call.release();
            call.zone().count(Status::Hit);
            drop(call);
            Some(follow::serve(r, pass, to, &live).await)
        }
        Verdict::Background(object) => {
            let update = call.entry.as_mut().map(|e| e.give_update());
            call.release();
            if let Some(update) = update {
                crate::contract::subrequest::refresh(r, pass, update);
            }
            call.zone().count(Status::Stale);
            Some(serve::serve(r, pass, to, &object, Status::Stale).await)
        }
        Verdict::Error(status) => {
            note(r, &call, Status::Hit);
            Some(PassEnd::Status(status))
        }
        Verdict::Gone => Some(PassEnd::Status(499)),
        Verdict::Fetch(status) => {
            note(r, &call, status);
            if call.cacheable && !range_allowed(r, call.settings.max_range_offset) {
                call.cacheable = false;
            }
            r.upstream.cache = Some(call);
            None
        }
    }
}

/// Sets `$upstream_cache_status`, and counts.
fn note(r: &mut Request, call: &CacheCall, status: Status) {
    r.upstream.cache_status = Some(status);
    call.zone().count(status);
}

/// The zone of this request; none where there is to be no caching.
fn choose(r: &Request, settings: &CacheSettings) -> Result<Option<Arc<CachePath>>, u16> {
    let template = match &settings.choice {
        CacheChoice::Fixed(path) => return Ok(path.get().cloned()),
        CacheChoice::Dynamic(t) => t,
    };
    let name = template.eval(r);
    if name.is_empty() || *name == *b"off" {
        return Ok(None);
    }
    let paths = settings.paths.get().into_iter().flatten();
    match paths.into_iter().find(|p| p.name.as_bytes() == &*name) {
        Some(p) => Ok(Some(p.clone())),
        None => {
            let name = String::from_utf8_lossy(&name);
            r.error(Level::Error, format_args!("cache \"{name}\" not found"));
            Err(500)
        }
    }
}

/// Whether one of the texts is neither empty nor `0`.
fn any(texts: &[Template], r: &Request) -> bool {
    texts.iter().any(|t| {
        let v = t.eval(r);
        !v.is_empty() && *v != *b"0"
    })
}

/// `proxy_cache_max_range_offset`: whether the whole response is fetched for the sake of a range.
fn range_allowed(r: &Request, max: Option<u64>) -> bool {
    let (Some(max), Some(range)) = (max, r.head.headers.get_id(Known::Range)) else {
        return true;
    };
    if max == 0 {
        return false;
    }
    let begin = match range.split_at_checked(6) {
        Some((unit, rest)) if unit.eq_ignore_ascii_case(b"bytes=") && !rest.is_empty() => rest,
        _ => return true,
    };
    let begin = begin.trim_ascii_start();
    if begin.first() == Some(&b'-') {
        return false;
    }
    let digits = begin.iter().take_while(|b| b.is_ascii_digit()).count();
    // what is no number stands for nginx's -1
    let offset = crate::config::value::parse_offset(begin.get(..digits).unwrap_or_default());
    offset.is_none_or(|n| n < max)
}

fn now() -> i64 {
    date::now().sec
}
