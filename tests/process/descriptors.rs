//! What a reload leaves open: nothing of the configuration that was in force before.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::proc::{Couloir, Server};
use super::common::{DEADLINE, wait_for};
use super::{wait_for_answer, worker_of};

/// A configuration in which everything that is opened has another name than in the last one.
fn naming(n: usize, syslog: u16, more: &str) -> String {
    format!(
        "%%TEST_GLOBALS%% error_log %%TESTDIR%%/main{n}.log notice; worker_processes 2; {more} events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
         proxy_cache_path %%TESTDIR%%/cache{n} keys_zone=cache{n}:1m;
         access_log %%TESTDIR%%/access{n}.log; access_log syslog:server=127.0.0.1:{syslog},tag=t{n};
         log_format f{n} '$uri';
         server {{ listen 127.0.0.1:%%PORT_8080%%; listen unix:%%TESTDIR%%/socket{n};
             error_log %%TESTDIR%%/server{n}.log; error_log syslog:server=127.0.0.1:{syslog},tag=e{n};
             return 200 text{n}; access_log %%TESTDIR%%/location{n}.log f{n} buffer=4k;
             location /cached {{ proxy_cache cache{n}; proxy_pass http://unix:%%TESTDIR%%/socket{n}:/; }} }} }}"
    )
}

/// Where the descriptors of a process lead.
fn open(pid: Pid) -> Vec<PathBuf> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let targets = folder.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let mut targets: Vec<_> = targets.collect();
    targets.sort();
    targets
}

/// Waits until a process has nothing open that a configuration before the `n`th named.
fn wait_for_the_old_to_close(server: &Server, pid: Pid, n: usize) {
    let before: Vec<String> = (0..n)
        .flat_map(|n| {
            [
                "main{}.log",
                "access{}.log",
                "server{}.log",
                "location{}.log",
                "cache{}/",
            ]
            .map(|name| format!("/{}", name.replace("{}", &n.to_string())))
        })
        .collect();
    let is_old = |path: &PathBuf| before.iter().any(|b| path.to_string_lossy().contains(b));
    let closed = wait_for(DEADLINE, || (!open(pid).iter().any(is_old)).then_some(()));
    assert!(
        closed.is_some(),
        "still open: {:#?}\n{}",
        open(pid),
        server.log()
    );
}

fn reloads_leave_nothing_open(more: &str, replaced: bool) {
    const ROUNDS: usize = 20;
    let syslog = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = syslog.local_addr().expect("an address").port();
    let mut server = Couloir::start(&naming(0, port, more));
    let master = server.pid();
    let mut counts = None;
    for round in 1..=ROUNDS {
        server.write_conf(&naming(round, port, more));
        server.reload();
        wait_for_answer(&server, &format!("text{round}"));
        wait_for_the_old_to_close(&server, master, round);
        let worker = worker_of(master);
        wait_for_the_old_to_close(&server, worker, round);
        let (of_master, of_worker) =
            *counts.get_or_insert((open(master).len(), open(worker).len()));
        let settled = wait_for(DEADLINE, || {
            // the connection of the last answer may still be open in the worker
            (open(master).len() <= of_master && (replaced || open(worker).len() <= of_worker + 1))
                .then_some(())
        });
        assert!(
            settled.is_some(),
            "after {round} reloads, first {of_master} and {of_worker}: {:#?}\n{:#?}",
            open(master),
            open(worker)
        );
    }

    // USR1 makes the logs of the configuration in force anew, and no others
    let dir = server.dir().to_owned();
    let logs = || {
        let names = fs::read_dir(&dir)
            .expect("the folder")
            .filter_map(|e| e.ok());
        let mut names: Vec<_> = names
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| {
                ["main", "access", "server", "location"]
                    .iter()
                    .any(|w| name.starts_with(w))
            })
            .filter(|name| name.ends_with(".log") && name.bytes().any(|b| b.is_ascii_digit()))
            .collect();
        names.sort();
        names
    };
    for name in logs() {
        fs::remove_file(dir.join(name)).expect("removed");
    }
    kill(master, Signal::SIGUSR1).expect("a signal");
    let expected: Vec<String> = ["access", "location", "main", "server"]
        .map(|what| format!("{what}{ROUNDS}.log"))
        .into();
    // the worker is told last; of what is named it has what it writes to
    let worker = worker_of(master);
    let reopened = wait_for(DEADLINE, || {
        let open = open(worker);
        let mut written = expected.iter().filter(|name| !name.starts_with("access"));
        written
            .all(|name| open.contains(&dir.join(name)))
            .then_some(())
    });
    assert!(reopened.is_some(), "{:#?}", open(worker));
    assert_eq!(logs(), expected);
    assert!(server.quit().success());
}

#[test]
fn in_place() {
    reloads_leave_nothing_open("", false);
}

#[test]
fn with_new_workers() {
    reloads_leave_nothing_open("reload_method replace;", true);
}
