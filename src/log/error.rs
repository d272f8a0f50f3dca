//! The error log, in nginx's format: `2026/11/22 10:00:00 [error] 1234#5678: *17 message, client: …`.

use std::fmt::{self, Write};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;

use super::file::write_fd;
use super::{DebugMask, Level, Line, LogFile, Record, SyslogConfig, SyslogPeer, Threshold};

/// One or several sinks, each with its own threshold. A clone shares the sinks.
#[derive(Clone)]
pub struct ErrorLog {
    sinks: Arc<[Sink]>,
    /// The least severe level of any sink.
    level: Level,
    debug: DebugMask,
    debug_connection: bool,
    keeps_stderr: bool,
}

impl ErrorLog {
    /// A log that writes to each of `sinks` what passes its threshold.
    pub fn new(sinks: impl Into<Arc<[Sink]>>) -> Self {
        let sinks = sinks.into();
        let level = sinks
            .iter()
            .map(|sink| sink.threshold.level)
            .max()
            .unwrap_or(Level::Emerg);
        let debug = sinks
            .iter()
            .fold(DebugMask::NONE, |all, sink| all | sink.threshold.debug);
        Self {
            sinks,
            level,
            debug,
            debug_connection: false,
            keeps_stderr: false,
        }
    }

    /// A log on standard error.
    pub fn stderr(level: Level) -> Self {
        Self::new([Sink::stderr(Threshold::new(level))])
    }

    /// The same sinks without thresholds, for a connection named by `debug_connection`.
    pub fn for_debug_connection(&self) -> Self {
        Self {
            level: Level::Debug,
            debug: DebugMask::ALL,
            debug_connection: true,
            ..self.clone()
        }
    }

    /// The least severe level that any sink takes.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether a line of `level` would be written anywhere.
    #[inline]
    pub fn enabled(&self, level: Level) -> bool {
        level <= self.level
    }

    /// Whether debug lines of `part` would be written anywhere.
    #[inline]
    pub fn debug_enabled(&self, part: DebugMask) -> bool {
        self.level == Level::Debug && self.debug.intersects(part)
    }

    /// Whether lines go to standard error.
    pub fn uses_stderr(&self) -> bool {
        self.sinks
            .iter()
            .any(|sink| matches!(sink.output, Output::Stderr))
    }

    /// Whether standard error is to be left as it is: lines of this log, or of another one of the configuration, go there.
    pub fn keeps_stderr(&self) -> bool {
        self.keeps_stderr || self.uses_stderr()
    }

    /// Notes that another log of the configuration goes to standard error.
    pub fn keep_stderr(&mut self) {
        self.keeps_stderr = true;
    }

    /// The first file that lines go to.
    pub fn file(&self) -> Option<&Arc<LogFile>> {
        self.sinks.iter().find_map(|sink| match &sink.output {
            Output::File(file) => Some(file),
            _ => None,
        })
    }

    /// Writes one line; `conn` is the number of the connection, shown as `*17`. See also [`error_log!`].
    ///
    /// [`error_log!`]: crate::error_log
    pub fn write(&self, level: Level, conn: Option<u64>, message: fmt::Arguments<'_>) {
        self.record(&Record {
            conn,
            ..Record::new(level, message)
        });
    }

    /// Writes one line, with the error number and the context of `record`.
    pub fn record(&self, record: &Record<'_>) {
        if !self.enabled(record.level) {
            return;
        }
        let mut line = Line::new();
        let message_at = line.compose(record);
        let mut wrote_stderr = false;
        for sink in self.sinks.iter() {
            if self.debug_connection || sink.threshold.admits(record.level, record.part) {
                wrote_stderr |= matches!(sink.output, Output::Stderr);
                sink.write(record.level, line.as_bytes());
            }
        }
        if record.level <= Level::Warn && !wrote_stderr && USE_STDERR.load(Ordering::Relaxed) {
            let message = line.as_bytes().get(message_at..).unwrap_or_default();
            write_console(Some(record.level), message);
        }
    }
}

impl fmt::Debug for ErrorLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorLog")
            .field("sinks", &self.sinks.len())
            .field("level", &self.level)
            .finish()
    }
}

