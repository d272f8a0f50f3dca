//! `fastcgi_pass`: FastCGI applications such as php-fpm.

use crate::contract::*;
use crate::exchange::fastcgi as records;
use crate::features::pass::params::{self, Pairs, Params};
use crate::features::pass::{self as shared, Origin, PassWritten};
use crate::inherit;
use crate::log::Level as LogLevel;
use std::cell::RefCell;
use std::sync::Arc;

/// FastCGI applications.
pub struct FastCgi;

/// What the `fastcgi_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct FastCgiConf {
    /// `fastcgi_pass`; inner locations do not inherit it.
    to: Option<Arc<Origin>>,
    /// What it shares with the other protocols.
    pass: PassWritten,
    params: params::Written,
    index: Option<Arc<[u8]>>,
    split: Option<Arc<Pattern>>,
    keep_conn: Option<bool>,
    catch_stderr: Option<Vec<Box<[u8]>>>,
}

impl Conf for FastCgiConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; params, index, split, keep_conn, catch_stderr);
        self.pass.inherit(&outer.pass);
    }
}

impl Module for FastCgi {
    const NAME: &'static str = "http_fastcgi";
    type Conf = FastCgiConf;
    const DIRECTIVES: &'static [Directive<FastCgiConf>] = shared::join_directives!(
        FastCgiConf;
        OWN,
        shared::connect_directives!(
            "fastcgi",
            FastCgiConf,
            shared::NEXT_CGI,
            "error|timeout|invalid_header|http_500|…|non_idempotent|off"
        ),
        shared::response_directives!("fastcgi", FastCgiConf, shared::IGNORE, "Status and "),
        shared::buffer_directives!("fastcgi", FastCgiConf),
        shared::socket_directives!("fastcgi", FastCgiConf),
        shared::cache_directives!("fastcgi", FastCgiConf, " Without it nothing is cached."),
    );
    const VARIABLES: &'static [Variable] = &[
        Variable::new("fastcgi_script_name", |r, _| script_name(r)),
        Variable::new("fastcgi_path_info", |r, _| path_info(r)),
    ];

    fn attach(conf: &Arc<FastCgiConf>, on: &mut Hooks) -> ConfResult<()> {
        let buffers = conf.pass.buffers("fastcgi")?;
        if conf.index.is_some() || conf.split.is_some() {
            on.keep(Arc::new(Script {
                index: conf.index.clone().unwrap_or_default(),
                split: conf.split.clone(),
            }));
        }
        if let Some(to) = &conf.to {
            let headers = conf.pass.pass_request_headers.unwrap_or(true);
            let settings =
                conf.pass
                    .conf_with_key("fastcgi", buffers, shared::HIDDEN_CGI, &to.temp_path, on);
            let application = Application {
                params: Params::new(&conf.params, &to.host, headers),
                keep: conf.keep_conn.unwrap_or(false),
                catch: conf.catch_stderr.clone().unwrap_or_default().into(),
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

const ONE: Args = Args::Exactly(1);

/// The directives that only this module has.
const OWN: &[Directive<FastCgiConf>] = &[
    Directive::content(Directive::new(
        "fastcgi_pass",
        Place::LOCATION.or(Place::LOCATION_IF),
        ONE,
        "`fastcgi_pass address;` Passes requests to a FastCGI application: an address with a port, `unix:/path`, or the name of an `upstream`.",
        |c, s, b| {
            if c.to.is_some() {
                return Err(s.duplicate());
            }
            c.to = Some(Arc::new(Origin::read(s, b, "fastcgi", &[])?));
            shared::shield::<FastCgi>(b);
            Ok(())
        },
    )),
    Directive::new(
        "fastcgi_param",
        Place::ANY_HTTP,
        Args::Between(2, 3),
        "`fastcgi_param name value [if_not_empty];` A parameter of the request. Default: HTTP_HOST $host$is_request_port$request_port if_not_empty. Headers become `HTTP_…`, but for `Proxy` and those that a parameter sets.",
        |c, s, b| params::read(&mut c.params, s, b),
    ),
    Directive::new(
        "fastcgi_index",
        Place::ANY_HTTP,
        ONE,
        "`fastcgi_index name;` Appended to `$fastcgi_script_name` where the URI ends with a slash.",
        |c, s, _| once(&mut c.index, s, s.arg(0).into()),
    ),
    Directive::new(
        "fastcgi_split_path_info",
        Place::ANY_HTTP,
        ONE,
        "`fastcgi_split_path_info regex;` Two captures: `$fastcgi_script_name` and `$fastcgi_path_info`.",
        split_path_info,
    ),
    Directive::new(
        "fastcgi_keep_conn",
        Place::ANY_HTTP,
        Args::Flag,
        "`fastcgi_keep_conn on|off;` Asks the application to leave connections open, for `keepalive`. Default: off.",
        |c, s, _| once(&mut c.keep_conn, s, s.flag(0)?),
    ),
    Directive::new(
        "fastcgi_catch_stderr",
        Place::ANY_HTTP,
        ONE,
        "`fastcgi_catch_stderr text;` An answer is invalid (`fastcgi_next_upstream invalid_header`) if the application's error output holds the text.",
        |c, s, _| {
            c.catch_stderr.get_or_insert_default().push(s.arg(0).into());
            Ok(())
        },
    ),
    Directive::inert(
        "fastcgi_send_lowat",
        Place::ANY_HTTP,
        ONE,
        inert::lowat,
        "Has no effect on Linux, in nginx neither.",
    ),
];

fn split_path_info(c: &mut FastCgiConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let pattern = b.pattern(s, s.arg(0), false)?;
    if pattern.groups() != 2 {
        return Err(s.error(format!(
            "pattern \"{}\" must have 2 captures",
            pattern.source()
        )));
    }
    c.split = Some(pattern);
    Ok(())
}

/// How a location finds the script in the URI.
struct Script {
    index: Arc<[u8]>,
    split: Option<Arc<Pattern>>,
}

impl Script {
    /// Where the two parts of the URI stand, if it is split.
    fn parts(&self, uri: &[u8]) -> Option<[Option<(usize, usize)>; 2]> {
        thread_local! {
            static CAPTURES: RefCell<Captures> = RefCell::default();
        }
        let pattern = self.split.as_ref()?;
        CAPTURES.with(|c| {
            let mut c = c.try_borrow_mut().ok()?;
            pattern.find(uri, &mut c).then(|| [c.range(1), c.range(2)])
        })
    }
}

fn script_name(r: &Request) -> Val<'_> {
    let Some(script) = r.kept::<Script>() else {
        return Val::Bytes(&r.uri);
    };
    let name = match script.parts(&r.uri) {
        Some([Some((a, b)), _]) => r.uri.get(a..b).unwrap_or_default(),
        Some([None, _]) => &[],
        None => &r.uri,
    };
    if name.ends_with(b"/") && !script.index.is_empty() {
        return Val::Owned([name, &script.index].concat());
    }
    Val::Bytes(name)
}

fn path_info(r: &Request) -> Val<'_> {
    let parts = r.kept::<Script>().and_then(|s| s.parts(&r.uri));
    match parts {
        Some([_, Some((a, b))]) => Val::Bytes(r.uri.get(a..b).unwrap_or_default()),
        _ => Val::Bytes(b""),
    }
}

/// FastCGI towards an application.
struct Application {
    params: Params,
    keep: bool,
    catch: Box<[Box<[u8]>]>,
}

impl Protocol for Application {
    fn scheme(&self) -> &'static str {
        "fastcgi"
    }

    fn shown(&self, r: &Request, _written: &[u8]) -> Vec<u8> {
        self.params.shown(r)
    }

    fn codec(&self) -> Codec {
        Codec::FastCgi { keep: self.keep }
    }

    fn chunked(&self) -> bool {
        true
    }

    fn is_fatal(&self, stderr: &[u8]) -> bool {
        self.catch
            .iter()
            .any(|text| memchr::memmem::find(stderr, text).is_some())
    }

    fn request(
        &self,
        r: &mut Request,
        _to: &Destination<'_>,
        body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16> {
        records::begin(self.keep, out);
        let written = records::params(out, |out| self.params.write(r, &mut Records, out));
        if let Err(length) = written {
            r.error(
                LogLevel::Alert,
                format_args!("fastcgi request record is too big: {length}"),
            );
            return Err(500);
        }
        if body == BodyLength::None {
            records::stdin_end(out);
        }
        Ok(())
    }
}

struct Records;

impl Pairs for Records {
    fn pair(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        records::pair(name, value, out);
    }
}
