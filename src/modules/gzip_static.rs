//! `gzip_static`: files that were compressed beforehand.

use super::static_files;
use crate::config::Result;
use crate::engine::files::{self, Kind};
use crate::engine::{gzip, redirect};
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::inherit;
use crate::log::Level;
use crate::module::*;
use std::sync::Arc;

/// nginx's ngx_http_gzip_static_module.
pub struct GzipStatic;

/// What is on.
#[derive(Clone, Default)]
pub struct GzipStaticConf {
    mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    On,
    Always,
}

impl Conf for GzipStaticConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; mode);
    }
}

impl Module for GzipStatic {
    const NAME: &'static str = "http_gzip_static";
    type Conf = GzipStaticConf;
    const DIRECTIVES: &'static [Directive<GzipStaticConf>] = &[Directive::new(
        "gzip_static",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`gzip_static on|off|always;` Serves the file with .gz added to its name, to clients that accept it or to all. Default: off.",
        |c, s, _| {
            once(
                &mut c.mode,
                s,
                s.one_of(
                    0,
                    &[
                        ("off", Mode::Off),
                        ("on", Mode::On),
                        ("always", Mode::Always),
                    ],
                )?,
            )
        },
    )];

    fn attach(conf: &Arc<GzipStaticConf>, on: &mut Hooks) -> Result<()> {
        if let Some(mode @ (Mode::On | Mode::Always)) = conf.mode {
            on.offer_content(Serve {
                always: mode == Mode::Always,
            });
        }
        Ok(())
    }
}

struct Serve {
    always: bool,
}

impl Handler for Serve {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) || r.uri.ends_with(b"/") {
            return Next::Continue;
        }
        let accepted = self.always || gzip::allowed(r);
        // where Vary is wanted, it depends on whether there is such a file
        if !accepted && !r.core().gzip.vary {
            return Next::Continue;
        }
        let mut path = r.scratch();
        let next = self.serve(r, accepted, &mut path);
        r.put_scratch(path);
        next
    }
}

impl Serve {
    fn serve(&self, r: &mut Request, accepted: bool, path: &mut Vec<u8>) -> Next<'static> {
        if let Err(status) = redirect::write_path(r, &r.uri, path) {
            return Next::Status(status);
        }
        path.extend_from_slice(b".gz");
        let (file, info) = match files::open(r, path) {
            Ok(found) => found,
            Err(e) => {
                if !e.is_missing() {
                    let level = if e.is_denied() || e.is_link() {
                        Level::Error
                    } else {
                        Level::Crit
                    };
                    e.log(r, level, path);
                }
                return Next::Continue;
            }
        };
        if !self.always {
            r.out.vary_encoding = r.core().gzip.vary;
        }
        match info.kind {
            _ if !accepted => Next::Continue,
            Kind::Directory => Next::Continue,
            Kind::Other => {
                r.error(
                    Level::Crit,
                    format_args!(
                        "\"{}\" is not a regular file",
                        String::from_utf8_lossy(path)
                    ),
                );
                Next::Status(404)
            }
            Kind::File => {
                r.out.headers.set_id(Known::ContentEncoding, b"gzip");
                static_files::send(r, file, &info, path)
            }
        }
    }
}
