//! Directives of a virtual server: its names and the limits that hold before its location is known.

use super::listen::{self, ListenSpec};
use super::once;
use crate::config::Result;
use crate::contract::{
    Args, BlockId, Build, Conf, Directive, Hooks, Module, Pattern, Place, Statement,
};
use crate::inherit;
use std::sync::Arc;

/// Virtual servers.
pub struct HttpServer;

/// What a server says; see [`crate::contract::ServerConf`].
#[derive(Default, Clone)]
#[allow(missing_docs)]
pub struct ServerDirectives {
    pub listens: Vec<ListenSpec>,
    pub names: Vec<ServerName>,
    pub client_header_buffer_size: Option<u64>,
    pub large_client_header_buffers: Option<(u64, u64)>,
    pub client_header_timeout: Option<u64>,
    pub ignore_invalid_headers: Option<bool>,
    pub underscores_in_headers: Option<bool>,
    pub strict: Option<bool>,
    pub merge_slashes: Option<bool>,
    pub max_headers: Option<u64>,
    /// Something in this server serves CONNECT.
    pub allow_connect: bool,
}

/// One parameter of `server_name`.
#[derive(Clone)]
pub enum ServerName {
    /// `example.com`; may be empty.
    Exact(Box<[u8]>),
    /// `*.example.com`: `.example.com`.
    Leading(Box<[u8]>),
    /// `.example.com`: stands for the name itself and everything below it.
    Both(Box<[u8]>),
    /// `example.*`: `example.`.
    Trailing(Box<[u8]>),
    /// A name that nginx takes for an only server, and that no request has: `a.*.b`; with where it stands.
    Odd(Box<[u8]>, Arc<Statement>),
    /// `~pattern`.
    Pattern(Arc<Pattern>),
}

impl Conf for ServerDirectives {
    fn inherit(&mut self, o: &Self) {
        inherit!(self, o; client_header_buffer_size, large_client_header_buffers, client_header_timeout,
            ignore_invalid_headers, underscores_in_headers, strict, merge_slashes, max_headers);
    }
}

/// The servers, in order.
#[derive(Default)]
pub struct Servers(pub Vec<BlockId>);

pub(super) fn register(id: BlockId, _s: &Statement, b: &mut Build) -> Result<()> {
    b.shared::<Servers>().0.push(id);
    Ok(())
}

const HTTP_SERVER: Place = Place::HTTP.or(Place::SERVER);

