//! `brotli`: the directives of ngx_brotli, Google's module for nginx.

use super::compress::{Coding, CompressConf, Until, directives, ratio_of};
use super::gzip::power;
use super::gzip_static::{Precompressed, PrecompressedConf};
use crate::config::Result;
use crate::contract::*;
use ::brotli::CompressorWriter;
use std::io::{self, Write};
use std::sync::Arc;

/// Responses compressed as they pass.
pub struct Brotli;

impl Module for Brotli {
    const NAME: &'static str = "http_brotli_filter";
    type Conf = CompressConf;
    const DIRECTIVES: &'static [Directive<CompressConf>] = directives!(
        "brotli",
        "gzip",
        0..=11,
        "6",
        Directive::new(
            "brotli_window",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`brotli_window size;` How far back repetitions are looked for: 1k to 16m. Default: 512k.",
            |c, s, _| {
                let bits = power(
                    s,
                    10..=24,
                    0,
                    "must be 1k, 2k, 4k, 8k, 16k, 32k, 64k, 128k, 256k, 512k, 1m, 2m, 4m, 8m or 16m",
                )?;
                once(&mut c.window, s, bits)
            },
        ),
    );
    const VARIABLES: &'static [Variable] = &[Variable::new("brotli_ratio", |r, _| {
        ratio_of(r, Stream::NAME)
    })];

    fn attach(conf: &Arc<CompressConf>, on: &mut Hooks) -> Result<()> {
        CompressConf::attach::<Stream>(conf, on);
        Ok(())
    }
}

/// Files that were compressed beforehand.
pub struct BrotliStatic;

impl Module for BrotliStatic {
    const NAME: &'static str = "http_brotli_static";
    type Conf = PrecompressedConf;
    const DIRECTIVES: &'static [Directive<PrecompressedConf>] = &[Directive::new(
        "brotli_static",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`brotli_static on|off|always;` Serves the file with .br added to its name, to clients that accept it or to all. Default: off.",
        |c, s, _| c.read(s),
    )];

    fn attach(conf: &Arc<PrecompressedConf>, on: &mut Hooks) -> Result<()> {
        conf.attach(&Precompressed::BROTLI, on);
        Ok(())
    }
}

struct Stream(Option<CompressorWriter<Vec<u8>>>);

impl Coding for Stream {
    const NAME: &'static str = "br";
    const LEVEL: i32 = 6;

    fn new(level: i32, window: Option<u8>) -> io::Result<Stream> {
        let window = u32::from(window.unwrap_or(19));
        Ok(Stream(Some(CompressorWriter::new(
            Vec::new(),
            4096,
            level as u32,
            window,
        ))))
    }

    fn write(&mut self, data: &[u8], until: Until, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(stream) = &mut self.0 else {
            return Ok(());
        };
        std::mem::swap(stream.get_mut(), out);
        let mut result = stream.write_all(data);
        if until == Until::Flushed && result.is_ok() {
            result = stream.flush();
        }
        std::mem::swap(stream.get_mut(), out);
        if until == Until::End
            && let Some(mut stream) = self.0.take()
        {
            std::mem::swap(stream.get_mut(), out);
            *out = stream.into_inner();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_went_in_comes_out() {
        let text = b"The quick brown fox. ".repeat(5000);
        for (level, window) in [(0, None), (6, Some(10)), (11, Some(24))] {
            let mut s = Stream::new(level, window).unwrap();
            let mut out = b"head".to_vec();
            s.write(&text[..10], Until::Flushed, &mut out).unwrap();
            let mut read = vec![0; 10];
            ::brotli::Decompressor::new(&out[4..], 4096)
                .read_exact(&mut read)
                .unwrap();
            assert_eq!(read, &text[..10]);
            s.write(&text[10..], Until::Any, &mut out).unwrap();
            s.write(b"", Until::End, &mut out).unwrap();
            let mut all = Vec::new();
            ::brotli::Decompressor::new(&out[4..], 4096)
                .read_to_end(&mut all)
                .unwrap();
            assert_eq!((&out[..4], all == text), (&b"head"[..], true));
            assert!(out.len() < text.len() / 10);
        }
    }
}
