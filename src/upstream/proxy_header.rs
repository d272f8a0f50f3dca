//! The PROXY protocol header that opens a connection to an origin and tells it who the client is.

use std::net::SocketAddr;

/// Which form of the header is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// Version 1: a line of text.
    V1,
    /// Version 2: binary.
    V2,
}

/// What every version 2 header begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

impl ProxyHeader {
    /// The header for a connection from `client` to `local`; addresses that are not of one family are "unknown".
    pub fn bytes(self, client: Option<SocketAddr>, local: Option<SocketAddr>) -> Vec<u8> {
        let pair = client
            .zip(local)
            .filter(|(c, l)| c.is_ipv4() == l.is_ipv4());
        match self {
            Self::V1 => v1(pair),
            Self::V2 => v2(pair),
        }
    }
}

fn v1(pair: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((from, to)) = pair else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let (a, b, p, q) = (from.ip(), to.ip(), from.port(), to.port());
    format!("PROXY {family} {a} {b} {p} {q}\r\n").into_bytes()
}

fn v2(pair: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let family = match pair {
        Some((SocketAddr::V4(from), SocketAddr::V4(to))) => {
            addresses.extend_from_slice(&from.ip().octets());
            addresses.extend_from_slice(&to.ip().octets());
            0x11
        }
        Some((SocketAddr::V6(from), SocketAddr::V6(to))) => {
            addresses.extend_from_slice(&from.ip().octets());
            addresses.extend_from_slice(&to.ip().octets());
            0x21
        }
        _ => 0x00,
    };
    if let Some((from, to)) = pair {
        addresses.extend_from_slice(&from.port().to_be_bytes());
        addresses.extend_from_slice(&to.port().to_be_bytes());
    }
    let length = u16::try_from(addresses.len()).unwrap_or(0);
    let mut out = SIGNATURE.to_vec();
    // version 2, command PROXY
    out.extend_from_slice(&[0x21, family]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&addresses);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::proxy_protocol::parse;

    fn addr(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn our_own_reader_understands_it() {
        for header in [ProxyHeader::V1, ProxyHeader::V2] {
            for (client, local) in [
                ("192.0.2.7:4711", "198.51.100.1:80"),
                ("[2001:db8::7]:4711", "[2001:db8::1]:443"),
            ] {
                let bytes = header.bytes(addr(client), addr(local));
                let (read, used) = parse(&bytes).ok().unwrap();
                assert_eq!(used, bytes.len());
                let read = read.unwrap();
                assert_eq!(read.source.addr, addr(client));
                assert_eq!(read.destination.addr, addr(local));
            }
        }
    }

    #[test]
    fn text() {
        let bytes = ProxyHeader::V1.bytes(addr("1.2.3.4:5"), addr("6.7.8.9:80"));
        assert_eq!(bytes, b"PROXY TCP4 1.2.3.4 6.7.8.9 5 80\r\n");
        let mixed = ProxyHeader::V1.bytes(addr("1.2.3.4:5"), addr("[::1]:80"));
        assert_eq!(mixed, b"PROXY UNKNOWN\r\n");
        assert_eq!(ProxyHeader::V2.bytes(None, None).len(), 16);
    }
}
