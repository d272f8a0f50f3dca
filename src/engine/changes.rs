//! What a reload changed: two sites compared, for the line in the log.

use crate::contract::{LocId, LocationTree, Server, Site};
use crate::upstream::Group;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

/// What tells one configuration from the one before it; displays as `2 servers added, 1 listener removed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Virtual servers, by names and addresses.
    pub servers: Count,
    /// Locations of the servers that are in both.
    pub locations: Count,
    /// Addresses listened on.
    pub listeners: Count,
    /// Upstreams, written or implied.
    pub upstreams: Count,
    /// Peers of the upstreams that are in both.
    pub peers: Count,
    /// Servers that present another certificate.
    pub certificates: usize,
    /// Outer blocks that say something else: `main`, `events`, `http`, `stream`.
    pub settings: Vec<&'static str>,
}

impl Changes {
    /// Compares the configuration in force with the one that takes its place.
    pub fn between(old: &Site, new: &Site) -> Changes {
        let mut c = Changes::default();
        let blocks = [
            ("main", old.prints.main != new.prints.main),
            ("events", old.prints.events != new.prints.events),
            ("http", old.prints.http != new.prints.http),
            ("stream", old.prints.stream != new.prints.stream),
        ];
        c.settings = blocks.iter().filter(|b| b.1).map(|b| b.0).collect();
        c.listeners = count(
            old.listeners.iter().map(|l| (&l.addr, l)),
            new.listeners.iter().map(|l| (&l.addr, l)),
            |a, b| {
                a.options != b.options
                    || a.tls.is_some() != b.tls.is_some()
                    || a.proxy_protocol != b.proxy_protocol
                    || a.http2 != b.http2
            },
        );
        c.servers = count(
            old.servers.iter().map(|s| (server_key(s), s)),
            new.servers.iter().map(|s| (server_key(s), s)),
            |a, b| {
                if a.deep_print != b.deep_print {
                    c.locations += locations(old, a, new, b);
                }
                if certificate(a) != certificate(b) {
                    c.certificates += 1;
                }
                a.print != b.print
            },
        );
        c.groups(old, new);
        c
    }

    fn groups(&mut self, old: &Site, new: &Site) {
        let written = |site: &Site, g: &Group| {
            let found = site.prints.upstreams.iter().find(|(n, _)| **n == *g.name);
            found.map(|(_, print)| *print)
        };
        let mut peers = Count::default();
        self.upstreams = count(groups(old), groups(new), |a, b| {
            let found = count(peers_of(a).into_iter(), peers_of(b).into_iter(), |x, y| {
                x != y
            });
            peers += found;
            // what is said of its servers is counted as theirs
            found == Count::default() && written(old, a) != written(new, b)
        });
        self.peers = peers;
    }

    /// Whether both configurations say the same.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing changed");
        }
        let counts = [
            ("server", self.servers),
            ("location", self.locations),
            ("listener", self.listeners),
            ("upstream", self.upstreams),
            ("upstream peer", self.peers),
            (
                "certificate",
                Count {
                    changed: self.certificates,
                    ..Count::default()
                },
            ),
        ];
        let mut separator = "";
        for (name, count) in counts {
            let kinds = [
                (count.added, "added"),
                (count.removed, "removed"),
                (count.changed, "changed"),
            ];
            for (n, what) in kinds.into_iter().filter(|(n, _)| *n > 0) {
                let plural = if n == 1 { "" } else { "s" };
                write!(f, "{separator}{n} {name}{plural} {what}")?;
                separator = ", ";
            }
        }
        for name in &self.settings {
            write!(f, "{separator}{name} settings changed")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// How many of a kind came, went and stayed with other settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Only in the new configuration.
    pub added: usize,
    /// Only in the old one.
    pub removed: usize,
    /// In both, with other settings.
    pub changed: usize,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.added += other.added;
        self.removed += other.removed;
        self.changed += other.changed;
    }
}

