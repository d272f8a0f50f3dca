//! Which server and which location serve a request.

use crate::contract::{ConnInfo, Listener, LocId, Location, LocationTree, Names, Request, Site};

impl Names {
    /// The server of a name (lower case, without port); `None` where no name matches.
    pub fn find(&self, host: &[u8], r: &mut Request) -> Option<u32> {
        let found = self.find_fixed(host);
        if found.is_some() || host.is_empty() {
            return found;
        }
        self.patterns
            .candidates(host)
            .find(|(p, _)| p.exec(host, r))
            .map(|(_, s)| *s)
    }

    /// The same without regular expressions, which need a request.
    pub fn find_fixed(&self, host: &[u8]) -> Option<u32> {
        if let Some(s) = self.exact.get(host) {
            return Some(*s);
        }
        if !self.leading.is_empty() {
            // the longest tail wins: `*.b.example.com` before `*.example.com`
            for (i, _) in host.iter().enumerate().filter(|(_, c)| **c == b'.') {
                if i > 0
                    && let Some(s) = self.leading.get(&host[i..])
                {
                    return Some(*s);
                }
            }
        }
        if !self.trailing.is_empty() {
            for (i, _) in host.iter().enumerate().rev().filter(|(_, c)| **c == b'.') {
                if i + 1 < host.len()
                    && let Some(s) = self.trailing.get(&host[..=i])
                {
                    return Some(*s);
                }
            }
        }
        None
    }
}

/// The server of a request on a listener: the one with the request's host among its names, else the default one.
///
/// The name of the TLS handshake has no say (nginx's ngx_http_set_virtual_server): a default server that refuses unknown
/// names refuses them whatever name the client gave in the handshake.
pub fn server(l: &Listener, r: &mut Request) -> u32 {
    by_host(l, r).unwrap_or(l.default_server)
}

/// The server of a connection's requests until their host is known: the one that the TLS handshake chose, else the
/// default one.
pub fn of_connection(l: &Listener, info: &ConnInfo) -> u32 {
    let chosen = info.tls.get().and_then(|t| t.chosen_by.as_deref());
    chosen
        .and_then(|name| {
            l.names.find_fixed(name).or_else(|| {
                let mut patterns = l.names.patterns.candidates(name);
                patterns.find(|(p, _)| p.is_match(name)).map(|(_, s)| *s)
            })
        })
        .unwrap_or(l.default_server)
}

/// The server whose name is the request's host.
pub fn by_host(l: &Listener, r: &mut Request) -> Option<u32> {
    // a request without Host is served by the server with the empty name, if there is one
    let host = std::mem::take(&mut r.head.host);
    let found = l.names.find(&host, r);
    r.head.host = host;
    found
}

/// What [`location`] found.
pub enum Found {
    /// A location, or the server's default one.
    At(LocId),
    /// `/name` belongs to this location, `/name/`, that redirects: `301` to its URI.
    Slash(LocId),
}

/// The location of `r.uri` in the request's server.
pub fn location(r: &mut Request) -> Found {
    let site = r.site.clone();
    let Some(server) = site.servers.get(r.server as usize) else {
        return Found::At(0);
    };
    let uri = std::mem::take(&mut r.uri);
    let found = in_tree(&site, &server.tree, &uri, r);
    r.uri = uri;
    match found {
        Some(f) => f,
        None => Found::At(server.default_location),
    }
}

fn in_tree(site: &Site, tree: &LocationTree, uri: &[u8], r: &mut Request) -> Option<Found> {
    let (exact, prefix) = by_prefix(site, tree, uri);
    if let Some(found) = exact {
        return Some(found);
    }
    let mut best = prefix;
    let mut no_regex = false;
    if let Some(id) = prefix {
        let here = at(site, id)?;
        // `^~` of the location found on this level, whatever is found inside it
        no_regex = here.no_regex;
        // locations inside the one found are asked before the patterns of this level
        if !here.nested.is_empty() {
            let inner = in_tree(site, &here.nested, uri, r);
            match inner {
                Some(Found::At(inner)) => {
                    let found = at(site, inner)?;
                    if found.exact || found.regex {
                        return Some(Found::At(inner));
                    }
                    best = Some(inner);
                }
                Some(Found::Slash(id)) => return Some(Found::Slash(id)),
                None => {}
            }
        }
    }
    if !no_regex {
        for (pattern, id) in tree.patterns.candidates(uri) {
            if pattern.exec(uri, r) {
                let here = at(site, *id)?;
                if !here.nested.is_empty()
                    && let Some(inner) = in_tree(site, &here.nested, uri, r)
                {
                    return Some(inner);
                }
                return Some(Found::At(*id));
            }
        }
    }
    best.map(Found::At)
}

/// Finds the exact match, or else the longest prefix.
fn by_prefix(site: &Site, tree: &LocationTree, uri: &[u8]) -> (Option<Found>, Option<LocId>) {
    let list = &tree.prefixes;
    // the last name not greater than the URI: it, or one of its own prefixes, is the longest prefix
    let end = list.partition_point(|p| &*p.name <= uri);
    let mut i = end.checked_sub(1);
    if let Some(p) = i.and_then(|i| list.get(i))
        && *p.name == *uri
    {
        // nobody is sent on to `/name/` from a `/name` that there is
        return match p.exact {
            Some(id) => (Some(Found::At(id)), None),
            None => (None, p.inclusive),
        };
    }
    let mut prefix = None;
    while let Some(p) = i.and_then(|i| list.get(i)) {
        if uri.starts_with(&p.name)
            && let Some(id) = p.inclusive
        {
            prefix = Some(id);
            break;
        }
        i = p.parent.map(|p| p as usize);
    }
    // `/name` where only `/name/` exists and proxies; names such as `/name !` may stand between the two
    if list.get(end).is_some_and(|p| p.name.starts_with(uri))
        && let Ok(i) = list.binary_search_by(|p| p.name.iter().cmp(uri.iter().chain(b"/")))
        && let Some(p) = list.get(i)
        && let Some(id) = p.exact.or(p.inclusive)
        && [p.exact, p.inclusive]
            .into_iter()
            .flatten()
            .any(|id| at(site, id).is_some_and(|l| l.auto_redirect))
    {
        return (Some(Found::Slash(id)), None);
    }
    (None, prefix)
}

fn at(site: &Site, id: LocId) -> Option<&Location> {
    site.locations.get(id as usize)
}

impl LocationTree {
    /// Whether there is no location.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.patterns.is_empty()
    }
}
