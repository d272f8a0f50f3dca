//! `add_header`, `add_trailer`, their inheritance, and `expires`.

use crate::config::{Result, Statement, value};
use crate::contract::once;
use crate::contract::*;
use crate::http::date;
use std::io::Write;
use std::sync::Arc;

/// Headers and trailers added to responses.
pub struct HeadersModule;

/// What a block adds.
#[derive(Default, Clone)]
pub struct HeadersConf {
    expires: Option<Expires>,
    headers: Option<Vec<Added>>,
    trailers: Option<Vec<Added>>,
    headers_inherit: Option<Inherit>,
    trailers_inherit: Option<Inherit>,
}

/// `add_header_inherit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inherit {
    Off,
    On,
    Merge,
}

/// One `add_header` or `add_trailer`.
#[derive(Clone)]
struct Added {
    name: Box<[u8]>,
    value: Template,
    always: bool,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Another line.
    Append,
    /// `Last-Modified` and `ETag`: the only one; an empty value removes it.
    Replace,
}

/// `expires`.
#[derive(Clone)]
enum Expires {
    Fixed(When),
    /// Evaluated for each response; the flag is `modified`.
    Variable(Template, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Off,
    Epoch,
    Max,
    /// Seconds from now.
    Access(i64),
    /// Seconds from the last modification.
    Modified(i64),
    /// A time of the local day, in seconds.
    Daily(i64),
}

impl Conf for HeadersConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; expires, headers_inherit, trailers_inherit);
        merge(&mut self.headers, &outer.headers, self.headers_inherit);
        merge(&mut self.trailers, &outer.trailers, self.trailers_inherit);
    }
}

fn merge(inner: &mut Option<Vec<Added>>, outer: &Option<Vec<Added>>, how: Option<Inherit>) {
    let Some(outer) = outer.as_ref().filter(|_| how != Some(Inherit::Off)) else {
        return;
    };
    match inner {
        None => *inner = Some(outer.clone()),
        Some(list) if how == Some(Inherit::Merge) => list.extend_from_slice(outer),
        Some(_) => {}
    }
}

const INHERIT: [(&str, Inherit); 3] = [
    ("off", Inherit::Off),
    ("on", Inherit::On),
    ("merge", Inherit::Merge),
];

impl Module for HeadersModule {
    const NAME: &'static str = "http_headers_filter";
    type Conf = HeadersConf;
    const DIRECTIVES: &'static [Directive<HeadersConf>] = &[
        Directive::new(
            "expires",
            Place::ANY_HTTP_IF,
            Args::Between(1, 2),
            "`expires [modified] time;` or `expires epoch|max|off;` Sets Expires and Cache-Control; a time may be negative or, as `@time`, of the day. Default: off.",
            expires,
        ),
        Directive::new(
            "add_header",
            Place::ANY_HTTP_IF,
            Args::Between(2, 3),
            "`add_header name value [always];` Adds a header to responses with status 200, 201, 204, 206, 301, 302, 303, 304, 307 or 308, or to all.",
            |c, s, b| {
                let added = added(s, b, true)?;
                c.headers.get_or_insert_default().push(added);
                Ok(())
            },
        ),
        Directive::new(
            "add_trailer",
            Place::ANY_HTTP_IF,
            Args::Between(2, 3),
            "`add_trailer name value [always];` Adds a field behind the body, by the same rules as `add_header`.",
            |c, s, b| {
                let added = added(s, b, false)?;
                c.trailers.get_or_insert_default().push(added);
                Ok(())
            },
        ),
        Directive::new(
            "add_header_inherit",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`add_header_inherit on|off|merge;` Whether headers of the enclosing block are added where none are given (on), never (off), or always (merge). Default: on.",
            |c, s, _| once(&mut c.headers_inherit, s, s.one_of(0, &INHERIT)?),
        ),
        Directive::new(
            "add_trailer_inherit",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`add_trailer_inherit on|off|merge;` The same for trailers. Default: on.",
            |c, s, _| once(&mut c.trailers_inherit, s, s.one_of(0, &INHERIT)?),
        ),
    ];

    /// `off` holds in inner blocks too, which therefore must not simply share the outer settings.
    fn configured(b: &mut Build) -> Result<()> {
        let blocks: Vec<BlockId> = b
            .blocks_of(Place::ANY_HTTP_IF.or(Place::LIMIT_EXCEPT))
            .collect();
        let off = |c: &HeadersConf| {
            c.headers_inherit == Some(Inherit::Off) || c.trailers_inherit == Some(Inherit::Off)
        };
        if blocks
            .iter()
            .any(|id| b.written::<HeadersModule>(*id).is_some_and(off))
        {
            for id in blocks {
                b.conf_of::<HeadersModule>(id);
            }
        }
        Ok(())
    }

    fn attach(conf: &Arc<HeadersConf>, on: &mut Hooks) -> Result<()> {
        let expires = conf
            .expires
            .as_ref()
            .is_some_and(|e| !matches!(e, Expires::Fixed(When::Off)));
        if expires || conf.headers.is_some() || conf.trailers.is_some() {
            on.response(Filter(conf.clone()));
        }
        Ok(())
    }
}

