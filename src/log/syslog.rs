//! Logs to a syslog server in the format of RFC 3164, over UDP or a Unix datagram socket.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use socket2::{SockAddr, Socket, Type};

use super::{Errno, Level, RateLimit, Record, process_log, stamp};

/// One server. Sending never blocks: a message that cannot be sent at once is lost.
pub struct SyslogPeer {
    config: SyslogConfig,
    /// Connected by the first message, and anew after an error.
    socket: ArcSwapOption<Socket>,
    reports: RateLimit,
    failures: RateLimit,
}

impl SyslogPeer {
    /// A peer that is not connected yet.
    pub fn new(config: SyslogConfig) -> Self {
        Self {
            config,
            socket: ArcSwapOption::empty(),
            reports: RateLimit::new(1),
            failures: RateLimit::new(1),
        }
    }

    /// Sends a line of an access log (without line feed) with the severity of the configuration.
    ///
    /// # Errors
    /// For a log at `warn`, once a second at most; what the system said is in the process log already.
    pub fn send_access(&self, line: &[u8]) -> Result<(), SendError> {
        self.send(self.config.severity, line)
    }

    /// Sends `line` with a severity of RFC 3164 (0 to 7).
    pub(super) fn send(&self, severity: u8, line: &[u8]) -> Result<(), SendError> {
        thread_local! {
            static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        // Taken, not borrowed: reporting a failure may send to a syslog server in turn.
        let mut message = BUFFER.try_with(Cell::take).unwrap_or_default();
        message.clear();
        self.config.header(severity, &mut message);
        message.extend_from_slice(line);
        let outcome = self.transmit(&message);
        let _ = BUFFER.try_with(|buffer| buffer.set(message));
        outcome.or_else(|error| {
            if self.failures.pass() {
                Err(error)
            } else {
                Ok(())
            }
        })
    }

    fn transmit(&self, message: &[u8]) -> Result<(), SendError> {
        let open = self.socket.load_full();
        let socket = match open {
            Some(socket) => socket,
            None => match self.connect() {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    self.socket.store(Some(socket.clone()));
                    socket
                }
                Err((call, error)) => {
                    self.report(Level::Alert, call, &error);
                    return Err(SendError::Failed);
                }
            },
        };
        match socket.send(message) {
            Ok(sent) if sent == message.len() => Ok(()),
            Ok(sent) => Err(SendError::Incomplete {
                sent,
                len: message.len(),
            }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Err(SendError::Failed)
            }
            Err(error) => {
                self.socket.store(None);
                self.report(send_error_level(&error), "send()", &error);
                Err(SendError::Failed)
            }
        }
    }

    fn connect(&self) -> Result<Socket, (&'static str, io::Error)> {
        let server = &self.config.server;
        let socket =
            Socket::new(server.domain(), Type::DGRAM, None).map_err(|error| ("socket()", error))?;
        socket
            .set_nonblocking(true)
            .map_err(|error| ("fcntl(O_NONBLOCK)", error))?;
        socket
            .connect(server)
            .map_err(|error| ("connect()", error))?;
        Ok(socket)
    }

    fn report(&self, level: Level, call: &str, error: &io::Error) {
        thread_local! {
            static REPORTING: Cell<bool> = const { Cell::new(false) };
        }
        // The report may itself go to a dead server, whose failure is then not reported.
        if !REPORTING.get() && self.reports.pass() {
            REPORTING.set(true);
            let server = &self.config.name;
            process_log().record(&Record {
                errno: Some(Errno::of(error)),
                context: Some(&While { server }),
                ..Record::new(level, format_args!("{call} failed"))
            });
            REPORTING.set(false);
        }
    }
}

impl fmt::Debug for SyslogPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

struct While<'a> {
    server: &'a str,
}

impl super::Context for While<'_> {
    fn append_to(&self, line: &mut super::Line) {
        line.push(b" while logging to syslog, server: ");
        line.push(self.server.as_bytes());
    }
}

/// What a network does is an error, what this system does is an alert.
fn send_error_level(error: &io::Error) -> Level {
    const NETWORK: [i32; 9] = [
        libc::ECONNRESET,
        libc::EPIPE,
        libc::ENOTCONN,
        libc::ETIMEDOUT,
        libc::ECONNREFUSED,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
    ];
    if error
        .raw_os_error()
        .is_some_and(|number| NETWORK.contains(&number))
    {
        Level::Error
    } else {
        Level::Alert
    }
}

