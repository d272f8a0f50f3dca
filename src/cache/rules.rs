//! Whether a response may be stored and for how long, as nginx reads the origin's head.

use crate::http::date;
use crate::http::headers::{Headers, Known};
use crate::upstream::ignore;

/// The longest `Vary` that is kept, bytes (nginx's limit).
pub const MAX_VARY: usize = 128;

/// The longest entity tag that is kept, bytes (nginx's limit).
pub const MAX_ETAG: usize = 128;

/// What the head of a response says about storing it. Times are seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Until when it is fresh, since the epoch; 0 where the head does not say.
    pub valid: i64,
    /// How long it may be served while it is being updated (stale-while-revalidate).
    pub updating: i64,
    /// How long it may be served where the origin fails (stale-if-error).
    pub error: i64,
    /// `Vary`, its lines joined.
    pub vary: Vec<u8>,
    /// `Cache-Control` forbids to store it.
    pub(super) no_cache: bool,
    /// `Expires` is over.
    pub(super) expired: bool,
    /// Something else forbids to store it.
    pub(super) refused: bool,
    /// There was an X-Accel-Expires.
    pub(super) accel: bool,
}

impl Freshness {
    /// Reads a head. `ignored` are bits of [`ignore`]; the order of the fields counts, as in nginx.
    pub fn of(headers: &Headers, ignored: u32, now: i64) -> Freshness {
        let mut f = Freshness::default();
        let heeds = |bit: u32| ignored & bit == 0;
        for (known, _, value) in headers.entries() {
            match known {
                Known::XAccelExpires => {
                    f.accel = true;
                    if heeds(ignore::ACCEL_EXPIRES) {
                        f.accel_expires(value, now);
                    }
                }
                Known::Expires if heeds(ignore::EXPIRES) => f.expires(value, now),
                Known::CacheControl if heeds(ignore::CACHE_CONTROL) => f.cache_control(value, now),
                Known::SetCookie if heeds(ignore::SET_COOKIE) => f.refused = true,
                Known::Vary if heeds(ignore::VARY) => f.varies(value),
                _ => {}
            }
        }
        f
    }

    /// Whether the response may be stored.
    pub fn may_store(&self) -> bool {
        !(self.no_cache || self.expired || self.refused)
    }

    fn accel_expires(&mut self, value: &[u8], now: i64) {
        let until = match value.strip_prefix(b"@") {
            Some(at) => number(at),
            None => match number(value) {
                Some(0) => {
                    self.refused = true;
                    return;
                }
                n => n.map(|n| now.saturating_add(n)),
            },
        };
        if let Some(until) = until {
            self.valid = until;
            self.no_cache = false;
            self.expired = false;
        }
    }

    fn expires(&mut self, value: &[u8], now: i64) {
        if self.valid != 0 {
            return;
        }
        match date::parse(value) {
            Some(at) if at >= now => self.valid = at,
            _ => self.expired = true,
        }
    }

    fn cache_control(&mut self, value: &[u8], now: i64) {
        // X-Accel-Expires has the last word on how long; how stale is still Cache-Control's
        if !(self.valid != 0 && self.accel) {
            if [&b"no-cache"[..], b"no-store", b"private"]
                .iter()
                .any(|word| find(value, word).is_some())
            {
                self.no_cache = true;
                return;
            }
            let age = [&b"s-maxage="[..], b"max-age="]
                .iter()
                .find_map(|name| find(value, name));
            if let Some(text) = age {
                match seconds(text) {
                    None => {
                        self.refused = true;
                        return;
                    }
                    Some(0) => {
                        self.no_cache = true;
                        return;
                    }
                    Some(n) => {
                        self.valid = now.saturating_add(n);
                        self.expired = false;
                    }
                }
            }
        }
        if let Some(text) = find(value, b"stale-while-revalidate=") {
            let Some(n) = seconds(text) else {
                self.refused = true;
                return;
            };
            (self.updating, self.error) = (n, n);
        }
        if let Some(text) = find(value, b"stale-if-error=") {
            match seconds(text) {
                Some(n) => self.error = n,
                None => self.refused = true,
            }
        }
    }

    pub(super) fn varies(&mut self, value: &[u8]) {
        if self.refused {
            return;
        }
        if value == b"*" {
            self.refused = true;
            return;
        }
        if !self.vary.is_empty() {
            self.vary.extend_from_slice(b", ");
        }
        self.vary.extend_from_slice(value);
        if self.vary.len() > MAX_VARY {
            self.refused = true;
        }
    }
}

/// `proxy_cache_valid`: seconds for a status; 0 where no rule fits. A status of 0 stands for any.
pub fn valid_for(rules: &[(u16, i64)], status: u16) -> i64 {
    rules
        .iter()
        .find(|(s, _)| *s == 0 || *s == status)
        .map_or(0, |(_, t)| *t)
}

/// What follows `word` in `text`, whatever its case.
fn find<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let at = text
        .windows(word.len())
        .position(|w| w.eq_ignore_ascii_case(word))?;
    text.get(at + word.len()..)
}

