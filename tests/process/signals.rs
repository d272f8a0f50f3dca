//! One signal after the other, to the master and to the worker.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::common::client::{self, Client};
use super::common::proc::{Couloir, Setup};
use super::common::{DEADLINE, wait_for};
use super::{REQUEST, answering, slow, title, wait_for_answer, worker_of};

#[test]
fn quit_finishes_what_is_under_way() {
    let (mut server, origin, gate) = slow("");
    let addr = server.addr(8080);
    let mut idle = Client::connect(addr);
    idle.send("GET /now HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert_eq!(idle.response("GET").unwrap().status, 200);
    let mut fresh = Client::connect(addr);
    let mut busy = Client::connect(addr);
    busy.send(REQUEST).unwrap();
    origin.wait_for_requests(1);
    server.signal(Signal::SIGQUIT);
    // idle connections are closed, new ones refused
    assert!(idle.read_to_close().unwrap().is_empty());
    // one that has not had its first request yet is served
    fresh.send("GET /now HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let response = fresh.response("GET").unwrap();
    assert!(response.status == 200 && !response.keeps_alive());
    let refused =
        || TcpStream::connect(addr).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    assert!(wait_for(DEADLINE, || refused().then_some(())).is_some());
    gate.open();
    let response = busy.response("GET").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "slow"));
    assert!(!response.keeps_alive());
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.dir().join("nginx.pid").exists());
    server.wait_for_text("access.log", "\" 200 4 ");
}

#[test]
fn keepalive_min_timeout_keeps_connections_while_the_process_drains() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
                server { listen 127.0.0.1:%%PORT_8080%%;
                    location = /kept { keepalive_min_timeout 1h; return 200; }
                    location / { return 200; } } }";
    let mut server = Setup::new(conf).start(&Couloir::program());
    let addr = server.addr(8080);
    let idle = |uri: &str| {
        let mut client = Client::connect(addr);
        client
            .send(format!("GET {uri} HTTP/1.1\r\nHost: h\r\n\r\n"))
            .unwrap();
        assert_eq!(client.response("GET").unwrap().status, 200);
        client
    };
    let (mut kept, mut other) = (idle("/kept"), idle("/"));
    server.signal(Signal::SIGQUIT);
    assert!(other.read_to_close().unwrap().is_empty());
    // as often as it likes, until it asks for what has no such time
    for (uri, keeps) in [("/kept", true), ("/kept", true), ("/", false)] {
        kept.send(format!("GET {uri} HTTP/1.1\r\nHost: h\r\n\r\n"))
            .unwrap();
        let response = kept.response("GET").unwrap();
        assert_eq!((response.status, response.keeps_alive()), (200, keeps));
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn quit_waits_no_longer_than_worker_shutdown_timeout() {
    let (mut server, origin, _gate) = slow("worker_shutdown_timeout 50ms;");
    let mut busy = Client::connect(server.addr(8080));
    busy.send(REQUEST).unwrap();
    origin.wait_for_requests(1);
    let began = Instant::now();
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(busy.response("GET").is_err());
    // the request that was cut off is not missing in the log
    assert!(
        server.read("access.log").contains("GET / HTTP/1.1"),
        "{}",
        server.log()
    );
}

#[test]
fn term_and_int_end_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut server, origin, _gate) = slow("");
        let mut busy = Client::connect(server.addr(8080));
        busy.send(REQUEST).unwrap();
        origin.wait_for_requests(1);
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0));
        assert!(busy.response("GET").is_err());
        assert!(!server.dir().join("nginx.pid").exists());
        let (number, name) = (signal as i32, signal.as_str());
        let own = std::process::id();
        assert!(server.log().contains(&format!(
            "signal {number} ({name}) received from {own}, exiting"
        )));
    }
}

