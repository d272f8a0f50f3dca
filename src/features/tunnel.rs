//! `tunnel_pass`: CONNECT (RFC 9110, section 9.3.6) to an origin, whose bytes then pass both ways as they are.

use crate::contract::*;
use crate::engine::core::HttpServer;
use crate::features::pass::{self as shared, Origin, PassWritten};
use crate::http::method::Method;
use std::sync::Arc;

/// nginx's ngx_http_tunnel_module: a forward proxy for what is tunnelled.
pub struct Tunnel;

/// What the `tunnel_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct TunnelConf {
    /// `tunnel_pass`; inner locations do not inherit it.
    to: Option<Arc<Origin>>,
    /// What it shares with the other protocols.
    pass: PassWritten,
}

impl Conf for TunnelConf {
    fn inherit(&mut self, outer: &Self) {
        self.pass.inherit(&outer.pass);
    }
}

const NEXT: &[(&str, u32)] = &[
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("off", next::OFF),
];

/// The target where `tunnel_pass` has no parameter: the one that the client asks for.
const REQUESTED: &[u8] = b"$host:$request_port";

impl Module for Tunnel {
    const NAME: &'static str = "http_tunnel";
    type Conf = TunnelConf;
    const DIRECTIVES: &'static [Directive<TunnelConf>] = shared::join_directives!(
        TunnelConf;
        OWN,
        shared::connect_directives!("tunnel", TunnelConf, NEXT, "error|timeout|off"),
        shared::socket_directives!("tunnel", TunnelConf),
    );

    fn attach(conf: &Arc<TunnelConf>, on: &mut Hooks) -> ConfResult<()> {
        let Some(to) = &conf.to else {
            return Ok(());
        };
        let mut pass = conf.pass.conf(conf.pass.one_buffer(), &[], &to.temp_path);
        pass.buffering = false;
        pass.pass_request_body = false;
        on.upstream(Arc::new(Pass::new(Box::new(Connect), to.target(), pass)));
        Ok(())
    }
}

/// The directives that only this module has.
const OWN: &[Directive<TunnelConf>] = &[
    Directive::content(Directive::new(
        "tunnel_pass",
        Place::SERVER.or(Place::LOCATION).or(Place::LOCATION_IF),
        Args::Between(0, 1),
        "`tunnel_pass [address];` Answers CONNECT of HTTP/1.1 with a tunnel to an address with a port, `unix:/path`, or the name of an `upstream`; may contain variables. Other methods are answered 405. Default: $host:$request_port, whatever the client asks for: restrict who may use it, and what for (see recipes.md).",
        |c, s, b| {
            if c.to.is_some() {
                return Err(s.duplicate());
            }
            let target = match s.len() {
                0 => REQUESTED,
                _ => s.arg(0),
            };
            c.to = Some(Arc::new(Origin::of(s, b, "tunnel", &[], target)?));
            allow_connect(b);
            shared::shield::<Tunnel>(b);
            Ok(())
        },
    )),
    Directive::inert(
        "tunnel_send_lowat",
        Place::ANY_HTTP,
        Args::Exactly(1),
        inert::lowat,
        "Has no effect on Linux, in nginx neither.",
    ),
];

/// Has the server around the block being read take CONNECT.
fn allow_connect(b: &mut Build) {
    let mut block = Some(b.block());
    while let Some(id) = block {
        if matches!(b.kind_of(id), BlockKind::Server) {
            // the server's own settings may be in use while its blocks are read
            b.at_end(move |b| {
                if let Some(server) = b.conf_of::<HttpServer>(id) {
                    server.allow_connect = true;
                }
                Ok(())
            });
            return;
        }
        block = b.parent_of(id);
    }
}

/// A tunnel: nothing is said to the origin before the client says it.
struct Connect;

impl Protocol for Connect {
    fn scheme(&self) -> &'static str {
        ""
    }

    fn codec(&self) -> Codec {
        Codec::Tunnel
    }

    fn takes(&self, r: &Request) -> bool {
        r.method == Method::Connect
    }

    fn request(
        &self,
        _r: &mut Request,
        _to: &Destination<'_>,
        _body: BodyLength,
        _out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        Ok(())
    }
}