/// Digits up to a separator; `None` where there is anything else.
fn seconds(text: &[u8]) -> Option<i64> {
    let mut n = 0i64;
    for b in text {
        match b {
            b',' | b';' | b' ' => break,
            b'0'..=b'9' => n = n.saturating_mul(10).saturating_add(i64::from(b - b'0')),
            _ => return None,
        }
    }
    Some(n)
}

/// Digits alone.
fn number(text: &[u8]) -> Option<i64> {
    crate::config::value::parse_number(text).and_then(|n| i64::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn of(fields: &[(&str, &str)]) -> Freshness {
        ignoring(fields, 0)
    }

    fn ignoring(fields: &[(&str, &str)], ignored: u32) -> Freshness {
        let mut h = Headers::new();
        for (n, v) in fields {
            h.append(n.as_bytes(), v.as_bytes());
        }
        Freshness::of(&h, ignored, NOW)
    }

    #[test]
    fn cache_control() {
        for (value, store, valid) in [
            ("max-age=10", true, NOW + 10),
            ("MAX-AGE=10", true, NOW + 10),
            ("public, max-age=10, s-maxage=20", true, NOW + 20),
            ("max-age=0", false, 0),
            ("max-age=1a", false, 0),
            ("max-age=-1", false, 0),
            ("max-age=99999999999999999999", true, i64::MAX),
            ("no-store", false, 0),
            ("private=\"x\", max-age=5", false, 0),
            ("no-cache", false, 0),
            ("public", true, 0),
        ] {
            let f = of(&[("Cache-Control", value)]);
            assert_eq!((f.may_store(), f.valid), (store, valid), "{value}");
        }
        let f = of(&[(
            "Cache-Control",
            "max-age=1, stale-while-revalidate=5, stale-if-error=7",
        )]);
        assert_eq!((f.updating, f.error), (5, 7));
        let f = of(&[("Cache-Control", "max-age=1, stale-while-revalidate=5")]);
        assert_eq!((f.updating, f.error), (5, 5));
        assert!(!of(&[("Cache-Control", "max-age=1, stale-if-error=x")]).may_store());
    }

    #[test]
    fn fields_count_in_their_order() {
        let past = "Thu, 01 Jan 1970 00:00:10 GMT";
        let f = of(&[("Expires", past), ("Cache-Control", "max-age=10")]);
        assert_eq!((f.may_store(), f.valid), (true, NOW + 10));
        let f = of(&[("Cache-Control", "max-age=10"), ("Expires", past)]);
        assert_eq!((f.may_store(), f.valid), (true, NOW + 10));
        assert!(!of(&[("Expires", past)]).may_store());
        assert!(!of(&[("Expires", "0")]).may_store());
        let f = of(&[("Cache-Control", "no-cache"), ("X-Accel-Expires", "5")]);
        assert_eq!((f.may_store(), f.valid), (true, NOW + 5));
        let f = of(&[
            ("X-Accel-Expires", "5"),
            ("Cache-Control", "no-cache, stale-if-error=3"),
        ]);
        assert_eq!((f.may_store(), f.valid, f.error), (true, NOW + 5, 3));
        let f = of(&[("X-Accel-Expires", "@2000000"), ("Expires", past)]);
        assert_eq!((f.may_store(), f.valid), (true, 2_000_000));
        assert!(!of(&[("X-Accel-Expires", "0"), ("Cache-Control", "max-age=5")]).may_store());
        assert!(of(&[("X-Accel-Expires", "nonsense")]).may_store());
    }

    #[test]
    fn cookies_and_vary() {
        assert!(!of(&[("Set-Cookie", "a=b")]).may_store());
        assert!(ignoring(&[("Set-Cookie", "a=b")], ignore::SET_COOKIE).may_store());
        assert!(!of(&[("Vary", "*")]).may_store());
        let f = of(&[("Vary", "A"), ("Vary", "B, C")]);
        assert_eq!((f.may_store(), &f.vary[..]), (true, &b"A, B, C"[..]));
        assert!(!of(&[("Vary", &"x".repeat(129))]).may_store());
        assert!(ignoring(&[("Vary", "*")], ignore::VARY).may_store());
        assert!(ignoring(&[("Cache-Control", "private")], ignore::CACHE_CONTROL).may_store());
        assert!(ignoring(&[("Expires", "0")], ignore::EXPIRES).may_store());
    }

    #[test]
    fn rules_by_status() {
        let rules = [(200, 10), (0, 5), (404, 1)];
        assert_eq!(valid_for(&rules, 200), 10);
        assert_eq!(valid_for(&rules, 404), 5, "the first that fits");
        assert_eq!(valid_for(&rules[..1], 404), 0);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(name in "(Cache-Control|Expires|X-Accel-Expires|Vary)", value in ".*") {
            let f = of(&[(&name, &value)]);
            proptest::prop_assert!(f.valid >= 0 && f.error >= 0 && f.updating >= 0);
        }
    }
}
