//! The client's address as a trusted proxy tells it: `set_real_ip_from` and its kin.

use crate::config::addr::{Cidr, parse_cidr, parse_ip_port};
use crate::config::{Result, Statement};
use crate::contract::*;
use std::net::SocketAddr;
use std::sync::Arc;

/// Addresses told by proxies.
pub struct RealIp;

/// Whom a block trusts, and where it looks.
#[derive(Default, Clone)]
pub struct RealIpConf {
    from: Option<Vec<Net>>,
    source: Option<Source>,
    recursive: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
enum Net {
    Unix,
    Cidr(Cidr),
}

/// `real_ip_header`.
#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    XRealIp,
    ForwardedFor,
    ProxyProtocol,
    Field(Box<[u8]>),
}

impl Conf for RealIpConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; from, source, recursive);
    }
}

impl Module for RealIp {
    const NAME: &'static str = "http_realip";
    type Conf = RealIpConf;
    const DIRECTIVES: &'static [Directive<RealIpConf>] = &[
        Directive::new(
            "set_real_ip_from",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`set_real_ip_from address|network|host|unix:;` Peers that are believed.",
            set_real_ip_from,
        ),
        Directive::new(
            "real_ip_header",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`real_ip_header field|X-Real-IP|X-Forwarded-For|proxy_protocol;` Where the client's address is found. Default: X-Real-IP.",
            |c, s, _| {
                let source = match s.arg(0) {
                    b"X-Real-IP" => Source::XRealIp,
                    b"X-Forwarded-For" => Source::ForwardedFor,
                    b"proxy_protocol" => Source::ProxyProtocol,
                    name => Source::Field(name.into()),
                };
                once(&mut c.source, s, source)
            },
        ),
        Directive::new(
            "real_ip_recursive",
            Place::ANY_HTTP,
            Args::Flag,
            "`real_ip_recursive on|off;` Whether the last address that is not itself trusted is taken. Default: off.",
            |c, s, _| once(&mut c.recursive, s, s.flag(0)?),
        ),
    ];
    const VARIABLES: &'static [Variable] = &[
        Variable::new("realip_remote_addr", |r, _| {
            Val::Bytes(r.conn().remote.text.as_bytes())
        }),
        Variable::new("realip_remote_port", |r, _| match r.conn().remote.port() {
            0 => Val::EMPTY,
            port => Val::number(u64::from(port)),
        }),
    ];

    fn attach(conf: &Arc<RealIpConf>, on: &mut Hooks) -> Result<()> {
        if let Some(from) = &conf.from {
            let phase = if on.level() == Level::Server {
                Phase::PostRead
            } else {
                Phase::PreAccess
            };
            let source = conf.source.clone().unwrap_or_default();
            on.on(
                phase,
                Replace {
                    from: from.clone().into(),
                    source,
                    recursive: conf.recursive.unwrap_or(false),
                },
            );
        }
        Ok(())
    }
}

struct Replace {
    from: Box<[Net]>,
    source: Source,
    recursive: bool,
}

impl Handler for Replace {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        // replaced once: a location does not change what the server decided
        if r.remote.addr == r.conn().remote.addr
            && let Some(addr) = self.find(r)
        {
            r.remote = Remote::new(addr);
        }
        Next::Continue
    }
}

impl Replace {
    fn find(&self, r: &Request) -> Option<SocketAddr> {
        let peer = r.remote.addr;
        let headers = r.headers();
        match &self.source {
            Source::XRealIp => self.walk(peer, headers.get(b"X-Real-IP")?).0,
            Source::Field(name) => self.walk(peer, headers.get(name)?).0,
            Source::ForwardedFor => {
                let lines: smallvec::SmallVec<[&[u8]; 4]> =
                    headers.get_all(b"X-Forwarded-For").collect();
                self.walk_lines(peer, lines.iter().rev().copied())
            }
            Source::ProxyProtocol => {
                let source = r.conn().proxy.get()?.source.addr?;
                self.trusts(peer).then_some(source)
            }
        }
    }

    fn trusts(&self, peer: Option<SocketAddr>) -> bool {
        let ip = peer.map(|a| a.ip().to_canonical());
        self.from.iter().any(|net| match (net, &ip) {
            (Net::Unix, ip) => ip.is_none(),
            (Net::Cidr(c), Some(ip)) => c.contains(ip),
            (Net::Cidr(_), None) => false,
        })
    }