struct Filter(Arc<HeadersConf>);

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        if r.subrequest {
            return None;
        }
        let safe = matches!(
            r.out.status,
            200 | 201 | 204 | 206 | 301 | 302 | 303 | 304 | 307 | 308
        );
        if safe && let Some(e) = &self.0.expires {
            set_expires(r, e);
        }
        for h in self.0.headers.iter().flatten().filter(|h| safe || h.always) {
            let mut value = r.scratch();
            if !h.value.put_value(r, "add_header", &mut value) {
                r.put_scratch(value);
                continue;
            }
            match h.how {
                How::Replace => r.out.set(&h.name, &value),
                How::Append if value.is_empty() => {}
                // what has a field of its own is not replaced: nginx adds a second line
                How::Append => r.out.headers.append(&h.name, &value),
            }
            r.put_scratch(value);
        }
        if !self.0.trailers.iter().flatten().any(|t| safe || t.always) {
            return None;
        }
        r.out.expect_trailers = true;
        Some(Box::new(Trailers {
            conf: self.0.clone(),
            safe,
        }))
    }
}

/// Evaluates the trailers when the body has passed.
struct Trailers {
    conf: Arc<HeadersConf>,
    safe: bool,
}

impl BodyFilter for Trailers {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        out.extend_from_slice(data);
        if last {
            for t in self
                .conf
                .trailers
                .iter()
                .flatten()
                .filter(|t| self.safe || t.always)
            {
                let mut value = Vec::new();
                // the head has been sent: what cannot be written is left out
                if t.value.write_value(r, "add_trailer", &mut value).is_ok() && !value.is_empty() {
                    r.out.trailers.append(&t.name, &value);
                }
            }
        }
        Ok(())
    }
}

fn set_expires(r: &mut Request, expires: &Expires) {
    let (when, constant) = match expires {
        Expires::Fixed(w) => (*w, true),
        Expires::Variable(t, modified) => match parse(&t.eval(r), *modified) {
            Ok(w) => (w, false),
            Err(_) => return,
        },
    };
    let now = date::now();
    let (at, max_age) = match when {
        When::Off => return,
        When::Epoch => return put(r, b"Thu, 01 Jan 1970 00:00:01 GMT", b"no-cache"),
        When::Max => return put(r, b"Thu, 31 Dec 2037 23:55:55 GMT", b"max-age=315360000"),
        When::Access(0) | When::Modified(0) => return put(r, &now.http_date, b"max-age=0"),
        When::Daily(t) => {
            let at = next_time(now.sec, t);
            (at, at - now.sec)
        }
        When::Access(t) => (now.sec.saturating_add(t), t),
        When::Modified(t) => match r
            .out
            .last_modified
            .or_else(|| date::parse(&r.out.last_modified_text))
        {
            None => (now.sec.saturating_add(t), t),
            Some(m) => (
                m.saturating_add(t),
                m.saturating_add(t).saturating_sub(now.sec),
            ),
        },
    };
    let negative = constant && matches!(when, When::Access(t) | When::Modified(t) if t < 0);
    let text = date::format(at);
    if negative || max_age < 0 {
        return put(r, &text, b"no-cache");
    }
    let mut control = Small::default();
    let _ = write!(control, "max-age={max_age}");
    put(r, &text, control.as_bytes());
}

fn put(r: &mut Request, expires: &[u8], cache_control: &[u8]) {
    r.out.headers.set(b"Expires", expires);
    r.out.headers.set(b"Cache-Control", cache_control);
}

/// When the local time of the day will be `seconds` next.
fn next_time(now: i64, seconds: i64) -> i64 {
    let on_day = |day: i64| {
        let local = day * 86_400 + seconds;
        // the zone's offset at the time sought may differ from the present one
        let guess = local - i64::from(date::local_offset(local));
        local - i64::from(date::local_offset(guess))
    };
    let today = (now + i64::from(date::local_offset(now))).div_euclid(86_400);
    match on_day(today) {
        t if t > now => t,
        _ => on_day(today + 1),
    }
}

