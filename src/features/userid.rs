//! nginx's ngx_http_userid_module: a cookie that tells one client from another.

use crate::contract::*;
use crate::http::{cookie, date};
use crate::log::Level as LogLevel;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// `userid` and `userid_*`.
pub struct UserId;

/// What one block says of the cookie.
#[derive(Clone, Default)]
pub struct UserIdConf {
    mode: Option<Mode>,
    service: Option<u64>,
    name: Option<Box<str>>,
    domain: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    expires: Option<Expires>,
    flags: Option<Flags>,
    p3p: Option<Vec<u8>>,
    mark: Option<Option<u8>>,
    /// `$uid_set` and `$uid_reset`.
    vars: Option<(VarId, VarId)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Mode {
    Off,
    Log,
    V1,
    On,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expires {
    Off,
    Max,
    /// Seconds from now.
    After(i64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags {
    secure: bool,
    http_only: bool,
    strict: bool,
    lax: bool,
    none: bool,
}

impl Conf for UserIdConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; mode, service, name, domain, path, expires, flags, p3p, mark, vars);
    }
}

const ONE: Args = Args::Exactly(1);

impl Module for UserId {
    const NAME: &'static str = "http_userid_filter";
    type Conf = UserIdConf;
    const DIRECTIVES: &'static [Directive<UserIdConf>] = &[
        Directive::new(
            "userid",
            Place::ANY_HTTP,
            ONE,
            "`userid on|v1|log|off;` Gives clients a cookie (on, v1) or only reads theirs (log). Default: off.",
            |c, s, b| {
                let modes = [
                    ("off", Mode::Off),
                    ("log", Mode::Log),
                    ("v1", Mode::V1),
                    ("on", Mode::On),
                ];
                c.vars = Some((b.known_var("uid_set"), b.known_var("uid_reset")));
                once(&mut c.mode, s, s.one_of(0, &modes)?)
            },
        ),
        Directive::new(
            "userid_service",
            Place::ANY_HTTP,
            ONE,
            "`userid_service number|address;` What tells the servers that give cookies apart. Default: the server's address (for v1: 0).",
            |c, s, _| once(&mut c.service, s, s.number(0)?),
        ),
        Directive::new(
            "userid_name",
            Place::ANY_HTTP,
            ONE,
            "`userid_name name;` The cookie's name. Default: uid.",
            |c, s, _| once(&mut c.name, s, s.str(0)?.into()),
        ),
        Directive::new(
            "userid_domain",
            Place::ANY_HTTP,
            ONE,
            "`userid_domain name|none;` Default: none.",
            |c, s, _| once(&mut c.domain, s, unless_none(s)),
        ),
        Directive::new(
            "userid_path",
            Place::ANY_HTTP,
            ONE,
            "`userid_path path;` Default: /.",
            |c, s, _| once(&mut c.path, s, s.arg(0).to_vec()),
        ),
        Directive::new(
            "userid_expires",
            Place::ANY_HTTP,
            ONE,
            "`userid_expires time|max|off;` How long the client keeps the cookie; off ends it with the session. Default: off.",
            |c, s, _| {
                if c.expires.is_some() {
                    return Err(s.duplicate());
                }
                let expires = match s.arg(0) {
                    b"max" => Expires::Max,
                    b"off" => Expires::Off,
                    _ => Expires::After(i64::try_from(s.sec(0)?).unwrap_or(i64::MAX >> 1)),
                };
                once(&mut c.expires, s, expires)
            },
        ),
        Directive::new(
            "userid_flags",
            Place::ANY_HTTP,
            Args::Between(1, 3),
            "`userid_flags off|flag …;` secure, httponly, samesite=strict, samesite=lax, samesite=none. Default: off.",
            flags,
        ),
        Directive::new(
            "userid_p3p",
            Place::ANY_HTTP,
            ONE,
            "`userid_p3p string|none;` Sends a P3P header with the cookie. Default: none.",
            |c, s, _| once(&mut c.p3p, s, unless_none(s)),
        ),
        Directive::new(
            "userid_mark",
            Place::ANY_HTTP,
            ONE,
            "`userid_mark letter|digit|=|off;` Marks cookies; one without the mark is sent anew. Default: off.",
            |c, s, _| {
                let mark = match s.arg(0) {
                    b"off" => None,
                    [m] if m.is_ascii_alphanumeric() || *m == b'=' => Some(*m),
                    _ => {
                        return Err(s.error_at(
                            0,
                            "\"userid_mark\" directive value must be \"off\" or a single letter, digit or \"=\"",
                        ));
                    }
                };
                once(&mut c.mark, s, mark)
            },
        ),
    ];
    const VARIABLES: &'static [Variable] = &[
        Variable::new("uid_got", |r, _| {
            let Some(c) = r.kept::<UserIdConf>() else {
                return Val::None;
            };
            match c.got(r).uid {
                Some(uid) => uid.shown(c.name()),
                None => Val::None,
            }
        })
        .memo(),
        Variable::new("uid_set", |r, _| match r.kept::<UserIdConf>() {
            Some(c) if c.sets() => c.choose(r).map_or(Val::None, |uid| uid.shown(c.name())),
            _ => Val::None,
        })
        .memo(),
        Variable::new("uid_reset", |_, _| Val::EMPTY).changeable(),
    ];

    fn attach(conf: &Arc<UserIdConf>, on: &mut Hooks) -> ConfResult<()> {
        if conf.mode.is_none_or(|m| m == Mode::Off) {
            return Ok(());
        }
        on.keep(conf.clone());
        if conf.sets() {
            on.response(Filter(conf.clone()));
        }
        Ok(())
    }
}

