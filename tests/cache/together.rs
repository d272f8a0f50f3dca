//! Many requests for one response that is not there yet.

use super::common::client::{Client, find};
use super::common::origin::{Gate, Origin, Step};
use super::common::proc::Server;
use super::common::{DEADLINE, wait_for};
use super::{ask, cached, get, objects, ok, pattern, status};
use nix::sys::resource::{Resource, setrlimit};

#[test]
fn simultaneous_misses_make_one_request() {
    const CLIENTS: usize = 400;
    let gate = Gate::new();
    let held = gate.clone();
    let body = pattern(5, 5000);
    let sent = body.clone();
    let origin = Origin::respond(move |_| {
        held.wait();
        ok("", &sent)
    });
    let server = cached(
        &origin,
        "",
        "proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;",
    );
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::connect(server.addr(8080));
            client
                .send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            client
        })
        .collect();
    origin.wait_for_requests(1);
    gate.open();
    let mut counts = std::collections::BTreeMap::new();
    for client in &mut clients {
        let r = client.response("GET").unwrap();
        assert!(r.body == body);
        *counts.entry(status(&r).to_owned()).or_insert(0) += 1;
    }
    assert_eq!(origin.requests().len(), 1, "{counts:?}");
    assert_eq!(counts["MISS"], 1);
    assert_eq!(counts["HIT"], CLIENTS - 1);
}

#[test]
fn who_has_waited_long_enough_asks_too() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::respond(move |_| {
        held.wait();
        ok("", "x")
    });
    let server = cached(
        &origin,
        "",
        "proxy_cache_lock on; proxy_cache_lock_timeout 50ms; proxy_cache_lock_age 1h;",
    );
    let mut clients: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = Client::connect(server.addr(8080));
            client
                .send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            client
        })
        .collect();
    origin.wait_for_requests(2);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response("GET").unwrap().text(), "x");
    }
    assert!(server.log().contains("cache lock timeout"));
    assert_eq!(status(&get(&server, "/x")), "HIT");
}

const LOCK: &str = "proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;";

/// An answer that comes in pieces, each after its gate has been opened.
fn in_pieces(headers: &str, body: &[u8], ends: &[usize]) -> (Vec<Step>, Vec<Gate>) {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let mut steps = vec![Step::Read, Step::send(head)];
    let (mut gates, mut at) = (Vec::new(), 0);
    for &end in ends {
        if at > 0 {
            let gate = Gate::new();
            steps.push(Step::Wait(gate.clone()));
            gates.push(gate);
        }
        steps.push(Step::Send(body[at..end].to_vec()));
        at = end;
    }
    (steps, gates)
}

fn begin(server: &Server, more: &str) -> Client {
    let mut client = Client::connect(server.addr(8080));
    client
        .send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"))
        .unwrap();
    client
}

/// Waits for the head of a response that nobody has asked for before.
fn first(server: &Server, more: &str) -> Client {
    let mut client = begin(server, more);
    assert_eq!(status(&client.response_head().unwrap()), "MISS");
    client
}

#[test]
fn a_thousand_clients_follow_one_response() {
    const CLIENTS: usize = 1000;
    let _ = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most.min(16_384), most));
    // held in memory, in the file, and whole
    let body = pattern(6, 140_000);
    let ends = [20_000, 132_000, body.len()];
    let (steps, gates) = in_pieces("", &body, &ends);
    let origin = Origin::script(vec![steps]);
    let server = cached(&origin, "", LOCK);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| begin(&server, "")).collect();
    let mut counts = std::collections::BTreeMap::new();
    for client in &mut clients {
        let head = client.response_head().unwrap();
        assert_eq!(head.header("Content-Length"), Some("140000"));
        *counts.entry(status(&head).to_owned()).or_insert(0) += 1;
    }
    assert_eq!((counts["MISS"], counts["HIT"]), (1, CLIENTS - 1));
    let mut at = 0;
    for (i, end) in ends.into_iter().enumerate() {
        for client in &mut clients {
            assert!(client.take(end - at).unwrap() == body[at..end]);
        }
        at = end;
        if let Some(gate) = gates.get(i) {
            assert!(objects(&server.dir().join("cache")).is_empty());
            gate.open();
        }
    }
    assert_eq!(origin.connections(), 1);
    assert_eq!(status(&get(&server, "/")), "HIT");
}

