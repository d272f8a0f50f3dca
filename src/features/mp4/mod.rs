//! `mp4`: the part of an MP4 file between two times, for players that seek with `?start=` and `?end=`.

pub mod atoms;
pub mod trim;

use super::static_files;
use crate::config::Result;
use crate::contract::files::{Info, Kind};
use crate::contract::*;
use crate::http::method::Method;
use crate::http::uri::arg;
use crate::inherit;
use crate::log::Level as LogLevel;
use atoms::{Fault, Wanted};
use bytes::Bytes;
use std::fs::File;
use std::sync::Arc;

/// nginx's ngx_http_mp4_module.
pub struct Mp4;

/// What the `mp4*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct Mp4Conf {
    /// `mp4`; inner locations do not inherit it.
    on: bool,
    /// `mp4_buffer_size`, bytes.
    buffer_size: Option<u64>,
    /// `mp4_max_buffer_size`, bytes.
    max_buffer_size: Option<u64>,
    /// `mp4_start_key_frame`.
    start_key_frame: Option<bool>,
}

impl Conf for Mp4Conf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; buffer_size, max_buffer_size, start_key_frame);
    }
}

impl Module for Mp4 {
    const NAME: &'static str = "http_mp4";
    type Conf = Mp4Conf;
    const DIRECTIVES: &'static [Directive<Mp4Conf>] = &[
        Directive::content(Directive::new(
            "mp4",
            Place::LOCATION,
            Args::None,
            "`mp4;` Serves MP4 files; with `?start=` and `?end=`, seconds, the part between them, which plays by itself.",
            |c, _, b| {
                c.on = true;
                super::pass::shield::<Mp4>(b);
                Ok(())
            },
        )),
        Directive::new(
            "mp4_buffer_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`mp4_buffer_size size;` How much of a file is read at once to find its parts. Default: 512k.",
            |c, s, _| once(&mut c.buffer_size, s, s.size(0)?),
        ),
        Directive::new(
            "mp4_max_buffer_size",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`mp4_max_buffer_size size;` How large the metadata (the moov atom) may be; files with more are answered 500. Default: 10m.",
            |c, s, _| once(&mut c.max_buffer_size, s, s.size(0)?),
        ),
        Directive::new(
            "mp4_start_key_frame",
            Place::ANY_HTTP,
            Args::Flag,
            "`mp4_start_key_frame on|off;` Has the part begin with the key frame before `start`; an edit list hides what precedes it. Default: off.",
            |c, s, _| once(&mut c.start_key_frame, s, s.flag(0)?),
        ),
    ];

    fn attach(conf: &Arc<Mp4Conf>, on: &mut Hooks) -> Result<()> {
        if conf.on {
            on.content(Serve {
                buffer_size: conf.buffer_size.unwrap_or(512 * 1024),
                max_buffer_size: conf.max_buffer_size.unwrap_or(10 << 20),
                key_frame: conf.start_key_frame.unwrap_or(false),
            });
        }
        Ok(())
    }
}

struct Serve {
    buffer_size: u64,
    max_buffer_size: u64,
    key_frame: bool,
}

impl Handler for Serve {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) {
            return Next::Status(405);
        }
        if r.uri.ends_with(b"/") {
            return Next::Continue;
        }
        let mut path = Vec::with_capacity(128);
        let (file, info) = match static_files::open(r, &mut path) {
            Ok((Some(file), info)) if info.kind == Kind::File => (file, info),
            Ok(_) => return Next::Continue,
            Err(status) => return Next::Status(status),
        };
        match self.wanted(&r.args) {
            None => static_files::send(r, file, &info, &mut path),
            Some(wanted) => Next::Wait(Box::pin(part(r, file, info, path, wanted))),
        }
    }
}

impl Serve {
    /// What the arguments ask for; `None` is the whole file.
    fn wanted(&self, args: &[u8]) -> Option<Wanted> {
        let mut start = arg(args, b"start").and_then(milliseconds);
        let mut length = 0;
        if let Some(end) = arg(args, b"end").and_then(milliseconds).filter(|e| *e > 0) {
            let begin = *start.get_or_insert(0);
            length = end.saturating_sub(begin);
        }
        Some(Wanted {
            start: start?,
            length,
            key_frame: self.key_frame,
            buffer_size: self.buffer_size,
            max_buffer_size: self.max_buffer_size,
        })
    }
}

/// Answers with a part of a file.
async fn part(
    r: &mut Request,
    file: Arc<File>,
    info: Info,
    mut path: Vec<u8>,
    wanted: Wanted,
) -> Next<'static> {
    // reading the metadata may wait for the disk, and cropping it takes a while where there is much
    let source = file.clone();
    let cut = tokio::task::spawn_blocking(move || trim::cut(&*source, info.size, &wanted));
    let part = match cut.await {
        Ok(Ok(part)) => part,
        Ok(Err(fault)) => {
            log(r, &fault, &path);
            return Next::Status(500);
        }
        Err(_) => return Next::Status(500),
    };
    let next = match part {
        None => static_files::send(r, file, &info, &mut path),
        Some(part) => {
            let len = part.end - part.start;
            let size = part.head.len() as u64 + len;
            static_files::head(r, info.mtime, size, &mut path);
            Next::Respond(Body::Joined {
                head: Bytes::from(part.head),
                file,
                offset: part.start,
                len,
            })
        }
    };
    r.out.single_range = true;
    next
}

fn log(r: &Request, fault: &Fault, path: &[u8]) {
    let path = crate::http::text::shown(path);
    let error = |text: std::fmt::Arguments<'_>| r.error(LogLevel::Error, text);
    match fault {
        Fault::Of(text) => error(format_args!("\"{path}\" {text}")),
        Fault::In(text) => error(format_args!("{text} in \"{path}\"")),
        Fault::Short(n, wanted) => r.error(
            LogLevel::Crit,
            format_args!("pread() read only {n} of {wanted} from \"{path}\""),
        ),
        Fault::Read(errno) => r.error(
            LogLevel::Crit,
            format_args!("pread() \"{path}\" failed{}", crate::log::Errno(*errno)),
        ),
    }
}

/// Seconds with a fraction, in milliseconds; digits beyond the third of the fraction do not count.
fn milliseconds(text: &[u8]) -> Option<u64> {
    const MAX: u64 = i64::MAX as u64;
    let mut value = 0u64;
    let mut point = 3;
    let mut dot = 0;
    if text.is_empty() {
        return None;
    }
    for c in text {
        match c {
            b'.' if dot == 0 => dot = 1,
            b'0'..=b'9' if point == 0 => {}
            b'0'..=b'9' => {
                let next = value.checked_mul(10)?.checked_add(u64::from(c - b'0'))?;
                value = Some(next).filter(|v| *v <= MAX)?;
                point -= dot;
            }
            _ => return None,
        }
    }
    for _ in 0..point {
        value = value.checked_mul(10).filter(|v| *v <= MAX)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_arguments() {
        for (text, want) in [
            ("1", Some(1000)),
            ("1.5", Some(1500)),
            (".25", Some(250)),
            ("1.23456789", Some(1234)),
            ("0", Some(0)),
            ("1.", Some(1000)),
            ("", None),
            ("1.2.3", None),
            ("-1", None),
            ("1s", None),
            ("9223372036854775", Some(9_223_372_036_854_775_000)),
            ("9223372036854776", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(milliseconds(text.as_bytes()), want, "{text}");
        }
    }
}