impl Module for HttpServer {
    const NAME: &'static str = "http_server";
    type Conf = ServerDirectives;
    const DIRECTIVES: &'static [Directive<ServerDirectives>] = &[
        Directive::new(
            "listen",
            Place::SERVER,
            Args::AtLeast(1),
            "`listen address[:port] [default_server] [ssl] [http2] [proxy_protocol] [backlog=n] [rcvbuf=size] [sndbuf=size] [deferred] [reuseport] [ipv6only=on|off] [so_keepalive=…];` Default: *:80, or *:8000 without rights.",
            |c, s, b| listen::listen(&mut c.listens, s, b),
        ),
        Directive::new(
            "server_name",
            Place::SERVER,
            Args::AtLeast(1),
            "`server_name name …;` Exact names, `*.name`, `name.*`, `~regex`. Default: \"\".",
            server_name,
        ),
        Directive::new(
            "client_header_buffer_size",
            HTTP_SERVER,
            Args::Exactly(1),
            "`client_header_buffer_size size;` Default: 1k.",
            |c, s, _| once(&mut c.client_header_buffer_size, s, s.size(0)?),
        ),
        Directive::new(
            "large_client_header_buffers",
            HTTP_SERVER,
            Args::Exactly(2),
            "`large_client_header_buffers number size;` A line of the head fits in one buffer. Default: 4 8k.",
            |c, s, _| {
                if c.large_client_header_buffers.is_some() {
                    return Err(s.duplicate());
                }
                match (s.number(0), s.size(1)) {
                    (Ok(n), Ok(size)) if n > 0 && size > 0 => {
                        once(&mut c.large_client_header_buffers, s, (n, size))
                    }
                    _ => Err(s.directive_error(0, "invalid value")),
                }
            },
        ),
        Directive::new(
            "client_header_timeout",
            HTTP_SERVER,
            Args::Exactly(1),
            "`client_header_timeout time;` For the whole head. Default: 60s.",
            |c, s, _| once(&mut c.client_header_timeout, s, s.msec(0)?),
        ),
        Directive::new(
            "ignore_invalid_headers",
            HTTP_SERVER,
            Args::Flag,
            "`ignore_invalid_headers on|off;` Default: on.",
            |c, s, _| once(&mut c.ignore_invalid_headers, s, s.flag(0)?),
        ),
        Directive::new(
            "underscores_in_headers",
            HTTP_SERVER,
            Args::Flag,
            "`underscores_in_headers on|off;` Default: off.",
            |c, s, _| once(&mut c.underscores_in_headers, s, s.flag(0)?),
        ),
        Directive::own(
            "request_parsing",
            HTTP_SERVER,
            Args::Exactly(1),
            "`request_parsing nginx|strict;` How requests are read. `nginx`: as leniently as nginx does; control characters in header values become spaces. `strict`: whatever RFC 9110, 9112 and 9113 do not allow, or HTTP implementations are known to read differently, is answered with 400 (417 for an unknown `Expect`, 505 for an unknown version): lines that end without CR, headers without colon or with names that are no tokens, control characters, targets with fragments, backslashes or 8-bit bytes, blanks and odd extensions in chunked bodies, a `Host` that differs from the target's, and so on. As requests are read before their server is known, what the default server of the address says is in force, as with `underscores_in_headers`. Default: nginx.",
            |c, s, _| {
                let modes = [("nginx", false), ("strict", true)];
                once(&mut c.strict, s, s.one_of(0, &modes)?)
            },
        ),
        Directive::new(
            "merge_slashes",
            HTTP_SERVER,
            Args::Flag,
            "`merge_slashes on|off;` Default: on.",
            |c, s, _| once(&mut c.merge_slashes, s, s.flag(0)?),
        ),
        Directive::new(
            "max_headers",
            HTTP_SERVER,
            Args::Exactly(1),
            "`max_headers number;` Default: 1000.",
            |c, s, _| once(&mut c.max_headers, s, s.number(0)?),
        ),
    ];

    fn attach(_conf: &Arc<ServerDirectives>, _on: &mut Hooks) -> Result<()> {
        Ok(())
    }
}

fn server_name(c: &mut ServerDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    for i in 0..s.len() {
        let text = s.arg(i);
        let shown = String::from_utf8_lossy(text).into_owned();
        if text.first() == Some(&b'~') {
            let pattern = text[1..].to_vec();
            if pattern.is_empty() {
                return Err(s.error_at(i, format!("empty regex in server name \"{shown}\"")));
            }
            // nginx matches the lower-cased name; a pattern with capitals is made caseless
            let caseless = pattern.iter().any(u8::is_ascii_uppercase);
            let p = b.pattern(s, &pattern, caseless)?;
            c.names.push(ServerName::Pattern(p));
            continue;
        }
        if matches!(text, [b'*'] | [b'*', _] | [b'.'])
            || (text.first() == Some(&b'*') && text.get(1) != Some(&b'.'))
        {
            return Err(s.error_at(i, format!("server name \"{shown}\" is invalid")));
        }
        if text.contains(&b'/') {
            b.warn(s.warn_at(i, format!("server name \"{shown}\" has suspicious symbols")));
        }
        let text = if text.eq_ignore_ascii_case(b"$hostname") {
            hostname()
        } else {
            text.to_ascii_lowercase()
        };
        let odd = text.iter().filter(|c| **c == b'*').count() > 1
            || text.contains(&0)
            || text.windows(2).any(|w| w == b"..");
        let name = match &*text {
            _ if odd => ServerName::Odd(text.clone().into(), Arc::new(s.clone())),
            [b'*', b'.', rest @ ..] if !rest.is_empty() && !rest.contains(&b'*') => {
                ServerName::Leading(text[1..].into())
            }
            [b'.', rest @ ..] if !rest.is_empty() && !rest.contains(&b'*') => {
                ServerName::Both(text.clone().into())
            }
            [head @ .., b'.', b'*']
                if !head.is_empty() && !head.contains(&b'*') && !head.starts_with(b".") =>
            {
                ServerName::Trailing(text[..text.len() - 1].into())
            }
            t if t.contains(&b'*') => ServerName::Odd(t.into(), Arc::new(s.clone())),
            t => ServerName::Exact(t.into()),
        };
        c.names.push(name);
    }
    Ok(())
}

/// The machine's name, in lower case (`$hostname`).
pub fn hostname() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/hostname")
        .map(|h| h.trim_ascii().to_ascii_lowercase())
        .unwrap_or_default()
}
