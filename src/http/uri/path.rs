//! The path of a request-target: decoded, with dot segments resolved and slashes merged.

use std::fmt;
use std::ops::Range;

use memchr::memchr;

use crate::http::escape::hex_value;

/// What [`normalize`] found beside the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalized {
    /// `$args`, as a range of the raw input; none if empty.
    pub args: Option<Range<usize>>,
    /// Extension of the last segment without its dot, as a range of the output; none if empty.
    pub exten: Option<Range<usize>>,
    /// The raw input may be passed on as it is; false if its path was missing.
    pub valid_unparsed: bool,
    /// The path held a `%` escape or a `+`, so captures taken from it are escaped again when put into a URI.
    pub quoted: bool,
}

/// A path that is answered with 400: a broken escape, `%00`, or `..` above the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadUri;

impl fmt::Display for BadUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client sent invalid request")
    }
}

impl std::error::Error for BadUri {}

/// Decodes `%XX`, resolves `.` and `..`, merges slashes if asked to, and cuts arguments and fragment off.
///
/// `out` is replaced. The path begins with `/`, or with `?` where an absolute-form target had no path.
pub fn normalize(
    path: &[u8],
    merge_slashes: bool,
    out: &mut Vec<u8>,
) -> Result<Normalized, BadUri> {
    resolve(path, Shape::of(path), merge_slashes, out)
}

/// What one scan of the raw path finds, so that the usual path is normalised by a single copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Something must be decoded, resolved or cut.
    complex: bool,
    /// `%` or `+` in the path.
    quoted: bool,
    /// A control byte, a space or DEL anywhere.
    pub(super) control: bool,
    /// Index after the `?`.
    args: Option<usize>,
    /// Index after the last dot of the last segment; only right if not `complex`.
    exten: Option<usize>,
}

impl Shape {
    pub(super) fn of(raw: &[u8]) -> Self {
        let mut shape = Self {
            complex: raw.first() != Some(&b'/'),
            ..Self::default()
        };
        let mut segment = usize::MAX;
        let mut tail = raw.len();
        for (at, &byte) in raw.iter().enumerate() {
            match CLASS[usize::from(byte)] {
                Class::Plain => {}
                Class::Slash => {
                    shape.complex |= at == segment;
                    segment = at + 1;
                    shape.exten = None;
                }
                Class::Dot if at == segment => shape.complex = true,
                Class::Dot => shape.exten = Some(at + 1),
                Class::Percent => {
                    shape.complex = true;
                    shape.quoted = true;
                }
                Class::Plus => shape.quoted = true,
                Class::Query => {
                    shape.args = Some(at + 1);
                    tail = at + 1;
                    break;
                }
                Class::Hash => {
                    shape.complex = true;
                    tail = at + 1;
                    break;
                }
                Class::Control => shape.control = true,
            }
        }
        for &byte in raw.get(tail..).unwrap_or_default() {
            match CLASS[usize::from(byte)] {
                Class::Hash => shape.complex = true,
                Class::Control => shape.control = true,
                _ => {}
            }
        }
        shape
    }
}

#[derive(Clone, Copy)]
enum Class {
    Plain,
    Slash,
    Dot,
    Percent,
    Plus,
    Query,
    Hash,
    Control,
}

static CLASS: [Class; 256] = {
    let mut table = [Class::Plain; 256];
    let mut byte = 0;
    while byte <= 0x20 {
        table[byte] = Class::Control;
        byte += 1;
    }
    table[0x7f] = Class::Control;
    table[b'/' as usize] = Class::Slash;
    table[b'.' as usize] = Class::Dot;
    table[b'%' as usize] = Class::Percent;
    table[b'+' as usize] = Class::Plus;
    table[b'?' as usize] = Class::Query;
    table[b'#' as usize] = Class::Hash;
    table
};

pub(super) fn resolve(
    raw: &[u8],
    shape: Shape,
    merge_slashes: bool,
    out: &mut Vec<u8>,
) -> Result<Normalized, BadUri> {
    out.clear();
    if shape.complex {
        return resolve_complex(raw, shape, merge_slashes, out);
    }
    let end = shape.args.map_or(raw.len(), |args| args - 1);
    out.extend_from_slice(raw.get(..end).unwrap_or_default());
    Ok(Normalized {
        args: non_empty(shape.args, raw.len()),
        exten: non_empty(shape.exten, end),
        valid_unparsed: true,
        quoted: shape.quoted,
    })
}

