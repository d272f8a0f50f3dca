//! `proxy_cache_rfc9111`: what RFC 9111 says where nginx does less, or something else.

use super::rules::Freshness;
use crate::http::date;
use crate::http::h1::response::UpstreamHead;
use crate::http::headers::{Headers, Known};
use crate::upstream::ignore;

/// Reads a head as RFC 9111, sections 3 and 4.2, say; `authorized` is whether the request had `Authorization`.
///
/// X-Accel-Expires has the last word, as in nginx.
pub fn freshness(
    headers: &Headers,
    status: u16,
    ignored: u32,
    now: i64,
    authorized: bool,
) -> Freshness {
    let heeds = |bit: u32| ignored & bit == 0;
    if headers.contains_id(Known::XAccelExpires) && heeds(ignore::ACCEL_EXPIRES) {
        return Freshness::of(headers, ignored, now);
    }
    let control = if heeds(ignore::CACHE_CONTROL) {
        Control::of(headers)
    } else {
        Control::default()
    };
    let mut f = Freshness {
        updating: control.updating.unwrap_or(0),
        error: control.error.or(control.updating).unwrap_or(0),
        // section 5.2.2.3: no-store is for those who do not know the status
        no_cache: control.forbids
            || control.no_store && !(control.must_understand && is_known(status)),
        ..Freshness::default()
    };
    // section 3.5
    f.refused = authorized && !control.shared
        || heeds(ignore::SET_COOKIE) && headers.contains_id(Known::SetCookie);
    if heeds(ignore::VARY) {
        for value in headers.get_all_id(Known::Vary) {
            f.refused |= value.split(|b| *b == b',').any(|v| v.trim_ascii() == b"*");
            f.varies(value);
        }
    }
    let sent = headers.get_id(Known::Date).and_then(date::parse);
    let lifetime = control.lifetime.or_else(|| {
        let at = headers
            .get_id(Known::Expires)
            .filter(|_| heeds(ignore::EXPIRES))?;
        // what is no date is over (section 5.3)
        Some(date::parse(at).map_or(0, |at| at.saturating_sub(sent.unwrap_or(now))))
    });
    if let Some(lifetime) = lifetime {
        let left = lifetime.saturating_sub(age(headers, now, now));
        if left > 0 {
            f.valid = now.saturating_add(left);
        } else {
            f.expired = true;
        }
    }
    f
}

/// `Age` of a response now that came at `stored` (section 4.2.3), seconds.
pub fn age(headers: &Headers, stored: i64, now: i64) -> i64 {
    let told = headers
        .get_id(Known::Age)
        .and_then(|v| v.split(|b| *b == b',').next())
        .and_then(|v| seconds(v.trim_ascii()))
        .unwrap_or(0);
    let apparent = headers
        .get_id(Known::Date)
        .and_then(date::parse)
        .map_or(0, |sent| stored.saturating_sub(sent).max(0));
    told.max(apparent)
        .saturating_add(now.saturating_sub(stored).max(0))
}

/// The stored head with what a 304 says anew (section 3.2).
pub fn merge(stored: &UpstreamHead, answer: &Headers) -> UpstreamHead {
    let mut head = stored.clone();
    let kept = |known: Known| {
        matches!(
            known,
            Known::ContentLength
                | Known::ContentEncoding
                | Known::ContentRange
                | Known::ContentType
                | Known::TransferEncoding
                | Known::Connection
                | Known::KeepAlive
                | Known::Te
                | Known::Trailer
                | Known::Upgrade
                | Known::ProxyConnection
                | Known::ProxyAuthenticate
        )
    };
    for (known, name, _) in answer.entries() {
        if !kept(known) {
            head.headers.remove(name);
        }
    }
    for (known, name, value) in answer.entries() {
        if !kept(known) {
            head.headers.append(name, value);
        }
    }
    head
}

