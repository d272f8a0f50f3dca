//! WebSockets over HTTP/2 (RFC 8441) to origins of HTTP/1.

use super::*;

/// An origin of WebSockets that sends back what it gets, one connection.
pub(super) fn websocket_origin(accept: bool) -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut s, _) = l.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && s.read(&mut byte).is_ok_and(|n| n > 0) {
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        let field = |name: &str| {
            head.lines()
                .find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()))
        };
        assert_eq!(field("Upgrade:").as_deref(), Some("websocket"), "{head}");
        assert_eq!(field("Connection:").as_deref(), Some("upgrade"), "{head}");
        let key = field("Sec-WebSocket-Key:").unwrap();
        let mut sum = Sha1::new();
        sum.update(key.as_bytes());
        sum.update(if accept {
            "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        } else {
            "x"
        });
        let sum = STANDARD.encode(sum.finalize());
        write!(
            s,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {sum}\r\nSec-WebSocket-Protocol: p\r\n\r\nhello"
        )
        .unwrap();
        let mut buf = [0; 1024];
        while let Ok(n) = s.read(&mut buf)
            && n > 0
            && s.write_all(&buf[..n]).is_ok()
        {}
    });
    addr
}

pub(super) fn websocket_server(origin: SocketAddr) -> Server {
    start(
        "",
        &format!(
            "location / {{ proxy_pass http://{origin}; proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"; }}"
        ),
    )
}

pub(super) const CHAT: &[(&str, &str)] = &[
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":path", "/chat"),
    ("sec-websocket-protocol", "p"),
];

/// The pseudo-header fields first.
fn chat(c: &mut Raw) -> u32 {
    let mut list = vec![(":protocol", "websocket")];
    list.extend(with(CHAT).into_iter().filter(|(n, _)| *n != ":protocol"));
    let id = c.next;
    c.next += 2;
    c.headers(id, &list, false);
    c.flush();
    id
}

#[test]
fn a_websocket_to_an_origin_of_http1() {
    let s = websocket_server(websocket_origin(true));
    let mut c = Raw::connect(s.addr(8080));
    let id = chat(&mut c);
    let mut a = Answer::default();
    let until = |c: &mut Raw, a: &mut Answer, body: &[u8]| {
        while a.body.len() < body.len() && a.reset.is_none() && !a.ended {
            let (head, payload) = c.frame().expect("a frame");
            c.take(&head, &payload, id, a);
        }
        assert_eq!(a.body, body, "{a:?} {}", s.log());
    };
    until(&mut c, &mut a, b"hello");
    assert_eq!(a.status, "200");
    let names: Vec<&str> = a.fields.iter().map(|(n, _)| &**n).collect();
    assert!(names.contains(&"sec-websocket-protocol"));
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!names.contains(&name), "{name}");
    }
    frame::data(&mut c.out, id, b" ping", false);
    c.flush();
    until(&mut c, &mut a, b"hello ping");
    frame::data(&mut c.out, id, b"", true);
    c.flush();
    let end = c.answer(id, false);
    assert!(
        end.ended && end.reset.is_none_or(|r| r == Code::NO_ERROR),
        "{end:?}"
    );
}

#[test]
fn an_origin_that_does_not_know_websockets() {
    let s = websocket_server(websocket_origin(false));
    let mut c = Raw::connect(s.addr(8080));
    let id = chat(&mut c);
    assert_eq!(c.answer(id, false).status, "502");
    let origin = Origin::respond(|_| {
        b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno".to_vec()
    });
    let s = websocket_server(origin.addr());
    let mut c = Raw::connect(s.addr(8080));
    let id = chat(&mut c);
    let a = c.answer(id, false);
    assert_eq!((&*a.status, &*a.body), ("426", &b"no"[..]));
    // nothing of a body was made of it
    assert!(origin.requests()[0].header("Transfer-Encoding").is_none());
}
