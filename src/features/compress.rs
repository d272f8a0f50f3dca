//! What the codings besides gzip have in common: settings, which responses are compressed, the filter.

use super::gzip::{buffers, ratio};
use super::media_types::MediaTypes;
use crate::config::{Result, Statement};
use crate::contract::*;
use crate::engine::gzip::weight;
use crate::http::headers::Known;
use crate::inherit;
use crate::log::Level;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

/// How much of a piece must come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// As much as the compressor likes.
    Any,
    /// So much that all can be read.
    Flushed,
    /// All, and the end.
    End,
}

/// Compresses one response.
pub(super) trait Coding: Sized + Send + Sync + 'static {
    /// Its name in `Accept-Encoding` and `Content-Encoding`.
    const NAME: &'static str;
    /// The level where none is given.
    const LEVEL: i32;

    /// Begins; `window` is the base-2 logarithm of the window, where it is given.
    fn new(level: i32, window: Option<u8>) -> io::Result<Self>;

    /// Compresses `data` and appends what there is to `out`.
    fn write(&mut self, data: &[u8], until: Until, out: &mut Vec<u8>) -> io::Result<()>;
}

/// What a block says.
#[derive(Clone, Default)]
pub struct CompressConf {
    pub(super) on: Option<bool>,
    pub(super) level: Option<i32>,
    pub(super) min_length: Option<u64>,
    pub(super) types: Option<MediaTypes>,
    pub(super) window: Option<u8>,
    // read for their faults alone
    buffers: Option<()>,
}

impl Conf for CompressConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; on, level, min_length, types, window);
    }
}

/// The directives of a coding: its name, what it is preferred to, its levels and the one where none is given; then
/// those that it alone has.
macro_rules! directives {
    ($coding:literal, $others:literal, $lowest:literal..=$highest:literal, $level:literal, $($own:expr,)*) => {
        &[
            Directive::new(
                $coding,
                Place::ANY_HTTP_IF,
                Args::Flag,
                concat!("`", $coding, " on|off;` Compresses responses for clients that accept it, rather than with ", $others, ". Default: off."),
                |c, s, _| once(&mut c.on, s, s.flag(0)?),
            ),
            Directive::new(
                concat!($coding, "_comp_level"),
                Place::ANY_HTTP,
                Args::Exactly(1),
                concat!("`", $coding, "_comp_level level;` From ", $lowest, ", the fastest, to ", $highest, ", the smallest. Default: ", $level, "."),
                |c, s, _| c.level(s, $lowest, $highest),
            ),
            Directive::new(
                concat!($coding, "_min_length"),
                Place::ANY_HTTP,
                Args::Exactly(1),
                concat!("`", $coding, "_min_length length;` Shorter responses, by Content-Length, are left alone. Default: 20."),
                |c, s, _| once(&mut c.min_length, s, s.size(0)?),
            ),
            Directive::new(
                concat!($coding, "_types"),
                Place::ANY_HTTP,
                Args::AtLeast(1),
                concat!("`", $coding, "_types type …;` Media types that are compressed besides text/html; `*` is any. Default: text/html."),
                |c, s, b| c.types(s, b),
            ),
            Directive::new(
                concat!($coding, "_buffers"),
                Place::ANY_HTTP,
                Args::Exactly(2),
                concat!("`", $coding, "_buffers number size;` Read and not used: compressed data is passed on as it comes."),
                |c, s, _| c.buffers(s),
            ),
            $($own,)*
        ]
    };
}
pub(super) use directives;

impl CompressConf {
    /// `…_types`.
    pub(super) fn types(&mut self, s: &Statement, b: &mut Build) -> Result<()> {
        MediaTypes::read(&mut self.types, "text/html", s, b)
    }

    /// `…_comp_level`.
    pub(super) fn level(&mut self, s: &Statement, lowest: u64, highest: u64) -> Result<()> {
        if self.level.is_some() {
            return Err(s.duplicate());
        }
        match s.number(0)? {
            n if (lowest..=highest).contains(&n) => once(&mut self.level, s, n as i32),
            _ => Err(s.error_at(0, format!("value must be between {lowest} and {highest}"))),
        }
    }

