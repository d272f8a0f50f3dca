//! nginx's command line: options, texts, streams and exit codes (`nginx(8)`).
//!
//! The arguments are first brought into one canonical form by nginx's own rules (flags may be combined, a value may be
//! attached or separate, a later option wins), so that every complaint is nginx's; structopt then fills [`Options`].

use crate::http::status::NGINX_VERSION;
use crate::log::HTTP_LOG_PATH;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use structopt::StructOpt;
use structopt::clap::AppSettings;

/// Prefix when `-p` is not given (`--prefix`), with the trailing slash.
pub const PREFIX: &str = "/usr/share/nginx/";

/// Configuration file when `-c` is not given (`--conf-path`).
pub const CONF_PATH: &str = "/etc/nginx/nginx.conf";

/// Error log until the configuration names one, when `-e` is not given (`--error-log-path`).
pub const ERROR_LOG_PATH: &str = "/var/log/nginx/error.log";

/// PID file when the configuration names none (`--pid-path`).
pub const PID_PATH: &str = "/run/nginx.pid";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print [`Options::show`]'s text on the error stream and exit 0 (`-v`, `-V`, `-h`, `-?`).
    Show(Options),
    /// Test the configuration (`-t`, `-T`), after printing [`Options::show`]'s text if there is any.
    Test(Options),
    /// Send a signal to the running master (`-s`).
    Signal(Signal, Options),
    /// Serve.
    Run(Options),
}

/// The options as written, each at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq, StructOpt)]
#[structopt(
    name = "couloir",
    no_version,
    setting = AppSettings::DisableHelpFlags,
    setting = AppSettings::DisableVersion,
    setting = AppSettings::AllArgsOverrideSelf,
)]
pub struct Options {
    /// `-h`, `-?`: usage.
    #[structopt(short = "h")]
    pub help: bool,
    /// `-v`: version.
    #[structopt(short = "v")]
    pub version: bool,
    /// `-V`: version and build.
    #[structopt(short = "V")]
    pub configure: bool,
    /// `-t`: test the configuration.
    #[structopt(short = "t")]
    pub test: bool,
    /// `-T`: test the configuration and dump it on standard output.
    #[structopt(short = "T")]
    pub dump: bool,
    /// `-q`: no messages but errors while testing.
    #[structopt(short = "q")]
    pub quiet: bool,
    /// `-s`: signal for the running master.
    #[structopt(short = "s", allow_hyphen_values = true)]
    pub signal: Option<Signal>,
    /// `-p`: prefix.
    #[structopt(short = "p", parse(from_os_str), allow_hyphen_values = true)]
    pub prefix: Option<PathBuf>,
    /// `-e`: first error log; `stderr` means the stream.
    #[structopt(short = "e", parse(from_os_str), allow_hyphen_values = true)]
    pub error_log: Option<PathBuf>,
    /// `-c`: configuration file.
    #[structopt(short = "c", parse(from_os_str), allow_hyphen_values = true)]
    pub conf_file: Option<PathBuf>,
    /// `-g`: directives read before the configuration file.
    #[structopt(short = "g", parse(from_os_str), allow_hyphen_values = true)]
    pub directives: Option<OsString>,
}

impl Options {
    /// The text that `-v`, `-V` and `-h` print on the error stream; `None` if none of them was given.
    pub fn show(&self, build: &Build<'_>) -> Option<String> {
        if !(self.help || self.version || self.configure) {
            return None;
        }
        let mut text = format!(
            "nginx version: nginx/{NGINX_VERSION}\ncouloir version: couloir/{}\n",
            env!("CARGO_PKG_VERSION")
        );
        if self.help {
            usage(&mut text);
        }
        if self.configure {
            build.describe(&mut text);
        }
        Some(text)
    }

    /// The `-g` text as the configuration lexer takes it; empty when not given.
    pub fn directives(&self) -> &[u8] {
        self.directives.as_deref().unwrap_or_default().as_bytes()
    }

    /// Where everything is, by nginx's rules.
    pub fn paths(&self) -> Paths {
        let prefix = match &self.prefix {
            Some(given) => with_slash(given),
            None => PathBuf::from(PREFIX),
        };
        let conf_file = self.conf_file.as_deref().unwrap_or(Path::new(CONF_PATH));
        let conf_file = prefix.join(conf_file);
        // a bare file name has no folder of its own: includes then follow the prefix
        let conf_prefix = match conf_file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => with_slash(folder),
            _ => prefix.clone(),
        };
        let error_log = match self.error_log.as_deref() {
            Some(name) if name.as_os_str().is_empty() || name == Path::new("stderr") => None,
            Some(name) => Some(prefix.join(name)),
            None => Some(prefix.join(ERROR_LOG_PATH)),
        };
        Paths {
            prefix,
            conf_prefix,
            conf_file,
            error_log,
        }
    }
}

