//! Hits, misses, and what the headers on both sides say about them.

use super::common::client::Client;
use super::common::origin::{Gate, Origin, Step};
use super::common::{DEADLINE, wait_for};
use super::{ask, cached, get, objects, ok, pattern, status};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_second_request_asks_nobody() {
    let origin = Origin::respond(|r| ok("X-A: b\r\n", r.target()));
    let server = cached(&origin, "", "");
    let first = get(&server, "/a");
    assert_eq!((status(&first), first.text()), ("MISS", "/a".into()));
    for _ in 0..3 {
        let hit = get(&server, "/a");
        assert_eq!((status(&hit), hit.text()), ("HIT", "/a".into()));
        assert_eq!(hit.header("X-A"), Some("b"));
        assert_eq!(hit.header("Content-Length"), Some("2"));
    }
    assert_eq!(status(&get(&server, "/b")), "MISS");
    assert_eq!(origin.requests().len(), 2);
    assert_eq!(objects(&server.dir().join("cache")).len(), 2);
}

#[test]
fn what_the_origin_says_is_obeyed() {
    let origin = Origin::respond(|r| match r.target().as_str() {
        "/private" => ok("Cache-Control: private\r\n", "x"),
        "/cookie" => ok("Set-Cookie: a=b\r\n", "x"),
        "/any" => ok("Vary: *\r\n", "x"),
        "/accel" => ok("X-Accel-Expires: 0\r\n", "x"),
        "/error" => b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
        _ => ok("Cache-Control: max-age=100\r\n", "x"),
    });
    let server = cached(&origin, "", "");
    for uri in ["/private", "/cookie", "/any", "/accel", "/error"] {
        get(&server, uri);
        assert_ne!(status(&get(&server, uri)), "HIT", "{uri}");
    }
    get(&server, "/stored");
    assert_eq!(status(&get(&server, "/stored")), "HIT");
    assert_eq!(objects(&server.dir().join("cache")).len(), 1);
}

