//! The request-target (RFC 9112, section 3.2): splitting, normalising, arguments, and the check of URIs that others hand us.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr;

use super::escape::{Unescape, unescape};

mod path;
pub use path::{BadUri, Normalized, normalize};
use path::{Shape, resolve};

/// A request-target split into its parts, none of them decoded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Scheme of an absolute-form target, as written.
    pub schema: Option<&'a [u8]>,
    /// Host and port of an absolute-form or authority-form target, as written.
    pub authority: Option<&'a [u8]>,
    /// Host of the authority, brackets of an IP literal included, port cut off, never empty. As
    /// written: lower-casing and the checks shared with the `Host` header are the head parser's.
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

/// Whether a path that is taken as it stands can be followed: it has neither a NUL nor a `..` segment.
pub fn is_safe(path: &[u8]) -> bool {
    !climbs(path)
}

fn climbs(path: &[u8]) -> bool {
    memchr(0, path).is_some() || path.split(|&b| b == b'/').any(|segment| segment == b"..")
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            let _ = parse_unsafe(&raw);
            let _ = arg(&raw, &raw);
        }

    }
}
