//! Tests of the head of a request of HTTP/2.

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

#[test]
fn strict_mode() {
    let strict = Limits {
        strict: true,
        ..Limits::default()
    };
    for (fields, lenient, strictly) in [
        (&[][..], 0, 0),
        (&[("a", "b c\u{e4}\td")], 0, 0),
        (&[("a!", "b")], 0, 0),
        (&[(":path", "/%41?[b]={c}|%0a")], 0, 0),
        (&[("a", "b\x01")], 0, 400),
        (&[("a", "b\x7f")], 0, 400),
        (&[("a", " b")], 0, 400),
        (&[("a", "b\t")], 0, 400),
        (&[("a(b", "c")], 0, 400),
        (&[("\u{e4}", "b")], 0, 400),
        (&[("a", "b\r\nc")], 400, 400),
        (&[("a", "b\0")], 400, 400),
        (&[("A", "b")], 400, 400),
        (&[("a b", "c")], 400, 400),
        (&[("connection", "close")], 400, 400),
        (&[("transfer-encoding", "chunked")], 400, 400),
        (&[("te", "gzip")], 400, 400),
        (&[(":path", "/a#b")], 0, 400),
        (&[(":path", "/a\\b")], 0, 400),
        (&[(":path", "/\u{e4}")], 0, 400),
        (&[(":path", "/%c0%af")], 0, 400),
        (&[(":path", "/%0d%0a")], 0, 400),
        (&[(":path", "/?%")], 0, 400),
        (&[(":path", "/a b")], 400, 400),
        (&[(":path", "*")], 400, 400),
        (&[(":scheme", "ftp")], 0, 400),
        (&[(":authority", ".h")], 0, 400),
        (&[(":authority", "[x]")], 0, 400),
        (&[(":authority", "u@h")], 400, 400),
        (&[("host", "other")], 400, 400),
        (&[("content-length", "+0")], 400, 400),
        (&[("content-length", "00")], 0, 400),
        (
            &[("content-length", "0"), ("content-length", "0")],
            400,
            400,
        ),
        (&[("expect", "x")], 0, 417),
    ] {
        let mut list = with(&[]);
        for (name, value) in fields {
            match list
                .iter()
                .position(|(n, _)| n == name && name.starts_with(':'))
            {
                Some(at) => list[at].1 = value,
                None => list.push((name, value)),
            }
        }
        for (limits, expected) in [(&Limits::default(), lenient), (&strict, strictly)] {
            let mut head = RequestHead::default();
            let taken = head.take_v2(bytes(&list), options(true), limits, |_| {});
            let status = taken.map_or_else(|e| e.status, |_| 0);
            assert_eq!(status, expected, "{fields:?}");
            if status == 0 {
                let clean = |(_, v): (&[u8], &[u8])| !crate::http::strict::has_control(v);
                assert!(head.headers.iter().all(clean), "{fields:?}");
            }
        }
    }
}
