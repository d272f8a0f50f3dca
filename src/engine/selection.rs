//! Tells how a server and a location were chosen, and who else stood to be.
//!
//! Runs beside [`super::lookup`] and only for requests that are explained.

use crate::contract::{Candidate, Listener, LocId, Location, LocationTree, Request, Site, Step};
use std::sync::Arc;

/// How the request's server, which is known, was chosen on its listener.
pub fn server(l: &Listener, r: &mut Request) -> Step {
    let site = r.site.clone();
    let host = r.head.host.clone();
    let captures = r.captures.clone();
    let mut found = names(l, &host, r);
    r.captures = captures;
    let shown = String::from_utf8_lossy(&host).into_owned();
    let at = found.iter().position(|(n, _)| *n == r.server);
    let how = match at {
        Some(i) => found.remove(i).1,
        None if host.is_empty() => "the default server: the request names no host".to_owned(),
        None => format!("the default server: no name fits \"{shown}\""),
    };
    let mut others: Vec<Candidate> = found
        .into_iter()
        .map(|(n, why)| {
            let (name, at) = named(&site, n);
            Candidate {
                name,
                at,
                why: format!("{why}, which counts for less"),
            }
        })
        .collect();
    if at.is_some() && l.default_server != r.server {
        let (name, at) = named(&site, l.default_server);
        others.push(Candidate {
            name,
            at,
            why: "the default server: another one's name fits".to_owned(),
        });
    }
    let (name, place) = named(&site, r.server);
    Step::new("server", format!("{name} on {}: {how}", l.addr))
        .at(&place)
        .others(others)
}

fn named(site: &Site, server: u32) -> (String, Arc<str>) {
    match site.servers.get(server as usize) {
        Some(s) if s.name.is_empty() => ("\"\"".to_owned(), s.place.clone()),
        Some(s) => (
            String::from_utf8_lossy(&s.name).into_owned(),
            s.place.clone(),
        ),
        None => Default::default(),
    }
}

/// The servers with a name that fits the host, best first.
fn names(l: &Listener, host: &[u8], r: &mut Request) -> Vec<(u32, String)> {
    let n = &*l.names;
    let text = String::from_utf8_lossy;
    let mut found: Vec<(u32, String)> = Vec::new();
    if let Some(s) = n.exact.get(host) {
        found.push((*s, format!("its name is \"{}\"", text(host))));
    }
    let dots = || host.iter().enumerate().filter(|(_, c)| **c == b'.');
    for (i, _) in dots().filter(|(i, _)| *i > 0) {
        if let Some(s) = host.get(i..).and_then(|tail| n.leading.get(tail)) {
            let tail = text(host.get(i..).unwrap_or_default()).into_owned();
            found.push((*s, format!("its name is \"*{tail}\"")));
        }
    }
    for (i, _) in dots().rev().filter(|(i, _)| i + 1 < host.len()) {
        if let Some(s) = host.get(..=i).and_then(|begin| n.trailing.get(begin)) {
            let begin = text(host.get(..=i).unwrap_or_default()).into_owned();
            found.push((*s, format!("its name is \"{begin}*\"")));
        }
    }
    if !host.is_empty() {
        for (pattern, s) in &n.patterns {
            if pattern.exec(host, r) {
                found.push((*s, format!("its name is \"~{}\"", pattern.source())));
            }
        }
    }
    found
}

/// How the location of the request's URI is chosen; called before it is.
pub fn location(r: &mut Request) -> Step {
    let site = r.site.clone();
    let uri = r.uri.clone();
    let captures = r.captures.clone();
    let mut tale = Tale {
        site: &site,
        uri: &uri,
        others: Vec::new(),
    };
    let chosen = site
        .servers
        .get(r.server as usize)
        .and_then(|s| tale.walk(&s.tree, r));
    let others = tale.others;
    r.captures = captures;
    let shown = String::from_utf8_lossy(&uri);
    match chosen {
        Some((id, why)) => match site.locations.get(id as usize) {
            Some(l) => Step::new("location", format!("{} for \"{shown}\": {why}", name(l)))
                .at(&l.place)
                .others(others),
            None => Step::new("location", why),
        },
        None => Step::new(
            "location",
            format!("none for \"{shown}\": the server's own settings are in force"),
        )
        .others(others),
    }
}

/// A location's name with its modifier, as written.
pub fn name(l: &Location) -> String {
    let text = String::from_utf8_lossy(&l.name);
    if l.exact {
        format!("= {text}")
    } else if l.no_regex {
        format!("^~ {text}")
    } else if l.regex {
        format!("~ {text}")
    } else {
        text.into_owned()
    }
}

/// How many of those that lost are told of.
const MOST: usize = 100;

struct Tale<'a> {
    site: &'a Site,
    uri: &'a [u8],
    others: Vec<Candidate>,
}

impl Tale<'_> {
    fn lost(&mut self, id: LocId, why: impl Into<String>) {
        if let Some(l) = self.site.locations.get(id as usize)
            && self.others.len() < MOST
        {
            self.others.push(Candidate {
                name: name(l),
                at: l.place.clone(),
                why: why.into(),
            });
        }
    }

    fn walk(&mut self, tree: &LocationTree, r: &mut Request) -> Option<(LocId, String)> {
        let uri = self.uri;
        let mut fitting: Vec<LocId> = Vec::new();
        for p in &tree.prefixes {
            if *p.name == *uri
                && let Some(id) = p.exact
            {
                for id in fitting.into_iter().chain(p.inclusive) {
                    self.lost(id, "an exact one comes first");
                }
                return Some((id, "the URI is just this".to_owned()));
            }
            if uri.starts_with(&p.name) {
                fitting.extend(p.inclusive);
            }
        }
        // sorted by name: the last that fits is the longest
        let best = fitting.pop();
        for id in fitting {
            self.lost(id, "a shorter prefix");
        }
        let mut no_regex = false;
        let mut chosen = best.map(|id| (id, "the longest prefix".to_owned()));
        if let Some(l) = best.and_then(|id| self.site.locations.get(id as usize)) {
            no_regex = l.no_regex;
            if !l.nested.is_empty() {
                let site = self.site;
                if let Some((inner, why)) = self.walk(&l.nested, r) {
                    let here = site.locations.get(inner as usize)?;
                    if let Some(outer) = best {
                        self.lost(outer, "one inside it fits");
                    }
                    if here.exact || here.regex {
                        return Some((inner, format!("inside {}: {why}", name(l))));
                    }
                    chosen = Some((inner, format!("inside {}: {why}", name(l))));
                }
            }
        }
        let mut matched: Option<LocId> = None;
        for (pattern, id) in &tree.patterns {
            if no_regex {
                self.lost(*id, "not tried: the longest prefix has \"^~\"");
            } else if matched.is_some() {
                self.lost(*id, "not tried: one before it matches");
            } else if pattern.exec(uri, r) {
                matched = Some(*id);
            } else {
                self.lost(*id, "does not match");
            }
        }
        let Some(id) = matched else { return chosen };
        if let Some((prefix, _)) = chosen {
            self.lost(prefix, "a pattern comes before a prefix without \"^~\"");
        }
        let why = "the first pattern that matches".to_owned();
        if let Some(l) = self.site.locations.get(id as usize)
            && !l.nested.is_empty()
            && let Some((inner, inside)) = self.walk(&l.nested, r)
        {
            return Some((inner, format!("inside {}: {inside}", name(l))));
        }
        Some((id, why))
    }
}
