//! Many requests for one response that is not there yet.

use super::common::client::Client;
use super::common::origin::{Gate, Origin};
use super::{cached, get, ok, pattern, status};

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