/// A line of an access log was lost or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Nothing was sent.
    Failed,
    /// The datagram was cut (bytes).
    #[allow(missing_docs)]
    Incomplete { sent: usize, len: usize },
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("send() to syslog failed"),
            Self::Incomplete { sent, len } => {
                write!(f, "send() to syslog has written only {sent} of {len}")
            }
        }
    }
}

impl std::error::Error for SendError {}

/// The parameters after `syslog:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogConfig {
    server: SockAddr,
    /// The server as logs name it: `127.0.0.1:514`, `unix:/dev/log`.
    name: String,
    facility: u8,
    severity: u8,
    tag: Vec<u8>,
    no_hostname: bool,
}

impl SyslogConfig {
    /// Reads `server=address[,facility=…][,tag=…][,severity=…][,nohostname]`; resolves the server's name.
    ///
    /// # Errors
    /// nginx's own message about the parameter at fault.
    pub fn parse(parameters: &[u8]) -> Result<Self, String> {
        let (mut server, mut facility, mut severity, mut tag) = (None, None, None, None);
        let mut no_hostname = false;
        for parameter in parameters.split(|&byte| byte == b',') {
            if let Some(address) = parameter.strip_prefix(b"server=") {
                once(&server, "server")?;
                server = Some(resolve(address).map_err(|what| {
                    format!(
                        "{what} in syslog server \"{}\"",
                        String::from_utf8_lossy(address)
                    )
                })?);
            } else if let Some(name) = parameter.strip_prefix(b"facility=") {
                once(&facility, "facility")?;
                facility = Some(index_of(&FACILITIES, name, "facility")?);
            } else if let Some(name) = parameter.strip_prefix(b"severity=") {
                once(&severity, "severity")?;
                severity = Some(match Level::from_name(name) {
                    Some(level) => level.severity(),
                    None => return Err(unknown("severity", name)),
                });
            } else if let Some(text) = parameter.strip_prefix(b"tag=") {
                once(&tag, "tag")?;
                check_tag(text)?;
                tag = Some(text.to_vec());
            } else if parameter == b"nohostname" {
                no_hostname = true;
            } else {
                return Err(unknown("parameter", parameter));
            }
        }
        let (server, name) = server.ok_or("no syslog server specified")?;
        Ok(Self {
            server,
            name,
            facility: facility.unwrap_or(LOCAL7),
            severity: severity.unwrap_or(Level::Info.severity()),
            tag: tag.unwrap_or_else(|| b"nginx".to_vec()),
            no_hostname,
        })
    }

    /// `<190>Nov 22 10:00:00 host tag: `
    fn header(&self, severity: u8, out: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = write!(
            out,
            "<{}>",
            u16::from(self.facility) * 8 + u16::from(severity)
        );
        out.extend_from_slice(&stamp().syslog);
        out.push(b' ');
        if !self.no_hostname {
            out.extend_from_slice(&HOSTNAME);
            out.push(b' ');
        }
        out.extend_from_slice(&self.tag);
        out.extend_from_slice(b": ");
    }
}

/// The host's name in lower case, as it was at first use.
static HOSTNAME: LazyLock<Vec<u8>> = LazyLock::new(|| {
    use std::os::unix::ffi::OsStrExt;
    match nix::sys::utsname::uname() {
        Ok(system) => system.nodename().as_bytes().to_ascii_lowercase(),
        Err(_) => b"localhost".to_vec(),
    }
});

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "intern", "lpr", "news", "uucp", "clock", "authpriv",
    "ftp", "ntp", "audit", "alert", "cron", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

const LOCAL7: u8 = 23;

const DEFAULT_PORT: u16 = 514;

/// RFC 3164 section 4.1.3.
const MAX_TAG: usize = 32;

fn once<T>(slot: &Option<T>, name: &str) -> Result<(), String> {
    match slot {
        None => Ok(()),
        Some(_) => Err(format!("duplicate syslog \"{name}\"")),
    }
}

fn unknown(what: &str, text: &[u8]) -> String {
    format!(
        "unknown syslog {what} \"{}\"",
        String::from_utf8_lossy(text)
    )
}

fn index_of(names: &[&str], name: &[u8], what: &str) -> Result<u8, String> {
    let index = names.iter().position(|known| known.as_bytes() == name);
    index
        .and_then(|index| u8::try_from(index).ok())
        .ok_or_else(|| unknown(what, name))
}

fn check_tag(tag: &[u8]) -> Result<(), String> {
    if tag.len() > MAX_TAG {
        return Err(format!("syslog tag length exceeds {MAX_TAG}"));
    }
    if !tag
        .iter()
        .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return Err("syslog \"tag\" only allows alphanumeric characters and underscore".to_owned());
    }
    Ok(())
}

