//! `gzip`: responses compressed as they pass.

use super::compress::ratio_of;
use super::media_types::MediaTypes;
use crate::config::{Result, Statement};
use crate::contract::*;
use crate::engine::gzip;
use crate::http::headers::Known;
use crate::inherit;
use crate::log::Level;
use flate2::{Compress, Compression, FlushCompress, Status};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;

/// nginx's ngx_http_gzip_filter_module.
pub struct Gzip;

/// What a block says.
#[derive(Clone, Default)]
pub struct GzipConf {
    on: Option<bool>,
    level: Option<u8>,
    min_length: Option<u64>,
    types: Option<MediaTypes>,
    postpone: Option<u64>,
    /// Base-2 logarithm of the window.
    window: Option<u8>,
    // read for their faults alone
    buffers: Option<()>,
    hash: Option<()>,
    no_buffer: Option<()>,
}

impl Conf for GzipConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; on, level, min_length, types, postpone, window);
    }
}

impl Module for Gzip {
    const NAME: &'static str = "http_gzip_filter";
    type Conf = GzipConf;
    const DIRECTIVES: &'static [Directive<GzipConf>] = &[
        Directive::new(
            "gzip",
            Place::ANY_HTTP_IF,
            Args::Flag,
            "`gzip on|off;` Compresses responses for clients that accept it. Default: off.",
            |c, s, _| once(&mut c.on, s, s.flag(0)?),
        ),
        Directive::new(
            "gzip_comp_level",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`gzip_comp_level level;` From 1, the fastest, to 9, the smallest. Default: 1.",
            |c, s, _| {
                if c.level.is_some() {
                    return Err(s.duplicate());
                }
                match s.number(0)? {
                    n @ 1..=9 => once(&mut c.level, s, n as u8),
                    _ => Err(s.error_at(0, "value must be between 1 and 9")),
                }
            },
        ),
        Directive::new(
            "gzip_min_length",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`gzip_min_length length;` Shorter responses, by Content-Length, are left alone. Default: 20.",
            |c, s, _| once(&mut c.min_length, s, s.size(0)?),
        ),
        Directive::new(
            "gzip_types",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`gzip_types type …;` Media types that are compressed besides text/html; `*` is any. Default: text/html.",
            |c, s, b| MediaTypes::read(&mut c.types, "text/html", s, b),
        ),
        Directive::new(
            "gzip_window",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`gzip_window size;` How far back repetitions are looked for: 512 to 32k. Default: 32k.",
            |c, s, _| {
                let bits = power(s, 9..=15, 0, "must be 512, 1k, 2k, 4k, 8k, 16k, or 32k")?;
                once(&mut c.window, s, bits)
            },
        ),
        Directive::new(
            "gzip_hash",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`gzip_hash size;` 512 to 128k. Read and not used: the compressor sizes its own table.",
            |c, s, _| {
                power(
                    s,
                    9..=17,
                    0,
                    "must be 512, 1k, 2k, 4k, 8k, 16k, 32k, 64k, or 128k",
                )?;
                once(&mut c.hash, s, ())
            },
        ),
        Directive::new(
            "gzip_buffers",
            Place::ANY_HTTP,
            Args::Exactly(2),
            "`gzip_buffers number size;` Read and not used: compressed data is passed on as it comes.",
            |c, s, _| {
                buffers(s)?;
                once(&mut c.buffers, s, ())
            },
        ),
        Directive::new(
            "gzip_no_buffer",
            Place::ANY_HTTP,
            Args::Flag,
            "`gzip_no_buffer on|off;` Read and not used: compressed data is passed on as it comes.",
            |c, s, _| {
                s.flag(0)?;
                once(&mut c.no_buffer, s, ())
            },
        ),
        Directive::new(
            "postpone_gzipping",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`postpone_gzipping size;` Compression begins when so much has come, or all. Default: 0.",
            |c, s, _| once(&mut c.postpone, s, s.size(0)?),
        ),
    ];
    const VARIABLES: &'static [Variable] =
        &[Variable::new("gzip_ratio", |r, _| ratio_of(r, "gzip"))];

    fn attach(conf: &Arc<GzipConf>, on: &mut Hooks) -> Result<()> {
        if conf.on == Some(true) {
            on.response(Filter {
                conf: conf.clone(),
                min_length: conf.min_length.unwrap_or(20),
                shape: Shape {
                    level: conf.level.unwrap_or(1),
                    window: conf.window.unwrap_or(15),
                },
                postpone: conf.postpone.unwrap_or(0) as usize,
            });
        }
        Ok(())
    }
}