/// The process-wide paths that the command line decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What relative paths of most directives start from; ends with a slash unless empty.
    pub prefix: PathBuf,
    /// What `include` and key files start from: the configuration file's own folder.
    pub conf_prefix: PathBuf,
    /// The main configuration file, as messages name it.
    pub conf_file: PathBuf,
    /// The first error log; `None` is the error stream.
    pub error_log: Option<PathBuf>,
}

/// `-s`: what to tell the running master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `stop`: end at once (SIGTERM).
    Stop,
    /// `quit`: end when the requests under way are done (SIGQUIT).
    Quit,
    /// `reopen`: reopen the logs (SIGUSR1).
    Reopen,
    /// `reload`: read the configuration anew (SIGHUP).
    Reload,
    /// `upgrade`: have the binary that now stands in this one's place take over; not in nginx.
    Upgrade,
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "stop" => Ok(Self::Stop),
            "quit" => Ok(Self::Quit),
            "reopen" => Ok(Self::Reopen),
            "reload" => Ok(Self::Reload),
            "upgrade" => Ok(Self::Upgrade),
            _ => Err(format!("invalid option: \"-s {name}\"")),
        }
    }
}

/// What `-V` tells of the build; the caller knows which modules there are.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// The TLS library as it names itself at run time: `OpenSSL 3.6.3 …`.
    pub tls: &'a str,
    /// Module flags in nginx's form: `--with-http_ssl_module`, `--without-http_uwsgi_module`.
    pub modules: &'a [&'a str],
}

impl Build<'_> {
    fn describe(&self, text: &mut String) {
        let rustc = option_env!("COULOIR_RUSTC").unwrap_or(concat!(
            "rustc ",
            env!("CARGO_PKG_RUST_VERSION"),
            "+"
        ));
        // writing to a String cannot fail
        let _ = write!(
            text,
            "built by {rustc}\nbuilt with {}\nTLS SNI support enabled\nconfigure arguments: --prefix={} \
             --conf-path={CONF_PATH} --error-log-path={ERROR_LOG_PATH} --http-log-path={HTTP_LOG_PATH} \
             --pid-path={PID_PATH} --build=couloir/{}",
            self.tls,
            PREFIX.trim_end_matches('/'),
            env!("CARGO_PKG_VERSION"),
        );
        for flag in self.modules {
            text.push(' ');
            text.push_str(flag);
        }
        text.push('\n');
    }
}

/// A command line that cannot be followed: what to print on the error stream, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliExit {
    /// Exit code, 1 as in nginx.
    pub code: i32,
    /// The whole text with its line end; bytes, as it may quote an argument that is not UTF-8.
    pub stderr: Vec<u8>,
}

impl CliExit {
    /// Prints the text and returns the exit code.
    pub fn report(&self) -> i32 {
        // an error stream that is gone leaves nobody to tell
        let _ = std::io::stderr().write_all(&self.stderr);
        self.code
    }

    fn new(parts: &[&[u8]]) -> Self {
        let mut stderr = b"nginx: ".to_vec();
        for part in parts {
            stderr.extend_from_slice(part);
        }
        stderr.push(b'\n');
        Self { code: 1, stderr }
    }

    fn invalid_option(option: &[u8]) -> Self {
        Self::new(&[b"invalid option: \"", option, b"\""])
    }

    fn requires(option: u8, what: &str) -> Self {
        Self::new(&[b"option \"-", &[option], b"\" requires ", what.as_bytes()])
    }
}

/// Reads the command line; `args` is without the program's name.
///
/// # Errors
/// An unknown option, a missing value or an unknown signal, with nginx's text.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, CliExit> {
    let options = Options::from_iter_safe(canonical(args)?).map_err(|error| {
        CliExit::new(&[error.message.lines().next().unwrap_or_default().as_bytes()])
    })?;
    Ok(if options.test || options.dump {
        Command::Test(options)
    } else if options.help || options.version || options.configure {
        Command::Show(options)
    } else if let Some(signal) = options.signal {
        Command::Signal(signal, options)
    } else {
        Command::Run(options)
    })
}

