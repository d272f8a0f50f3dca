//! Requests that are refused, in `request_parsing strict` and as nginx does, and what of the others an origin gets.

use super::common::client::Client;
use super::common::nginx::Nginx;
use super::common::origin::Origin;
use super::common::proc::Setup;
use super::{ask, is_clean, start};
use couloir::http::head::{Limits, Parser, Progress, RequestHead};
use couloir::http::strict;
use proptest::prelude::*;

/// Lines of a GET around what is tried.
fn get(fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into()
}

fn line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: h\r\n\r\n").into()
}

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}").into()
}

fn chunked(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// A request, the status in strict mode, and as nginx 1.31.5 answers; an origin answers 200.
fn table() -> Vec<(Vec<u8>, u16, u16)> {
    let mut t: Vec<(Vec<u8>, u16, u16)> = Vec::new();
    let mut add = |request: Vec<u8>, strict: u16, nginx: u16| t.push((request, strict, nginx));
    // request lines
    add(line("GET / HTTP/1.1"), 200, 200);
    add(line("GET / HTTP/1.2"), 200, 200);
    add(line("GET /a%20b?c=%0d HTTP/1.1"), 200, 200);
    add(line("GET http://h/ HTTP/1.1"), 200, 200);
    add(line("GET http://H?a HTTP/1.1"), 200, 200);
    add(line("GET  / HTTP/1.1"), 400, 200);
    add(line("GET /  HTTP/1.1"), 400, 200);
    add(line("GET / HTTP/1.1 "), 400, 200);
    add(line("GET /a b HTTP/1.1"), 400, 400);
    add(line("GET\t/ HTTP/1.1"), 400, 400);
    add(line("get / HTTP/1.1"), 400, 400);
    add(line("GET / http/1.1"), 400, 400);
    add(line("GET / HTTP/1"), 400, 400);
    add(line("GET / HTTP/01.1"), 400, 400);
    add(line("GET / HTTP/1.01"), 400, 200);
    add(line("GET / HTTP/ 1.1"), 400, 400);
    add(line("GET / HTTP/2.0"), 505, 505);
    add(line("GET / HTTP/9.9"), 505, 505);
    add(line("GET * HTTP/1.1"), 400, 400);
    add(line("GET h:80 HTTP/1.1"), 400, 400);
    add(line("CONNECT h:80 HTTP/1.1"), 405, 405);
    add(line("TRACE / HTTP/1.1"), 405, 405);
    add(line("GET HTTP/1.1"), 400, 400);
    add(line("GET /a#b HTTP/1.1"), 400, 200);
    add(line("GET /?a#b HTTP/1.1"), 400, 200);
    add(line("GET /a\\b HTTP/1.1"), 400, 200);
    add(line("GET /\u{e4} HTTP/1.1"), 400, 200);
    add(line("GET /?\u{e4} HTTP/1.1"), 400, 200);
    add(
        b"GET /\xc0\xaf HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        400,
        200,
    );
    add(line("GET /%c0%af HTTP/1.1"), 400, 200);
    add(line("GET /%e0%80%af HTTP/1.1"), 400, 200);
    add(line("GET /a%0d%0ab HTTP/1.1"), 400, 200);
    add(line("GET /%00 HTTP/1.1"), 400, 400);
    add(line("GET /\0 HTTP/1.1"), 400, 400);
    add(line("GET /\x01 HTTP/1.1"), 400, 400);
    add(line("GET /\x7f HTTP/1.1"), 400, 400);
    add(line("GET /?a=100% HTTP/1.1"), 400, 200);
    add(line("GET ftp://h/ HTTP/1.1"), 400, 200);
    add(line("GET http://other/ HTTP/1.1"), 400, 200);
    add(line("GET http://h:81/ HTTP/1.1"), 400, 200);
    add(line("GET http://u@h/ HTTP/1.1"), 400, 400);
    add(b"GET / HTTP/1.1\nHost: h\r\n\r\n".to_vec(), 400, 200);
    add(b"GET / HTTP/1.1\rHost: h\r\n\r\n".to_vec(), 400, 400);
    add(b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 200, 200);
    add(b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400, 200);
    add(
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        400,
        200,
    );
    add(
        b"\r\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        400,
        200,
    );
    add(b" GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400, 400);
    // field lines
    add(get("A: b\tc\u{e4}\r\n"), 200, 200);
    add(get("A:\tb\t\r\n"), 200, 200);
    add(get("A!#$%&'*+.^_`|~: b\r\n"), 200, 200);
    add(get("A_B: b\r\n"), 200, 200);
    add(get("A: b\n"), 400, 200);
    add(b"GET / HTTP/1.1\r\nHost: h\r\n\n".to_vec(), 400, 200);
    add(get("A: b\r\r\n"), 400, 200);
    add(get("A: b\rc\r\n"), 400, 400);
    add(get("A: b\0\r\n"), 400, 400);
    add(get("A: b\x01\r\n"), 400, 200);
    add(get("A: \x07b\x0bc\x7f\r\n"), 400, 200);
    add(get("Cookie: a=\x1bb\r\n"), 400, 200);
    add(get("A\r\n"), 400, 200);
    add(get("A[b: c\r\n"), 400, 200);
    add(get("\"A\": c\r\n"), 400, 200);
    add(get("\u{e4}: b\r\n"), 400, 200);
    add(get("A : b\r\n"), 400, 400);
    add(get("A\t: b\r\n"), 400, 400);
    add(get(": b\r\n"), 400, 400);
    add(get(" A: b\r\n"), 400, 400);
    add(get("A: b\r\n c\r\n"), 400, 400);
    add(get("A: b\r\n\tc\r\n"), 400, 400);
    // hosts
    add(b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400, 400);
    add(b"GET / HTTP/1.0\r\n\r\n".to_vec(), 200, 200);
    add(b"GET / HTTP/1.1\r\nHost:\r\n\r\n".to_vec(), 400, 400);
    for host in ["u@h", "h/p", "h, i", "h i", "h:80:80", "h:99999", "[::1"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        add(request.into(), 400, 400);
    }
    for host in ["[1]", "h%4", ".h"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        add(request.into(), 400, 200);
    }
    add(get("Host: h\r\n"), 400, 400);
    add(get("Host: i\r\n"), 400, 400);
    // lengths
    add(post("Content-Length: 5\r\n", "hello"), 200, 200);
    add(post("Content-Length:  5 \r\n", "hello"), 200, 200);
    for length in [
        "",
        "+5",
        "-5",
        "-0",
        "0x5",
        "0o5",
        "5, 5",
        "5,6",
        "5 5",
        "5_0",
        "abc",
        "5.0",
        "\t5",
        "99999999999999999999",
        "9223372036854775808",
        "5\x0b",
    ] {
        add(
            post(&format!("Content-Length: {length}\r\n"), "hello"),
            400,
            400,
        );
        add(get(&format!("Content-Length: {length}\r\n")), 400, 400);
    }
    for length in ["005", "00"] {
        add(
            post(&format!("Content-Length: {length}\r\n"), "hello"),
            400,
            200,
        );
    }
    add(
        post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        400,
        400,
    );
    add(
        post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        400,
        400,
    );
    // transfer codings
    add(chunked("5\r\nhello\r\n0\r\n\r\n"), 200, 200);
    add(
        post("Transfer-Encoding: Chunked\r\n", "0\r\n\r\n"),
        200,
        200,
    );
    for coding in [
        "",
        "gzip",
        "identity",
        "xchunked",
        "chunked, chunked",
        "chunked, gzip",
        "gzip, chunked",
        "chunked,",
        ",chunked",
        "chunked;a=b",
        "\tchunked",
        "\x0bchunked",
        "chunked\x0c",
    ] {
        add(
            post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n"),
            400,
            501,
        );
    }
    add(
        post(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        400,
        400,
    );
    add(
        post(
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "0\r\n\r\n",
        ),
        400,
        400,
    );
    add(
        post(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        400,
        400,
    );
    add(
        post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        400,
        400,
    );
    add(
        post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        400,
        400,
    );
    add(
        b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        400,
        400,
    );
    // chunks
    add(
        chunked("5;a=b;c=\"d\\\"e\"\r\nhello\r\n0;f\r\nA: b\r\n\r\n"),
        200,
        200,
    );
    add(chunked("A\r\nhelloworld\r\n000\r\n\r\n"), 200, 200);
    for body in [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "5 ;a\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;a b\r\nhello\r\n0\r\n\r\n",
        "5;a=\r\nhello\r\n0\r\n\r\n",
        "5;a[\r\nhello\r\n0\r\n\r\n",
        "5;a=\x01\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nA\r\n\r\n",
        "5\r\nhello\r\n0\r\nA : b\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
        "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: i\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
    ] {
        // whatever is thought of trailers otherwise
        let nginx = if body.contains("0\r\nA") { 0 } else { 200 };
        add(chunked(body), 400, nginx);
    }
    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "g\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "ffffffffffffffff0\r\nhello\r\n0\r\n\r\n",
    ] {
        add(chunked(body), 400, 400);
    }
    // how nginx's mode takes a line of trailers that ends without CR is told in the differential tests
    add(chunked("5\r\nhello\r\n0\r\n\n"), 400, 0);
    add(chunked("5\r\nhello\r\n0\r\nA: b\n\r\n"), 400, 0);
    // what is asked of us
    add(get("Expect: 100-Continue\r\n"), 200, 200);
    add(get("Expect: 200-ok\r\n"), 417, 200);
    add(get("Connection: close, x\r\n"), 200, 200);
    add(get("Connection: Content-Length\r\n"), 400, 200);
    add(get("Connection: host\r\n"), 400, 200);
    add(get("Connection: a b\r\n"), 400, 200);
    add(
        get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        200,
        200,
    );
    add(
        post(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 5\r\n",
            "hello",
        ),
        400,
        200,
    );
    t
}

#[test]
fn the_table_in_both_modes() {
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let server = start(
        &origin,
        "proxy_http_version 1.1; ignore_invalid_headers on;
        server { listen 127.0.0.1:%%PORT_8080%%; request_parsing strict; location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } }
        server { listen 127.0.0.1:%%PORT_8081%%; request_parsing nginx; location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } }
        server { listen 127.0.0.1:%%PORT_8082%%; location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } }",
    );
    let mut wrong = Vec::new();
    for (request, strict, nginx) in table() {
        for (port, expected) in [(8080, strict), (8081, nginx), (8082, nginx)] {
            let shown = request.escape_ascii();
            let response = ask(server.addr(port), &request);
            let seen = origin.take_requests();
            if expected != 0 && response.status != expected {
                wrong.push(format!(
                    "{port}: {} instead of {expected}: {shown}",
                    response.status
                ));
            }
            if response.status >= 300 && !seen.is_empty() {
                wrong.push(format!("{port}: refused, and forwarded: {shown}"));
            }
            for forwarded in seen {
                if !is_clean(&forwarded.raw) {
                    wrong.push(format!(
                        "{port}: forwarded {}",
                        forwarded.raw.escape_ascii()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(server.stop().success());
}

/// What the table says of nginx is so, where an nginx of our level is there.
#[test]
fn nginx_answers_as_the_table_says() {
    if !Nginx::available() || Nginx::version() < (1, 31, 0) {
        return;
    }
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% proxy_http_version 1.1;
        server { listen 127.0.0.1:%%PORT_8080%%; location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } } }";
    let server = Setup::new(conf)
        .set("ORIGIN", origin.port())
        .start(&Nginx::require());
    let mut wrong = Vec::new();
    for (request, _, expected) in table() {
        let status = ask(server.addr(8080), &request).status;
        if expected != 0 && status != expected {
            let shown = request.escape_ascii();
            wrong.push(format!("{status} instead of {expected}: {shown}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A refusal is the connection's end: what follows it is not read as a request.
#[test]
fn nothing_is_read_behind_a_refusal() {
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let server = start(
        &origin,
        "request_parsing strict; server { listen 127.0.0.1:%%PORT_8080%%; location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } }",
    );
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    for (request, strict, _) in table() {
        if strict < 400 {
            continue;
        }
        let mut client = Client::connect(server.addr(8080));
        let _ = client.send([&request[..], smuggled.as_bytes()].concat());
        // a reset is an end, too
        let answer = client.read_to_close().unwrap_or_default();
        let answers = answer.windows(9).filter(|w| w == b"HTTP/1.1 ").count();
        assert!(answers <= 1, "{}", request.escape_ascii());
    }
    let seen = origin.take_requests();
    assert!(seen.is_empty(), "{seen:?}");
    assert!(server.stop().success());
}

#[test]
fn control_characters_become_spaces() {
    let origin = Origin::echo(&[]);
    let server = start(
        &origin,
        "server { listen 127.0.0.1:%%PORT_8080%%; location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } location /own { return 200 \"[$http_a]\"; } }",
    );
    let request = |path: &str| {
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nA: \x01b\x0bc\td\x7f\r\nConnection: close\r\n\r\n"
        );
        ask(server.addr(8080), text.as_bytes())
    };
    assert!(
        request("/").text().contains("\r\nA: b c\td\r\n"),
        "{:?}",
        request("/")
    );
    assert_eq!(request("/own").text(), "[b c\td]");
    assert!(server.stop().success());
}

/// The mode is that of the address's default server, as the name is not known while a head is read.
#[test]
fn the_default_server_says_how_requests_are_read() {
    let origin = Origin::echo(&[]);
    let server = start(
        &origin,
        "server { listen 127.0.0.1:%%PORT_8080%%; server_name a; request_parsing strict; return 200; }
        server { listen 127.0.0.1:%%PORT_8080%%; server_name b; return 200; }
        server { listen 127.0.0.1:%%PORT_8081%%; server_name b; return 200; }
        server { listen 127.0.0.1:%%PORT_8081%%; server_name a; request_parsing strict; return 200; }",
    );
    for (port, status) in [(8080, 400), (8081, 200)] {
        for host in ["a", "b"] {
            let request = format!("GET /a#b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let r = ask(server.addr(port), request.as_bytes());
            assert_eq!(r.status, status, "{port} {host}");
        }
    }
    let log = server.log();
    assert!(
        log.contains("client sent request target with a fragment while reading client request"),
        "{log}"
    );
    assert!(server.stop().success());
}

/// Reads a head that may come in two pieces.
fn read(text: &[u8], split: usize, limits: &Limits) -> Option<RequestHead> {
    let (mut parser, mut head) = (Parser::default(), RequestHead::default());
    let (mut from, mut upto) = (0, split.min(text.len()));
    loop {
        match parser.parse(&text[from..upto], limits, &mut head) {
            Progress::Done { .. } => return Some(head),
            Progress::Bad(_) => return None,
            Progress::Blank { consumed } => from += consumed,
            Progress::Need if upto == text.len() => return None,
            Progress::Need => {}
        }
        if from == text.len() {
            return None;
        }
        upto = text.len();
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "GET",
        "POST",
        " ",
        "/",
        "/a",
        "*",
        "?b",
        "#c",
        "\\",
        "%41",
        "%0d",
        "%",
        "http://",
        "h",
        ":80",
        "HTTP/1.1",
        "HTTP/1.0",
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "Host: h\r\n",
        "Host",
        ":",
        ": ",
        "A",
        "_",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "\t",
        "\x01",
        "\x7f",
        "\0",
        ",",
    ]);
    prop_oneof![
        8 => known.prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// What is taken in either mode has clean fields; what strict mode takes parses by the grammar, and nginx's mode
    /// takes it and reads it in the same way.
    #[test]
    fn what_is_taken_is_clean(
        begin in prop::sample::select(vec!["", "GET / HTTP/1.1\r\nHost: h\r\n", "\r\nPOST /a HTTP/1.1\r\nHost: h\r\n", "GET "]),
        pieces in prop::collection::vec(piece(), 0..12),
        whole in any::<bool>(),
        split in 0usize..60,
    ) {
        let mut text = begin.as_bytes().to_vec();
        text.extend(pieces.concat());
        if whole {
            text.extend_from_slice(b"\r\n\r\n");
        }
        let nginx = Limits::default();
        let strict = Limits { strict: true, ..nginx };
        let (lenient, read_strictly) = (read(&text, split, &nginx), read(&text, split, &strict));
        for head in [&lenient, &read_strictly].into_iter().flatten() {
            prop_assert!(!strict::has_control(&head.line));
            for (name, value) in head.headers.iter() {
                let line = [name, b": ", value, b"\r\n"].concat();
                prop_assert!(strict::field_line(&line, name).is_ok(), "{}", line.escape_ascii());
            }
        }
        if let Some(head) = read_strictly {
            let line = [&head.line[..], b"\r\n"].concat();
            prop_assert!(strict::request_line(&line).is_ok());
            let other = lenient.expect("nginx takes what is strict");
            prop_assert_eq!(head.line, other.line);
            prop_assert_eq!((head.content_length, head.chunked), (other.content_length, other.chunked));
            prop_assert_eq!(head.host, other.host);
            let fields = |h: &couloir::http::headers::Headers| h.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect::<Vec<_>>();
            prop_assert_eq!(fields(&head.headers), fields(&other.headers));
        }
    }
}
