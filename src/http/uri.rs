//! The request-target (RFC 9112, section 3.2): splitting, normalising, arguments, and the check of URIs that others hand us.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use memchr::memchr;

use super::escape::{Unescape, hex_value, unescape};

/// A request-target split into its parts, none of them decoded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Scheme of an absolute-form target, as written.
    pub schema: Option<&'a [u8]>,
    /// Host and port of an absolute-form or authority-form target, as written.
    pub authority: Option<&'a [u8]>,
    /// Host of the authority, brackets of an IP literal included, port cut off, not lower-cased, never empty.
    pub host: Option<&'a [u8]>,
    /// Digits after the host's colon; empty in `http://host:/`.
    pub port: Option<&'a [u8]>,
    /// Raw path and arguments (`$request_uri`): `/` if the target has none, begins with `?` if only the path is missing.
    pub path_and_args: &'a [u8],
    shape: Shape,
}

impl<'a> Target<'a> {
    /// A target without an authority: origin-form, or HTTP/2's `:path`.
    pub fn from_path(path: &'a [u8]) -> Result<Self, BadTarget> {
        if path.first() != Some(&b'/') {
            return Err(BadTarget::Request);
        }
        Self::build(None, None, path)
    }

    /// Writes the decoded and resolved path to `out` (replacing what is in it); see [`normalize`].
    pub fn normalize(&self, merge_slashes: bool, out: &mut Vec<u8>) -> Result<Normalized, BadUri> {
        resolve(self.path_and_args, self.shape, merge_slashes, out)
    }

    fn build(
        schema: Option<&'a [u8]>,
        authority: Option<Authority<'a>>,
        path_and_args: &'a [u8],
    ) -> Result<Self, BadTarget> {
        let shape = Shape::of(path_and_args);
        if shape.control {
            return Err(BadTarget::Request);
        }
        if authority.is_some_and(|a| a.host.is_empty()) {
            return Err(BadTarget::Host);
        }
        Ok(Self {
            schema,
            authority: authority.map(|a| a.text),
            host: authority.map(|a| a.host),
            port: authority.and_then(|a| a.port),
            path_and_args,
            shape,
        })
    }
}

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

/// A request-target that is answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadTarget {
    /// Not a request-target: wrong form, control bytes or spaces.
    Request,
    /// The authority has no host.
    Host,
}

impl fmt::Display for BadTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "client sent invalid request",
            Self::Host => "client sent invalid host in request line",
        })
    }
}

impl std::error::Error for BadTarget {}

/// A path that is answered with 400: a broken escape, `%00`, or `..` above the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadUri;

impl fmt::Display for BadUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client sent invalid request")
    }
}

impl std::error::Error for BadUri {}

/// Splits a request-target; `connect` asks for the authority-form (`host:port`) that only CONNECT uses.
pub fn split_target(raw: &[u8], connect: bool) -> Result<Target<'_>, BadTarget> {
    if connect {
        let (authority, rest) = split_authority(raw);
        if !rest.is_empty() || authority.port.is_none_or(<[u8]>::is_empty) {
            return Err(BadTarget::Request);
        }
        return Target::build(None, Some(authority), b"/");
    }
    match raw.first() {
        Some(b'/') => Target::build(None, None, raw),
        Some(c) if c.is_ascii_alphabetic() => split_absolute(raw),
        _ => Err(BadTarget::Request),
    }
}

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

/// Cuts a URI at its first `?`: path and arguments, the latter empty if there are none.
pub fn split_args(uri: &[u8]) -> (&[u8], &[u8]) {
    match memchr(b'?', uri).and_then(|at| uri.split_at_checked(at)) {
        Some((path, rest)) => (path, rest.get(1..).unwrap_or_default()),
        None => (uri, &[]),
    }
}