#[test]
fn ranges_heads_and_conditions_of_what_is_still_coming() {
    let body = pattern(7, 100_000);
    let headers = "ETag: \"v\"\r\nAccept-Ranges: bytes\r\n";
    let (steps, gates) = in_pieces(headers, &body, &[50_000, body.len()]);
    let origin = Origin::script(vec![steps]);
    let server = cached(&origin, "", LOCK);
    let mut whole = first(&server, "");
    let head = ask(&server, "HEAD", "/", "");
    assert_eq!(
        (status(&head), head.header("Content-Length")),
        ("HIT", Some("100000"))
    );
    let part = ask(&server, "GET", "/", "Range: bytes=40000-40099\r\n");
    assert_eq!(
        (part.status, &part.body[..], part.header("Content-Range")),
        (206, &body[40_000..40_100], Some("bytes 40000-40099/100000"))
    );
    let same = ask(&server, "GET", "/", "If-None-Match: \"v\"\r\n");
    assert_eq!((status(&same), same.status), ("HIT", 304));
    let beyond = ask(&server, "GET", "/", "Range: bytes=100000-\r\n");
    assert_eq!(beyond.status, 416);
    let mut late = begin(&server, "Range: bytes=90000-\r\n");
    let mut parts = begin(&server, "Range: bytes=0-1,99998-99999\r\n");
    assert_eq!(late.response_head().unwrap().status, 206);
    gates[0].open();
    assert!(late.take(10_000).unwrap() == body[90_000..]);
    let parts = parts.response("GET").unwrap();
    assert!(find(&parts.body, &body[99_998..]).is_some());
    assert!(whole.take(100_000).unwrap() == body);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn followers_of_a_response_that_breaks_off_see_it() {
    let broken = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nbegin";
    let gate = Gate::new();
    let origin = Origin::script(vec![
        vec![
            Step::Read,
            Step::send(broken),
            Step::Wait(gate.clone()),
            Step::Close,
        ],
        vec![Step::Read, Step::Send(ok("", "whole"))],
    ]);
    let server = cached(&origin, "", LOCK);
    let mut leader = first(&server, "");
    let mut follower = begin(&server, "");
    assert_eq!(status(&follower.response_head().unwrap()), "HIT");
    assert_eq!(follower.take(5).unwrap(), b"begin");
    gate.open();
    for client in [&mut leader, &mut follower] {
        assert!(client.take(99).is_err());
    }
    let next = get(&server, "/");
    assert_eq!((status(&next), next.text()), ("MISS", "whole".into()));
}

#[test]
fn the_first_client_may_leave() {
    let body = pattern(8, 300_000);
    let (steps, gates) = in_pieces("", &body, &[10, body.len()]);
    let origin = Origin::script(vec![steps]);
    let server = cached(&origin, "", LOCK);
    let leader = first(&server, "");
    let mut follower = begin(&server, "");
    assert_eq!(status(&follower.response_head().unwrap()), "HIT");
    drop(leader);
    gates[0].open();
    assert!(follower.take(body.len()).unwrap() == body);
    let hit = wait_for(DEADLINE, || {
        objects(&server.dir().join("cache")).first().cloned()
    });
    assert!(hit.is_some());
    assert_eq!(status(&get(&server, "/")), "HIT");
    assert_eq!(origin.connections(), 1);
}

/// Whoever fetches a response for others does not hold them up, however slow its own client is.
#[test]
fn a_slow_first_client_holds_up_nobody() {
    let body = pattern(9, 6_000_000);
    for slow in ["X-Slow: 0", "X-Slow: 1k", "Accept-Encoding: gzip"] {
        let sent = body.clone();
        let origin = Origin::respond(move |_| ok("Content-Type: text/css\r\n", &sent));
        let limit = "limit_rate $http_x_slow; gzip on; gzip_types text/css;";
        let server = cached(&origin, "", &format!("{LOCK} {limit}"));
        let leader = first(&server, &format!("{slow}\r\n"));
        let mut follower = begin(&server, "");
        let head = follower.response_head().unwrap();
        assert_eq!(status(&head), "HIT", "{slow}");
        assert!(follower.take(body.len()).unwrap() == body, "{slow}");
        let stored = wait_for(DEADLINE, || {
            objects(&server.dir().join("cache")).first().cloned()
        });
        assert!(stored.is_some(), "{slow}");
        assert_eq!(origin.requests().len(), 1, "{slow}");
        drop(leader);
    }
}

#[test]
fn a_slow_follower_holds_up_nobody() {
    let body = pattern(10, 6_000_000);
    let (steps, gates) = in_pieces("", &body, &[10, body.len()]);
    let origin = Origin::script(vec![steps]);
    let server = cached(&origin, "", LOCK);
    let mut leader = first(&server, "");
    let mut follower = begin(&server, "");
    follower.response_head().unwrap();
    gates[0].open();
    assert!(leader.take(body.len()).unwrap() == body);
    assert_eq!(status(&get(&server, "/")), "HIT");
    assert!(follower.take(body.len()).unwrap() == body);
}

#[test]
fn other_variants_are_not_followed() {
    let (steps, gates) = in_pieces("Vary: X-V\r\n", b"is 1", &[2, 4]);
    let other = ok("Vary: X-V\r\n", "is 2");
    let origin = Origin::script(vec![steps, vec![Step::Read, Step::Send(other)]]);
    let server = cached(&origin, "", LOCK);
    let mut one = first(&server, "X-V: 1\r\n");
    let mut same = begin(&server, "X-V: 1\r\n");
    assert_eq!(status(&same.response_head().unwrap()), "HIT");
    let two = ask(&server, "GET", "/", "X-V: 2\r\n");
    assert_eq!((status(&two), two.text()), ("MISS", "is 2".into()));
    gates[0].open();
    for client in [&mut one, &mut same] {
        assert_eq!(client.take(4).unwrap(), b"is 1");
    }
    for v in ["1", "2"] {
        let r = ask(&server, "GET", "/", &format!("X-V: {v}\r\n"));
        assert_eq!((status(&r), r.text()), ("HIT", format!("is {v}")));
    }
    assert_eq!(origin.connections(), 2);
}

#[test]
fn without_streaming_others_wait_for_the_end() {
    let (steps, gates) = in_pieces("", b"0123456789", &[5, 10]);
    let origin = Origin::script(vec![steps, vec![Step::Read, Step::Send(ok("", "own"))]]);
    let lock = "proxy_cache_lock on; proxy_cache_lock_timeout 50ms; proxy_cache_lock_stream off;";
    let server = cached(&origin, "", lock);
    let mut leader = first(&server, "");
    assert_eq!(get(&server, "/").text(), "own");
    gates[0].open();
    assert_eq!(leader.take(10).unwrap(), b"0123456789");
}
