//! Addresses as `listen`, `server`, `proxy_pass`, `allow` and their like write them (`ngx_inet.c`). Nothing is looked
//! up here: a host that is no address stays a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::value::parse_number;

/// Where to listen or to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host and its ports.
    Inet(Inet),
}

/// A host and its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inet {
    /// The host as written, an IPv6 address in its brackets; empty where `listen` gives only a port.
    pub host: Box<str>,
    /// The address, where the host is one. `*` and a port alone are `0.0.0.0`. None: a name to look up.
    pub ip: Option<IpAddr>,
    /// The first port.
    pub port: u16,
    /// The last port, where `listen` gives a range.
    pub last_port: Option<u16>,
    /// Whether the port was written; else it is the default.
    pub port_given: bool,
}

impl Inet {
    /// All ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.port..=self.last_port.unwrap_or(self.port)
    }
}

/// What nginx finds wrong with an address; its text goes before ` in "X" of the "listen" directive` or
/// ` in upstream "X"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Something where nothing may stand, or a `[` without its `]`.
    InvalidHost,
    /// Not a number from 1 to 65535.
    InvalidPort,
    /// The first port is above the last.
    InvalidPortRange,
    /// Nothing before the port.
    NoHost,
    /// What stands in brackets is no IPv6 address.
    InvalidIpv6Address,
    /// Nothing behind `unix:`.
    NoUnixPath,
    /// More bytes than a socket's name can have.
    TooLongUnixPath,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidHost => "invalid host",
            Self::InvalidPort => "invalid port",
            Self::InvalidPortRange => "invalid port range",
            Self::NoHost => "no host",
            Self::InvalidIpv6Address => "invalid IPv6 address",
            Self::NoUnixPath => "no path in the unix domain socket",
            Self::TooLongUnixPath => "too long path in the unix domain socket",
        })
    }
}

impl std::error::Error for AddressError {}

/// The address of a `listen` directive: `80`, `*:80`, `127.0.0.1:8080-8090`, `[::1]`, `localhost:80`, `unix:/path`.
pub fn parse_listen(text: &[u8], default_port: u16) -> Result<Address, AddressError> {
    parse(text, default_port, Form::Listen).map(|(address, _)| address)
}

/// The address of a `server` in an upstream: `host`, `host:port`, `[::1]:80`, `unix:/path`.
pub fn parse_server(text: &[u8], default_port: u16) -> Result<Address, AddressError> {
    parse(text, default_port, Form::Server).map(|(address, _)| address)
}

/// What stands behind the scheme of a `proxy_pass`: an address, then perhaps a URI, which is returned with its `/` or
/// `?` (behind a socket's path: what follows the second colon).
pub fn parse_target(text: &[u8], default_port: u16) -> Result<(Address, &[u8]), AddressError> {
    parse(text, default_port, Form::Target)
}

/// An address, or an address and a port: `10.0.0.1`, `10.0.0.1:80`, `::1`, `[::1]`, `[::1]:80` (`ngx_parse_addr_port`).
pub fn parse_ip_port(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    if let Some(ip) = parse_ip(text) {
        return Some((ip, None));
    }
    let (ip, port) = match text.strip_prefix(b"[") {
        Some(inner) => {
            let (ip, behind) = split_at_byte(inner, b']')?;
            if behind.is_empty() {
                return Some((parse_ip(ip)?, None));
            }
            (ip, behind.strip_prefix(b":")?)
        }
        None => split_at_byte(text, b':')?,
    };
    Some((parse_ip(ip)?, Some(parse_port(port).ok()?)))
}

/// An IPv4 address, or an IPv6 address without brackets. Unlike nginx it takes `255.255.255.255` and
/// `1:2:3:4:5:6:7::`, which nginx's own readers mistake for errors.
pub fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    parse_ipv4(text)
        .map(IpAddr::V4)
        .or_else(|| parse_ipv6(text).map(IpAddr::V6))
}

