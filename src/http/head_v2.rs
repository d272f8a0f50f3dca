//! The head of a request of HTTP/2 (RFC 9113, section 8.3), in the form that the rest knows from HTTP/1.

use super::{
    HeadError, Known, Limits, Method, RequestHead, Version, error, parse_host, parse_length,
};

/// A request as the frames of a stream tell it.
pub struct RequestV2<'a> {
    /// `:method`.
    pub method: &'a [u8],
    /// `:path`.
    pub path: &'a [u8],
    /// `:authority`, if it was sent.
    pub authority: Option<&'a [u8]>,
    /// Whether no body follows.
    pub ended: bool,
}

const ENDING: &[u8] = b" HTTP/2.0";

impl RequestHead {
    /// Takes a request of HTTP/2; `dropped` receives the names of fields that are ignored as invalid.
    ///
    /// # Errors
    /// Why it is refused; what could be read of it is in `self`, for the log.
    pub fn take_v2<'a>(
        &mut self,
        request: &RequestV2<'_>,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        limits: &Limits,
        mut dropped: impl FnMut(&[u8]),
    ) -> Result<(), HeadError> {
        self.clear();
        (self.version, self.http_major_minor) = (Version::V11, (2, 0));
        let RequestV2 { method, path, .. } = *request;
        self.header_in_bytes = method.len() + path.len() + request.authority.map_or(0, <[u8]>::len);
        let refused = |e: HeadError| HeadError {
            line_known: true,
            ..e
        };
        if let Some(text) = request.authority {
            let host = parse_host(text)
                .ok_or_else(|| error(400, "client sent invalid \":authority\" header", None))?;
            self.set_host(text, host);
        }
        self.take_line_v2(method, path)?;
        self.take_fields_v2(request, fields, limits, &mut dropped)
            .map_err(refused)?;
        self.finish_v2(request.ended).map_err(refused)
    }

    fn take_line_v2(&mut self, method: &[u8], path: &[u8]) -> Result<(), HeadError> {
        if !method
            .iter()
            .all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-'))
        {
            let shown = format!("\"{}\"", String::from_utf8_lossy(method));
            return Err(error(400, "client sent invalid method", Some(shown)));
        }
        if path.first() != Some(&b'/') || path.iter().any(|b| *b <= b' ' || *b == 0x7f) {
            let shown = format!("\"{}\"", String::from_utf8_lossy(path));
            return Err(error(400, "client sent invalid :path header", Some(shown)));
        }
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
        request: &RequestV2<'_>,
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
            if limits.ignore_invalid && !name.iter().all(usual) {
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
        if let Some(value) = cookie {
            self.headers.append_as(Known::Cookie, b"cookie", &value);
        }
        if self.host.is_empty() {
            return Err(error(
                400,
                "client sent neither \":authority\" nor \"Host\" header",
                None,
            ));
        }
        if let Some(authority) = request.authority {
            match self.headers.get_id(Known::Host) {
                Some(host) if host != authority => {
                    return Err(error(
                        400,
                        "client sent \":authority\" and \"Host\" headers with different values",
                        None,
                    ));
                }
                Some(_) => {}
                None => self.headers.append_as(Known::Host, b"host", authority),
            }
        }
        Ok(())
    }

    fn finish_v2(&mut self, ended: bool) -> Result<(), HeadError> {
        // no interim response is sent for it in HTTP/2
        self.expect_continue = false;
        let refuse = |status, reason| Err(error(status, reason, None));
        for (known, reason) in [
            (Known::Connection, "client sent \"Connection\" header"),
            (Known::KeepAlive, "client sent \"Keep-Alive\" header"),
            (
                Known::TransferEncoding,
                "client sent \"Transfer-Encoding\" header",
            ),
            (Known::Upgrade, "client sent \"Upgrade\" header"),
        ] {
            if self.headers.contains_id(known) {
                return refuse(400, reason);
            }
        }
        let mut te = self.headers.get_all_id(Known::Te);
        if te
            .next()
            .is_some_and(|v| !v.eq_ignore_ascii_case(b"trailers"))
            || te.next().is_some()
        {
            return refuse(400, "client sent invalid \"TE\" header");
        }
        match self.headers.get_id(Known::ContentLength).map(parse_length) {
            Some(None) => return refuse(400, "client sent invalid \"Content-Length\" header"),
            Some(Some(n)) if n > 0 && ended => {
                return refuse(400, "client prematurely closed stream");
            }
            Some(length) => self.content_length = length,
            None => self.chunked = !ended,
        }
        match self.method {
            Method::Connect => refuse(405, "client sent CONNECT method"),
            Method::Trace => refuse(405, "client sent TRACE method"),
            _ => Ok(()),
        }
    }
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

    const GET: RequestV2<'_> = RequestV2 {
        method: b"GET",
        path: b"/a?b=c",
        authority: Some(b"Example.org:8080"),
        ended: true,
    };

    fn take(request: &RequestV2<'_>, fields: &[(&str, &str)]) -> Result<RequestHead, HeadError> {
        let mut head = RequestHead::default();
        let fields = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        head.take_v2(request, fields, &Limits::default(), |_| {})
            .map(|()| head)
    }

    fn refused(request: &RequestV2<'_>, fields: &[(&str, &str)]) -> (u16, &'static str) {
        let e = take(request, fields).unwrap_err();
        (e.status, e.reason)
    }

    #[test]
    fn line_and_host() {
        let h = take(&GET, &[("x", "y")]).unwrap();
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
                take(
                    &RequestV2 {
                        path: path.as_bytes(),
                        ..GET
                    },
                    &[]
                )
                .unwrap()
                .complex,
                complex,
                "{path}"
            );
        }
    }

    #[test]
    fn cookies_are_joined_behind_the_others() {
        let h = take(&GET, &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]).unwrap();
        let list: Vec<_> = h
            .headers
            .iter()
            .map(|(n, v)| (n.to_vec(), v.to_vec()))
            .collect();
        assert_eq!(list[1], (b"cookie".to_vec(), b"a=1; b=2".to_vec()));
    }

    #[test]
    fn host_header() {
        let none = RequestV2 {
            authority: None,
            ..GET
        };
        assert_eq!(take(&none, &[("host", "h")]).unwrap().host, b"h");
        assert_eq!(refused(&none, &[]).0, 400);
        assert!(take(&GET, &[("host", "Example.org:8080")]).is_ok());
        assert_eq!(
            refused(&GET, &[("host", "other")]),
            (
                400,
                "client sent \":authority\" and \"Host\" headers with different values"
            )
        );
    }

    #[test]
    fn refusals() {
        assert_eq!(
            refused(&RequestV2 { path: b"*", ..GET }, &[]).1,
            "client sent invalid :path header"
        );
        assert_eq!(
            refused(
                &RequestV2 {
                    method: b"get",
                    ..GET
                },
                &[]
            )
            .1,
            "client sent invalid method"
        );
        assert_eq!(
            refused(
                &RequestV2 {
                    method: b"TRACE",
                    ..GET
                },
                &[]
            )
            .0,
            405
        );
        assert_eq!(
            refused(
                &RequestV2 {
                    authority: Some(b"a/b"),
                    ..GET
                },
                &[]
            )
            .1,
            "client sent invalid \":authority\" header"
        );
        assert_eq!(
            refused(&GET, &[("content-length", "1")]).1,
            "client prematurely closed stream"
        );
        assert_eq!(
            refused(&GET, &[("content-length", "x")]).1,
            "client sent invalid \"Content-Length\" header"
        );
        assert_eq!(
            refused(&GET, &[("te", "gzip")]).1,
            "client sent invalid \"TE\" header"
        );
        assert!(take(&GET, &[("te", "Trailers")]).is_ok());
    }

    #[test]
    fn bodies() {
        let open = RequestV2 {
            ended: false,
            ..GET
        };
        assert!(take(&open, &[]).unwrap().chunked);
        let h = take(&open, &[("content-length", "5")]).unwrap();
        assert_eq!((h.content_length, h.chunked), (Some(5), false));
        assert!(
            !take(&open, &[("expect", "100-continue")])
                .unwrap()
                .expect_continue
        );
    }

    #[test]
    fn unusual_names_and_limits() {
        let mut head = RequestHead::default();
        let mut names = Vec::new();
        let fields =
            [("x_y", "1"), ("a", "2")].map(|(n, v): (&str, &str)| (n.as_bytes(), v.as_bytes()));
        head.take_v2(&GET, fields.into_iter(), &Limits::default(), |n| {
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
            .take_v2(&GET, fields.into_iter(), &limits, |_| {})
            .unwrap_err();
        assert_eq!(
            (e.status, e.reason),
            (494, "client sent too many header lines")
        );
    }

    proptest! {
        #[test]
        fn never_panics(method: Vec<u8>, path: Vec<u8>, authority: Option<Vec<u8>>, ended: bool, fields: Vec<(Vec<u8>, Vec<u8>)>) {
            let mut head = RequestHead::default();
            let request = RequestV2 { method: &method, path: &path, authority: authority.as_deref(), ended };
            let fields = fields.iter().map(|(n, v)| (&n[..], &v[..]));
            if head.take_v2(&request, fields, &Limits::default(), |_| {}).is_ok() {
                prop_assert_eq!(head.text(&head.uri), &path[..]);
                prop_assert_eq!(head.method_name(), &method[..]);
            }
        }
    }
}