/// What the bytes written since the last slash are, as far as dots matter.
#[derive(Clone, Copy)]
enum Segment {
    Empty,
    Dot,
    DotDot,
    Name,
}

fn resolve_complex(
    raw: &[u8],
    shape: Shape,
    merge_slashes: bool,
    out: &mut Vec<u8>,
) -> Result<Normalized, BadUri> {
    let empty_path = match raw.first() {
        Some(b'/') => false,
        Some(b'?') => true,
        _ => return Err(BadUri),
    };
    out.reserve(raw.len() + 1);
    if empty_path {
        out.push(b'/');
    }
    let mut segment = Segment::Name;
    let mut exten = None;
    let mut args = None;
    let mut at = 0;
    while let Some(&written) = raw.get(at) {
        at += 1;
        let byte = match written {
            b'?' => {
                let tail = raw.get(at..).unwrap_or_default();
                args = Some(at..at + memchr(b'#', tail).unwrap_or(tail.len()));
                break;
            }
            b'#' => break,
            b'%' => {
                let byte = decode(raw, at).filter(|&byte| byte != 0).ok_or(BadUri)?;
                at += 2;
                byte
            }
            byte => byte,
        };
        match byte {
            b'/' => {
                match segment {
                    Segment::Name => {
                        out.push(b'/');
                        exten = None;
                    }
                    Segment::Empty if merge_slashes => {}
                    Segment::Empty => out.push(b'/'),
                    Segment::Dot | Segment::DotDot => leave(segment, out)?,
                }
                segment = Segment::Empty;
                continue;
            }
            b'.' => {
                segment = match segment {
                    Segment::Empty => Segment::Dot,
                    Segment::Dot => Segment::DotDot,
                    Segment::DotDot => Segment::Name,
                    Segment::Name => {
                        exten = Some(out.len() + 1);
                        Segment::Name
                    }
                }
            }
            _ => segment = Segment::Name,
        }
        out.push(byte);
    }
    leave(segment, out)?;
    Ok(Normalized {
        args: args.filter(|args| !args.is_empty()),
        exten: non_empty(exten, out.len()),
        valid_unparsed: !empty_path,
        quoted: shape.quoted,
    })
}

/// Takes a closed `.` or `..` segment back out of the path.
fn leave(segment: Segment, out: &mut Vec<u8>) -> Result<(), BadUri> {
    match segment {
        Segment::Empty | Segment::Name => {}
        Segment::Dot => {
            out.pop();
        }
        Segment::DotDot => {
            let parent = out.len().checked_sub("/..".len()).ok_or(BadUri)?;
            let slash = out
                .get(..parent)
                .and_then(|p| p.iter().rposition(|&b| b == b'/'))
                .ok_or(BadUri)?;
            out.truncate(slash + 1);
        }
    }
    Ok(())
}

fn decode(raw: &[u8], at: usize) -> Option<u8> {
    Some(hex_value(*raw.get(at)?)? << 4 | hex_value(*raw.get(at + 1)?)?)
}

