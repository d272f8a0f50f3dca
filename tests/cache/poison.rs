//! Tricks by which one client would have others served what is not theirs (docs/cache.md has them all).

use super::common::client::{Response, exchange};
use super::common::origin::Origin;
use super::common::proc::Server;
use super::{ask, cached, get, ok, status};

/// An origin that answers with all that it was asked.
fn mirror(headers: &'static str) -> Origin {
    Origin::respond(move |r| {
        let seen = |name: &str| r.header(name).unwrap_or_default();
        let body = String::from_utf8_lossy(r.body()).into_owned();
        let forwarded = seen("X-Forwarded-Host");
        ok(headers, format!("{} {forwarded} {body}", r.target()))
    })
}

/// A client that has asked so, and one that comes later and asks as everybody does.
fn after(server: &Server, trick: &str) -> Response {
    exchange(server.addr(8080), trick);
    get(server, "/")
}

const FORWARDED: &str =
    "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: evil\r\nConnection: close\r\n\r\n";
const FAT: &str =
    "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil";

#[test]
fn headers_outside_of_the_key() {
    // an origin that obeys what is not in the key poisons, as behind nginx
    let origin = mirror("");
    let server = cached(&origin, "", "");
    let r = after(&server, FORWARDED);
    assert_eq!((status(&r), r.text()), ("HIT", "/ evil ".into()));
    // unless the location takes it away, the key holds it, or the origin says what it depends on
    for (headers, location) in [
        ("", "proxy_set_header X-Forwarded-Host \"\";"),
        ("", "proxy_set_header X-Forwarded-Host $host;"),
        ("", "proxy_cache_key $request_uri$http_x_forwarded_host;"),
        ("Vary: X-Forwarded-Host\r\n", ""),
    ] {
        let origin = mirror(headers);
        let server = cached(&origin, "", location);
        let r = after(&server, FORWARDED);
        assert!(!r.text().contains("evil"), "{headers}{location}");
    }
}

#[test]
fn bodies_outside_of_the_key() {
    let origin = mirror("");
    let server = cached(&origin, "", "");
    assert_eq!(after(&server, FAT).text(), "/  evil");
    for location in [
        "proxy_pass_request_body off; proxy_set_header Content-Length \"\";",
        "proxy_cache_key $request_uri$request_body;",
        "proxy_cache_bypass $content_length; proxy_no_cache $content_length;",
    ] {
        let origin = mirror("");
        let server = cached(&origin, "", location);
        assert_eq!(after(&server, FAT).text(), "/  ", "{location}");
    }
    // a body of POST is part of nothing either, and POST is not stored unless that is asked for
    let origin = mirror("");
    let server = cached(&origin, "", "");
    ask(&server, "POST", "/", "Content-Length: 0\r\n");
    assert_eq!(status(&get(&server, "/")), "MISS");
}

#[test]
fn other_spellings_are_other_objects() {
    let origin = mirror("");
    let server = cached(&origin, "", "");
    let all = [
        "/a",
        "/A",
        "//a",
        "/./a",
        "/%61",
        "/x/../a",
        "/a/",
        "/a?",
        "/a?p=1&p=2",
        "/a?p=2&p=1",
        "/a?p=1&q=2",
        "/a?q=2&p=1",
        "/a?P=1",
        "/a;p=1",
        "/a%00",
        "/a#p",
    ];
    let mut fetched = 0;
    for uri in all {
        let r = get(&server, uri);
        if r.status == 400 {
            continue;
        }
        assert_eq!(status(&r), "MISS", "{uri}");
        assert_eq!(r.text(), format!("{uri}  "));
        assert_eq!(status(&get(&server, uri)), "HIT", "{uri}");
        fetched += 1;
    }
    assert!(fetched >= 14);
    assert_eq!(origin.requests().len(), fetched);
}

#[test]
fn hosts_and_ports() {
    let of = |server: &Server, line: &str, host: &str| {
        let text = format!("GET {line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(server.addr(8080), &text)
    };
    let origin = mirror("");
    let server = cached(&origin, "", "proxy_cache_key $scheme$host$request_uri;");
    assert_eq!(status(&of(&server, "/", "a.test")), "MISS");
    // case, a port and an absolute form say the same
    for (line, host) in [
        ("/", "A.TEST"),
        ("/", "a.test:81"),
        ("http://a.test/", "a.test"),
    ] {
        assert_eq!(status(&of(&server, line, host)), "HIT", "{line} {host}");
    }
    assert_eq!(status(&of(&server, "/", "b.test")), "MISS");
    for host in [
        "a.test/",
        "a.test\r\nHost: b.test",
        "a test",
        "a.test@b.test",
    ] {
        assert_eq!(of(&server, "/", host).status, 400, "{host}");
    }
    let origin = mirror("");
    let server = cached(&origin, "", "proxy_cache_key $http_host$request_uri;");
    for host in ["a.test", "A.test", "a.test:81"] {
        assert_eq!(status(&of(&server, "/", host)), "MISS", "{host}");
    }
}

#[test]
fn errors_that_a_client_provokes_are_not_stored() {
    let origin = Origin::respond(|r| match r.header("X-Override") {
        Some(_) => b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
        None => ok("", "good"),
    });
    let server = cached(&origin, "", "");
    let bad = ask(&server, "GET", "/", "X-Override: DELETE\r\n");
    assert_eq!(bad.status, 405);
    let good = get(&server, "/");
    assert_eq!((status(&good), good.text()), ("MISS", "good".into()));
    // a range or a condition of one client is not what others get
    for more in [
        "Range: bytes=1-1\r\n",
        "If-None-Match: \"x\"\r\n",
        "If-Range: \"x\"\r\n",
    ] {
        let server = cached(&origin, "", "");
        ask(&server, "GET", "/", more);
        assert_eq!(get(&server, "/").text(), "good", "{more}");
    }
}