/// Value of the first argument `name=` (`$arg_name`); the name's case does not matter, the value is not decoded.
pub fn arg<'a>(args: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if name.is_empty() {
        return None;
    }
    args.split(|&b| b == b'&').find_map(|pair| {
        let (key, value) = pair.split_at_checked(name.len())?;
        let value = value.strip_prefix(b"=")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A URI given by an origin or a client's header (`X-Accel-Redirect`, `Destination`) that was found harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafeUri<'a> {
    /// The decoded path.
    pub path: Cow<'a, [u8]>,
    /// What follows the `?`, if there is one.
    pub args: Option<&'a [u8]>,
}

/// The URI is empty, has no path, a NUL, or a `..` segment (written out or escaped).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsafeUri;

/// Checks, decodes and splits a URI that comes from outside the configuration.
pub fn parse_unsafe(uri: &[u8]) -> Result<SafeUri<'_>, UnsafeUri> {
    if matches!(uri.first(), None | Some(b'?')) {
        return Err(UnsafeUri);
    }
    let (path, args) = split_args(uri);
    // nginx overlooks a `..` that ends the path right before `?`; here the path alone is judged.
    if climbs(path) {
        return Err(UnsafeUri);
    }
    let args = (path.len() < uri.len()).then_some(args);
    if memchr(b'%', path).is_none() {
        return Ok(SafeUri {
            path: Cow::Borrowed(path),
            args,
        });
    }
    let mut decoded = Vec::with_capacity(path.len());
    unescape(Unescape::All, path, &mut decoded);
    if climbs(&decoded) {
        return Err(UnsafeUri);
    }
    Ok(SafeUri {
        path: Cow::Owned(decoded),
        args,
    })
}

/// Whether [`parse_unsafe`] refuses the URI.
pub fn is_unsafe(uri: &[u8]) -> bool {
    parse_unsafe(uri).is_err()
}

fn climbs(path: &[u8]) -> bool {
    memchr(0, path).is_some() || path.split(|&b| b == b'/').any(|segment| segment == b"..")
}

/// What one scan of the raw path finds, so that the usual path is normalised by a single copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shape {
    /// Something must be decoded, resolved or cut.
    complex: bool,
    /// `%` or `+` in the path.
    quoted: bool,
    /// A control byte, a space or DEL anywhere.
    control: bool,
    /// Index after the `?`.
    args: Option<usize>,
    /// Index after the last dot of the last segment; only right if not `complex`.
    exten: Option<usize>,
}

