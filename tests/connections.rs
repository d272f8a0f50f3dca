//! Connections as such: which give way to others, what is counted of them, and how long they are held at their end.
//!
//! What nginx does is asked of nginx itself, in the same test.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::client::Client;
use common::nginx::Nginx;
use common::origin::{Gate, Origin, Step};
use common::proc::{Couloir, Server, Setup};
use common::tls::with_pairs;
use common::{DEADLINE, wait_for};
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const CLOSE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn programs() -> [PathBuf; 2] {
    [Nginx::require(), Couloir::program()]
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A connection on which so much has been sent.
fn sent(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(addr);
    let _ = stream.write_all(bytes);
    stream
}

/// A connection that is kept after a request.
fn kept(addr: SocketAddr) -> Client {
    let mut client = Client::connect(addr);
    client.send(GET).unwrap();
    assert_eq!(client.response("GET").unwrap().status, 200);
    client
}

/// Whether a request on a connection of its own is answered.
fn served(addr: SocketAddr) -> bool {
    let mut client = Client::connect(addr);
    client.send(CLOSE).is_ok() && client.response("GET").is_ok_and(|r| r.status == 200)
}

/// Connections on which half a head has come, each of which the server has seen before the next one is made.
fn halves(addr: SocketAddr, number: usize) -> Vec<TcpStream> {
    let mut witness = Client::connect(addr);
    // it never waits for a request, so that it does not give way
    witness.send("G").unwrap();
    let mut half = Vec::new();
    for _ in 0..number {
        half.push(sent(addr, b"GET"));
        witness.send(&GET[1..]).unwrap();
        let _ = witness.send("G");
        if witness.response("GET").is_err() {
            break;
        }
    }
    half.push(witness.stream().try_clone().unwrap());
    half
}

/// Whether a server has closed a connection on which nothing was asked.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0; 512]);
    !matches!(read, Err(e) if e.kind() == ErrorKind::WouldBlock)
}

fn tls(addr: SocketAddr, alpn: &'static [u8]) -> SslStream<TcpStream> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    if !alpn.is_empty() {
        builder.set_alpn_protos(alpn).unwrap();
    }
    let config = builder.build().configure().unwrap();
    config
        .verify_hostname(false)
        .connect("one", connect(addr))
        .unwrap()
}

/// What a client of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A HEADERS frame of stream 1: a GET, or a POST whose body does not come.
fn headers(post: bool) -> Vec<u8> {
    let mut block = vec![if post { 0x83 } else { 0x82 }, 0x84, 0x86, 0x41, 9];
    block.extend_from_slice(b"localhost");
    let flags = if post { 4 } else { 5 };
    let mut frame = vec![0, 0, block.len() as u8, 1, flags, 0, 0, 0, 1];
    frame.extend_from_slice(&block);
    frame
}

