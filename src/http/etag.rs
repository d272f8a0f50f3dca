//! Entity tags and conditional requests (RFC 9110, section 13) as nginx's static files and filters treat them.

use std::io::Write;

use super::date;

/// Appends nginx's tag of a file, `"mtime-size"` in hexadecimal, quotes included.
pub fn make(mtime: i64, size: u64, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "\"{mtime:x}-{size:x}\"");
}

/// Turns a tag into a weak one, as filters that change the body do; false if it is no tag and must be dropped.
pub fn weaken(etag: &mut Vec<u8>) -> bool {
    if is_weak(etag) {
        return true;
    }
    if etag.first() != Some(&b'"') {
        return false;
    }
    etag.splice(0..0, *b"W/");
    true
}

/// How tags are compared (RFC 9110, section 8.8.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `If-Match`: byte for byte.
    Strong,
    /// `If-None-Match`: without `W/`.
    Weak,
}

/// Whether a list of tags, or `*`, has the response's tag.
pub fn matches(list: &[u8], etag: Option<&[u8]>, how: Comparison) -> bool {
    if list == b"*" {
        return true;
    }
    let Some(etag) = etag else { return false };
    let etag = if how == Comparison::Weak {
        opaque(etag)
    } else {
        etag
    };
    let mut rest = list;
    while !rest.is_empty() {
        if how == Comparison::Weak {
            rest = opaque(rest);
        }
        if let Some(after) = rest.strip_prefix(etag) {
            let after = skip(after, |b| matches!(b, b' ' | b'\t'));
            if matches!(after.first(), None | Some(b',')) {
                return true;
            }
            rest = after;
        }
        rest = skip(skip(rest, |b| b != b','), |b| {
            matches!(b, b' ' | b'\t' | b',')
        });
    }
    false
}

/// The request's conditions, as received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions<'a> {
    /// `If-Match`.
    pub if_match: Option<&'a [u8]>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<&'a [u8]>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a [u8]>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<&'a [u8]>,
}

/// The `if_modified_since` directive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IfModifiedSince {
    /// Every response counts as modified.
    Off,
    /// Only the same time counts as not modified.
    #[default]
    Exact,
    /// The same time or a later one counts as not modified.
    Before,
}

/// What becomes of a 200 answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// It is sent.
    Proceed,
    /// 304 is sent.
    NotModified,
    /// 412 is sent.
    Failed,
}

/// Weighs the conditions in nginx's order: a modified time wins over a matching `If-None-Match`.
pub fn evaluate(
    conditions: &Conditions<'_>,
    etag: Option<&[u8]>,
    last_modified: Option<i64>,
    mode: IfModifiedSince,
) -> Precondition {
    if conditions
        .if_unmodified_since
        .is_some_and(|since| !is_unmodified(since, last_modified))
        || conditions
            .if_match
            .is_some_and(|list| !matches(list, etag, Comparison::Strong))
    {
        return Precondition::Failed;
    }
    if conditions.if_modified_since.is_none() && conditions.if_none_match.is_none() {
        return Precondition::Proceed;
    }
    if conditions
        .if_modified_since
        .is_some_and(|since| is_modified(since, last_modified, mode))
        || conditions
            .if_none_match
            .is_some_and(|list| !matches(list, etag, Comparison::Weak))
    {
        return Precondition::Proceed;
    }
    Precondition::NotModified
}

/// Whether `If-Range` lets `Range` be honoured: the very same tag, or the very same time.
pub fn if_range(value: &[u8], etag: Option<&[u8]>, last_modified: Option<i64>) -> bool {
    if value.len() >= 2 && value.last() == Some(&b'"') {
        return etag == Some(value);
    }
    last_modified.is_some() && date::parse(value) == last_modified
}

fn is_unmodified(since: &[u8], last_modified: Option<i64>) -> bool {
    matches!((date::parse(since), last_modified), (Some(since), Some(modified)) if since >= modified)
}

fn is_modified(since: &[u8], last_modified: Option<i64>, mode: IfModifiedSince) -> bool {
    let (Some(since), Some(modified)) = (date::parse(since), last_modified) else {
        return true;
    };
    match mode {
        IfModifiedSince::Off => true,
        IfModifiedSince::Exact => since != modified,
        IfModifiedSince::Before => since < modified,
    }
}

fn is_weak(etag: &[u8]) -> bool {
    etag.len() > 2 && etag.starts_with(b"W/")
}

fn opaque(etag: &[u8]) -> &[u8] {
    if is_weak(etag) {
        etag.get(2..).unwrap_or_default()
    } else {
        etag
    }
}