fn non_empty(start: Option<usize>, end: usize) -> Option<Range<usize>> {
    start.filter(|&start| start < end).map(|start| start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::escape::{Escape, escape};
    use proptest::prelude::*;

    /// Path, args and extension, or `bad`, in one line.
    fn norm(raw: &str, merge: bool) -> String {
        let mut out = Vec::new();
        match normalize(raw.as_bytes(), merge, &mut out) {
            Err(BadUri) => "bad".into(),
            Ok(n) => {
                let mut text = String::from_utf8_lossy(&out).into_owned();
                if let Some(args) = n.args {
                    text += " ?";
                    text += &raw[args];
                }
                if let Some(exten) = n.exten {
                    text += " .";
                    text += &String::from_utf8_lossy(&out[exten]);
                }
                text
            }
        }
    }

    #[test]
    fn normalizes_as_nginx() {
        for (raw, want) in [
            ("/", "/"),
            ("/?", "/"),
            ("/a/b.html?x=1&y", "/a/b.html ?x=1&y .html"),
            ("/a.b/c", "/a.b/c"),
            ("/foo/bar%", "bad"),
            ("/foo/bar%1", "bad"),
            ("/foo/bar%1g", "bad"),
            ("/foo%00bar", "bad"),
            ("/foo/bar/.?args", "/foo/bar/ ?args"),
            ("/foo/bar/.#frag", "/foo/bar/"),
            ("/foo/bar/..", "/foo/"),
            ("/foo/bar/..?args", "/foo/ ?args"),
            ("/foo/bar/..#frag", "/foo/"),
            ("/foo/bar/.", "/foo/bar/"),
            ("/foo/../bar", "/bar"),
            ("/..", "bad"),
            ("/../x", "bad"),
            ("/a/../../x", "bad"),
            ("/%2e%2E/x", "bad"),
            ("/a/%2e%2e/b", "/b"),
            ("/a%2fb/../c", "/a/c"),
            ("/a%2Fb.c", "/a/b.c .c"),
            ("//a///b", "/a/b"),
            ("/...", "/..."),
            ("/.a", "/.a"),
            ("/.a.b", "/.a.b .b"),
            ("/..a", "/..a"),
            ("/a%3fb?c", "/a?b ?c"),
            ("/a%23b", "/a#b"),
            ("/a%2541", "/a%41"),
            ("/a?b#c", "/a ?b"),
            ("/a?#c", "/a"),
            ("/a#b?c", "/a"),
            ("/a?%zz", "/a ?%zz"),
            ("/a?/../b", "/a ?/../b"),
            ("/a.", "/a."),
            ("/a.?b", "/a. ?b"),
            ("/+.html", "/+.html .html"),
            ("/a%2ehtml", "/a.html .html"),
            ("?x", "/ ?x"),
            ("x", "bad"),
            ("", "bad"),
        ] {
            assert_eq!(norm(raw, true), want, "{raw}");
        }
        for (raw, want) in [
            ("//a//b", "//a//b"),
            ("//..", "/"),
            ("/a//../b", "/a/b"),
            ("/a/.//b", "/a//b"),
        ] {
            assert_eq!(norm(raw, false), want, "{raw}");
        }
    }

    #[test]
    fn tells_quoted_and_missing_path() {
        let mut out = Vec::new();
        for (raw, quoted) in [
            ("/a", false),
            ("/a%20", true),
            ("/+", true),
            ("/a?%20+", false),
            ("/#%20+", false),
        ] {
            assert_eq!(
                normalize(raw.as_bytes(), true, &mut out).unwrap().quoted,
                quoted,
                "{raw}"
            );
        }
        assert!(!normalize(b"?a", true, &mut out).unwrap().valid_unparsed);
        assert!(normalize(b"/%20", true, &mut out).unwrap().valid_unparsed);
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..64), merge: bool) {
            let _ = normalize(&raw, merge, &mut Vec::new());
        }

        #[test]
        fn fast_path_agrees_with_the_full_one(raw in "/[a./+?#%2ef]{0,16}", merge: bool) {
            let (mut fast, mut full) = (Vec::new(), Vec::new());
            let shape = Shape::of(raw.as_bytes());
            let a = resolve(raw.as_bytes(), shape, merge, &mut fast);
            let b = resolve_complex(raw.as_bytes(), shape, merge, &mut full);
            prop_assert_eq!(&a, &b);
            if let Ok(n) = a {
                prop_assert_eq!(&fast, &full);
                prop_assert_eq!(fast.first(), Some(&b'/'));
                prop_assert!(n.exten.is_none_or(|e| fast.get(e).is_some()));
                if !raw.contains('%') {
                    prop_assert!(fast.split(|&b| b == b'/').all(|segment| segment != b".."));
                }
            }
        }

        #[test]
        fn escaping_round_trips(path in "/[ -~]{0,24}") {
            let mut plain = Vec::new();
            let mut raw = Vec::new();
            escape(Escape::Uri, path.as_bytes(), &mut raw);
            if !path.contains("//") && !path.contains("/.") {
                normalize(&raw, true, &mut plain).unwrap();
                prop_assert_eq!(plain, path.into_bytes());
            }
        }
    }
}
