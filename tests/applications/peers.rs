//! Starting the programs that applications run in; each ends with the value that stands for it.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::common::ports::Port;
use super::common::{DEADLINE, wait_for};

/// A program with a socket of its own in a folder of its own; ended on drop.
pub struct Peer {
    child: Child,
    dir: tempfile::TempDir,
    port: Option<Port>,
}

impl Peer {
    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Its port, where it has one.
    pub fn port(&self) -> u16 {
        self.port.as_ref().map_or(0, Port::number)
    }

    /// php-fpm; `file.php` and its kin below its folder can be asked for.
    pub fn php(files: &[(&str, &str)]) -> Peer {
        let dir = folder(files);
        let at = dir.path().display();
        let root = if is_root() {
            "user = root\ngroup = root\n"
        } else {
            ""
        };
        let conf = format!(
            "[global]\nerror_log = {at}/fpm.log\ndaemonize = no\n[www]\n{root}listen = {at}/socket\nlisten.mode = 0666\n\
             pm = static\npm.max_children = 2\ncatch_workers_output = no\nphp_admin_value[upload_max_filesize] = 16M\n\
             php_admin_value[post_max_size] = 16M\nphp_admin_value[output_buffering] = 0\n"
        );
        fs::write(dir.path().join("fpm.conf"), conf).expect("fpm.conf");
        let mut command = Command::new(find("php-fpm", "/usr/sbin"));
        command.arg("-F").arg("-R").arg("-y");
        command.arg(dir.path().join("fpm.conf"));
        Peer::spawn(command, dir, None)
    }

    /// uWSGI with `app.py`'s `application`, speaking `protocol` (`uwsgi`, `scgi`).
    pub fn python(protocol: &str, app: &str) -> Peer {
        let dir = folder(&[("app.py", app)]);
        let mut command = Command::new(find("uwsgi", "/usr/bin"));
        command.args(["--plugin", "python3", "--master", "--die-on-term"]);
        command.args(["--need-app", "--processes", "2", "--chmod-socket=666"]);
        command.args(["--protocol", protocol, "--socket", "socket"]);
        command.args(["--wsgi-file", "app.py"]);
        Peer::spawn(command, dir, None)
    }

    /// memcached on a port.
    pub fn memcached() -> Peer {
        let port = Port::reserve();
        let mut command = Command::new(find("memcached", "/usr/bin"));
        command.args(["-l", "127.0.0.1", "-U", "0", "-m", "16"]);
        command.args(["-p", &port.number().to_string()]);
        if is_root() {
            command.args(["-u", "root"]);
        }
        Peer::spawn(command, folder(&[]), Some(port))
    }

    fn spawn(mut command: Command, dir: tempfile::TempDir, port: Option<Port>) -> Peer {
        let log = fs::File::create(dir.path().join("out.txt")).expect("out.txt");
        let child = command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("out.txt"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e} (make test-deps installs it)"));
        let mut peer = Peer { child, dir, port };
        let ready = wait_for(DEADLINE, || {
            if let Some(status) = peer.child.try_wait().expect("wait") {
                return Some(Err(status));
            }
            let accepts = match &peer.port {
                Some(port) => TcpStream::connect(("127.0.0.1", port.number())).is_ok(),
                None => UnixStream::connect(peer.socket()).is_ok(),
            };
            accepts.then_some(Ok(()))
        });
        if !matches!(ready, Some(Ok(()))) {
            let said = fs::read_to_string(peer.dir().join("out.txt")).unwrap_or_default();
            panic!("{command:?}: {ready:?}\n{said}");
        }
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, killpg};
        // its workers too
        let group = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::TempDir::with_prefix("couloir-app-").expect("temp folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for (name, text) in files {
        let path = dir.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("create folder");
        }
        fs::write(path, text).expect("write file");
    }
    dir
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A program by the beginning of its name: Debian's php-fpm has its version in it.
fn find(name: &str, folder: &str) -> PathBuf {
    let plain = Path::new(folder).join(name);
    if plain.exists() {
        return plain;
    }
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(name))
        })
        .collect();
    found.sort();
    found.pop().unwrap_or(plain)
}