fn limited(main: &str, events: &str) -> String {
    format!(
        "%%TEST_GLOBALS%% worker_processes 1; {main} events {{ {events} }} http {{ %%TEST_GLOBALS_HTTP%% access_log off;
        ssl_certificate one.crt; ssl_certificate_key one.key; keepalive_timeout 60s;
        server {{ listen 127.0.0.1:%%PORT_8080%% backlog=1024; location / {{ return 200 ok; }}
            location /slow {{ proxy_pass http://%%ORIGIN%%; }} }}
        server {{ listen 127.0.0.1:%%PORT_8443%% ssl http2 backlog=1024; return 200 ok; }}
        server {{ listen 127.0.0.1:%%PORT_8081%% proxy_protocol; return 200 ok; }}
        server {{ listen 127.0.0.1:%%PORT_8082%% http2; return 200 ok; }} }}"
    )
}

fn start_limited(program: &std::path::Path, main: &str, events: &str) -> Server {
    let none = Origin::echo(&[]);
    with_pairs(&limited(main, events), &["one"])
        .set("ORIGIN", none.addr())
        .start(program)
}

#[test]
fn silent_connections_give_way() {
    for program in programs() {
        let server = start_limited(&program, "", "worker_connections 64;");
        for port in [8080, 8443, 8081, 8082] {
            let silent: Vec<TcpStream> = (0..200).map(|_| connect(server.addr(port))).collect();
            for n in 0..20 {
                assert!(
                    served(server.addr(8080)),
                    "{port} {n} {}",
                    program.display()
                );
            }
            drop(silent);
        }
        let log = server.wait_for_text("error.log", "[warn]");
        let told = log
            .lines()
            .filter(|l| l.ends_with("64 worker_connections are not enough, reusing connections"))
            .count();
        // once a second
        assert!((1..30).contains(&told), "{told}");
        assert!(!log.contains("are not enough\n"), "{log}");
    }
}

#[test]
fn kept_connections_give_way_the_oldest_first() {
    for program in programs() {
        let server = start_limited(&program, "", "worker_connections 64;");
        let addr = server.addr(8080);
        let mut kept: Vec<Client> = (0..150).map(|_| kept(addr)).collect();
        for n in 0..10 {
            assert!(served(addr), "{n} {}", program.display());
        }
        let mut closed: Vec<bool> = Vec::new();
        for client in &mut kept {
            let mut stream = client.stream().try_clone().unwrap();
            closed.push(is_closed(&mut stream));
        }
        let first = closed.iter().position(|c| !c).unwrap();
        assert!((80..145).contains(&first), "{first} {}", program.display());
        assert!(closed[first..].iter().all(|c| !c), "{closed:?}");
    }
}

#[test]
fn kept_connections_of_tls_and_http_2_give_way() {
    for program in programs() {
        let server = start_limited(&program, "", "worker_connections 64;");
        let mut tls_kept: Vec<_> = (0..100)
            .map(|_| {
                let mut s = tls(server.addr(8443), b"");
                s.write_all(GET.as_bytes()).unwrap();
                assert!(s.read(&mut [0; 512]).unwrap() > 0);
                s
            })
            .collect();
        assert!((0..10).all(|_| served(server.addr(8080))));
        // the session ends with close_notify
        let mut rest = Vec::new();
        assert!(tls_kept[0].read_to_end(&mut rest).is_ok());
        drop(tls_kept);
        let mut h2: Vec<_> = (0..100)
            .map(|_| {
                let mut s = tls(server.addr(8443), b"\x02h2");
                s.write_all(PREFACE).unwrap();
                s
            })
            .collect();
        assert!(
            (0..10).all(|_| served(server.addr(8080))),
            "{}",
            program.display()
        );
        let mut rest = Vec::new();
        let _ = h2[0].read_to_end(&mut rest);
        let last = rest.len().saturating_sub(17);
        assert_eq!(
            rest[last + 3],
            7,
            "no GOAWAY: {rest:?} {}",
            program.display()
        );
    }
}

#[test]
fn what_is_at_work_does_not_give_way() {
    let gate = Gate::new();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::Wait(gate.clone()),
        Step::send(answer),
    ]]);
    let server = with_pairs(&limited("", "worker_connections 64;"), &["one"])
        .set("ORIGIN", origin.addr())
        .start(&Couloir::program());
    let addr = server.addr(8080);
    let mut slow = Client::connect(addr);
    slow.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut half = Client::connect(addr);
    half.send("GET / HT").unwrap();
    origin.wait_for_requests(1);
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(addr)).collect();
    assert!((0..10).all(|_| served(addr)));
    gate.open();
    assert_eq!(slow.response("GET").unwrap().text(), "ok");
    half.send("TP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(half.response("GET").unwrap().text(), "ok");
    drop(silent);
}

#[test]
fn where_nothing_gives_way_the_next_is_refused() {
    for program in programs() {
        let server = start_limited(&program, "", "worker_connections 64;");
        let addr = server.addr(8080);
        // those of which nothing has been read yet still give way: more follow
        let mut half = Vec::new();
        let told = wait_for(DEADLINE, || {
            half.extend(halves(addr, 16));
            let line = "64 worker_connections are not enough\n";
            server.log().contains(line).then_some(())
        });
        assert!(told.is_some(), "{}", server.log());
        drop(half);
        assert!(wait_for(DEADLINE, || served(addr).then_some(())).is_some());
    }
}

