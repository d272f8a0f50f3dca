//! HTTP/2 towards clients that speak frame by frame: broken requests, floods, smuggling, WebSockets.

mod common;

#[path = "http2/floods.rs"]
mod floods;
#[path = "http2/ordinary.rs"]
mod ordinary;
#[path = "http2/parting.rs"]
mod parting;
#[path = "http2/spec.rs"]
mod spec;
#[path = "http2/websocket.rs"]
mod websocket;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use common::DEADLINE;
use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};
use couloir::http::h2::frame::{self, Frame, HEAD, Head, flag, kind};
use couloir::http::h2::hpack::{Decoder, Encoder, Fields, Indexing, ListLimits};
use couloir::http::h2::{Code, PREFACE};
use sha1::{Digest, Sha1};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

const CONF: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% http2 on; %%HTTP%%
    server { listen 127.0.0.1:%%PORT_8080%%; server_name localhost; %%SERVER%% } }";

fn start(http: &str, server: &str) -> Server {
    let setup = Setup::new(CONF).set("HTTP", http).set("SERVER", server);
    setup.start(&Couloir::program())
}

/// A client that says what it is told to.
struct Raw {
    stream: TcpStream,
    buf: Vec<u8>,
    out: BytesMut,
    encoder: Encoder,
    decoder: Decoder,
    next: u32,
}

/// What has come of a stream.
#[derive(Debug, Default)]
struct Answer {
    status: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    /// Lengths of the DATA frames.
    pieces: Vec<usize>,
    ended: bool,
    reset: Option<Code>,
}

impl Raw {
    fn connect(addr: SocketAddr) -> Raw {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut out = BytesMut::from(PREFACE);
        frame::settings(&mut out, &[]);
        frame::settings_ack(&mut out);
        Raw {
            stream,
            buf: Vec::new(),
            out,
            encoder: Encoder::default(),
            decoder: Decoder::new(4096),
            next: 1,
        }
    }

    /// Sends what has been gathered; false where the server takes nothing any more.
    fn flush(&mut self) -> bool {
        let sent = self.stream.write_all(&self.out).is_ok();
        self.out.clear();
        sent
    }

    fn headers(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let at = frame::headers_begin(&mut self.out);
        self.encoder.begin(&mut self.out);
        for (name, value) in fields {
            // names as they are: the encoder would write them in lower case
            if name.bytes().any(|b| b.is_ascii_uppercase()) {
                self.out.extend_from_slice(&[0, name.len() as u8]);
                self.out.extend_from_slice(name.as_bytes());
                self.out.extend_from_slice(&[value.len() as u8]);
                self.out.extend_from_slice(value.as_bytes());
            } else {
                self.encoder.field(
                    &mut self.out,
                    name.as_bytes(),
                    value.as_bytes(),
                    Indexing::Kept,
                );
            }
        }
        frame::headers_end(&mut self.out, at, stream, end, 16_384);
    }

    /// A request; what replaces or follows the usual pseudo-header fields comes from `fields`.
    fn request(&mut self, fields: &[(&str, &str)], end: bool) -> u32 {
        let id = self.next;
        self.next += 2;
        self.headers(id, &with(fields), end);
        id
    }

    fn frame(&mut self) -> Option<(Head, Vec<u8>)> {
        loop {
            if let Some(head) = Head::parse(&self.buf)
                && self.buf.len() >= HEAD + head.length
            {
                let rest = self.buf.split_off(HEAD + head.length);
                let payload = std::mem::replace(&mut self.buf, rest).split_off(HEAD);
                return Some((head, payload));
            }
            let mut piece = [0; 16_384];
            match self.stream.read(&mut piece) {
                Ok(n) if n > 0 => self.buf.extend_from_slice(&piece[..n]),
                _ => return None,
            }
        }
    }

    /// Reads until the stream has ended, and RST_STREAM has come where `reset`.
    fn answer(&mut self, stream: u32, reset: bool) -> Answer {
        let mut a = Answer::default();
        while !(a.ended && !reset || a.reset.is_some()) {
            let Some((head, payload)) = self.frame() else {
                break;
            };
            self.take(&head, &payload, stream, &mut a);
        }
        a
    }