/// Whether the caching of a status is known (RFC 9110, section 15.1).
fn is_known(status: u16) -> bool {
    matches!(
        status,
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// What the `Cache-Control` lines of a response come to.
#[derive(Default)]
struct Control {
    /// It must not be stored here, or not be served without asking.
    forbids: bool,
    no_store: bool,
    must_understand: bool,
    /// It may be stored although the request was authorized.
    shared: bool,
    /// s-maxage, else max-age.
    lifetime: Option<i64>,
    updating: Option<i64>,
    error: Option<i64>,
}

impl Control {
    fn of(headers: &Headers) -> Control {
        let mut c = Control::default();
        let (mut own, mut shared) = (None, None);
        // what contradicts itself, or is no number, is over
        let least = |slot: &mut Option<i64>, value: &[u8]| {
            let n = seconds(value).unwrap_or(0);
            *slot = Some(slot.map_or(n, |before| before.min(n)));
        };
        for line in headers.get_all_id(Known::CacheControl) {
            for (name, value) in directives(line) {
                match &name.to_ascii_lowercase()[..] {
                    b"no-store" => c.no_store = true,
                    b"must-understand" => c.must_understand = true,
                    b"no-cache" | b"private" => c.forbids = true,
                    b"public" | b"must-revalidate" => c.shared = true,
                    b"max-age" => least(&mut own, value),
                    b"s-maxage" => {
                        c.shared = true;
                        least(&mut shared, value);
                    }
                    b"stale-while-revalidate" => c.updating = seconds(value),
                    b"stale-if-error" => c.error = seconds(value),
                    _ => {}
                }
            }
        }
        c.lifetime = shared.or(own);
        c
    }
}

/// Names and values of a list of directives; quotes are taken off.
fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let mut escaped = false;
        let end = rest.iter().position(|b| {
            match b {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        });
        let (one, more) = match end {
            Some(at) => (
                rest.get(..at).unwrap_or_default(),
                rest.get(at + 1..).unwrap_or_default(),
            ),
            None => (rest, &b""[..]),
        };
        rest = more;
        let split = one.iter().position(|b| *b == b'=');
        let (name, value) = match split {
            Some(at) => (
                one.get(..at).unwrap_or_default(),
                one.get(at + 1..).unwrap_or_default(),
            ),
            None => (one, &b""[..]),
        };
        let value = value.trim_ascii_end();
        let value = value
            .strip_prefix(b"\"")
            .and_then(|v| v.strip_suffix(b"\""))
            .unwrap_or(value);
        Some((name.trim_ascii_start(), value))
    })
}

/// Digits alone; more than fit are very many.
fn seconds(text: &[u8]) -> Option<i64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0i64, |n, b| {
        n.saturating_mul(10).saturating_add(i64::from(b - b'0'))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut h = Headers::new();
        for (n, v) in fields {
            h.append(n.as_bytes(), v.as_bytes());
        }
        h
    }

    fn of(fields: &[(&str, &str)]) -> (bool, i64) {
        let f = freshness(&headers(fields), 200, 0, NOW, false);
        (f.may_store(), f.valid)
    }

    #[test]
    fn lifetimes() {
        let date = |t: i64| String::from_utf8_lossy(&date::format(t)).into_owned();
        let cc = |v| [("Cache-Control", v)];
        assert_eq!(of(&cc("max-age=10")), (true, NOW + 10));
        assert_eq!(
            of(&cc("a=\"max-age=5, x\", max-age=\"10\"")),
            (true, NOW + 10)
        );
        assert_eq!(of(&cc("xmax-age=10")), (true, 0));
        assert_eq!(of(&cc("max-age=10, s-maxage=20")), (true, NOW + 20));
        assert_eq!(of(&cc("max-age=x")), (false, 0));
        assert_eq!(of(&cc("x=\"no-store\"")), (true, 0));
        assert!(!of(&cc("a, NO-STORE")).0);
        assert!(of(&cc("no-store, must-understand, max-age=1")).0);
        let age = [("Cache-Control", "max-age=10"), ("Age", "4")];
        assert_eq!(of(&age), (true, NOW + 6));
        let old = [("Cache-Control", "max-age=10"), ("Age", "10")];
        assert!(!of(&old).0);
        let (sent, ends) = (date(NOW - 100), date(NOW + 50));
        assert_eq!(of(&[("Date", &sent), ("Expires", &ends)]), (true, NOW + 50));
        let (sent, ends) = (date(NOW + 100), date(NOW + 130));
        assert_eq!(of(&[("Date", &sent), ("Expires", &ends)]), (true, NOW + 30));
        assert!(!of(&[("Expires", "0")]).0);
        assert!(!of(&[("Vary", "a, *")]).0);
    }

    #[test]
    fn authorization() {
        for (value, stored) in [
            ("max-age=9", false),
            ("public, max-age=9", true),
            ("s-maxage=9", true),
        ] {
            let f = freshness(&headers(&[("Cache-Control", value)]), 200, 0, NOW, true);
            assert_eq!(f.may_store(), stored, "{value}");
        }
    }

    #[test]
    fn ages_and_merging() {
        assert_eq!(age(&headers(&[("Age", "7")]), NOW, NOW + 3), 10);
        assert_eq!(age(&headers(&[]), NOW, NOW - 3), 0);
        let old = UpstreamHead {
            headers: headers(&[("A", "1"), ("B", "1"), ("Content-Length", "5")]),
            ..UpstreamHead::default()
        };
        let new = merge(
            &old,
            &headers(&[("A", "2"), ("A", "3"), ("Content-Length", "0"), ("C", "4")]),
        );
        let list: Vec<_> = new.headers.iter().map(|(n, v)| [n, v].concat()).collect();
        assert_eq!(list, [&b"B1"[..], b"Content-Length5", b"A2", b"A3", b"C4"]);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(name in "(Cache-Control|Expires|Date|Age|Vary)", value in ".*") {
            let f = freshness(&headers(&[(&name, &value)]), 200, 0, NOW, false);
            proptest::prop_assert!(f.valid >= 0);
        }
    }
}