#[test]
fn where_files_run_out_connections_give_way() {
    let server = start_limited(
        &Couloir::program(),
        "worker_rlimit_nofile 64;",
        "worker_connections 1024;",
    );
    let addr = server.addr(8080);
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(addr)).collect();
    for n in 0..20 {
        assert!(served(addr), "{n}");
    }
    server.wait_for_text("error.log", "[warn]");
    assert!(
        server
            .log()
            .contains("64 open files are not enough, reusing connections")
    );
    drop(silent);
}

#[test]
fn where_files_run_out_and_nothing_gives_way_accepting_pauses() {
    for program in programs() {
        let server = start_limited(
            &program,
            "worker_rlimit_nofile 64;",
            "worker_connections 1024;",
        );
        let addr = server.addr(8080);
        let half = halves(addr, 100);
        let line = "accept4() failed (24: Too many open files)";
        server.wait_for_text("error.log", line);
        // a second later it has not been tried often
        let begun = Instant::now();
        wait_for(DEADLINE, || {
            (begun.elapsed() > Duration::from_secs(1)).then_some(())
        });
        let log = server.log();
        let lines: Vec<&str> = log.lines().filter(|l| l.contains(line)).collect();
        assert!(lines.len() < 20, "{} {}", lines.len(), program.display());
        assert!(lines.iter().all(|l| l.contains("[crit]")), "{lines:?}");
        drop(half);
        assert!(wait_for(DEADLINE, || served(addr).then_some(())).is_some());
    }
}

#[test]
fn more_connections_than_files_are_warned_of() {
    let conf = "events { worker_connections 1000000000; } http { }";
    let (status, text) = Setup::new(conf).test(&Couloir::program());
    assert!(status.success(), "{text}");
    let line = "[warn] 1000000000 worker_connections exceed open file resource limit: ";
    assert!(text.contains(line), "{text}");
    let conf = format!("worker_rlimit_nofile 77; {conf}");
    let (_, text) = Setup::new(&conf).test(&Couloir::program());
    assert!(text.contains(&format!("{line}77")), "{text}");
    let conf = format!(
        "worker_rlimit_nofile 1000000000; {}",
        &conf["worker_rlimit_nofile 77; ".len()..]
    );
    let (_, text) = Setup::new(&conf).test(&Couloir::program());
    assert!(!text.contains("exceed"), "{text}");
}

/// Requests, and connections in each state, those of whoever asks aside.
type Counters = (i64, i64, i64, i64);

fn counters(server: &Server, asked: &mut i64) -> Counters {
    *asked += 1;
    let text = common::client::get(server.addr(8083), "/", "localhost").text();
    let n: Vec<i64> = text
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    assert_eq!(n.len(), 7, "{text}");
    (n[3] - *asked, n[4], n[5] - 1, n[6])
}

/// Something that is brought about; it lasts for as long as what is returned.
type State = fn(&Server) -> Vec<Box<dyn std::any::Any>>;

fn plain(server: &Server, bytes: &str) -> Vec<Box<dyn std::any::Any>> {
    vec![Box::new(sent(server.addr(8080), bytes.as_bytes()))]
}

fn answered(server: &Server, port: u16, bytes: &str) -> Vec<Box<dyn std::any::Any>> {
    let mut client = Client::connect(server.addr(port));
    client.send(bytes).unwrap();
    client.response("GET").unwrap();
    vec![Box::new(client)]
}

fn http2(server: &Server, port: u16, frames: &[&[u8]]) -> Vec<Box<dyn std::any::Any>> {
    let mut all = PREFACE.to_vec();
    frames.iter().for_each(|f| all.extend_from_slice(f));
    if port == 8443 {
        let mut s = tls(server.addr(8443), b"\x02h2");
        s.write_all(&all).unwrap();
        return vec![Box::new(s)];
    }
    vec![Box::new(sent(server.addr(port), &all))]
}

