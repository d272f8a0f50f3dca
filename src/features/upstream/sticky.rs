//! `sticky cookie|route|learn`: requests of a session go to the same server.

use super::UpstreamDirectives;
use crate::config::value::{parse_size, parse_time_ms, parse_time_sec};
use crate::contract::*;
use crate::features::zones;
use crate::http::date;
use crate::http::headers::Known;
use crate::log::Level;
use crate::runtime::handover;
use crate::upstream::sessions::Sessions;
use crate::upstream::{Peer, PickState};
use std::cell::RefCell;
use std::sync::Arc;

/// What of a request decides its server.
pub(super) struct RequestSelector {
    /// The key of a hash.
    pub key: Option<BalanceKey>,
    /// `sticky`.
    pub sticky: Option<Sticky>,
}

impl PeerSelector for RequestSelector {
    fn begin(&self, r: &Request, pick: &mut PickState) {
        match &self.key {
            Some(BalanceKey::Text(template)) => {
                let key = RefCell::new(&mut pick.key);
                let literal = |text: &[u8]| key.borrow_mut().extend_from_slice(text);
                template.each(r, literal, |value| {
                    key.borrow_mut().extend_from_slice(value.as_bytes());
                });
            }
            Some(BalanceKey::Network) => match r.remote.addr.map(|addr| addr.ip()) {
                Some(std::net::IpAddr::V4(ip)) => {
                    let [a, b, c, _] = ip.octets();
                    pick.key.extend_from_slice(&[a, b, c]);
                }
                Some(std::net::IpAddr::V6(ip)) => pick.key.extend_from_slice(&ip.octets()),
                None => pick.key.extend_from_slice(&[0; 3]),
            },
            None => {}
        }
        if let Some(sticky) = &self.sticky {
            pick.hint = sticky.find(r);
        }
    }

    fn picked(&self, r: &mut Request, peer: &Peer) {
        if let Some(Kind::Cookie(cookie)) = self.sticky.as_ref().map(|s| &s.kind) {
            cookie.set(r, peer);
        }
    }

    fn head(&self, r: &mut Request, peer: &Peer) {
        if let Some(sticky) = &self.sticky {
            sticky.learn(r, peer, true);
        }
    }

    fn done(&self, r: &mut Request, peer: &Peer) {
        if let Some(sticky) = &self.sticky {
            sticky.learn(r, peer, false);
        }
    }
}

/// `sticky` as written.
#[derive(Clone)]
pub(super) struct Sticky {
    /// Where a request's session, or its server, is found: the first of these that is not empty.
    lookup: Vec<VarId>,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Cookie(Arc<Cookie>),
    Route,
    Learn(Learn),
}

impl Sticky {
    /// What the server of the request's session is called.
    fn find(&self, r: &Request) -> Option<Arc<str>> {
        let value = first(r, &self.lookup)?;
        match &self.kind {
            Kind::Learn(learn) => learn
                .zone
                .sessions
                .find(value.as_bytes(), now(), learn.timeout),
            _ => std::str::from_utf8(value.as_bytes()).ok().map(Arc::from),
        }
    }

    fn learn(&self, r: &Request, peer: &Peer, at_head: bool) {
        let Kind::Learn(learn) = &self.kind else {
            return;
        };
        if learn.at_head != at_head {
            return;
        }
        let (name, create) = match first(r, &learn.create) {
            Some(name) => (name, true),
            None => match first(r, &self.lookup) {
                Some(name) => (name, false),
                None => return,
            },
        };
        let (sid, name) = (&peer.sid, name.as_bytes());
        if learn
            .zone
            .sessions
            .learn(name, sid, create, now(), learn.timeout)
        {
            r.error(
                Level::Warn,
                format_args!(
                    "could not allocate node in sticky session zone \"{}\", expiring least recently used session",
                    learn.name
                ),
            );
        }
    }
}

/// `sticky learn`.
#[derive(Clone)]
struct Learn {
    name: Arc<str>,
    create: Vec<VarId>,
    zone: Arc<Kept>,
    /// Milliseconds.
    timeout: u64,
    /// `header`: as soon as the head of the response has come.
    at_head: bool,
}

