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
pub struct PrecompressedConf {
    mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    On,
    Always,
}

impl Conf for PrecompressedConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; mode);
    }
}

impl PrecompressedConf {
    /// `on|off|always`.
    pub(super) fn read(&mut self, s: &Statement) -> Result<()> {
        once(
            &mut self.mode,
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
    }

    /// Leaves the handler where it is on.
    pub(super) fn attach(&self, files: &'static Precompressed, on: &mut Hooks) {
        if let Some(mode @ (Mode::On | Mode::Always)) = self.mode {
            on.offer_content(Serve {
                files,
                always: mode == Mode::Always,
            });
        }
    }
}

impl Module for GzipStatic {
    const NAME: &'static str = "http_gzip_static";
    type Conf = PrecompressedConf;
    const DIRECTIVES: &'static [Directive<PrecompressedConf>] = &[Directive::new(
        "gzip_static",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`gzip_static on|off|always;` Serves the file with .gz added to its name, to clients that accept it or to all. Default: off.",
        |c, s, _| c.read(s),
    )];

    fn attach(conf: &Arc<PrecompressedConf>, on: &mut Hooks) -> Result<()> {
        conf.attach(&Precompressed::GZIP, on);
        Ok(())
    }
}

/// Files of one coding.
pub(super) struct Precompressed {
    suffix: &'static [u8],
    coding: &'static [u8],
    allowed: fn(&Request) -> bool,
}

impl Precompressed {
    const GZIP: Precompressed = Precompressed {
        suffix: b".gz",
        coding: b"gzip",
        allowed: gzip::allowed,
    };
    /// `brotli_static`.
    pub(super) const BROTLI: Precompressed = Precompressed {
        suffix: b".br",
        coding: b"br",
        allowed: |r| accepts(r, b"br"),
    };
    /// `zstd_static`.
    pub(super) const ZSTD: Precompressed = Precompressed {
        suffix: b".zst",
        coding: b"zstd",
        allowed: |r| accepts(r, b"zstd"),
    };
}

fn accepts(r: &Request, coding: &[u8]) -> bool {
    !r.subrequest
        && r.headers()
            .get_id(Known::AcceptEncoding)
            .is_some_and(|v| gzip::accepts(v, coding))
}

struct Serve {
    files: &'static Precompressed,
    always: bool,
}

impl Handler for Serve {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) || r.uri.ends_with(b"/") {
            return Next::Continue;
        }
        let accepted = self.always || (self.files.allowed)(r);
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
        path.extend_from_slice(self.files.suffix);
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
                let Some(file) = file else {
                    return Next::Continue;
                };
                r.out
                    .headers
                    .set_id(Known::ContentEncoding, self.files.coding);
                static_files::send(r, file, &info, path)
            }
        }
    }
}
