//! Origins that do not do what they should.

use std::io::ErrorKind;
use std::time::Duration;

use super::common::client::{Client, Framing, exchange};
use super::common::origin::{Gate, Origin, Step};
use super::{alive, error_logged, get, get_once, logged, ok, pattern, proxy};

const HEAD: &str = "while reading response header from upstream, client: 127.0.0.1, server: localhost, request: \"GET /x HTTP/1.1\", \
                    upstream: \"http://127.0.0.1:";

/// One request to an origin that plays `steps`: the status of the answer that takes its place, and what is logged.
fn fails(steps: Vec<Step>, status: u16, level: &str, message: &str) {
    let origin = Origin::script(vec![steps]);
    let server = proxy(&origin, "");
    let response = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!(response.status, status, "{message}");
    assert_eq!(
        response.header("Server").map(|s| s.contains("127.0.0.1")),
        Some(false)
    );
    assert!(
        !response.text().contains(&origin.port().to_string()),
        "the origin shows"
    );
    logged(
        &server,
        &format!("GET /x {status} {} {status}", response.body.len()),
    );
    let port = origin.port().to_string();
    error_logged(
        &server,
        &[level, message, HEAD, &port, "/x\", host: \"localhost\""],
    );
    alive(&server);
}

#[test]
fn no_answer() {
    fails(
        vec![Step::Read, Step::WaitForClose],
        504,
        "[error]",
        "upstream timed out (110: Connection timed out) ",
    );
}

#[test]
fn closes_at_once() {
    fails(
        vec![Step::Read, Step::Close],
        502,
        "[error]",
        "upstream prematurely closed connection ",
    );
}

#[test]
fn closes_within_the_head() {
    let head = Step::send("HTTP/1.1 200 OK\r\nContent-Le");
    fails(
        vec![Step::Read, head, Step::Close],
        502,
        "[error]",
        "upstream prematurely closed connection ",
    );
}

#[test]
fn stalls_within_the_head() {
    let head = Step::send("HTTP/1.1 200 OK\r\n");
    fails(
        vec![Step::Read, head, Step::WaitForClose],
        504,
        "[error]",
        "upstream timed out (110: Connection timed out) ",
    );
}

#[test]
fn resets() {
    fails(
        vec![Step::Read, Step::Reset],
        502,
        "[error]",
        "recv() failed (104: Connection reset by peer) ",
    );
}

#[test]
fn head_is_too_big() {
    let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(9000));
    fails(
        vec![Step::Read, Step::send(head), Step::WaitForClose],
        502,
        "[error]",
        "upstream sent too big header ",
    );
}

#[test]
fn interim_responses_without_end() {
    for interim in [
        &b"HTTP/1.1 102 Processing\r\n\r\n"[..],
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    ] {
        fails(
            vec![
                Step::Read,
                Step::Send(interim.repeat(8000)),
                Step::WaitForClose,
            ],
            502,
            "[error]",
            "upstream sent too many interim responses ",
        );
    }
}

#[test]
fn field_is_garbage() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\0: x\r\n\r\nx";
    fails(
        vec![Step::Read, Step::send(head), Step::WaitForClose],
        502,
        "[error]",
        "upstream sent invalid header",
    );
}

#[test]
fn both_framings() {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let message =
        "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time ";
    fails(
        vec![Step::Read, Step::send(head), Step::WaitForClose],
        502,
        "[error]",
        message,
    );
}

#[test]
fn two_lengths() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc";
    fails(
        vec![Step::Read, Step::send(head), Step::WaitForClose],
        502,
        "[error]",
        "upstream sent duplicate header line: ",
    );
}

#[test]
fn nobody_listens() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    drop(origin);
    let response = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!(response.status, 502);
    error_logged(
        &server,
        &[
            "[error]",
            "connect() failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1",
        ],
    );
    logged(&server, &format!("GET /x 502 {} 502", response.body.len()));
}

/// One request to an origin whose body breaks off: what came of it, never looking complete.
fn breaks_off(conf: &str, steps: Vec<Step>, message: &str) -> Vec<u8> {
    // where nothing is buffered, nginx may have begun to send when it notices
    let doing = if conf.is_empty() {
        "while reading upstream"
    } else {
        "while "
    };
    let origin = Origin::script(vec![steps]);
    let server = proxy(&origin, conf);
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    let error = client.response("GET").unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
    let head = client.partial().expect("a head");
    assert_eq!(head.status, 200);
    error_logged(
        &server,
        &[
            "[error]",
            message,
            doing,
            ", client: 127.0.0.1, server: localhost",
        ],
    );
    let line = server.wait_for_text("short.log", "GET /x 200 ");
    assert!(line.ends_with(" 200\n"), "{line}");
    alive(&server);
    client.buffered().to_vec()
}

#[test]
fn shorter_than_its_length() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    for conf in ["", "proxy_buffering off;"] {
        let steps = vec![Step::Read, Step::send(response), Step::Close];
        assert_eq!(
            breaks_off(conf, steps, "upstream prematurely closed connection "),
            b"abc"
        );
    }
}

#[test]
fn no_last_chunk() {
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for conf in ["", "proxy_buffering off;"] {
        let steps = vec![Step::Read, Step::send(response), Step::Close];
        let rest = breaks_off(conf, steps, "upstream prematurely closed connection ");
        assert!(!rest.windows(3).any(|w| w == b"0\r\n"), "{rest:?}");
    }
}

