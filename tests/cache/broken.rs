//! Folders, files and origins that are not what they should be.

use super::common::origin::{Origin, Step};
use super::common::proc::{Couloir, Server};
use super::{cached, get, objects, ok, pattern, setup, status};
use std::fs;

#[test]
fn a_body_that_is_cut_short_is_not_stored() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n";
    let origin = Origin::script(vec![
        vec![Step::Read, Step::send(short), Step::Close],
        vec![Step::Read, Step::send(chunked), Step::Close],
        vec![Step::Read, Step::Send(ok("", "whole"))],
    ]);
    let server = cached(&origin, "", "");
    for _ in 0..2 {
        let mut client = super::common::client::Client::connect(server.addr(8080));
        client
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        client.response("GET").unwrap_err();
    }
    assert!(objects(&server.dir().join("cache")).is_empty());
    let whole = get(&server, "/");
    assert_eq!((status(&whole), whole.text()), ("MISS", "whole".into()));
    assert_eq!(status(&get(&server, "/")), "HIT");
}

/// Memory is switched off, so that files are read.
fn on_disk(origin: &Origin) -> Server {
    cached(origin, "memory=0", "")
}

#[test]
fn a_corrupt_file_is_fetched_anew() {
    let body = pattern(1, 200_000);
    let sent = body.clone();
    let origin = Origin::respond(move |_| ok("", &sent));
    let server = on_disk(&origin);
    get(&server, "/");
    let file = objects(&server.dir().join("cache")).remove(0);
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[30] ^= 1;
    let cut = good[..good.len() - 1].to_vec();
    for (bad, what) in [
        (flipped, "contains invalid header"),
        (cut, "is too small"),
        (b"x".to_vec(), "is too small"),
        (vec![b'x'; 200], "version mismatch"),
    ] {
        fs::write(&file, bad).unwrap();
        let r = get(&server, "/");
        assert_eq!((status(&r), r.body == body), ("MISS", true), "{what}");
        server.wait_for_text("error.log", what);
        assert_eq!(status(&get(&server, "/")), "HIT", "{what}");
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(status(&get(&server, "/")), "MISS");
    assert_eq!(status(&get(&server, "/")), "HIT");
}

#[test]
fn a_name_is_not_trusted() {
    let origin = Origin::respond(|r| ok("", r.target()));
    let server = on_disk(&origin);
    get(&server, "/a");
    let a = objects(&server.dir().join("cache")).remove(0);
    get(&server, "/b");
    let b = objects(&server.dir().join("cache"))
        .into_iter()
        .find(|f| *f != a)
        .unwrap();
    fs::copy(&a, &b).unwrap();
    let r = get(&server, "/b");
    assert_eq!((status(&r), r.text()), ("MISS", "/b".into()));
    assert!(
        server.log().contains("has md5 collision"),
        "{}",
        server.log()
    );
    assert_eq!(get(&server, "/b").text(), "/b");
    assert_eq!(get(&server, "/a").text(), "/a");
}

#[test]
fn without_a_folder_requests_go_on() {
    let origin = Origin::respond(|r| ok("", r.target()));
    let server = on_disk(&origin);
    let folder = server.dir().join("cache");
    get(&server, "/a");
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(get(&server, "/a").text(), "/a");
    // a file in its place: nothing can be stored, not even by root
    let _ = fs::remove_dir_all(&folder);
    fs::write(&folder, "").unwrap();
    for uri in ["/a", "/b", "/c", "/c"] {
        let r = get(&server, uri);
        assert_eq!((r.status, r.text()), (200, uri.to_owned()));
        assert_ne!(status(&r), "HIT");
    }
    let log = server.wait_for_text("error.log", "[crit]");
    assert_eq!(log.matches("[crit]").count(), 1, "{log}");
    assert!(log.contains("cache \"z\": "), "{log}");
    assert_eq!(get(&server, "/alive").text(), "alive");
}

#[test]
fn a_folder_is_one_processs_own() {
    let origin = Origin::respond(|r| ok("", r.target()));
    let shared = tempfile::tempdir().unwrap();
    let folder = shared.path().join("cache").display().to_string();
    open(shared.path());
    let first = setup(&origin, &folder, "", "").start(&Couloir::program());
    let second = setup(&origin, &folder, "", "").start(&Couloir::program());
    get(&first, "/a");
    assert_eq!(status(&get(&first, "/a")), "HIT");
    for _ in 0..2 {
        let r = get(&second, "/a");
        assert_eq!((r.text(), status(&r)), ("/a".into(), "-"));
    }
    let log = second.log();
    assert_eq!(log.matches("in use by another process").count(), 1, "{log}");
    first.stop();
    let taken = super::common::wait_for(super::common::DEADLINE, || {
        (status(&get(&second, "/a")) == "HIT").then_some(())
    });
    assert!(
        taken.is_some(),
        "the second takes over what the first stored"
    );
}

/// Lets a worker of another user in.
pub fn open(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}
