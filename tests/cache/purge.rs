//! Purging: by key, by prefix, by tag; removed or marked as stale.

use super::broken::open;
use super::common::origin::Origin;
use super::common::proc::{Couloir, Server};
use super::common::{DEADLINE, wait_for};
use super::{ask, cached, get, objects, ok, setup, status};
use nix::sys::signal::{Signal, killpg};
use std::path::Path;

const PURGE: &str = "proxy_cache_purge $purge;
    proxy_cache_tag $upstream_http_surrogate_key;
    proxy_cache_purge_tags $http_x_tags;
    proxy_cache_purge_soft $http_x_soft;
    proxy_cache_use_stale error updating;";

fn origin() -> Origin {
    Origin::respond(|r| {
        let target = r.target();
        let tags = match target.as_str() {
            "/a/1" => "a one",
            "/a/2" => "a two",
            _ => "b",
        };
        let vary = if target == "/v" { "Vary: X-V\r\n" } else { "" };
        ok(&format!("Surrogate-Key: {tags}\r\n{vary}"), target)
    })
}

#[test]
fn by_key_and_prefix() {
    let origin = origin();
    let server = cached(&origin, "", PURGE);
    let folder = server.dir().join("cache");
    for uri in ["/a/1", "/a/2", "/b"] {
        get(&server, uri);
        assert_eq!(status(&get(&server, uri)), "HIT");
    }
    ask(&server, "GET", "/v", "X-V: 1\r\n");
    ask(&server, "GET", "/v", "X-V: 2\r\n");
    assert_eq!(objects(&folder).len(), 5);
    assert_eq!(ask(&server, "PURGE", "/b", "").status, 204);
    assert_eq!(ask(&server, "PURGE", "/b", "").status, 404);
    assert_eq!(status(&get(&server, "/b")), "MISS");
    assert_eq!(ask(&server, "PURGE", "/v", "").status, 204);
    assert_eq!(objects(&folder).len(), 3, "every variant");
    assert_eq!(ask(&server, "PURGE", "/a/*", "").status, 204);
    assert_eq!(objects(&folder).len(), 1);
    assert_eq!(ask(&server, "PURGE", "/a/*", "").status, 404);
    assert_eq!(status(&get(&server, "/b")), "HIT");
}

#[test]
fn by_tag() {
    let origin = origin();
    let server = cached(&origin, "", PURGE);
    for uri in ["/a/1", "/a/2", "/b"] {
        get(&server, uri);
    }
    let purge = |tags: &str| ask(&server, "PURGE", "/", &format!("X-Tags: {tags}\r\n")).status;
    assert_eq!(purge("none"), 404);
    assert_eq!(purge("two b"), 204);
    assert_eq!(status(&get(&server, "/a/1")), "HIT");
    assert_eq!(status(&get(&server, "/a/2")), "MISS");
    assert_eq!(status(&get(&server, "/b")), "MISS");
    assert_eq!(purge("a"), 204);
    assert_eq!(status(&get(&server, "/a/1")), "MISS");
}

#[test]
fn softly() {
    let origin = origin();
    let server = cached(&origin, "", PURGE);
    get(&server, "/a/1");
    let soft = ask(&server, "PURGE", "/a/1", "X-Soft: 1\r\n");
    assert_eq!(soft.status, 204);
    let expired = get(&server, "/a/1");
    assert_eq!(
        (status(&expired), expired.text()),
        ("EXPIRED", "/a/1".into())
    );
    assert_eq!(status(&get(&server, "/a/1")), "HIT");
    ask(&server, "PURGE", "/a/1", "X-Soft: 1\r\n");
    drop(origin);
    let stale = get(&server, "/a/1");
    assert_eq!((status(&stale), stale.text()), ("STALE", "/a/1".into()));
}

#[test]
fn only_where_it_is_configured() {
    let origin = origin();
    let server = cached(&origin, "", "");
    get(&server, "/b");
    ask(&server, "PURGE", "/b", "");
    assert_eq!(status(&get(&server, "/b")), "HIT");
    let server = cached(&origin, "", &format!("{PURGE} deny all;"));
    assert_eq!(ask(&server, "PURGE", "/b", "").status, 403);
}

fn start(origin: &Origin, folder: &Path, pace: &str) -> Server {
    let folder = folder.join("cache").display().to_string();
    let path = format!("use_temp_path=off {pace}");
    setup(origin, &folder, &path, PURGE).start(&Couloir::program())
}

#[test]
fn what_the_loader_has_not_seen_yet_is_purged_too() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let server = start(&origin, folder.path(), "");
    let uris = ["/a/1", "/a/2", "/b", "/c", "/d", "/e", "/v"];
    for uri in uris {
        get(&server, uri);
    }
    ask(&server, "GET", "/v", "X-V: 1\r\n");
    assert_eq!(objects(folder.path()).len(), uris.len() + 1);
    let _ = killpg(server.pid(), Signal::SIGKILL);
    drop(server);
    // one file, and then a long rest
    let slow = "loader_files=1 loader_sleep=1h";
    let server = start(&origin, folder.path(), slow);
    assert_eq!(ask(&server, "PURGE", "/a/*", "").status, 204);
    assert_eq!(ask(&server, "PURGE", "/v", "").status, 204);
    assert_eq!(ask(&server, "PURGE", "/c", "X-Soft: 1\r\n").status, 204);
    for (uri, found) in [
        ("/a/1", "MISS"),
        ("/v", "MISS"),
        ("/c", "EXPIRED"),
        ("/d", "HIT"),
        ("/a/1", "HIT"),
    ] {
        assert_eq!(status(&get(&server, uri)), found, "{uri}");
    }
    let _ = killpg(server.pid(), Signal::SIGKILL);
    drop(server);
    // the same where the loader comes to them later
    let server = start(&origin, folder.path(), "loader_files=1 loader_sleep=200ms");
    ask(&server, "PURGE", "/", "X-Tags: b\r\n");
    let gone = wait_for(DEADLINE, || {
        (objects(folder.path()).len() <= 2).then_some(())
    });
    assert!(gone.is_some(), "{:?}", objects(folder.path()));
}
