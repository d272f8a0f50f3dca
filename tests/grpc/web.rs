//! `grpc_web`, with clients that send bytes.

use super::*;
use crate::common::client::{Client, Framing, Response};
use crate::common::origin::{Origin as Plain, Step};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const CONF: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% http2 on; client_max_body_size 10m; grpc_web on;
    upstream u { server %%ORIGIN%%; keepalive 4; }
    server { listen 127.0.0.1:%%PORT_8080%%;
        location / { grpc_pass grpc://u; add_header X-Kind $upstream_http_x_type; }
        location /off/ { grpc_web off; grpc_pass u; }
        location /plain/ { proxy_pass http://%%PLAIN%%; }
        location /cut { grpc_pass u; grpc_next_upstream off; }
        location /dead { grpc_pass 127.0.0.1:%%PORT_8081%%; }
        location /page { grpc_pass 127.0.0.1:%%PORT_8081%%; error_page 502 = @unavailable; }
        location @unavailable { default_type application/grpc; add_header grpc-status 14; return 200; }
        location /second { grpc_pass 127.0.0.1:%%PORT_8081%%; error_page 502 = @second; }
        location @second { rewrite ^ /echo break; grpc_pass u; }
        location /trailer { rewrite ^ /echo break; grpc_pass u; add_trailer X-Added yes; }
    } }";

fn bridge(origin: &Origin) -> Server {
    let plain = Plain::script(vec![vec![
        Step::Read,
        Step::send(
            "HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web\r\nContent-Length: 2\r\n\r\nok",
        ),
    ]]);
    let server = Setup::new(CONF)
        .set("ORIGIN", origin.addr)
        .set("PLAIN", plain.addr())
        .start(&Couloir::program());
    std::mem::forget(plain);
    server
}

/// A message with its prefix.
fn message(data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&[0], &length[..], data].concat()
}

fn trailer(text: &str) -> Vec<u8> {
    let mut frame = message(text.as_bytes());
    frame[0] = 0x80;
    frame
}

const OK: &str = "grpc-status: 0\r\n";

/// base64 that may end in several places.
fn plain(text: &[u8]) -> Vec<u8> {
    assert_eq!(text.len() % 4, 0, "{}", text.escape_ascii());
    text.chunks(4)
        .flat_map(|group| STANDARD.decode(group).unwrap())
        .collect()
}

fn post(server: &Server, path: &str, kind: &str, more: &str, body: &[u8]) -> Response {
    let mut client = Client::connect(server.addr(8080));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\n{more}Content-Length: {}\r\n\r\n",
        body.len()
    );
    client.send([head.as_bytes(), body].concat()).unwrap();
    let response = client.response("POST").unwrap();
    // the connection goes on
    if response.keeps_alive() {
        client
            .send("GET /plain/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert!(client.response("GET").is_ok());
    }
    response
}

#[test]
fn binary_over_http1() {
    let origin = Origin::start();
    let server = bridge(&origin);
    let hello = message(b"hello");
    let r = post(&server, "/echo", "application/grpc-web+proto", "", &hello);
    assert_eq!((r.status, r.framing), (200, Framing::Chunked));
    assert_eq!(r.header("content-type"), Some("application/grpc-web"));
    assert_eq!(r.header("x-te"), Some("trailers"));
    assert_eq!(r.header("x-kind"), Some("application/grpc+proto"));
    assert_eq!(r.body, [hello.clone(), trailer(OK)].concat());
    assert_eq!(r.trailers, []);
    // an error without a message is in the head
    let r = post(&server, "/only", "application/grpc-web", "", &hello);
    assert_eq!((r.status, r.header("grpc-status")), (200, Some("12")));
    assert_eq!(r.body, b"");
    let r = post(&server, "/trailer", "application/grpc-web", "", &hello);
    let both = trailer("grpc-status: 0\r\nx-added: yes\r\n");
    assert_eq!(r.body, [hello, both].concat());
}

#[test]
fn text_over_http1() {
    let origin = Origin::start();
    let server = bridge(&origin);
    const TEXT: &str = "application/grpc-web-text";
    let large: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    for data in [&b""[..], b"a", b"ab", b"hello", &large] {
        let sent = message(data);
        let expected = [sent.clone(), trailer(OK)].concat();
        let r = post(
            &server,
            "/echo",
            TEXT,
            "",
            STANDARD.encode(&sent).as_bytes(),
        );
        assert_eq!(r.header("content-type"), Some(TEXT));
        let length = r.header("x-length").map(|n| n.parse().unwrap());
        assert!(length.is_none_or(|n: usize| n == sent.len()), "{length:?}");
        assert!(plain(&r.body) == expected, "{}", data.len());
    }
    // what is sent and what is accepted may differ
    let hello = message(b"hello");
    let expected = [hello.clone(), trailer(OK)].concat();
    let accept = "Accept: application/grpc-web\r\n";
    let encoded = STANDARD.encode(&hello);
    let r = post(&server, "/echo", TEXT, accept, encoded.as_bytes());
    assert_eq!(r.body, expected);
    let accept = "Accept: application/grpc-web-text\r\n";
    let r = post(&server, "/echo", "application/grpc-web", accept, &hello);
    assert_eq!(plain(&r.body), expected);
    // a body that has been read when the second location gets it
    let r = post(&server, "/second", TEXT, "", encoded.as_bytes());
    assert_eq!(plain(&r.body), expected);
    for bad in ["AAAA*", "AAAAA", "=AAA"] {
        let r = post(&server, "/echo", TEXT, "", bad.as_bytes());
        assert_eq!(r.status, 400, "{bad}");
    }
}