/// `sticky cookie`.
struct Cookie {
    name: Vec<u8>,
    expires: Option<Expires>,
    domain: Option<Template>,
    httponly: bool,
    secure: bool,
    samesite: Option<Template>,
    path: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Expires {
    Max,
    /// Seconds from now.
    After(u64),
}

impl Cookie {
    /// Adds the cookie to the response, in the place of one for an earlier try.
    fn set(&self, r: &mut Request, peer: &Peer) {
        let mut value = self.name.clone();
        value.push(b'=');
        let begin = value.len();
        value.extend_from_slice(peer.sid.as_bytes());
        match self.expires {
            Some(Expires::Max) => {
                value.extend_from_slice(b"; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000")
            }
            Some(Expires::After(seconds)) => {
                value.extend_from_slice(b"; expires=");
                let age = i64::try_from(seconds).unwrap_or(i64::MAX);
                date::cookie_date(date::time().0.saturating_add(age), &mut value);
                value.extend_from_slice(b"; max-age=");
                value.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
            }
            None => {}
        }
        attribute(r, self.domain.as_ref(), b"; domain=", &mut value);
        if self.httponly {
            value.extend_from_slice(b"; httponly");
        }
        if self.secure {
            value.extend_from_slice(b"; secure");
        }
        if let Some(samesite) = &self.samesite {
            let text = samesite.eval(r);
            if !text.is_empty() {
                value.extend_from_slice(b"; samesite=");
                value.extend_from_slice(if is_samesite(&text) { &text } else { b"strict" });
            }
        }
        value.extend_from_slice(&self.path);
        let own = value.get(..begin).unwrap_or_default();
        r.out
            .headers
            .retain(|known, _, old| known != Known::SetCookie || !old.starts_with(own));
        r.out.headers.append(b"Set-Cookie", &value);
    }
}

fn attribute(r: &mut Request, template: Option<&Template>, name: &[u8], out: &mut Vec<u8>) {
    if let Some(template) = template {
        let begin = out.len();
        out.extend_from_slice(name);
        let name_end = out.len();
        if !template.put_value(r, "sticky", out) || out.len() == name_end {
            out.truncate(begin);
        }
    }
}

fn is_samesite(text: &[u8]) -> bool {
    [&b"strict"[..], b"lax", b"none"]
        .iter()
        .any(|known| text.eq_ignore_ascii_case(known))
}

/// The first variable with a value.
fn first<'r>(r: &'r Request, vars: &[VarId]) -> Option<Val<'r>> {
    vars.iter()
        .map(|id| r.var(*id))
        .find(|value| !value.as_bytes().is_empty())
}

/// Milliseconds since the epoch.
fn now() -> u64 {
    let (seconds, ms) = date::time();
    u64::try_from(seconds).unwrap_or(0) * 1000 + u64::from(ms)
}

/// `sticky`.
pub(super) fn sticky(c: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.sticky.is_some() {
        return Err(s.duplicate());
    }
    c.sticky = Some(match s.arg(0) {
        b"cookie" => cookie(s, b)?,
        b"route" => {
            let vars = (1..s.len()).map(|i| match s.arg(i).strip_prefix(b"$") {
                Some(name) => Ok(b.var(s, &String::from_utf8_lossy(name))),
                None => Err(s.error_at(i, format!("invalid variable name \"{}\"", shown(s, i)))),
            });
            Sticky {
                lookup: vars.collect::<ConfResult<_>>()?,
                kind: Kind::Route,
            }
        }
        b"learn" => learn(s, b)?,
        _ => return Err(unknown(s, 0)),
    });
    Ok(())
}

fn cookie(s: &Statement, b: &mut Build) -> ConfResult<Sticky> {
    let name = s.arg(1).to_vec();
    if name.is_empty() {
        return Err(wrong(s, "empty cookie name"));
    }
    let (mut expires, mut domain, mut samesite, mut path) = (None, None, None, None);
    let (mut httponly, mut secure) = (None, None);
    let duplicate = |name: &str| wrong(s, &format!("parameter \"{name}\" is duplicate"));
    for i in 2..s.len() {
        let word = s.arg(i);
        if let Some(text) = word.strip_prefix(b"domain=") {
            if text.is_empty() {
                return Err(wrong(s, "no value for \"domain\""));
            }
            let text = b.template_of(s, text)?;
            once_in(&mut domain, text).ok_or_else(|| duplicate("domain"))?;
        } else if let Some(text) = word.strip_prefix(b"path=") {
            if text.is_empty() {
                return Err(wrong(s, "no value for \"path\""));
            }
            let text = [b"; path=", text].concat();
            once_in(&mut path, text).ok_or_else(|| duplicate("path"))?;
        } else if let Some(text) = word.strip_prefix(b"expires=") {
            let value = match (text, parse_time_sec(text)) {
                (b"max", _) => Expires::Max,
                (_, Some(seconds)) => Expires::After(seconds),
                _ => return Err(wrong(s, "invalid \"expires\" parameter value")),
            };
            once_in(&mut expires, value).ok_or_else(|| duplicate("expires"))?;
        } else if word == b"httponly" {
            once_in(&mut httponly, ()).ok_or_else(|| duplicate("httponly"))?;
        } else if word == b"secure" {
            once_in(&mut secure, ()).ok_or_else(|| duplicate("secure"))?;
        } else if let Some(text) = word.strip_prefix(b"samesite=") {
            let text = b.template_of(s, text)?;
            if text.as_literal().is_some_and(|text| !is_samesite(text)) {
                return Err(wrong(s, "invalid \"samesite\" parameter value"));
            }
            once_in(&mut samesite, text).ok_or_else(|| duplicate("samesite"))?;
        } else {
            return Err(unknown(s, i));
        }
    }
    let variable = format!("cookie_{}", String::from_utf8_lossy(&name));
    Ok(Sticky {
        lookup: vec![b.var(s, &variable)],
        kind: Kind::Cookie(Arc::new(Cookie {
            name,
            expires,
            domain,
            httponly: httponly.is_some(),
            secure: secure.is_some(),
            samesite,
            path: path.unwrap_or_default(),
        })),
    })
}