/// A network: an address and the number of its leading bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address; all bits behind the prefix are zero.
    pub addr: IpAddr,
    /// The length of the prefix in bits.
    pub prefix: u8,
}

impl Cidr {
    /// Whether the address lies in the network. An address of the other family does not.
    pub fn contains(&self, ip: &IpAddr) -> bool {
        match (self.addr, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => mask_v4(*ip, self.prefix) == net,
            (IpAddr::V6(net), IpAddr::V6(ip)) => mask_v6(*ip, self.prefix) == net,
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A network such as `10.0.0.0/8`, `::1` or `2001:db8::/32`, and whether bits behind the prefix were set, which nginx
/// warns of: `low address bits of X are meaningless`. None: it is no network.
pub fn parse_cidr(text: &[u8]) -> Option<(Cidr, bool)> {
    let (addr, prefix) = match split_at_byte(text, b'/') {
        Some((addr, prefix)) => (addr, Some(parse_number(prefix)?)),
        None => (text, None),
    };
    let written = parse_ip(addr)?;
    let width = if written.is_ipv4() { 32 } else { 128 };
    let prefix = u8::try_from(prefix.unwrap_or(width))
        .ok()
        .filter(|prefix| u64::from(*prefix) <= width)?;
    let addr = match written {
        IpAddr::V4(ip) => IpAddr::V4(mask_v4(ip, prefix)),
        IpAddr::V6(ip) => IpAddr::V6(mask_v6(ip, prefix)),
    };
    Some((Cidr { addr, prefix }, addr != written))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Listen,
    Server,
    Target,
}

/// The bytes of `sun_path`, of which the last has to be zero.
const UNIX_PATH_MAX: usize = 108;

fn parse(text: &[u8], default_port: u16, form: Form) -> Result<(Address, &[u8]), AddressError> {
    if let Some((scheme, path)) = text.split_at_checked(5)
        && scheme.eq_ignore_ascii_case(b"unix:")
    {
        return parse_unix(path, form);
    }
    let (inet, uri) = match text.strip_prefix(b"[") {
        Some(inner) => parse_inet6(text, inner, default_port, form)?,
        None => parse_inet(text, default_port, form)?,
    };
    Ok((Address::Inet(inet), uri))
}

fn parse_unix(text: &[u8], form: Form) -> Result<(Address, &[u8]), AddressError> {
    let whole: (&[u8], &[u8]) = (text, &[]);
    let (path, uri) = if form == Form::Target {
        split_at_byte(text, b':').unwrap_or(whole)
    } else {
        whole
    };
    if path.is_empty() {
        return Err(AddressError::NoUnixPath);
    }
    if path.len() >= UNIX_PATH_MAX {
        return Err(AddressError::TooLongUnixPath);
    }
    Ok((
        Address::Unix(PathBuf::from(std::ffi::OsStr::from_bytes(path))),
        uri,
    ))
}

fn parse_inet(text: &[u8], default_port: u16, form: Form) -> Result<(Inet, &[u8]), AddressError> {
    let (authority, uri) = split_uri(text, b"/?", form)?;
    if let Some((host, ports)) = split_at_byte(authority, b':') {
        let (port, last_port) = parse_ports(ports, form)?;
        return Ok((inet(host, port, last_port, true, form)?, uri));
    }
    if form == Form::Listen
        && let Some((port, last_port)) = parse_bare_ports(authority)?
    {
        let ip = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        return Ok((
            Inet {
                host: "".into(),
                ip,
                port,
                last_port,
                port_given: true,
            },
            uri,
        ));
    }
    Ok((inet(authority, default_port, None, false, form)?, uri))
}

fn parse_inet6<'a>(
    text: &'a [u8],
    inner: &'a [u8],
    default_port: u16,
    form: Form,
) -> Result<(Inet, &'a [u8]), AddressError> {
    let (host, behind) = split_at_byte(inner, b']').ok_or(AddressError::InvalidHost)?;
    let (ports, uri) = split_uri(behind, b"/", form)?;
    let (port, last_port, port_given) = if ports.is_empty() {
        (default_port, None, false)
    } else {
        let ports = ports.strip_prefix(b":").ok_or(AddressError::InvalidHost)?;
        let (port, last_port) = parse_ports(ports, form)?;
        (port, last_port, true)
    };
    if host.is_empty() {
        return Err(AddressError::NoHost);
    }
    let ip = parse_ipv6(host).ok_or(AddressError::InvalidIpv6Address)?;
    let written = text.get(..host.len() + 2).unwrap_or_default();
    let host = String::from_utf8_lossy(written).into();
    Ok((
        Inet {
            host,
            ip: Some(IpAddr::V6(ip)),
            port,
            last_port,
            port_given,
        },
        uri,
    ))
}

fn inet(
    host: &[u8],
    port: u16,
    last_port: Option<u16>,
    port_given: bool,
    form: Form,
) -> Result<Inet, AddressError> {
    if host.is_empty() {
        return Err(AddressError::NoHost);
    }
    let ip = if form == Form::Listen && host == b"*" {
        Some(Ipv4Addr::UNSPECIFIED)
    } else {
        parse_ipv4(host)
    };
    let host = std::str::from_utf8(host)
        .map_err(|_| AddressError::InvalidHost)?
        .into();
    Ok(Inet {
        host,
        ip: ip.map(IpAddr::V4),
        port,
        last_port,
        port_given,
    })
}

/// Cuts off the URI, which only a target may have.
fn split_uri<'a>(
    text: &'a [u8],
    starts: &[u8],
    form: Form,
) -> Result<(&'a [u8], &'a [u8]), AddressError> {
    match text.iter().position(|byte| starts.contains(byte)) {
        Some(_) if form != Form::Target => Err(AddressError::InvalidHost),
        Some(at) => Ok(text.split_at(at)),
        None => Ok((text, &[])),
    }
}

/// A port, or for `listen` perhaps a range of ports.
fn parse_ports(text: &[u8], form: Form) -> Result<(u16, Option<u16>), AddressError> {
    match split_at_byte(text, b'-') {
        Some((first, last)) if form == Form::Listen => {
            let last = parse_port(last)?;
            let first = parse_port(first)?;
            if first > last {
                return Err(AddressError::InvalidPortRange);
            }
            Ok((first, Some(last)))
        }
        _ => Ok((parse_port(text)?, None)),
    }
}

/// The ports of a `listen` without a host; none if the text is a host, as `a-1` and `1-a` are.
fn parse_bare_ports(text: &[u8]) -> Result<Option<(u16, Option<u16>)>, AddressError> {
    let is_number = |text| parse_number(text).is_some();
    let ports = match split_at_byte(text, b'-') {
        Some((first, last)) => is_number(first) && is_number(last),
        None => is_number(text),
    };
    if ports {
        parse_ports(text, Form::Listen).map(Some)
    } else {
        Ok(None)
    }
}

fn parse_port(text: &[u8]) -> Result<u16, AddressError> {
    let port = parse_number(text).and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port != 0)
        .ok_or(AddressError::InvalidPort)
}

