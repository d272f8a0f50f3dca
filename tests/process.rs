//! The process from outside: command line, signals under load, files, rights, upgrades, exit codes.

mod common;

#[path = "process/command_line.rs"]
mod command_line;
#[path = "process/descriptors.rs"]
mod descriptors;
#[path = "process/handover.rs"]
mod handover;
#[path = "process/manager.rs"]
mod manager;
#[path = "process/reload.rs"]
mod reload;
#[path = "process/rights.rs"]
mod rights;
#[path = "process/signals.rs"]
mod signals;
#[path = "process/upgrade.rs"]
mod upgrade;
#[path = "process/workers.rs"]
mod workers;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::client;
use common::origin::{Gate, Origin, Step};
use common::proc::{Couloir, Server, Setup};
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
        self.run_program(&Couloir::program(), args)
    }

    fn run_program(&self, program: &Path, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(program);
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

/// The processes whose parent is `parent`, zombies left out.
fn children(parent: Pid) -> Vec<Pid> {
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let number: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let (state, of) = state_and_parent(Pid::from_raw(number))?;
        (of == parent && state != "Z").then(|| Pid::from_raw(number))
    });
    numbers.collect()
}

fn state_and_parent(pid: Pid) -> Option<(String, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?.to_owned();
    Some((state, Pid::from_raw(fields.next()?.parse().ok()?)))
}

/// The one worker of a master.
fn worker_of(master: Pid) -> Pid {
    let found = wait_for(DEADLINE, || match children(master)[..] {
        [one] => Some(one),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("workers of {master}: {:?}", children(master)))
}

/// Whether the process is there, zombies left out.
fn lives(pid: Pid) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z")
}

fn wait_for_end(pid: Pid) {
    let gone = wait_for(DEADLINE, || (!lives(pid)).then_some(()));
    assert!(gone.is_some(), "{pid} lives on");
}

/// What `ps` shows.
fn title(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .replace('\0', " ")
}

/// A daemon in a folder of its own, ended when the test ends, whoever is its master by then.
struct Daemon {
    folder: Folder,
    addr: SocketAddr,
}

impl Daemon {
    fn start(program: &Path, conf: &str, addr: SocketAddr) -> Daemon {
        let folder = Folder::new(&conf.replace("ADDR", &addr.to_string()));
        let daemon = Daemon { folder, addr };
        let (code, _, err) = daemon.folder.run_program(program, &[]);
        assert_eq!(code, Some(0), "{err}");
        daemon
    }

    fn number(&self, file: &str) -> Option<Pid> {
        let text = self.folder.read(file);
        text.trim().parse().ok().map(Pid::from_raw)
    }

    fn master(&self) -> Pid {
        self.number("nginx.pid").expect("a pid file")
    }

    fn log(&self) -> String {
        self.folder.read("error.log")
    }

    fn wait_for_log(&self, text: &str) {
        let found = wait_for(DEADLINE, || self.log().contains(text).then_some(()));
        assert!(found.is_some(), "no {text:?} in\n{}", self.log());
    }

    fn wait_for_answer(&self, text: &str) {
        let answer = wait_for(DEADLINE, || {
            Some(client::get(self.addr, "/", "h").text()).filter(|found| found == text)
        });
        assert!(answer.is_some(), "never {text:?}:\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for file in ["nginx.pid", "nginx.pid.oldbin"] {
            if let Some(pid) = self.number(file) {
                let _ = kill(pid, Signal::SIGTERM);
                if wait_for(DEADLINE, || (!lives(pid)).then_some(())).is_none() {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }
}
