//! `zstd`: the directives of zstd-nginx-module.

use super::compress::{Coding, CompressConf, Until, directives, ratio_of};
use super::gzip_static::{Precompressed, PrecompressedConf};
use crate::config::Result;
use crate::contract::*;
use ::zstd::stream::write::Encoder;
use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::Arc;

/// Responses compressed as they pass.
pub struct Zstd;

impl Module for Zstd {
    const NAME: &'static str = "http_zstd_filter";
    type Conf = CompressConf;
    const DIRECTIVES: &'static [Directive<CompressConf>] =
        directives!("zstd", "brotli or gzip", 1..=22, "1",);
    const VARIABLES: &'static [Variable] = &[Variable::new("zstd_ratio", |r, _| {
        ratio_of(r, Stream::NAME)
    })];

    fn attach(conf: &Arc<CompressConf>, on: &mut Hooks) -> Result<()> {
        CompressConf::attach::<Stream>(conf, on);
        Ok(())
    }
}

/// Files that were compressed beforehand.
pub struct ZstdStatic;

impl Module for ZstdStatic {
    const NAME: &'static str = "http_zstd_static";
    type Conf = PrecompressedConf;
    const DIRECTIVES: &'static [Directive<PrecompressedConf>] = &[Directive::new(
        "zstd_static",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`zstd_static on|off|always;` Serves the file with .zst added to its name, to clients that accept it or to all. Default: off.",
        |c, s, _| c.read(s),
    )];

    fn attach(conf: &Arc<PrecompressedConf>, on: &mut Hooks) -> Result<()> {
        conf.attach(&Precompressed::ZSTD, on);
        Ok(())
    }
}

/// The encoder is used by one task at a time, but cannot itself be shared.
struct Stream(Mutex<Encoder<'static, Vec<u8>>>);

impl Coding for Stream {
    const NAME: &'static str = "zstd";
    const LEVEL: i32 = 1;

    fn new(level: i32, _window: Option<u8>) -> io::Result<Stream> {
        let mut encoder = Encoder::new(Vec::new(), level)?;
        // browsers refuse a larger window (RFC 9659)
        encoder.window_log(if level > 16 { 23 } else { 0 })?;
        Ok(Stream(Mutex::new(encoder)))
    }

    fn write(&mut self, data: &[u8], until: Until, out: &mut Vec<u8>) -> io::Result<()> {
        let stream = self.0.get_mut();
        std::mem::swap(stream.get_mut(), out);
        let result = stream.write_all(data).and_then(|()| match until {
            Until::Any => Ok(()),
            Until::Flushed => stream.flush(),
            Until::End => stream.do_finish(),
        });
        std::mem::swap(stream.get_mut(), out);
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
        for level in [1, 3, 19] {
            let mut s = Stream::new(level, None).unwrap();
            let mut out = b"head".to_vec();
            s.write(&text[..10], Until::Flushed, &mut out).unwrap();
            let mut read = vec![0; 10];
            ::zstd::stream::read::Decoder::new(&out[4..])
                .unwrap()
                .read_exact(&mut read)
                .unwrap();
            assert_eq!(read, &text[..10]);
            s.write(&text[10..], Until::Any, &mut out).unwrap();
            s.write(b"", Until::End, &mut out).unwrap();
            assert_eq!(::zstd::stream::decode_all(&out[4..]).unwrap(), text);
            assert_eq!(&out[..4], b"head");
            assert!(out.len() < text.len() / 10);
        }
    }
}
