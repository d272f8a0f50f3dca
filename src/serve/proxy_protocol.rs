//! The PROXY protocol, versions 1 and 2, in front of a connection.

use crate::contract::{ProxyProtocol, Remote, Small};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is looked for, bytes.
pub const LONGEST: usize = 4096;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why a header is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// Not a header: its first line.
    Header(Vec<u8>),
    /// A version that is not 2 behind the signature of version 2.
    Version(u8),
    /// Longer than what has come.
    TooLarge,
    /// Addresses that are cut off.
    Addresses,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Header(line) => {
                write!(f, "broken header: \"{}\"", crate::http::text::shown(line))
            }
            Broken::Version(v) => write!(f, "unknown PROXY protocol version: {v}"),
            Broken::TooLarge => f.write_str("header is too large"),
            Broken::Addresses => f.write_str("broken addresses in PROXY protocol header"),
        }
    }
}

/// Reads a header: the addresses, if it names any, and its length.
///
/// # Errors
/// Why it is refused; as in nginx a header must come in one piece.
pub fn parse(buf: &[u8]) -> Result<(Option<ProxyProtocol>, usize), Broken> {
    if buf.len() >= SIGNATURE.len() + 4 && buf.starts_with(SIGNATURE) {
        return version2(buf);
    }
    let broken = || {
        let end = buf
            .iter()
            .position(|c| matches!(c, b'\r' | b'\n'))
            .unwrap_or(buf.len());
        Broken::Header(buf.get(..end).unwrap_or_default().to_vec())
    };
    version1(buf).ok_or_else(broken)
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678\r\n`
fn version1(buf: &[u8]) -> Option<(Option<ProxyProtocol>, usize)> {
    let rest = buf.strip_prefix(b"PROXY ").filter(|_| buf.len() >= 8)?;
    if let Some(rest) = rest.strip_prefix(b"UNKNOWN") {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        return Some((None, buf.len() - rest.len() + end + 2));
    }
    let rest = rest
        .strip_prefix(b"TCP4 ")
        .or_else(|| rest.strip_prefix(b"TCP6 "))?;
    let (source, rest) = address(rest)?;
    let (destination, rest) = address(rest)?;
    let (source_port, rest) = port(rest, b' ')?;
    let (destination_port, rest) = port(rest, b'\r')?;
    let rest = rest.strip_prefix(b"\n")?;
    let header = ProxyProtocol {
        source: remote(source, source_port),
        destination: remote(destination, destination_port),
        tlvs: Vec::new(),
    };
    Some((Some(header), buf.len() - rest.len()))
}

fn address(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b' ', text)?;
    let (address, rest) = text.split_at_checked(end)?;
    let fits = |c: &u8| c.is_ascii_hexdigit() || matches!(c, b':' | b'.');
    address
        .iter()
        .all(fits)
        .then_some((address, rest.get(1..)?))
}

fn port(text: &[u8], end: u8) -> Option<(u16, &[u8])> {
    let at = memchr::memchr(end, text)?;
    let digits = std::str::from_utf8(text.get(..at)?).ok()?;
    let port = if digits.bytes().all(|c| c.is_ascii_digit()) {
        digits.parse().ok()?
    } else {
        return None;
    };
    Some((port, text.get(at + 1..)?))
}

/// An address with its text as the header has it.
fn remote(text: &[u8], port: u16) -> Remote {
    let ip = std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse::<IpAddr>().ok());
    Remote {
        addr: ip.map(|ip| SocketAddr::new(ip, port)),
        text: Small::new(text),
    }
}

fn version2(buf: &[u8]) -> Result<(Option<ProxyProtocol>, usize), Broken> {
    let Some(([version_command, family, a, b], rest)) = buf
        .get(SIGNATURE.len()..)
        .and_then(|r| r.split_first_chunk())
    else {
        return Err(Broken::TooLarge);
    };
    if version_command >> 4 != 2 {
        return Err(Broken::Version(version_command >> 4));
    }
    let Some((body, after)) = rest.split_at_checked(usize::from(u16::from_be_bytes([*a, *b])))
    else {
        return Err(Broken::TooLarge);
    };
    let used = buf.len() - after.len();
    // only PROXY over STREAM names addresses
    if version_command & 0x0f != 1 || family & 0x0f != 1 {
        return Ok((None, used));
    }
    let found = match family >> 4 {
        1 => body
            .split_first_chunk::<12>()
            .map(|([a, b, c, d, e, f, g, h, ports @ ..], rest)| {
                (
                    IpAddr::from(Ipv4Addr::new(*a, *b, *c, *d)),
                    IpAddr::from(Ipv4Addr::new(*e, *f, *g, *h)),
                    *ports,
                    rest,
                )
            }),
        2 => body.split_first_chunk::<36>().and_then(|(all, rest)| {
            let (source, more) = all.split_first_chunk::<16>()?;
            let (destination, ports) = more.split_first_chunk::<16>()?;
            Some((
                IpAddr::from(Ipv6Addr::from(*source)),
                IpAddr::from(Ipv6Addr::from(*destination)),
                *ports.first_chunk()?,
                rest,
            ))
        }),
        _ => return Ok((None, used)),
    };
    let Some((source, destination, [a, b, c, d], rest)) = found else {
        return Err(Broken::Addresses);
    };
    let remote = |ip, port| Remote::new(SocketAddr::new(ip, u16::from_be_bytes(port)));
    Ok((
        Some(ProxyProtocol {
            source: remote(source, [a, b]),
            destination: remote(destination, [c, d]),
            tlvs: tlvs(rest),
        }),
        used,
    ))
}

/// Types with values, up to the first that is cut off.
fn tlvs(mut list: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some(([kind, a, b], rest)) = list.split_first_chunk() {
        let Some((value, after)) = rest.split_at_checked(usize::from(u16::from_be_bytes([*a, *b])))
        else {
            break;
        };
        out.push((*kind, value.to_vec()));
        list = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(r: &Remote) -> (String, u16) {
        (
            String::from_utf8_lossy(r.text.as_bytes()).into_owned(),
            r.port(),
        )
    }

    #[test]
    fn version_1() {
        let head = b"PROXY TCP6 2001:Db8::1 ::2 1234 5678\r\nGET /";
        let (p, used) = parse(head).unwrap();
        let p = p.unwrap();
        assert_eq!(
            (text(&p.source), text(&p.destination), used),
            (("2001:Db8::1".into(), 1234), ("::2".into(), 5678), 38)
        );
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN 1 2 3\r\n"] {
            let (p, used) = parse(unknown).unwrap();
            assert!(p.is_none() && used == unknown.len());
        }
        for bad in [
            "",
            "PROXY",
            "GET / HTTP/1.0\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 2",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 2\r",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n",
            "PROXY TCP5 1.1.1.1 1.1.1.1 1 2\r\n",
            "PROXY TCP4 1.1.1.x 1.1.1.1 1 2\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 +1 2\r\n",
            "PROXY UNKNOWN",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(
            parse(b"GET / HTTP/1.0\r\n\r\n").unwrap_err().to_string(),
            "broken header: \"GET / HTTP/1.0\""
        );
    }

    #[test]
    fn version_2() {
        let mut head = SIGNATURE.to_vec();
        head.extend_from_slice(&[
            0x21, 0x11, 0, 17, 192, 0, 2, 1, 192, 0, 2, 2, 4, 210, 22, 46, 1, 0, 2, b'h', b'2',
            b'G',
        ]);
        let (p, used) = parse(&head).unwrap();
        let p = p.unwrap();
        assert_eq!(
            (text(&p.source), text(&p.destination), used),
            (
                ("192.0.2.1".into(), 1234),
                ("192.0.2.2".into(), 5678),
                head.len() - 1
            )
        );
        assert_eq!(p.tlvs, [(1, b"h2".to_vec())]);
        head[12] = 0x31;
        assert_eq!(parse(&head).unwrap_err(), Broken::Version(3));
        head[12] = 0x20;
        assert!(parse(&head).unwrap().0.is_none());
        head[12] = 0x21;
        head[14] = 1;
        assert_eq!(parse(&head).unwrap_err(), Broken::TooLarge);
    }

    proptest! {
        #[test]
        fn nothing_panics(head in prop_oneof![Just(SIGNATURE.to_vec()), Just(b"PROXY TCP4 ".to_vec())], rest in proptest::collection::vec(any::<u8>(), 0..80)) {
            let all = [head, rest].concat();
            if let Ok((_, used)) = parse(&all) {
                prop_assert!(used <= all.len());
            }
        }
    }
}