fn skip(text: &[u8], what: impl Fn(u8) -> bool) -> &[u8] {
    let from = text.iter().position(|&b| !what(b)).unwrap_or(text.len());
    text.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIME: i64 = 784_111_777;
    const SAME: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &[u8] = b"Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &[u8] = b"Sun, 06 Nov 1994 08:49:38 GMT";

    #[test]
    fn makes_and_weakens() {
        let mut tag = Vec::new();
        make(0x5f3e_1a2b, 0x264, &mut tag);
        assert_eq!(tag, b"\"5f3e1a2b-264\"");
        assert!(weaken(&mut tag) && weaken(&mut tag));
        assert_eq!(tag, b"W/\"5f3e1a2b-264\"");
        assert!(!weaken(&mut b"bare".to_vec()));
        tag.clear();
        make(-1, 0, &mut tag);
        assert_eq!(tag, b"\"ffffffffffffffff-0\"");
    }

    #[test]
    fn compares_tags() {
        for (list, etag, strong, weak) in [
            ("*", None, true, true),
            ("\"a\"", None, false, false),
            ("\"a\"", Some("\"a\""), true, true),
            ("\"b\", \"a\"", Some("\"a\""), true, true),
            ("\"b\" ,\t \"a\" \t,\"c\"", Some("\"a\""), true, true),
            ("W/\"a\"", Some("\"a\""), false, true),
            ("\"a\"", Some("W/\"a\""), false, true),
            ("W/\"a\"", Some("W/\"a\""), true, true),
            ("\"b\",W/\"a\"", Some("W/\"a\""), true, true),
            ("\"a\"x", Some("\"a\""), false, false),
            ("\"a\"x,\"a\"", Some("\"a\""), true, true),
            ("* ", Some("\"a\""), false, false),
            ("", Some("\"a\""), false, false),
            (",,\"a\"", Some("\"a\""), true, true),
        ] {
            let etag = etag.map(str::as_bytes);
            assert_eq!(
                matches(list.as_bytes(), etag, Comparison::Strong),
                strong,
                "strong {list} {etag:?}"
            );
            assert_eq!(
                matches(list.as_bytes(), etag, Comparison::Weak),
                weak,
                "weak {list} {etag:?}"
            );
        }
    }

    #[test]
    fn evaluates_as_nginx() {
        use IfModifiedSince::{Before, Exact, Off};
        use Precondition::{Failed, NotModified, Proceed};
        let since = |v| Conditions {
            if_modified_since: Some(v),
            ..Conditions::default()
        };
        let unmodified = |v| Conditions {
            if_unmodified_since: Some(v),
            ..Conditions::default()
        };
        let none_match = |v| Conditions {
            if_none_match: Some(v),
            ..Conditions::default()
        };
        let only_match = |v| Conditions {
            if_match: Some(v),
            ..Conditions::default()
        };
        let etag = Some(&b"\"a\""[..]);
        for (conditions, mode, want) in [
            (Conditions::default(), Exact, Proceed),
            (since(SAME), Exact, NotModified),
            (since(LATER), Exact, Proceed),
            (since(LATER), Before, NotModified),
            (since(EARLIER), Before, Proceed),
            (since(SAME), Off, Proceed),
            (since(b"rubbish"), Before, Proceed),
            (unmodified(SAME), Exact, Proceed),
            (unmodified(LATER), Exact, Proceed),
            (unmodified(EARLIER), Exact, Failed),
            (unmodified(b"rubbish"), Exact, Failed),
            (none_match(b"\"a\""), Exact, NotModified),
            (none_match(b"W/\"a\""), Exact, NotModified),
            (none_match(b"*"), Exact, NotModified),
            (none_match(b"\"b\""), Exact, Proceed),
            (only_match(b"\"a\""), Exact, Proceed),
            (only_match(b"W/\"a\""), Exact, Failed),
            (only_match(b"*"), Exact, Proceed),
            (
                Conditions {
                    if_none_match: Some(b"\"a\""),
                    ..since(SAME)
                },
                Exact,
                NotModified,
            ),
            (
                Conditions {
                    if_none_match: Some(b"\"b\""),
                    ..since(SAME)
                },
                Exact,
                Proceed,
            ),
            (
                Conditions {
                    if_none_match: Some(b"\"a\""),
                    ..since(EARLIER)
                },
                Exact,
                Proceed,
            ),
            (
                Conditions {
                    if_match: Some(b"\"b\""),
                    ..since(SAME)
                },
                Exact,
                Failed,
            ),
        ] {
            assert_eq!(
                evaluate(&conditions, etag, Some(TIME), mode),
                want,
                "{conditions:?} {mode:?}"
            );
        }
        assert_eq!(evaluate(&since(SAME), None, None, Before), Proceed);
        assert_eq!(evaluate(&unmodified(SAME), None, None, Exact), Failed);
        assert_eq!(evaluate(&none_match(b"\"a\""), None, None, Exact), Proceed);
        assert_eq!(evaluate(&none_match(b"*"), None, None, Exact), NotModified);
    }

    #[test]
    fn checks_if_range() {
        let etag = Some(&b"\"a\""[..]);
        for (value, etag, modified, want) in [
            (&b"\"a\""[..], etag, None, true),
            (b"\"b\"", etag, Some(TIME), false),
            (b"\"a\"", None, Some(TIME), false),
            (b"W/\"a\"", etag, None, false),
            (SAME, etag, Some(TIME), true),
            (LATER, etag, Some(TIME), false),
            (SAME, etag, None, false),
            (b"rubbish", None, None, false),
            (b"rubbish", etag, Some(TIME), false),
            (b"\"", etag, Some(TIME), false),
        ] {
            assert_eq!(
                if_range(value, etag, modified),
                want,
                "{}",
                String::from_utf8_lossy(value)
            );
        }
    }

    proptest! {
        #[test]
        fn never_panics(list in "[W/\"ab, \t*]{0,24}", etag in "[W/\"ab, ]{0,4}") {
            for how in [Comparison::Strong, Comparison::Weak] {
                let _ = matches(list.as_bytes(), Some(etag.as_bytes()), how);
            }
            let _ = if_range(list.as_bytes(), Some(etag.as_bytes()), Some(0));
        }

        #[test]
        fn finds_a_listed_tag(before in "[a-z]{0,4}", after in "[a-z]{0,4}") {
            let list = format!("\"{before}\", \"tag\" , \"{after}\"");
            prop_assert!(matches(list.as_bytes(), Some(b"\"tag\""), Comparison::Strong));
        }
    }
}