    fn take(&mut self, head: &Head, payload: &[u8], stream: u32, a: &mut Answer) {
        match frame::parse(head, payload).unwrap() {
            Frame::Headers { block, .. } => {
                let mut list = Fields::default();
                let limits = ListLimits {
                    string: 1 << 20,
                    list: 1 << 20,
                };
                self.decoder.decode(block, limits, &mut list).unwrap();
                if head.stream != stream {
                    return;
                }
                let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
                a.fields
                    .extend(list.iter().map(|(n, v)| (text(n), text(v))));
                if let Some((_, status)) = a.fields.iter().rev().find(|(n, _)| n == ":status") {
                    a.status = status.clone();
                }
            }
            Frame::Data { data, .. } if head.stream == stream => {
                a.body.extend_from_slice(data);
                a.pieces.push(data.len());
            }
            Frame::Reset(code) if head.stream == stream => a.reset = Some(code),
            _ => {}
        }
        a.ended |=
            head.stream == stream && head.kind <= kind::HEADERS && head.has(flag::END_STREAM);
    }

    /// Sends what has been gathered and reads to the end; the code of GOAWAY, if one came.
    fn end(&mut self) -> Option<Code> {
        self.flush();
        let mut code = None;
        while let Some((head, payload)) = self.frame() {
            if let Ok(Frame::GoAway { code: c, .. }) = frame::parse(&head, &payload) {
                code = Some(c);
            }
        }
        code
    }
}

fn with<'a>(fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut list = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "localhost"),
    ];
    for (name, value) in fields {
        match list.iter().position(|(n, _)| n == name) {
            Some(at) if *value == "-" => drop(list.remove(at)),
            Some(at) if name.starts_with(':') => list[at].1 = value,
            _ => list.push((name, value)),
        }
    }
    list
}

#[test]
fn a_broken_request_gets_the_page_and_a_log_line_and_is_not_passed_on() {
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let s = start(
        "",
        &format!("location / {{ proxy_pass http://{}; }}", origin.addr()),
    );
    let mut c = Raw::connect(s.addr(8080));
    for (fields, line) in [
        (
            &[("x", "a\r\nEvil: b")][..],
            "client sent header \"x\" with invalid value",
        ),
        (
            &[("x", "a\nb")],
            "client sent header \"x\" with invalid value",
        ),
        (
            &[("x", "a\0b")],
            "client sent header \"x\" with invalid value",
        ),
        (
            &[(":path", "/\r\nEvil: b")],
            "client sent header \":path\" with invalid value",
        ),
        (
            &[(":path", "/a HTTP/1.1")],
            "client sent invalid :path header: \"/a HTTP/1.1\"",
        ),
        (
            &[(":path", "http://other/")],
            "client sent invalid :path header: \"http://other/\"",
        ),
        (&[(":path", "-")], "client sent no :path header"),
        (&[(":path", "")], "client sent empty :path header"),
        (
            &[(":method", "GET / HTTP/1.1")],
            "client sent invalid method: \"GET / HTTP/1.1\"",
        ),
        (&[(":scheme", "-")], "client sent no :scheme header"),
        (
            &[(":authority", "a b")],
            "client sent invalid \":authority\" header",
        ),
        (
            &[("host", "other")],
            "client sent \":authority\" and \"Host\" headers with different values",
        ),
        (
            &[("X-Upper", "a")],
            "client sent invalid header name: \"X-Upper\"",
        ),
        (&[("a b", "c")], "client sent invalid header name: \"a b\""),
        (&[("a:b", "c")], "client sent invalid header name: \"a:b\""),
        (
            &[("transfer-encoding", "chunked")],
            "client sent \"Transfer-Encoding\" header",
        ),
        (
            &[("connection", "keep-alive")],
            "client sent \"Connection\" header",
        ),
        (&[("upgrade", "h2c")], "client sent \"Upgrade\" header"),
        (&[("te", "gzip")], "client sent invalid \"TE\" header"),
        (
            &[("content-length", "3"), ("content-length", "3")],
            "client sent duplicate header line: \"content-length: 3\"",
        ),
        (
            &[("content-length", "+3")],
            "client sent invalid \"Content-Length\" header",
        ),
        (
            &[("content-length", "3")],
            "client prematurely closed stream",
        ),
        (
            &[("x", "y"), (":status", "200")],
            "client sent out of order pseudo-headers",
        ),
    ] {
        let id = c.request(fields, true);
        assert!(c.flush());
        let a = c.answer(id, true);
        assert_eq!(
            (&*a.status, a.ended, a.reset),
            ("400", true, Some(Code::PROTOCOL_ERROR)),
            "{line}"
        );
        assert!(
            String::from_utf8_lossy(&a.body).contains("<h1>400 Bad Request</h1>"),
            "{line}"
        );
        s.wait_for_text("error.log", line);
    }
    // the connection is as good as before
    let id = c.request(&[], true);
    c.flush();
    assert_eq!(c.answer(id, false).status, "200");
    assert_eq!(origin.requests().len(), 1);
    let all = common::wait_for(DEADLINE, || {
        (s.read("access.log").lines().count() >= 24).then_some(())
    });
    assert!(all.is_some(), "{}", s.read("access.log"));
}

