//! Clients that send much that carries nothing because of what they are sent: none of it is a flood.

use super::websocket::{CHAT, websocket_origin, websocket_server};
use super::*;
use std::process::Command;

/// What a client sends for a message that it got.
type Acknowledge = fn(&mut Raw, stream: u32, length: usize);

/// Go: both windows, and a PING to measure the bandwidth.
fn go(c: &mut Raw, stream: u32, length: usize) {
    frame::window_update(&mut c.out, 0, length as u32);
    frame::ping(&mut c.out, false, [2, 4, 16, 16, 9, 14, 7, 7]);
    frame::window_update(&mut c.out, stream, length as u32);
}

/// Netty, with which Java's gRPC asks for more after each message; its probe is a PING, and SETTINGS follow now and then.
fn java(c: &mut Raw, stream: u32, length: usize) {
    frame::window_update(&mut c.out, stream, length as u32);
    frame::window_update(&mut c.out, 0, length as u32);
    frame::ping(&mut c.out, false, 1234u64.to_be_bytes());
    if c.next.is_multiple_of(64) {
        frame::settings(&mut c.out, &[(4, 1 << 20)]);
    }
    c.next += 1;
}

/// A stream on which `count` messages of `length` bytes go to the origin and come back, `ahead` on their way.
fn talk(acknowledge: Acknowledge, length: usize, count: usize, ahead: usize) {
    let s = websocket_server(websocket_origin(true));
    let mut c = Raw::connect(s.addr(8080));
    let id = c.request(CHAT, false);
    let message = vec![b'm'; length];
    let (mut sent, mut got, mut seen) = (0, 0, 0);
    // the origin says hello first
    let total = b"hello".len() + count * length;
    while got < total {
        while sent < count && sent * length < got.saturating_sub(5) + ahead * length {
            frame::data(&mut c.out, id, &message, false);
            sent += 1;
        }
        assert!(c.flush(), "{got} of {total} bytes: {}", s.log());
        let Some((head, payload)) = c.frame() else {
            panic!("{got} of {total} bytes: {}", s.log());
        };
        match frame::parse(&head, &payload).unwrap() {
            Frame::Data { data, .. } => got += data.len(),
            Frame::GoAway { code, .. } => panic!("{code} after {got} of {total} bytes"),
            Frame::Reset(code) => panic!("{code} after {got} of {total} bytes"),
            _ => {}
        }
        while (seen + 1) * length <= got {
            seen += 1;
            acknowledge(&mut c, id, length);
        }
    }
    // what was sent last is no flood, either
    frame::ping(&mut c.out, false, *b"the last");
    assert!(c.flush());
    loop {
        let (head, payload) = c.frame().expect("the connection is open");
        match frame::parse(&head, &payload).unwrap() {
            Frame::Ping { ack: true, data } if data == *b"the last" => break,
            Frame::GoAway { code, .. } => panic!("{code}"),
            _ => {}
        }
    }
    assert!(!s.log().contains("flood"), "{}", s.log());
}

#[test]
fn each_message_is_acknowledged_as_go_does() {
    talk(go, 5, 20_000, 1000);
    talk(go, 25, 3000, 1);
}

#[test]
fn each_message_is_acknowledged_as_java_does() {
    talk(java, 5, 20_000, 1000);
    talk(java, 15, 3000, 1);
}

/// Pages that are left while most of what they consist of is still to come, with the frames that Chromium sends: the
/// priority of each request, a change of it, PING after a pause, and a frame of a type that nobody knows.
#[test]
fn pages_are_left_as_in_a_browser() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let s = start(
        "keepalive_requests 100000;",
        &format!(
            "location / {{ return 200 page; }}
             location /part {{ proxy_pass http://{}; }}",
            hung.local_addr().unwrap()
        ),
    );
    let mut c = Raw::connect(s.addr(8080));
    for page in 0..12 {
        let main = c.request(&[], true);
        let parts: Vec<u32> = (0..80)
            .map(|_| c.request(&[(":path", "/part")], true))
            .collect();
        for id in &parts {
            Head {
                length: 5,
                kind: kind::PRIORITY,
                flags: 0,
                stream: *id,
            }
            .write(&mut c.out);
            c.out.extend_from_slice(&[0, 0, 0, 0, 109]);
        }
        Head {
            length: 1,
            kind: 0x2a,
            flags: 0,
            stream: 0,
        }
        .write(&mut c.out);
        c.out.extend_from_slice(&[0]);
        frame::ping(&mut c.out, false, [page; 8]);
        frame::window_update(&mut c.out, 0, 15_663_105 >> 8);
        assert!(c.flush());
        let a = c.answer(main, false);
        assert_eq!((&*a.status, &a.body[..]), ("200", &b"page"[..]), "{page}");
        for id in parts {
            frame::reset(&mut c.out, id, Code::CANCEL);
        }
    }
    let id = c.request(&[], true);
    c.flush();
    assert_eq!(c.answer(id, false).status, "200", "{}", s.log());
    assert!(!s.log().contains("flood"), "{}", s.log());
}

/// As many requests as may be are reset, and as many others opened at once: their places are free.
#[test]
fn places_of_reset_streams_are_free() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let s = start(
        "http2_max_concurrent_streams 20;",
        &format!(
            "location / {{ return 200 ok; }} location /wait {{ proxy_pass http://{}; }}",
            hung.local_addr().unwrap()
        ),
    );
    let mut c = Raw::connect(s.addr(8080));
    let ids: Vec<u32> = (0..20)
        .map(|_| c.request(&[(":path", "/wait")], true))
        .collect();
    frame::ping(&mut c.out, false, *b"they are");
    c.flush();
    while c.frame().unwrap().0.kind != kind::PING {}
    for id in ids {
        frame::reset(&mut c.out, id, Code::CANCEL);
    }
    let ids: Vec<u32> = (0..20).map(|_| c.request(&[], true)).collect();
    c.flush();
    let a = c.answer(*ids.last().unwrap(), false);
    assert_eq!((&*a.status, a.reset), ("200", None));
    assert!(
        !s.log().contains("concurrent streams exceeded"),
        "{}",
        s.log()
    );
}

/// Runs a client that others wrote.
fn client(program: &str, args: &[&str], url: &str) -> String {
    let output = Command::new(program)
        .args(args)
        .arg(url)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e} (make test-deps installs it)"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn downloads_through_tiny_windows() {
    let s = start("keepalive_requests 100000;", "root .;");
    s.write("large", vec![b'x'; 256 << 10]);
    s.write("small", [b'x'; 100]);
    let url = |name: &str| format!("http://127.0.0.1:{}/{name}", s.port(8080));
    // windows of 15, 63 and 1023 bytes: 17,000 frames of WINDOW_UPDATE with the first
    for bits in ["4", "6", "10"] {
        let text = client("h2load", &["-n1", "-c1", "-w", bits], &url("large"));
        assert!(text.contains("1 succeeded, 0 failed"), "{bits}: {text}");
        let text = client("nghttp", &["-ns", "-w", bits], &url("large"));
        assert!(text.contains(" 200 "), "{bits}: {text}");
    }
    let args = ["-n20000", "-c1", "-m100", "-w", "4", "-W", "10"];
    let text = client("h2load", &args, &url("small"));
    assert!(text.contains("20000 succeeded, 0 failed"), "{text}");
    let args = [
        "-sS",
        "--http2-prior-knowledge",
        "--limit-rate",
        "2M",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
    ];
    assert_eq!(
        client("curl", &args, &url("large")),
        (256 << 10).to_string()
    );
    assert!(!s.log().contains("flood"), "{}", s.log());
}
