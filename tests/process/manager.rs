//! Under a service manager: sd_notify(3), sockets that it opened.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::client;
use super::common::proc::Couloir;
use super::common::{DEADLINE, wait_for};
use super::{Folder, wait_for_end};

const CONF: &str = "daemon off; pid nginx.pid; error_log error.log notice; events { }
                    http { access_log off; server { listen ADDR; return 200 x; } }";

fn command(folder: &Folder) -> Command {
    let mut command = Command::new(Couloir::program());
    command
        .arg("-p")
        .arg(folder.path())
        .args(["-c", "nginx.conf", "-e", "first.log"])
        .stdin(Stdio::null());
    command
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn a_manager_is_told() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let folder = Folder::new(&CONF.replace("ADDR", &addr.to_string()));
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let hear = || {
        let mut bytes = [0; 500];
        let length = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let child = command(&folder)
        .env("NOTIFY_SOCKET", &path)
        .spawn()
        .unwrap();
    let mut child = Ended(child);
    let pid = Pid::from_raw(i32::try_from(child.0.id()).unwrap());
    assert_eq!(hear(), format!("MAINPID={pid}\nREADY=1"));
    // it is ready when it says so
    assert_eq!(client::get(addr, "/", "h").text(), "x");
    kill(pid, Signal::SIGHUP).unwrap();
    let text = hear();
    let usec = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(usec.is_some_and(|n| n.parse::<u64>().is_ok()), "{text}");
    assert_eq!(hear(), format!("MAINPID={pid}\nREADY=1"));

    kill(pid, Signal::SIGUSR2).unwrap();
    let text = hear();
    let new = text
        .strip_prefix("MAINPID=")
        .and_then(|t| t.strip_suffix("\nREADY=1"));
    let new: i32 = new.and_then(|n| n.parse().ok()).expect(&text);
    assert_ne!(new, pid.as_raw());
    kill(pid, Signal::SIGQUIT).unwrap();
    // the service goes on
    assert_eq!(hear(), format!("MAINPID={new}"));
    assert!(child.0.wait().unwrap().success());
    assert_eq!(client::get(addr, "/", "h").text(), "x");
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    assert_eq!(hear(), "STOPPING=1");
    wait_for_end(Pid::from_raw(new));
}

#[test]
fn sockets_of_a_manager_are_used() {
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr: SocketAddr = used.local_addr().unwrap();
    let folder = Folder::new(&CONF.replace("ADDR", &addr.to_string()));
    let fds = [used.as_raw_fd(), unused.as_raw_fd()];
    let mut sh = Command::new("/bin/sh");
    // the number of the process is known to itself alone
    let script = format!(
        "LISTEN_PID=$$ LISTEN_FDS=2 exec {} -p {} -c nginx.conf -e first.log 3<&{} 4<&{}",
        Couloir::program().display(),
        folder.path().display(),
        8,
        9
    );
    sh.args(["-c", &script]).stdin(Stdio::null());
    // SAFETY: dup2 is allowed between fork and exec
    unsafe {
        sh.pre_exec(move || {
            for (fd, number) in fds.into_iter().zip([8, 9]) {
                if libc::dup2(fd, number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let child = Ended(sh.spawn().unwrap());
    drop(used);
    let ready = wait_for(DEADLINE, || {
        (!folder.read("nginx.pid").is_empty()).then_some(())
    });
    assert!(ready.is_some(), "{}", folder.read("error.log"));
    assert_eq!(client::get(addr, "/", "h").text(), "x");
    let log = folder.read("error.log");
    let line = format!(
        "the socket of {} from LISTEN_FDS is not used",
        unused.local_addr().unwrap()
    );
    assert!(log.contains(&line), "{log}");
    drop(child);
}