const STATES: &[(&str, Counters, State)] = &[
    ("nothing", (0, 0, 0, 0), |_| Vec::new()),
    ("silent", (0, 0, 0, 1), |s| plain(s, "")),
    ("a byte", (1, 1, 0, 0), |s| plain(s, "G")),
    ("an empty line", (1, 1, 0, 0), |s| plain(s, "\r\n")),
    ("half a head", (1, 1, 0, 0), |s| {
        plain(s, "GET / HTTP/1.1\r\nHost:")
    }),
    ("kept", (1, 0, 0, 1), |s| answered(s, 8080, GET)),
    ("kept, then closed by the client", (1, 0, 0, 0), |s| {
        drop(answered(s, 8080, GET));
        Vec::new()
    }),
    ("silent, then closed by the client", (0, 0, 0, 0), |s| {
        drop(plain(s, ""));
        Vec::new()
    }),
    ("kept for keepalive_min_timeout", (1, 0, 0, 0), |s| {
        answered(s, 8084, GET)
    }),
    ("half a head after a request", (2, 1, 0, 0), |s| {
        let mut kept = kept(s.addr(8080));
        kept.send("GET /").unwrap();
        vec![Box::new(kept)]
    }),
    ("two requests", (2, 0, 0, 1), |s| {
        let mut kept = kept(s.addr(8080));
        kept.send(GET).unwrap();
        kept.response("GET").unwrap();
        vec![Box::new(kept)]
    }),
    ("two requests at once", (2, 0, 0, 1), |s| {
        answered(s, 8080, &GET.repeat(2))
    }),
    ("closed by the server", (1, 0, 0, 0), |s| {
        answered(s, 8080, CLOSE)
    }),
    ("a body to wait for", (1, 0, 1, 0), |s| {
        plain(
            s,
            "POST /proxy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
        )
    }),
    ("a body to throw away", (1, 0, 1, 0), |s| {
        answered(
            s,
            8080,
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
        )
    }),
    ("refused, lingering", (1, 1, 0, 1), |s| {
        answered(s, 8080, "GET / HTTP/1.1\r\nHost: a/b\r\nX: y\r\n\r\n")
    }),
    ("answered, lingering", (1, 0, 1, 1), |s| {
        answered(s, 8085, CLOSE)
    }),
    ("silent before TLS", (0, 0, 0, 1), |s| {
        vec![Box::new(connect(s.addr(8443)))]
    }),
    ("half a handshake", (0, 0, 0, 0), |s| {
        vec![Box::new(sent(s.addr(8443), &[0x16]))]
    }),
    ("after a handshake", (0, 0, 0, 1), |s| {
        vec![Box::new(tls(s.addr(8443), b""))]
    }),
    ("silent before the PROXY protocol", (0, 0, 0, 1), |s| {
        vec![Box::new(connect(s.addr(8081)))]
    }),
    ("after the PROXY protocol", (0, 0, 0, 1), |s| {
        vec![Box::new(sent(s.addr(8081), b"PROXY UNKNOWN\r\n"))]
    }),
    ("HTTP/2", (0, 0, 0, 1), |s| http2(s, 8082, &[])),
    ("HTTP/2 after a request", (1, 0, 0, 1), |s| {
        http2(s, 8082, &[&headers(false)])
    }),
    ("HTTP/2 with a body to wait for", (1, 0, 1, 0), |s| {
        http2(s, 8082, &[&headers(true)])
    }),
    ("HTTP/2 over TLS", (0, 0, 0, 1), |s| http2(s, 8443, &[])),
    ("HTTP/2 over TLS after a request", (1, 0, 0, 1), |s| {
        http2(s, 8443, &[&headers(false)])
    }),
];