#[test]
fn a_body_that_is_not_what_the_head_said() {
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let s = start(
        "",
        &format!("location / {{ proxy_pass http://{}; }}", origin.addr()),
    );
    let mut c = Raw::connect(s.addr(8080));
    for (body, line) in [
        ("ab", "only 2 out of 3 bytes of request body received"),
        (
            "abcd",
            "client intended to send body data larger than declared",
        ),
    ] {
        let id = c.request(&[(":method", "POST"), ("content-length", "3")], false);
        frame::data(&mut c.out, id, body.as_bytes(), true);
        c.flush();
        let a = c.answer(id, true);
        assert_eq!(
            (&*a.status, a.reset),
            ("400", Some(Code::PROTOCOL_ERROR)),
            "{line}"
        );
        s.wait_for_text("error.log", line);
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn the_largest_piece_is_the_location_s() {
    let s = start(
        "http2_chunk_size 3k;",
        "root %%TESTDIR%%; location /small { http2_chunk_size 1k; } location / { }"
            .replace("%%TESTDIR%%", "html")
            .as_str(),
    );
    std::fs::create_dir_all(s.dir().join("html")).unwrap();
    s.write("html/a", [b'x'; 10_000]);
    s.write("html/small", [b'x'; 3000]);
    let mut c = Raw::connect(s.addr(8080));
    for (path, most, total) in [("/a", 3072, 10_000), ("/small", 1024, 3000)] {
        let id = c.request(&[(":path", path)], true);
        c.flush();
        let a = c.answer(id, false);
        assert_eq!((&*a.status, a.body.len()), ("200", total), "{}", s.log());
        assert_eq!(a.pieces.iter().max(), Some(&most), "{path}");
    }
}

#[test]
fn a_head_that_comes_too_slowly_costs_its_stream_alone() {
    let s = start(
        "client_header_timeout 150ms;",
        "location / { return 200 ok; }",
    );
    let mut c = Raw::connect(s.addr(8080));
    let id = c.request(&[], true);
    let late = c.out.split_off(c.out.len() - 3);
    c.flush();
    let a = c.answer(id, true);
    assert_eq!((&*a.status, a.reset), ("", Some(Code::PROTOCOL_ERROR)));
    c.out = late;
    let id = c.request(&[], true);
    c.flush();
    assert_eq!(c.answer(id, false).status, "200");
}

/// User and system time of a process and its children, ticks of 10 ms; and its memory, kB.
fn cost(s: &Server) -> (u64, u64) {
    let mut ticks = 0;
    let mut memory = 0;
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    for p in all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{p}/stat")) else {
            continue;
        };
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .split_whitespace()
            .collect();
        let parent = fields.get(1).and_then(|f| f.parse().ok()).unwrap_or(0);
        if p == s.pid().as_raw() || parent == s.pid().as_raw() {
            let field = |i: usize| {
                fields
                    .get(i)
                    .and_then(|f| f.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            ticks += field(11) + field(12);
            memory += field(21) * 4;
        }
    }
    (ticks, memory)
}

#[test]
fn bombs_and_stalled_windows_take_little_memory() {
    let s = start("send_timeout 300ms;", "root .;");
    s.write("big", vec![b'x'; 4 << 20]);
    let (_, memory) = cost(&s);
    // one large field in the table, then referred to again and again
    let mut c = Raw::connect(s.addr(8080));
    let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
    block.extend_from_slice(&[b'v'; 4000]);
    block.extend_from_slice(&[0xbe; 10_000]);
    Head {
        length: block.len(),
        kind: kind::HEADERS,
        flags: flag::END_HEADERS,
        stream: 1,
    }
    .write(&mut c.out);
    c.out.extend_from_slice(&block);
    assert_eq!(c.end(), Some(Code::ENHANCE_YOUR_CALM));
    s.wait_for_text("error.log", "client sent too large header");
    // responses that nobody lets through
    let mut c = Raw::connect(s.addr(8080));
    frame::settings(&mut c.out, &[(4, 0)]);
    let mut last = 0;
    for _ in 0..128 {
        last = c.request(&[(":path", "/big")], true);
    }
    c.flush();
    let a = c.answer(last, true);
    assert_eq!((&*a.status, a.reset), ("200", Some(Code::PROTOCOL_ERROR)));
    let grown = cost(&s).1.saturating_sub(memory);
    assert!(grown < 15_000, "{grown} kB more");
}