fn parse(text: &[u8], modified: bool) -> std::result::Result<When, &'static str> {
    if !modified {
        match text {
            b"epoch" => return Ok(When::Epoch),
            b"max" => return Ok(When::Max),
            b"off" => return Ok(When::Off),
            _ => {}
        }
    }
    let time = |t| {
        value::parse_time_sec(t)
            .and_then(|n| i64::try_from(n).ok())
            .ok_or("invalid value")
    };
    let relative = |t| {
        if modified {
            When::Modified(t)
        } else {
            When::Access(t)
        }
    };
    match text {
        [b'@', ..] if modified => Err("daily time cannot be used with \"modified\" parameter"),
        [b'@', rest @ ..] => match time(rest)? {
            t if t > 86_400 => Err("daily time value must be less than 24 hours"),
            t => Ok(When::Daily(t)),
        },
        [b'-', rest @ ..] => Ok(relative(-time(rest)?)),
        [b'+', rest @ ..] | rest => Ok(relative(time(rest)?)),
    }
}

fn expires(c: &mut HeadersConf, s: &Statement, b: &mut Build) -> Result<()> {
    let complain = |what: &str| s.error(format!("\"expires\" directive {what}"));
    if c.expires.is_some() {
        return Err(s.duplicate());
    }
    let modified = s.len() == 2;
    if modified && s.arg(0) != b"modified" {
        return Err(complain("invalid value"));
    }
    let template = b.template(s, s.len() - 1)?;
    let value = match template.as_literal() {
        Some(text) => Expires::Fixed(parse(text, modified).map_err(complain)?),
        None => Expires::Variable(template, modified),
    };
    once(&mut c.expires, s, value)
}

fn added(s: &Statement, b: &mut Build, header: bool) -> Result<Added> {
    check_header_name(s, 0)?;
    let name: Box<[u8]> = s.arg(0).into();
    let only = [&b"Last-Modified"[..], b"ETag"]
        .iter()
        .any(|n| n.eq_ignore_ascii_case(&name));
    let how = if header && only {
        How::Replace
    } else {
        How::Append
    };
    let value = b.head_template(s, 1)?;
    let always = match s.arg(2) {
        b"always" => true,
        _ if s.len() < 3 => false,
        _ => return Err(s.invalid_parameter(2)),
    };
    Ok(Added {
        name,
        value,
        always,
        how,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expires_is_read_as_nginx_reads_it() {
        assert_eq!(parse(b"epoch", false), Ok(When::Epoch));
        assert_eq!(parse(b"off", false), Ok(When::Off));
        assert_eq!(parse(b"max", true), Err("invalid value"));
        assert_eq!(parse(b"-1h", false), Ok(When::Access(-3600)));
        assert_eq!(parse(b"+30", true), Ok(When::Modified(30)));
        assert_eq!(parse(b"@15h30m", false), Ok(When::Daily(55_800)));
        assert_eq!(
            parse(b"@25h", false),
            Err("daily time value must be less than 24 hours")
        );
        assert_eq!(
            parse(b"@1h", true),
            Err("daily time cannot be used with \"modified\" parameter")
        );
        assert_eq!(parse(b"1x", false), Err("invalid value"));
    }

    #[test]
    fn the_next_time_of_day_is_ahead_by_at_most_a_day() {
        for seconds in [0, 1, 43_200, 86_399, 86_400] {
            let now = 1_795_341_600;
            let next = next_time(now, seconds);
            // a day on which clocks change has 25 hours
            assert!(next > now && next <= now + 25 * 3600, "{seconds}: {next}");
            assert_eq!(
                (next + i64::from(date::local_offset(next))).rem_euclid(86_400),
                seconds % 86_400
            );
        }
    }

    #[test]
    fn inheritance_of_headers() {
        let list = |names: &[&str]| {
            Some(
                names
                    .iter()
                    .map(|n| Added {
                        name: n.as_bytes().into(),
                        value: Template::default(),
                        always: false,
                        how: How::Append,
                    })
                    .collect::<Vec<_>>(),
            )
        };
        let names = |l: &Option<Vec<Added>>| {
            l.iter()
                .flatten()
                .map(|a| String::from_utf8_lossy(&a.name).into_owned())
                .collect::<Vec<_>>()
        };
        for (how, own, expected) in [
            (None, None, vec!["A"]),
            (None, list(&["B"]), vec!["B"]),
            (Some(Inherit::Merge), list(&["B"]), vec!["B", "A"]),
            (Some(Inherit::Off), None, vec![]),
        ] {
            let mut inner = own;
            merge(&mut inner, &list(&["A"]), how);
            assert_eq!(names(&inner), expected);
        }
    }
}
