//! `memcached_pass`: answers from memcached, by `$memcached_key`.

use crate::contract::*;
use crate::exchange::memcached as protocol;
use crate::features::pass::{self as shared, Origin, PassWritten};
use crate::http::escape::{Escape, escape};
use crate::http::method::Method;
use crate::inherit;
use crate::log::Level as LogLevel;
use std::sync::Arc;

/// Values of memcached.
pub struct Memcached;

/// What the `memcached_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct MemcachedConf {
    /// `memcached_pass` with `$memcached_key`; inner locations do not inherit it.
    to: Option<(Arc<Origin>, VarId)>,
    /// What it shares with the other protocols.
    pass: PassWritten,
    gzip_flag: Option<u64>,
}

impl Conf for MemcachedConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; gzip_flag);
        self.pass.inherit(&outer.pass);
    }
}

const NEXT: &[(&str, u32)] = &[
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("invalid_response", next::INVALID_HEADER),
    ("not_found", next::HTTP_404),
    ("off", next::OFF),
];

impl Module for Memcached {
    const NAME: &'static str = "http_memcached";
    type Conf = MemcachedConf;
    const DIRECTIVES: &'static [Directive<MemcachedConf>] = shared::join_directives!(
        MemcachedConf;
        OWN,
        shared::connect_directives!(
            "memcached",
            MemcachedConf,
            NEXT,
            "error|timeout|invalid_response|not_found|off"
        ),
    );

    fn attach(conf: &Arc<MemcachedConf>, on: &mut Hooks) -> ConfResult<()> {
        let Some((to, key)) = &conf.to else {
            return Ok(());
        };
        let mut pass = conf.pass.conf(conf.pass.one_buffer(), &[], &to.temp_path);
        pass.buffering = false;
        pass.pass_request_body = false;
        pass.force_ranges = true;
        let store = Store {
            key: *key,
            gzip_flag: conf.gzip_flag.unwrap_or(0),
        };
        on.upstream(Arc::new(Pass::new(Box::new(store), to.target(), pass)));
        if to.slash {
            on.redirect_to_slash();
        }
        Ok(())
    }
}

/// The directives that only this module has.
const OWN: &[Directive<MemcachedConf>] = &[
    Directive::content(Directive::new(
        "memcached_pass",
        Place::LOCATION.or(Place::LOCATION_IF),
        Args::Exactly(1),
        "`memcached_pass address;` Answers with the value that memcached has for `$memcached_key`: an address with a port, `unix:/path`, or the name of an `upstream`. A missing value is 404.",
        |c, s, b| {
            if c.to.is_some() {
                return Err(s.duplicate());
            }
            if s.arg(0).contains(&b'$') {
                return Err(s.error_at(
                    0,
                    format!(
                        "no port in upstream \"{}\"",
                        String::from_utf8_lossy(s.arg(0))
                    ),
                ));
            }
            let origin = Arc::new(Origin::read(s, b, "memcached", &[])?);
            c.to = Some((origin, b.var(s, "memcached_key")));
            shared::shield::<Memcached>(b);
            Ok(())
        },
    )),
    Directive::new(
        "memcached_gzip_flag",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`memcached_gzip_flag flag;` Values with this flag are sent with `Content-Encoding: gzip`. Default: 0 (none).",
        |c, s, _| once(&mut c.gzip_flag, s, s.number(0)?),
    ),
];

/// memcached as an origin.
struct Store {
    key: VarId,
    gzip_flag: u64,
}

impl Protocol for Store {
    fn in_limit_except(&self) -> bool {
        false
    }

    fn scheme(&self) -> &'static str {
        "memcached"
    }

    fn takes(&self, r: &Request) -> bool {
        matches!(r.method, Method::Get | Method::Head)
    }

    fn codec(&self) -> Codec {
        Codec::Memcached {
            gzip_flag: self.gzip_flag,
        }
    }

    fn request(
        &self,
        r: &mut Request,
        _to: &Destination<'_>,
        _body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        let mut key = Vec::new();
        escape(Escape::Memcached, r.var(self.key).as_bytes(), &mut key);
        if key.is_empty() {
            r.error(
                LogLevel::Error,
                format_args!("the \"$memcached_key\" variable is not set"),
            );
            return Err(500);
        }
        protocol::get(&key, out);
        Ok(())
    }
}
