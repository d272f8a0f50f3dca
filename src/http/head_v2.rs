//! The head of a request of HTTP/2 (RFC 9113, section 8.3), in the form that the rest knows from HTTP/1.

use super::{
    HeadError, Known, Limits, Method, RequestHead, Version, error, parse_host, parse_length,
};

/// What is known of a request beside its fields.
#[derive(Clone, Copy, Debug)]
pub struct OptionsV2 {
    /// Whether no body follows.
    pub ended: bool,
    /// Whether CONNECT may name a protocol (RFC 8441).
    pub connect_protocol: bool,
}

/// What a request of HTTP/2 asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A response.
    Response,
    /// A WebSocket (RFC 8441); the head is that of the GET that asks for one in HTTP/1.1, without the headers that HTTP/2
    /// has no need of (`Upgrade`, `Connection`, `Sec-WebSocket-Key`).
    WebSocket,
}

const ENDING: &[u8] = b" HTTP/2.0";

/// The pseudo-header fields.
#[derive(Clone, Copy, Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    protocol: Option<&'a [u8]>,
}

impl RequestHead {
    /// Takes a request of HTTP/2; `dropped` receives the names of fields that are ignored as invalid.
    ///
    /// # Errors
    /// Why it is refused; what could be read of it is in `self`, for the log.
    pub fn take_v2<'a>(
        &mut self,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        options: OptionsV2,
        limits: &Limits,
        mut dropped: impl FnMut(&[u8]),
    ) -> Result<Asked, HeadError> {
        self.clear();
        (self.version, self.http_major_minor) = (Version::V11, (2, 0));
        let mut pseudo = Pseudo::default();
        let taken = self.take_fields_v2(&mut pseudo, fields, limits, &mut dropped);
        let asked = taken.and_then(|()| self.finish_v2(&pseudo, options));
        asked.map_err(|e| HeadError {
            line_known: !self.line.is_empty(),
            ..e
        })
    }

    fn take_pseudo<'a>(
        &mut self,
        pseudo: &mut Pseudo<'a>,
        name: &'a [u8],
        value: &'a [u8],
    ) -> Result<(), HeadError> {
        if !self.line.is_empty() {
            return refuse("client sent out of order pseudo-headers");
        }
        match name {
            b"method" => {
                put(
                    &mut pseudo.method,
                    value,
                    "client sent duplicate :method header",
                    "client sent empty :method header",
                )?;
                if !value
                    .iter()
                    .all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-'))
                {
                    return refuse_with("client sent invalid method", value);
                }
            }
            b"path" => {
                put(
                    &mut pseudo.path,
                    value,
                    "client sent duplicate :path header",
                    "client sent empty :path header",
                )?;
                if value.first() != Some(&b'/') || value.iter().any(|b| *b <= b' ' || *b == 0x7f) {
                    return refuse_with("client sent invalid :path header", value);
                }
            }
            b"scheme" => {
                put(
                    &mut pseudo.scheme,
                    value,
                    "client sent duplicate :scheme header",
                    "client sent empty :scheme header",
                )?;
                let usual = |(i, b): (usize, &u8)| {
                    b.is_ascii_alphabetic()
                        || (i > 0 && (b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.')))
                };
                if !value.iter().enumerate().all(usual) {
                    return refuse_with("client sent invalid :scheme header", value);
                }
            }
            b"authority" => {
                if pseudo.authority.replace(value).is_some() {
                    return refuse("client sent duplicate \":authority\" header");
                }
                let host = parse_host(value)
                    .ok_or_else(|| error(400, "client sent invalid \":authority\" header", None))?;
                self.set_host(value, host);
            }
            b"protocol" => {
                put(
                    &mut pseudo.protocol,
                    value,
                    "client sent duplicate :protocol header",
                    "client sent empty :protocol header",
                )?;
            }
            _ => return refuse_with("client sent unknown pseudo-header ", &[b":", name].concat()),
        }
        Ok(())
    }

    /// Writes the request line, once.
    fn take_line_v2(&mut self, pseudo: &Pseudo<'_>) -> Result<(), HeadError> {
        if !self.line.is_empty() {
            return Ok(());
        }
        let missing = |reason| move || error(400, reason, None);
        let method = pseudo
            .method
            .ok_or_else(missing("client sent no :method header"))?;
        if pseudo.scheme.is_none() {
            return refuse("client sent no :scheme header");
        }
        let path = pseudo
            .path
            .ok_or_else(missing("client sent no :path header"))?;
        let method = if is_websocket(pseudo) { b"GET" } else { method };
        for part in [method, b" ", path, ENDING] {
            self.line.extend_from_slice(part);
        }
        self.method = Method::of(method);
        self.method_text = 0..method.len();
        self.uri = method.len() + 1..method.len() + 1 + path.len();
        self.target = self.uri.clone();
        self.protocol = Some(self.uri.end + 1..self.line.len());
        let query = memchr::memchr(b'?', path);
        self.query = query.map(|at| self.uri.start + at + 1);
        self.complex = is_complex(path, query.unwrap_or(path.len()));
        Ok(())
    }

    fn take_fields_v2<'a>(
        &mut self,
        pseudo: &mut Pseudo<'a>,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        limits: &Limits,
        dropped: &mut impl FnMut(&[u8]),
    ) -> Result<(), HeadError> {
        let usual = |b: &u8| {
            b.is_ascii_lowercase()
                || b.is_ascii_digit()
                || *b == b'-'
                || (*b == b'_' && limits.underscores)
        };
        let mut cookie: Option<Vec<u8>> = None;
        let mut count = 0;
        for (name, value) in fields {
            self.header_in_bytes += name.len() + value.len();
            let (colon, plain) = match name.split_first() {
                Some((b':', rest)) => (true, rest),
                _ => (false, name),
            };
            let usual = plain.iter().all(usual);
            if !usual
                && plain
                    .iter()
                    .any(|b| *b <= b' ' || *b == 0x7f || *b == b':' || b.is_ascii_uppercase())
            {
                return refuse_with("client sent invalid header name", name);
            }
            if memchr::memchr3(0, b'\r', b'\n', value).is_some() {
                let [name, value] = [name, value].map(String::from_utf8_lossy);
                let detail = format!("\"{name}\" with invalid value: \"{value}\"");
                return Err(error(400, "client sent header ", Some(detail)));
            }
            if colon {
                self.take_pseudo(pseudo, plain, value)?;
                continue;
            }
            self.take_line_v2(pseudo)?;
            if !usual && limits.ignore_invalid {
                dropped(name);
                continue;
            }
            if name == b"cookie" {
                // crumbs are joined again (RFC 9113, section 8.2.3)
                match &mut cookie {
                    Some(c) => {
                        c.extend_from_slice(b"; ");
                        c.extend_from_slice(value);
                    }
                    None => cookie = Some(value.to_vec()),
                }
                continue;
            }
            if count >= limits.max_headers {
                return Err(error(494, "client sent too many header lines", None));
            }
            count += 1;
            self.take_field(name, value)?;
        }
        self.take_line_v2(pseudo)?;
        if let Some(value) = cookie {
            self.headers.append_as(Known::Cookie, b"cookie", &value);
        }
        Ok(())
    }

    /// What can be judged only when all fields are known, in nginx's order.
    fn finish_v2(&mut self, pseudo: &Pseudo<'_>, options: OptionsV2) -> Result<Asked, HeadError> {
        // no interim response is sent for it in HTTP/2
        self.expect_continue = false;
        for (known, reason) in [
            (Known::Connection, "client sent \"Connection\" header"),
            (Known::KeepAlive, "client sent \"Keep-Alive\" header"),
            (
                Known::TransferEncoding,
                "client sent \"Transfer-Encoding\" header",
            ),
            (Known::Upgrade, "client sent \"Upgrade\" header"),
            (
                Known::ProxyConnection,
                "client sent \"Proxy-Connection\" header",
            ),
        ] {
            if self.headers.contains_id(known) {
                return refuse(reason);
            }
        }
        let mut te = self.headers.get_all_id(Known::Te);
        if te
            .next()
            .is_some_and(|v| !v.eq_ignore_ascii_case(b"trailers"))
            || te.next().is_some()
        {
            return refuse("client sent invalid \"TE\" header");
        }
        drop(te);
        if self.host.is_empty() {
            return refuse("client sent neither \":authority\" nor \"Host\" header");
        }
        if let Some(authority) = pseudo.authority {
            match self.headers.get_id(Known::Host) {
                Some(host) if host != authority => {
                    return refuse(
                        "client sent \":authority\" and \"Host\" headers with different values",
                    );
                }
                Some(_) => {}
                None => self.headers.append_as(Known::Host, b"host", authority),
            }
        }
        let length = self.headers.get_id(Known::ContentLength).map(parse_length);
        if pseudo.protocol.is_some() {
            return self.connect_protocol(pseudo, options, length.is_some());
        }
        match length {
            Some(None) => return refuse("client sent invalid \"Content-Length\" header"),
            Some(Some(n)) if n > 0 && options.ended => {
                return refuse("client prematurely closed stream");
            }
            Some(length) => self.content_length = length,
            None => self.chunked = !options.ended,
        }
        match self.method {
            Method::Connect => Err(error(405, "client sent CONNECT method", None)),
            Method::Trace => Err(error(405, "client sent TRACE method", None)),
            _ => Ok(Asked::Response),
        }
    }

    fn connect_protocol(
        &self,
        pseudo: &Pseudo<'_>,
        options: OptionsV2,
        length: bool,
    ) -> Result<Asked, HeadError> {
        if !options.connect_protocol {
            return refuse_with("client sent unknown pseudo-header ", b":protocol");
        }
        if pseudo.method != Some(b"CONNECT") {
            return refuse("client sent :protocol header without CONNECT method");
        }
        if !is_websocket(pseudo) {
            let shown = format!(
                "\"{}\"",
                String::from_utf8_lossy(pseudo.protocol.unwrap_or_default())
            );
            return Err(error(
                501,
                "client sent unknown :protocol header",
                Some(shown),
            ));
        }
        if pseudo.authority.is_none() {
            return refuse("client sent no :authority header with :protocol");
        }
        if length || options.ended {
            return refuse("client sent request for a WebSocket with a body or without a stream");
        }
        Ok(Asked::WebSocket)
    }
}

