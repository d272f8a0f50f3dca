//! Groups of origins: who is asked, what happens when one fails, and what is told of it.

mod common;

#[path = "upstream/dying.rs"]
mod dying;

use common::client::{Client, Response, exchange, get};
use common::origin::{Gate, Origin, Step};
use common::proc::{Couloir, Server, Setup};
use std::time::{Duration, Instant};

/// A proxy with this `upstream {}` body and these statements in its location; `X-…` headers tell of the tries.
fn proxy(origins: &[&Origin], upstream: &str, location: &str) -> Server {
    let mut setup = Setup::new(&format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             upstream u {{ {upstream} }}
             server {{ listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 client_body_buffer_size 16k;
                 add_header X-Addr $upstream_addr always;
                 add_header X-Status $upstream_status always;
                 add_header X-Failure $upstream_failure always;
                 add_header X-Queue $upstream_queue_time always;
                 add_header X-Last $upstream_last_addr always;
                 location / {{ proxy_pass http://u; {location} }} }} }}"
    ));
    for (i, origin) in origins.iter().enumerate() {
        setup = setup.set(&format!("ORIGIN{i}"), origin.addr());
    }
    setup.start(&Couloir::program())
}

fn ask(server: &Server, path: &str) -> Response {
    get(server.addr(8080), path, "localhost")
}

/// A response that keeps the connection.
fn ok(body: &str) -> Step {
    Step::send(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// An origin that answers everything with its name.
fn named(name: &'static str) -> Origin {
    Origin::respond(move |_| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
            name.len()
        )
        .into_bytes()
    })
}

fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

/// A port that nobody listens on, as long as the value lives.
fn closed() -> common::ports::Port {
    common::ports::Port::reserve()
}

#[test]
fn a_stale_connection_is_replaced_unseen() {
    let first = vec![Step::Read, ok("one"), Step::Read, Step::Reset];
    let origin = Origin::script(vec![first, vec![Step::Read, ok("two"), Step::WaitForClose]]);
    let server = proxy(
        &[&origin],
        "server %%ORIGIN0%%;",
        "proxy_next_upstream off;",
    );
    assert_eq!(ask(&server, "/1").text(), "one");
    let second = ask(&server, "/2");
    assert_eq!((second.status, second.text().as_str()), (200, "two"));
    assert_eq!(second.header("X-Addr"), Some(&*origin.addr().to_string()));
    assert_eq!(second.header("X-Status"), Some("200"));
    assert_eq!(second.header("X-Failure"), None);
    assert!(!server.log().contains("[error]"), "{}", server.log());
}

#[test]
fn a_post_is_not_sent_twice() {
    let first = vec![Step::Read, ok("one"), Step::Read, Step::Reset];
    let origin = Origin::script(vec![first, vec![Step::Read, ok("two")]]);
    let server = proxy(&[&origin], "server %%ORIGIN0%%;", "");
    assert_eq!(ask(&server, "/1").text(), "one");
    let request =
        "POST /2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
    let second = exchange(server.addr(8080), request);
    assert_eq!(second.status, 502);
    assert_eq!(second.header("X-Failure"), Some("stale_keepalive"));
    assert_eq!(origin.requests().len(), 2);
    server.wait_for_text("error.log", "upstream_failure: stale_keepalive");
}

#[test]
fn failures_have_names() {
    let refused = closed();
    let silent = Origin::script(vec![vec![Step::Read, Step::WaitForClose]]);
    let closing = Origin::script(vec![vec![Step::Read, Step::Close]]);
    let resetting = Origin::script(vec![vec![Step::Read, Step::Reset]]);
    let lying = Origin::script(vec![vec![
        Step::Read,
        Step::send("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        Step::WaitForClose,
    ]]);
    let busy = Origin::respond(|_| status(503));
    let server = proxy(
        &[&silent, &closing, &resetting, &lying, &busy],
        &format!("server 127.0.0.1:{};", refused.number()),
        "} location /silent { proxy_pass http://%%ORIGIN0%%; proxy_read_timeout 100ms;
         } location /closing { proxy_pass http://%%ORIGIN1%%;
         } location /resetting { proxy_pass http://%%ORIGIN2%%;
         } location /lying { proxy_pass http://%%ORIGIN3%%;
         } location /busy { proxy_pass http://%%ORIGIN4%%; proxy_next_upstream http_503;",
    );
    for (path, code, reason) in [
        ("/", 502, Some("refused")),
        ("/silent", 504, Some("read_timeout")),
        ("/closing", 502, Some("closed_before_header")),
        ("/resetting", 502, Some("reset_before_header")),
        ("/lying", 502, Some("bad_header")),
        ("/busy", 503, None),
    ] {
        let response = ask(&server, path);
        assert_eq!(
            (response.status, response.header("X-Failure")),
            (code, reason),
            "{path}"
        );
        if let Some(reason) = reason {
            server.wait_for_text("error.log", &format!("upstream_failure: {reason}\n"));
        }
    }
}

#[test]
fn tries_are_listed() {
    let (refused, good) = (closed(), named("good"));
    let upstream = format!(
        "server 127.0.0.1:{} max_fails=0; server %%ORIGIN0%%;",
        refused.number()
    );
    let server = proxy(&[&good], &upstream, "");
    let response = ask(&server, "/");
    assert_eq!(response.text(), "good");
    let both = format!("127.0.0.1:{}, {}", refused.number(), good.addr());
    assert_eq!(response.header("X-Addr"), Some(&*both));
    assert_eq!(response.header("X-Status"), Some("502, 200"));
    assert_eq!(response.header("X-Last"), Some(&*good.addr().to_string()));
    assert_eq!(response.header("X-Failure"), Some("refused"));
}

#[test]
fn a_large_body_is_sent_again_from_its_file() {
    let broken = Origin::script(vec![vec![Step::Read, Step::Reset]]);
    let good = Origin::echo(&[]);
    let server = proxy(
        &[&broken, &good],
        "server %%ORIGIN0%%; server %%ORIGIN1%% backup;",
        "client_max_body_size 10m;",
    );
    let body: String = (0..60_000).map(|i| format!("{i:07}\n")).collect();
    let request = format!(
        "PUT /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let response = exchange(server.addr(8080), &request);
    assert_eq!(response.status, 200);
    assert!(response.text().ends_with(&body));
    assert_eq!(broken.wait_for_requests(1)[0].body(), body.as_bytes());
}

#[test]
fn all_down_is_told_at_once_and_one_request_asks_after_them() {
    let (one, two) = (closed(), closed());
    let upstream = format!(
        "server 127.0.0.1:{} fail_timeout=1s; server 127.0.0.1:{} fail_timeout=1s;",
        one.number(),
        two.number()
    );
    let server = proxy(&[], &upstream, "");
    let begun = Instant::now();
    assert_eq!(ask(&server, "/").header("X-Status"), Some("502, 502"));
    for _ in 0..20 {
        let response = ask(&server, "/");
        assert_eq!(
            (response.status, response.header("X-Addr")),
            (502, Some("u"))
        );
        assert_eq!(response.header("X-Failure"), Some("no_live"));
    }
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    // both come back: one request each finds out
    let back = [&one, &two].map(|port| {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            use std::io::{Read, Write};
            let mut buf = [0; 1000];
            let _ = stream.read(&mut buf);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback");
            let _ = stream.read(&mut buf);
        })
    });
    let recovered = common::wait_for(common::DEADLINE, || {
        let response = ask(&server, "/");
        (response.status == 200).then_some(response)
    });
    assert_eq!(recovered.expect("recovery").text(), "back");
    drop(server);
    for thread in back {
        // the second one may not have been asked
        drop(thread);
    }
}

#[test]
fn requests_wait_in_the_queue() {
    let (arrived, gate) = (Gate::new(), Gate::new());
    let slow = vec![
        Step::Read,
        Step::Open(arrived.clone()),
        Step::Wait(gate.clone()),
        ok("slow"),
        Step::Read,
        ok("queued"),
        Step::WaitForClose,
    ];
    let origin = Origin::script(vec![slow]);
    let server = proxy(
        &[&origin],
        "server %%ORIGIN0%% max_conns=1; queue 1 timeout=9s;",
        "",
    );
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut first = Client::connect(server.addr(8080));
    first.send(request).unwrap();
    assert!(arrived.wait());
    let mut second = Client::connect(server.addr(8080));
    second.send(request).unwrap();
    // the queue has one place: once the second request has it, a third one is refused
    let refused = common::wait_for(common::DEADLINE, || {
        let response = ask(&server, "/third");
        (response.status == 502).then_some(response)
    });
    let refused = refused.expect("a full queue");
    assert_eq!(refused.header("X-Failure"), Some("max_conns"));
    gate.open();
    assert_eq!(first.response("GET").unwrap().text(), "slow");
    let queued = second.response("GET").unwrap();
    assert_eq!((queued.status, queued.text().as_str()), (200, "queued"));
    assert!(queued.header("X-Queue").is_some_and(|time| time != "-"));
}

#[test]
fn no_retry_without_a_budget() {
    let (refused, good) = (closed(), named("good"));
    let server_lines = format!(
        "server 127.0.0.1:{} max_fails=0; server %%ORIGIN0%%;",
        refused.number()
    );
    let server = proxy(
        &[&good],
        &format!("{server_lines} retry_budget 0% min=0;"),
        "",
    );
    let mut codes = [ask(&server, "/").status, ask(&server, "/").status];
    codes.sort_unstable();
    assert_eq!(codes, [200, 502]);

    let server = proxy(
        &[&good],
        &format!("{server_lines} retry_budget 100% min=0;"),
        "",
    );
    for _ in 0..6 {
        assert_eq!(ask(&server, "/").status, 200);
    }
}

#[test]
fn a_failing_server_is_ejected() {
    let (bad, good) = (Origin::respond(|_| status(500)), named("good"));
    let server = proxy(
        &[&bad, &good],
        "server %%ORIGIN0%%; server %%ORIGIN1%%; outlier_detection consecutive_errors=3;",
        "",
    );
    let codes: Vec<u16> = (0..20).map(|_| ask(&server, "/").status).collect();
    assert_eq!(
        codes.iter().filter(|code| **code == 500).count(),
        3,
        "{codes:?}"
    );
    assert_eq!(bad.requests().len(), 3);
    let line = format!(
        "upstream server {} is ejected for 30 s: errors in a row",
        bad.addr()
    );
    server.wait_for_text("error.log", &line);
}

#[test]
fn a_slow_server_gets_little() {
    let slow = Origin::respond(|_| {
        // what is measured is the time itself
        std::thread::park_timeout(Duration::from_millis(40));
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow".to_vec()
    });
    let quick = named("quick");
    for method in [
        "ewma",
        "least_time header",
        "least_time last_byte",
        "random two least_time=header",
    ] {
        let server = proxy(
            &[&slow, &quick],
            &format!("{method}; server %%ORIGIN0%%; server %%ORIGIN1%%;"),
            "",
        );
        let all: Vec<String> = (0..24).map(|_| ask(&server, "/").text()).collect();
        let slow = all.iter().filter(|text| *text == "slow").count();
        assert!(slow <= 6, "{method}: {all:?}");
    }
}

#[test]
fn origins_are_told_who_the_client_is() {
    let origin = Origin::script(vec![vec![Step::ReadHead, ok("x"), Step::WaitForClose]]);
    let server = proxy(&[&origin], "server %%ORIGIN0%%;", "proxy_protocol v1;");
    for n in 1..=2 {
        let mut client = Client::connect(server.addr(8080));
        let port = client.stream().local_addr().unwrap().port();
        client
            .send("GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert_eq!(client.response("GET").unwrap().text(), "x");
        let line = format!(
            "PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\nGET /x HTTP/1.1\r\n",
            server.port(8080)
        );
        let requests = origin.wait_for_requests(n);
        let raw = String::from_utf8_lossy(&requests[n - 1].raw).into_owned();
        assert!(raw.starts_with(&line), "{raw}");
        assert_eq!(origin.connections(), n, "not shared by clients");
    }
}

#[test]
fn connections_with_different_local_addresses_are_not_mixed() {
    let origin = named("x");
    let server = proxy(
        &[&origin],
        "server %%ORIGIN0%%; keepalive 8;",
        "proxy_bind $arg_from;",
    );
    for _ in 0..2 {
        for from in ["127.0.0.1", "127.0.0.2"] {
            assert_eq!(ask(&server, &format!("/?from={from}")).status, 200);
        }
    }
    assert_eq!(origin.connections(), 2);
}

#[test]
fn connections_are_used_again() {
    let origins = [named("a"), named("b"), named("c")];
    let server = proxy(
        &[&origins[0], &origins[1], &origins[2]],
        "server %%ORIGIN0%%; server %%ORIGIN1%%; server %%ORIGIN2%%;",
        "",
    );
    for _ in 0..60 {
        assert_eq!(ask(&server, "/").status, 200);
    }
    let opened: usize = origins.iter().map(Origin::connections).sum();
    assert!(opened <= 6, "{opened}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (upstream, message) in [
        (
            "hash $uri; server 127.0.0.1 backup;",
            "balancing method does not support parameter \"backup\"",
        ),
        (
            "random; server 127.0.0.1 slow_start=1s;",
            "balancing method does not support parameter \"slow_start=1s\"",
        ),
        (
            "hash $uri ketama; server 127.0.0.1;",
            "invalid parameter \"ketama\"",
        ),
        (
            "least_time body; server 127.0.0.1;",
            "invalid value \"body\"",
        ),
        (
            "least_time header all; server 127.0.0.1;",
            "invalid parameter \"all\"",
        ),
        (
            "random three; server 127.0.0.1;",
            "invalid parameter \"three\"",
        ),
        ("queue 0; server 127.0.0.1;", "invalid parameter \"0\""),
        ("server 127.0.0.1 route=;", "route is empty"),
        (
            "server 127.0.0.1; sticky route uri;",
            "invalid variable name \"uri\"",
        ),
        (
            "server 127.0.0.1; sticky cookie '' path=/;",
            "\"sticky\" directive empty cookie name",
        ),
        (
            "server 127.0.0.1; sticky learn lookup=$arg_a zone=z:1m;",
            "\"create\" parameter is not specified",
        ),
        (
            "server 127.0.0.1; sticky learn create=$arg_a lookup=$arg_a zone=z:1k;",
            "zone is too small",
        ),
        (
            "server 127.0.0.1; outlier_detection latency=0.5;",
            "invalid parameter \"latency=0.5\"",
        ),
        (
            "server 127.0.0.1; retry_budget 101%;",
            "invalid parameter \"101%\"",
        ),
        (
            "server 127.0.0.1; zone z;",
            "zero size shared memory zone \"z\"",
        ),
    ] {
        let conf = format!("events {{ }} http {{ upstream u {{ {upstream} }} }}");
        let (exit, said) = Setup::new(&conf).test(&Couloir::program());
        assert!(
            !exit.success() && said.contains(message),
            "{upstream}: {said}"
        );
    }
}

/// A kept connection speaks one protocol.
#[test]
fn protocols_share_no_connections() {
    let server = Setup::new(
        "%%TEST_GLOBALS%% events { }
         http { %%TEST_GLOBALS_HTTP%%
             upstream u { server 127.0.0.1:%%PORT_8081%%; keepalive 8; }
             server { listen 127.0.0.1:%%PORT_8081%%; http2 on; default_type text/plain;
                 return 200 '$server_protocol $connection'; }
             server { listen 127.0.0.1:%%PORT_8080%%;
                 location /h1 { proxy_http_version 1.1; proxy_set_header Connection ''; proxy_pass http://u; }
                 location /h2 { proxy_http_version 2; proxy_pass http://u; }
                 location /again { proxy_http_version 2; proxy_pass http://u; }
                 location /g { grpc_pass grpc://u; } } }",
    )
    .start(&Couloir::program());
    let text = |path: &str| get(server.addr(8080), path, "localhost").text();
    let (h1, h2) = (text("/h1"), text("/h2"));
    assert!(
        h1.starts_with("HTTP/1.1 ") && h2.starts_with("HTTP/2.0 "),
        "{h1} {h2}"
    );
    // `/g` and `/h2` may use the same one
    for _ in 0..3 {
        assert!(text("/g").starts_with("HTTP/2.0 "));
        assert_eq!(text("/h1"), h1);
        assert!(text("/again").starts_with("HTTP/2.0 "));
        assert!(text("/h2").starts_with("HTTP/2.0 "));
    }
    assert_eq!(
        server.log().matches("[error]").count(),
        0,
        "{}",
        server.log()
    );
}