/// `number size`, neither of them 0 (`ngx_conf_set_bufs_slot`).
pub(super) fn buffers(s: &Statement) -> Result<()> {
    for i in 0..2 {
        let n = if i == 0 {
            s.number(0).ok()
        } else {
            s.size(1).ok()
        };
        if n.is_none_or(|n| n == 0) {
            return Err(s.error_at(i, format!("\"{}\" directive invalid value", s.name())));
        }
    }
    Ok(())
}

/// A size that is a power of two: its logarithm.
pub(super) fn power(
    s: &Statement,
    bits: std::ops::RangeInclusive<u8>,
    i: usize,
    complaint: &str,
) -> Result<u8> {
    let size = s.size(i)?;
    let found = bits.into_iter().find(|b| 1u64 << b == size);
    found.ok_or_else(|| s.error_at(i, format!("\"{}\" directive {complaint}", s.name())))
}

struct Filter {
    conf: Arc<GzipConf>,
    min_length: u64,
    shape: Shape,
    postpone: usize,
}

impl Filter {
    /// Whether it is a response that is compressed, for those who accept it.
    fn fits(&self, r: &Request) -> bool {
        matches!(r.out.status, 200 | 403 | 404)
            && r.out
                .headers
                .get_id(Known::ContentEncoding)
                .is_none_or(|v| v.is_empty())
            && r.out.content_length.is_none_or(|n| n >= self.min_length)
            && MediaTypes::or_defaults(&self.conf.types, &["text/html"], &r.out)
    }
}

impl HeadFilter for Filter {
    fn after_subrequests(&self) -> bool {
        true
    }

    fn weight(&self, r: &Request) -> u16 {
        match r.headers().get_id(Known::AcceptEncoding) {
            Some(accept) if self.fits(r) && gzip::allowed(r) => gzip::weight(accept, b"gzip"),
            _ => 0,
        }
    }

    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        // codings that are wanted more, or as much, have had their turn
        if !self.fits(r) {
            return None;
        }
        r.out.vary_encoding |= r.core().gzip.vary;
        if !gzip::allowed(r) {
            return None;
        }
        r.out.headers.set_id(Known::ContentEncoding, b"gzip");
        r.out.clear_length();
        r.out.weaken_etag();
        Some(Box::new(Deflater {
            shape: self.shape,
            postpone: self.postpone,
            held: Vec::new(),
            stream: None,
        }))
    }
}

/// What a compressor is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    level: u8,
    window: u8,
}

/// Compresses one response.
struct Deflater {
    shape: Shape,
    /// How much is held back before compression begins.
    postpone: usize,
    held: Vec<u8>,
    stream: Option<Compress>,
}

impl BodyFilter for Deflater {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.stream.is_none() {
            if !last && self.held.len() + data.len() <= self.postpone {
                self.held.extend_from_slice(data);
                return Ok(());
            }
            if !last && self.held.is_empty() && data.is_empty() {
                return Ok(());
            }
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.run(r, &held, FlushCompress::None, out)?;
        }
        let flush = if last {
            FlushCompress::Finish
        } else {
            FlushCompress::None
        };
        self.run(r, data, flush, out)?;
        if last && let Some(stream) = self.stream.take() {
            r.output.deflated = (stream.total_in(), stream.total_out());
            give_back(self.shape, stream);
        }
        Ok(())
    }

    fn flush(&mut self, r: &mut Request, out: &mut Vec<u8>) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() && self.stream.is_none() {
            return Ok(());
        }
        self.run(r, &held, FlushCompress::Sync, out)
    }
}

impl Deflater {
    fn run(
        &mut self,
        r: &Request,
        data: &[u8],
        flush: FlushCompress,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let shape = self.shape;
        let stream = self.stream.get_or_insert_with(|| take(shape));
        deflate(stream, data, flush, out).map_err(|e| {
            r.error(Level::Alert, format_args!("deflate() failed: {e}"));
            io::Error::other(e)
        })
    }
}