#[test]
fn messages_come_as_they_are_sent() {
    let origin = Origin::start();
    let server = bridge(&origin);
    let mut client = Client::connect(server.addr(8080));
    let head = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc-web-text\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head).unwrap();
    let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    for (i, data) in [&b"one"[..], b"two!", b"three"].into_iter().enumerate() {
        let text = STANDARD.encode(message(data));
        // the pieces end anywhere
        for piece in text.as_bytes().chunks(3) {
            client.send(chunk(piece)).unwrap();
        }
        if i == 0 {
            assert_eq!(client.response_head().unwrap().status, 200);
        }
        let mut got = Vec::new();
        while got.len() < data.len() + 5 {
            got.extend(plain(&take_chunk(&mut client)));
        }
        assert_eq!(got, message(data));
    }
    client.send("0\r\n\r\n").unwrap();
    assert_eq!(plain(&take_chunk(&mut client)), trailer(OK));
    assert_eq!(client.take(5).unwrap(), b"0\r\n\r\n");
}

fn take_chunk(client: &mut Client) -> Vec<u8> {
    let mut line = String::new();
    while !line.ends_with("\r\n") {
        line.push(char::from(client.take(1).unwrap()[0]));
    }
    let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
    let mut data = client.take(size + 2).unwrap();
    data.truncate(size);
    data
}

#[test]
fn over_http2_and_beside_grpc() {
    let origin = Origin::start();
    let server = bridge(&origin);
    let ask = async |kind: &str, body: Vec<u8>| {
        let mut send = connect(&server).await.ready().await.unwrap();
        let request = Request::post("http://localhost/echo")
            .header("content-type", kind)
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut stream) = send.send_request(request, false).unwrap();
        tokio::spawn(async move {
            push(&mut stream, body.into()).await;
            stream.send_data(Bytes::new(), true).unwrap();
        });
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut all = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            all.extend_from_slice(&data);
        }
        (head, all, body.trailers().await.unwrap())
    };
    let large = message(&vec![7; 1 << 20]);
    let expected = [large.clone(), trailer(OK)].concat();
    run(async {
        let (head, body, trailers) = ask("application/grpc-web", large.clone()).await;
        assert_eq!(head.headers["content-type"], "application/grpc-web");
        assert!(body == expected && trailers.is_none());
        let text = STANDARD.encode(&large).into_bytes();
        let (head, body, trailers) = ask("application/grpc-web-text", text).await;
        assert_eq!(head.headers["content-type"], "application/grpc-web-text");
        assert!(plain(&body) == expected && trailers.is_none());
        let (head, body, trailers) = ask("application/grpc", large.clone()).await;
        assert_eq!(head.headers["content-type"], "application/grpc");
        assert!(body == large);
        assert_eq!(grpc_status(trailers.as_ref()), "0");
    });
}

#[test]
fn what_goes_wrong() {
    let origin = Origin::start();
    let server = bridge(&origin);
    const WEB: &str = "application/grpc-web";
    let go = message(b"x");
    // an error page is no answer of gRPC
    for path in ["/dead", "/reset"] {
        let r = post(&server, path, WEB, "", &go);
        assert_eq!(
            (r.status, r.header("content-type")),
            (502, Some("text/html"))
        );
    }
    let r = post(&server, "/page", WEB, "", &go);
    assert_eq!((r.status, r.header("grpc-status")), (200, Some("14")));
    assert_eq!(r.header("content-type"), Some(WEB));
    // what was cut off must not look whole
    let mut client = Client::connect(server.addr(8080));
    let head = "POST /cut HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc-web\r\nContent-Length: 2\r\n\r\n";
    client.send(head).unwrap();
    assert_eq!(client.response_head().unwrap().status, 200);
    assert_eq!(client.take(9).unwrap(), b"4\r\npart\r\n");
    client.send("go").unwrap();
    assert_eq!(client.read_to_close().unwrap(), b"");
}

#[test]
fn what_is_left_alone() {
    let origin = Origin::start();
    let server = bridge(&origin);
    const WEB: &str = "application/grpc-web";
    let go = message(b"x");
    // where it is off, or the origin speaks gRPC-Web itself, nothing is changed
    let r = post(&server, "/off/", WEB, "", &go);
    assert_eq!((r.status, r.text().as_str()), (200, "/off/"));
    let r = post(&server, "/plain/", WEB, "Connection: close\r\n", &go);
    assert_eq!(
        (r.header("content-type"), r.text().as_str()),
        (Some(WEB), "ok")
    );
}
