//! The process from outside: command line, signals under load, files, exit codes.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{self, Client};
use common::origin::{Gate, Origin, Step};
use common::ports::Port;
use common::proc::{Couloir, Server, Setup, run};
use common::{DEADLINE, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

fn answering(text: &str) -> String {
    format!(
        "%%TEST_GLOBALS%% worker_processes 2; events {{ }} http {{ %%TEST_GLOBALS_HTTP%%
         server {{ listen 127.0.0.1:%%PORT_8080%%; return 200 {text}; }} }}"
    )
}

/// Waits until new connections are answered with `text`.
fn wait_for_answer(server: &Server, text: &str) {
    let addr = server.addr(8080);
    let answer = wait_for(DEADLINE, || {
        Some(client::get(addr, "/", "h").text()).filter(|found| found == text)
    });
    assert!(
        answer.is_some(),
        "never {text:?}; its log:\n{}",
        server.log()
    );
}

/// A folder with a configuration, for what never gets as far as serving.
struct Folder(TempDir);

impl Folder {
    fn new(conf: &str) -> Folder {
        let dir = TempDir::with_prefix("couloir-test-").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let folder = Folder(dir);
        folder.write(conf);
        folder
    }

    fn write(&self, conf: &str) {
        fs::write(
            self.path().join("nginx.conf"),
            conf.replace("DIR", &self.path().display().to_string()),
        )
        .unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(Couloir::program());
        command
            .arg("-p")
            .arg(self.path())
            .args(["-c", "nginx.conf", "-e", "first.log"])
            .args(args);
        let Output {
            status,
            stdout,
            stderr,
        } = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(&self.path().display().to_string(), "DIR")
        };
        (status.code(), text(&stdout), text(&stderr))
    }
}

#[test]
fn versions_go_to_the_error_stream() {
    let program = Couloir::program();
    let (status, out, err) = run(&program, &["-v"]);
    assert!(status.success() && out.is_empty());
    assert!(
        err.starts_with("nginx version: nginx/1.31.5\ncouloir version: couloir/"),
        "{err}"
    );
    let (status, out, err) = run(&program, &["-V"]);
    assert!(status.success() && out.is_empty());
    assert!(err.contains("\nbuilt with OpenSSL 3"), "{err}");
    assert!(
        err.contains("\nTLS SNI support enabled\nconfigure arguments: --prefix="),
        "{err}"
    );
    assert!(!err.contains("--without-http_proxy_module"), "{err}");
    assert!(!err.contains("--without-http_uwsgi_module"), "{err}");
    assert!(!err.contains("--with-http_perl_module"), "{err}");
    let (status, out, err) = run(&program, &["-z"]);
    assert_eq!(
        (status.code(), out.as_str(), err.as_str()),
        (Some(1), "", "nginx: invalid option: \"z\"\n")
    );
}