/// Where lines go, and which of them.
pub struct Sink {
    threshold: Threshold,
    output: Output,
}

enum Output {
    Stderr,
    File(Arc<LogFile>),
    Syslog(Arc<SyslogPeer>),
}

impl Sink {
    /// `error_log stderr`
    pub fn stderr(threshold: Threshold) -> Self {
        Self {
            threshold,
            output: Output::Stderr,
        }
    }

    /// `error_log FILE`
    pub fn file(file: Arc<LogFile>, threshold: Threshold) -> Self {
        Self {
            threshold,
            output: Output::File(file),
        }
    }

    /// `error_log syslog:…`
    pub fn syslog(peer: Arc<SyslogPeer>, threshold: Threshold) -> Self {
        Self {
            threshold,
            output: Output::Syslog(peer),
        }
    }

    fn write(&self, level: Level, line: &[u8]) {
        match &self.output {
            // There is nowhere left to report a failure to.
            Output::Stderr => {
                let _ = write_fd(io::stderr(), line);
            }
            Output::File(file) => file.append_silently(line),
            Output::Syslog(peer) => {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                let _ = peer.send(level.severity(), line);
            }
        }
    }
}

/// The first argument of `error_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `stderr`
    Stderr,
    /// A path as written, not yet made absolute.
    File(PathBuf),
    /// `syslog:…`
    Syslog(SyslogConfig),
}

impl Target {
    /// Reads the argument; a syslog server's name is resolved.
    ///
    /// # Errors
    /// nginx's message about the syslog parameter at fault, or that memory logs are not supported.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        if value == b"stderr" || value.is_empty() {
            Ok(Self::Stderr)
        } else if value.starts_with(b"memory:") {
            let shown = String::from_utf8_lossy(value);
            Err(format!(
                "error log \"{shown}\" is not supported, use a file, \"stderr\" or \"syslog:\""
            ))
        } else if let Some(parameters) = value.strip_prefix(b"syslog:") {
            SyslogConfig::parse(parameters).map(Self::Syslog)
        } else {
            use std::os::unix::ffi::OsStrExt;
            Ok(Self::File(PathBuf::from(std::ffi::OsStr::from_bytes(
                value,
            ))))
        }
    }
}

/// Whether warnings and worse also go to standard error, as they do until start-up is over.
static USE_STDERR: AtomicBool = AtomicBool::new(true);

/// Switches the copies on standard error (on when the process begins; nginx ends them before it serves).
pub fn use_stderr(on: bool) {
    USE_STDERR.store(on, Ordering::Relaxed);
}

/// Writes `nginx: [emerg] message` to standard error, or `nginx: message` without a level.
///
/// The message may have several lines and any length.
pub fn console(level: Option<Level>, message: fmt::Arguments<'_>) {
    let mut text = String::new();
    let _ = text.write_fmt(message);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    write_console(level, text.as_bytes());
}

fn write_console(level: Option<Level>, message: &[u8]) {
    let mut text = Vec::with_capacity(message.len() + 24);
    text.extend_from_slice(b"nginx: ");
    if let Some(level) = level {
        text.extend_from_slice(b"[");
        text.extend_from_slice(level.as_str().as_bytes());
        text.extend_from_slice(b"] ");
    }
    text.extend_from_slice(message);
    // A closed standard error is no reason to fail.
    let _ = io::Write::write_all(&mut io::stderr(), &text);
}

static PROCESS: LazyLock<ArcSwap<ErrorLog>> =
    LazyLock::new(|| ArcSwap::from_pointee(ErrorLog::stderr(Level::Notice)));

/// The log of whatever belongs to no request; standard error at `notice` until it is set.
pub fn process_log() -> Arc<ErrorLog> {
    PROCESS.load_full()
}

/// Sets the log of the process (the main `error_log`); records of the `log` crate follow its level.
pub fn set_process_log(log: ErrorLog) {
    log::set_max_level(match log.level() {
        Level::Emerg | Level::Alert | Level::Crit => log::LevelFilter::Off,
        Level::Error => log::LevelFilter::Error,
        Level::Warn | Level::Notice => log::LevelFilter::Warn,
        Level::Info => log::LevelFilter::Info,
        Level::Debug => log::LevelFilter::Debug,
    });
    PROCESS.store(Arc::new(log));
}

