//! Clients that are slow, leave early, or are merely old.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::common::client::{Client, Framing};
use super::common::origin::{Gate, Origin, Step};
use super::common::wait_for;
use super::{alive, error_logged, get, get_once, logged, ok, pattern, proxy};

/// Sends a byte at a time until the server has had enough; how long that took.
fn dribble(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    for byte in bytes.iter().cycle() {
        // a read that ends or fails for another reason than its timeout: the server has closed
        match stream.read(&mut [0]) {
            Ok(0) => break,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            _ => break,
        }
        if stream.write_all(&[*byte]).is_err() || begun.elapsed() > Duration::from_secs(8) {
            break;
        }
    }
    begun.elapsed()
}

#[test]
fn a_dribbled_head_has_one_deadline() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send("GET / HTTP/1.1\r\n").unwrap();
    let mut stream = client.stream().try_clone().unwrap();
    let took = dribble(&mut stream, b"X: y\r\n");
    assert!(took < Duration::from_secs(4), "{took:?}");
    logged(&server, "GET / 408 0 -");
    error_logged(
        &server,
        &[
            "[info]",
            "client timed out (110: Connection timed out) while reading client request headers, client: 127.0.0.1",
        ],
    );
    assert!(origin.requests().is_empty());
    alive(&server);
}

#[test]
fn a_dribbled_line_has_one_deadline() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let client = Client::connect(server.addr(8080));
    let mut stream = client.stream().try_clone().unwrap();
    let took = dribble(&mut stream, b"GET");
    assert!(took < Duration::from_secs(4), "{took:?}");
    error_logged(
        &server,
        &[
            "[info]",
            "client timed out (110: Connection timed out) while reading client request line, client: 127.0.0.1",
        ],
    );
    logged(&server, "- - 408 0 -");
}

#[test]
fn leaves_within_its_head() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send("GET / HTTP/1.1\r\nHost: lo").unwrap();
    drop(client);
    error_logged(
        &server,
        &[
            "[info]",
            "client prematurely closed connection while reading client request headers, client: 127.0.0.1",
        ],
    );
    logged(&server, "GET / 400 0 -");
    assert!(origin.requests().is_empty());
}

#[test]
fn dribbles_its_body() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client
        .send("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
        .unwrap();
    // nothing more comes: client_body_timeout
    assert!(client.read_to_close().unwrap().is_empty());
    logged(&server, "POST /x 408 0 -");
    assert!(origin.requests().is_empty());
}

#[test]
fn leaves_within_its_body() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client
        .send("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
        .unwrap();
    drop(client);
    error_logged(
        &server,
        &[
            "[info]",
            "client prematurely closed connection, client: 127.0.0.1",
        ],
    );
    logged(&server, "POST /x 400 0 -");
    assert!(origin.requests().is_empty());
}

#[test]
fn leaves_while_the_origin_works() {
    let closed = Gate::new();
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::WaitForClose,
        Step::Open(closed.clone()),
    ]]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    origin.wait_for_requests(1);
    drop(client);
    assert!(closed.wait(), "the origin is still asked");
    logged(&server, "GET /x 499 0 -");
    let message = "client prematurely closed connection, so upstream connection is closed too";
    error_logged(
        &server,
        &[
            "[info]",
            message,
            ", client: 127.0.0.1, server: localhost",
            "upstream: \"http://127.0.0.1:",
        ],
    );
}

#[test]
fn leaving_may_be_ignored() {
    let gate = Gate::new();
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::Wait(gate.clone()),
        Step::send(ok("late")),
    ]]);
    let server = proxy(&origin, "proxy_ignore_client_abort on;");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    origin.wait_for_requests(1);
    drop(client);
    gate.open();
    let line = server.wait_for_text("short.log", "GET /x ");
    assert!(line.ends_with(" 200\n"), "{line}");
}

#[test]
fn leaves_while_it_is_answered() {
    let big = 16 << 20;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {big}\r\n\r\n");
    let done = Gate::new();
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send(head),
        Step::Send(vec![b'x'; 1 << 20]),
        Step::WaitForClose,
        Step::Open(done.clone()),
    ]]);
    let server = proxy(&origin, "proxy_buffering off;");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    assert_eq!(client.response_head().unwrap().status, 200);
    drop(client);
    assert!(done.wait(), "the origin's connection stays open");
    let line = server.wait_for_text("short.log", "GET /x ");
    assert!(
        line.starts_with("GET /x 200 ") && line.ends_with(" 200\n"),
        "{line}"
    );
}

