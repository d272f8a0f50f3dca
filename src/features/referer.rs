//! `valid_referers` and `$invalid_referer`.

use crate::config::{Result, Statement};
use crate::contract::*;
use crate::engine::core::HttpServer;
use crate::engine::core::server::ServerName;
use std::collections::HashMap;
use std::sync::Arc;

/// Referers that are let through.
pub struct Referer;

/// Where a site's pages may be linked from.
#[derive(Default, Clone)]
pub struct RefererConf {
    names: Option<Names>,
    patterns: Option<Vec<Arc<Pattern>>>,
    server_patterns: Option<Vec<Arc<Pattern>>>,
    none: bool,
    blocked: bool,
    server_names: bool,
}

/// Host names, each with the beginning of the path that it asks for.
#[derive(Default, Clone)]
struct Names {
    exact: HashMap<Box<[u8]>, Option<Box<[u8]>>>,
    /// `*.example.com`: `.example.com`.
    leading: HashMap<Box<[u8]>, Option<Box<[u8]>>>,
    /// `example.*`: `example.`.
    trailing: HashMap<Box<[u8]>, Option<Box<[u8]>>>,
}

impl Conf for RefererConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; patterns, server_patterns);
        if self.names.is_none() {
            self.names.clone_from(&outer.names);
            (self.none, self.blocked) = (outer.none, outer.blocked);
        }
    }
}

const SERVER_LOCATION: Place = Place::SERVER.or(Place::LOCATION);

impl Module for Referer {
    const NAME: &'static str = "http_referer";
    type Conf = RefererConf;
    const DIRECTIVES: &'static [Directive<RefererConf>] = &[
        Directive::new(
            "valid_referers",
            SERVER_LOCATION,
            Args::AtLeast(1),
            "`valid_referers none|blocked|server_names|name[/path]|~regex …;` Referers for which `$invalid_referer` is empty; for all others it is 1.",
            valid_referers,
        ),
        Directive::inert(
            "referer_hash_max_size",
            SERVER_LOCATION,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
        Directive::inert(
            "referer_hash_bucket_size",
            SERVER_LOCATION,
            Args::Exactly(1),
            inert::number,
            "Hash tables size themselves.",
        ),
    ];
    const VARIABLES: &'static [Variable] =
        &[
            Variable::new("invalid_referer", |r, _| match r.kept::<RefererConf>() {
                Some(c) if !c.allows(r.headers().get(b"Referer")) => Val::Bytes(b"1"),
                _ => Val::EMPTY,
            })
            .memo()
            .changeable(),
        ];

    /// Adds the names of the servers, which may be written after the directive.
    fn configured(b: &mut Build) -> Result<()> {
        let blocks: Vec<BlockId> = b
            .blocks_of(SERVER_LOCATION)
            .filter(|id| b.written::<Referer>(*id).is_some())
            .collect();
        for id in blocks {
            let mut names = Vec::new();
            if b.written::<Referer>(id).is_some_and(|c| c.server_names) {
                let mut server = Some(id);
                while let Some(s) = server.filter(|s| !matches!(b.kind_of(*s), BlockKind::Server)) {
                    server = b.parent_of(s);
                }
                names = server
                    .and_then(|s| b.written::<HttpServer>(s))
                    .map(|s| s.names.clone())
                    .unwrap_or_default();
                if names.is_empty() {
                    // what a server without `server_name` is called
                    names.push(ServerName::Exact(Box::default()));
                }
            }
            let Some(c) = b.conf_of::<Referer>(id) else {
                continue;
            };
            c.add_server_names(&names)?;
            if (c.none || c.blocked) && c.names.as_ref().is_some_and(Names::is_empty) {
                return Err(Diag::plain(
                    "the \"none\" or \"blocked\" referers are specified in the \"valid_referers\" directive without any valid referer",
                ));
            }
        }
        Ok(())
    }

    fn attach(conf: &Arc<RefererConf>, on: &mut Hooks) -> Result<()> {
        if conf.names.is_some() {
            on.keep(conf.clone());
        }
        Ok(())
    }
}

impl RefererConf {
    fn add_server_names(&mut self, list: &[ServerName]) -> Result<()> {
        let names = self.names.get_or_insert_default();
        for name in list {
            let text: Vec<u8> = match name {
                ServerName::Exact(n) | ServerName::Odd(n, _) => n.to_vec(),
                ServerName::Leading(n) => [b"*", &**n].concat(),
                ServerName::Both(n) => n.to_vec(),
                ServerName::Trailing(n) => [n, &b"*"[..]].concat(),
                ServerName::Pattern(p) => {
                    self.server_patterns.get_or_insert_default().push(p.clone());
                    continue;
                }
            };
            names.add(&text, None).map_err(Diag::plain)?;
        }
        Ok(())
    }

    fn allows(&self, referer: Option<&[u8]>) -> bool {
        let Some(names) = &self.names else {
            return true;
        };
        if names.is_empty() && self.patterns.is_none() && self.server_patterns.is_none() {
            return true;
        }
        let Some(referer) = referer else {
            return self.none;
        };
        let scheme = |s: &str| {
            referer
                .get(..s.len())
                .is_some_and(|p| p.eq_ignore_ascii_case(s.as_bytes()))
        };
        let rest = match () {
            // nginx takes nothing shorter for a URL
            () if referer.len() < "http://i.ru".len() => None,
            () if scheme("http://") => referer.get(7..),
            () if scheme("https://") => referer.get(8..),
            () => None,
        };
        let Some(rest) = rest else {
            return self.blocked;
        };
        let len = rest
            .iter()
            .position(|c| matches!(c, b'/' | b':'))
            .unwrap_or(rest.len());
        let (host, after) = rest.split_at(len);
        if host.len() > 256 {
            return false;
        }
        let host = host.to_ascii_lowercase();
        if let Some(path) = names.find(&host) {
            let begin = memchr::memchr(b'/', after).unwrap_or(after.len());
            let rest = after.get(begin..).unwrap_or_default();
            return path.as_ref().is_none_or(|p| rest.starts_with(p));
        }
        self.server_patterns
            .iter()
            .flatten()
            .any(|p| p.is_match(&host))
            || self.patterns.iter().flatten().any(|p| p.is_match(rest))
    }
}

