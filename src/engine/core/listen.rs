//! `listen`: addresses and the options of their sockets.

use crate::config::addr::{self, Address};
use crate::config::{Diag, Result, value};
use crate::contract::{Build, KeepaliveOption, ListenAddr, ListenOptions, Statement};
use std::net::{IpAddr, SocketAddr};

/// One address of one `listen`.
#[derive(Clone)]
pub struct ListenSpec {
    /// The address.
    pub addr: ListenAddr,
    /// Socket options.
    pub options: ListenOptions,
    /// Whether any socket option was written.
    pub set: bool,
    /// `default_server`.
    pub default_server: bool,
    /// `ssl`.
    pub ssl: bool,
    /// `http2`.
    pub http2: bool,
    /// `proxy_protocol`.
    pub proxy_protocol: bool,
    /// For messages about addresses that do not fit together.
    pub at: Box<Diag>,
}

pub(super) fn listen(list: &mut Vec<ListenSpec>, s: &Statement, b: &mut Build) -> Result<()> {
    let shown = s.str(0)?.to_owned();
    let addrs = match addr::parse_listen(s.arg(0), 80) {
        Ok(Address::Unix(p)) => vec![ListenAddr::Unix(p)],
        Ok(Address::Inet(inet)) => {
            let ips: Vec<IpAddr> = match inet.ip {
                Some(ip) => vec![ip],
                None => crate::dns::resolve_at_load(&inet.host, 0)
                    .map_err(|_| {
                        s.error_at(
                            0,
                            format!("host not found in \"{shown}\" of the \"listen\" directive"),
                        )
                    })?
                    .into_iter()
                    .map(|a| a.ip())
                    .collect(),
            };
            inet.ports()
                .flat_map(|p| {
                    ips.iter()
                        .map(move |ip| ListenAddr::Inet(SocketAddr::new(*ip, p)))
                })
                .collect()
        }
        Err(e) => {
            return Err(s.error_at(0, format!("{e} in \"{shown}\" of the \"listen\" directive")));
        }
    };
    let mut spec = ListenSpec {
        addr: ListenAddr::Unix(Default::default()),
        options: ListenOptions::default(),
        set: false,
        default_server: false,
        ssl: false,
        http2: false,
        proxy_protocol: false,
        at: s.error(""),
    };
    for i in 1..s.len() {
        let word = s.str(i)?;
        let (name, value) = word
            .split_once('=')
            .map_or((word, None), |(n, v)| (n, Some(v)));
        let size = |v: &str| value::parse_size(v.as_bytes()).map(|n| n as usize);
        let invalid = |what: &str| s.error_at(i, format!("invalid {what} \"{word}\""));
        match (name, value) {
            ("default_server" | "default", None) => spec.default_server = true,
            ("ssl", None) => spec.ssl = true,
            ("http2", None) => {
                b.warn(s.warn_at(i, "the \"listen ... http2\" directive is deprecated, use the \"http2\" directive instead"));
                spec.http2 = true;
            }
            ("proxy_protocol", None) => spec.proxy_protocol = true,
            ("bind", None) => spec.set = true,
            ("deferred", None) => {
                spec.options.deferred = true;
                spec.set = true;
            }
            ("reuseport", None) => {
                spec.options.reuseport = true;
                spec.set = true;
            }
            ("multipath", None) => {
                spec.options.multipath = true;
                spec.set = true;
            }
            ("backlog", Some(v)) => {
                let number = value::parse_number(v.as_bytes()).filter(|n| *n > 0);
                let number = number.ok_or_else(|| invalid("backlog"))?;
                spec.options.backlog = i32::try_from(number).unwrap_or(i32::MAX);
                spec.set = true;
            }
            ("rcvbuf", Some(v)) => {
                spec.options.rcvbuf = Some(size(v).ok_or_else(|| invalid("rcvbuf"))?);
                spec.set = true;
            }
            ("sndbuf", Some(v)) => {
                spec.options.sndbuf = Some(size(v).ok_or_else(|| invalid("sndbuf"))?);
                spec.set = true;
            }
            ("fastopen", Some(v)) => {
                let number = value::parse_number(v.as_bytes());
                let number = number.ok_or_else(|| invalid("fastopen"))?;
                spec.options.fastopen = Some(i32::try_from(number).unwrap_or(i32::MAX));
                spec.set = true;
            }
            ("ipv6only", Some(v)) if v.starts_with('o') => {
                spec.options.ipv6only = match v {
                    "on" => true,
                    "off" => false,
                    _ => return Err(s.error_at(i, format!("invalid ipv6only flags \"{v}\""))),
                };
                spec.set = true;
            }
            ("so_keepalive", Some(v)) => {
                spec.options.keepalive = Some(so_keepalive(v).ok_or_else(|| {
                    s.error_at(i, format!("invalid so_keepalive value: \"{v}\""))
                })?);
                spec.set = true;
            }
            ("quic", None) => {
                return Err(s.error_at(
                    i,
                    "the \"quic\" parameter is not supported: HTTP/3 is not built in",
                ));
            }
            ("accept_filter", Some(_)) => {
                // an error for nginx too, which it goes on after
                b.warn(s.error_at(
                    i,
                    format!(
                        "accept filters \"{word}\" are not supported on this platform, ignored"
                    ),
                ));
            }
            _ => return Err(s.error_at(i, format!("invalid parameter \"{word}\""))),
        }
    }
    for a in addrs {
        if list.iter().any(|l| l.addr == a) {
            return Err(s.error(format!("a duplicate listen {a}")));
        }
        list.push(ListenSpec {
            addr: a,
            ..spec.clone()
        });
    }
    Ok(())
}

/// `on`, `off` or `[idle]:[interval]:[count]`.
fn so_keepalive(v: &str) -> Option<KeepaliveOption> {
    let plain = |on| {
        Some(KeepaliveOption {
            on,
            idle: None,
            interval: None,
            count: None,
        })
    };
    match v {
        "on" => return plain(true),
        "off" => return plain(false),
        _ => {}
    }
    let mut parts = v.split(':');
    let time = |p: Option<&str>| match p {
        None | Some("") => Some(None),
        Some(p) => value::parse_time_sec(p.as_bytes()).map(|n| (n > 0).then_some(n as u32)),
    };
    let (idle, interval) = (time(parts.next())?, time(parts.next())?);
    let count = match parts.next() {
        None | Some("") => None,
        Some(p) => {
            let number = value::parse_number(p.as_bytes())?;
            (number > 0).then_some(u32::try_from(number).unwrap_or(u32::MAX))
        }
    };
    if parts.next().is_some() || (idle.is_none() && interval.is_none() && count.is_none()) {
        return None;
    }
    Some(KeepaliveOption {
        on: true,
        idle,
        interval,
        count,
    })
}