/// The address of a server, and its name for logs.
fn resolve(address: &[u8]) -> Result<(SockAddr, String), &'static str> {
    if let Some((scheme, path)) = address.split_at_checked(5)
        && scheme.eq_ignore_ascii_case(b"unix:")
    {
        use std::os::unix::ffi::OsStrExt;
        if path.is_empty() {
            return Err("no path in the unix domain socket");
        }
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        let socket = SockAddr::unix(path).map_err(|_| "too long path in the unix domain socket")?;
        return Ok((socket, String::from_utf8_lossy(address).into_owned()));
    }
    let inet = resolve_inet(address)?;
    Ok((inet.into(), inet.to_string()))
}

fn resolve_inet(address: &[u8]) -> Result<SocketAddr, &'static str> {
    if let Some(rest) = address.strip_prefix(b"[") {
        let end = rest
            .iter()
            .position(|&byte| byte == b']')
            .ok_or("invalid host")?;
        let (host, port) = (&rest[..end], &rest[end + 1..]);
        let port = match port {
            [] => DEFAULT_PORT,
            _ if port.contains(&b'/') => return Err("invalid host"),
            [b':', digits @ ..] => parse_port(digits)?,
            _ => return Err("invalid host"),
        };
        if host.is_empty() {
            return Err("no host");
        }
        let host = std::str::from_utf8(host)
            .ok()
            .and_then(|host| host.parse::<Ipv6Addr>().ok());
        return Ok((host.ok_or("invalid IPv6 address")?, port).into());
    }
    if address.iter().any(|byte| matches!(byte, b'/' | b'?')) {
        return Err("invalid host");
    }
    let (host, port) = match address.iter().position(|&byte| byte == b':') {
        Some(colon) => (&address[..colon], parse_port(&address[colon + 1..])?),
        None => (address, DEFAULT_PORT),
    };
    if host.is_empty() {
        return Err("no host");
    }
    let host = std::str::from_utf8(host).map_err(|_| "host not found")?;
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok((ip, port).into());
    }
    let found: Vec<_> = (host, port)
        .to_socket_addrs()
        .map_err(|_| "host not found")?
        .collect();
    // The first in the resolver's order that this host has a route to; connecting UDP sends nothing.
    let reachable = found.iter().find(|address| {
        let any: IpAddr = if address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        UdpSocket::bind((any, 0))
            .and_then(|socket| socket.connect(address))
            .is_ok()
    });
    reachable.or(found.first()).copied().ok_or("host not found")
}

