//! HUP and `-s reload`: what changes, what stays, and what is refused.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use super::common::client::{self, Client};
use super::common::proc::Couloir;
use super::common::{DEADLINE, wait_for};
use super::{REQUEST, answering, lives, slow, wait_for_answer, wait_for_end, worker_of};

#[test]
fn reload_under_load_loses_nothing() {
    let mut server = Couloir::start(&answering("text0"));
    let addr = server.addr(8080);
    let over = Arc::new(AtomicBool::new(false));
    let requests = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (over, requests) = (over.clone(), requests.clone());
            thread::spawn(move || {
                let mut kept = Client::connect(addr);
                while !over.load(Ordering::Relaxed) {
                    // half of them on one connection, half on new ones
                    if n % 2 == 0 {
                        kept = Client::connect(addr);
                    }
                    kept.send(REQUEST).expect("send");
                    let response = kept.response("GET").expect("a response");
                    assert_eq!(response.status, 200);
                    assert!(response.keeps_alive());
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 1..=5 {
        let text = format!("text{round}");
        server.write_conf(&answering(&text));
        server.reload();
        wait_for_answer(&server, &text);
        let seen = requests.load(Ordering::Relaxed);
        assert!(
            wait_for(DEADLINE, || (requests.load(Ordering::Relaxed) > seen + 20)
                .then_some(()))
            .is_some()
        );
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request was lost");
    }
    assert!(server.quit().success());
}

#[test]
fn a_kept_connection_sees_the_new_configuration() {
    let mut server = Couloir::start(&answering("old"));
    let mut client = Client::connect(server.addr(8080));
    client.send(REQUEST).unwrap();
    assert_eq!(client.response("GET").unwrap().text(), "old");
    server.write_conf(&answering("new").replace(
        "http {",
        "http { server { listen 127.0.0.1:%%PORT_8081%%; }",
    ));
    server.reload();
    wait_for_answer(&server, "new");
    client.send(REQUEST).unwrap();
    assert_eq!(client.response("GET").unwrap().text(), "new");
}

#[test]
fn a_bad_configuration_changes_nothing() {
    let mut server = Couloir::start(&answering("good"));
    let mut kept = Client::connect(server.addr(8080));
    let in_use = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let _taken = TcpListener::bind(in_use).unwrap();
    for (bad, says) in [
        (
            "events { } http { nonsense; }".to_owned(),
            "unknown directive \"nonsense\" in ",
        ),
        (
            "events { } http {".to_owned(),
            "unexpected end of file, expecting \"}\" in ",
        ),
        (
            answering("bad").replace("server {", &format!("server {{ listen {in_use};")),
            "still could not bind()",
        ),
    ] {
        server.write_conf(&bad);
        server.reload();
        server.wait_for_text("error.log", says);
        assert_eq!(client::get(server.addr(8080), "/", "h").text(), "good");
        kept.send(REQUEST).unwrap();
        assert_eq!(kept.response("GET").unwrap().text(), "good");
    }
    server.write_conf(&answering("better"));
    server.reload();
    wait_for_answer(&server, "better");
}

#[test]
fn reload_on_the_command_line_refuses_a_bad_configuration() {
    let mut server = Couloir::start(&answering("good"));
    let dir = server.dir().to_owned();
    let reload = || {
        let mut command = Command::new(Couloir::program());
        command
            .arg("-p")
            .arg(&dir)
            .args(["-c", "nginx.conf", "-e", "first.log", "-s", "reload"]);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    server.write_conf("events { } nonsense;");
    let (code, err) = reload();
    assert_eq!(code, Some(1));
    assert!(
        err.starts_with("nginx: [emerg] unknown directive \"nonsense\" in "),
        "{err}"
    );
    server.write_conf(&answering("better"));
    assert_eq!(reload(), (Some(0), String::new()));
    wait_for_answer(&server, "better");
    // the first one never reached the process
    assert_eq!(server.log().matches(", reconfiguring").count(), 1);
}

#[test]
fn listeners_come_and_go_with_a_reload() {
    let conf = |listen: &str| {
        format!(
            "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% server {{ {listen} return 200 $server_port; }} }}"
        )
    };
    let both = "listen 127.0.0.1:%%PORT_8080%%; listen 127.0.0.1:%%PORT_8081%% reuseport; listen unix:%%TESTDIR%%/socket;";
    let mut server = Couloir::start(&conf(both));
    let (kept, other) = (server.addr(8080), server.addr(8081));
    assert_eq!(
        client::get(other, "/", "h").text(),
        other.port().to_string()
    );
    assert!(server.dir().join("socket").exists());
    server.write_conf(&conf("listen 127.0.0.1:%%PORT_8080%%;"));
    server.reload();
    let refused = |addr: SocketAddr| {
        TcpStream::connect(addr).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    };
    assert!(wait_for(DEADLINE, || refused(other).then_some(())).is_some());
    let removed = || (!server.dir().join("socket").exists()).then_some(());
    assert!(wait_for(DEADLINE, removed).is_some());
    assert_eq!(client::get(kept, "/", "h").text(), kept.port().to_string());
    server.write_conf(&conf(both));
    server.reload();
    assert!(wait_for(DEADLINE, || TcpStream::connect(other).ok()).is_some());
    assert_eq!(
        client::get(other, "/", "h").text(),
        other.port().to_string()
    );
    assert!(server.stop().success());
}

#[test]
fn addresses_under_a_wildcard_have_their_own_servers() {
    let server = Couloir::start(
        "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
         server { listen 127.0.0.2:%%PORT_8080%%; return 200 two; }
         server { listen %%PORT_8080%%; return 200 any; } }",
    );
    let port = server.port(8080);
    assert_eq!(
        client::get(([127, 0, 0, 2], port).into(), "/", "h").text(),
        "two"
    );
    assert_eq!(
        client::get(([127, 0, 0, 1], port).into(), "/", "h").text(),
        "any"
    );
}

#[test]
fn the_pid_file_moves_with_a_reload() {
    let conf = |pid: &str| {
        format!(
            "daemon off; error_log %%TESTDIR%%/error.log info; pid %%TESTDIR%%/{pid};
             events {{ }} http {{ %%TEST_GLOBALS_HTTP%% server {{ listen 127.0.0.1:%%PORT_8080%%; }} }}"
        ) + "#%%TEST_GLOBALS%%"
    };
    let mut server = Couloir::start(&conf("nginx.pid"));
    let pid = server.read("nginx.pid");
    assert_eq!(pid, format!("{}\n", server.pid()));
    server.write_conf(&conf("other.pid"));
    server.reload();
    assert!(wait_for(DEADLINE, || (server.read("other.pid") == pid).then_some(())).is_some());
    assert!(
        wait_for(DEADLINE, || (!server.dir().join("nginx.pid").exists())
            .then_some(()))
        .is_some()
    );
    let dir = server.dir().to_owned();
    server.signal(Signal::SIGQUIT);
    assert!(server.wait().success());
    assert!(!dir.join("other.pid").exists());
}

#[test]
fn the_worker_stays_unless_it_cannot_change_itself() {
    let mut server = Couloir::start(&answering("one"));
    let first = worker_of(server.pid());
    server.write_conf(&answering("two"));
    server.reload();
    wait_for_answer(&server, "two");
    assert_eq!(worker_of(server.pid()), first);
    server.wait_for_text("error.log", "reload: ");

    // a new one is there before the old one goes
    let more = answering("three").replace("worker_processes 2", "worker_processes 3");
    server.write_conf(&more);
    server.reload();
    wait_for_answer(&server, "three");
    wait_for_end(first);
    let second = worker_of(server.pid());
    server.wait_for_text("error.log", "\"worker_processes\" changed");

    let always = more.replace("events", "reload_method replace; events");
    server.write_conf(&always.replace("three", "four"));
    server.reload();
    wait_for_answer(&server, "four");
    wait_for_end(second);
    assert!(lives(worker_of(server.pid())));
    assert!(server.quit().success());
}

#[test]
fn a_worker_that_is_replaced_finishes_what_is_under_way() {
    let (mut server, origin, gate) = slow("reload_method replace;");
    let mut busy = Client::connect(server.addr(8080));
    busy.send(REQUEST).unwrap();
    origin.wait_for_requests(1);
    let first = worker_of(server.pid());
    server.reload();
    server.wait_for_text("error.log", "gracefully shutting down");
    let now = client::get(server.addr(8080), "/now", "h");
    assert_eq!(now.status, 200);
    assert!(lives(first));
    gate.open();
    assert_eq!(busy.response("GET").unwrap().text(), "slow");
    wait_for_end(first);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait().code(), Some(0));
}

/// `worker_shutdown_timeout` bounds what a reload ends, and cuts nothing that the new configuration serves.
#[test]
fn worker_shutdown_timeout_cuts_what_a_reload_ends() {
    let (mut server, origin, gate) = slow("");
    let conf = |timeout: &str, listen: &str| {
        format!(
            "%%TEST_GLOBALS%% worker_shutdown_timeout {timeout}; events {{ }} http {{ %%TEST_GLOBALS_HTTP%%
             server {{ listen 127.0.0.1:%%PORT_8080%%; {listen} location = /now {{ return 200 {timeout}; }}
                       location / {{ proxy_pass http://%%ORIGIN%%; }} }} }}"
        )
    };
    let other = "listen 127.0.0.1:%%PORT_8081%%;";
    server.write_conf(&conf("100ms", other));
    server.reload();
    let addrs = [8080, 8081].map(|n| server.addr(n));
    let now = "GET /now HTTP/1.1\r\nHost: h\r\n\r\n";
    let seen = |text: &str| {
        wait_for(DEADLINE, || {
            (client::get(addrs[0], "/now", "h").text() == text).then_some(())
        })
    };
    assert!(seen("100ms").is_some(), "{}", server.log());
    let [mut stays, mut goes] = addrs.map(Client::connect);
    stays.send(REQUEST).unwrap();
    goes.send(REQUEST).unwrap();
    origin.wait_for_requests(2);
    let mut idle = Client::connect(addrs[0]);
    idle.send(now).unwrap();
    assert_eq!(idle.response("GET").unwrap().text(), "100ms");
    server.write_conf(&conf("1h", ""));
    server.reload();
    // the timeout that was in force before the reload
    assert!(goes.read_to_close().unwrap_or_default().is_empty());
    assert!(seen("1h").is_some(), "{}", server.log());
    idle.send(now).unwrap();
    assert_eq!(idle.response("GET").unwrap().text(), "1h");
    gate.open();
    let response = stays.response("GET").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "slow"));
    assert!(response.keeps_alive());
    stays.send(now).unwrap();
    assert_eq!(stays.response("GET").unwrap().text(), "1h");
}

/// The old configuration goes with the last request that began under it: a log that it alone names is closed then.
#[test]
fn the_old_site_is_freed_with_its_last_request() {
    let (mut server, origin, gate) = slow("");
    let conf = |log: &str| {
        format!(
            "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% access_log %%TESTDIR%%/{log};
             server {{ listen 127.0.0.1:%%PORT_8080%%; location = /now {{ return 200; }}
                       location / {{ proxy_pass http://%%ORIGIN%%; }} }} }}"
        )
    };
    server.write_conf(&conf("only-old.log"));
    server.reload();
    let worker = worker_of(server.pid());
    let holds = |name: &str| {
        let fds = fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
        fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
            .any(|path| path.ends_with(name))
    };
    assert!(wait_for(DEADLINE, || holds("only-old.log").then_some(())).is_some());
    server.wait_for_text("error.log", "reload: ");
    let mut busy = Client::connect(server.addr(8080));
    busy.send(REQUEST).unwrap();
    origin.wait_for_requests(1);
    server.write_conf(&conf("new.log"));
    server.reload();
    assert!(wait_for(DEADLINE, || holds("new.log").then_some(())).is_some());
    let reloads = wait_for(DEADLINE, || {
        (server.log().matches(" reload: ").count() == 2).then_some(())
    });
    assert!(reloads.is_some(), "{}", server.log());
    assert!(holds("only-old.log"), "the request under way needs it");
    gate.open();
    assert_eq!(busy.response("GET").unwrap().text(), "slow");
    let freed = wait_for(DEADLINE, || (!holds("only-old.log")).then_some(()));
    assert!(freed.is_some(), "the old site is still there");
    server.wait_for_text("only-old.log", "GET / HTTP/1.1");
}

#[test]
fn reload_on_the_command_line_tells_what_the_server_says() {
    let server = Couloir::start(&answering("x"));
    let dir = server.dir().to_owned();
    let mut command = Command::new(Couloir::program());
    command
        .arg("-p")
        .arg(&dir)
        .args(["-c", "nginx.conf", "-e", "first.log", "-s", "reload"]);
    // it waits for the answer: what it asked for is done when it ends
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{}", server.log());
    assert!(server.log().contains("reload: nothing changed"));
    // an address that the running server cannot have is found out there alone
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let conf = server.read("nginx.conf");
    server.write(
        "nginx.conf",
        conf.replace("server {", &format!("server {{ listen {addr};")),
    );
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("an address cannot be listened on"), "{text}");
}
