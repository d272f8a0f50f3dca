//! Connections that end, and those that a reload keeps: no request is lost (RFC 9113, section 6.8).

use super::common::origin::{Gate, Origin, Step};
use super::common::proc::Server;
use super::common::{DEADLINE, wait_for};
use super::{CONF, Raw, start};
use couloir::http::h2::frame::{self, Frame};
use couloir::http::h2::{Code, MAX_WINDOW};
use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What GOAWAY says: the last stream and the code.
type GoAway = (u32, Code);

impl Raw {
    /// Reads up to GOAWAY and, where it is the first of two, the PING behind it; `None` at the connection's end.
    fn goaway(&mut self) -> Option<(GoAway, Option<[u8; 8]>)> {
        let mut told = None;
        loop {
            let (head, payload) = self.frame()?;
            match frame::parse(&head, &payload).unwrap() {
                Frame::GoAway { last, code } if last == MAX_WINDOW => told = Some((last, code)),
                Frame::GoAway { last, code } => return Some(((last, code), None)),
                Frame::Ping { ack: false, data } => return Some((told?, Some(data))),
                _ => {}
            }
        }
    }

    /// The connection ends in two steps; a stream that is opened between them is served.
    fn expect_parting(&mut self, body: &str) {
        let (told, ping) = self.goaway().expect("GOAWAY");
        assert_eq!(told, (MAX_WINDOW, Code::NO_ERROR));
        let id = self.request(&[], true);
        assert!(self.flush());
        let answer = self.answer(id, false);
        assert_eq!((&*answer.status, &*answer.body), ("200", body.as_bytes()));
        frame::ping(&mut self.out, true, ping.expect("PING"));
        assert!(self.flush());
        assert_eq!(self.goaway(), Some(((id, Code::NO_ERROR), None)));
        assert!(self.frame().is_none(), "nothing follows");
    }

    fn get(&mut self) -> Vec<u8> {
        let id = self.request(&[], true);
        assert!(self.flush());
        self.answer(id, false).body
    }
}

fn text(text: &str) -> String {
    format!("location / {{ return 200 {text}; }}")
}

/// Waits until a new connection sees the configuration.
fn wait_for_text(s: &Server, port: u16, body: &str) {
    let seen = wait_for(DEADLINE, || {
        // the address may not be there yet
        TcpStream::connect(s.addr(port)).ok()?;
        (Raw::connect(s.addr(port)).get() == body.as_bytes()).then_some(())
    });
    assert!(seen.is_some());
}

#[test]
fn limits_of_a_connection() {
    for http in [
        "keepalive_requests 2;",
        "keepalive_time 1ms;",
        "keepalive_timeout 0;",
    ] {
        let s = start(http, &text("ok"));
        let mut c = Raw::connect(s.addr(8080));
        c.flush();
        // its SETTINGS have come; older than `keepalive_time` it is soon
        c.frame().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(3) {
            std::thread::yield_now();
        }
        c.request(&[], true);
        c.request(&[], true);
        c.flush();
        c.expect_parting("ok");
    }
}

#[test]
fn a_client_that_does_not_answer_the_ping() {
    let s = start("keepalive_requests 1;", &text("ok"));
    let mut c = Raw::connect(s.addr(8080));
    c.request(&[], true);
    c.flush();
    let begun = Instant::now();
    assert_eq!(c.goaway().unwrap().0.0, MAX_WINDOW);
    assert_eq!(c.goaway(), Some(((1, Code::NO_ERROR), None)));
    assert!(begun.elapsed() > Duration::from_millis(500));
    assert!(c.frame().is_none());
}