/// Compresses all of `data`.
fn deflate(
    stream: &mut Compress,
    data: &[u8],
    flush: FlushCompress,
    out: &mut Vec<u8>,
) -> std::result::Result<(), flate2::CompressError> {
    let mut rest = data;
    loop {
        if out.capacity() - out.len() < 512 {
            out.reserve((rest.len() / 4).clamp(1024, 16 * 1024));
        }
        let before = stream.total_in();
        let status = stream.compress_vec(rest, out, flush)?;
        rest = rest
            .get((stream.total_in() - before) as usize..)
            .unwrap_or_default();
        // where room is left the compressor has nothing more to say
        let all = rest.is_empty() && out.len() < out.capacity();
        match status {
            Status::StreamEnd => return Ok(()),
            _ if all && !matches!(flush, FlushCompress::Finish) => return Ok(()),
            _ => {}
        }
    }
}

thread_local! {
    /// Compressors that wait to be used again: each has tables of some 200 kilobytes that need not be made anew.
    static IDLE: RefCell<Vec<(Shape, Compress)>> = const { RefCell::new(Vec::new()) };
}

/// How many compressors wait in each thread.
const MOST_IDLE: usize = 8;

fn take(shape: Shape) -> Compress {
    let idle = IDLE.with(|idle| {
        let mut idle = idle.try_borrow_mut().ok()?;
        let at = idle.iter().rposition(|(s, _)| *s == shape)?;
        Some(idle.swap_remove(at).1)
    });
    match idle {
        Some(mut stream) => {
            stream.reset();
            stream
        }
        None => {
            // zlib-ng's level 1 gives a fifth more than zlib's; its level 2 gives less than that, and is still faster
            let level = u32::from(shape.level.max(2));
            Compress::new_gzip(Compression::new(level), shape.window)
        }
    }
}

fn give_back(shape: Shape, stream: Compress) {
    IDLE.with(|idle| {
        if let Ok(mut idle) = idle.try_borrow_mut() {
            if idle.len() >= MOST_IDLE {
                idle.swap_remove(0);
            }
            idle.push((shape, stream));
        }
    });
}

/// `$gzip_ratio`, rounded to hundredths; nothing where nothing was compressed.
pub(super) fn ratio(before: u64, after: u64) -> Option<Small> {
    use std::io::Write;
    let thousandths = before.checked_mul(1000)?.checked_div(after)?;
    let hundredths = thousandths / 10 + u64::from(thousandths % 10 > 4);
    let mut s = Small::default();
    let _ = write!(s, "{}.{:02}", hundredths / 100, hundredths % 100);
    Some(s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn inflated(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::MultiGzDecoder::new(data)
            .read_to_end(&mut out)
            .expect("a gzip stream");
        out
    }

    #[test]
    fn ratios_are_rounded_as_nginx_rounds() {
        for (before, after, want) in [
            (1000, 100, "10.00"),
            (2125, 1000, "2.13"),
            (2124, 1000, "2.12"),
            (1996, 1000, "2.00"),
            (5, 20, "0.25"),
        ] {
            assert_eq!(
                ratio(before, after).map(|s| s.as_bytes().to_vec()),
                Some(want.into()),
                "{before}/{after}"
            );
        }
        assert!(ratio(0, 0).is_none());
    }

    #[test]
    fn compressors_are_used_again() {
        let shape = Shape {
            level: 3,
            window: 12,
        };
        for text in [b"first".repeat(1000), b"second".repeat(1000)] {
            let mut stream = take(shape);
            let mut out = Vec::new();
            deflate(&mut stream, &text, FlushCompress::Finish, &mut out).unwrap();
            assert_eq!(inflated(&out), text);
            assert!(out.len() < text.len() / 10);
            give_back(shape, stream);
        }
        assert_eq!(IDLE.with(|i| i.borrow().len()), 1);
    }

    #[test]
    fn flushed_data_can_be_read_at_once() {
        let mut stream = take(Shape {
            level: 1,
            window: 15,
        });
        let mut out = Vec::new();
        deflate(&mut stream, b"so far", FlushCompress::Sync, &mut out).unwrap();
        let mut reader = flate2::Decompress::new_gzip(15);
        let mut text = Vec::with_capacity(100);
        reader
            .decompress_vec(&out, &mut text, flate2::FlushDecompress::Sync)
            .unwrap();
        assert_eq!(text, b"so far");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_went_in_comes_out(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8), level in 1u8..=9, window in 9u8..=15, flush in any::<bool>()) {
            let mut stream = take(Shape { level, window });
            let mut out = Vec::new();
            for p in &pieces {
                deflate(&mut stream, p, if flush { FlushCompress::Sync } else { FlushCompress::None }, &mut out).unwrap();
            }
            deflate(&mut stream, b"", FlushCompress::Finish, &mut out).unwrap();
            prop_assert_eq!(inflated(&out), pieces.concat());
        }
    }
}