fn learn(s: &Statement, b: &mut Build) -> ConfResult<Sticky> {
    let (mut create, mut lookup) = (Vec::new(), Vec::new());
    let (mut zone, mut timeout, mut at_head) = (None, None, false);
    for i in 1..s.len() {
        let word = s.str(i)?;
        let mut variable = |name: &str, text: &str| match text.strip_prefix('$') {
            Some(name) => Ok(b.var(s, name)),
            None => Err(wrong(
                s,
                &format!("missing variable in the \"{name}\" parameter"),
            )),
        };
        match word.split_once('=') {
            Some(("zone", text)) => {
                if zone.is_some() {
                    return Err(wrong(s, "duplicate zone"));
                }
                let Some((name, size)) = text.split_once(':') else {
                    return Err(wrong(s, "zone size is not specified"));
                };
                if name.is_empty() {
                    return Err(wrong(s, "zone name is not specified"));
                }
                let Some(size) = parse_size(size.as_bytes()) else {
                    return Err(wrong(s, "invalid zone size"));
                };
                if size < 8 * 4096 {
                    return Err(wrong(s, "zone is too small"));
                }
                zone = Some((name, size));
            }
            Some(("timeout", text)) => {
                if timeout.is_some() {
                    return Err(wrong(s, "duplicate timeout"));
                }
                let ms = parse_time_ms(text.as_bytes()).filter(|ms| *ms != 0);
                timeout = Some(ms.ok_or_else(|| wrong(s, "invalid timeout"))?);
            }
            Some(("create", text)) => create.push(variable("create", text)?),
            Some(("lookup", text)) => lookup.push(variable("lookup", text)?),
            None if word == "header" => at_head = true,
            _ => return Err(unknown(s, i)),
        }
    }
    let missing = |name: &str| wrong(s, &format!("\"{name}\" parameter is not specified"));
    if lookup.is_empty() {
        return Err(missing("lookup"));
    }
    if create.is_empty() {
        return Err(missing("create"));
    }
    let (name, size) = zone.ok_or_else(|| missing("zone"))?;
    Ok(Sticky {
        lookup,
        kind: Kind::Learn(Learn {
            name: name.into(),
            create,
            zone: sessions(s, b, name, size)?,
            timeout: timeout.unwrap_or(600_000),
            at_head,
        }),
    })
}

/// A zone of sessions in one configuration, and the upstream that it belongs to.
struct Zone {
    upstream: String,
}

/// The same over a reload.
struct Kept {
    zone: String,
    upstream: String,
    size: u64,
    sessions: Sessions,
}

impl handover::Handover for Kept {
    fn format(&self) -> (&'static str, u64) {
        ("sticky sessions", 1)
    }

    fn name(&self) -> String {
        // a zone that another upstream has is another one
        format!("{}:{}", self.zone, self.upstream)
    }

    fn save(&self, room: usize) -> Vec<u8> {
        self.sessions.save(room)
    }

    fn restore(&self, bytes: &[u8]) -> Option<()> {
        self.sessions.restore(bytes)
    }
}

/// What nginx's allocator takes for one session.
const SESSION: u64 = 256;

fn sessions(s: &Statement, b: &mut Build, name: &str, size: u64) -> ConfResult<Arc<Kept>> {
    let upstream = match b.kind() {
        BlockKind::Upstream(name) => name.clone(),
        _ => String::new(),
    };
    let zone = zones::declare::<Zone>(b, s, "sticky", name, size)?;
    if let Some(other) = zone.get() {
        return Err(s.error(format!(
            "sticky zone \"{name}\" is already used in upstream \"{}\"",
            other.upstream
        )));
    }
    let _ = zone.set(Arc::new(Zone {
        upstream: upstream.clone(),
    }));
    let fits = |kept: &Kept| kept.upstream == upstream && kept.size == size;
    let mut made = false;
    let kept = zones::keep("sticky", name, fits, || {
        made = true;
        Kept {
            zone: name.to_owned(),
            upstream: upstream.clone(),
            size,
            sessions: Sessions::new(
                usize::try_from(zones::usable(size) / SESSION).unwrap_or(usize::MAX),
            ),
        }
    });
    if made {
        let weak: std::sync::Weak<Kept> = Arc::downgrade(&kept);
        handover::register(weak);
    }
    Ok(kept)
}

/// `None` if there is a value already.
fn once_in<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    if slot.is_some() {
        return None;
    }
    *slot = Some(value);
    Some(())
}

fn wrong(s: &Statement, problem: &str) -> Box<Diag> {
    s.error(format!("\"sticky\" directive {problem}"))
}

fn unknown(s: &Statement, i: usize) -> Box<Diag> {
    s.error_at(i, format!("unknown parameter \"{}\"", shown(s, i)))
}

fn shown(s: &Statement, i: usize) -> String {
    String::from_utf8_lossy(s.arg(i)).into_owned()
}