impl Shape {
    fn of(raw: &[u8]) -> Self {
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

#[derive(Clone, Copy)]
struct Authority<'a> {
    text: &'a [u8],
    host: &'a [u8],
    port: Option<&'a [u8]>,
}

fn split_absolute(raw: &[u8]) -> Result<Target<'_>, BadTarget> {
    let end = raw
        .iter()
        .position(|c| !(c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.')))
        .ok_or(BadTarget::Request)?;
    let (schema, rest) = raw.split_at_checked(end).ok_or(BadTarget::Request)?;
    let rest = rest.strip_prefix(b"://").ok_or(BadTarget::Request)?;
    let (authority, path) = split_authority(rest);
    match path.first() {
        None => Target::build(Some(schema), Some(authority), b"/"),
        Some(b'/' | b'?') => Target::build(Some(schema), Some(authority), path),
        Some(_) => Err(BadTarget::Request),
    }
}

/// Takes as much of `host[:port]` as there is; the caller judges what is left.
fn split_authority(raw: &[u8]) -> (Authority<'_>, &[u8]) {
    let mut end = match raw.first() {
        // An unclosed literal leaves everything as rest, which no caller accepts.
        Some(b'[') => match raw.iter().skip(1).position(|&c| !is_literal(c)) {
            Some(n) if raw.get(n + 1) == Some(&b']') => n + 2,
            _ => 0,
        },
        _ => raw
            .iter()
            .position(|c| !(c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-')))
            .unwrap_or(raw.len()),
    };
    let (host, rest) = raw.split_at_checked(end).unwrap_or((raw, &[]));
    let port = rest.strip_prefix(b":").map(|after| {
        let digits = after
            .iter()
            .position(|c| !c.is_ascii_digit())
            .unwrap_or(after.len());
        after.get(..digits).unwrap_or_default()
    });
    if let Some(port) = port {
        end += 1 + port.len();
    }
    let (text, rest) = raw.split_at_checked(end).unwrap_or((raw, &[]));
    (Authority { text, host, port }, rest)
}

/// A byte inside the brackets of an IP literal (RFC 3986, section 3.2.2).
fn is_literal(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b":-._~!$&'()*+,;=".contains(&c)
}

fn resolve(
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

    fn split(raw: &str, connect: bool) -> String {
        let text = |part: Option<&[u8]>| {
            part.map_or("-".into(), |p| String::from_utf8_lossy(p).into_owned())
        };
        match split_target(raw.as_bytes(), connect) {
            Ok(t) => [
                text(t.schema),
                text(t.host),
                text(t.port),
                text(Some(t.path_and_args)),
            ]
            .join(" "),
            Err(e) => format!("{e:?}"),
        }
    }

    #[test]
    fn splits_targets() {
        for (raw, want) in [
            ("/x?y", "- - - /x?y"),
            ("http://h", "http h - /"),
            ("http://h/", "http h - /"),
            ("HTTP://H.x:80?a", "HTTP H.x 80 ?a"),
            ("http://h:/x", "http h  /x"),
            ("ftp+x-1.0://h:8080", "ftp+x-1.0 h 8080 /"),
            ("http://[::1]:81/x", "http [::1] 81 /x"),
            ("http://[::1]", "http [::1] - /"),
            ("http://[]/", "http [] - /"),
            ("http:///x", "Host"),
            ("http://:80/x", "Host"),
            ("http://[::1", "Request"),
            ("http://[::1]x/", "Request"),
            ("http://[:/:1]/", "Request"),
            ("http://a_b/", "Request"),
            ("http://u@h/", "Request"),
            ("http://h#f", "Request"),
            ("http://h:8x/", "Request"),
            ("http:/h/", "Request"),
            ("http//h/", "Request"),
            ("http", "Request"),
            ("ht_tp://h/", "Request"),
            ("*", "Request"),
            ("", "Request"),
            ("?x", "Request"),
            ("/a b", "Request"),
            ("/a\tb", "Request"),
            ("/a?\u{7f}", "Request"),
            ("/a#\n", "Request"),
            ("/\0", "Request"),
            ("/\u{e9}", "- - - /\u{e9}"),
        ] {
            assert_eq!(split(raw, false), want, "{raw:?}");
        }
        for (raw, want) in [
            ("h:443", "- h 443 /"),
            ("[::1]:443", "- [::1] 443 /"),
            ("h", "Request"),
            ("h:", "Request"),
            ("h:443/", "Request"),
            (":443", "Host"),
            ("/", "Request"),
        ] {
            assert_eq!(split(raw, true), want, "{raw:?}");
        }
    }

    #[test]
    fn finds_args() {
        let args = b"foo=1&Bar=2&bar=3&empty=&xbaz=4&baz&q=a=b";
        assert_eq!(arg(args, b"foo"), Some(&b"1"[..]));
        assert_eq!(arg(args, b"bar"), Some(&b"2"[..]));
        assert_eq!(arg(args, b"empty"), Some(&b""[..]));
        assert_eq!(arg(args, b"baz"), None);
        assert_eq!(arg(args, b"q"), Some(&b"a=b"[..]));
        assert_eq!(arg(args, b""), None);
        assert_eq!(arg(b"", b"a"), None);
        assert_eq!(split_args(b"/a?b?c"), (&b"/a"[..], &b"b?c"[..]));
        assert_eq!(split_args(b"/a"), (&b"/a"[..], &b""[..]));
    }

    #[test]
    fn judges_foreign_uris() {
        for bad in [
            "",
            "?a",
            "..",
            "../x",
            "/..",
            "/a/../b",
            "/..?x",
            "/%2e%2e/x",
            "/..%2fx",
            "/a%00",
            "a/.%2E",
        ] {
            assert!(is_unsafe(bad.as_bytes()), "{bad}");
        }
        assert!(is_unsafe(b"/a\0"));
        for good in ["/", "x", "/..a", "/a..", "/.", "/a?/../b", "/...", "%"] {
            assert!(!is_unsafe(good.as_bytes()), "{good}");
        }
        let uri = parse_unsafe(b"/a%20b?c%20d").unwrap();
        assert_eq!((&*uri.path, uri.args), (&b"/a b"[..], Some(&b"c%20d"[..])));
        assert_eq!(parse_unsafe(b"/a?").unwrap().args, Some(&b""[..]));
        assert_eq!(parse_unsafe(b"/a").unwrap().args, None);
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..64), merge: bool, connect: bool) {
            let mut out = Vec::new();
            if let Ok(target) = split_target(&raw, connect) {
                let _ = target.normalize(merge, &mut out);
            }
            let _ = normalize(&raw, merge, &mut out);
            let _ = parse_unsafe(&raw);
            let _ = arg(&raw, &raw);
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
                    prop_assert!(!climbs(&fast));
                }
            }
        }

        #[test]
        fn escaping_round_trips(path in "/[ -~]{0,24}") {
            let mut plain = Vec::new();
            let mut raw = Vec::new();
            super::super::escape::escape(super::super::escape::Escape::Uri, path.as_bytes(), &mut raw);
            if !path.contains("//") && !path.contains("/.") {
                normalize(&raw, true, &mut plain).unwrap();
                prop_assert_eq!(plain, path.into_bytes());
            }
        }
    }
}