/// Compares two lists by key; of equal keys the first is compared with the first, and so on.
fn count<K: Hash + Eq + Clone, V>(
    old: impl Iterator<Item = (K, V)>,
    new: impl Iterator<Item = (K, V)>,
    mut differs: impl FnMut(&V, &V) -> bool,
) -> Count {
    let mut before = numbered(old);
    let mut out = Count::default();
    for (key, value) in numbered(new) {
        match before.remove(&key) {
            Some(was) => out.changed += usize::from(differs(&was, &value)),
            None => out.added += 1,
        }
    }
    out.removed = before.len();
    out
}

fn numbered<K: Hash + Eq + Clone, V>(list: impl Iterator<Item = (K, V)>) -> HashMap<(K, usize), V> {
    let mut seen: HashMap<K, usize> = HashMap::new();
    list.map(|(key, value)| {
        let nth = seen.entry(key.clone()).or_default();
        *nth += 1;
        ((key, *nth), value)
    })
    .collect()
}

fn server_key(s: &Server) -> (&[u8], Vec<String>) {
    let mut addrs: Vec<String> = s.addrs.iter().map(ToString::to_string).collect();
    addrs.sort();
    (&s.name, addrs)
}

/// The certificate that a server presents first.
fn certificate(s: &Server) -> Option<Vec<u8>> {
    let made = s.tls.as_ref()?.context.load_full()?;
    made.context.certificate()?.to_der().ok()
}

fn locations(old: &Site, a: &Server, new: &Site, b: &Server) -> Count {
    count(
        locations_of(old, a).into_iter(),
        locations_of(new, b).into_iter(),
        |x, y| x != y,
    )
}

/// Every location of a server: its path through the outer ones, and its fingerprint.
fn locations_of(site: &Site, server: &Server) -> Vec<(Vec<u8>, u64)> {
    let mut out = Vec::new();
    walk(site, &server.tree, b"", &mut out);
    for (name, id) in &server.named {
        visit(site, *id, name, b"", &mut out);
    }
    out
}

fn walk(site: &Site, tree: &LocationTree, outer: &[u8], out: &mut Vec<(Vec<u8>, u64)>) {
    for p in &tree.prefixes {
        if let Some(id) = p.exact {
            visit(site, id, &[b"= ", &*p.name].concat(), outer, out);
        }
        if let Some(id) = p.inclusive {
            visit(site, id, &p.name, outer, out);
        }
    }
    for (pattern, id) in &tree.patterns {
        let name = [b"~ ", pattern.source().as_bytes()].concat();
        visit(site, *id, &name, outer, out);
    }
}

fn visit(site: &Site, id: LocId, name: &[u8], outer: &[u8], out: &mut Vec<(Vec<u8>, u64)>) {
    let Some(location) = site.locations.get(id as usize) else {
        return;
    };
    let path = [outer, b"\0", name].concat();
    walk(site, &location.nested, &path, out);
    out.push((path, location.print));
}

fn groups(site: &Site) -> impl Iterator<Item = ((&str, u16), &Group)> {
    let list = site.groups.get().map(|g| g.list.as_slice());
    let list = list.unwrap_or_default().iter();
    list.map(|(name, port, group)| ((&**name, *port), &*group.group))
}

