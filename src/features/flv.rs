//! `flv`: the part of an FLV file behind a key frame, for players that seek with `?start=BYTES`.

use super::static_files;
use crate::config::Result;
use crate::config::value::parse_number;
use crate::contract::files::Kind;
use crate::contract::*;
use crate::http::method::Method;
use crate::http::uri::arg;
use bytes::Bytes;
use std::sync::Arc;

/// nginx's ngx_http_flv_module.
pub struct Flv;

/// Whether `flv` stands in a location; inner locations do not inherit it.
#[derive(Default, Clone)]
pub struct FlvConf {
    on: bool,
}

impl Conf for FlvConf {
    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for Flv {
    const NAME: &'static str = "http_flv";
    type Conf = FlvConf;
    const DIRECTIVES: &'static [Directive<FlvConf>] = &[Directive::content(Directive::new(
        "flv",
        Place::LOCATION,
        Args::None,
        "`flv;` Serves FLV files; with `?start=`, a header and what follows that many bytes.",
        |c, _, b| {
            c.on = true;
            super::pass::shield::<Flv>(b);
            Ok(())
        },
    ))];

    fn attach(conf: &Arc<FlvConf>, on: &mut Hooks) -> Result<()> {
        if conf.on {
            on.content(Serve);
        }
        Ok(())
    }
}

/// The header of a file with video and audio, and the size 0 of the tag before the first.
const HEADER: &[u8] = b"FLV\x01\x05\0\0\0\x09\0\0\0\0";

struct Serve;

impl Handler for Serve {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) {
            return Next::Status(405);
        }
        if r.uri.ends_with(b"/") {
            return Next::Continue;
        }
        let mut path = r.scratch();
        let next = serve(r, &mut path);
        r.put_scratch(path);
        next
    }
}

fn serve(r: &mut Request, path: &mut Vec<u8>) -> Next<'static> {
    let (file, info) = match static_files::open(r, path) {
        Ok((Some(file), info)) if info.kind == Kind::File => (file, info),
        Ok(_) => return Next::Continue,
        Err(status) => return Next::Status(status),
    };
    let start = arg(&r.args, b"start").and_then(parse_number).unwrap_or(0);
    if start == 0 || start >= info.size {
        return static_files::send(r, file, &info, path);
    }
    let len = info.size - start;
    static_files::head(r, info.mtime, HEADER.len() as u64 + len, path);
    Next::Respond(Body::Joined {
        head: Bytes::from_static(HEADER),
        file,
        offset: start,
        len,
    })
}