    /// `…_buffers`.
    pub(super) fn buffers(&mut self, s: &Statement) -> Result<()> {
        buffers(s)?;
        once(&mut self.buffers, s, ())
    }

    /// Leaves the filter where it is on.
    pub(super) fn attach<C: Coding>(conf: &Arc<CompressConf>, on: &mut Hooks) {
        if conf.on == Some(true) {
            on.response(Filter::<C> {
                conf: conf.clone(),
                coding: PhantomData,
            });
        }
    }
}

/// `$brotli_ratio` and its kin, where the response was compressed so.
pub(super) fn ratio_of<'r>(r: &'r Request, coding: &str) -> Val<'r> {
    if r.out.headers.get_id(Known::ContentEncoding) != Some(coding.as_bytes()) {
        return Val::None;
    }
    let (before, after) = r.output.deflated;
    ratio(before, after).map_or(Val::None, Val::Small)
}

struct Filter<C> {
    conf: Arc<CompressConf>,
    coding: PhantomData<fn() -> C>,
}

impl<C: Coding> Filter<C> {
    /// Whether it is a response that is compressed, for those who accept it.
    fn fits(&self, r: &Request) -> bool {
        matches!(r.out.status, 200 | 403 | 404)
            && r.out
                .headers
                .get_id(Known::ContentEncoding)
                .is_none_or(|v| v.is_empty())
            && r.out
                .content_length
                .is_none_or(|n| n >= self.conf.min_length.unwrap_or(20))
            && MediaTypes::or_defaults(&self.conf.types, &["text/html"], &r.out)
    }
}

impl<C: Coding> HeadFilter for Filter<C> {
    fn after_subrequests(&self) -> bool {
        true
    }

    fn weight(&self, r: &Request) -> u16 {
        match r.headers().get_id(Known::AcceptEncoding) {
            Some(accept) if !r.subrequest && self.fits(r) => weight(accept, C::NAME.as_bytes()),
            _ => 0,
        }
    }

    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        if !self.fits(r) {
            return None;
        }
        r.out.vary_encoding |= r.core().gzip.vary;
        let wanted = self.weight(r);
        let others = &r.location().hooks.response;
        if wanted == 0 || others.iter().any(|f| f.weight(r) > wanted) {
            return None;
        }
        let stream = match C::new(self.conf.level.unwrap_or(C::LEVEL), self.conf.window) {
            Ok(s) => s,
            Err(e) => {
                r.error(
                    Level::Alert,
                    format_args!("{} compression cannot begin: {e}", C::NAME),
                );
                return None;
            }
        };
        r.out
            .headers
            .set_id(Known::ContentEncoding, C::NAME.as_bytes());
        r.out.clear_length();
        r.out.weaken_etag();
        Some(Box::new(Compressor {
            stream,
            taken: 0,
            given: 0,
        }))
    }
}

struct Compressor<C> {
    stream: C,
    taken: u64,
    given: u64,
}

impl<C: Coding> Compressor<C> {
    fn run(&mut self, r: &Request, data: &[u8], until: Until, out: &mut Vec<u8>) -> io::Result<()> {
        let before = out.len();
        self.stream.write(data, until, out).inspect_err(|e| {
            r.error(
                Level::Alert,
                format_args!("{} compression failed: {e}", C::NAME),
            );
        })?;
        self.taken += data.len() as u64;
        self.given += (out.len() - before) as u64;
        Ok(())
    }
}

impl<C: Coding> BodyFilter for Compressor<C> {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.run(r, data, if last { Until::End } else { Until::Any }, out)?;
        if last {
            r.output.deflated = (self.taken, self.given);
        }
        Ok(())
    }

    fn flush(&mut self, r: &mut Request, out: &mut Vec<u8>) -> io::Result<()> {
        self.run(r, b"", Until::Flushed, out)
    }
}
