//! Workers that die, and a master that cannot have one.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::common::client::{self, Client};
use super::common::ports::Port;
use super::common::proc::Couloir;
use super::common::{DEADLINE, wait_for};
use super::{Folder, REQUEST, answering, wait_for_answer, worker_of};

#[test]
fn a_dead_worker_is_followed_by_another_and_nobody_is_refused() {
    let server = Couloir::start(&answering("x"));
    let addr = server.addr(8080);
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let worker = worker_of(server.pid());
        let began = Instant::now();
        kill(worker, signal).unwrap();
        let line = format!("worker process {worker} exited on signal {}", signal as i32);
        // connections wait in the queue of a socket that never closed
        let mut client = Client::connect(addr);
        client.send(REQUEST).unwrap();
        match client.response("GET") {
            Ok(response) => assert_eq!(response.text(), "x"),
            // it was the dead one's
            Err(_) => assert_eq!(client::get(addr, "/", "h").text(), "x"),
        }
        let next = wait_for(DEADLINE, || {
            Some(worker_of(server.pid())).filter(|w| *w != worker)
        });
        assert!(next.is_some());
        wait_for_answer(&server, "x");
        assert!(began.elapsed() < Duration::from_secs(8), "at once");
        assert!(server.log().contains(&format!("[alert] {}#", server.pid())));
        server.wait_for_text("error.log", &line);
    }
    assert!(server.stop().success());
}

#[test]
fn workers_that_die_again_and_again_are_not_begun_in_a_loop() {
    let server = Couloir::start(&answering("x"));
    let began = Instant::now();
    let mut deaths: u32 = 0;
    while began.elapsed() < Duration::from_secs(2) {
        kill(worker_of(server.pid()), Signal::SIGKILL).unwrap();
        deaths += 1;
        let count = deaths as usize;
        wait_for(DEADLINE, || {
            (server.log().matches("exited on signal 9").count() >= count).then_some(())
        });
    }
    // the pauses double
    assert!(deaths < 10, "{deaths}");
    assert_eq!(client::get(server.addr(8080), "/", "h").text(), "x");
}

#[test]
fn a_process_table_that_is_full() {
    let port = Port::reserve().number();
    let folder = Folder::new(&format!(
        "daemon off; pid nginx.pid; error_log error.log; events {{ }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; }} }}"
    ));
    // the limit counts processes of a user, and root's are not limited
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let uid = 54_321;
    std::os::unix::fs::chown(folder.path(), Some(uid), Some(uid)).unwrap();
    let program = folder.path().join("couloir");
    super::common::proc::install(&Couloir::program(), &program);
    let mut command = Command::new(&program);
    command
        .arg("-p")
        .arg(folder.path())
        .args(["-c", "nginx.conf", "-e", "first.log"])
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::null());
    // SAFETY: setrlimit is allowed between fork and exec
    unsafe {
        command.pre_exec(|| {
            let one = libc::rlimit {
                rlim_cur: 1,
                rlim_max: 1,
            };
            match libc::setrlimit(libc::RLIMIT_NPROC, &raw const one) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let log = folder.read("error.log") + &folder.read("first.log") + &text;
    assert!(
        log.contains("(11: Resource temporarily unavailable)"),
        "{log}"
    );
    assert!(!folder.path().join("nginx.pid").exists());
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    assert!(TcpListener::bind(addr).is_ok(), "nobody is left");
}

#[test]
fn a_folder_of_logs_that_is_missing() {
    let folder = Folder::new("pid nginx.pid; error_log no/error.log; events { }");
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("[emerg] open() \"DIR/no/error.log\" failed (2: No such file or directory)"),
        "{err}"
    );
}

/// A server without `listen` is on port 80 where the master is root, whoever the worker is.
#[test]
fn the_default_port_is_the_masters() {
    if !nix::unistd::geteuid().is_root() || TcpListener::bind(("0.0.0.0", 80)).is_err() {
        // the port is not ours to take
        return;
    }
    let folder = Folder::new(
        "pid nginx.pid; error_log error.log; events { }
         http { access_log off; server { return 200 default; } }",
    );
    assert_eq!(folder.run(&[]).0, Some(0), "{}", folder.read("error.log"));
    let addr = SocketAddr::from(([127, 0, 0, 1], 80));
    let text = client::get(addr, "/", "h").text();
    assert_eq!(folder.run(&["-s", "stop"]).0, Some(0));
    assert_eq!(text, "default");
}