impl UserIdConf {
    fn sets(&self) -> bool {
        self.mode.is_some_and(|m| m >= Mode::V1)
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("uid")
    }

    /// The cookie of the request.
    fn got<'r>(&self, r: &'r Request) -> Got<'r> {
        let lines = r.headers().get_all(b"cookie");
        let found = lines
            .map(|line| (line, cookie::find(line, self.name().as_bytes())))
            .find_map(|(line, value)| value.map(|v| (line, v)));
        let Some((line, text)) = found else {
            return Got::default();
        };
        let wrong = |what: &str| {
            let shown = String::from_utf8_lossy(line);
            r.error(
                LogLevel::Error,
                format_args!("client sent {what} userid cookie \"{shown}\""),
            );
            Got { text, uid: None }
        };
        // what follows may be a mark, or not what it should be
        let Some(encoded) = text.get(..ENCODED) else {
            return wrong("too short");
        };
        let encoded = encoded.split(|c| *c == b'=').next().unwrap_or_default();
        let mut bytes = [0; 17];
        match BASE64.decode_slice(encoded, &mut bytes) {
            Ok(_) => {
                let uid = Uid(std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0)));
                Got {
                    text,
                    uid: (uid.word(3) != 0).then_some(uid),
                }
            }
            Err(_) => wrong("invalid"),
        }
    }

    /// The identifier that the client is given, if it is given one.
    fn choose(&self, r: &Request) -> Option<Uid> {
        let got = self.got(r);
        if let Some(uid) = got.uid {
            if !self.resets(r) {
                let marked = self.mark().is_none_or(|m| got.is_marked(m));
                return (!marked).then_some(uid);
            }
            if self.reset(r).as_bytes() == b"log" {
                let mut text = String::new();
                uid.write(self.name(), &mut text);
                r.error(
                    LogLevel::Notice,
                    format_args!("userid cookie \"{text}\" was reset"),
                );
            }
        }
        Some(self.create(r))
    }

    fn reset<'r>(&self, r: &'r Request) -> Val<'r> {
        self.vars.map_or(Val::None, |(_, reset)| r.var(reset))
    }

    fn resets(&self, r: &Request) -> bool {
        self.reset(r).is_true()
    }

    fn mark(&self) -> Option<u8> {
        self.mark.flatten()
    }

    fn create(&self, r: &Request) -> Uid {
        // both sequences step by 256, as the last byte tells their kind
        static V1: AtomicU32 = AtomicU32::new(1);
        static V2: AtomicU32 = AtomicU32::new(FIRST_V2);
        let now = date::now().sec as u32;
        if self.mode == Some(Mode::V1) {
            let sequence = V1.fetch_add(0x100, Ordering::Relaxed);
            let service = self.service.unwrap_or(0) as u32;
            let words = [service, now, *START, sequence];
            return Uid::of(words.map(u32::to_ne_bytes));
        }
        let next = |n: u32| Some(n.wrapping_add(0x100).max(FIRST_V2));
        let sequence = V2.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let service = match (self.service, r.conn().local.addr.map(|a| a.ip())) {
            (Some(n), _) => (n as u32).to_be_bytes(),
            (None, Some(IpAddr::V4(ip))) => ip.octets(),
            (None, Some(IpAddr::V6(ip))) => {
                let [.., a, b, c, d] = ip.octets();
                [a, b, c, d]
            }
            (None, None) => [0; 4],
        };
        let sequence = sequence.unwrap_or(FIRST_V2);
        Uid::of([
            service,
            now.to_be_bytes(),
            START.to_be_bytes(),
            sequence.to_be_bytes(),
        ])
    }
}

/// The first number of the second version's sequence.
const FIRST_V2: u32 = 0x0303_0302;

/// What tells one start of the program from another.
static START: LazyLock<u32> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = now.map_or(0, |d| d.subsec_micros());
    (micros / 20) << 16 | (std::process::id() & 0xffff)
});

/// Characters that 16 bytes are encoded in.
const ENCODED: usize = 22;

/// Without padding, and not strict about the last bits: many such cookies are about.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The cookie that a client sent.
#[derive(Default)]
struct Got<'r> {
    text: &'r [u8],
    uid: Option<Uid>,
}

impl Got<'_> {
    fn is_marked(&self, mark: u8) -> bool {
        self.text.get(ENCODED..ENCODED + 2) == Some(&[mark, b'='])
    }
}

/// An identifier, as it stands in the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Uid([u8; 16]);