#[test]
fn bad_chunk() {
    let read = Gate::new();
    let good = Step::send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let bad = vec![
        Step::Read,
        good,
        Step::Wait(read.clone()),
        Step::send("zz\r\n"),
        Step::WaitForClose,
    ];
    let origin = Origin::script(vec![bad]);
    let server = proxy(&origin, "proxy_buffering off;");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    assert_eq!(client.response_head().unwrap().status, 200);
    assert_eq!(client.take(8).unwrap(), b"3\r\nabc\r\n");
    read.open();
    assert!(client.read_to_close().unwrap().is_empty());
    error_logged(
        &server,
        &[
            "[error]",
            "upstream sent invalid chunked response ",
            ", client: 127.0.0.1",
        ],
    );
    alive(&server);
}

#[test]
fn stalls_within_the_body() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    let steps = vec![Step::Read, Step::send(response), Step::WaitForClose];
    breaks_off("", steps, "upstream timed out (110: Connection timed out) ");
}

#[test]
fn resets_within_the_body() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    let read = Gate::new();
    let steps = vec![
        Step::Read,
        Step::send(response),
        Step::Wait(read.clone()),
        Step::Reset,
    ];
    let origin = Origin::script(vec![steps]);
    let server = proxy(&origin, "proxy_buffering off;");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    assert_eq!(client.response_head().unwrap().status, 200);
    // a reset destroys what was not read: it comes once everything was
    assert_eq!(client.take(3).unwrap(), b"abc");
    read.open();
    assert!(client.read_to_close().unwrap_or_default().is_empty());
    error_logged(
        &server,
        &[
            "[error]",
            "(104: Connection reset by peer) while ",
            ", client: 127.0.0.1",
        ],
    );
}

#[test]
fn dribbles_its_head() {
    let dribble = Step::Dribble {
        bytes: ok("dribbled").into_bytes(),
        size: 1,
        every: Duration::from_millis(2),
    };
    let origin = Origin::script(vec![vec![Step::Read, dribble]]);
    let server = proxy(&origin, "");
    let response = exchange(server.addr(8080), &get_once("/x"));
    assert_eq!(
        (response.status, response.text().as_str()),
        (200, "dribbled")
    );
    logged(&server, "GET /x 200 8 200");
}

#[test]
fn a_good_one_is_asked_again_on_the_same_connection() {
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send(ok("one")),
        Step::Read,
        Step::send(ok("two")),
    ]]);
    let server = proxy(&origin, "");
    for text in ["one", "two"] {
        assert_eq!(exchange(server.addr(8080), &get_once("/x")).text(), text);
    }
    assert_eq!(origin.connections(), 1);
}

/// An origin that says more than it should is not asked again on that connection.
fn says_too_much(first: &str, body: &str, log: &str, message: Option<&str>) {
    let origin = Origin::script(vec![
        vec![Step::Read, Step::send(first), Step::WaitForClose],
        vec![Step::Read, Step::send(ok("clean"))],
    ]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    assert_eq!(client.response("GET").unwrap().text(), body);
    client.send(get("/y")).unwrap();
    assert_eq!(client.response("GET").unwrap().text(), "clean");
    assert_eq!(origin.connections(), 2);
    if let Some(message) = message {
        error_logged(
            &server,
            &[
                "[warn]",
                message,
                "while reading upstream, client: 127.0.0.1",
            ],
        );
    }
    logged(&server, log);
}

#[test]
fn more_than_its_length() {
    let first = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    says_too_much(
        first,
        "abc",
        "GET /x 200 3 200",
        Some("upstream sent more data than specified in \"Content-Length\" header "),
    );
}

#[test]
fn more_than_the_last_chunk() {
    let first = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    says_too_much(
        first,
        "abc",
        "GET /x 200 13 200",
        Some("upstream sent data after final chunk "),
    );
}

#[test]
fn a_body_where_none_may_be() {
    let first = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    says_too_much(first, "", "GET /x 204 0 204", None);
}

#[test]
fn closes_a_kept_connection_meanwhile() {
    let origin = Origin::script(vec![
        vec![Step::Read, Step::send(ok("one")), Step::Close],
        vec![Step::Read, Step::send(ok("two"))],
    ]);
    let server = proxy(&origin, "");
    for text in ["one", "two"] {
        assert_eq!(exchange(server.addr(8080), &get_once("/x")).text(), text);
    }
    assert_eq!(origin.connections(), 2);
}

#[test]
fn answers_before_it_has_the_body() {
    let refusal =
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    let origin = Origin::script(vec![vec![
        Step::ReadHead,
        Step::send(refusal),
        Step::WaitForClose,
    ]]);
    let server = proxy(&origin, "client_max_body_size 0;");
    let body = 4 << 20;
    let mut request = format!(
        "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {body}\r\n\r\n"
    )
    .into_bytes();
    request.extend(pattern(body));
    let mut client = Client::connect(server.addr(8080));
    let _ = client.send(&request);
    let response = client.response("POST").unwrap();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    logged(&server, "POST /x 413 3 413");
}

#[test]
fn no_length_and_close_is_a_whole_answer() {
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send("HTTP/1.1 200 OK\r\n\r\nall"),
        Step::Close,
    ]]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!(
        (response.framing, response.text().as_str()),
        (Framing::Chunked, "all")
    );
    assert!(response.keeps_alive());
}
