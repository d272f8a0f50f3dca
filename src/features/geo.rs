//! `geo`: a variable whose value depends on an address.

use crate::config::addr::{Cidr, parse_cidr, parse_ip, parse_ip_port};
use crate::contract::*;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// nginx's ngx_http_geo_module.
pub struct Geo;

impl Module for Geo {
    const NAME: &'static str = "http_geo";
    type Conf = ();
    const DIRECTIVES: &'static [Directive<()>] = &[Directive::new(
        "geo",
        Place::HTTP,
        Args::Block(1, 2),
        "`geo [$address] $variable { network value; … }` A variable whose value depends on an address. Inside: `default`, `delete`, `include`, `proxy`, `proxy_recursive`, `ranges`, `volatile`.",
        |_, s, b| read(s, b),
    )];

    fn attach(_conf: &Arc<()>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

/// A `geo` block.
struct Table {
    address: Option<VarId>,
    proxies: Vec<Cidr>,
    recursive: bool,
    v4: Intervals<u32>,
    v6: Intervals<u128>,
    values: Vec<Box<[u8]>>,
}

impl Evaluate for Table {
    fn evaluate<'r>(&'r self, r: &'r Request) -> Val<'r> {
        // where there is no address nginx looks for 255.255.255.255
        let value = match self
            .client(r)
            .unwrap_or(IpAddr::V4(Ipv4Addr::BROADCAST))
            .to_canonical()
        {
            IpAddr::V4(ip) => self.v4.find(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.find(ip.to_bits()),
        };
        value
            .and_then(|v| self.values.get(v as usize))
            .map_or(Val::EMPTY, |v| Val::Bytes(v))
    }
}

impl Table {
    fn client(&self, r: &Request) -> Option<IpAddr> {
        let ip = match self.address {
            None => r.remote.ip(),
            Some(id) => Some(parse_ip(r.var(id).as_bytes())?),
        };
        if self.proxies.is_empty() {
            return ip;
        }
        Some(forwarded(
            ip?,
            r.headers().get_all(b"x-forwarded-for"),
            &self.proxies,
            self.recursive,
        ))
    }
}

/// The address behind trusted proxies: the last of `X-Forwarded-For`, or the last that is no proxy itself.
fn forwarded<'a>(
    mut ip: IpAddr,
    headers: impl Iterator<Item = &'a [u8]>,
    proxies: &[Cidr],
    recursive: bool,
) -> IpAddr {
    let trusted = |ip: &IpAddr| proxies.iter().any(|p| p.contains(&ip.to_canonical()));
    let headers: smallvec::SmallVec<[&[u8]; 4]> = headers.collect();
    let list = headers.iter().rev().flat_map(|h| {
        h.rsplit(|c| matches!(c, b' ' | b','))
            .filter(|a| !a.is_empty())
    });
    for text in list {
        if !trusted(&ip) {
            break;
        }
        match parse_ip_port(text) {
            Some((next, _)) => ip = next,
            None => break,
        }
        if !recursive {
            break;
        }
    }
    ip
}

/// Values of disjoint intervals, by binary search.
#[derive(Debug, Default)]
struct Intervals<T> {
    /// Where an interval begins, and its value up to the next; sorted.
    starts: Box<[(T, Option<u32>)]>,
}

impl<T: Ord + Copy> Intervals<T> {
    fn find(&self, at: T) -> Option<u32> {
        let i = self
            .starts
            .partition_point(|(start, _)| *start <= at)
            .checked_sub(1)?;
        self.starts.get(i)?.1
    }

    /// From networks with their first and last address; of two, one is inside the other or apart from it.
    fn of_networks(mut list: Vec<(T, T, u32)>, after: impl Fn(T) -> Option<T>) -> Self {
        // the outer one first
        list.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut starts: Vec<(T, Option<u32>)> = Vec::new();
        let mut push = |at: T, value: Option<u32>| {
            if starts.last().is_some_and(|(s, _)| *s == at) {
                starts.pop();
            }
            if starts.last().is_none_or(|(_, v)| *v != value) {
                starts.push((at, value));
            }
        };
        let mut open: Vec<(T, u32)> = Vec::new();
        let close = |open: &mut Vec<(T, u32)>, push: &mut dyn FnMut(T, Option<u32>)| {
            if let Some((last, _)) = open.pop()
                && let Some(next) = after(last)
            {
                push(next, open.last().map(|(_, v)| *v));
            }
        };
        for (first, last, value) in list {
            while open.last().is_some_and(|(end, _)| *end < first) {
                close(&mut open, &mut push);
            }
            push(first, Some(value));
            open.push((last, value));
        }
        while !open.is_empty() {
            close(&mut open, &mut push);
        }
        Intervals {
            starts: starts.into(),
        }
    }
}

/// A block while it is read.
#[derive(Default)]
struct Reader {
    ranges: bool,
    recursive: bool,
    volatile: bool,
    proxies: Vec<Cidr>,
    values: Vec<Box<[u8]>>,
    ids: HashMap<Box<[u8]>, u32>,
    networks: HashMap<Cidr4or6, u32>,
    any_network: bool,
    default: Option<u32>,
    /// Ranges by the upper half of the address, as nginx keeps them: sorted and disjoint.
    halves: BTreeMap<u16, Vec<(u16, u16, u32)>>,
}

type Cidr4or6 = (IpAddr, u8);

fn read(s: &Statement, b: &mut Build) -> ConfResult<()> {
    let address = match s.len() {
        2 => {
            let name = b.var_name(s, 0)?;
            Some(b.var(s, &name))
        }
        _ => None,
    };
    let name = b.var_name(s, s.len().saturating_sub(1))?;
    let mut g = Reader::default();
    for item in s.items() {
        g.item(item, b)?;
    }
    let (volatile, table) = (g.volatile, g.finish(address));
    b.define_var(s, &name, Arc::new(table), !volatile).map(drop)
}

fn shown(text: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(text)
}

impl Reader {
    fn item(&mut self, s: &Statement, b: &mut Build) -> ConfResult<()> {
        if s.block.is_some() {
            return Err(s.unexpected_block());
        }
        match (&*s.name.text, s.len()) {
            (b"ranges", 0) => {
                if self.any_network {
                    return Err(s.error(
                        "the \"ranges\" directive must be the first directive inside \"geo\" block",
                    ));
                }
                self.ranges = true;
            }
            (b"proxy_recursive", 0) => self.recursive = true,
            (b"volatile", 0) => self.volatile = true,
            (b"proxy", 1) => {
                let net = network(s, s.arg(0), b)?;
                self.proxies.push(net);
            }
            (_, 1) if self.ranges => self.range(s, b)?,
            (_, 1) => self.cidr(s, b)?,
            _ => return Err(s.error("invalid number of the geo parameters")),
        }
        Ok(())
    }

    fn value(&mut self, text: &[u8]) -> u32 {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = self.values.len() as u32;
        self.values.push(text.into());
        self.ids.insert(text.into(), id);
        id
    }

    fn text(&self, id: u32) -> &[u8] {
        self.values.get(id as usize).map_or(b"", |v| v)
    }

    fn cidr(&mut self, s: &Statement, b: &mut Build) -> ConfResult<()> {
        self.any_network = true;
        let name = &*s.name.text;
        if name == b"default" {
            let value = self.value(s.arg(0));
            self.add(s, name, (Ipv4Addr::UNSPECIFIED.into(), 0), value, b);
            self.add(s, name, (Ipv6Addr::UNSPECIFIED.into(), 0), value, b);
            return Ok(());
        }
        let delete = name == b"delete";
        let text = if delete { s.arg(0) } else { name };
        let net = network(s, text, b)?;
        if delete {
            if self.networks.remove(&(net.addr, net.prefix)).is_none() {
                b.warn(s.warn(format!("no network \"{}\" to delete", shown(text))));
            }
            return Ok(());
        }
        let value = self.value(s.arg(0));
        self.add(s, text, (net.addr, net.prefix), value, b);
        Ok(())
    }

    fn add(&mut self, s: &Statement, text: &[u8], net: Cidr4or6, value: u32, b: &mut Build) {
        if let Some(old) = self.networks.insert(net, value) {
            let (new, old) = (shown(self.text(value)), shown(self.text(old)));
            b.warn(s.warn(format!(
                "duplicate network \"{}\", value: \"{new}\", old value: \"{old}\"",
                shown(text)
            )));
        }
    }

    fn range(&mut self, s: &Statement, b: &mut Build) -> ConfResult<()> {
        let name = &*s.name.text;
        if name == b"default" {
            let value = self.value(s.arg(0));
            if let Some(old) = self.default.replace(value) {
                let (new, old) = (shown(s.arg(0)), shown(self.text(old)));
                b.warn(s.warn(format!(
                    "duplicate default geo range value: \"{new}\", old value: \"{old}\""
                )));
            }
            return Ok(());
        }
        let delete = name == b"delete";
        let text = if delete { s.arg(0) } else { name };
        let Some((first, last)) = parse_range(text) else {
            return Err(s.error(format!("invalid range \"{}\"", shown(text))));
        };
        let value = if delete { 0 } else { self.value(s.arg(0)) };
        let mut missing = false;
        for half in (first >> 16) as u16..=(last >> 16) as u16 {
            let whole = u32::from(half) << 16;
            let (from, to) = (first.max(whole) as u16, last.min(whole | 0xffff) as u16);
            let list = self.halves.entry(half).or_default();
            if delete {
                match list.iter().position(|(f, t, _)| (*f, *t) == (from, to)) {
                    Some(i) => {
                        list.remove(i);
                    }
                    None => missing = true,
                }
                continue;
            }
            match insert(list, from, to, value) {
                Inserted::New => {}
                Inserted::Instead(old) => {
                    let (new, old) = (shown(self.text(value)), shown(self.text(old)));
                    b.warn(s.warn(format!(
                        "duplicate range \"{}\", value: \"{new}\", old value: \"{old}\"",
                        shown(text)
                    )));
                }
                Inserted::Overlap(f, t) => {
                    let ip = |low: u16| Ipv4Addr::from_bits(whole | u32::from(low));
                    return Err(s.error(format!(
                        "range \"{}\" overlaps \"{}-{}\"",
                        shown(text),
                        ip(f),
                        ip(t)
                    )));
                }
            }
        }
        if missing {
            b.warn(s.warn(format!("no address range \"{}\" to delete", shown(text))));
        }
        Ok(())
    }

    fn finish(self, address: Option<VarId>) -> Table {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        if self.ranges {
            if let Some(value) = self.default {
                v4.push((0, u32::MAX, value));
                v6.push((0, u128::MAX, value));
            }
            for (half, list) in &self.halves {
                let whole = u32::from(*half) << 16;
                v4.extend(
                    list.iter()
                        .map(|(f, t, v)| (whole | u32::from(*f), whole | u32::from(*t), *v)),
                );
            }
        }
        for ((ip, prefix), value) in &self.networks {
            match ip {
                IpAddr::V4(ip) => {
                    let host = u32::MAX.checked_shr(u32::from(*prefix)).unwrap_or(0);
                    v4.push((ip.to_bits(), ip.to_bits() | host, *value));
                }
                IpAddr::V6(ip) => {
                    let host = u128::MAX.checked_shr(u32::from(*prefix)).unwrap_or(0);
                    v6.push((ip.to_bits(), ip.to_bits() | host, *value));
                }
            }
        }
        Table {
            address,
            proxies: self.proxies,
            recursive: self.recursive,
            v4: Intervals::of_networks(v4, |n| n.checked_add(1)),
            v6: Intervals::of_networks(v6, |n| n.checked_add(1)),
            values: self.values,
        }
    }
}

/// What became of a range.
#[derive(Debug, PartialEq, Eq)]
enum Inserted {
    /// It is there.
    New,
    /// It took the place of the same range with this value.
    Instead(u32),
    /// It overlaps that one and was not added.
    Overlap(u16, u16),
}

/// Adds a range to a sorted list; it may lie inside another one, which is then cut.
fn insert(list: &mut Vec<(u16, u16, u32)>, from: u16, to: u16, value: u32) -> Inserted {
    let at = list.partition_point(|(_, end, _)| *end < from);
    let Some(&mut (f, t, old)) = list.get_mut(at).filter(|(f, _, _)| *f <= to) else {
        list.insert(at, (from, to, value));
        return Inserted::New;
    };
    if (f, t) == (from, to) {
        if let Some(entry) = list.get_mut(at) {
            entry.2 = value;
        }
        return Inserted::Instead(old);
    }
    if from < f || to > t {
        // nginx names the last of those in the way
        let last = list
            .iter()
            .rev()
            .find(|(f, _, _)| *f <= to)
            .map_or((f, t), |(f, t, _)| (*f, *t));
        return Inserted::Overlap(last.0, last.1);
    }
    let before = from
        .checked_sub(1)
        .filter(|_| from > f)
        .map(|end| (f, end, old));
    let after = to
        .checked_add(1)
        .filter(|_| to < t)
        .map(|start| (start, t, old));
    list.splice(
        at..=at,
        before.into_iter().chain([(from, to, value)]).chain(after),
    );
    Inserted::New
}

fn parse_range(text: &[u8]) -> Option<(u32, u32)> {
    let at = memchr::memchr(b'-', text)?;
    let ip = |t: &[u8]| match parse_ip(t)? {
        IpAddr::V4(ip) => Some(ip.to_bits()),
        IpAddr::V6(_) => None,
    };
    let (first, last) = (ip(text.get(..at)?)?, ip(text.get(at + 1..)?)?);
    (first <= last).then_some((first, last))
}

fn network(s: &Statement, text: &[u8], b: &mut Build) -> ConfResult<Cidr> {
    let Some((net, low_bits)) = parse_cidr(text) else {
        return Err(s.error(format!("invalid network \"{}\"", shown(text))));
    };
    if low_bits {
        b.warn(s.warn(format!(
            "low address bits of {} are meaningless",
            shown(text)
        )));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_text;
    use proptest::prelude::*;
    use std::path::Path;

    fn table(text: &str) -> Result<(Table, Vec<String>), String> {
        let root = parse_text(text.as_bytes(), "f").root;
        let mut b = Build::new(
            Arc::new(ModuleRegistry::new()),
            Path::new("/"),
            Path::new("/"),
        );
        let mut g = Reader::default();
        for item in &root.items {
            g.item(item, &mut b).map_err(|e| e.message)?;
        }
        let warnings = b.warnings.iter().map(|w| w.message.clone()).collect();
        Ok((g.finish(None), warnings))
    }

    fn find(t: &Table, ip: &str) -> String {
        let id = match ip.parse().unwrap() {
            IpAddr::V4(ip) => t.v4.find(ip.to_bits()),
            IpAddr::V6(ip) => t.v6.find(ip.to_bits()),
        };
        String::from_utf8_lossy(id.map_or(b"-", |id| &t.values[id as usize])).into_owned()
    }

    #[test]
    fn the_narrowest_network_wins() {
        let (t, warnings) = table(
            "default d; 10.0.0.0/8 a; 10.1.0.0/16 b; 10.1.2.3 c; 10.1.0.0/24 e; 10.255.255.255 f; 2001:db8::/32 g; 2001:db8::1 h; 192.168.1.1/24 i; 10.2.0.0/16 x; delete 10.2.0.0/16; delete 1.1.1.1; 10.1.2.3 j;",
        )
        .unwrap();
        for (ip, value) in [
            ("1.2.3.4", "d"),
            ("10.9.9.9", "a"),
            ("10.1.2.2", "b"),
            ("10.1.2.3", "j"),
            ("10.1.2.4", "b"),
            ("10.1.0.255", "e"),
            ("10.2.0.1", "a"),
            ("10.255.255.255", "f"),
            ("11.0.0.0", "d"),
            ("255.255.255.255", "d"),
            ("192.168.1.77", "i"),
            ("2001:db8::1", "h"),
            ("2001:db8::2", "g"),
            ("::1", "d"),
            ("ffff::ffff", "d"),
        ] {
            assert_eq!(find(&t, ip), value, "{ip}");
        }
        assert_eq!(
            warnings,
            [
                "low address bits of 192.168.1.1/24 are meaningless",
                "no network \"1.1.1.1\" to delete",
                "duplicate network \"10.1.2.3\", value: \"j\", old value: \"c\"",
            ]
        );
    }

    #[test]
    fn ranges() {
        let (t, warnings) = table(
            "ranges; default d; 10.0.0.0-10.2.255.255 a; 10.1.0.5-10.1.0.9 b; 10.1.0.0-10.1.0.1 c; 10.1.255.255-10.1.255.255 e; 127.0.0.0-127.0.0.255 f; delete 127.0.0.0-127.0.0.255; delete 1.0.0.0-1.0.0.1; 10.0.0.0-10.0.255.255 g;",
        )
        .unwrap();
        for (ip, value) in [
            ("10.0.0.0", "g"),
            ("10.1.0.0", "c"),
            ("10.1.0.2", "a"),
            ("10.1.0.5", "b"),
            ("10.1.0.9", "b"),
            ("10.1.0.10", "a"),
            ("10.1.255.255", "e"),
            ("10.2.255.255", "a"),
            ("10.3.0.0", "d"),
            ("127.0.0.1", "d"),
            ("::1", "d"),
        ] {
            assert_eq!(find(&t, ip), value, "{ip}");
        }
        assert_eq!(
            warnings,
            [
                "no address range \"1.0.0.0-1.0.0.1\" to delete",
                "duplicate range \"10.0.0.0-10.0.255.255\", value: \"g\", old value: \"a\"",
            ]
        );
    }

    #[test]
    fn what_is_refused() {
        for (text, message) in [
            ("10.0.0.0/33 a;", "invalid network \"10.0.0.0/33\""),
            ("a b c;", "invalid number of the geo parameters"),
            ("a;", "invalid number of the geo parameters"),
            (
                "default a; ranges;",
                "the \"ranges\" directive must be the first directive inside \"geo\" block",
            ),
            ("ranges; 10.0.0.0/8 a;", "invalid range \"10.0.0.0/8\""),
            (
                "ranges; 10.0.0.2-10.0.0.1 a;",
                "invalid range \"10.0.0.2-10.0.0.1\"",
            ),
            (
                "ranges; 10.0.0.2-10.0.0.9 a; 10.0.0.8-10.0.0.12 b;",
                "range \"10.0.0.8-10.0.0.12\" overlaps \"10.0.0.2-10.0.0.9\"",
            ),
        ] {
            assert_eq!(table(text).err().as_deref(), Some(message), "{text}");
        }
        assert_eq!(find(&table("").unwrap().0, "1.1.1.1"), "-");
    }

    #[test]
    fn addresses_behind_proxies() {
        let proxies: Vec<Cidr> = ["10.0.0.0/8", "::1"]
            .iter()
            .map(|t| parse_cidr(t.as_bytes()).unwrap().0)
            .collect();
        for (ip, headers, recursive, found) in [
            ("1.1.1.1", &["2.2.2.2"][..], true, "1.1.1.1"),
            ("10.0.0.1", &["2.2.2.2"], false, "2.2.2.2"),
            ("::ffff:10.0.0.1", &["2.2.2.2"], false, "2.2.2.2"),
            ("::1", &["3.3.3.3, 10.0.0.2"], false, "10.0.0.2"),
            ("::1", &["3.3.3.3, 10.0.0.2 ,"], true, "3.3.3.3"),
            (
                "::1",
                &["4.4.4.4", "10.0.0.3, 10.0.0.2:80"],
                true,
                "4.4.4.4",
            ),
            ("::1", &["x, 10.0.0.2"], true, "10.0.0.2"),
            ("::1", &["x"], true, "::1"),
            ("::1", &[], true, "::1"),
        ] {
            let list = headers.iter().map(|h| h.as_bytes());
            assert_eq!(
                forwarded(ip.parse().unwrap(), list, &proxies, recursive).to_string(),
                found,
                "{ip} {headers:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn intervals_agree_with_a_search_of_all(nets in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..20), at in any::<u32>()) {
            let list: Vec<(u32, u32, u32)> = nets.iter().enumerate().map(|(i, (ip, p))| {
                let host = u32::MAX.checked_shr(u32::from(*p)).unwrap_or(0);
                (ip & !host, ip | host, i as u32)
            }).collect();
            // of equal networks only one can be there
            let mut seen = std::collections::HashSet::new();
            let list: Vec<_> = list.into_iter().filter(|n| seen.insert((n.0, n.1))).collect();
            let all = Intervals::of_networks(list.clone(), |n| n.checked_add(1));
            for at in list.iter().flat_map(|n| [n.0, n.1, n.0.wrapping_sub(1), n.1.wrapping_add(1)]).chain([at]) {
                let best = list.iter().filter(|n| n.0 <= at && at <= n.1).min_by_key(|n| n.1 - n.0).map(|n| n.2);
                prop_assert_eq!(all.find(at), best);
            }
        }
    }
}