#[test]
fn idle_and_drained_connections() {
    let s = start("keepalive_timeout 50ms;", &text("ok"));
    let mut c = Raw::connect(s.addr(8080));
    assert_eq!(c.get(), b"ok");
    c.expect_parting("ok");

    let s = start("", &text("ok"));
    let mut idle = Raw::connect(s.addr(8080));
    assert_eq!(idle.get(), b"ok");
    let mut fresh = Raw::connect(s.addr(8080));
    fresh.flush();
    // its SETTINGS have come: it is served
    fresh.frame().unwrap();
    s.signal(Signal::SIGQUIT);
    idle.expect_parting("ok");
    fresh.expect_parting("ok");
}

/// A connection whose address the new configuration serves as before goes on; another one ends without a loss.
#[test]
fn what_a_reload_ends() {
    let conf = |http: &str, listen: &str, body: &str| {
        let listen = format!("listen 127.0.0.1:%%PORT_8081%%; {listen}");
        CONF.replace("listen 127.0.0.1:%%PORT_8080%%;", &listen)
            .replace("%%HTTP%%", http)
            .replace("%%SERVER%%", &text(body))
    };
    let here = "listen 127.0.0.1:%%PORT_8080%%;";
    for (http, listen, between) in [
        // the address has gone
        ("", "", "old"),
        // it speaks HTTP/1 alone
        (
            "server { http2 off; listen 127.0.0.1:%%PORT_8080%%; }",
            "",
            "old",
        ),
        // other settings were announced
        ("http2_max_concurrent_streams 7;", here, "new"),
        ("http2_body_preread_size 70k;", here, "new"),
    ] {
        let mut s = start("", &text("old"));
        let mut c = Raw::connect(s.addr(8080));
        assert_eq!(c.get(), b"old");
        s.write_conf(&conf(http, listen, "new"));
        s.reload();
        c.expect_parting(between);
        wait_for_text(&s, 8081, "new");
    }
    let mut s = start("", &text("old"));
    let mut c = Raw::connect(s.addr(8080));
    assert_eq!(c.get(), b"old");
    for (http, body) in [
        ("keepalive_timeout 30s;", "one"),
        ("client_header_timeout 7s;", "two"),
    ] {
        s.write_conf(&conf(http, here, body));
        s.reload();
        wait_for_text(&s, 8081, body);
        assert_eq!(c.get(), body.as_bytes());
    }
}

