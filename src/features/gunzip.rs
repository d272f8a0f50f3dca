//! `gunzip`: compressed responses unpacked for clients that do not accept them.

use super::gzip::buffers;
use crate::config::Result;
use crate::contract::*;
use crate::engine::gzip;
use crate::http::headers::Known;
use crate::inherit;
use crate::log::Level;
use flate2::{Decompress, FlushDecompress, Status};
use std::io;
use std::sync::Arc;

/// nginx's ngx_http_gunzip_filter_module.
pub struct Gunzip;

/// What a block says.
#[derive(Clone, Default)]
pub struct GunzipConf {
    on: Option<bool>,
    // read for its faults alone
    buffers: Option<()>,
}

impl Conf for GunzipConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; on);
    }
}

impl Module for Gunzip {
    const NAME: &'static str = "http_gunzip_filter";
    type Conf = GunzipConf;
    const DIRECTIVES: &'static [Directive<GunzipConf>] = &[
        Directive::new(
            "gunzip",
            Place::ANY_HTTP,
            Args::Flag,
            "`gunzip on|off;` Unpacks responses with Content-Encoding gzip for clients that do not accept it. Default: off.",
            |c, s, _| once(&mut c.on, s, s.flag(0)?),
        ),
        Directive::new(
            "gunzip_buffers",
            Place::ANY_HTTP,
            Args::Exactly(2),
            "`gunzip_buffers number size;` Read and not used: data is passed on as it comes.",
            |c, s, _| {
                buffers(s)?;
                once(&mut c.buffers, s, ())
            },
        ),
    ];

    fn attach(conf: &Arc<GunzipConf>, on: &mut Hooks) -> Result<()> {
        if conf.on == Some(true) {
            on.response(Filter);
        }
        Ok(())
    }
}

struct Filter;

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        if !r
            .out
            .headers
            .get_id(Known::ContentEncoding)?
            .eq_ignore_ascii_case(b"gzip")
        {
            return None;
        }
        r.out.vary_encoding |= r.core().gzip.vary;
        if gzip::allowed(r) {
            return None;
        }
        r.out.headers.remove_id(Known::ContentEncoding);
        r.out.clear_length();
        r.out.weaken_etag();
        Some(Box::new(Inflater::default()))
    }
}

/// What nginx is doing meanwhile, for the log.
fn doing(r: &Request) -> &'static str {
    if r.upstream.states.is_empty() {
        "while sending response to client"
    } else {
        "while sending to client"
    }
}

/// How much one call gives at most: a small response may unpack to a thousand times its size.
const PIECE: usize = 64 * 1024;

/// Unpacks one response.
#[derive(Default)]
struct Inflater {
    stream: Option<Decompress>,
    /// What has come and is not unpacked yet.
    held: Vec<u8>,
    /// Whether the last member is complete.
    complete: bool,
    pending: bool,
}

impl BodyFilter for Inflater {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let result = self.unpack(data, out);
        result.map_err(|e| {
            // zlib's Z_DATA_ERROR
            r.error(
                Level::Error,
                format_args!(
                    "inflate() failed: {}, -3 {}",
                    if last { 4 } else { 0 },
                    doing(r)
                ),
            );
            io::Error::other(e)
        })?;
        if last && !self.pending && !self.complete {
            // zlib's Z_BUF_ERROR
            r.error(
                Level::Error,
                format_args!("inflate() returned -5 on response end {}", doing(r)),
            );
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        self.pending
    }
}

impl Inflater {
    /// Unpacks what is held and `data`, until [`PIECE`] is reached.
    fn unpack(
        &mut self,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> std::result::Result<(), flate2::DecompressError> {
        let mut held = std::mem::take(&mut self.held);
        let mut rest = if held.is_empty() {
            data
        } else {
            held.extend_from_slice(data);
            &held[..]
        };
        let stream = self.stream.get_or_insert_with(|| Decompress::new_gzip(15));
        let end = out.len() + PIECE;
        self.pending = false;
        loop {
            if self.complete {
                if rest.is_empty() {
                    break;
                }
                // another member follows
                stream.reset(true);
                self.complete = false;
            }
            if out.len() == out.capacity() {
                out.reserve(16 * 1024);
            }
            let before = stream.total_in();
            let status = stream.decompress_vec(rest, out, FlushDecompress::None)?;
            rest = rest
                .get((stream.total_in() - before) as usize..)
                .unwrap_or_default();
            self.complete = status == Status::StreamEnd;
            let full = out.len() == out.capacity();
            if !self.complete && rest.is_empty() && !full {
                break;
            }
            if out.len() >= end && (full || !rest.is_empty()) {
                self.pending = !self.complete || !rest.is_empty();
                break;
            }
        }
        self.held.extend_from_slice(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        w.write_all(data).unwrap();
        w.finish().unwrap()
    }

    /// Unpacks as the output does; the size of the largest piece comes with it.
    fn unpacked(
        pieces: &[&[u8]],
    ) -> std::result::Result<(Vec<u8>, usize, bool), flate2::DecompressError> {
        let mut f = Inflater::default();
        let (mut all, mut largest) = (Vec::new(), 0);
        for p in pieces {
            let mut data = *p;
            loop {
                let mut out = Vec::new();
                f.unpack(data, &mut out)?;
                largest = largest.max(out.len());
                all.extend_from_slice(&out);
                data = b"";
                if !f.pending() {
                    break;
                }
            }
        }
        Ok((all, largest, f.complete))
    }

    #[test]
    fn a_bomb_comes_in_pieces() {
        let bomb = packed(&vec![0; 20_000_000]);
        assert!(bomb.len() < 200_000);
        let (all, largest, complete) = unpacked(&[&bomb]).unwrap();
        assert_eq!((all.len(), complete), (20_000_000, true));
        assert!(largest <= 2 * PIECE, "{largest}");
    }

    #[test]
    fn members_follow_each_other_and_garbage_does_not() {
        let two = [packed(b"one "), packed(b"two")].concat();
        assert_eq!(unpacked(&[&two]).unwrap().0, b"one two");
        let (a, b) = two.split_at(packed(b"one ").len());
        assert_eq!(unpacked(&[a, b]).unwrap().0, b"one two");
        assert!(
            unpacked(&[&[packed(b"one"), b"garbage that is no gzip".to_vec()].concat()]).is_err()
        );
        assert!(unpacked(&[b"plain text, which is no gzip"]).is_err());
        assert!(!unpacked(&[&two[..10]]).unwrap().2);
        assert!(!unpacked(&[b""]).unwrap().2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_packed_comes_out(data in prop::collection::vec(0u8..4, 0..200_000), cut in 1usize..5000) {
            let packed = packed(&data);
            let pieces: Vec<&[u8]> = packed.chunks(cut).collect();
            let (all, _, complete) = unpacked(&pieces).unwrap();
            prop_assert!(complete);
            prop_assert_eq!(all, data);
        }

        #[test]
        fn anything_is_refused_or_unpacked(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = unpacked(&[&data]);
            let mut bad = packed(&data);
            if let Some(b) = bad.get_mut(data.len() / 2) {
                *b ^= 0x55;
            }
            let _ = unpacked(&[&bad]);
        }
    }
}
