//! Files below `root` or `alias`: nginx's ngx_http_static_module.

use crate::config::Result;
use crate::contract::files::{self, Info, Kind};
use crate::contract::paths;
use crate::contract::*;
use crate::http::escape::{Escape, escape};
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::log::Level;
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Static files.
pub struct StaticFiles;

impl Module for StaticFiles {
    const NAME: &'static str = "http_static";
    type Conf = ();
    const ALWAYS: bool = true;
    const DIRECTIVES: &'static [Directive<()>] = &[];

    fn attach(_conf: &Arc<()>, on: &mut Hooks) -> Result<()> {
        on.offer_content(Serve);
        Ok(())
    }
}

struct Serve;

impl Handler for Serve {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head | Method::Post) {
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

/// Opens the file that the URI stands for; `path` becomes its name.
///
/// # Errors
/// The status with which the request ends; why has been logged.
pub(super) fn open(r: &Request, path: &mut Vec<u8>) -> std::result::Result<files::Found, u16> {
    paths::write_path(r, &r.uri, path)?;
    files::open(r, path).map_err(|e| {
        let (level, status) = match () {
            () if e.is_missing() => (Level::Error, 404),
            () if e.is_denied() || e.is_link() => (Level::Error, 403),
            () => (Level::Crit, 500),
        };
        if status != 404 || r.core().log_not_found {
            files::log_failure(r, &e, level, path);
        }
        status
    })
}

fn serve(r: &mut Request, path: &mut Vec<u8>) -> Next<'static> {
    let (file, info) = match open(r, path) {
        Ok(found) => found,
        Err(status) => return Next::Status(status),
    };
    match info.kind {
        Kind::Directory => {
            let mut location = Vec::with_capacity(r.uri.len() + r.args.len() + 2);
            escape(Escape::Uri, &r.uri, &mut location);
            location.push(b'/');
            if !r.args.is_empty() {
                location.push(b'?');
                location.extend_from_slice(&r.args);
            }
            r.out.location = location;
            return Next::Status(301);
        }
        Kind::Other => {
            r.error(
                Level::Crit,
                format_args!(
                    "\"{}\" is not a regular file",
                    crate::http::text::shown(path)
                ),
            );
            return Next::Status(404);
        }
        Kind::File => {}
    }
    if r.method == Method::Post {
        return Next::Status(405);
    }
    match file {
        Some(file) => send(r, file, &info, path),
        None => Next::Status(500),
    }
}

/// Answers with a file: its length, times, tag and type go into the head. `buf` is a buffer to work in.
pub(super) fn send(
    r: &mut Request,
    file: Arc<File>,
    info: &Info,
    buf: &mut Vec<u8>,
) -> Next<'static> {
    head(r, info.mtime, info.size, buf);
    Next::Respond(body(r, file, info.size))
}

/// Writes the head of an answer of `size` bytes from a file of that age. `buf` is a buffer to work in.
pub(super) fn head(r: &mut Request, mtime: i64, size: u64, buf: &mut Vec<u8>) {
    r.out.status = 200;
    r.out.content_length = Some(size);
    r.out.last_modified = Some(mtime);
    if r.core().etag {
        buf.clear();
        crate::http::etag::make(mtime, size, buf);
        r.out.headers.set_id(Known::ETag, buf);
    }
    r.set_content_type();
    r.out.allow_ranges = true;
}

/// Small files are read at once, which spares `sendfile`, unless it may turn out that only the head is sent.
fn body(r: &Request, file: Arc<File>, len: u64) -> Body {
    const SMALL: u64 = 16 * 1024;
    const CONDITIONS: [Known; 2] = [Known::IfNoneMatch, Known::IfModifiedSince];
    if len == 0 {
        return Body::Empty;
    }
    if len <= SMALL && !r.is_head() && !CONDITIONS.iter().any(|c| r.headers().contains_id(*c)) {
        let mut data = vec![0; len as usize];
        // a file that shrank meanwhile is left to the sender, who knows what to do about it
        if file.read_exact_at(&mut data, 0).is_ok() {
            return Body::Bytes(Bytes::from(data));
        }
    }
    Body::File {
        file,
        offset: 0,
        len,
    }
}
