//! The request as the origin sees it: [`Protocol`] for HTTP/1.

use super::HttpVersion;
use super::cookies::{self, FlagsRule};
use super::pass;
use super::redirect::{self, Rule};
use crate::config::addr::Address;
use crate::contract::*;
use crate::http::escape::{Escape, escape};
use crate::http::headers::Known;
use crate::http::names::NameSet;
use crate::http::strict::is_token;
use crate::log::Level;
use std::sync::Arc;

/// HTTP/1 towards an origin.
pub struct HttpProxy {
    /// Whether a target without variables is `https://`.
    pub tls: bool,
    /// `$proxy_host` of a target without variables.
    pub host: Box<[u8]>,
    /// `$proxy_port` of a target without variables.
    pub port: Box<[u8]>,
    /// How the URI is made.
    pub uri: Uri,
    /// `proxy_http_version`.
    pub version: HttpVersion,
    /// `proxy_method`.
    pub method: Option<Template>,
    /// `proxy_set_body`.
    pub body: Option<Template>,
    /// `proxy_set_header`.
    pub headers: RequestHeaders,
    /// The same for requests whose answers may be stored: they ask for whole ones.
    pub cached_headers: Option<RequestHeaders>,
    /// What the cache's own key begins with: scheme and address of a target without variables.
    pub key_start: Box<[u8]>,
    /// `proxy_pass_request_headers`.
    pub pass_headers: bool,
    /// What is rewritten in responses.
    pub rewrites: Rewrites,
}

/// How the URI of the request to the origin is made.
pub enum Uri {
    /// The client's.
    Same,
    /// The location's name is replaced.
    Replace {
        /// The location's name.
        location: Box<[u8]>,
        /// The URI in `proxy_pass`.
        with: Box<[u8]>,
    },
    /// What the variables give, or the client's where that has no URI.
    Dynamic,
}

/// `proxy_redirect` and `proxy_cookie_*`.
pub struct Rewrites {
    /// `proxy_redirect`.
    pub redirects: Arc<[Rule]>,
    /// `proxy_cookie_domain`.
    pub domains: Arc<[Rule]>,
    /// `proxy_cookie_path`.
    pub paths: Arc<[Rule]>,
    /// `proxy_cookie_flags`.
    pub flags: Arc<[FlagsRule]>,
}

impl Protocol for HttpProxy {
    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    fn target(&self, url: &[u8]) -> Result<Target, String> {
        let Some((tls, rest)) = pass::scheme(url).filter(|(_, rest)| !rest.is_empty()) else {
            return Err(format!(
                "invalid URL prefix in \"{}\"",
                String::from_utf8_lossy(url)
            ));
        };
        let mut target = pass::target(rest, tls)?;
        if target.uri.first() == Some(&b'?') {
            target.uri.insert(0, b'/');
        }
        Ok(target)
    }

    fn chunked(&self) -> bool {
        self.version != HttpVersion::V10
    }

    fn codec(&self) -> Codec {
        match self.version {
            HttpVersion::V2 => Codec::Http2,
            _ => Codec::Http1,
        }
    }