#[test]
fn variants_are_told_apart() {
    let origin = Origin::respond(|r| {
        let language = r.header("Accept-Language").unwrap_or_default();
        ok("Vary: Accept-Language\r\n", format!("in {language}"))
    });
    let server = cached(&origin, "", "");
    for round in ["MISS", "HIT", "HIT"] {
        for language in ["de", "en", "fr"] {
            let r = ask(
                &server,
                "GET",
                "/",
                &format!("Accept-Language: {language}\r\n"),
            );
            assert_eq!((status(&r), r.text()), (round, format!("in {language}")));
        }
    }
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn ranges_and_conditions_are_answered_from_the_cache() {
    let body = pattern(1, 300_000);
    let sent = body.clone();
    let origin = Origin::respond(move |_| {
        ok(
            "Accept-Ranges: bytes\r\nETag: \"v\"\r\nLast-Modified: Mon, 28 Sep 1970 06:00:00 GMT\r\n",
            &sent,
        )
    });
    let server = cached(&origin, "", "");
    let first = ask(
        &server,
        "GET",
        "/",
        "Range: bytes=7-9\r\nIf-None-Match: \"other\"\r\n",
    );
    assert_eq!((first.status, &first.body[..]), (206, &body[7..10]));
    let seen = &origin.requests()[0];
    assert_eq!(
        (seen.header("Range"), seen.header("If-None-Match")),
        (None, None)
    );
    // the client has its range before the rest has come
    let stored = wait_for(DEADLINE, || objects(&server.dir().join("cache")).pop());
    assert!(stored.is_some());
    let one = ask(&server, "GET", "/", "Range: bytes=-5\r\n");
    assert_eq!(
        (status(&one), one.status, &one.body[..]),
        ("HIT", 206, &body[299_995..])
    );
    let two = ask(&server, "GET", "/", "Range: bytes=0-1,4-5\r\n");
    assert!(
        two.header("Content-Type")
            .unwrap()
            .starts_with("multipart/byteranges")
    );
    assert_eq!(
        ask(&server, "GET", "/", "Range: bytes=300000-\r\n").status,
        416
    );
    let same = ask(&server, "GET", "/", "If-None-Match: \"v\"\r\n");
    assert_eq!(
        (status(&same), same.status, same.body.len()),
        ("HIT", 304, 0)
    );
    assert_eq!(ask(&server, "GET", "/", "If-Match: \"w\"\r\n").status, 412);
    let head = ask(&server, "HEAD", "/", "");
    assert_eq!(
        (status(&head), head.header("Content-Length")),
        ("HIT", Some("300000"))
    );
    assert_eq!(get(&server, "/").body, body);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn head_fetches_the_whole_response() {
    let origin = Origin::respond(|r| ok("", r.method()));
    let server = cached(&origin, "", "");
    assert_eq!(
        ask(&server, "HEAD", "/", "").header("Content-Length"),
        Some("3")
    );
    let hit = wait_for(DEADLINE, || {
        let r = get(&server, "/");
        (status(&r) == "HIT").then_some(r)
    });
    assert_eq!(hit.unwrap().text(), "GET");
}

#[test]
fn an_old_response_is_asked_about() {
    let n = AtomicUsize::new(0);
    let origin = Origin::respond(move |r| {
        let first = n.fetch_add(1, Ordering::Relaxed) == 0;
        match r.header("If-None-Match").as_deref() {
            Some("\"v\"") => {
                b"HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=100\r\n\r\n".to_vec()
            }
            _ if first => ok("ETag: \"v\"\r\nX-Accel-Expires: @1\r\n", "body"),
            _ => ok("", "other"),
        }
    });
    let server = cached(&origin, "", "proxy_cache_revalidate on;");
    assert_eq!(status(&get(&server, "/")), "MISS");
    let again = get(&server, "/");
    assert_eq!(
        (status(&again), again.text()),
        ("REVALIDATED", "body".into())
    );
    let hit = get(&server, "/");
    assert_eq!((status(&hit), hit.text()), ("HIT", "body".into()));
}

#[test]
fn an_old_response_is_better_than_none() {
    let n = AtomicUsize::new(0);
    let origin = Origin::respond(move |_| match n.fetch_add(1, Ordering::Relaxed) {
        0 => ok("X-Accel-Expires: @1\r\n", "old"),
        1 => b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_vec(),
        _ => Vec::new(),
    });
    let server = cached(&origin, "", "proxy_cache_use_stale http_503 error;");
    assert_eq!(status(&get(&server, "/")), "MISS");
    let busy = get(&server, "/");
    assert_eq!((status(&busy), busy.text()), ("STALE", "old".into()));
    assert_eq!(status(&get(&server, "/")), "STALE");
}

#[test]
fn a_background_request_updates() {
    let gate = Gate::new();
    let held = gate.clone();
    let n = AtomicUsize::new(0);
    let origin = Origin::respond(move |_| match n.fetch_add(1, Ordering::Relaxed) {
        0 => ok("X-Accel-Expires: @1\r\n", "old"),
        _ => {
            held.wait();
            ok("", "new")
        }
    });
    let server = cached(
        &origin,
        "",
        "proxy_cache_use_stale updating; proxy_cache_background_update on;",
    );
    get(&server, "/");
    let stale = get(&server, "/");
    assert_eq!((status(&stale), stale.text()), ("STALE", "old".into()));
    let updating = get(&server, "/");
    assert_eq!(
        (status(&updating), updating.text()),
        ("UPDATING", "old".into())
    );
    gate.open();
    let new = wait_for(DEADLINE, || {
        let r = get(&server, "/");
        (status(&r) == "HIT").then_some(r)
    });
    assert_eq!(new.unwrap().text(), "new");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn a_client_that_leaves_does_not_spoil_the_fill() {
    let body = pattern(2, 400_000);
    let (begin, end) = body.split_at(1000);
    let gate = Gate::new();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send(head),
        Step::Send(begin.to_vec()),
        Step::Wait(gate.clone()),
        Step::Send(end.to_vec()),
    ]]);
    let server = cached(&origin, "", "");
    let mut client = Client::connect(server.addr(8080));
    client
        .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    client.response_head().unwrap();
    drop(client);
    gate.open();
    let hit = wait_for(DEADLINE, || {
        objects(&server.dir().join("cache")).first().cloned()
    });
    assert!(hit.is_some(), "{}", server.log());
    let hit = get(&server, "/");
    assert_eq!((status(&hit), hit.body == body), ("HIT", true));
    assert_eq!(origin.connections(), 1);
}

#[test]
fn pieces_make_a_whole() {
    let body = pattern(3, 100_000);
    let sent = body.clone();
    let origin = Origin::respond(move |r| {
        let range = r.header("Range").unwrap_or_default();
        let (a, b) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let (a, b): (usize, usize) = (a.parse().unwrap(), b.parse().unwrap());
        let b = b.min(sent.len() - 1);
        let part = &sent[a..=b];
        let head = format!(
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {a}-{b}/{}\r\nContent-Length: {}\r\n\r\n",
            sent.len(),
            part.len()
        );
        [head.as_bytes(), part].concat()
    });
    let server = cached(
        &origin,
        "",
        "slice 30000; proxy_set_header Range $slice_range; proxy_cache_key $uri$slice_range; proxy_cache_valid 206 1h;",
    );
    let part = ask(&server, "GET", "/", "Range: bytes=65000-95000\r\n");
    assert_eq!(
        (part.status, part.body == body[65_000..=95_000]),
        (206, true)
    );
    assert_eq!(origin.take_requests().len(), 2);
    let whole = get(&server, "/");
    assert_eq!((whole.status, whole.body == body), (200, true));
    assert_eq!(origin.take_requests().len(), 2, "two were there");
    assert_eq!(
        ask(&server, "GET", "/", "Range: bytes=1-1,3-3\r\n").body,
        body
    );
    assert!(origin.requests().is_empty());
}
