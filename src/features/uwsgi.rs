//! `uwsgi_pass`: applications behind uWSGI's own protocol.

use crate::contract::*;
use crate::features::pass::params::{self, Pairs, Params};
use crate::features::pass::tls::{TlsWritten, tls_directives};
use crate::features::pass::{self as shared, Origin, PassWritten, Schemes};
use crate::inherit;
use crate::log::Level as LogLevel;
use std::sync::Arc;

/// uwsgi applications.
pub struct Uwsgi;

/// What the `uwsgi_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct UwsgiConf {
    /// `uwsgi_pass`; inner locations do not inherit it.
    to: Option<Arc<Origin>>,
    /// What it shares with the other protocols.
    pass: PassWritten,
    params: params::Written,
    modifier1: Option<u8>,
    modifier2: Option<u8>,
    string: Option<Arc<[u8]>>,
    tls: TlsWritten,
}

impl Conf for UwsgiConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; params, modifier1, modifier2, string);
        self.pass.inherit(&outer.pass);
        self.tls.inherit(&outer.tls);
    }
}

/// Headers of the answer that stay behind: `Status` is none of them here.
const HIDDEN: &[&[u8]] = shared::HIDDEN_CGI.split_at(1).1;

const SCHEMES: Schemes = &[("uwsgi://", false), ("suwsgi://", true)];

impl Module for Uwsgi {
    const NAME: &'static str = "http_uwsgi";
    type Conf = UwsgiConf;
    const DIRECTIVES: &'static [Directive<UwsgiConf>] = shared::join_directives!(
        UwsgiConf;
        OWN,
        shared::connect_directives!(
            "uwsgi",
            UwsgiConf,
            shared::NEXT_CGI,
            "error|timeout|invalid_header|http_500|…|non_idempotent|off"
        ),
        shared::response_directives!("uwsgi", UwsgiConf, shared::IGNORE, ""),
        shared::buffer_directives!("uwsgi", UwsgiConf),
        shared::socket_directives!("uwsgi", UwsgiConf),
        shared::cache_directives!("uwsgi", UwsgiConf, " Without it nothing is cached."),
        tls_directives!("uwsgi", UwsgiConf),
    );

    fn attach(conf: &Arc<UwsgiConf>, on: &mut Hooks) -> ConfResult<()> {
        let buffers = conf.pass.buffers("uwsgi")?;
        if let Some(to) = &conf.to {
            let headers = conf.pass.pass_request_headers.unwrap_or(true);
            let mut pass = conf
                .pass
                .conf_with_key("uwsgi", buffers, HIDDEN, &to.temp_path, on);
            if to.may_use_tls() {
                let known = (!to.name.is_empty()).then_some(&*to.name);
                pass.tls = Some(Arc::new(conf.tls.build("uwsgi", known, b"")?));
            }
            let application = Application {
                params: Params::new(&conf.params, &to.host, headers),
                modifiers: [conf.modifier1.unwrap_or(0), conf.modifier2.unwrap_or(0)],
                string: conf.string.clone().unwrap_or_default(),
                origin: to.clone(),
            };
            on.upstream(Arc::new(Pass::new(
                Box::new(application),
                to.target(),
                pass,
            )));
            if to.slash {
                on.redirect_to_slash();
            }
        }
        Ok(())
    }
}

const ONE: Args = Args::Exactly(1);

/// The directives that only this module has.
const OWN: &[Directive<UwsgiConf>] = &[
    Directive::content(Directive::new(
        "uwsgi_pass",
        Place::LOCATION.or(Place::LOCATION_IF),
        ONE,
        "`uwsgi_pass [uwsgi://|suwsgi://]address;` Passes requests to a uwsgi application (`suwsgi` over TLS): an address with a port, `unix:/path`, or the name of an `upstream`.",
        |c, s, b| {
            if c.to.is_some() {
                return Err(s.duplicate());
            }
            c.to = Some(Arc::new(Origin::read(s, b, "uwsgi", SCHEMES)?));
            shared::shield::<Uwsgi>(b);
            Ok(())
        },
    )),
    Directive::new(
        "uwsgi_param",
        Place::ANY_HTTP,
        Args::Between(2, 3),
        "`uwsgi_param name value [if_not_empty];` A parameter of the request. Default: HTTP_HOST $host$is_request_port$request_port if_not_empty. Headers become `HTTP_…`, but for `Proxy` and those that a parameter sets.",
        |c, s, b| params::read(&mut c.params, s, b),
    ),
    Directive::new(
        "uwsgi_modifier1",
        Place::ANY_HTTP,
        ONE,
        "`uwsgi_modifier1 number;` The packet's first modifier, 0 to 255. Default: 0.",
        |c, s, _| once(&mut c.modifier1, s, modifier(s)?),
    ),
    Directive::new(
        "uwsgi_modifier2",
        Place::ANY_HTTP,
        ONE,
        "`uwsgi_modifier2 number;` The packet's second modifier, 0 to 255. Default: 0.",
        |c, s, _| once(&mut c.modifier2, s, modifier(s)?),
    ),
    Directive::new(
        "uwsgi_string",
        Place::ANY_HTTP,
        ONE,
        "`uwsgi_string text;` Text that follows the parameters in the packet.",
        |c, s, _| once(&mut c.string, s, s.arg(0).into()),
    ),
];

fn modifier(s: &Statement) -> ConfResult<u8> {
    u8::try_from(s.number(0)?).map_err(|_| s.error_at(0, "value must be between 0 and 255"))
}

/// uwsgi towards an application.
struct Application {
    params: Params,
    modifiers: [u8; 2],
    string: Arc<[u8]>,
    origin: Arc<Origin>,
}

impl Protocol for Application {
    fn scheme(&self) -> &'static str {
        "uwsgi"
    }

    fn secure_scheme(&self) -> &'static str {
        "suwsgi"
    }

    fn shown(&self, r: &Request, _written: &[u8]) -> Vec<u8> {
        self.params.shown(r)
    }

    fn codec(&self) -> Codec {
        Codec::Cgi
    }

    fn target(&self, url: &[u8]) -> Result<Target, String> {
        shared::target(url, SCHEMES)
    }

    fn request(
        &self,
        r: &mut Request,
        _to: &Destination<'_>,
        _body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        if !self.origin.name.is_empty() {
            r.upstream.host.clear();
            r.upstream.host.extend_from_slice(&self.origin.name);
        }
        let begin = out.len();
        let [first, second] = self.modifiers;
        out.extend_from_slice(&[first, 0, 0, second]);
        self.params.write(r, &mut Packet, out);
        out.extend_from_slice(&self.string);
        let length = out.len().saturating_sub(begin + 4);
        let Ok(short) = u16::try_from(length) else {
            r.error(
                LogLevel::Alert,
                format_args!("uwsgi request is too big: {length}"),
            );
            return Err(500);
        };
        if let Some(field) = out.get_mut(begin + 1..begin + 3) {
            field.copy_from_slice(&short.to_le_bytes());
        }
        Ok(())
    }
}

/// Lengths are 16 bits; longer texts make the packet too big, which is found at its end.
struct Packet;

impl Pairs for Packet {
    fn pair(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name);
        let at = out.len();
        out.extend_from_slice(&[0; 2]);
        value(out);
        let length = out.len().saturating_sub(at + 2) as u16;
        if let Some(field) = out.get_mut(at..at + 2) {
            field.copy_from_slice(&length.to_le_bytes());
        }
    }
}