#[test]
fn tests_of_the_configuration() {
    let good =
        "pid nginx.pid; error_log error.log; events { } http { access_log off; include inc; }";
    let folder = Folder::new(good);
    fs::write(folder.path().join("inc"), "# nothing\n").unwrap();
    let ok = "nginx: the configuration file DIR/nginx.conf syntax is ok\n\
              nginx: configuration file DIR/nginx.conf test is successful\n";
    assert_eq!(folder.run(&["-t"]), (Some(0), String::new(), ok.into()));
    assert_eq!(
        folder.run(&["-tq"]),
        (Some(0), String::new(), String::new())
    );
    // a test leaves no pid file over which a later `-s` would stumble
    assert!(!folder.path().join("nginx.pid").exists());
    let (code, out, err) = folder.run(&["-T"]);
    let dump = format!(
        "# configuration file DIR/nginx.conf:\n{good}\n# configuration file DIR/inc:\n# nothing\n\n"
    );
    assert_eq!((code, out, err.as_str()), (Some(0), dump, ok));

    folder.write("events { }\nhttp {\n  servr { }\n}\n");
    let (code, out, err) = folder.run(&["-t"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    let expected = "nginx: [emerg] unknown directive \"servr\" in DIR/nginx.conf:3\n  3 |   servr { }\n    |   ^^^^^\n\
                    help: did you mean \"server\"?\nnginx: configuration file DIR/nginx.conf test failed\n";
    assert_eq!(err, expected);
    // the log has nginx's own line
    assert!(folder.read("first.log").contains("[emerg]"));
    assert_eq!(folder.run(&["-tq"]).2, expected);
    assert_eq!(
        folder.run(&[]).2,
        expected.replace("nginx: configuration file DIR/nginx.conf test failed\n", "")
    );

    folder.write("http { }");
    let (code, _, err) = folder.run(&["-t"]);
    let expected = "nginx: the configuration file DIR/nginx.conf syntax is ok\n\
                    nginx: [emerg] no \"events\" section in configuration\n\
                    nginx: configuration file DIR/nginx.conf test failed\n";
    assert_eq!((code, err.as_str()), (Some(1), expected));

    folder.write("pid no/such/folder; events { }");
    let (code, _, err) = folder.run(&["-t"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains(
            "nginx: [emerg] open() \"DIR/no/such/folder\" failed (2: No such file or directory)\n"
        ),
        "{err}"
    );
    folder.write("events { } http { access_log off; server { listen 192.0.2.1:9; } }");
    let (code, _, err) = folder.run(&["-t", "-g", "pid nginx.pid;"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains(
            "nginx: [emerg] bind() to 192.0.2.1:9 failed (99: Cannot assign requested address)\n"
        ),
        "{err}"
    );
}

#[test]
fn a_port_in_use_is_tried_for_a_while_and_then_given_up() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let conf = format!(
        "pid nginx.pid; error_log error.log; events {{ }} http {{ access_log off;
         server {{ listen {addr}; listen unix:DIR/socket; }} }}"
    );
    let folder = Folder::new(&conf);
    // ports are excepted from a test, as the running process has them
    assert_eq!(folder.run(&["-t"]).0, Some(0));
    let began = Instant::now();
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(began.elapsed() >= Duration::from_secs(2));
    let line = format!("nginx: [emerg] bind() to {addr} failed (98: Address already in use)\n");
    assert_eq!(
        err,
        line.repeat(5) + "nginx: [emerg] still could not bind()\n"
    );
    assert!(folder.read("error.log").contains("still could not bind()"));
    assert!(!folder.path().join("nginx.pid").exists());
    assert!(!folder.path().join("socket").exists());
}

#[test]
fn signals_for_nobody() {
    let folder = Folder::new("pid nginx.pid; events { }");
    let missing = "nginx: [error] open() \"DIR/nginx.pid\" failed (2: No such file or directory)\n";
    for signal in ["stop", "quit", "reload", "reopen"] {
        assert_eq!(
            folder.run(&["-s", signal]),
            (Some(1), String::new(), missing.into())
        );
    }
    fs::write(folder.path().join("nginx.pid"), "x1\n").unwrap();
    let invalid = "nginx: [error] invalid PID number \"x1\" in \"DIR/nginx.pid\"\n";
    assert_eq!(
        folder.run(&["-s", "stop"]),
        (Some(1), String::new(), invalid.into())
    );
    // above what the kernel gives
    fs::write(folder.path().join("nginx.pid"), "2147483646\n").unwrap();
    let nobody = "nginx: [alert] kill(2147483646, 1) failed (3: No such process)\n";
    assert_eq!(
        folder.run(&["-s", "reload"]),
        (Some(1), String::new(), nobody.into())
    );
    assert!(folder.read("first.log").contains("[notice]"));
}

#[test]
fn a_daemon_serves_when_the_starter_ends() {
    let port = Port::reserve();
    let addr = SocketAddr::from(([127, 0, 0, 1], port.number()));
    let folder = Folder::new(&format!(
        "pid nginx.pid; error_log error.log notice; events {{ }}
         http {{ access_log off; server {{ listen {addr}; return 200 $pid; }} }}"
    ));
    assert_eq!(folder.run(&[]), (Some(0), String::new(), String::new()));
    // no waiting: the pid file is there and the port accepts
    let pid = folder.read("nginx.pid");
    assert_eq!(client::get(addr, "/", "h").text(), pid.trim());
    let number: i32 = pid.trim().parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(session, pid.trim(), "a session of its own");
    assert_eq!(
        fs::read_link(format!("/proc/{number}/fd/0")).unwrap(),
        Path::new("/dev/null")
    );
    assert_eq!(
        fs::read_link(format!("/proc/{number}/fd/1")).unwrap(),
        Path::new("/dev/null")
    );

    // a second one finds the port taken, says so and leaves the first alone
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(
        err.ends_with("nginx: [emerg] still could not bind()\n"),
        "{err}"
    );
    assert_eq!(folder.read("nginx.pid"), pid);

    assert_eq!(
        folder.run(&["-s", "quit"]),
        (Some(0), String::new(), String::new())
    );
    let gone = wait_for(DEADLINE, || {
        kill(Pid::from_raw(number), None).is_err().then_some(())
    });
    assert!(gone.is_some(), "{}", folder.read("error.log"));
    assert!(!folder.path().join("nginx.pid").exists());
    let log = folder.read("error.log");
    for line in [" gracefully shutting down", " exiting", " exit"] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
}

#[test]
fn a_failure_after_leaving_the_terminal_is_still_the_starters() {
    let port = Port::reserve().number();
    let folder = Folder::new(&format!(
        "pid no/folder; error_log error.log; events {{ }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; }} }}"
    ));
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("[emerg] open() \"DIR/no/folder\" failed (2: No such file or directory)"),
        "{err}"
    );
    // the process that failed may still be on its way out
    let free = wait_for(DEADLINE, || TcpListener::bind(("127.0.0.1", port)).ok());
    assert!(free.is_some(), "somebody is left");
}

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
    assert!(!server.dir().join("socket").exists());
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

