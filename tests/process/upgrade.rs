//! Another binary takes over: USR2 with nginx's procedure, and `-s upgrade`.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::client::{self, Client};
use super::common::ports::Port;
use super::common::proc::{Couloir, install};
use super::common::{DEADLINE, wait_for};
use super::{Daemon, REQUEST, children, lives, wait_for_end, worker_of};

const CONF: &str = "pid nginx.pid; error_log error.log notice; events { }
                    http { access_log off; server { listen ADDR; return 200 x; } }";

/// A program of its own, so that another can be put in its place.
fn installed(dir: &Path) -> PathBuf {
    let program = dir.join("nginx");
    install(&Couloir::program(), &program);
    program
}

fn start() -> (tempfile::TempDir, PathBuf, Daemon) {
    let dir = tempfile::TempDir::new().unwrap();
    let program = installed(dir.path());
    let addr = SocketAddr::from(([127, 0, 0, 1], Port::reserve().number()));
    let daemon = Daemon::start(&program, CONF, addr);
    (dir, program, daemon)
}

/// USR2, and the number of the process that serves beside the old one.
fn usr2(daemon: &Daemon) -> (Pid, Pid) {
    let old = daemon.master();
    kill(old, Signal::SIGUSR2).unwrap();
    let new = wait_for(DEADLINE, || {
        let new = daemon.number("nginx.pid").filter(|new| *new != old)?;
        (daemon.number("nginx.pid.oldbin") == Some(old)).then_some(new)
    });
    let new = new.unwrap_or_else(|| panic!("no new process:\n{}", daemon.log()));
    (old, new)
}