/// Four numbers, each of any number of digits, as nginx reads them: `127.0.0.01` is an address, and always decimal.
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for octet in &mut octets {
        *octet = match parts.next()? {
            // nginx takes nothing for zero.
            [] => 0,
            part => u8::try_from(parse_number(part)?).ok()?,
        };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn parse_ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn mask_v4(ip: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let low = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(ip.to_bits() & !low)
}

fn mask_v6(ip: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let low = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from_bits(ip.to_bits() & !low)
}

/// What stands before and behind the first such byte.
fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == byte)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::AddressError::*;
    use super::*;

    /// Writes an address so that all its parts show: `host=ip:port-last`, with `~` before a default port.
    fn shown(address: &Address) -> String {
        match address {
            Address::Unix(path) => format!("unix {}", path.display()),
            Address::Inet(inet) => {
                let ip = inet.ip.map_or("?".into(), |ip| ip.to_string());
                let default = if inet.port_given { "" } else { "~" };
                let last = inet
                    .last_port
                    .map_or(String::new(), |last| format!("-{last}"));
                format!("{}={ip} {default}{}{last}", inet.host, inet.port)
            }
        }
    }

    #[test]
    fn listen() {
        for (text, expected) in [
            ("80", "=0.0.0.0 80"),
            ("8080-8090", "=0.0.0.0 8080-8090"),
            ("*:80", "*=0.0.0.0 80"),
            ("*", "*=0.0.0.0 ~80"),
            ("127.0.0.1", "127.0.0.1=127.0.0.1 ~80"),
            ("127.0.0.01:81-83", "127.0.0.01=127.0.0.1 81-83"),
            ("localhost:8000", "localhost=? 8000"),
            ("localhost", "localhost=? ~80"),
            ("a-1", "a-1=? ~80"),
            ("80-x", "80-x=? ~80"),
            ("-80", "-80=? ~80"),
            ("abc-70000", "abc-70000=? ~80"),
            ("[::]:80", "[::]=:: 80"),
            ("[::1]", "[::1]=::1 ~80"),
            ("[::1]:80-90", "[::1]=::1 80-90"),
            ("[::ffff:1.2.3.4]:1", "[::ffff:1.2.3.4]=::ffff:1.2.3.4 1"),
            ("unix:/run/x.sock", "unix /run/x.sock"),
            ("UNIX:/run/x:", "unix /run/x:"),
        ] {
            assert_eq!(
                parse_listen(text.as_bytes(), 80).as_ref().map(shown),
                Ok(expected.into()),
                "{text}"
            );
        }
        let Ok(Address::Inet(inet)) = parse_listen(b"8-10", 80) else {
            panic!()
        };
        assert_eq!(inet.ports().collect::<Vec<_>>(), [8, 9, 10]);
    }

    #[test]
    fn listen_refused() {
        for (text, error) in [
            ("", NoHost),
            (":80", NoHost),
            ("[]:80", NoHost),
            ("0", InvalidPort),
            ("65536", InvalidPort),
            ("80-70000", InvalidPort),
            ("*:", InvalidPort),
            ("a:x", InvalidPort),
            ("a:1:2", InvalidPort),
            ("a:80-", InvalidPort),
            ("8090-8080", InvalidPortRange),
            ("*:90-80", InvalidPortRange),
            ("80/x", InvalidHost),
            ("a?b", InvalidHost),
            ("[::1", InvalidHost),
            ("[::1]80", InvalidHost),
            ("[::z]:80", InvalidIpv6Address),
            ("unix:", NoUnixPath),
        ] {
            assert_eq!(parse_listen(text.as_bytes(), 80), Err(error), "{text}");
        }
        assert!(parse_listen(format!("unix:{}", "a".repeat(107)).as_bytes(), 80).is_ok());
        assert_eq!(
            parse_listen(format!("unix:{}", "a".repeat(108)).as_bytes(), 80),
            Err(TooLongUnixPath)
        );
        assert_eq!(parse_listen(b"\xff:80", 80), Err(InvalidHost));
    }

    #[test]
    fn server() {
        for (text, expected) in [
            ("a", "a=? ~80"),
            ("a.b:8080", "a.b=? 8080"),
            ("80", "80=? ~80"),
            ("*", "*=? ~80"),
            ("10.0.0.1:1", "10.0.0.1=10.0.0.1 1"),
            ("[::1]:2", "[::1]=::1 2"),
            ("unix:/x", "unix /x"),
        ] {
            assert_eq!(
                parse_server(text.as_bytes(), 80).as_ref().map(shown),
                Ok(expected.into()),
                "{text}"
            );
        }
        for (text, error) in [
            ("a:0", InvalidPort),
            (":80", NoHost),
            ("a/b", InvalidHost),
            ("a:1-2", InvalidPort),
            ("[::1]/", InvalidHost),
        ] {
            assert_eq!(parse_server(text.as_bytes(), 80), Err(error), "{text}");
        }
    }

    #[test]
    fn target() {
        for (text, expected, uri) in [
            ("a", "a=? ~80", ""),
            ("a/", "a=? ~80", "/"),
            ("a:81/b:82", "a=? 81", "/b:82"),
            ("a/b:82", "a=? ~80", "/b:82"),
            ("a?b/c", "a=? ~80", "?b/c"),
            ("[::1]:81/b", "[::1]=::1 81", "/b"),
            ("[::1]/b", "[::1]=::1 ~80", "/b"),
            ("unix:/x:/uri", "unix /x", "/uri"),
            ("unix:/x:", "unix /x", ""),
            ("unix:/x", "unix /x", ""),
        ] {
            let (address, rest) = parse_target(text.as_bytes(), 80).unwrap();
            assert_eq!(
                (shown(&address).as_str(), rest),
                (expected, uri.as_bytes()),
                "{text}"
            );
        }
        assert_eq!(parse_target(b"/x", 80), Err(NoHost));
        assert_eq!(parse_target(b"unix::/x", 80), Err(NoUnixPath));
    }

    #[test]
    fn ip_port() {
        let read =
            |text: &str| parse_ip_port(text.as_bytes()).map(|(ip, port)| (ip.to_string(), port));
        assert_eq!(read("10.0.0.1"), Some(("10.0.0.1".into(), None)));
        assert_eq!(read("10.0.0.1:80"), Some(("10.0.0.1".into(), Some(80))));
        assert_eq!(read("::1"), Some(("::1".into(), None)));
        assert_eq!(read("[::1]"), Some(("::1".into(), None)));
        assert_eq!(read("[::1]:80"), Some(("::1".into(), Some(80))));
        for bad in [
            "",
            "a",
            "10.0.0.1:0",
            "10.0.0.1:",
            "[::1",
            "[::1]80",
            "[::1]:",
            "1.2.3",
            "1.2.3.4.5",
            "256.0.0.1",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn cidr() {
        let read =
            |text: &str| parse_cidr(text.as_bytes()).map(|(cidr, low)| (cidr.to_string(), low));
        for (text, expected, low) in [
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("10.1.2.3/8", "10.0.0.0/8", true),
            ("10.1.2.3", "10.1.2.3/32", false),
            ("1.2.3.4/0", "0.0.0.0/0", true),
            ("::/0", "::/0", false),
            ("2001:db8::1/32", "2001:db8::/32", true),
            ("::1", "::1/128", false),
        ] {
            assert_eq!(read(text), Some((expected.into(), low)), "{text}");
        }
        for bad in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "::/300",
            "10.0.0/8",
            "10.0.0.0/8/8",
            "a/8",
            "[::1]/8",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let net = parse_cidr(b"10.0.0.0/8").unwrap().0;
        assert!(net.contains(&"10.255.0.1".parse().unwrap()));
        assert!(!net.contains(&"11.0.0.1".parse().unwrap()));
        assert!(!net.contains(&"::ffff:10.0.0.1".parse().unwrap()));
        assert!(
            parse_cidr(b"::/0")
                .unwrap()
                .0
                .contains(&"::1".parse().unwrap())
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in r"(unix:|[0-9a-f:.\[\]/?*-]|\PC){0,20}") {
            let text = text.as_bytes();
            let _ = (parse_listen(text, 80), parse_server(text, 80), parse_target(text, 80), parse_ip_port(text), parse_cidr(text));
        }

        #[test]
        fn addresses_read_back(ip: IpAddr, port in 1..=u16::MAX) {
            let socket = std::net::SocketAddr::new(ip, port).to_string();
            prop_assert_eq!(parse_ip_port(socket.as_bytes()), Some((ip, Some(port))));
            let Ok(Address::Inet(inet)) = parse_listen(socket.as_bytes(), 80) else { panic!() };
            prop_assert_eq!((inet.ip, inet.port), (Some(ip), port));
        }
    }
}