    /// Several fields of one name, the last first.
    fn walk_lines<'h>(
        &self,
        peer: Option<SocketAddr>,
        lines: impl Iterator<Item = &'h [u8]>,
    ) -> Option<SocketAddr> {
        let mut found = None;
        for line in lines {
            let (addr, more) = self.walk(found.or(peer), line);
            found = addr.or(found);
            if !self.recursive || !more || addr.is_none() {
                break;
            }
        }
        found
    }

    /// One list of addresses from its end; the flag tells that all of it was trusted.
    fn walk(&self, peer: Option<SocketAddr>, list: &[u8]) -> (Option<SocketAddr>, bool) {
        let mut rest = list;
        let mut found = None;
        loop {
            if !self.trusts(found.or(peer)) {
                return (found, false);
            }
            let end = rest
                .iter()
                .rposition(|c| !matches!(c, b' ' | b','))
                .map_or(0, |i| i + 1);
            let text = rest.get(..end).unwrap_or_default();
            let begin = text
                .iter()
                .rposition(|c| matches!(c, b' ' | b','))
                .map_or(0, |i| i + 1);
            let Some((ip, port)) = parse_ip_port(text.get(begin..).unwrap_or_default()) else {
                return (found, false);
            };
            found = Some(SocketAddr::new(ip, port.unwrap_or(0)));
            rest = rest.get(..begin.saturating_sub(1)).unwrap_or_default();
            if !self.recursive || rest.is_empty() {
                return (found, true);
            }
        }
    }
}

fn set_real_ip_from(c: &mut RealIpConf, s: &Statement, b: &mut Build) -> Result<()> {
    let from = c.from.get_or_insert_default();
    let text = s.arg(0);
    if text == b"unix:" {
        from.push(Net::Unix);
        return Ok(());
    }
    if let Some((cidr, low_bits)) = parse_cidr(text) {
        if low_bits {
            b.warn(s.warn_at(
                0,
                format!(
                    "low address bits of {} are meaningless",
                    String::from_utf8_lossy(text)
                ),
            ));
        }
        from.push(Net::Cidr(cidr));
        return Ok(());
    }
    let host = s.str(0)?;
    match crate::dns::resolve_at_load(host, 0) {
        Ok(list) if !list.is_empty() => {
            from.extend(list.iter().map(|a| {
                Net::Cidr(Cidr {
                    addr: a.ip(),
                    prefix: if a.is_ipv4() { 32 } else { 128 },
                })
            }));
            Ok(())
        }
        _ => Err(s.error(format!("host not found in set_real_ip_from \"{host}\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(from: &[&str], recursive: bool) -> Replace {
        let from = from
            .iter()
            .map(|n| {
                if *n == "unix:" {
                    Net::Unix
                } else {
                    Net::Cidr(parse_cidr(n.as_bytes()).unwrap().0)
                }
            })
            .collect();
        Replace {
            from,
            source: Source::ForwardedFor,
            recursive,
        }
    }

    fn lines(r: &Replace, peer: &str, lines: &[&str]) -> Option<String> {
        let peer = peer.parse().ok();
        r.walk_lines(peer, lines.iter().rev().map(|l| l.as_bytes()))
            .map(|a| a.to_string())
    }

    #[test]
    fn the_last_address_counts_and_trusted_ones_are_skipped() {
        let once = replace(&["127.0.0.1", "10.0.1.0/24"], false);
        assert_eq!(
            lines(&once, "127.0.0.1:80", &["10.0.0.1, 192.0.2.1"]).as_deref(),
            Some("192.0.2.1:0")
        );
        assert_eq!(lines(&once, "127.0.0.2:80", &["10.0.0.1"]), None);
        assert_eq!(
            lines(&once, "127.0.0.1:80", &["192.0.2.7:8080 , "]).as_deref(),
            Some("192.0.2.7:8080")
        );
        assert_eq!(lines(&once, "127.0.0.1:80", &["unknown"]), None);
        assert_eq!(lines(&once, "127.0.0.1:80", &["", ""]), None);
        let all = replace(&["127.0.0.1", "10.0.1.0/24"], true);
        assert_eq!(
            lines(&all, "127.0.0.1:80", &["10.0.1.1, 10.0.0.1, 10.0.1.1"]).as_deref(),
            Some("10.0.0.1:0")
        );
        assert_eq!(
            lines(&all, "127.0.0.1:80", &["10.0.0.1", "10.0.1.1"]).as_deref(),
            Some("10.0.0.1:0")
        );
        assert_eq!(
            lines(&all, "127.0.0.1:80", &["10.0.0.9", "bad", "10.0.1.1"]).as_deref(),
            Some("10.0.1.1:0")
        );
        assert_eq!(
            lines(&all, "127.0.0.1:80", &["[2001:db8::1]:90, 10.0.1.1"]).as_deref(),
            Some("[2001:db8::1]:90")
        );
        assert_eq!(
            lines(&all, "[::ffff:127.0.0.1]:80", &["1.2.3.4"]).as_deref(),
            Some("1.2.3.4:0")
        );
        assert_eq!(
            lines(&replace(&["unix:"], false), "unix:", &["1.2.3.4"]).as_deref(),
            Some("1.2.3.4:0")
        );
    }

    proptest::proptest! {
        #[test]
        fn any_list_ends(text in ".{0,60}", recursive: bool) {
            let r = replace(&["0.0.0.0/0", "::/0"], recursive);
            let _ = r.walk("127.0.0.1:1".parse().ok(), text.as_bytes());
        }
    }
}
