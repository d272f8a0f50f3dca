//! A server under test: its own folder, its own ports, ended when the test ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::ports::Port;
use super::{DEADLINE, wait_for};

/// A running server; stopped and its folder removed on drop.
pub struct Server {
    child: Child,
    place: Place,
}

impl Server {
    /// The port that stands for the marker `%%PORT_n%%`.
    pub fn port(&self, marker: u16) -> u16 {
        self.place.ports[&marker].number()
    }

    /// The loopback address of `%%PORT_n%%`.
    pub fn addr(&self, marker: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.port(marker)).into()
    }

    /// The server's folder (`%%TESTDIR%%`), its prefix.
    pub fn dir(&self) -> &Path {
        self.place.dir.path()
    }

    /// Writes a file in the server's folder.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        self.place.write(name, text.as_ref());
    }

    /// Replaces the configuration, with the same markers; it takes effect with [`Server::reload`].
    pub fn write_conf(&mut self, conf: &str) {
        self.place.write_conf(conf);
    }

    /// Sends SIGHUP.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Sends a signal to the master.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal the server");
    }

    /// The master's process.
    pub fn pid(&self) -> Pid {
        pid(&self.child)
    }

    /// Ends it at once (SIGTERM) and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Lets it finish what is under way (SIGQUIT) and waits for its end.
    pub fn quit(mut self) -> ExitStatus {
        self.signal(Signal::SIGQUIT);
        self.wait()
    }

    /// Waits for the end of a server that was told to go.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = wait_for(DEADLINE, || self.child.try_wait().expect("wait"));
        ended.unwrap_or_else(|| panic!("the server did not end; its log:\n{}", self.log()))
    }

    /// The error log so far.
    pub fn log(&self) -> String {
        self.place.read("error.log")
    }

    /// A file of the server's folder, empty if it is not there.
    pub fn read(&self, name: &str) -> String {
        self.place.read(name)
    }

    /// Waits until a file of the server's folder holds `needle`, and returns its text.
    pub fn wait_for_text(&self, name: &str, needle: &str) -> String {
        let text = wait_for(DEADLINE, || {
            Some(self.place.read(name)).filter(|text| text.contains(needle))
        });
        text.unwrap_or_else(|| panic!("no {needle:?} in {name}:\n{}", self.place.read(name)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The program of this package under test; `COULOIR_BIN` names another one (nginx itself, to check the tests).
pub struct Couloir;

impl Couloir {
    /// Starts it on `conf` (see [`Setup`]) and waits until every listener accepts.
    pub fn start(conf: &str) -> Server {
        Setup::new(conf).start(&Self::program())
    }

    /// The program's path.
    pub fn program() -> PathBuf {
        std::env::var_os("COULOIR_BIN").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_couloir")),
            PathBuf::from,
        )
    }
}

/// What a server starts from: a configuration with markers, and files beside it.
///
/// Markers, as in nginx's own tests: `%%PORT_8080%%` (a free port, the same one each time), `%%TESTDIR%%`,
/// `%%TEST_GLOBALS%%` (foreground, pid, error log; given by `-g` where the text does not name it),
/// `%%TEST_GLOBALS_HTTP%%` (temp folders, access log, root); further ones by [`Setup::set`].
pub struct Setup {
    conf: String,
    values: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>, Option<SystemTime>)>,
}

impl Setup {
    /// Begins with a configuration text.
    pub fn new(conf: &str) -> Self {
        Self {
            conf: conf.into(),
            values: Vec::new(),
            files: Vec::new(),
        }
    }

    /// `%%NAME%%` stands for `value`.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.values.push((name.into(), value.to_string()));
        self
    }

    /// A file in the server's folder; `mtime` makes Last-Modified and ETag known beforehand.
    pub fn file(mut self, name: &str, text: impl AsRef<[u8]>, mtime: Option<SystemTime>) -> Self {
        self.files
            .push((name.into(), text.as_ref().to_vec(), mtime));
        self
    }

    /// Starts `program` and waits until its pid file is there and every listener of the configuration accepts.
    pub fn start(self, program: &Path) -> Server {
        match self.try_start(program) {
            Ok(server) => server,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// As [`Setup::start`]; the error is everything that the program said.
    pub fn try_start(self, program: &Path) -> Result<Server, String> {
        let mut place = self.place(program);
        let conf = place.write_conf(&self.conf);
        let mut command = place.command(program, &self.conf);
        let stderr = fs::File::create(place.dir.path().join("stderr.txt")).expect("stderr.txt");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let mut child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let listeners = listeners(&conf);
        let pid_file = place.dir.path().join("nginx.pid");
        let ready = wait_for(DEADLINE, || {
            if let Some(status) = child.try_wait().expect("wait") {
                return Some(Err(format!("it ended with {status}")));
            }
            // the pid file comes after the signal handlers: from then on a signal does what it says
            let written = fs::read(&pid_file).is_ok_and(|text| text.ends_with(b"\n"));
            (written && listeners.iter().all(Listener::accepts)).then_some(Ok(()))
        });
        match ready.unwrap_or_else(|| Err("its listeners do not accept".into())) {
            Ok(()) => Ok(Server { child, place }),
            Err(what) => {
                end(&mut child);
                Err(format!(
                    "{}: {what}\n--- stderr\n{}--- error.log\n{}--- nginx.conf\n{conf}",
                    program.display(),
                    place.read("stderr.txt"),
                    place.read("error.log"),
                ))
            }
        }
    }

    /// Runs `program -t` on the configuration: exit status and what it said on the error stream.
    pub fn test(self, program: &Path) -> (ExitStatus, String) {
        let mut place = self.place(program);
        place.write_conf(&self.conf);
        let mut command = place.command(program, &self.conf);
        let output = command
            .arg("-t")
            .stdin(Stdio::null())
            .output()
            .expect("run");
        (
            output.status,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    fn place(&self, program: &Path) -> Place {
        let dir = TempDir::with_prefix("couloir-test-").expect("temp folder");
        // a master that is root gives its workers to another user
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let place = Place {
            dir,
            ports: BTreeMap::new(),
            values: self.values.clone(),
            absent: absent_protocols(program),
        };
        for (name, text, mtime) in &self.files {
            place.write(name, text);
            if let Some(mtime) = mtime {
                let file = fs::File::options()
                    .append(true)
                    .open(place.dir.path().join(name));
                file.and_then(|file| file.set_modified(*mtime))
                    .expect("set mtime");
            }
        }
        place
    }
}

/// A server's folder, ports and markers.
struct Place {
    dir: TempDir,
    ports: BTreeMap<u16, Port>,
    values: Vec<(String, String)>,
    /// Protocols that the program lacks: it would refuse their directives.
    absent: Vec<&'static str>,
}

impl Place {
    fn write(&self, name: &str, text: &[u8]) {
        let path = self.dir.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).expect("create folder");
        }
        fs::write(path, text).expect("write file");
    }

    fn write_conf(&mut self, conf: &str) -> String {
        let conf = self.expand(conf);
        self.write("nginx.conf", conf.as_bytes());
        conf
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn command(&self, program: &Path, conf: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-p").arg(self.dir.path());
        command.args(["-c", "nginx.conf", "-e", "error.log"]);
        if !conf.contains("%%TEST_GLOBALS%%") {
            command.arg("-g").arg(self.globals());
        }
        // a group of its own: a master that has to be killed takes its workers along
        command.process_group(0);
        command
    }

    fn globals(&self) -> String {
        let dir = self.dir.path().display();
        format!("daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log info;")
    }

    fn globals_http(&self) -> String {
        let dir = self.dir.path().display();
        let mut text = format!("root {dir}; access_log {dir}/access.log;");
        let present = |name: &&str| !self.absent.contains(name);
        for name in ["client_body", "proxy"]
            .into_iter()
            .chain(PROTOCOLS.into_iter().filter(present))
        {
            text += &format!(" {name}_temp_path {dir}/{name}_temp;");
        }
        text
    }

    /// Replaces the markers; an unknown one is a mistake in the test.
    fn expand(&mut self, text: &str) -> String {
        let mut expanded = String::new();
        for (index, piece) in text.split("%%").enumerate() {
            if index % 2 == 0 {
                expanded += piece;
            } else if let Some(number) = piece.strip_prefix("PORT_") {
                let marker = number.parse().expect("%%PORT_number%%");
                let port = self.ports.entry(marker).or_insert_with(Port::reserve);
                expanded += &port.number().to_string();
            } else {
                expanded += &match piece {
                    "TESTDIR" => self.dir.path().display().to_string(),
                    "TEST_GLOBALS" => self.globals(),
                    "TEST_GLOBALS_HTTP" => self.globals_http(),
                    name => match self.values.iter().find(|(known, _)| known == name) {
                        Some((_, value)) => value.clone(),
                        None => panic!("unknown marker %%{name}%%"),
                    },
                };
            }
        }
        expanded
    }
}

/// Protocols towards origins that a program may be built without.
const PROTOCOLS: [&str; 3] = ["fastcgi", "uwsgi", "scgi"];

fn absent_protocols(program: &Path) -> Vec<&'static str> {
    let (_, _, build) = run(program, &["-V"]);
    let absent = |name: &&str| build.contains(&format!("--without-http_{name}_module"));
    PROTOCOLS.into_iter().filter(absent).collect()
}

enum Listener {
    Tcp(SocketAddr),
    Unix(String),
}

impl Listener {
    fn accepts(&self) -> bool {
        let outcome = match self {
            Self::Tcp(addr) => TcpStream::connect_timeout(addr, Duration::from_secs(1)).map(drop),
            Self::Unix(path) => UnixStream::connect(path).map(drop),
        };
        !matches!(outcome, Err(error) if error.kind() != ErrorKind::WouldBlock)
    }
}

/// The stream sockets that `listen` directives of an expanded configuration name.
fn listeners(conf: &str) -> Vec<Listener> {
    let code: String = conf
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().to_owned() + "\n")
        .collect();
    let mut found = Vec::new();
    for statement in code.split([';', '{', '}']) {
        let mut words = statement.split_whitespace();
        if words.next() != Some("listen") {
            continue;
        }
        let address = words.next().unwrap_or_default();
        if words.any(|option| option == "udp" || option == "quic") {
            continue;
        }
        if let Some(path) = address.strip_prefix("unix:") {
            found.push(Listener::Unix(path.to_owned()));
        } else if let Ok(addr) = address.parse() {
            found.push(Listener::Tcp(addr));
        } else if let Ok(port) = address
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .parse::<u16>()
        {
            found.push(Listener::Tcp(([127, 0, 0, 1], port).into()));
        }
    }
    found
}

/// Ends a child and what it started: politely, then by force.
fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let _ = kill(pid(child), Signal::SIGTERM);
    let ended = wait_for(DEADLINE, || child.try_wait().ok().flatten());
    if ended.is_none() {
        let _ = killpg(pid(child), Signal::SIGKILL);
        let _ = child.wait();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process id fits"))
}

/// Copies a program so that it can be run at once: no thread of ours that forks meanwhile inherits the open file, which
/// would make it "busy".
pub fn install(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "{}",
        to.display()
    );
}

/// Runs a program to its end: status, standard output, error stream.
pub fn run(program: &Path, args: &[&str]) -> (ExitStatus, String, String) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}