    fn request(
        &self,
        r: &mut Request,
        to: &Destination<'_>,
        body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        self.remember(r, to, body);
        match &self.method {
            _ if r.upstream.convert_head => out.extend_from_slice(b"GET"),
            Some(m) => write_method(m, r, out)?,
            None => out.extend_from_slice(r.method_text()),
        }
        out.push(b' ');
        let begin = out.len();
        self.write_uri(r, to, out);
        check_uri(r, "proxy_pass", begin, out)?;
        if out.len() == begin {
            r.error(Level::Error, format_args!("zero length URI to proxy"));
            return Err(500);
        }
        r.upstream
            .uri
            .extend_from_slice(out.get(begin..).unwrap_or_default());
        out.extend_from_slice(match self.version {
            HttpVersion::V10 => b" HTTP/1.0\r\n",
            HttpVersion::V11 => b" HTTP/1.1\r\n",
            HttpVersion::V2 => b" HTTP/2.0\r\n",
        });
        self.write_host(r, out)?;
        let headers = match &self.cached_headers {
            Some(h) if r.upstream.is_cacheable() => h,
            _ => &self.headers,
        };
        headers.write(r, "proxy_set_header", body, out)?;
        if self.pass_headers {
            for (known, name, value) in r.head.headers.entries() {
                if !headers.names.contains(known, name) {
                    out.extend_from_slice(name);
                    out.extend_from_slice(b": ");
                    out.extend_from_slice(value);
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn rewrites(&self) -> bool {
        let Rewrites {
            redirects,
            domains,
            paths,
            flags,
        } = &self.rewrites;
        !(redirects.is_empty() && domains.is_empty() && paths.is_empty() && flags.is_empty())
    }

    fn rewrite(
        &self,
        r: &mut Request,
        _to: &Destination<'_>,
        name: &[u8],
        value: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        let Rewrites {
            redirects,
            domains,
            paths,
            flags,
        } = &self.rewrites;
        match name.len() {
            8 if name.eq_ignore_ascii_case(b"location") => {
                redirect::first(redirects, r, value, 0, out)
            }
            7 if name.eq_ignore_ascii_case(b"refresh") => {
                redirect::first(redirects, r, value, redirect::refresh_url(value), out)
            }
            10 if name.eq_ignore_ascii_case(b"set-cookie") => {
                let none = domains.is_empty() && paths.is_empty() && flags.is_empty();
                !none && cookies::rewrite(domains, paths, flags, r, value, out)
            }
            _ => false,
        }
    }

    fn body(&self, r: &Request) -> Option<Vec<u8>> {
        self.body.as_ref().map(|b| b.eval(r).into_owned())
    }

    fn cache_key(
        &self,
        r: &mut Request,
        to: &Destination<'_>,
        target: Option<&Target>,
        out: &mut Vec<u8>,
    ) {
        self.remember(r, to, BodyLength::None);
        r.upstream.body = None;
        match target {
            Some(t) => key_start(t, out),
            None => out.extend_from_slice(&self.key_start),
        }
        self.write_uri(r, to, out);
    }

    fn method<'r>(&'r self, r: &'r Request) -> Val<'r> {
        match &self.method {
            _ if r.upstream.convert_head => Val::Bytes(b"GET"),
            Some(m) => match m.as_literal() {
                Some(l) => Val::Bytes(l),
                None => Val::Owned(m.eval(r).into_owned()),
            },
            None => Val::Bytes(r.method_text()),
        }
    }
}

impl HttpProxy {
    /// Notes what `$proxy_host` and its kin are, before the headers that may name them are written.
    fn remember(&self, r: &mut Request, to: &Destination<'_>, body: BodyLength) {
        let up = &mut r.upstream;
        let (host, port, tls) = match self.uri {
            Uri::Dynamic => (to.host, to.port, to.tls),
            _ => (&*self.host, &*self.port, self.tls),
        };
        up.scheme = if tls { "https" } else { "http" };
        up.host.clear();
        up.host.extend_from_slice(host);
        up.port.clear();
        up.port.extend_from_slice(port);
        up.body = Some(body);
        up.uri.clear();
    }

    fn write_uri(&self, r: &Request, to: &Destination<'_>, out: &mut Vec<u8>) {
        let (replaced, with) = match &self.uri {
            Uri::Dynamic => match to.uri.filter(|u| !u.is_empty()) {
                Some(uri) => return out.extend_from_slice(uri),
                None => (0, &b""[..]),
            },
            Uri::Same => (0, &b""[..]),
            Uri::Replace { location, with } => (
                if r.valid_location {
                    location.len().min(r.uri.len())
                } else {
                    0
                },
                &**with,
            ),
        };
        if with.is_empty() && r.valid_unparsed_uri {
            return out.extend_from_slice(r.unparsed_uri());
        }
        if r.valid_location {
            out.extend_from_slice(with);
        }
        let rest = r.uri.get(replaced..).unwrap_or_default();
        if r.internal || is_quoted(r.unparsed_uri()) {
            escape(Escape::Uri, rest, out);
        } else {
            out.extend_from_slice(rest);
        }
        if !r.args.is_empty() {
            out.push(b'?');
            out.extend_from_slice(&r.args);
        }
    }

    fn write_host(&self, r: &Request, out: &mut Vec<u8>) -> Result<(), u16> {
        let begin = out.len();
        out.extend_from_slice(b"Host: ");
        let name_end = out.len();
        if let Some(host) = &self.headers.host {
            host.write_value(r, "proxy_set_header", out)?;
        }
        // HTTP/1.1 asks for a Host whatever the directive says
        if out.len() == name_end
            && (self.headers.host.is_none() || self.version != HttpVersion::V10)
        {
            if matches!(self.uri, Uri::Dynamic) {
                r.check_value("proxy_pass", "its host", &r.upstream.host)?;
            }
            out.extend_from_slice(&r.upstream.host);
        }
        if out.len() == name_end {
            out.truncate(begin);
        } else {
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

/// Writes `proxy_method`, which must be a token.
fn write_method(method: &Template, r: &Request, out: &mut Vec<u8>) -> Result<(), u16> {
    let begin = out.len();
    method.write_value(r, "proxy_method", out)?;
    match out.get(begin..) {
        Some(text) if is_token(text) => Ok(()),
        _ => Err(r.refuse_value("proxy_method", "its value", "what is no method")),
    }
}

/// Checks the URI in a request line, from `begin` on: no control character reaches an origin. A space that came from a
/// variable is escaped, so that the line still has three words.
///
/// # Errors
/// As [`Request::check_value`].
pub fn check_uri(r: &Request, directive: &str, begin: usize, out: &mut Vec<u8>) -> Result<(), u16> {
    let uri = out.get(begin..).unwrap_or_default();
    // the client's own was checked when it was read
    if uri
        .iter()
        .fold(true, |fine, b| fine & (*b > b' ' && *b != 0x7f))
    {
        return Ok(());
    }
    if uri.iter().any(|b| *b < b' ' || *b == 0x7f) {
        return Err(r.refuse_value(directive, "the URI", "a control character"));
    }
    let escaped: Vec<u8> = uri
        .iter()
        .flat_map(|b| match b {
            b' ' => &b"%20"[..],
            b => std::slice::from_ref(b),
        })
        .copied()
        .collect();
    out.truncate(begin);
    out.extend_from_slice(&escaped);
    Ok(())
}

/// Scheme and address of a target: what the cache's own key begins with.
pub fn key_start(target: &Target, out: &mut Vec<u8>) {
    out.extend_from_slice(if target.tls { b"https://" } else { b"http://" });
    match &target.address {
        Address::Unix(path) => {
            out.extend_from_slice(b"unix:");
            out.extend_from_slice(path.as_os_str().as_encoded_bytes());
            out.push(b':');
        }
        Address::Inet(_) => out.extend_from_slice(&target.host),
    }
}

/// Whether the client wrote its path with `%`.
fn is_quoted(raw: &[u8]) -> bool {
    matches!(
        memchr::memchr2(b'%', b'?', raw).and_then(|at| raw.get(at)),
        Some(b'%')
    )
}

/// The headers that `proxy_set_header` and nginx's defaults write, and the client's ones that they keep out.
pub struct RequestHeaders {
    /// The value of Host, where one is given.
    pub host: Option<Template>,
    list: Box<[(Box<[u8]>, Value)]>,
    /// Names of the client's headers that are not passed on.
    pub names: NameSet,
}

enum Value {
    /// A whole line, its name included.
    Line,
    /// Text with variables.
    Text(Template),
    /// `Content-Length`, where it is known.
    Length,
    /// `Transfer-Encoding`, where the length is not known.
    Chunked,
    /// When the cached object that is asked about was changed.
    OldModified,
    /// The entity tag of that object.
    OldTag,
}

impl RequestHeaders {
    /// From what `proxy_set_header` wrote.
    pub fn new(set: &[(Box<[u8]>, Template)]) -> RequestHeaders {
        RequestHeaders::with(set, &[])
    }

    /// The same for requests whose answers may be stored: the client's conditions and ranges stay behind, the cache's
    /// own conditions take their place.
    pub fn cached(set: &[(Box<[u8]>, Template)]) -> RequestHeaders {
        const MORE: [&[u8]; 6] = [
            b"If-Modified-Since",
            b"If-Unmodified-Since",
            b"If-None-Match",
            b"If-Match",
            b"Range",
            b"If-Range",
        ];
        RequestHeaders::with(set, &MORE)
    }

    fn with(set: &[(Box<[u8]>, Template)], more: &[&[u8]]) -> RequestHeaders {
        const DEFAULT: [&[u8]; 9] = [
            b"Host",
            b"Connection",
            b"Proxy-Connection",
            b"Content-Length",
            b"Transfer-Encoding",
            b"TE",
            b"Keep-Alive",
            b"Expect",
            b"Upgrade",
        ];
        let mut host = None;
        let mut list = Vec::new();
        let mut names = NameSet::default();
        for (name, value) in set {
            if name.eq_ignore_ascii_case(b"host") {
                host = Some(value.clone());
                continue;
            }
            names.insert(name);
            match value.as_literal() {
                Some(b"") => {}
                Some(text) => list.push((
                    [name, &b": "[..], text, b"\r\n"].concat().into(),
                    Value::Line,
                )),
                None => list.push((
                    [name, &b": "[..]].concat().into(),
                    Value::Text(value.clone()),
                )),
            }
        }
        for name in DEFAULT.iter().chain(more).copied() {
            if names.contains(Known::of(name), name) {
                continue;
            }
            names.insert(name);
            match name {
                b"Content-Length" => list.push(((*b"Content-Length: ").into(), Value::Length)),
                b"If-Modified-Since" => {
                    list.push(((*b"If-Modified-Since: ").into(), Value::OldModified))
                }
                b"If-None-Match" => list.push(((*b"If-None-Match: ").into(), Value::OldTag)),
                b"Transfer-Encoding" => {
                    list.push(((*b"Transfer-Encoding: chunked\r\n").into(), Value::Chunked))
                }
                _ => {}
            }
        }
        RequestHeaders {
            host,
            list: list.into(),
            names,
        }
    }

    /// Writes them, each as a line.
    ///
    /// # Errors
    /// As [`Template::write_value`].
    pub fn write(
        &self,
        r: &Request,
        directive: &str,
        body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        for (name, value) in &self.list {
            match value {
                Value::Line => out.extend_from_slice(name),
                Value::Text(t) => {
                    let begin = out.len();
                    out.extend_from_slice(name);
                    let name_end = out.len();
                    t.write_value(r, directive, out)?;
                    if out.len() == name_end {
                        out.truncate(begin);
                    } else {
                        out.extend_from_slice(b"\r\n");
                    }
                }
                Value::Length => {
                    if let BodyLength::Known(n) = body {
                        out.extend_from_slice(name);
                        out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
                        out.extend_from_slice(b"\r\n");
                    }
                }
                Value::OldModified => {
                    if let Some(m) = r.upstream.revalidating().filter(|m| m.last_modified >= 0) {
                        out.extend_from_slice(name);
                        out.extend_from_slice(&crate::http::date::format(m.last_modified));
                        out.extend_from_slice(b"\r\n");
                    }
                }
                Value::OldTag => {
                    if let Some(m) = r.upstream.revalidating().filter(|m| !m.etag.is_empty()) {
                        out.extend_from_slice(name);
                        out.extend_from_slice(&m.etag);
                        out.extend_from_slice(b"\r\n");
                    }
                }
                Value::Chunked => {
                    if body == BodyLength::Chunked {
                        out.extend_from_slice(name);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_stand_unless_overridden() {
        let set = [
            ((*b"content-length").into(), Template::literal(b"")),
            ((*b"Host").into(), Template::literal(b"x")),
            ((*b"Connection").into(), Template::literal(b"close")),
        ];
        let h = RequestHeaders::new(&set);
        let lines: Vec<_> = h
            .list
            .iter()
            .map(|(n, _)| String::from_utf8_lossy(n).into_owned())
            .collect();
        assert_eq!(
            lines,
            ["Connection: close\r\n", "Transfer-Encoding: chunked\r\n"]
        );
        assert!(h.host.is_some_and(|t| t.is(b"x")));
        for name in [
            "Host",
            "TE",
            "Keep-Alive",
            "Expect",
            "Upgrade",
            "Proxy-Connection",
            "Content-Length",
        ] {
            assert!(
                h.names
                    .contains(Known::of(name.as_bytes()), name.as_bytes()),
                "{name}"
            );
        }
    }

    #[test]
    fn quoted_is_about_the_path() {
        assert!(is_quoted(b"/a%20b?x"));
        assert!(!is_quoted(b"/a?x=%20"));
        assert!(!is_quoted(b"/a"));
    }
}