/// One option per argument, values separate, with a program name in front.
fn canonical(mut args: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, CliExit> {
    let mut canonical = vec![OsString::from("couloir")];
    while let Some(arg) = args.next() {
        let Some(mut rest) = arg.as_bytes().strip_prefix(b"-") else {
            return Err(CliExit::invalid_option(arg.as_bytes()));
        };
        while let Some((&option, tail)) = rest.split_first() {
            rest = tail;
            let wants = match option {
                b'?' => {
                    canonical.push(OsString::from("-h"));
                    continue;
                }
                b'h' | b'v' | b'V' | b't' | b'T' | b'q' => {
                    canonical.push(short(option));
                    continue;
                }
                b'p' => "directory name",
                b'e' | b'c' => "file name",
                b'g' | b's' => "parameter",
                _ => return Err(CliExit::invalid_option(&[option])),
            };
            let value = if rest.is_empty() {
                args.next()
                    .ok_or_else(|| CliExit::requires(option, wants))?
            } else {
                OsStr::from_bytes(rest).to_owned()
            };
            if option == b's'
                && value
                    .to_str()
                    .is_none_or(|name| name.parse::<Signal>().is_err())
            {
                return Err(CliExit::new(&[
                    b"invalid option: \"-s ",
                    value.as_bytes(),
                    b"\"",
                ]));
            }
            canonical.push(short(option));
            canonical.push(value);
            break;
        }
    }
    Ok(canonical)
}

fn short(option: u8) -> OsString {
    OsString::from_vec(vec![b'-', option])
}

fn with_slash(path: &Path) -> PathBuf {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    if bytes.last().is_some_and(|&last| last != b'/') {
        bytes.push(b'/');
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn usage(text: &mut String) {
    // writing to a String cannot fail
    let _ = write!(
        text,
        "\
Usage: nginx [-?hvVtTq] [-s signal] [-p prefix]
             [-e filename] [-c filename] [-g directives]

Options:
  -?,-h         : this help
  -v            : show version and exit
  -V            : show version and configure options then exit
  -t            : test configuration and exit
  -T            : test configuration, dump it and exit
  -q            : suppress non-error messages during configuration testing
  -s signal     : send signal to a master process: stop, quit, reopen, reload,
                  upgrade (have the new binary take over)
  -p prefix     : set prefix path (default: {PREFIX})
  -e filename   : set error log file (default: {ERROR_LOG_PATH})
  -c filename   : set configuration file (default: {CONF_PATH})
  -g directives : set global directives out of configuration file

"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(args: &[&str]) -> Result<Command, CliExit> {
        parse(args.iter().map(OsString::from))
    }

    fn refused(args: &[&str]) -> String {
        let exit = parsed(args).unwrap_err();
        assert_eq!(exit.code, 1);
        String::from_utf8(exit.stderr).unwrap()
    }

    fn run(args: &[&str]) -> Options {
        match parsed(args).unwrap() {
            Command::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_attached_and_separate() {
        for args in [
            ["-c", "/a b", "-p", "x", "-e", "stderr", "-g", "daemon off;"].as_slice(),
            &["-c/a b", "-px", "-estderr", "-gdaemon off;"],
            &[
                "-c",
                "other",
                "-c/a b",
                "-p",
                "x",
                "-e",
                "stderr",
                "-gdaemon off;",
            ],
        ] {
            let options = run(args);
            assert_eq!(options.conf_file.as_deref(), Some(Path::new("/a b")));
            assert_eq!(options.prefix.as_deref(), Some(Path::new("x")));
            assert_eq!(options.error_log.as_deref(), Some(Path::new("stderr")));
            assert_eq!(options.directives(), b"daemon off;");
        }
    }

    #[test]
    fn values_may_look_like_options() {
        for value in ["-t", "--", "-", "", "--conf", "=", "==x", "-c=1"] {
            let options = run(&["-c", value, "-g", value]);
            assert_eq!(
                options.conf_file.as_deref(),
                Some(Path::new(value)),
                "{value:?}"
            );
            assert_eq!(options.directives(), value.as_bytes());
        }
    }

    #[test]
    fn flags_combine() {
        let Ok(Command::Test(options)) = parsed(&["-tq", "-tcfile"]) else {
            panic!()
        };
        assert!(options.test && options.quiet && !options.dump);
        assert_eq!(options.conf_file.as_deref(), Some(Path::new("file")));
        let Ok(Command::Test(options)) = parsed(&["-T", "-s", "stop", "-v"]) else {
            panic!()
        };
        assert!(options.dump && options.version);
        assert!(matches!(parsed(&["-"]), Ok(Command::Run(_))));
    }

    #[test]
    fn signals() {
        for (name, signal) in [
            ("stop", Signal::Stop),
            ("quit", Signal::Quit),
            ("reopen", Signal::Reopen),
            ("reload", Signal::Reload),
            ("upgrade", Signal::Upgrade),
        ] {
            let attached = format!("-s{name}");
            for args in [["-s", name].as_slice(), &[&attached]] {
                assert!(matches!(parsed(args), Ok(Command::Signal(found, _)) if found == signal));
            }
        }
        assert!(matches!(
            parsed(&["-s", "stop", "-v"]),
            Ok(Command::Show(_))
        ));
    }

    #[test]
    fn complaints_are_nginx_s() {
        for (args, text) in [
            (["-x"].as_slice(), "nginx: invalid option: \"x\"\n"),
            (&["-tx"], "nginx: invalid option: \"x\"\n"),
            (&["--help"], "nginx: invalid option: \"-\"\n"),
            (&["start"], "nginx: invalid option: \"start\"\n"),
            (&[""], "nginx: invalid option: \"\"\n"),
            (&["-p"], "nginx: option \"-p\" requires directory name\n"),
            (&["-e"], "nginx: option \"-e\" requires file name\n"),
            (&["-tc"], "nginx: option \"-c\" requires file name\n"),
            (&["-g"], "nginx: option \"-g\" requires parameter\n"),
            (&["-s"], "nginx: option \"-s\" requires parameter\n"),
            (&["-s", "foo"], "nginx: invalid option: \"-s foo\"\n"),
            (&["-sfoo"], "nginx: invalid option: \"-s foo\"\n"),
            (&["-s", ""], "nginx: invalid option: \"-s \"\n"),
        ] {
            assert_eq!(refused(args), text, "{args:?}");
        }
        let exit = parse(std::iter::once(OsString::from_vec(b"-\xff".to_vec()))).unwrap_err();
        assert_eq!(exit.stderr, b"nginx: invalid option: \"\xff\"\n");
    }

    #[test]
    fn texts() {
        let build = Build {
            tls: "OpenSSL 3.6.3",
            modules: &["--with-http_ssl_module", "--without-http_uwsgi_module"],
        };
        let text = |args: &[&str]| match parsed(args).unwrap() {
            Command::Show(options) => options.show(&build).unwrap(),
            other => panic!("{other:?}"),
        };
        let version = text(&["-v"]);
        assert!(version.starts_with("nginx version: nginx/1.31.5\ncouloir version: couloir/"));
        assert_eq!(version.lines().count(), 2);
        let help = text(&["-?"]);
        assert_eq!(help, text(&["-h"]));
        assert!(help.contains(
            "\nUsage: nginx [-?hvVtTq] [-s signal] [-p prefix]\n             [-e filename]"
        ));
        assert!(
            help.ends_with("-g directives : set global directives out of configuration file\n\n")
        );
        let lines = text(&["-V"]);
        let lines: Vec<_> = lines.lines().skip(2).collect();
        assert!(lines[0].starts_with("built by rustc "));
        assert_eq!(
            lines[1..3],
            ["built with OpenSSL 3.6.3", "TLS SNI support enabled"]
        );
        assert!(lines[3].starts_with(
            "configure arguments: --prefix=/usr/share/nginx --conf-path=/etc/nginx/nginx.conf "
        ));
        assert!(lines[3].ends_with(" --with-http_ssl_module --without-http_uwsgi_module"));
        assert_eq!(Options::default().show(&build), None);
    }

    #[test]
    fn paths() {
        let paths = run(&[]).paths();
        assert_eq!(paths.prefix, Path::new("/usr/share/nginx/"));
        assert_eq!(paths.conf_prefix, Path::new("/etc/nginx/"));
        assert_eq!(
            paths.error_log.as_deref(),
            Some(Path::new("/var/log/nginx/error.log"))
        );

        let paths = run(&["-p", "/srv/x", "-c", "conf/a.conf", "-e", "logs/e"]).paths();
        assert_eq!(paths.prefix.as_os_str(), "/srv/x/");
        assert_eq!(paths.conf_file.as_os_str(), "/srv/x/conf/a.conf");
        assert_eq!(paths.conf_prefix.as_os_str(), "/srv/x/conf/");
        assert_eq!(
            paths.error_log.as_deref().unwrap().as_os_str(),
            "/srv/x/logs/e"
        );

        assert_eq!(run(&["-e", "stderr"]).paths().error_log, None);
        let paths = run(&["-p", "", "-c", "a.conf"]).paths();
        assert_eq!(paths.conf_file.as_os_str(), "a.conf");
        assert_eq!(paths.conf_prefix.as_os_str(), "");
        assert_eq!(
            run(&["-p", "./", "-c", "a"]).paths().conf_file.as_os_str(),
            "./a"
        );
    }

    proptest! {
        #[test]
        fn never_panics(args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..5)) {
            let _ = parse(args.into_iter().map(OsString::from_vec));
        }

        #[test]
        fn values_come_through(value in proptest::collection::vec(1u8..=255, 0..12)) {
            let value = OsString::from_vec(value);
            let parsed = parse([OsString::from("-c"), value.clone(), OsString::from("-t")].into_iter());
            let Ok(Command::Test(options)) = parsed else {
                return Err(TestCaseError::fail(format!("{parsed:?}")));
            };
            prop_assert_eq!(options.conf_file, Some(PathBuf::from(value)));
        }
    }
}