/// Clients that ask all the time; the result is how often they were answered.
fn load(
    addr: SocketAddr,
    over: &Arc<AtomicBool>,
) -> (Arc<AtomicUsize>, Vec<thread::JoinHandle<()>>) {
    let answers = Arc::new(AtomicUsize::new(0));
    let clients = (0..3)
        .map(|_| {
            let (over, answers) = (over.clone(), answers.clone());
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut client = Client::connect(addr);
                    client.send(REQUEST).expect("send");
                    assert_eq!(client.response("GET").expect("a response").status, 200);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    (answers, clients)
}

#[test]
fn usr2_and_quit_under_load() {
    let (_dir, _, daemon) = start();
    let over = Arc::new(AtomicBool::new(false));
    let (answers, clients) = load(daemon.addr, &over);
    for _ in 0..3 {
        let (old, new) = usr2(&daemon);
        assert!(lives(old) && lives(new));
        let seen = answers.load(Ordering::Relaxed);
        wait_for(DEADLINE, || {
            (answers.load(Ordering::Relaxed) > seen + 20).then_some(())
        });
        kill(old, Signal::SIGQUIT).unwrap();
        wait_for_end(old);
        assert!(!daemon.folder.path().join("nginx.pid.oldbin").exists());
        assert_eq!(daemon.master(), new);
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request was lost");
    }
}

#[test]
fn winch_and_hup_roll_back() {
    let (_dir, _, daemon) = start();
    let (old, new) = usr2(&daemon);
    // two at once are one too many
    kill(old, Signal::SIGUSR2).unwrap();
    daemon.wait_for_log("the changing binary signal is ignored");
    kill(old, Signal::SIGWINCH).unwrap();
    let only = wait_for(DEADLINE, || (children(old) == [new]).then_some(()));
    assert!(only.is_some(), "{}", daemon.log());
    daemon.wait_for_answer("x");
    kill(old, Signal::SIGHUP).unwrap();
    let again = wait_for(DEADLINE, || (children(old).len() == 2).then_some(()));
    assert!(again.is_some(), "{}", daemon.log());
    kill(new, Signal::SIGQUIT).unwrap();
    wait_for_end(new);
    let back = wait_for(DEADLINE, || {
        (daemon.number("nginx.pid") == Some(old)).then_some(())
    });
    assert!(back.is_some(), "{}", daemon.log());
    assert!(!daemon.folder.path().join("nginx.pid.oldbin").exists());
    worker_of(old);
    daemon.wait_for_answer("x");
}

#[test]
fn a_new_binary_that_dies_leaves_the_old_one() {
    let (_dir, program, daemon) = start();
    let old = daemon.master();
    fs::remove_file(&program).unwrap();
    fs::write(&program, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    kill(old, Signal::SIGUSR2).unwrap();
    daemon.wait_for_log("exited with code 7");
    let back = wait_for(DEADLINE, || {
        (daemon.number("nginx.pid") == Some(old)).then_some(())
    });
    assert!(back.is_some(), "{}", daemon.log());
    daemon.wait_for_answer("x");
    // a worker is still begun from the file that the master was begun from
    let worker = worker_of(old);
    kill(worker, Signal::SIGKILL).unwrap();
    daemon.wait_for_log("exited on signal 9");
    daemon.wait_for_answer("x");

    // and `-s upgrade` says so
    let (code, _, err) = daemon.folder.run(&["-s", "upgrade"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("the new process does not serve"), "{err}");
    assert_eq!(daemon.master(), old);
    daemon.wait_for_answer("x");

    fs::remove_file(&program).unwrap();
    kill(old, Signal::SIGUSR2).unwrap();
    daemon.wait_for_log("execve() failed while executing new binary process");
    assert_eq!(daemon.master(), old);
    assert_eq!(client::get(daemon.addr, "/", "h").text(), "x");
}

#[test]
fn upgrade_on_the_command_line_under_load() {
    let (_dir, _, daemon) = start();
    let over = Arc::new(AtomicBool::new(false));
    let (_, clients) = load(daemon.addr, &over);
    for _ in 0..2 {
        let old = daemon.master();
        let (code, _, err) = daemon.folder.run(&["-s", "upgrade"]);
        assert_eq!(code, Some(0), "{err}\n{}", daemon.log());
        let new = daemon.master();
        assert_ne!(new, old);
        assert_eq!(
            err,
            format!("nginx: process {new} serves, process {old} finishes what is under way\n")
        );
        wait_for_end(old);
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request was lost");
    }
}

/// The sockets of nginx itself are taken over, and given back.
#[test]
fn from_nginx() {
    let Some(nginx) = std::env::var_os("COULOIR_NGINX")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from("/usr/sbin/nginx")))
        .filter(|path| path.exists())
    else {
        return;
    };
    let dir = tempfile::TempDir::new().unwrap();
    let program = dir.path().join("nginx");
    install(&nginx, &program);
    let addr = SocketAddr::from(([127, 0, 0, 1], Port::reserve().number()));
    let daemon = Daemon::start(&program, CONF, addr);
    daemon.wait_for_answer("x");
    fs::remove_file(&program).unwrap();
    install(&Couloir::program(), &program);
    let (old, new) = usr2(&daemon);
    kill(old, Signal::SIGQUIT).unwrap();
    wait_for_end(old);
    assert_eq!(daemon.master(), new);
    let (code, _, _) = daemon.folder.run(&["-s", "reload"]);
    assert_eq!(code, Some(0), "it is our process that answers");
    daemon.wait_for_answer("x");
}

/// An origin that answers every request with 101 and then sends back what it gets.
fn echoing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut byte) {
                        Ok(1) => head.push(byte[0]),
                        _ => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let pid = head.lines().find_map(|l| l.strip_prefix("X-Pid: "));
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Pid: {}\r\n\r\n",
                    pid.unwrap_or_default()
                );
                let _ = stream.write_all(answer.as_bytes());
                let mut bytes = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..n]);
                }
            });
        }
    });
    addr
}

/// A WebSocket through the server, and the worker that it goes through.
struct Tunnel(TcpStream, Pid);

impl Tunnel {
    fn open(addr: SocketAddr) -> Tunnel {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
            .write_all(
                b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            )
            .unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("the head");
            head.push(byte[0]);
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        let head = String::from_utf8_lossy(&head).into_owned();
        let pid = head.lines().find_map(|l| l.strip_prefix("X-Pid: "));
        let pid = pid.and_then(|p| p.parse().ok()).expect("its worker");
        let mut tunnel = Tunnel(stream, Pid::from_raw(pid));
        tunnel.echo();
        tunnel
    }

    /// One through the worker that serves: the one before may accept for a moment yet.
    fn open_newest(daemon: &Daemon) -> Tunnel {
        let worker = worker_of(daemon.master());
        let newest = wait_for(DEADLINE, || {
            Some(Tunnel::open(daemon.addr)).filter(|t| t.1 == worker)
        });
        newest.expect("the new worker accepts")
    }

