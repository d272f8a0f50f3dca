//! What a client asks of a response: only if it is another one, only a part of it (RFC 9110 sections 13 and 14).

use super::Cut;
use crate::contract::Request;
use crate::http::date;
use crate::http::etag::{self, Conditions, IfModifiedSince, Precondition};
use crate::http::head::Version;
use crate::http::headers::Known;
use crate::http::range::{self, Multipart, Ranges};

/// If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since.
pub(super) fn not_modified(r: &mut Request) -> Result<(), u16> {
    let h = &r.head.headers;
    let conditions = Conditions {
        if_match: h.get_id(Known::IfMatch),
        if_unmodified_since: h.get_id(Known::IfUnmodifiedSince),
        if_none_match: h.get_id(Known::IfNoneMatch),
        if_modified_since: h.get_id(Known::IfModifiedSince),
    };
    if conditions == Conditions::default() {
        return Ok(());
    }
    let mut conditions = conditions;
    let mut last_modified = match r.out.last_modified {
        None if !r.out.last_modified_text.is_empty() => date::parse(&r.out.last_modified_text),
        t => t,
    };
    let mut since = r.core().if_modified_since;
    if r.out.rfc9110 {
        if conditions.if_none_match.is_some() {
            conditions.if_modified_since = None;
        }
        if since == IfModifiedSince::Exact {
            since = IfModifiedSince::Before;
        }
        last_modified = last_modified.or_else(|| date::parse(&r.out.date));
    }
    match etag::evaluate(
        &conditions,
        r.out.headers.get(b"ETag"),
        last_modified,
        since,
    ) {
        Precondition::Proceed => Ok(()),
        Precondition::Failed => Err(412),
        Precondition::NotModified => {
            r.out.status = 304;
            r.out.status_line.clear();
            r.out.content_type.clear();
            r.out.content_length = None;
            r.out.allow_ranges = false;
            r.out.headers.remove(b"Accept-Ranges");
            r.out.headers.remove(b"Content-Encoding");
            r.out.header_only = true;
            Ok(())
        }
    }
}

/// Range and If-Range.
pub(super) fn ranges(r: &mut Request) -> Result<(), u16> {
    if !r.out.allow_ranges || r.out.status != 200 || r.head.version == Version::V09 {
        return Ok(());
    }
    let Some(length) = r.out.content_length else {
        return Ok(());
    };
    let max = r.core().max_ranges;
    if max == Some(0) {
        return Ok(());
    }
    let asked = r.head.headers.get_id(Known::Range);
    let accept = |r: &mut Request| r.out.headers.set(b"Accept-Ranges", b"bytes");
    let Some(asked) = asked.filter(|v| {
        v.len() > 6
            && v.get(..6)
                .is_some_and(|p| p.eq_ignore_ascii_case(b"bytes="))
    }) else {
        accept(r);
        return Ok(());
    };
    if let Some(v) = r.head.headers.get_id(Known::IfRange) {
        let last_modified = match r.out.last_modified {
            None if !r.out.last_modified_text.is_empty() => date::parse(&r.out.last_modified_text),
            t => t,
        };
        if !etag::if_range(v, r.out.headers.get(b"ETag"), last_modified) {
            accept(r);
            return Ok(());
        }
    }
    let limit = if r.out.single_range {
        1
    } else {
        max.map_or(range::UNLIMITED, |n| n as usize)
    };
    match range::parse(asked, length, limit) {
        Ranges::Ignore => accept(r),
        Ranges::Unsatisfiable => {
            let mut v = Vec::new();
            range::content_range_unsatisfied(length, &mut v);
            r.out.clear_entity();
            r.out.headers.set(b"Content-Range", &v);
            return Err(416);
        }
        Ranges::Single(a, b) => {
            let mut v = Vec::new();
            range::content_range(a, b, length, &mut v);
            r.out.headers.set(b"Content-Range", &v);
            r.out.content_length = Some(b - a);
            r.out.status = 206;
            r.out.status_line.clear();
            r.output.cut = Some(Cut::Single(a, b));
        }
        Ranges::Multi(parts) => {
            let heads = Multipart::new(boundary(), &r.out.content_type, &r.out.charset, length);
            let mut v = Vec::new();
            heads.content_type(&mut v);
            // each part has its own
            r.out.headers.remove_id(Known::ContentRange);
            r.out.content_type = v;
            r.out.charset.clear();
            r.out.content_length = Some(heads.content_length(&parts));
            r.out.status = 206;
            r.out.status_line.clear();
            r.output.cut = Some(Cut::Multi {
                parts,
                heads,
                next: 0,
                inside: false,
            });
        }
    }
    Ok(())
}

fn boundary() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