/// The peers of a group by what was written and where it leads, with their settings.
fn peers_of(group: &Group) -> Vec<((String, String), [u64; 6])> {
    let members = group.members();
    let shown = members.peers().map(|p| {
        let settings = [
            u64::from(p.weight),
            u64::from(p.max_fails),
            p.fail_timeout,
            u64::from(p.max_conns),
            u64::from(p.backup),
            u64::from(p.down),
        ];
        ((p.server.to_string(), p.name.to_string()), settings)
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Memory;
    use crate::engine::load::{LoadOptions, load};
    use std::sync::Arc;

    const CONF: &str = "events {} http { access_log off;
        upstream app { server 127.0.0.1:8001; server 127.0.0.1:8002 weight=2; }
        server { listen 127.0.0.1:8080; server_name one;
            location / { return 200; }
            location /a/ { proxy_pass http://app; location /a/b { return 204; } }
            location ~ x { return 204; }
            location = / { if ($arg_a) { return 204; } }
            location @n { return 204; } }
        server { listen 127.0.0.1:8080; server_name two; }
        server { listen 127.0.0.1:8081; return 204; } }";

    fn site(text: &str) -> Site {
        let mut files = Memory::default();
        files.insert("/c/nginx.conf", text);
        let options = LoadOptions {
            conf: "/c/nginx.conf".into(),
            prefix: "/tmp".into(),
            directives: b"error_log stderr;".to_vec(),
            error_log: "stderr".into(),
            pid: "x.pid".into(),
            testing: true,
        };
        let registry = Arc::new(crate::features::builtin());
        match load(&registry, &options, &files) {
            Ok(loaded) => loaded.site,
            Err(e) => panic!("{}", e.diag.first_line()),
        }
    }

    /// The line for a configuration in which each text was replaced by the other.
    fn line(edits: &[(&str, &str)]) -> String {
        let mut text = CONF.to_owned();
        for (from, to) in edits {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        Changes::between(&site(CONF), &site(&text)).to_string()
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(line(&[]), "nothing changed");
        // what is written otherwise and means the same is no change
        assert_eq!(
            line(&[("return 204; }", "\n return  '204' ; # x\n }")]),
            "nothing changed"
        );
    }

    #[test]
    fn servers_and_listeners() {
        let more =
            "server { listen 127.0.0.1:8080; server_name three; } server { listen [::1]:8082; }";
        assert_eq!(
            line(&[("server { listen 127.0.0.1:8081; return 204; }", more)]),
            "2 servers added, 1 server removed, 1 listener added, 1 listener removed"
        );
        assert_eq!(
            line(&[("server_name two;", "server_name two; root /x;")]),
            "1 server changed"
        );
        assert_eq!(
            line(&[("listen 127.0.0.1:8081", "listen 127.0.0.1:8081 backlog=7")]),
            "1 server changed, 1 listener changed"
        );
        // a twin on the same address is told from the one that was there
        assert_eq!(
            line(&[(
                "server { listen 127.0.0.1:8081;",
                "server { listen 127.0.0.1:8080; server_name two; root /y; } server { listen 127.0.0.1:8081;"
            )]),
            "1 server added"
        );
    }

    #[test]
    fn locations_inside_and_out() {
        assert_eq!(
            line(&[(
                "location /a/b { return 204; }",
                "location /a/b { return 403; }"
            )]),
            "1 location changed"
        );
        assert_eq!(
            line(&[("location /a/b { return 204; }", "")]),
            "1 location removed"
        );
        assert_eq!(
            line(&[("location ~ x", "location ~* x")]),
            "1 location changed"
        );
        assert_eq!(
            line(&[("location @n", "location ^~ /n")]),
            "1 location added, 1 location removed"
        );
        assert_eq!(
            line(&[("if ($arg_a) { return 204; }", "if ($arg_a) { return 205; }")]),
            "1 location changed"
        );
    }

    #[test]
    fn upstreams_peers_and_settings() {
        assert_eq!(
            line(&[
                ("server 127.0.0.1:8001;", "server 127.0.0.1:8003;"),
                ("weight=2", "weight=3")
            ]),
            "1 upstream peer added, 1 upstream peer removed, 1 upstream peer changed"
        );
        assert_eq!(
            line(&[("weight=2;", "weight=2; keepalive 4;")]),
            "1 upstream changed"
        );
        assert_eq!(
            line(&[
                (
                    "upstream app",
                    "upstream more { server 127.0.0.1:1; } upstream app"
                ),
                ("events {}", "events { worker_connections 99; } env X;"),
                ("http {", "http { gzip on;")
            ]),
            "1 upstream added, main settings changed, events settings changed, http settings changed"
        );
    }
}
