//! What outlives a reload, a restart and a crash.

use super::broken::open;
use super::common::client::Client;
use super::common::origin::Origin;
use super::common::proc::{Couloir, Server};
use super::common::{DEADLINE, wait_for};
use super::{get, objects, ok, pattern, setup, status};
use nix::sys::signal::{Signal, killpg};
use std::path::Path;

fn origin() -> Origin {
    Origin::respond(|r| ok("", body(&r.target())))
}

/// The body of `/seed/length`.
fn body(target: &str) -> Vec<u8> {
    let mut numbers = target.split('/').filter_map(|n| n.parse::<u64>().ok());
    let (seed, len) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    pattern(seed, len as usize)
}

fn start(origin: &Origin, folder: &Path) -> Server {
    let folder = folder.join("cache").display().to_string();
    setup(origin, &folder, "use_temp_path=off", "").start(&Couloir::program())
}

fn hit(server: &Server, uri: &str) {
    let found = wait_for(DEADLINE, || {
        let r = get(server, uri);
        (status(&r) == "HIT").then_some(r)
    });
    assert!(found.expect("a hit").body == body(uri), "{uri}");
}

#[test]
fn a_reload_keeps_the_zone() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let server = start(&origin, folder.path());
    get(&server, "/1/500");
    server.reload();
    for _ in 0..20 {
        let r = get(&server, "/1/500");
        assert_eq!(status(&r), "HIT");
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_restart_finds_everything() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    for end in ["stop", "quit"] {
        let server = start(&origin, folder.path());
        for uri in ["/1/500", "/2/300000", "/3/0"] {
            get(&server, uri);
        }
        match end {
            "stop" => server.stop(),
            _ => server.quit(),
        };
        assert!(folder.path().join("cache/.couloir.index").exists(), "{end}");
        origin.take_requests();
        let server = start(&origin, folder.path());
        for uri in ["/1/500", "/2/300000", "/3/0"] {
            let r = get(&server, uri);
            assert!(status(&r) == "HIT" && r.body == body(uri), "{uri}");
        }
        assert!(origin.take_requests().is_empty());
        server.stop();
    }
}

/// Killed in the middle of filling, again and again: what is served is byte for byte right.
#[test]
fn nothing_torn_is_served_after_a_crash() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let rounds = std::env::var("CHAOS_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok());
    for round in 0..rounds.unwrap_or(3u64) {
        let server = start(&origin, folder.path());
        let uris: Vec<String> = (0..24)
            .map(|n| format!("/{}/{}", round * 7 + n, 1000 + n * n * 4000))
            .collect();
        let mut clients: Vec<Client> = uris
            .iter()
            .map(|uri| {
                let mut client = Client::connect(server.addr(8080));
                let _ = client.send(format!("GET {uri} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
                client
            })
            .collect();
        // some have come, others are under way
        for client in clients.iter_mut().take(1 + round as usize % 12) {
            let _ = client.response_head();
        }
        let _ = killpg(server.pid(), Signal::SIGKILL);
        drop(server);
        let server = start(&origin, folder.path());
        for uri in &uris {
            assert!(get(&server, uri).body == body(uri), "{uri}");
            hit(&server, uri);
        }
        server.stop();
    }
    assert!(!objects(folder.path()).is_empty());
}