#[test]
fn a_slow_reader_does_not_hold_the_origin() {
    let body = pattern(24 << 20);
    let sent = Gate::new();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send(head),
        Step::Send(body.clone()),
        Step::Open(sent.clone()),
    ]]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    assert!(
        sent.wait(),
        "the origin could not send everything while the client did not read"
    );
    error_logged(
        &server,
        &[
            "[warn]",
            "an upstream response is buffered to a temporary file ",
            "while reading upstream, client: 127.0.0.1",
        ],
    );
    let response = client.response("GET").unwrap();
    assert!(
        response.body == body,
        "the body is not what the origin sent"
    );
    logged(&server, &format!("GET /x 200 {} 200", body.len()));
}

#[test]
fn a_slow_reader_of_chunks() {
    let body = pattern(12 << 20);
    let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in body.chunks(100_000) {
        response.extend(format!("{:x}\r\n", piece.len()).bytes());
        response.extend(piece);
        response.extend(b"\r\n");
    }
    response.extend(b"0\r\n\r\n");
    for conf in [
        "",
        "proxy_max_temp_file_size 0;",
        "proxy_buffering off;",
        "proxy_max_temp_file_size 1m;",
    ] {
        let origin = Origin::script(vec![vec![Step::Read, Step::Send(response.clone())]]);
        let server = proxy(&origin, conf);
        let mut client = Client::connect(server.addr(8080));
        client.send(get("/x")).unwrap();
        assert_eq!(client.response_head().unwrap().status, 200);
        origin.wait_for_requests(1);
        assert!(
            chunks(&mut client) == body,
            "{conf}: the body is not what the origin sent"
        );
        server.wait_for_text("short.log", "GET /x 200 ");
    }
}

/// Reads a chunked body whose head has been read.
fn chunks(client: &mut Client) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(client.take(1).unwrap());
        }
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap();
        body.extend(client.take(size).unwrap());
        assert_eq!(client.take(2).unwrap(), b"\r\n");
        if size == 0 {
            return body;
        }
    }
}

#[test]
fn pipelines_behind_a_long_body() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let body = pattern(20_000);
    let mut all = format!(
        "POST /one HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    all.extend_from_slice(&body);
    all.extend_from_slice(get("/two").as_bytes());
    let mut client = Client::connect(server.addr(8080));
    client.send(&all).unwrap();
    assert_eq!(client.response("POST").unwrap().status, 200);
    assert_eq!(client.response("GET").unwrap().status, 200);
    let requests = origin.wait_for_requests(2);
    assert_eq!(requests[0].body(), body);
    assert_eq!(requests[1].target(), "/two");
}