#[test]
fn term_ends_a_quit_that_takes_too_long() {
    let (mut server, origin, _gate) = slow("");
    let mut busy = Client::connect(server.addr(8080));
    busy.send(REQUEST).unwrap();
    origin.wait_for_requests(1);
    server.signal(Signal::SIGQUIT);
    server.wait_for_text("error.log", "gracefully shutting down");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn usr1_opens_the_logs_anew() {
    let server = Couloir::start(&answering("x"));
    let addr = server.addr(8080);
    client::get(addr, "/before", "h");
    server.wait_for_text("access.log", "/before");
    for name in ["access.log", "error.log"] {
        fs::rename(
            server.dir().join(name),
            server.dir().join(format!("{name}.1")),
        )
        .unwrap();
    }
    // until it is told, the process writes on to the old file
    client::get(addr, "/between", "h");
    server.wait_for_text("access.log.1", "/between");
    assert!(!server.dir().join("access.log").exists());
    server.signal(Signal::SIGUSR1);
    // the worker has its new descriptors from the master
    let told = wait_for(DEADLINE, || {
        let lines = server.read("error.log.1") + &server.read("error.log");
        let both = lines.matches(": reopening logs").count() >= 2;
        (both && server.dir().join("access.log").exists()).then_some(())
    });
    assert!(told.is_some(), "{}", server.log());
    let written = wait_for(DEADLINE, || {
        client::get(addr, "/after", "h");
        server.read("access.log").contains("/after").then_some(())
    });
    assert!(written.is_some());
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::fs::MetadataExt;
        let owner = fs::metadata(server.dir().join("access.log")).unwrap().uid();
        assert_ne!(owner, 0, "the user that serves owns the log");
    }
    assert!(server.read("error.log.1").contains("reopening logs"));
    assert!(server.stop().success());
}

#[test]
fn winch_means_nothing_to_a_process_in_the_foreground() {
    let server = Couloir::start(&answering("x"));
    server.signal(Signal::SIGWINCH);
    server.wait_for_text("error.log", "(SIGWINCH) received from ");
    assert_eq!(client::get(server.addr(8080), "/", "h").status, 200);
    assert!(server.stop().success());
}

#[test]
fn titles() {
    let server = Couloir::start(&answering("x"));
    let master = title(server.pid());
    assert!(master.starts_with("couloir: master process "), "{master}");
    assert!(master.contains(" -c nginx.conf"), "{master}");
    assert_eq!(title(worker_of(server.pid())), "couloir: worker process");

    // called nginx, it shows as nginx, which scripts look for
    let dir = tempfile::TempDir::new().unwrap();
    let nginx = dir.path().join("nginx");
    std::os::unix::fs::symlink(Couloir::program(), &nginx).unwrap();
    let server = Setup::new(&answering("x")).start(&nginx);
    assert!(title(server.pid()).starts_with("nginx: master process /"));
    assert_eq!(title(worker_of(server.pid())), "nginx: worker process");
    let name = fs::read_to_string(format!("/proc/{}/comm", worker_of(server.pid()))).unwrap();
    assert_eq!(name.trim(), "nginx");
}

#[test]
fn signals_to_the_worker_itself() {
    let server = Couloir::start(&answering("x"));
    let addr = server.addr(8080);
    let mut worker = worker_of(server.pid());
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        kill(worker, signal).unwrap();
        server.wait_for_text(
            "error.log",
            &format!("({}) received from ", signal.as_str()),
        );
    }
    kill(worker, Signal::SIGUSR1).unwrap();
    server.wait_for_text("error.log", "reopening logs");
    assert_eq!(client::get(addr, "/", "h").status, 200);
    // as nginx's, a worker that ends by itself is followed by another
    for signal in [Signal::SIGQUIT, Signal::SIGTERM] {
        kill(worker, signal).unwrap();
        server.wait_for_text(
            "error.log",
            &format!("worker process {worker} exited with code 0"),
        );
        wait_for_answer(&server, "x");
        let next = worker_of(server.pid());
        assert_ne!(next, worker);
        worker = next;
    }
}

#[test]
fn hup_during_a_quit_is_not_heeded() {
    let (mut server, origin, gate) = slow("");
    let mut busy = Client::connect(server.addr(8080));
    busy.send(REQUEST).unwrap();
    origin.wait_for_requests(1);
    server.signal(Signal::SIGQUIT);
    server.wait_for_text("error.log", "gracefully shutting down");
    server.signal(Signal::SIGHUP);
    server.wait_for_text("error.log", "(SIGHUP) received from ");
    server.signal(Signal::SIGQUIT);
    gate.open();
    assert_eq!(busy.response("GET").unwrap().text(), "slow");
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        !server.log().contains(": reconfiguring"),
        "{}",
        server.log()
    );
}

#[test]
fn a_burst_of_hups_is_few_reloads() {
    let mut server = Couloir::start(&answering("old"));
    server.write_conf(&answering("new"));
    for _ in 0..50 {
        server.reload();
    }
    wait_for_answer(&server, "new");
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().matches(": reconfiguring").count() < 50);
}