fn is_websocket(pseudo: &Pseudo<'_>) -> bool {
    pseudo.method == Some(b"CONNECT")
        && pseudo
            .protocol
            .is_some_and(|p| p.eq_ignore_ascii_case(b"websocket"))
}

/// Keeps a pseudo-header field that may come once and not be empty.
fn put<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    duplicate: &'static str,
    empty: &'static str,
) -> Result<(), HeadError> {
    if slot.is_some() {
        return refuse(duplicate);
    }
    if value.is_empty() {
        return refuse(empty);
    }
    *slot = Some(value);
    Ok(())
}

#[cold]
fn refuse<T>(reason: &'static str) -> Result<T, HeadError> {
    Err(error(400, reason, None))
}

#[cold]
fn refuse_with<T>(reason: &'static str, shown: &[u8]) -> Result<T, HeadError> {
    let shown = format!("\"{}\"", String::from_utf8_lossy(shown));
    Err(error(400, reason, Some(shown)))
}

/// Whether the path, up to its query, must be normalised before use.
fn is_complex(path: &[u8], end: usize) -> bool {
    let (path, query) = path.split_at_checked(end).unwrap_or((path, b""));
    let segment = path.windows(2).any(|w| matches!(w, b"//" | b"/."));
    segment || memchr::memchr2(b'%', b'#', path).is_some() || memchr::memchr(b'#', query).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GET: &[(&str, &str)] = &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/a?b=c"),
        (":authority", "Example.org:8080"),
    ];

    fn bytes<'a>(list: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()))
    }

    fn options(ended: bool) -> OptionsV2 {
        OptionsV2 {
            ended,
            connect_protocol: true,
        }
    }

    /// GET with these fields; a pseudo-header field takes the place of GET's, or goes away where it is `-`.
    fn with<'a>(fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut list = GET.to_vec();
        for (name, value) in fields {
            match list.iter().position(|(n, _)| n == name) {
                Some(at) if *value == "-" => drop(list.remove(at)),
                Some(at) => list[at].1 = value,
                None => list.push((name, value)),
            }
        }
        list
    }

    fn take(list: &[(&str, &str)], ended: bool) -> Result<RequestHead, HeadError> {
        let mut head = RequestHead::default();
        head.take_v2(bytes(list), options(ended), &Limits::default(), |_| {})
            .map(|_| head)
    }

    fn refused(fields: &[(&str, &str)]) -> (u16, String) {
        let e = take(&with(fields), true).unwrap_err();
        (e.status, e.to_string())
    }

    #[test]
    fn line_and_host() {
        let h = take(&with(&[("x", "y")]), true).unwrap();
        assert_eq!(h.line, b"GET /a?b=c HTTP/2.0");
        assert_eq!(h.method, Method::Get);
        assert_eq!(h.text(&h.uri), b"/a?b=c");
        assert_eq!(h.query, Some(7));
        assert_eq!(h.text(&h.protocol.clone().unwrap()), b"HTTP/2.0");
        assert_eq!((&*h.host, h.host_port), (&b"example.org"[..], 8080));
        assert_eq!(h.headers.get(b"host"), Some(&b"Example.org:8080"[..]));
        assert!(!h.complex && !h.has_body());
    }

    #[test]
    fn complex_paths() {
        for (path, complex) in [
            ("/", false),
            ("/a.b/c", false),
            ("/a//b", true),
            ("/./b", true),
            ("/%41", true),
            ("/a?//%41", false),
        ] {
            assert_eq!(
                take(&with(&[(":path", path)]), true).unwrap().complex,
                complex,
                "{path}"
            );
        }
    }

    #[test]
    fn cookies_are_joined_behind_the_others() {
        let list = [GET, &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]].concat();
        let h = take(&list, true).unwrap();
        let list: Vec<_> = h
            .headers
            .iter()
            .map(|(n, v)| (n.to_vec(), v.to_vec()))
            .collect();
        assert_eq!(list[1], (b"cookie".to_vec(), b"a=1; b=2".to_vec()));
    }

    #[test]
    fn host_header() {
        let list = with(&[(":authority", "-"), ("host", "h")]);
        assert_eq!(take(&list, true).unwrap().host, b"h");
        assert_eq!(refused(&[(":authority", "-")]).0, 400);
        assert!(take(&with(&[("host", "Example.org:8080")]), true).is_ok());
        assert_eq!(
            refused(&[("host", "other")]).1,
            "client sent \":authority\" and \"Host\" headers with different values"
        );
    }

    #[test]
    fn refusals() {
        for (fields, status, text) in [
            (
                &[(":path", "*")][..],
                400,
                "client sent invalid :path header: \"*\"",
            ),
            (&[(":path", "")], 400, "client sent empty :path header"),
            (
                &[(":path", "/a b")],
                400,
                "client sent invalid :path header: \"/a b\"",
            ),
            (&[(":path", "-")], 400, "client sent no :path header"),
            (&[(":method", "-")], 400, "client sent no :method header"),
            (&[(":scheme", "-")], 400, "client sent no :scheme header"),
            (
                &[(":scheme", "1x")],
                400,
                "client sent invalid :scheme header: \"1x\"",
            ),
            (
                &[(":method", "get")],
                400,
                "client sent invalid method: \"get\"",
            ),
            (&[(":method", "TRACE")], 405, "client sent TRACE method"),
            (&[(":method", "CONNECT")], 405, "client sent CONNECT method"),
            (
                &[(":authority", "a/b")],
                400,
                "client sent invalid \":authority\" header",
            ),
            (
                &[(":new", "a")],
                400,
                "client sent unknown pseudo-header \":new\"",
            ),
            (&[("A", "a")], 400, "client sent invalid header name: \"A\""),
            (
                &[("a b", "a")],
                400,
                "client sent invalid header name: \"a b\"",
            ),
            (
                &[("a:", "a")],
                400,
                "client sent invalid header name: \"a:\"",
            ),
            (
                &[("a", "b\r\nc: d")],
                400,
                "client sent header \"a\" with invalid value: \"b\r\nc: d\"",
            ),
            (
                &[("a", "b\0")],
                400,
                "client sent header \"a\" with invalid value: \"b\0\"",
            ),
            (
                &[("a", "b"), (":status", "200")],
                400,
                "client sent out of order pseudo-headers",
            ),
            (
                &[("content-length", "1")],
                400,
                "client prematurely closed stream",
            ),
            (
                &[("content-length", "x")],
                400,
                "client sent invalid \"Content-Length\" header",
            ),
            (&[("te", "gzip")], 400, "client sent invalid \"TE\" header"),
            (
                &[("connection", "close")],
                400,
                "client sent \"Connection\" header",
            ),
            (
                &[("transfer-encoding", "chunked")],
                400,
                "client sent \"Transfer-Encoding\" header",
            ),
            (&[("upgrade", "x")], 400, "client sent \"Upgrade\" header"),
            (
                &[(":protocol", "websocket")],
                400,
                "client sent :protocol header without CONNECT method",
            ),
        ] {
            assert_eq!(refused(fields), (status, text.to_owned()));
        }
        let twice = [GET, &[("content-length", "0"), ("content-length", "0")]].concat();
        assert_eq!(
            take(&twice, true).unwrap_err().reason,
            "client sent duplicate header line"
        );
        let twice = [&GET[..3], GET].concat();
        assert_eq!(
            take(&twice, true).unwrap_err().reason,
            "client sent duplicate :method header"
        );
        assert!(take(&with(&[("te", "Trailers")]), true).is_ok());
    }

    #[test]
    fn bodies() {
        assert!(take(GET, false).unwrap().chunked);
        let h = take(&with(&[("content-length", "5")]), false).unwrap();
        assert_eq!((h.content_length, h.chunked), (Some(5), false));
        let h = take(&with(&[("expect", "100-continue")]), false).unwrap();
        assert!(!h.expect_continue);
    }

    #[test]
    fn websockets() {
        let list = with(&[(":method", "CONNECT"), (":protocol", "websocket")]);
        let mut head = RequestHead::default();
        let asked = head.take_v2(bytes(&list), options(false), &Limits::default(), |_| {});
        assert_eq!(asked.unwrap(), Asked::WebSocket);
        assert_eq!(
            (&*head.line, head.has_body()),
            (&b"GET /a?b=c HTTP/2.0"[..], false)
        );
        assert_eq!(take(&list, true).unwrap_err().status, 400);
        let other = with(&[(":method", "CONNECT"), (":protocol", "x")]);
        assert_eq!(take(&other, false).unwrap_err().status, 501);
        let not = OptionsV2 {
            ended: false,
            connect_protocol: false,
        };
        let e = head
            .take_v2(bytes(&list), not, &Limits::default(), |_| {})
            .unwrap_err();
        assert_eq!(
            e.to_string(),
            "client sent unknown pseudo-header \":protocol\""
        );
    }

    #[test]
    fn unusual_names_and_limits() {
        let mut head = RequestHead::default();
        let mut names = Vec::new();
        let list = with(&[("x_y", "1"), ("a", "2")]);
        head.take_v2(bytes(&list), options(true), &Limits::default(), |n| {
            names.push(n.to_vec())
        })
        .unwrap();
        assert_eq!(names, [b"x_y".to_vec()]);
        assert!(!head.headers.contains(b"x_y"));
        let limits = Limits {
            max_headers: 1,
            underscores: true,
            ..Limits::default()
        };
        let e = head
            .take_v2(bytes(&list), options(true), &limits, |_| {})
            .unwrap_err();
        assert_eq!(
            (e.status, e.reason),
            (494, "client sent too many header lines")
        );
    }

    proptest! {
        #[test]
        fn never_panics(path: Vec<u8>, ended: bool, fields: Vec<(Vec<u8>, Vec<u8>)>) {
            let mut head = RequestHead::default();
            let list: Vec<(&[u8], &[u8])> = [(&b":method"[..], &b"GET"[..]), (b":scheme", b"http"), (b":path", &path),
                (b":authority", b"h")].into_iter().chain(fields.iter().map(|(n, v)| (&n[..], &v[..]))).collect();
            if head.take_v2(list.iter().copied(), options(ended), &Limits::default(), |_| {}).is_ok() {
                prop_assert_eq!(head.text(&head.uri), &path[..]);
                prop_assert!(head.headers.iter().all(|(_, v)| memchr::memchr3(0, b'\r', b'\n', v).is_none()));
            }
        }
    }
}
