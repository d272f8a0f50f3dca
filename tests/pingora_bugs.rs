//! What Pingora 0.9.1 is known to get wrong must be right here.

mod common;

use bytes::Bytes;
use common::DEADLINE;
use common::client::{Client, Framing, get};
use common::origin::{Origin, Step};
use common::proc::{Couloir, Server, Setup};
use h2::client::SendRequest;
use http::{Request, Response};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

const CONF: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% http2 on;
    upstream u { server %%ORIGIN%%; keepalive 4; }
    server { listen 127.0.0.1:%%PORT_8080%%;
        proxy_http_version 1.1; proxy_set_header Connection '';
        location / { proxy_pass http://u; }
        location /streamed { proxy_pass http://u; proxy_request_buffering off; }
        location /ws { proxy_pass http://u; proxy_request_buffering off;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; } } }";

fn server(origin: SocketAddr) -> Server {
    Setup::new(CONF)
        .set("ORIGIN", origin)
        .start(&Couloir::program())
}

/// An origin of one connection.
fn once(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        serve(stream);
    });
    addr
}

/// Reads up to and with `end`; what came.
fn until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    let mut byte = [0];
    while !got.ends_with(end) {
        match stream.read(&mut byte) {
            Ok(1) => got.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&got)),
        }
    }
    got
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("hung") })
}

async fn connect(server: &Server) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(server.addr(8080))
        .await
        .unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send
}

async fn whole(response: h2::client::ResponseFuture) -> (Response<()>, Vec<u8>) {
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    (Response::from_parts(head, ()), all)
}

/// cloudflare/pingora#935: the end of a body in an empty DATA frame became two last chunks.
#[test]
fn a_body_has_one_last_chunk() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let ((begun, heads), (told, bodies)) = (mpsc::channel(), mpsc::channel());
    let origin = once(move |mut s| {
        for _ in 0..3 {
            // a second last chunk would stand before the next request
            let head = until(&mut s, b"\r\n\r\n");
            begun.send(()).unwrap();
            let body = until(&mut s, b"0\r\n\r\n");
            s.write_all(OK).unwrap();
            told.send((head, body)).unwrap();
        }
    });
    let server = server(origin);
    run(async {
        let send = connect(&server).await;
        for data in [&b"hello"[..], b"", b"again"] {
            let post = Request::post("http://h/streamed").body(()).unwrap();
            let (response, mut stream) = send
                .clone()
                .ready()
                .await
                .unwrap()
                .send_request(post, false)
                .unwrap();
            stream.send_data(Bytes::from_static(data), false).unwrap();
            // the origin has the head: what follows cannot be read along with it
            while heads.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            stream.send_data(Bytes::new(), true).unwrap();
            let (head, body) = whole(response).await;
            assert_eq!((head.status().as_u16(), &body[..]), (200, &b"ok"[..]));
        }
    });
    for chunk in ["5\r\nhello\r\n", "", "5\r\nagain\r\n"] {
        let (head, body) = bodies.recv_timeout(DEADLINE).unwrap();
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("POST /streamed HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        assert_eq!(
            String::from_utf8(body).unwrap(),
            format!("{chunk}0\r\n\r\n")
        );
    }
}

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// cloudflare/pingora#946: a 101 that came before the end of the (empty) request's body closed the tunnel.
#[test]
fn a_101_may_come_before_anything_else() {
    // at once, before the request has been read, and with the first words of the origin behind it
    let origin = once(|mut s| {
        s.write_all(&[SWITCHED, b"first"].concat()).unwrap();
        let got = until(&mut s, b"ping");
        assert!(got.ends_with(b"\r\n\r\nearly ping"));
        s.write_all(b"pong").unwrap();
        assert_eq!(until(&mut s, b"bye"), b"bye");
        s.write_all(b"good").unwrap();
    });
    let server = server(origin);
    let mut c = Client::connect(server.addr(8080));
    // with the first words of the client behind its head
    c.send(format!("{UPGRADE}early ")).unwrap();
    let head = c.response_head().unwrap();
    assert_eq!(
        (head.status, head.header("upgrade")),
        (101, Some("websocket"))
    );
    assert_eq!(c.take(5).unwrap(), b"first");
    c.send("ping").unwrap();
    assert_eq!(c.take(4).unwrap(), b"pong");
    c.send("bye").unwrap();
    assert_eq!(c.read_to_close().unwrap(), b"good");
}