impl Uid {
    fn of(words: [[u8; 4]; 4]) -> Uid {
        let mut words = words.into_iter().flatten();
        Uid(std::array::from_fn(|_| words.next().unwrap_or(0)))
    }

    /// One of its four numbers, in the machine's order of bytes.
    fn word(&self, i: usize) -> u32 {
        let bytes = self.0.get(4 * i..4 * i + 4);
        let bytes = bytes.and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    fn write(&self, name: &str, out: &mut String) {
        let _ = write!(out, "{name}=");
        for i in 0..4 {
            let _ = write!(out, "{:08X}", self.word(i));
        }
    }

    fn shown(&self, name: &str) -> Val<'static> {
        let mut text = String::with_capacity(name.len() + 33);
        self.write(name, &mut text);
        Val::Owned(text.into_bytes())
    }

    /// From what [`Uid::write`] wrote.
    fn read(text: &[u8]) -> Option<Uid> {
        let digits = text.rsplit(|c| *c == b'=').next()?;
        let digits = std::str::from_utf8(digits).ok()?;
        let mut words = [[0; 4]; 4];
        for (i, word) in words.iter_mut().enumerate() {
            let hex = digits.get(8 * i..8 * i + 8)?;
            *word = u32::from_str_radix(hex, 16).ok()?.to_ne_bytes();
        }
        Some(Uid::of(words))
    }
}

struct Filter(Arc<UserIdConf>);

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        if r.subrequest {
            return None;
        }
        let c = &self.0;
        // the variable remembers what it gave out
        let uid = Uid::read(r.var(c.vars?.0).as_bytes())?;
        let mut out = Vec::with_capacity(96);
        out.extend_from_slice(c.name().as_bytes());
        out.push(b'=');
        let got = c.got(r);
        if got.uid.is_none() || c.resets(r) {
            let mut encoded = BASE64.encode(uid.0).into_bytes();
            if let (Some(mark), Some(at)) = (c.mark(), encoded.get_mut(ENCODED)) {
                *at = mark;
            }
            out.extend_from_slice(&encoded);
        } else {
            out.extend_from_slice(got.text.get(..ENCODED).unwrap_or_default());
            out.extend_from_slice(&[c.mark().unwrap_or(b'='), b'=']);
        }
        match c.expires.unwrap_or(Expires::Off) {
            Expires::Off => {}
            Expires::Max => out.extend_from_slice(b"; expires=Thu, 31-Dec-37 23:55:55 GMT"),
            Expires::After(seconds) => {
                out.extend_from_slice(b"; expires=");
                date::cookie_date(date::time().0.saturating_add(seconds), &mut out);
            }
        }
        if let Some(domain) = c.domain.as_ref().filter(|d| !d.is_empty()) {
            out.extend_from_slice(b"; domain=");
            out.extend_from_slice(domain);
        }
        out.extend_from_slice(b"; path=");
        out.extend_from_slice(c.path.as_deref().unwrap_or(b"/"));
        let flags = c.flags.unwrap_or_default();
        for (on, text) in [
            (flags.secure, "; secure"),
            (flags.http_only, "; httponly"),
            (flags.strict, "; samesite=strict"),
            (flags.lax, "; samesite=lax"),
            (flags.none, "; samesite=none"),
        ] {
            if on {
                out.extend_from_slice(text.as_bytes());
            }
        }
        r.out.headers.append(b"Set-Cookie", &out);
        if let Some(p3p) = c.p3p.as_ref().filter(|p| !p.is_empty()) {
            r.out.headers.append(b"P3P", p3p);
        }
        None
    }
}

fn unless_none(s: &Statement) -> Vec<u8> {
    match s.arg(0) {
        b"none" => Vec::new(),
        text => text.to_vec(),
    }
}

fn flags(c: &mut UserIdConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.flags.is_some() {
        return Err(s.duplicate());
    }
    let mut f = Flags::default();
    for i in 0..s.len() {
        let slot = match &*s.arg(i).to_ascii_lowercase() {
            b"off" => continue,
            b"secure" => &mut f.secure,
            b"httponly" => &mut f.http_only,
            b"samesite=strict" => &mut f.strict,
            b"samesite=lax" => &mut f.lax,
            b"samesite=none" => &mut f.none,
            _ => return Err(s.invalid_value(i)),
        };
        if std::mem::replace(slot, true) {
            let shown = String::from_utf8_lossy(s.arg(i)).into_owned();
            b.warn(s.warn_at(i, format!("duplicate value \"{shown}\"")));
        }
    }
    c.flags = Some(f);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_back() {
        let uid = Uid::of([[127, 0, 0, 1], [1, 2, 3, 4], [255; 4], [3, 3, 3, 2]]);
        let mut text = String::new();
        uid.write("a=b", &mut text);
        assert_eq!(Uid::read(text.as_bytes()), Some(uid));
        assert_eq!(text.len(), "a=b=".len() + 32);
        for broken in ["", "uid=", "uid=0", "uid=0000000000000000000000000000000g"] {
            assert_eq!(Uid::read(broken.as_bytes()), None, "{broken}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text: Vec<u8>) {
            Uid::read(&text);
        }
    }
}