/// A port of decimal digits alone, from 1 to 65535.
fn parse_port(digits: &[u8]) -> Result<u16, &'static str> {
    let text = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok())
        .filter(|&port| port != 0)
        .ok_or("invalid port")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    fn parse(text: &str) -> Result<SyslogConfig, String> {
        SyslogConfig::parse(text.as_bytes())
    }

    /// Splits `<pri>Nov 22 10:00:00 rest`.
    fn take_apart(datagram: &[u8]) -> (u16, String) {
        let text = std::str::from_utf8(datagram).unwrap();
        let (pri, rest) = text.strip_prefix('<').unwrap().split_once('>').unwrap();
        let (time, rest) = rest.split_at(15);
        assert_eq!(
            (&time[3..4], &time[6..7], &time[9..10]),
            (" ", " ", ":"),
            "{time}"
        );
        (
            pri.parse().unwrap(),
            rest.strip_prefix(' ').unwrap().to_owned(),
        )
    }

    #[test]
    fn refusals_as_in_nginx() {
        for (text, message) in [
            ("", "unknown syslog parameter \"\""),
            ("tag=a", "no syslog server specified"),
            (
                "server=127.0.0.1,server=127.0.0.1",
                "duplicate syslog \"server\"",
            ),
            ("server=", "no host in syslog server \"\""),
            (
                "server=127.0.0.1:",
                "invalid port in syslog server \"127.0.0.1:\"",
            ),
            (
                "server=127.0.0.1:0",
                "invalid port in syslog server \"127.0.0.1:0\"",
            ),
            (
                "server=127.0.0.1:+5",
                "invalid port in syslog server \"127.0.0.1:+5\"",
            ),
            (
                "server=127.0.0.1:65536",
                "invalid port in syslog server \"127.0.0.1:65536\"",
            ),
            (
                "server=127.0.0.1/x",
                "invalid host in syslog server \"127.0.0.1/x\"",
            ),
            ("server=::1", "invalid port in syslog server \"::1\""),
            ("server=[::1", "invalid host in syslog server \"[::1\""),
            ("server=[]", "no host in syslog server \"[]\""),
            (
                "server=[::x]",
                "invalid IPv6 address in syslog server \"[::x]\"",
            ),
            ("server=[::1]5", "invalid host in syslog server \"[::1]5\""),
            (
                "server=unix:",
                "no path in the unix domain socket in syslog server \"unix:\"",
            ),
            (
                "server=host.invalid",
                "host not found in syslog server \"host.invalid\"",
            ),
            ("facility=local8", "unknown syslog facility \"local8\""),
            (
                "facility=kern,facility=kern",
                "duplicate syslog \"facility\"",
            ),
            ("severity=err", "unknown syslog severity \"err\""),
            (
                "severity=info,severity=info",
                "duplicate syslog \"severity\"",
            ),
            ("tag=a,tag=a", "duplicate syslog \"tag\""),
            (
                "tag=a-b",
                "syslog \"tag\" only allows alphanumeric characters and underscore",
            ),
            (
                "tag=aaaaaaaabbbbbbbbccccccccdddddddde",
                "syslog tag length exceeds 32",
            ),
            ("nohostnames", "unknown syslog parameter \"nohostnames\""),
            ("server=127.0.0.1,", "unknown syslog parameter \"\""),
        ] {
            assert_eq!(parse(text).unwrap_err(), message, "{text}");
        }
        let long = format!("server=unix:/{}", "x".repeat(108));
        assert!(
            parse(&long)
                .unwrap_err()
                .starts_with("too long path in the unix domain socket in syslog server ")
        );
    }

    #[test]
    fn addresses_and_their_names() {
        assert_eq!(parse("server=127.0.0.1").unwrap().name, "127.0.0.1:514");
        assert_eq!(
            parse("server=[::1]:5514,nohostname").unwrap().name,
            "[::1]:5514"
        );
        assert_eq!(
            parse("server=unix:/dev/log,tag=").unwrap().name,
            "unix:/dev/log"
        );
        assert!(parse("server=localhost:1").is_ok());
    }

    #[test]
    fn datagrams_over_udp() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let port = server.local_addr().unwrap().port();
        let text = format!("server=127.0.0.1:{port},facility=local0,tag=edge_1,severity=warn");
        let peer = SyslogPeer::new(parse(&text).unwrap());
        peer.send_access(b"GET / 200").unwrap();
        let mut buf = [0; 512];
        let len = server.recv(&mut buf).unwrap();
        let (pri, rest) = take_apart(&buf[..len]);
        assert_eq!(pri, 16 * 8 + 4);
        let host = String::from_utf8(HOSTNAME.clone()).unwrap();
        assert_eq!(rest, format!("{host} edge_1: GET / 200"));
    }

    #[test]
    fn datagrams_over_a_unix_socket_that_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let peer =
            SyslogPeer::new(parse(&format!("server=unix:{},nohostname", path.display())).unwrap());
        let mut buf = [0; 512];
        // DetachedConn there yet: one failure is returned, the next are within its second.
        assert_eq!(peer.send_access(b"lost"), Err(SendError::Failed));
        for _ in 0..2 {
            let server = UnixDatagram::bind(&path).unwrap();
            server
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let _ = peer.send_access(b"finds out");
            let _ = peer.send_access(b"hello");
            let (pri, rest) = loop {
                let len = server.recv(&mut buf).unwrap();
                let (pri, rest) = take_apart(&buf[..len]);
                if rest != "nginx: finds out" {
                    break (pri, rest);
                }
            };
            assert_eq!((pri, rest.as_str()), (23 * 8 + 6, "nginx: hello"));
            drop(server);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_full_server_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let _server = UnixDatagram::bind(&path).unwrap();
        let peer = SyslogPeer::new(parse(&format!("server=unix:{}", path.display())).unwrap());
        let failures = (0..20_000)
            .filter(|_| peer.send_access(&[b'x'; 1000]).is_err())
            .count();
        assert!(failures > 0);
    }

    proptest! {
        #[test]
        fn never_panics(tail in proptest::collection::vec(any::<u8>(), 0..60), pick in 0usize..6) {
            // Names are left out: they would be resolved.
            let heads = ["", "server=[", "server=unix:", "tag=", "facility=", "severity="];
            let mut text = heads[pick].as_bytes().to_vec();
            text.extend(tail.iter().filter(|&&byte| byte != b'='));
            let _ = SyslogConfig::parse(&text);
        }
    }
}