#[test]
fn a_101_may_come_before_the_end_of_a_body() {
    let origin = once(|mut s| {
        until(&mut s, b"\r\n\r\n");
        until(&mut s, b"half");
        s.write_all(SWITCHED).unwrap();
        // from here on everything is the tunnel's
        assert_eq!(until(&mut s, b"end"), b" the rest, and the end");
        s.write_all(b"done").unwrap();
    });
    let server = server(origin);
    let mut c = Client::connect(server.addr(8080));
    c.send("POST /ws HTTP/1.1\r\nHost: h\r\nUpgrade: x\r\nConnection: Upgrade\r\nContent-Length: 13\r\n\r\nhalf")
        .unwrap();
    assert_eq!(c.response_head().unwrap().status, 101);
    c.send(" the rest, and the end").unwrap();
    assert_eq!(c.read_to_close().unwrap(), b"done");
}

/// As in nginx a tunnel ends when one side has ended and the other has been given everything that came before.
#[test]
fn half_a_close_ends_a_tunnel_and_loses_nothing() {
    const MUCH: usize = 1 << 20;
    let (told, lengths) = mpsc::channel();
    let origin = once(move |mut s| {
        until(&mut s, b"\r\n\r\n");
        s.write_all(SWITCHED).unwrap();
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        told.send(all.len()).unwrap();
    });
    let by_client = server(origin);
    let mut c = Client::connect(by_client.addr(8080));
    c.send(UPGRADE).unwrap();
    assert_eq!(c.response_head().unwrap().status, 101);
    c.send(vec![b'x'; MUCH]).unwrap();
    c.finish();
    assert_eq!(lengths.recv_timeout(DEADLINE).unwrap(), MUCH);
    assert_eq!(c.read_to_close().unwrap(), b"");

    let origin = once(|mut s| {
        until(&mut s, b"\r\n\r\n");
        s.write_all(SWITCHED).unwrap();
        s.write_all(&vec![b'y'; MUCH]).unwrap();
        s.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = s.read_to_end(&mut rest);
    });
    let by_origin = server(origin);
    let mut c = Client::connect(by_origin.addr(8080));
    c.send(UPGRADE).unwrap();
    assert_eq!(c.response_head().unwrap().status, 101);
    assert_eq!(c.read_to_close().unwrap().len(), MUCH);
}

/// Answers of HTTP/1.0 end with the connection, which is not kept, whatever they say of it.
#[test]
fn answers_of_http_1_0() {
    let answer = |more: &str| {
        vec![
            Step::Read,
            Step::send(format!("HTTP/1.0 200 OK\r\nX-Old: yes\r\n{more}\r\nold")),
            Step::Close,
        ]
    };
    let kept = "Content-Length: 3\r\nConnection: keep-alive\r\n";
    let origin = Origin::script(vec![answer(""), answer(kept), answer(""), answer("")]);
    let server = server(origin.addr());
    for framing in [Framing::Chunked, Framing::Length] {
        let r = get(server.addr(8080), "/", "h");
        assert_eq!((r.status, r.header("x-old")), (200, Some("yes")));
        assert_eq!((r.text().as_str(), r.framing), ("old", framing));
        assert!(r.line.starts_with("HTTP/1.1 "), "{}", r.line);
    }
    run(async {
        let mut send = connect(&server).await.ready().await.unwrap();
        let request = Request::get("http://h/").body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let (head, body) = whole(response).await;
        assert_eq!((head.status().as_u16(), &body[..]), (200, &b"old"[..]));
    });
    assert_eq!(origin.connections(), 3);
}

/// Header names of HTTP/1 that HTTP/2 does not allow: capitals are made small, fields of the connection left out.
#[test]
fn names_that_http2_does_not_allow() {
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send(
            "HTTP/1.1 200 OK\r\nX-CAPITAL: A\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n\
             Connection: keep-alive, X-CAPITAL\r\nContent-Length: 2\r\n\r\nok",
        ),
    ]]);
    let lenient = server(origin.addr());
    run(async {
        let mut send = connect(&lenient).await.ready().await.unwrap();
        let request = Request::get("http://h/").body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let (head, body) = whole(response).await;
        assert_eq!((head.status().as_u16(), &body[..]), (200, &b"ok"[..]));
        assert_eq!(head.headers()["x-capital"], "A");
        for name in ["connection", "keep-alive", "proxy-connection", "upgrade"] {
            assert!(!head.headers().contains_key(name), "{name}");
        }
    });
    // what is no name at all is refused
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send("HTTP/1.1 200 OK\r\nno name: x\r\nContent-Length: 2\r\n\r\nok"),
    ]]);
    let refusing = server(origin.addr());
    assert_eq!(get(refusing.addr(8080), "/", "h").status, 502);
}