impl Names {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.leading.is_empty() && self.trailing.is_empty()
    }

    /// Adds `name`, `.name`, `*.name` or `name.*`.
    fn add(&mut self, name: &[u8], path: Option<&[u8]>) -> std::result::Result<(), String> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let invalid = || Err(format!("invalid hostname or wildcard \"{shown}\""));
        let conflict = || Err(format!("conflicting parameter \"{shown}\""));
        let name = name.to_ascii_lowercase();
        let stars = name.iter().filter(|c| **c == b'*').count();
        if stars > 1 || name.contains(&0) || name.windows(2).any(|w| w == b"..") {
            return invalid();
        }
        let path: Option<Box<[u8]>> = path.map(Into::into);
        let replaced = match &*name {
            [b'.', rest @ ..] if !rest.is_empty() && stars == 0 => {
                let exact = self.exact.insert(rest.into(), path.clone()).is_some();
                self.leading.insert(name.into(), path).is_some() || exact
            }
            [b'*', tail @ ..] if tail.len() > 1 && tail.starts_with(b".") => {
                self.leading.insert(tail.into(), path).is_some()
            }
            [head @ .., b'*'] if head.len() > 1 && head.ends_with(b".") => {
                self.trailing.insert(head.into(), path).is_some()
            }
            _ if stars > 0 => return invalid(),
            _ => self.exact.insert(name.into(), path).is_some(),
        };
        if replaced { conflict() } else { Ok(()) }
    }

    /// The path that goes with the most specific name.
    fn find(&self, host: &[u8]) -> Option<&Option<Box<[u8]>>> {
        if let Some(path) = self.exact.get(host) {
            return Some(path);
        }
        let dots = || (0..host.len()).filter(|i| host.get(*i) == Some(&b'.'));
        dots()
            .filter(|i| *i > 0)
            .find_map(|i| self.leading.get(host.get(i..)?))
            .or_else(|| {
                dots()
                    .rev()
                    .filter(|i| i + 1 < host.len())
                    .find_map(|i| self.trailing.get(host.get(..=i)?))
            })
    }
}

fn valid_referers(c: &mut RefererConf, s: &Statement, b: &mut Build) -> Result<()> {
    c.names.get_or_insert_default();
    for i in 0..s.len() {
        match s.arg(i) {
            b"" => return Err(s.error_at(i, "invalid referer \"\"")),
            b"none" => c.none = true,
            b"blocked" => c.blocked = true,
            b"server_names" => c.server_names = true,
            b"~" => return Err(s.error_at(i, "empty regex in \"~\"")),
            [b'~', pattern @ ..] => {
                let p = b.pattern(s, pattern, true)?;
                c.patterns.get_or_insert_default().push(p);
            }
            text => {
                let at = memchr::memchr(b'/', text);
                let (name, path) = text.split_at(at.unwrap_or(text.len()));
                let names = c.names.get_or_insert_default();
                names
                    .add(name, at.map(|_| path))
                    .map_err(|e| s.error_at(i, e))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(names: &[&str], none: bool, blocked: bool) -> RefererConf {
        let mut list = Names::default();
        for n in names {
            let (name, path) = n.split_at(n.find('/').unwrap_or(n.len()));
            list.add(
                name.as_bytes(),
                (!path.is_empty()).then_some(path.as_bytes()),
            )
            .unwrap();
        }
        RefererConf {
            names: Some(list),
            none,
            blocked,
            ..RefererConf::default()
        }
    }

    #[test]
    fn referers_are_judged_by_host_and_path() {
        let c = conf(
            &[
                "www.example.com",
                "*.example.org",
                ".dot.net",
                "tail.*",
                "path.com/uri",
            ],
            false,
            false,
        );
        for (referer, good) in [
            ("http://www.example.com", true),
            ("https://WWW.example.com:8080/x", true),
            ("http://example.com", false),
            ("http://a.b.example.org/", true),
            ("http://example.org/", false),
            ("http://dot.net/", true),
            ("http://x.dot.net/", true),
            ("http://tail.anything.at/", true),
            ("http://path.com/uri/1", true),
            ("http://path.com:80/uri", true),
            ("http://path.com/", false),
            ("ftp://www.example.com/", false),
            ("http://a", false),
        ] {
            assert_eq!(c.allows(Some(referer.as_bytes())), good, "{referer}");
        }
        assert!(!c.allows(None));
        let c = conf(&["a.com"], true, true);
        assert!(c.allows(None) && c.allows(Some(b"-")) && !c.allows(Some(b"http://other.com/")));
    }

    #[test]
    fn names_that_nginx_refuses() {
        let mut n = Names::default();
        for bad in ["*", "a*b.com", "*.*.com", "a..b", "*a.com"] {
            assert!(
                n.add(bad.as_bytes(), None)
                    .unwrap_err()
                    .starts_with("invalid hostname"),
                "{bad}"
            );
        }
        n.add(b"a.com", None).unwrap();
        assert!(
            n.add(b".a.com", None)
                .unwrap_err()
                .starts_with("conflicting parameter")
        );
    }
}