/// Sends the records of the `log` crate (Pingora's and other libraries') to the process log from now on.
///
/// Returns whether this process had no other logger before; a second call changes nothing.
pub fn install_bridge() -> bool {
    let installed = log::set_logger(&Bridge).is_ok();
    if installed {
        set_process_log(ErrorLog::clone(&process_log()));
    }
    installed
}

struct Bridge;

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Pingora's server speaks of a start and of signals that are not this process's.
        let chatter =
            metadata.target() == "pingora_core::server" && metadata.level() >= log::Level::Info;
        !chatter && PROCESS.load().enabled(metadata.level().into())
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        PROCESS.load_full().record(&Record {
            part: DebugMask::CORE,
            ..Record::new(record.level().into(), *record.args())
        });
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Errno, LogFiles, MAX_ERROR_STR, RequestContext};
    use std::path::Path;
    use std::thread;

    fn log_to(path: &Path, threshold: Threshold) -> ErrorLog {
        use_stderr(false);
        ErrorLog::new([Sink::file(
            LogFiles::default().open(path).unwrap(),
            threshold,
        )])
    }

    /// The line after its time, which is checked.
    fn after_time(line: &str) -> &str {
        let (time, rest) = line.split_at(19);
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000/00/00 00:00:00");
        rest
    }

    #[test]
    fn lines_look_like_nginxs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let log = log_to(&path, Threshold::new(Level::Info));
        crate::error_log!(log, Level::Error, Some(17), "open() \"{}\" failed", "/x");
        crate::error_log!(log, Level::Debug, None, "never {}", "seen");
        let context = RequestContext {
            action: Some("connecting to upstream"),
            client: b"1.2.3.4",
            server: b"x",
            request: Some(b"GET / HTTP/1.1"),
            upstream: Some(b"http://127.0.0.1:81/"),
            host: Some(b"h\nx"),
            ..RequestContext::default()
        };
        log.record(&Record {
            conn: Some(3),
            errno: Some(Errno(111)),
            context: Some(&context),
            ..Record::new(Level::Error, format_args!("connect() failed"))
        });

        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let (pid, tid) = (std::process::id(), nix::unistd::gettid());
        assert_eq!(lines.len(), 2);
        assert_eq!(
            after_time(lines[0]),
            format!(" [error] {pid}#{tid}: *17 open() \"/x\" failed")
        );
        assert_eq!(
            after_time(lines[1]),
            format!(
                " [error] {pid}#{tid}: *3 connect() failed (111: Connection refused) while connecting to upstream, \
                 client: 1.2.3.4, server: x, request: \"GET / HTTP/1.1\", upstream: \"http://127.0.0.1:81/\", \
                 host: \"h\\x0Ax\""
            )
        );
    }

    #[test]
    fn long_lines_are_cut_but_keep_their_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let log = log_to(&path, Threshold::new(Level::Error));
        let long = "y".repeat(5000);
        log.write(Level::Error, None, format_args!("{long}"));
        log.record(&Record {
            errno: Some(Errno(2)),
            ..Record::new(Level::Error, format_args!("{long}"))
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].len() + 1, MAX_ERROR_STR);
        assert!(lines[1].ends_with("yyy... (2: No such file or directory)"));
        assert_eq!(lines[1].find("...").unwrap(), MAX_ERROR_STR - 50);
    }

    #[test]
    fn every_sink_has_its_own_threshold() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::default();
        let path = |name: &str| dir.path().join(name);
        let sink = |name: &str, threshold| Sink::file(files.open(&path(name)).unwrap(), threshold);
        use_stderr(false);
        let parts = Threshold::parse([&b"debug_http"[..]]).unwrap();
        let log = ErrorLog::new([
            sink("crit", Threshold::new(Level::Crit)),
            sink("http", parts),
        ]);
        assert!(log.enabled(Level::Info));
        assert!(log.debug_enabled(DebugMask::HTTP) && !log.debug_enabled(DebugMask::EVENT));
        log.write(Level::Crit, None, format_args!("a"));
        log.write(Level::Warn, None, format_args!("b"));
        let debug = |part| Record {
            part,
            ..Record::new(Level::Debug, format_args!("c"))
        };
        log.record(&debug(DebugMask::HTTP));
        log.record(&debug(DebugMask::EVENT));
        let count = |name: &str| std::fs::read_to_string(path(name)).unwrap().lines().count();
        assert_eq!((count("crit"), count("http")), (1, 3));
        log.for_debug_connection().record(&debug(DebugMask::EVENT));
        assert_eq!((count("crit"), count("http")), (2, 4));
    }

    #[test]
    fn lines_of_eight_threads_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let log = log_to(&path, Threshold::new(Level::Error));
        thread::scope(|scope| {
            for number in 0..8 {
                let log = &log;
                scope.spawn(move || {
                    for line in 0..1000 {
                        log.write(
                            Level::Error,
                            Some(number),
                            format_args!("line {line} {} end", "z".repeat(line)),
                        );
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 8000);
        for line in text.lines() {
            let mut words = after_time(line).split_whitespace().skip(4);
            let number: usize = words.next().unwrap().parse().unwrap();
            let fill = if number == 0 {
                0
            } else {
                words.next().unwrap().len()
            };
            assert_eq!(
                (fill, words.next(), words.next()),
                (number, Some("end"), None),
                "{line}"
            );
        }
    }

    #[test]
    fn full_disk_is_no_matter() {
        let log = log_to(Path::new("/dev/full"), Threshold::new(Level::Error));
        for _ in 0..100 {
            log.write(Level::Error, None, format_args!("lost"));
        }
    }

    #[test]
    fn syslog_gets_the_whole_line_with_its_own_severity() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        server
            .set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        let target = format!(
            "syslog:server={},nohostname,severity=debug",
            server.local_addr().unwrap()
        );
        let Ok(Target::Syslog(config)) = Target::parse(target.as_bytes()) else {
            panic!("{target}")
        };
        use_stderr(false);
        let peer = Arc::new(SyslogPeer::new(config));
        let log = ErrorLog::new([Sink::syslog(peer, Threshold::new(Level::Error))]);
        log.write(Level::Crit, Some(5), format_args!("bad"));
        let mut buf = [0; 4096];
        let len = server.recv(&mut buf).unwrap();
        let text = std::str::from_utf8(&buf[..len]).unwrap();
        assert!(text.starts_with("<186>"), "{text}");
        let (_, line) = text.split_once(" nginx: ").unwrap();
        assert!(
            after_time(line).starts_with(" [crit] ") && line.ends_with(": *5 bad"),
            "{text}"
        );
    }

    #[test]
    fn targets() {
        assert!(matches!(Target::parse(b"stderr"), Ok(Target::Stderr)));
        assert!(
            matches!(Target::parse(b"logs/error.log"), Ok(Target::File(path)) if path == Path::new("logs/error.log"))
        );
        assert!(matches!(
            Target::parse(b"syslog:server=127.0.0.1"),
            Ok(Target::Syslog(_))
        ));
        assert_eq!(
            Target::parse(b"syslog:tag=a").unwrap_err(),
            "no syslog server specified"
        );
        assert!(
            Target::parse(b"memory:32m")
                .unwrap_err()
                .contains("\"memory:32m\" is not supported")
        );
    }

    #[test]
    fn records_of_libraries_reach_the_process_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        install_bridge();
        set_process_log(log_to(&path, Threshold::new(Level::Warn)));
        ::log::warn!(target: "library", "two\nlines");
        ::log::info!(target: "library", "too fine");
        let text = std::fs::read_to_string(&path).unwrap();
        // Other tests may write to the log of the process meanwhile.
        let found = |line: &str| line.contains(" [warn] ") && line.ends_with(": two\\x0Alines");
        assert!(text.lines().any(found), "{text}");
        assert!(!text.contains("too fine"));
    }
}
