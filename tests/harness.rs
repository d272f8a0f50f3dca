//! The test harness itself, tried on nginx: what it says about Couloir is only worth something if it holds there.

mod common;

use std::time::Duration;

use common::client::{self, Client, Framing};
use common::nginx::Nginx;
use common::origin::{Gate, Origin, Step};
use common::proc::{Server, Setup};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn proxy_to(origin: &Origin) -> Server {
    Setup::new(
        "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% server { listen 127.0.0.1:%%PORT_8080%%;
         location / { proxy_pass http://%%ORIGIN%%; proxy_read_timeout 5s; } } }",
    )
    .set("ORIGIN", origin.addr())
    .start(&Nginx::require())
}

#[test]
fn an_origin_that_resets_closes_or_says_nothing() {
    for last in [Step::Reset, Step::Close] {
        let origin = Origin::script(vec![vec![Step::Read, last]]);
        let server = proxy_to(&origin);
        assert_eq!(client::get(server.addr(8080), "/x", "h").status, 502);
        assert_eq!(origin.requests().len(), 1);
        server.wait_for_text("error.log", "while reading response header from upstream");
        assert!(server.stop().success());
    }
}

#[test]
fn scripts_go_by_connection() {
    let origin = Origin::script(vec![
        vec![Step::Read, Step::send(OK), Step::Close],
        vec![
            Step::Read,
            Step::Dribble {
                bytes: OK.into(),
                size: 7,
                every: Duration::from_millis(1),
            },
            Step::WaitForClose,
        ],
    ]);
    let server = proxy_to(&origin);
    for target in ["/1", "/2", "/3"] {
        assert_eq!(client::get(server.addr(8080), target, "h").text(), "hello");
    }
    let seen: Vec<_> = origin
        .requests()
        .iter()
        .map(|r| (r.connection, r.target()))
        .collect();
    assert_eq!(seen, [(0, "/1".into()), (1, "/2".into()), (2, "/3".into())]);
    assert_eq!(origin.connections(), 3);
}

#[test]
fn a_gate_holds_the_response() {
    let gate = Gate::new();
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::Wait(gate.clone()),
        Step::send(OK),
        Step::Close,
    ]]);
    let server = proxy_to(&origin);
    let mut client = Client::connect(server.addr(8080));
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let requests = origin.wait_for_requests(1);
    assert_eq!(requests[0].header("host"), Some(origin.addr().to_string()));
    assert!(client.buffered().is_empty());
    gate.open();
    let response = client.response("GET").unwrap();
    assert_eq!((response.status, response.framing), (200, Framing::Length));
    assert!(response.keeps_alive());
}

#[test]
fn reload_changes_the_answer() {
    let conf = |text: &str| {
        format!(
            "events {{ }} http {{ server {{ listen 127.0.0.1:%%PORT_8080%%;
             listen unix:%%TESTDIR%%/socket; return 200 {text}; }} }}"
        )
    };
    let mut server = Nginx::start(&conf("old"));
    let addr = server.addr(8080);
    assert_eq!(client::get(addr, "/", "h").text(), "old");
    server.write_conf(&conf("new"));
    assert_eq!(server.addr(8080), addr);
    server.reload();
    let answer = common::wait_for(common::DEADLINE, || {
        Some(client::get(addr, "/", "h").text()).filter(|text| text == "new")
    });
    assert!(answer.is_some(), "{}", server.log());
    assert!(server.quit().success());
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let failure = Setup::new("nonsense;")
        .try_start(&Nginx::require())
        .err()
        .unwrap();
    assert!(
        failure.contains("unknown directive \"nonsense\""),
        "{failure}"
    );
    let (status, text) = Setup::new("events { }\nhttp { nonsense; }").test(&Nginx::require());
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("nginx.conf:2"), "{text}");
}

#[test]
fn bodies_in_every_framing() {
    let origin = Origin::respond(|request| {
        match request.target().as_str() {
        "/chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n".to_vec(),
        "/close" => b"HTTP/1.1 200 OK\r\n\r\nrest".to_vec(),
        "/none" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        _ => request.body().to_vec(),
    }
    });
    for (target, framing, body, trailers) in [
        ("/chunked", Framing::Chunked, "abc", 1),
        ("/close", Framing::Close, "rest", 0),
        ("/none", Framing::None, "", 0),
    ] {
        let response = client::get(origin.addr(), target, "h");
        assert_eq!(
            (response.framing, response.text().as_str()),
            (framing, body),
            "{target}"
        );
        assert_eq!(response.trailers.len(), trailers);
    }
    let echo = Origin::echo(&["X-Origin: one"]);
    let post = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n";
    let response = client::exchange(echo.addr(), post);
    assert_eq!(response.text(), post);
    assert_eq!(response.header("x-origin"), Some("one"));
}
