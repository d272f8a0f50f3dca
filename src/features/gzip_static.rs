//! `gzip_static`: files that were compressed beforehand.

use super::static_files;
use crate::config::Result;
use crate::contract::files::Kind;
use crate::contract::*;
use crate::engine::gzip;
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::inherit;
use crate::log::Level;
use smallvec::SmallVec;
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

    /// Leaves the handler where it is on, one for all codings.
    pub(super) fn attach(&self, files: &'static Precompressed, on: &mut Hooks) {
        if let Some(mode @ (Mode::On | Mode::Always)) = self.mode {
            let before = on.take_kept::<Kinds>();
            if before.is_none() {
                on.offer_content(Serve);
            }
            let mut kinds = before.map_or_else(SmallVec::new, |k| k.0.clone());
            kinds.push((files, mode == Mode::Always));
            on.keep(Arc::new(Kinds(kinds)));
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
    /// How much the client wants it, thousandths.
    weight: fn(&Request) -> u16,
}

impl Precompressed {
    const GZIP: Precompressed = Precompressed {
        suffix: b".gz",
        coding: b"gzip",
        weight: |r| match gzip::allowed(r) {
            true => weight(r, b"gzip"),
            false => 0,
        },
    };
    /// `brotli_static`.
    pub(super) const BROTLI: Precompressed = Precompressed {
        suffix: b".br",
        coding: b"br",
        weight: |r| weight(r, b"br"),
    };
    /// `zstd_static`.
    pub(super) const ZSTD: Precompressed = Precompressed {
        suffix: b".zst",
        coding: b"zstd",
        weight: |r| weight(r, b"zstd"),
    };
}

fn weight(r: &Request, coding: &[u8]) -> u16 {
    match r.headers().get_id(Known::AcceptEncoding) {
        Some(accept) if !r.subrequest => gzip::weight(accept, coding),
        _ => 0,
    }
}

/// A coding, and whether its files are for all clients.
type Offer = (&'static Precompressed, bool);

/// The codings of a location, in the order of the modules.
struct Kinds(SmallVec<[Offer; 3]>);

/// Serves the file of the coding that the client wants most.
struct Serve;

impl Handler for Serve {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) || r.uri.ends_with(b"/") {
            return Next::Continue;
        }
        let Some(kinds) = r.kept::<Kinds>() else {
            return Next::Continue;
        };
        let mut wanted: SmallVec<[(u16, Offer); 3]> =
            kinds.0.iter().map(|k| ((k.0.weight)(r), *k)).collect();
        // those that are wanted as much stay in their order
        wanted.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        let mut path = r.scratch();
        let mut next = Next::Continue;
        for (weight, (files, always)) in wanted {
            let accepted = always || weight > 0;
            // where Vary is wanted, it depends on whether there is such a file
            if accepted || r.core().gzip.vary {
                path.clear();
                next = serve(r, files, always, accepted, &mut path);
                if !matches!(next, Next::Continue) {
                    break;
                }
            }
        }
        r.put_scratch(path);
        next
    }
}

fn serve(
    r: &mut Request,
    files: &'static Precompressed,
    always: bool,
    accepted: bool,
    path: &mut Vec<u8>,
) -> Next<'static> {
    if let Err(status) = paths::write_path(r, &r.uri, path) {
        return Next::Status(status);
    }
    path.extend_from_slice(files.suffix);
    let (file, info) = match crate::contract::files::open(r, path) {
        Ok(found) => found,
        Err(e) => {
            if !e.is_missing() {
                let level = if e.is_denied() || e.is_link() {
                    Level::Error
                } else {
                    Level::Crit
                };
                files::log_failure(r, &e, level, path);
            }
            return Next::Continue;
        }
    };
    if !always {
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
                    crate::http::text::shown(path)
                ),
            );
            Next::Status(404)
        }
        Kind::File => {
            let Some(file) = file else {
                return Next::Continue;
            };
            r.out.headers.set_id(Known::ContentEncoding, files.coding);
            static_files::send(r, file, &info, path)
        }
    }
}
