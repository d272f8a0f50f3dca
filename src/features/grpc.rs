//! `grpc_pass`: gRPC servers, over HTTP/2.

use crate::contract::*;
use crate::features::pass::tls::{TlsWritten, tls_directives};
use crate::features::pass::{self as shared, Origin, PassWritten, Schemes};
use crate::features::proxy::request::{RequestHeaders, check_uri};
use crate::http::escape::{Escape, escape};
use crate::inherit;
use std::sync::Arc;

/// gRPC servers.
pub struct Grpc;

/// What the `grpc_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct GrpcConf {
    /// `grpc_pass`, and the name and port in it; inner locations do not inherit it.
    to: Option<(Arc<Origin>, Box<[u8]>)>,
    /// What it shares with the other protocols.
    pass: PassWritten,
    /// `grpc_set_header`.
    headers: Option<Vec<(Box<[u8]>, Template)>>,
    tls: TlsWritten,
}

impl Conf for GrpcConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; headers);
        self.pass.inherit(&outer.pass);
        self.tls.inherit(&outer.tls);
    }
}

const SCHEMES: Schemes = &[("grpc://", false), ("grpcs://", true)];

/// Headers of the answer that stay behind unless `grpc_pass_header` names them.
const HIDDEN: &[&[u8]] = &[
    b"date",
    b"server",
    b"x-accel-expires",
    b"x-accel-redirect",
    b"x-accel-limit-rate",
    b"x-accel-buffering",
    b"x-accel-charset",
];

impl Module for Grpc {
    const NAME: &'static str = "http_grpc";
    type Conf = GrpcConf;
    const DIRECTIVES: &'static [Directive<GrpcConf>] = shared::join_directives!(
        GrpcConf;
        OWN,
        shared::connect_directives!(
            "grpc",
            GrpcConf,
            shared::NEXT,
            "error|timeout|invalid_header|http_500|…|non_idempotent|off"
        ),
        shared::socket_directives!("grpc", GrpcConf),
        shared::response_directives!("grpc", GrpcConf, shared::IGNORE, "Date, Server and X-Accel-…"),
        tls_directives!("grpc", GrpcConf),
    );

    fn attach(conf: &Arc<GrpcConf>, on: &mut Hooks) -> ConfResult<()> {
        let Some((to, host)) = &conf.to else {
            return Ok(());
        };
        let mut pass = conf
            .pass
            .conf(conf.pass.one_buffer(), HIDDEN, &to.temp_path);
        pass.buffering = false;
        pass.request_buffering = false;
        pass.pass_trailers = true;
        if to.may_use_tls() {
            let known = (!host.is_empty()).then_some(&**host);
            pass.tls = Some(Arc::new(conf.tls.build("grpc", known, b"\x02h2")?));
        }
        let service = Service {
            host: host.clone(),
            headers: RequestHeaders::new(conf.headers.as_deref().unwrap_or_default()),
        };
        on.upstream(Arc::new(Pass::new(Box::new(service), to.target(), pass)));
        if to.slash {
            on.redirect_to_slash();
        }
        Ok(())
    }
}

/// The directives that only this module has.
const OWN: &[Directive<GrpcConf>] = &[
    Directive::content(Directive::new(
        "grpc_pass",
        Place::LOCATION.or(Place::LOCATION_IF),
        Args::Exactly(1),
        "`grpc_pass address;` Passes requests to a gRPC server: `grpc://` (or nothing) or `grpcs://` and an address with a port, `unix:/path`, or the name of an `upstream`.",
        |c, s, b| {
            if c.to.is_some() {
                return Err(s.duplicate());
            }
            let to = Arc::new(Origin::read(s, b, "grpc", SCHEMES)?);
            let host = match s.arg(0).contains(&b'$') {
                true => Vec::new(),
                false => shared::target(s.arg(0), SCHEMES)
                    .map(|t| authority(&t))
                    .map_err(|e| s.error_at(0, e))?,
            };
            c.to = Some((to, host.into()));
            shared::shield::<Grpc>(b);
            Ok(())
        },
    )),
    Directive::new(
        "grpc_set_header",
        Place::ANY_HTTP,
        Args::Exactly(2),
        "`grpc_set_header field value;` A header of the request; an empty value drops it. Defaults: Content-Length $content_length, TE where the client takes trailers.",
        |c, s, b| {
            check_header_name(s, 0)?;
            let value = b.head_template(s, 1)?;
            let list = c.headers.get_or_insert_default();
            list.push((s.arg(0).into(), value));
            Ok(())
        },
    ),
];

/// `:authority` of requests to a target.
fn authority(target: &Target) -> Vec<u8> {
    match &target.address {
        crate::config::addr::Address::Unix(_) => b"localhost".to_vec(),
        crate::config::addr::Address::Inet(_) => target.host.clone(),
    }
}

/// gRPC towards a server.
struct Service {
    host: Box<[u8]>,
    headers: RequestHeaders,
}

impl Protocol for Service {
    fn scheme(&self) -> &'static str {
        "grpc"
    }

    fn secure_scheme(&self) -> &'static str {
        "grpcs"
    }

    fn codec(&self) -> Codec {
        Codec::Http2
    }

    fn chunked(&self) -> bool {
        true
    }

    fn target(&self, url: &[u8]) -> Result<Target, String> {
        let mut target = shared::target(url, SCHEMES)?;
        target.host = authority(&target);
        Ok(target)
    }

    fn request(
        &self,
        r: &mut Request,
        to: &Destination<'_>,
        body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        let host = if self.host.is_empty() {
            to.host
        } else {
            &self.host
        };
        r.upstream.host.clear();
        r.upstream.host.extend_from_slice(host);
        r.upstream.body = Some(body);
        out.extend_from_slice(r.method_text());
        out.push(b' ');
        let begin = out.len();
        if r.valid_unparsed_uri {
            out.extend_from_slice(r.unparsed_uri());
        } else {
            escape(Escape::Uri, &r.uri, out);
            if !r.args.is_empty() {
                out.push(b'?');
                out.extend_from_slice(&r.args);
            }
        }
        check_uri(r, "grpc_pass", begin, out)?;
        out.extend_from_slice(b" HTTP/2.0\r\nHost: ");
        let begin = out.len();
        if let Some(host) = &self.headers.host {
            host.write_value(r, "grpc_set_header", out)?;
        }
        if out.len() == begin {
            out.extend_from_slice(host);
        }
        out.extend_from_slice(b"\r\n");
        self.headers.write(r, "grpc_set_header", body, out)?;
        let te = r.head.headers.get(b"te").unwrap_or_default();
        if crate::http::headers::has_token(te, b"trailers") {
            out.extend_from_slice(b"TE: trailers\r\n");
        }
        for (known, name, value) in r.head.headers.entries() {
            if !self.headers.names.contains(known, name) {
                out.extend_from_slice(name);
                out.extend_from_slice(b": ");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }
}
