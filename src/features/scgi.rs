//! `scgi_pass`: SCGI applications.

use crate::contract::*;
use crate::features::pass::params::{self, Pairs, Params};
use crate::features::pass::{self as shared, Origin, PassWritten};
use crate::inherit;
use crate::log::Level as LogLevel;
use std::sync::Arc;

/// SCGI applications.
pub struct Scgi;

/// What the `scgi_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct ScgiConf {
    /// `scgi_pass`; inner locations do not inherit it.
    to: Option<Arc<Origin>>,
    /// What it shares with the other protocols.
    pass: PassWritten,
    params: params::Written,
}

impl Conf for ScgiConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; params);
        self.pass.inherit(&outer.pass);
    }
}

impl Module for Scgi {
    const NAME: &'static str = "http_scgi";
    type Conf = ScgiConf;
    const DIRECTIVES: &'static [Directive<ScgiConf>] = shared::join_directives!(
        ScgiConf;
        OWN,
        shared::connect_directives!(
            "scgi",
            ScgiConf,
            shared::NEXT_CGI,
            "error|timeout|invalid_header|http_500|…|non_idempotent|off"
        ),
        shared::response_directives!("scgi", ScgiConf, shared::IGNORE, "Status and "),
        shared::buffer_directives!("scgi", ScgiConf),
        shared::socket_directives!("scgi", ScgiConf),
        shared::cache_directives!("scgi", ScgiConf, " Without it nothing is cached."),
    );

    fn attach(conf: &Arc<ScgiConf>, on: &mut Hooks) -> ConfResult<()> {
        let buffers = conf.pass.buffers("scgi")?;
        if let Some(to) = &conf.to {
            let headers = conf.pass.pass_request_headers.unwrap_or(true);
            let settings =
                conf.pass
                    .conf_with_key("scgi", buffers, shared::HIDDEN_CGI, &to.temp_path, on);
            let application = Application {
                params: Params::new(&conf.params, &to.host, headers),
            };
            on.upstream(Arc::new(Pass::new(
                Box::new(application),
                to.target(),
                settings,
            )));
            if to.slash {
                on.redirect_to_slash();
            }
        }
        Ok(())
    }
}

/// The directives that only this module has.
const OWN: &[Directive<ScgiConf>] = &[
    Directive::content(Directive::new(
        "scgi_pass",
        Place::LOCATION.or(Place::LOCATION_IF),
        Args::Exactly(1),
        "`scgi_pass address;` Passes requests to an SCGI application: an address with a port, `unix:/path`, or the name of an `upstream`.",
        |c, s, b| {
            if c.to.is_some() {
                return Err(s.duplicate());
            }
            c.to = Some(Arc::new(Origin::read(s, b, "scgi", &[])?));
            shared::shield::<Scgi>(b);
            Ok(())
        },
    )),
    Directive::new(
        "scgi_param",
        Place::ANY_HTTP,
        Args::Between(2, 3),
        "`scgi_param name value [if_not_empty];` A parameter of the request, after CONTENT_LENGTH. Default: HTTP_HOST $host$is_request_port$request_port if_not_empty. Headers become `HTTP_…`, but for `Proxy` and those that a parameter sets.",
        |c, s, b| params::read(&mut c.params, s, b),
    ),
];

/// SCGI towards an application.
struct Application {
    params: Params,
}

impl Protocol for Application {
    fn scheme(&self) -> &'static str {
        "scgi"
    }

    fn shown(&self, r: &Request, _written: &[u8]) -> Vec<u8> {
        self.params.shown(r)
    }

    fn codec(&self) -> Codec {
        Codec::Cgi
    }

    fn request(
        &self,
        r: &mut Request,
        _to: &Destination<'_>,
        body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        let begin = out.len();
        let length = match body {
            BodyLength::Known(n) => n,
            _ => 0,
        };
        let mut pairs = Netstring { nul: false };
        pairs.pair(
            b"CONTENT_LENGTH",
            |out| out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes()),
            out,
        );
        self.params.write(r, &mut pairs, out);
        if pairs.nul {
            r.error(
                LogLevel::Error,
                format_args!("a parameter of the scgi request holds a zero byte"),
            );
            return Err(400);
        }
        let mut number = itoa::Buffer::new();
        let number = number.format(out.len().saturating_sub(begin)).as_bytes();
        out.splice(begin..begin, number.iter().copied().chain([b':']));
        out.push(b',');
        Ok(())
    }
}

/// Names and values end with zero bytes: neither may hold one.
struct Netstring {
    nul: bool,
}

impl Pairs for Netstring {
    fn pair(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        out.extend_from_slice(name);
        out.push(0);
        let begin = out.len();
        value(out);
        let value = out.get(begin..).unwrap_or_default();
        self.nul |= memchr::memchr(0, value).is_some() || memchr::memchr(0, name).is_some();
        out.push(0);
    }
}