#[test]
fn pauses_between_requests() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "keepalive_timeout 3s;");
    let mut client = Client::connect(server.addr(8080));
    // longer than requests share a session, shorter than the connection is kept
    for pause in [0, 1300, 0] {
        client
            .stream()
            .set_read_timeout(Some(Duration::from_millis(pause.max(1))))
            .unwrap();
        assert!(client.stream().read(&mut [0]).is_err(), "closed too early");
        client
            .stream()
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        client.send(get("/")).unwrap();
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
    let begun = Instant::now();
    assert_eq!(client.read_to_close().unwrap(), b"");
    assert!(
        begun.elapsed() > Duration::from_millis(2500),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn pipelines() {
    let origin = Origin::respond(|request| ok(&request.target()).into_bytes());
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    let post = "POST /p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
    client
        .send(
            [
                get("/1"),
                get("/alive"),
                post.into(),
                get("/2"),
                get_once("/3"),
            ]
            .concat(),
        )
        .unwrap();
    for (method, text) in [
        ("GET", "/1"),
        ("GET", "alive"),
        ("POST", "/p"),
        ("GET", "/2"),
        ("GET", "/3"),
    ] {
        assert_eq!(client.response(method).unwrap().text(), text);
    }
    assert!(client.read_to_close().unwrap().is_empty());
    let log = server.wait_for_text("short.log", "/3 ");
    assert_eq!(
        log,
        "GET /1 200 2 200\nGET /alive 200 5 -\nPOST /p 200 2 200\nGET /2 200 2 200\nGET /3 200 2 200\n"
    );
}

#[test]
fn http_1_0_of_a_chunked_origin() {
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let origin = Origin::script(vec![vec![Step::Read, Step::send(chunked)]]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client
        .send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        .unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!(
        (response.framing, response.text().as_str()),
        (Framing::Close, "abcde")
    );
    assert_eq!(response.header("Transfer-Encoding"), None);
    assert_eq!(response.header("Connection"), Some("close"));
}

#[test]
fn head_has_no_body() {
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send(length),
        Step::Read,
        Step::send(chunked),
        Step::Read,
        Step::send(ok("get")),
    ]]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client
        .send("HEAD /1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert_eq!(
        client.response("HEAD").unwrap().header("Content-Length"),
        Some("1000")
    );
    client
        .send("HEAD /2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert_eq!(client.response("HEAD").unwrap().status, 200);
    client.send(get("/3")).unwrap();
    assert_eq!(client.response("GET").unwrap().text(), "get");
    assert_eq!(origin.connections(), 1);
}

#[test]
fn expects_100_continue() {
    let origin = Origin::echo(&[]);
    let server = proxy(&origin, "");
    let mut client = Client::connect(server.addr(8080));
    client.send("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let interim = client.response("POST").unwrap();
    assert_eq!(
        (interim.status, interim.line.as_str(), interim.headers.len()),
        (100, "HTTP/1.1 100 Continue", 0)
    );
    client.send("abc").unwrap();
    let response = client.response("POST").unwrap();
    assert!(response.text().ends_with("\r\n\r\nabc"));
    assert!(!response.text().contains("100-continue"));
}

#[test]
fn a_large_upload_goes_by_way_of_a_file() {
    let origin = Origin::respond(|request| ok(&request.body().len().to_string()).into_bytes());
    let server = proxy(
        &origin,
        "client_max_body_size 0; client_body_buffer_size 16k;",
    );
    let body = pattern(5 << 20);
    let mut client = Client::connect(server.addr(8080));
    client
        .send(format!(
            "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .unwrap();
    let (first, rest) = body.split_at(body.len() / 2);
    client.send(first).unwrap();
    assert!(
        origin.requests().is_empty(),
        "the origin is asked before the body is there"
    );
    client.send(rest).unwrap();
    assert_eq!(
        client.response("POST").unwrap().text(),
        body.len().to_string()
    );
    assert!(origin.requests()[0].body() == body);
    error_logged(
        &server,
        &[
            "[warn]",
            "a client request body is buffered to a temporary file ",
            ", client: 127.0.0.1",
        ],
    );
    // the file does not outlive its request
    let left = wait_for(super::common::DEADLINE, || {
        (files(&server.dir().join("client_body_temp")) == 0).then_some(())
    });
    assert!(left.is_some(), "temporary files are left");
}

fn files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| {
            if e.path().is_dir() {
                files(&e.path())
            } else {
                1
            }
        })
        .sum()
}

#[test]
fn an_unbuffered_upload_goes_straight_on() {
    let half = Gate::new();
    let origin = Origin::script(vec![vec![
        Step::ReadHead,
        Step::ReadBytes(1 << 20),
        Step::Open(half.clone()),
        Step::ReadBytes(1 << 20),
        Step::send(ok("got")),
    ]]);
    let server = proxy(
        &origin,
        "client_max_body_size 0; proxy_request_buffering off;",
    );
    let mut client = Client::connect(server.addr(8080));
    client
        .send(format!(
            "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            2 << 20
        ))
        .unwrap();
    client.send(vec![b'a'; 1 << 20]).unwrap();
    assert!(half.wait(), "the origin has not got what was sent");
    client.send(vec![b'b'; 1 << 20]).unwrap();
    assert_eq!(client.response("POST").unwrap().text(), "got");
    logged(&server, "POST /x 200 3 200");
}

#[test]
fn an_unbuffered_chunked_upload_stays_chunked() {
    let body = ["3\r\nabc\r\n", "2\r\nde\r\n0\r\n\r\n"];
    let origin = Origin::script(vec![vec![
        Step::ReadHead,
        Step::ReadBytes(body.concat().len()),
        Step::send(ok("got")),
    ]]);
    let server = proxy(&origin, "proxy_request_buffering off;");
    let mut client = Client::connect(server.addr(8080));
    client
        .send(format!(
            "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            body[0]
        ))
        .unwrap();
    let request = &origin.wait_for_requests(1)[0];
    assert_eq!(
        request.header("Transfer-Encoding").as_deref(),
        Some("chunked")
    );
    assert_eq!(request.header("Content-Length"), None);
    client.send(body[1]).unwrap();
    assert_eq!(client.response("POST").unwrap().text(), "got");
}