fn slow(more: &str) -> (Server, Origin, Gate) {
    let gate = Gate::new();
    let answer = Step::send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::Wait(gate.clone()),
        answer,
        Step::Close,
    ]]);
    let conf = "%%TEST_GLOBALS%% %%MORE%% events { } http { %%TEST_GLOBALS_HTTP%%
                server { listen 127.0.0.1:%%PORT_8080%%; location = /now { return 200; } location / { proxy_pass http://%%ORIGIN%%; } } }";
    let setup = Setup::new(conf)
        .set("ORIGIN", origin.addr())
        .set("MORE", more);
    (setup.start(&Couloir::program()), origin, gate)
}

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
    assert!(
        wait_for(DEADLINE, || server
            .dir()
            .join("access.log")
            .exists()
            .then_some(()))
        .is_some()
    );
    client::get(addr, "/after", "h");
    server.wait_for_text("access.log", "/after");
    assert!(!server.read("access.log.1").contains("/after"));
    assert!(server.read("error.log.1").contains("reopening logs"));
    assert!(server.stop().success());
}

#[test]
fn signals_that_mean_nothing_yet_do_nothing() {
    let server = Couloir::start(&answering("x"));
    for signal in [Signal::SIGUSR2, Signal::SIGWINCH] {
        server.signal(signal);
        server.wait_for_text(
            "error.log",
            &format!("({}) received from ", signal.as_str()),
        );
    }
    assert_eq!(client::get(server.addr(8080), "/", "h").status, 200);
    assert!(server.stop().success());
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
fn the_environment_is_what_the_configuration_names() {
    let port = Port::reserve();
    let folder = Folder::new(&format!(
        "daemon off; pid nginx.pid; error_log error.log; env KEPT; env SET=value; worker_rlimit_nofile 321;
         working_directory DIR/w; events {{ }} http {{ access_log off; server {{ listen 127.0.0.1:{}; }} }}",
        port.number()
    ));
    fs::create_dir(folder.path().join("w")).unwrap();
    let mut child = Command::new(Couloir::program())
        .arg("-p")
        .arg(folder.path())
        .args(["-c", "nginx.conf", "-e", "first.log"])
        .env("KEPT", "1")
        .env("DROPPED", "1")
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(
        wait_for(DEADLINE, || (!folder.read("nginx.pid").is_empty())
            .then_some(()))
        .is_some()
    );
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains("321"), "{files}");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        folder.path().join("w")
    );
    if nix::unistd::geteuid().is_root() {
        // root's own rights are gone, and come back for a reload only
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uids = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap();
        let ids: Vec<&str> = uids.split_whitespace().skip(1).collect();
        assert!(ids[0] != "0" && ids[1] == ids[0] && ids[2] == "0", "{uids}");
    }
    // a reload needs the first folder again, and what only root may read
    let secret = folder.path().join("secret");
    fs::write(&secret, "log_format seen $uri;").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let conf = folder
        .read("nginx.conf")
        .replace("pid nginx.pid", "pid other.pid")
        .replace("http {", "http { include secret;");
    fs::write(folder.path().join("nginx.conf"), conf).unwrap();
    let number = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(number, Signal::SIGHUP).unwrap();
    let moved = wait_for(DEADLINE, || {
        folder.path().join("other.pid").exists().then_some(())
    });
    assert!(moved.is_some(), "{}", folder.read("error.log"));
    kill(number, Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}