    fn echo(&mut self) {
        self.0.write_all(b"ping").expect("to send");
        let mut bytes = [0; 4];
        self.0.read_exact(&mut bytes).expect("an echo");
        assert_eq!(&bytes, b"ping");
    }
}

fn tunneling() -> (tempfile::TempDir, PathBuf, Daemon) {
    let dir = tempfile::TempDir::new().unwrap();
    let program = installed(dir.path());
    let addr = SocketAddr::from(([127, 0, 0, 1], Port::reserve().number()));
    let conf = CONF.replace(
        "return 200 x;",
        &format!(
            "location / {{ return 200 x; }} location /ws {{ proxy_pass http://{}; proxy_http_version 1.1;
             proxy_set_header X-Pid $pid; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }}",
            echoing()
        ),
    );
    let daemon = Daemon::start(&program, &conf, addr);
    (dir, program, daemon)
}

fn upgrade(daemon: &Daemon) -> (Pid, Pid) {
    let old = daemon.master();
    let (code, _, err) = daemon.folder.run(&["-s", "upgrade"]);
    assert_eq!(code, Some(0), "{err}\n{}", daemon.log());
    let new = daemon.master();
    assert_ne!(new, old);
    // until it has finished
    let left = daemon.number("nginx.pid.oldbin");
    // its file goes just before it does
    let gone = || wait_for(DEADLINE, || (!lives(old)).then_some(())).is_some();
    assert!(left == Some(old) || (left.is_none() && gone()), "{left:?}");
    (old, new)
}

/// Old processes that only finish what is under way do not stand in the way of the next upgrade.
#[test]
fn upgrades_while_websockets_of_earlier_ones_are_open() {
    let (_dir, _, daemon) = tunneling();
    let mut tunnels = Vec::new();
    let mut masters = Vec::new();
    for _ in 0..4 {
        tunnels.push(Some(Tunnel::open_newest(&daemon)));
        masters.push(upgrade(&daemon).0);
    }
    let newest = daemon.master();
    assert!(masters.iter().all(|m| lives(*m)), "{}", daemon.log());
    tunnels.iter_mut().flatten().for_each(Tunnel::echo);
    // they end in any order, and take nothing of the others' along
    for n in [1, 0, 3, 2] {
        tunnels[n] = None;
        wait_for_end(masters[n]);
        tunnels.iter_mut().flatten().for_each(Tunnel::echo);
        assert_eq!(daemon.master(), newest);
        let last = (n < 3 && lives(masters[3])).then_some(masters[3]);
        assert_eq!(daemon.number("nginx.pid.oldbin"), last, "{}", daemon.log());
        daemon.wait_for_answer("x");
    }
    // nothing is left of all that
    let (old, _) = upgrade(&daemon);
    wait_for_end(old);
    daemon.wait_for_answer("x");
    assert!(!daemon.log().contains("[alert]"), "{}", daemon.log());
}

/// A failed upgrade gives the work back to the process before it, not to one that only finishes.
#[test]
fn an_upgrade_fails_while_an_earlier_process_finishes() {
    let (_dir, program, daemon) = tunneling();
    let mut tunnel = Tunnel::open(daemon.addr);
    let (oldest, old) = upgrade(&daemon);
    fs::remove_file(&program).unwrap();
    fs::write(&program, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (code, _, err) = daemon.folder.run(&["-s", "upgrade"]);
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(daemon.master(), old);
    daemon.wait_for_answer("x");
    tunnel.echo();
    assert!(lives(oldest));
    fs::remove_file(&program).unwrap();
    install(&Couloir::program(), &program);
    let (_, new) = upgrade(&daemon);
    drop(tunnel);
    wait_for_end(oldest);
    wait_for_end(old);
    assert_eq!(daemon.master(), new);
    daemon.wait_for_answer("x");
}

/// One that may yet go back to work does.
#[test]
fn a_half_done_upgrade_is_in_the_way() {
    let (_dir, _, daemon) = start();
    let (old, new) = usr2(&daemon);
    let (code, _, err) = daemon.folder.run(&["-s", "upgrade"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains(&format!(
            "another upgrade is under way. Process {old} is to be told to finish (QUIT)"
        )),
        "{err}"
    );
    kill(new, Signal::SIGUSR2).unwrap();
    daemon.wait_for_log("the changing binary signal is ignored");
    assert_eq!(daemon.master(), new);
    kill(old, Signal::SIGQUIT).unwrap();
    wait_for_end(old);
    upgrade(&daemon);
}
