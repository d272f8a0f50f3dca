//! The PROXY protocol's header (HAProxy's specification, versions 1 and 2), as a pure parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read.
pub const LONGEST: usize = 4096;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length, bytes.
    pub len: usize,
    /// Source and destination; `None` for UNKNOWN, LOCAL and families other than IP.
    pub addrs: Option<(SocketAddr, SocketAddr)>,
    /// Type-length-values of version 2.
    pub tlvs: Vec<(u8, Vec<u8>)>,
}

/// What the bytes came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header.
    Done(Header),
    /// More bytes are needed.
    More,
    /// Not a header.
    Broken,
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Parses what a connection begins with.
pub fn parse(buf: &[u8]) -> Parsed {
    let n = buf.len().min(SIGNATURE.len());
    if n > 0 && buf.get(..n) == SIGNATURE.get(..n) {
        return if n < SIGNATURE.len() { Parsed::More } else { v2(buf) };
    }
    v1(buf)
}

fn v1(buf: &[u8]) -> Parsed {
    const PREFIX: &[u8] = b"PROXY ";
    let n = buf.len().min(PREFIX.len());
    if buf.get(..n) != PREFIX.get(..n) {
        return Parsed::Broken;
    }
    // the specification's longest line is 107 bytes
    let Some(end) = memchr::memmem::find(buf, b"\r\n") else {
        return if buf.len() < 108 { Parsed::More } else { Parsed::Broken };
    };
    let Ok(line) = std::str::from_utf8(buf.get(..end).unwrap_or_default()) else { return Parsed::Broken };
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family.starts_with("UNKNOWN") {
        return Parsed::Done(Header { len: end + 2, addrs: None, tlvs: Vec::new() });
    }
    let mut ip = || -> Option<IpAddr> {
        let text = words.next()?;
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (Some(source), Some(destination)) = (ip(), ip()) else { return Parsed::Broken };
    let mut port = || words.next().filter(|w| w.bytes().all(|b| b.is_ascii_digit()))?.parse::<u16>().ok();
    let (Some(from), Some(to)) = (port(), port()) else { return Parsed::Broken };
    if words.next().is_some() {
        return Parsed::Broken;
    }
    let addrs = Some((SocketAddr::new(source, from), SocketAddr::new(destination, to)));
    Parsed::Done(Header { len: end + 2, addrs, tlvs: Vec::new() })
}

fn v2(buf: &[u8]) -> Parsed {
    let Some(&[version, family, high, low]) = buf.get(12..16).and_then(|b| b.first_chunk::<4>()) else { return Parsed::More };
    let len = 16 + usize::from(u16::from_be_bytes([high, low]));
    if version >> 4 != 2 || len > LONGEST {
        return Parsed::Broken;
    }
    let Some(body) = buf.get(16..len) else { return Parsed::More };
    let none = Header { len, addrs: None, tlvs: Vec::new() };
    // LOCAL: the proxy itself, a health check
    if version & 0xf != 1 {
        return Parsed::Done(none);
    }
    let port = |at: usize| body.get(at..at + 2).and_then(|b| b.first_chunk::<2>()).map(|b| u16::from_be_bytes(*b));
    let (addrs, used) = match family >> 4 {
        1 => {
            let ip = |at: usize| body.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).map(|b| IpAddr::from(*b));
            (ip(0).zip(ip(4)).zip(port(8).zip(port(10))), 12)
        }
        2 => {
            let ip = |at: usize| body.get(at..at + 16).and_then(|b| b.first_chunk::<16>()).map(|b| IpAddr::from(*b));
            (ip(0).zip(ip(16)).zip(port(32).zip(port(34))), 36)
        }
        _ => return Parsed::Done(none),
    };
    let Some(((source, destination), (from, to))) = addrs else { return Parsed::Broken };
    let addrs = Some((SocketAddr::new(source, from), SocketAddr::new(destination, to)));
    let mut rest = body.get(used..).unwrap_or_default();
    let mut tlvs = Vec::new();
    while let Some((&[kind, high, low], tail)) = rest.split_first_chunk::<3>() {
        let n = usize::from(u16::from_be_bytes([high, low]));
        // a value cut short is left out, the addresses stand
        let Some((value, tail)) = tail.split_at_checked(n) else { break };
        tlvs.push((kind, value.to_vec()));
        rest = tail;
    }
    Parsed::Done(Header { len, addrs, tlvs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn done(b: &[u8]) -> Header {
        match parse(b) {
            Parsed::Done(h) => h,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn version_1() {
        let h = done(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678\r\nGET /");
        assert_eq!(h.len, 42);
        assert_eq!(h.addrs.unwrap().0.to_string(), "192.0.2.1:1234");
        let h = done(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n");
        assert_eq!(h.addrs.unwrap().1.to_string(), "[2001:db8::2]:65535");
        assert_eq!(done(b"PROXY UNKNOWN\r\n").addrs, None);
        assert_eq!(parse(b"PROXY TCP4 192.0.2.1"), Parsed::More);
        for bad in ["PROXY TCP4 192.0.2.1 192.0.2.2 1234\r\n", "PROXY TCP4 a b 1 2\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "GET / HTTP/1.0\r\n"] {
            assert_eq!(parse(bad.as_bytes()), Parsed::Broken, "{bad}");
        }
    }

    #[test]
    fn version_2_with_values() {
        let mut b = SIGNATURE.to_vec();
        b.extend([0x21, 0x11, 0, 12 + 5, 192, 0, 2, 1, 192, 0, 2, 2, 4, 210, 22, 46, 5, 0, 2, b'h', b'i']);
        let h = done(&b);
        assert_eq!(h.addrs.unwrap().0.to_string(), "192.0.2.1:1234");
        assert_eq!(h.tlvs, vec![(5, b"hi".to_vec())]);
        assert_eq!(parse(&b[..20]), Parsed::More);
        b[12] = 0x20;
        assert_eq!(done(&b).addrs, None);
    }

    proptest! {
        #[test]
        fn never_panics(b in proptest::collection::vec(any::<u8>(), 0..200), signed in any::<bool>()) {
            let mut v = if signed { SIGNATURE.to_vec() } else { b"PROXY ".to_vec() };
            v.extend(b);
            let _ = parse(&v);
        }
    }
}
