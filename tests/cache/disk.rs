//! Disks that are full and folders that cannot be written.

use super::broken::open;
use super::common::origin::Origin;
use super::common::proc::{Couloir, Server};
use super::common::{DEADLINE, wait_for};
use super::{get, objects, ok, pattern, setup, status};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of a size in memory; `None` where this user may not mount one.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path, size: &str) -> Option<Small> {
        let options = format!("size={size},mode=777");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(folder);
        let done = mount.output().is_ok_and(|o| o.status.success());
        done.then(|| Small(folder.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn start(origin: &Origin, folder: &Path, path: &str) -> Server {
    let folder = folder.display().to_string();
    let path = format!("use_temp_path=off memory=0 {path}");
    setup(origin, &folder, &path, "").start(&Couloir::program())
}

fn big() -> Origin {
    Origin::respond(|r| ok("", pattern(r.target().len() as u64, 300_000)))
}

/// Asks for responses of 300 kB, the first one several times; each must be right.
fn ask_for(server: &Server, count: usize) -> Vec<String> {
    (1..=count)
        .map(|n| {
            let uri = format!("/{}", "x".repeat(n));
            let r = get(server, &uri);
            assert_eq!(r.status, 200);
            assert!(r.body == pattern(uri.len() as u64, 300_000), "{uri}");
            status(&r).to_owned()
        })
        .collect()
}

#[test]
fn a_full_disk_costs_one_line() {
    let parent = tempfile::tempdir().unwrap();
    open(parent.path());
    let Some(small) = Small::mount(parent.path(), "1m") else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let origin = big();
    let server = start(&origin, &small.0.join("cache"), "");
    for _ in 0..2 {
        ask_for(&server, 8);
    }
    let log = server.wait_for_text("error.log", "No space left on device");
    assert_eq!(log.matches("[crit]").count(), 1, "{log}");
    assert!(log.contains("cache \"z\": "), "{log}");
    // what was stored before is served, and nothing torn is left
    assert_eq!(ask_for(&server, 1), ["HIT"]);
    let stored = objects(&small.0);
    assert!((1..4).contains(&stored.len()), "{stored:?}");
    assert!(stored.iter().all(|f| f.metadata().unwrap().len() > 300_000));
}

#[test]
fn min_free_keeps_space_free() {
    let parent = tempfile::tempdir().unwrap();
    open(parent.path());
    let Some(small) = Small::mount(parent.path(), "4m") else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let origin = big();
    let server = start(
        &origin,
        &small.0.join("cache"),
        "min_free=2m manager_sleep=1ms",
    );
    let kept = wait_for(DEADLINE, || {
        ask_for(&server, 9);
        (objects(&small.0).len() <= 6).then_some(())
    });
    assert!(
        kept.is_some() && !server.log().contains("[crit]"),
        "{}",
        server.log()
    );
}

#[test]
fn a_folder_that_cannot_be_written() {
    let parent = tempfile::tempdir().unwrap();
    open(parent.path());
    let folder = parent.path().join("cache");
    let origin = Origin::respond(|r| ok("", r.target()));
    fs::create_dir(&folder).unwrap();
    let set = |mode: u32| fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
    set(0o555);
    let server = start(&origin, &folder, "");
    for _ in 0..2 {
        let r = get(&server, "/a");
        assert_eq!((r.text(), status(&r)), ("/a".into(), "-"));
    }
    let log = server.wait_for_text("error.log", "cannot be used (13: Permission denied)");
    assert_eq!(log.matches("[crit]").count(), 1, "{log}");
    // it is taken to use once that is possible
    set(0o755);
    let hit = wait_for(DEADLINE, || {
        (status(&get(&server, "/a")) == "HIT").then_some(())
    });
    assert!(hit.is_some(), "{}", server.log());
    // and may become unwritable again
    set(0o555);
    let owner = folder.metadata().unwrap().uid();
    assert_ne!(owner, 0, "the folder was given to the workers' user");
    for uri in ["/b", "/c"] {
        let r = get(&server, uri);
        assert_eq!((r.status, r.text()), (200, uri.to_owned()));
        assert_eq!(status(&get(&server, "/a")), "HIT");
    }
    set(0o755);
}
