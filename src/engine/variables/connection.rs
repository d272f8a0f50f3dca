//! Variables of the connection, the process and the clock.

use crate::contract::{ProxyProtocol, Request, Small, TcpInfo, Val};
use crate::http::date;
use crate::log::Level;
use std::io::Write;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

/// Whether the client speaks TLS.
pub fn is_tls(r: &Request) -> bool {
    r.conn().tls.get().is_some()
}

/// `$binary_remote_addr`: 4 or 16 bytes.
pub fn binary_remote_addr<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    match r.remote.ip() {
        Some(IpAddr::V4(ip)) => Val::Small(Small::new(&ip.octets())),
        Some(IpAddr::V6(ip)) => Val::Small(Small::new(&ip.octets())),
        None => Val::Bytes(r.remote.text.as_bytes()),
    }
}

/// `$connection_requests`.
pub fn requests<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    Val::number(r.conn().requests.load(Ordering::Relaxed))
}

/// `$tcpinfo_…`.
pub fn tcp_info(r: &Request, get: impl FnOnce(&TcpInfo) -> u32) -> Val<'_> {
    r.down
        .tcp_info()
        .map_or(Val::None, |i| Val::number(u64::from(get(&i))))
}

/// What a PROXY protocol header says, if there is one.
pub fn proxy<'r>(r: &'r Request, get: impl FnOnce(&'r ProxyProtocol) -> Val<'r>) -> Val<'r> {
    r.conn().proxy.get().map_or(Val::None, |p| get(p))
}

/// `$proxy_protocol_tlv_…`: by name or by number (`0x05`).
pub fn proxy_tlv<'r>(r: &'r Request, name: &'r [u8]) -> Val<'r> {
    let Some(p) = r.conn().proxy.get() else {
        return Val::None;
    };
    match tlv(&p.tlvs, name) {
        Ok(value) => value,
        Err(reason) => {
            r.error(
                Level::Error,
                format_args!(
                    "{reason} PROXY protocol TLV \"{}\"",
                    String::from_utf8_lossy(name)
                ),
            );
            Val::None
        }
    }
}

/// The type of the value that holds what is known of TLS, and the length of its head.
const TLV_SSL: (u8, usize) = (0x20, 5);

fn tlv<'r>(list: &'r [(u8, Vec<u8>)], name: &[u8]) -> Result<Val<'r>, &'static str> {
    let outer = |kind: u8| list.iter().find(|(t, _)| *t == kind).map(|(_, v)| &**v);
    if let Some(name) = name.strip_prefix(b"ssl_") {
        let Some(ssl) = outer(TLV_SSL.0) else {
            return Ok(Val::None);
        };
        let Some((head, inner)) = ssl.split_at_checked(TLV_SSL.1) else {
            return Ok(Val::None);
        };
        if name == b"verify" {
            let verify = head
                .iter()
                .skip(1)
                .fold(0u64, |n, b| n << 8 | u64::from(*b));
            return Ok(Val::number(verify));
        }
        let kind = number(name)?.map_or_else(
            || match name {
                b"version" => Ok(0x21),
                b"cn" => Ok(0x22),
                b"cipher" => Ok(0x23),
                b"sig_alg" => Ok(0x24),
                b"key_alg" => Ok(0x25),
                _ => Err("unknown"),
            },
            Ok,
        )?;
        return Ok(Val::from_option(inner_tlv(inner, kind)));
    }
    let kind = number(name)?.map_or_else(
        || match name {
            b"alpn" => Ok(0x01),
            b"authority" => Ok(0x02),
            b"unique_id" => Ok(0x05),
            b"ssl" => Ok(0x20),
            b"netns" => Ok(0x30),
            _ => Err("unknown"),
        },
        Ok,
    )?;
    Ok(Val::from_option(u8::try_from(kind).ok().and_then(outer)))
}

/// `0x…`
fn number(name: &[u8]) -> Result<Option<u32>, &'static str> {
    let Some(digits) = name.strip_prefix(b"0x") else {
        return Ok(None);
    };
    let digits = std::str::from_utf8(digits).map_err(|_| "invalid")?;
    u32::from_str_radix(digits, 16)
        .map(Some)
        .map_err(|_| "invalid")
}

fn inner_tlv(mut list: &[u8], kind: u32) -> Option<&[u8]> {
    while let Some(([t, high, low], rest)) = list.split_first_chunk() {
        let (value, after) = rest.split_at_checked(usize::from(*high) << 8 | usize::from(*low))?;
        if u32::from(*t) == kind {
            return Some(value);
        }
        list = after;
    }
    None
}

/// `$nginx_version`: the level of compatibility.
pub fn version() -> &'static [u8] {
    b"1.31.5"
}

/// `$hostname`.
pub fn hostname() -> &'static [u8] {
    static NAME: LazyLock<Vec<u8>> = LazyLock::new(crate::engine::core::server::hostname);
    &NAME
}

/// `$msec`: seconds since the epoch with milliseconds.
pub fn msec<'r>(_: &'r Request, _: &'r [u8]) -> Val<'r> {
    let (sec, ms) = date::time();
    let mut text = Small::default();
    let _ = write!(text, "{sec}.{ms:03}");
    Val::Small(text)
}

/// `$time_iso8601`.
pub fn time_iso8601<'r>(_: &'r Request, _: &'r [u8]) -> Val<'r> {
    Val::Small(Small::new(&date::now().time_iso8601))
}

/// `$time_local`.
pub fn time_local<'r>(_: &'r Request, _: &'r [u8]) -> Val<'r> {
    Val::Small(Small::new(&date::now().time_local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tlvs() {
        let ssl = [
            &[1, 0, 0, 1, 2][..],
            &[0x21, 0, 3],
            b"1.3",
            &[0x22, 0, 2],
            b"cn",
            &[0x23, 0, 9],
            b"cut",
        ]
        .concat();
        let list = vec![(0x01, b"h2".to_vec()), (0x20, ssl), (0xee, b"own".to_vec())];
        let value = |name: &str| {
            tlv(&list, name.as_bytes()).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        };
        for (name, text) in [
            ("alpn", "h2"),
            ("0x01", "h2"),
            ("0xee", "own"),
            ("0xef", ""),
            ("authority", ""),
            ("ssl_version", "1.3"),
            ("ssl_0x22", "cn"),
            ("ssl_cipher", ""),
            ("ssl_verify", "258"),
        ] {
            assert_eq!(value(name).as_deref(), Ok(text), "{name}");
        }
        assert_eq!(value("foo"), Err("unknown"));
        assert_eq!(value("ssl_foo"), Err("unknown"));
        assert_eq!(value("0xzz"), Err("invalid"));
    }
}