#[test]
fn counters_are_nginxs() {
    let conf = "%%TEST_GLOBALS%% worker_processes 1; events { } http { %%TEST_GLOBALS_HTTP%% access_log off;
        ssl_certificate one.crt; ssl_certificate_key one.key; proxy_http_version 1.1;
        server { listen 127.0.0.1:%%PORT_8080%%; location / { return 200 ok; }
            location /proxy { proxy_pass http://%%ORIGIN%%; } }
        server { listen 127.0.0.1:%%PORT_8443%% ssl http2; return 200 ok; }
        server { listen 127.0.0.1:%%PORT_8081%% proxy_protocol; return 200 ok; }
        server { listen 127.0.0.1:%%PORT_8082%% http2; location / { proxy_pass http://%%ORIGIN%%; } }
        server { listen 127.0.0.1:%%PORT_8083%%; stub_status; }
        server { listen 127.0.0.1:%%PORT_8084%%; keepalive_min_timeout 30s; return 200 ok; }
        server { listen 127.0.0.1:%%PORT_8085%%; lingering_close always; return 200 ok; } }";
    let origin = Origin::echo(&[]);
    let mut wrong = Vec::new();
    for program in programs() {
        // it came with 1.27.4
        let old = program != Couloir::program() && Nginx::version() < (1, 27, 4);
        let conf = match old {
            true => conf.replace("keepalive_min_timeout 30s;", ""),
            false => conf.to_owned(),
        };
        let server = with_pairs(&conf, &["one"])
            .set("ORIGIN", origin.addr())
            .start(&program);
        let mut before = None;
        for (name, expected, state) in STATES {
            if old && name.contains("keepalive_min_timeout") {
                continue;
            }
            let mut asked = 0;
            // what the state before left has ended
            let rest = wait_for(DEADLINE, || {
                let c = counters(&server, &mut asked);
                ((c.1, c.2, c.3) == (0, 0, 0)).then_some(c.0)
            });
            let Some(base) = rest else {
                panic!(
                    "{name}: the state before lasts: {before:?} {}",
                    program.display()
                );
            };
            let held = state(&server);
            let mut last = None;
            let reached = wait_for(Duration::from_secs(3), || {
                let c = counters(&server, &mut asked);
                last = Some((c.0 - base, c.1, c.2, c.3));
                (last == Some(*expected)).then_some(())
            });
            if reached.is_none() {
                wrong.push(format!(
                    "{name}: {last:?}, not {expected:?} {}",
                    program.display()
                ));
            }
            drop(held);
            before = Some(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What becomes of a connection whose client goes on sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Closed at once.
    Closed,
    /// Our side is closed at once, and what comes is read for a while.
    Lingers,
    /// Nothing is closed for a while.
    Open,
}

/// Sends a request, and a byte now and then: the status, and what becomes of the connection.
fn end_of(addr: SocketAddr, request: &str) -> (u16, End) {
    let mut stream = sent(addr, request.as_bytes());
    stream
        .set_read_timeout(Some(Duration::from_millis(30)))
        .unwrap();
    let begun = Instant::now();
    let (mut got, mut fin) = (Vec::new(), None);
    let gone = loop {
        let mut buf = [0; 4096];
        match stream.read(&mut buf) {
            Ok(0) => {
                fin.get_or_insert(begun.elapsed());
                // until the next byte
                wait_for(Duration::from_millis(30), || None::<()>);
            }
            Ok(n) => got.extend_from_slice(&buf[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break begun.elapsed(),
        }
        // not before the time-out of a body, nor before our side is closed
        let sends = fin.is_some() || begun.elapsed() > Duration::from_millis(500);
        if (sends && stream.write_all(b"1").is_err()) || begun.elapsed() > DEADLINE {
            break begun.elapsed();
        }
    };
    let text = String::from_utf8_lossy(&got);
    let status = text
        .lines()
        .filter_map(|l| l.strip_prefix("HTTP/1.1 "))
        .filter_map(|l| l.get(..3)?.parse().ok())
        .find(|s| *s >= 200);
    let soon = Duration::from_millis(900);
    let end = match fin {
        _ if gone < soon => End::Closed,
        Some(f) if f < soon => End::Lingers,
        _ => End::Open,
    };
    (status.unwrap_or(0), end)
}

#[test]
fn connections_linger_where_nginxs_do() {
    let conf = "%%TEST_GLOBALS%% worker_processes 1; events { } http { %%TEST_GLOBALS_HTTP%% access_log off;
        client_body_timeout 300ms; lingering_time 3s; lingering_timeout 2s; client_max_body_size 1000; proxy_http_version 1.1;
        server { listen 127.0.0.1:%%PORT_8080%%; MODE
            location / { proxy_pass http://%%ORIGIN%%; }
            location /local { return 200 ok; }
            location /denied { deny all; }
            location /none { return 404; }
            location /bad { return 400; }
            location /drop { return 444; }
            location /late { return 408; }
            location /unbuffered { proxy_request_buffering off; proxy_pass http://%%ORIGIN%%/; }
            location /dead { proxy_pass http://127.0.0.1:%%PORT_8099%%; } } }";
    let requests: &[(&str, &str, &str)] = &[
        ("GET", "/local", ""),
        ("GET", "/local", "Connection: close"),
        ("GET", "/", "Connection: close"),
        ("GET", "/denied", "Connection: close"),
        ("GET", "/bad", ""),
        ("GET", "/drop", ""),
        ("GET", "/late", ""),
        ("POST", "/", "Content-Length: 900"),
        ("POST", "/", "Content-Length: 900\r\nConnection: close"),
        ("POST", "/", "Content-Length: 0\r\nConnection: close"),
        ("POST", "/", "Content-Length: 9000"),
        ("POST", "/", "Content-Length: 9000\r\nConnection: close"),
        ("POST", "/local", "Content-Length: 900"),
        ("POST", "/local", "Content-Length: 900\r\nConnection: close"),
        ("POST", "/denied", "Content-Length: 900"),
        (
            "POST",
            "/denied",
            "Content-Length: 900\r\nConnection: close",
        ),
        ("POST", "/none", "Content-Length: 900\r\nConnection: close"),
        ("POST", "/bad", "Content-Length: 900"),
        ("POST", "/drop", "Content-Length: 900"),
        ("POST", "/late", "Content-Length: 900"),
        ("POST", "/dead", "Content-Length: 900"),
        ("POST", "/", "Transfer-Encoding: chunked"),
        ("POST", "/local", "Transfer-Encoding: chunked"),
        ("GET", "/", "Host: twice"),
        ("GET", "/..", ""),
        ("BREW ", "/", ""),
    ];
    // bodies that come with the head
    let bodies: &[(&str, &str, &str)] = &[
        (
            "POST",
            "/",
            "Transfer-Encoding: chunked\r\nX: too large\r\n\r\nffff\r\na",
        ),
        ("POST", "/", "Transfer-Encoding: chunked\r\n\r\nz"),
        ("POST", "/local", "Transfer-Encoding: chunked\r\n\r\nz"),
        (
            "POST",
            "/",
            "Content-Length: 3\r\nConnection: close\r\n\r\nabc",
        ),
        (
            "POST",
            "/local",
            "Content-Length: 3\r\nConnection: close\r\n\r\nabc",
        ),
        (
            "POST",
            "/dead",
            "Content-Length: 3\r\nConnection: close\r\n\r\nabc",
        ),
    ];
    let mut all: Vec<(String, String)> = Vec::new();
    for (method, path, more) in requests.iter().chain(bodies) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        let end = if more.contains("\r\n\r\n") {
            ""
        } else {
            "\r\n"
        };
        let head = match (more.is_empty(), end) {
            (true, _) => format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            (_, "") => head.trim_end_matches("\r\n").to_owned(),
            _ => format!("{head}\r\n"),
        };
        all.push((format!("{method} {path} {more:?}"), head));
    }
    let origin = Origin::echo(&[]);
    let mut wrong = Vec::new();
    for mode in [
        "lingering_close on;",
        "lingering_close off;",
        "lingering_close always;",
    ] {
        let outcomes = programs().map(|program| {
            let server = Setup::new(&conf.replace("MODE", mode))
                .set("ORIGIN", origin.addr())
                .start(&program);
            let addr = server.addr(8080);
            let running: Vec<_> = all
                .iter()
                .map(|(_, request)| {
                    let request = request.clone();
                    std::thread::spawn(move || end_of(addr, &request))
                })
                .collect();
            running
                .into_iter()
                .map(|t| t.join().unwrap())
                .collect::<Vec<_>>()
        });
        for (i, (name, _)) in all.iter().enumerate() {
            let (nginx, ours) = (outcomes[0][i], outcomes[1][i]);
            if nginx != ours {
                wrong.push(format!("{mode} {name}: nginx {nginx:?}, ours {ours:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