/// `worker_shutdown_timeout` bounds the life of a connection that a reload has told to go, and of no other.
#[test]
fn worker_shutdown_timeout_cuts_what_was_told_to_go() {
    let gate = Gate::new();
    let origin = Origin::script(vec![vec![Step::Read, Step::Wait(gate.clone())]]);
    let conf = |streams: &str| {
        let other = format!(
            "server {{ listen 127.0.0.1:%%PORT_8081%%; http2_max_concurrent_streams {streams};
               location / {{ proxy_pass http://{}; }} }}",
            origin.addr()
        );
        let location = format!(
            "location = /now {{ return 200 s{streams}; }} location / {{ proxy_pass http://{}; }}",
            origin.addr()
        );
        CONF.replace("events {", "worker_shutdown_timeout 100ms; events {")
            .replace("%%HTTP%%", &other)
            .replace("%%SERVER%%", &location)
    };
    let mut s = start("", &text("old"));
    s.write_conf(&conf("10"));
    s.reload();
    let now = |c: &mut Raw| {
        let id = c.request(&[(":path", "/now")], true);
        c.flush();
        String::from_utf8(c.answer(id, false).body).unwrap()
    };
    let seen = wait_for(DEADLINE, || {
        (now(&mut Raw::connect(s.addr(8080))) == "s10").then_some(())
    });
    assert!(seen.is_some(), "{}", s.log());
    let mut stays = Raw::connect(s.addr(8080));
    let mut goes = Raw::connect(s.addr(8081));
    for c in [&mut stays, &mut goes] {
        c.request(&[], true);
        c.flush();
    }
    origin.wait_for_requests(2);
    s.write_conf(&conf("11"));
    s.reload();
    let (told, _) = goes.goaway().expect("GOAWAY");
    assert_eq!(told, (MAX_WINDOW, Code::NO_ERROR));
    // the request never ends: the connection does
    while goes.frame().is_some() {}
    let end = goes.stream.read(&mut [0]);
    let open = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
    assert!(!end.is_err_and(|e| open(e.kind())), "it goes on");
    assert_eq!(now(&mut stays), "s11");
    frame::ping(&mut stays.out, false, *b"anything");
    assert!(stays.flush());
    while let Some((head, payload)) = stays.frame() {
        match frame::parse(&head, &payload).unwrap() {
            Frame::Ping { ack: true, .. } => return,
            Frame::GoAway { .. } | Frame::Reset(_) => break,
            _ => {}
        }
    }
    panic!("the connection that stays has ended");
}

/// A connection that waits does not keep the configuration that it began with.
#[test]
fn the_old_site_is_freed_though_connections_wait() {
    let conf = |log: &str| {
        CONF.replace("%%HTTP%%", &format!("access_log {log};"))
            .replace("%%SERVER%%", &text(log))
    };
    let mut s = start("access_log old.log;", &text("old.log"));
    let mut c = Raw::connect(s.addr(8080));
    assert_eq!(c.get(), b"old.log");
    let path = s.dir().join("old.log");
    // the master keeps logs for itself
    let master = s.pid().to_string();
    let held = || {
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        pids.filter(|p| {
            let stat = std::fs::read_to_string(p.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|s| s.split_whitespace().nth(1));
            parent == Some(&*master)
        })
        .filter_map(|p| std::fs::read_dir(p.path().join("fd")).ok())
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .any(|held| held == path)
    };
    assert!(held());
    s.write_conf(&conf("new.log"));
    s.reload();
    wait_for_text(&s, 8080, "new.log");
    let freed = wait_for(DEADLINE, || (!held()).then_some(()));
    assert!(freed.is_some(), "the old site is still there");
    assert_eq!(c.get(), b"new.log");
}

/// Clients that never repeat a request, on connections that begin, end and are kept while reloads follow each other.
#[test]
fn reloads_lose_no_stream() {
    let conf = |round: usize| {
        CONF.replace(
            "%%HTTP%%",
            &format!(
                "keepalive_requests 50; http2_max_concurrent_streams {};",
                100 + round % 2
            ),
        )
        .replace("%%SERVER%%", &text(&format!("round{round}")))
    };
    let mut s = start("", &text("round"));
    let addr = s.addr(8080);
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (1..=4)
        .map(|at_once| {
            let (over, answered) = (over.clone(), answered.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut c = Raw::connect(addr);
                    let (mut open, mut going) = (Vec::new(), false);
                    loop {
                        while !going && open.len() < at_once && !over.load(Ordering::Relaxed) {
                            open.push(c.request(&[], true));
                        }
                        if open.is_empty() {
                            break;
                        }
                        assert!(c.flush());
                        let (head, payload) = c.frame().expect("a stream was lost");
                        match frame::parse(&head, &payload).unwrap() {
                            Frame::GoAway { last, .. } => {
                                going = true;
                                assert!(open.iter().all(|id| *id <= last), "a stream was lost");
                            }
                            Frame::Ping { ack: false, data } => frame::ping(&mut c.out, true, data),
                            Frame::Reset(code) => panic!("a stream was lost: {code}"),
                            Frame::Data { end: true, .. } => {
                                open.retain(|id| *id != head.stream);
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            _ => {}
                        }
                    }
                }
            })
        })
        .collect();
    for round in 0..8 {
        let before = answered.load(Ordering::Relaxed);
        s.write_conf(&conf(round));
        s.reload();
        let more = wait_for(DEADLINE, || {
            (answered.load(Ordering::Relaxed) > before + 100).then_some(())
        });
        assert!(more.is_some());
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no stream was lost");
    }
    assert!(s.quit().success());
}
