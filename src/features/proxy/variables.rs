//! `$proxy_*` and `$upstream_*`.

use crate::contract::*;
use std::io::Write;

/// The variables of this module.
pub const VARIABLES: &[Variable] = &[
    Variable::new("proxy_host", |r, _| noted(r, &r.upstream.host)).changeable(),
    Variable::new("proxy_port", |r, _| noted(r, &r.upstream.port)).changeable(),
    Variable::new("proxy_add_x_forwarded_for", forwarded_for),
    Variable::new("proxy_internal_body_length", |r, _| match r.upstream.body {
        Some(BodyLength::Known(n)) => Val::number(n),
        _ => Val::None,
    }),
    Variable::new("proxy_internal_chunked", |r, _| match r.upstream.body {
        Some(BodyLength::Chunked) => Val::Bytes(b"chunked"),
        _ => Val::None,
    }),
    Variable::new("upstream_addr", |r, _| {
        list(r, |s| Val::Bytes(s.addr.as_bytes()))
    }),
    Variable::new("upstream_status", |r, _| {
        list(r, |s| {
            if s.status == 0 {
                Val::Bytes(b"-")
            } else {
                Val::number(s.status.into())
            }
        })
    }),
    Variable::new("upstream_connect_time", |r, _| {
        list(r, |s| time(s.connect_time))
    }),
    Variable::new("upstream_header_time", |r, _| {
        list(r, |s| time(s.header_time))
    }),
    Variable::new("upstream_response_time", |r, _| {
        list(r, |s| time(s.response_time))
    }),
    Variable::new("upstream_response_length", |r, _| {
        list(r, |s| Val::number(s.response_length))
    }),
    Variable::new("upstream_bytes_received", |r, _| {
        list(r, |s| Val::number(s.bytes_received))
    }),
    Variable::new("upstream_bytes_sent", |r, _| {
        list(r, |s| Val::number(s.bytes_sent))
    }),
    Variable::new("upstream_queue_time", |r, _| {
        list(r, |s| time(s.queue_time))
    }),
    // the last try's alone
    Variable::new("upstream_last_addr", |r, _| {
        Val::from_option(r.upstream.states.last().map(|s| s.addr.as_bytes()))
    }),
    Variable::new("upstream_last_server_name", |r, _| {
        let tried = r.upstream.states.last().filter(|s| !s.server.is_empty());
        Val::from_option(tried.map(|s| s.server.as_bytes()))
    }),
    Variable::new("upstream_failure", |r, _| match r.upstream.failure {
        "" => Val::None,
        reason => Val::Bytes(reason.as_bytes()),
    }),
    Variable::new("upstream_cache_status", |r, _| {
        r.upstream
            .cache_status
            .map_or(Val::None, |s| Val::Bytes(s.name().as_bytes()))
    }),
    Variable::new("upstream_cache_age", |r, _| {
        r.upstream
            .cache_age
            .map_or(Val::None, |n| Val::number(n.unsigned_abs()))
    }),
    Variable::new("upstream_cache_last_modified", |r, _| {
        match r.upstream.revalidating().map(|m| m.last_modified) {
            Some(at) if at >= 0 => Val::Small(Small::new(&crate::http::date::format(at))),
            _ => Val::None,
        }
    }),
    Variable::new("upstream_cache_etag", |r, _| {
        match r.upstream.revalidating() {
            Some(m) if !m.etag.is_empty() => Val::Bytes(&m.etag),
            _ => Val::None,
        }
    }),
    Variable::prefix("upstream_http_", |r, name| header(answer(r), name)),
    Variable::prefix("upstream_trailer_", |r, name| {
        header(Some(&r.upstream.trailers), name)
    }),
    Variable::prefix("upstream_cookie_", |r, name| {
        let set = answer(r).map(|h| h.get_all(b"Set-Cookie").find_map(|line| cookie(line, name)));
        Val::from_option(set.flatten())
    }),
];

/// A value that exists once a target is known.
fn noted<'r>(r: &'r Request, value: &'r [u8]) -> Val<'r> {
    if !r.upstream.host.is_empty() {
        Val::Bytes(value)
    } else {
        Val::None
    }
}

fn forwarded_for<'r>(r: &'r Request, _: &[u8]) -> Val<'r> {
    let address = r.remote.text.as_bytes();
    let mut list = Vec::new();
    for value in r.head.headers.get_all(b"X-Forwarded-For") {
        list.extend_from_slice(value);
        list.extend_from_slice(b", ");
    }
    if list.is_empty() {
        return Val::Bytes(address);
    }
    list.extend_from_slice(address);
    Val::Owned(list)
}

/// A value of each try: `, ` between tries, ` : ` where an internal redirect led to another group.
fn list<'r>(r: &'r Request, of: impl Fn(&'r UpstreamState) -> Val<'r>) -> Val<'r> {
    match r.upstream.states.as_slice() {
        [] => Val::None,
        [one] => of(one),
        [first, rest @ ..] => {
            let mut out = of(first).as_bytes().to_vec();
            for s in rest {
                out.extend_from_slice(if s.new_group { b" : " } else { b", " });
                out.extend_from_slice(of(s).as_bytes());
            }
            Val::Owned(out)
        }
    }
}

/// Seconds with milliseconds; `-` where it never came to that.
fn time(ms: Option<u64>) -> Val<'static> {
    let Some(ms) = ms else {
        return Val::Bytes(b"-");
    };
    let mut text = Small::default();
    let _ = write!(text, "{}.{:03}", ms / 1000, ms % 1000);
    Val::Small(text)
}

fn answer(r: &Request) -> Option<&crate::http::headers::Headers> {
    // of a head that was refused or broke off, too, as far as it came
    (!r.upstream.states.is_empty() || r.upstream.has_head).then_some(&r.upstream.head.headers)
}

/// A header by the spelling of a variable; several are joined.
fn header<'r>(headers: Option<&'r crate::http::headers::Headers>, name: &[u8]) -> Val<'r> {
    let Some(headers) = headers else {
        return Val::None;
    };
    let mut all = headers.all_by_variable(name);
    match (all.next(), all.next()) {
        (Some(_), Some(_)) => {
            let mut out = Vec::new();
            headers.joined_by_variable(name, b", ", &mut out);
            Val::Owned(out)
        }
        (one, _) => Val::from_option(one),
    }
}

/// The cookie's value in one `Set-Cookie`.
fn cookie<'r>(line: &'r [u8], name: &[u8]) -> Option<&'r [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    if !start.eq_ignore_ascii_case(name) {
        return None;
    }
    // tabs are part of the value, as in nginx
    let spaces = |mut text: &'r [u8]| {
        while let [b' ', rest @ ..] = text {
            text = rest;
        }
        text
    };
    spaces(spaces(rest).strip_prefix(b"=")?)
        .split(|b| *b == b';')
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_of_set_cookie() {
        assert_eq!(cookie(b"foo = bar; path=/", b"FOO"), Some(&b"bar"[..]));
        assert_eq!(cookie(b"foo=", b"foo"), Some(&b""[..]));
        assert_eq!(cookie(b"food=bar", b"foo"), None);
        assert_eq!(cookie(b"foo", b"foo"), None);
    }

    #[test]
    fn times() {
        assert_eq!(time(Some(1042)).as_bytes(), b"1.042");
        assert_eq!(time(None).as_bytes(), b"-");
    }
}
