//! Whose the processes are, and what they may do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::client;
use super::common::ports::Port;
use super::common::proc::{Couloir, Setup};
use super::common::{DEADLINE, wait_for};
use super::{Folder, children, worker_of};

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
    let worker = worker_of(Pid::from_raw(i32::try_from(pid).unwrap()));
    let environ = fs::read(format!("/proc/{worker}/environ")).unwrap_or_default();
    let environ = String::from_utf8_lossy(&environ);
    assert!(!environ.contains("DROPPED"), "{environ}");
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains("321"), "{files}");
    assert_eq!(
        fs::read_link(format!("/proc/{worker}/cwd")).unwrap(),
        folder.path().join("w")
    );
    if nix::unistd::geteuid().is_root() {
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let field = |name: &str| -> Vec<&str> {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().skip(1).collect()
        };
        for name in ["Uid:", "Gid:"] {
            let ids = field(name);
            assert!(ids.iter().all(|id| *id != "0" && *id == ids[0]), "{ids:?}");
        }
        for name in ["CapEff:", "CapPrm:", "CapInh:"] {
            assert_eq!(field(name), ["0000000000000000"], "{name}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"]);
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

#[test]
fn what_only_root_may_read_is_read_for_the_worker() {
    let server = Setup::new(
        "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% include %%TESTDIR%%/secret/*.conf;
         server { listen 127.0.0.1:%%PORT_8080%%; return 200 $seen; } }",
    )
    .file("secret/a.conf", "map $uri $seen { default secret; }", None);
    let server = server.start(&Couloir::program());
    let addr = server.addr(8080);
    assert_eq!(client::get(addr, "/", "h").text(), "secret");
    let folder = server.dir().join("secret");
    fs::set_permissions(folder.join("a.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    // in place, then by a worker that follows a dead one
    server.reload();
    server.wait_for_text("error.log", "reload: ");
    assert_eq!(client::get(addr, "/", "h").text(), "secret");
    kill(worker_of(server.pid()), Signal::SIGKILL).unwrap();
    server.wait_for_text("error.log", "exited on signal 9");
    assert_eq!(client::get(addr, "/", "h").text(), "secret");
}

#[test]
fn sockets_in_the_file_system() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
                server { listen unix:%%TESTDIR%%/sock; return 200 x; } }";
    let mut server = Setup::new(conf).start(&Couloir::program());
    let path = server.dir().join("sock");
    let mode = fs::metadata(&path).unwrap().mode();
    assert_eq!(mode & 0o777, 0o666);
    UnixStream::connect(&path).unwrap();
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(!path.exists());

    // one that was left behind by somebody who is no more
    let dir = tempfile::TempDir::new().unwrap();
    let stale = dir.path().join("old");
    drop(UnixListener::bind(&stale).unwrap());
    let setup = Setup::new(
        "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
         server { listen unix:%%OLD%%; listen 127.0.0.1:%%PORT_8080%%; return 200 x; } }",
    );
    let server = setup.set("OLD", stale.display()).start(&Couloir::program());
    UnixStream::connect(&stale).unwrap();
    server.wait_for_text("error.log", "taking over the stale socket");
    assert!(server.stop().success());
    assert!(!stale.exists());
}

#[test]
fn master_process_off_is_one_process() {
    let mut server = Couloir::start(
        "%%TEST_GLOBALS%% master_process off; events { } http { %%TEST_GLOBALS_HTTP%%
         server { listen 127.0.0.1:%%PORT_8080%%; return 200 $pid; } }",
    );
    let addr = server.addr(8080);
    assert_eq!(client::get(addr, "/", "h").text(), server.pid().to_string());
    assert!(children(server.pid()).is_empty());
    server.reload();
    server.wait_for_text("error.log", "reload: nothing changed");
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait().code(), Some(0));
}
