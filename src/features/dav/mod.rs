//! WebDAV: PUT, DELETE, MKCOL, COPY and MOVE (RFC 4918) as nginx has them.

mod destination;

use self::destination::Destination;
use crate::config::Result;
use crate::contract::paths;
use crate::contract::*;
use crate::files::tree::{self, Journal, Rename};
use crate::http::escape::{Escape, escape};
use crate::http::headers::Known;
use crate::http::method::Method;
use crate::inherit;
use crate::log::Level;
use std::sync::Arc;

/// nginx's ngx_http_dav_module.
pub struct Dav;

/// See the directives.
#[derive(Clone, Default)]
pub struct DavConf {
    methods: Option<u32>,
    create_full_put_path: Option<bool>,
    min_delete_depth: Option<u64>,
    access: Option<u32>,
}

impl Conf for DavConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; methods, create_full_put_path, min_delete_depth, access);
    }
}

impl Module for Dav {
    const NAME: &'static str = "http_dav";
    type Conf = DavConf;
    const DIRECTIVES: &'static [Directive<DavConf>] = &[
        Directive::new(
            "dav_methods",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`dav_methods off|PUT|DELETE|MKCOL|COPY|MOVE …;` Methods that change files. Default: off.",
            methods,
        ),
        Directive::new(
            "create_full_put_path",
            Place::ANY_HTTP,
            Args::Flag,
            "`create_full_put_path on|off;` Whether PUT makes the directories that are missing. Default: off.",
            |c, s, _| once(&mut c.create_full_put_path, s, s.flag(0)?),
        ),
        Directive::new(
            "min_delete_depth",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`min_delete_depth number;` DELETE is refused above so many levels of the URI. Default: 0.",
            |c, s, _| once(&mut c.min_delete_depth, s, s.number(0)?),
        ),
        Directive::new(
            "dav_access",
            Place::ANY_HTTP,
            Args::Between(1, 3),
            "`dav_access users:permissions …;` Permissions of new files and directories. Default: user:rw.",
            |c, s, _| {
                if c.access.is_some() {
                    return Err(s.duplicate());
                }
                c.access = Some(access(s)?);
                Ok(())
            },
        ),
    ];

    fn attach(conf: &Arc<DavConf>, on: &mut Hooks) -> Result<()> {
        match conf.methods {
            Some(methods) if methods != 0 => on.offer_content(Change {
                methods,
                create_full_put_path: conf.create_full_put_path.unwrap_or(false),
                min_delete_depth: conf.min_delete_depth.unwrap_or(0),
                access: conf.access.unwrap_or(0o600),
            }),
            _ => {}
        }
        Ok(())
    }
}

fn methods(c: &mut DavConf, s: &Statement, b: &mut Build) -> Result<()> {
    let words = [
        ("off", 0),
        ("put", Method::Put.bit()),
        ("delete", Method::Delete.bit()),
        ("mkcol", Method::Mkcol.bit()),
        ("copy", Method::Copy.bit()),
        ("move", Method::Move.bit()),
    ];
    let set = c.methods.get_or_insert_default();
    for i in 0..s.len() {
        let bit = s.one_of(i, &words)?;
        if *set & bit != 0 {
            b.warn(s.warn_at(
                i,
                format!("duplicate value \"{}\"", String::from_utf8_lossy(s.arg(i))),
            ));
        }
        *set |= bit;
    }
    Ok(())
}

/// `user:rw group:r all:r` as permission bits.
pub(crate) fn access(s: &Statement) -> Result<u32> {
    let (mut bits, mut user) = (0, 0o600);
    for i in 0..s.len() {
        let (shift, right) = match s.arg(i) {
            [b'u', b's', b'e', b'r', b':', right @ ..] => {
                user = 0;
                (6, right)
            }
            [b'g', b'r', b'o', b'u', b'p', b':', right @ ..] => (3, right),
            [b'a', b'l', b'l', b':', right @ ..] => (0, right),
            _ => return Err(s.invalid_value(i)),
        };
        bits |= match right {
            b"rw" => 6 << shift,
            b"r" => 4 << shift,
            _ => return Err(s.invalid_value(i)),
        };
    }
    Ok(bits | user)
}

struct Change {
    methods: u32,
    create_full_put_path: bool,
    min_delete_depth: u64,
    /// Permission bits of new files.
    access: u32,
}

impl Handler for Change {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if self.methods & r.method.bit() == 0 {
            return Next::Continue;
        }
        Next::Wait(Box::pin(async move {
            let result = match r.method {
                Method::Put => self.put(r).await,
                Method::Delete => self.delete(r).await,
                Method::Mkcol => self.mkcol(r),
                _ => self.copy_or_move(r).await,
            };
            match result {
                Ok(status) => {
                    r.out.status = status;
                    Next::Respond(Body::Empty)
                }
                Err(status) => Next::Status(status),
            }
        }))
    }
}

/// The status of success, or that of the error.
type Answer = std::result::Result<u16, u16>;

impl Change {
    async fn put(&self, r: &mut Request) -> Answer {
        if r.uri.ends_with(b"/") {
            r.error(Level::Error, format_args!("cannot PUT to a collection"));
            return Err(409);
        }
        if r.headers().contains_id(Known::ContentRange) {
            r.error(Level::Error, format_args!("PUT with range is unsupported"));
            return Err(501);
        }
        let path = path_of(r)?;
        // always a file, which takes its final name when it is complete
        let temp = r.core().client_body_temp_path.clone();
        if let Err(e) = r.body.spool.spill(&temp, true) {
            let errno = crate::log::Errno::of(&e);
            r.error(
                Level::Crit,
                format_args!(
                    "creating a temporary file in \"{}\" failed{errno}",
                    temp.path.display()
                ),
            );
            return Err(if e.raw_os_error() == Some(nix::libc::ENOSPC) {
                507
            } else {
                500
            });
        }
        let read = r.read_body().await;
        let Some(file) = r.body.spool.path().map(|p| tree::bytes_of(p).to_vec()) else {
            r.error(
                Level::Error,
                format_args!("PUT request body must be in a file"),
            );
            return Err(500);
        };
        if let Err(status) = read {
            let _ = std::fs::remove_file(tree::path_of(&file));
            return Err(status);
        }
        let rename = Rename {
            access: self.access,
            folder_access: self.access,
            mtime: r
                .headers()
                .get_id(Known::Date)
                .and_then(crate::http::date::parse),
            create_path: self.create_full_put_path,
            delete_source: true,
        };
        let status = blocking(r, move |j| tree::put(&file, &path, &rename, j)).await?;
        if status == 201 {
            set_location(r);
        }
        Ok(status)
    }

    async fn delete(&self, r: &mut Request) -> Answer {
        refuse_body(r, "DELETE with body is")?;
        if self.min_delete_depth > 0 {
            let slashes = r.uri.iter().enumerate().filter(|(_, c)| **c == b'/');
            let deep = slashes.clone().nth(self.min_delete_depth as usize - 1);
            if deep.is_none_or(|(at, _)| at + 1 >= r.uri.len()) {
                r.error(
                    Level::Error,
                    format_args!("insufficient URI depth:{} to DELETE", slashes.count()),
                );
                return Err(409);
            }
        }
        let path = path_of(r)?;
        let info = match tree::lstat(&path) {
            Ok(info) => info,
            Err(e) => {
                let missing = if e.raw_os_error() == Some(nix::libc::ENOTDIR) {
                    409
                } else {
                    404
                };
                let mut journal = Journal::default();
                let status = journal.failed("lstat()", &path, &e, missing);
                crate::contract::files::log_lines(r, journal);
                return Err(status);
            }
        };
        if !info.is_dir() {
            match depth(r, Depth::Zero) {
                Depth::Zero | Depth::Infinity => {}
                _ => {
                    r.error(
                        Level::Error,
                        format_args!("\"Depth\" header must be 0 or infinity"),
                    );
                    return Err(400);
                }
            }
            return blocking(r, move |j| tree::delete(&path, false, j))
                .await
                .map(|()| 204);
        }
        let Some(folder) = path
            .strip_suffix(b"/")
            .filter(|_| r.uri.ends_with(b"/"))
            .map(<[u8]>::to_vec)
        else {
            let (path, errno) = (
                crate::http::text::shown(&path),
                crate::log::Errno(nix::libc::EISDIR),
            );
            r.error(
                Level::Error,
                format_args!("DELETE \"{path}\" failed{errno}"),
            );
            return Err(409);
        };
        if depth(r, Depth::Infinity) != Depth::Infinity {
            r.error(
                Level::Error,
                format_args!("\"Depth\" header must be infinity"),
            );
            return Err(400);
        }
        blocking(r, move |j| tree::delete(&folder, true, j))
            .await
            .map(|()| 204)
    }

    fn mkcol(&self, r: &mut Request) -> Answer {
        refuse_body(r, "MKCOL with body is")?;
        if !r.uri.ends_with(b"/") {
            r.error(
                Level::Error,
                format_args!("MKCOL can create a collection only"),
            );
            return Err(409);
        }
        let mut path = path_of(r)?;
        if path.ends_with(b"/") {
            path.pop();
        }
        if let Err(e) = tree::mkdir(&path, tree::folder_mode(self.access)) {
            let mut journal = Journal::default();
            let status = journal.failed("mkdir()", &path, &e, 409);
            crate::contract::files::log_lines(r, journal);
            return Err(status);
        }
        set_location(r);
        Ok(201)
    }

    async fn copy_or_move(&self, r: &mut Request) -> Answer {
        refuse_body(r, "COPY and MOVE with body are")?;
        let to = Destination::of(r)?;
        let moves = r.method == Method::Move;
        match depth(r, Depth::Infinity) {
            Depth::Infinity => {}
            Depth::Zero if !moves => {}
            _ => {
                let which = if moves { "infinity" } else { "0 or infinity" };
                r.error(
                    Level::Error,
                    format_args!("\"Depth\" header must be {which}"),
                );
                return Err(400);
            }
        }
        let overwrite = match r.headers().get_id(Known::Overwrite) {
            None | Some(b"T" | b"t") => true,
            Some(b"F" | b"f") => false,
            Some(v) => {
                r.error(
                    Level::Error,
                    format_args!(
                        "client sent invalid \"Overwrite\" header: \"{}\"",
                        String::from_utf8_lossy(v)
                    ),
                );
                return Err(400);
            }
        };
        let paths = to.paths(r, path_of(r)?)?;
        let exists = match tree::lstat(&paths.to) {
            Ok(info) => Some(info.is_dir()),
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => None,
            Err(e) => return Err(fail(r, "lstat()", &paths.to, &e)),
        };
        if let Some(folder) = exists {
            if folder && !paths.slash {
                to.not_to_collection(r);
                return Err(409);
            }
            if !overwrite {
                let (to, errno) = (
                    crate::http::text::shown(&paths.to),
                    crate::log::Errno(nix::libc::EEXIST),
                );
                r.error(
                    Level::Error,
                    format_args!("\"{to}\" could not be created{errno}"),
                );
                return Err(412);
            }
        }
        let info = match tree::lstat(&paths.from) {
            Ok(info) => info,
            Err(e) => return Err(fail(r, "lstat()", &paths.from, &e)),
        };
        let access = self.access;
        if !info.is_dir() {
            return blocking(r, move |j| match moves {
                true => tree::move_file(&paths.from, &paths.to, access, j),
                false => tree::copy_file(&paths.from, &paths.to, Some(&info), 0, None, j)
                    .map_err(|_| 500),
            })
            .await
            .map(|()| 204);
        }
        if !r.uri.ends_with(b"/") {
            r.error(
                Level::Error,
                format_args!("\"{}\" is collection", crate::http::text::shown(&r.uri)),
            );
            return Err(400);
        }
        blocking(r, move |j| {
            if let Some(folder) = exists {
                tree::delete(&paths.to, folder, j)?;
            }
            let from = paths.from.strip_suffix(b"/").unwrap_or(&paths.from);
            tree::copy_folder(from, &paths.to, &info, moves, j)
        })
        .await
        .map(|()| 201)
    }
}

/// Runs work on files where it holds up no connection, and logs what it has to say.
async fn blocking<T: Send + 'static>(
    r: &mut Request,
    work: impl FnOnce(&mut Journal) -> std::result::Result<T, u16> + Send + 'static,
) -> std::result::Result<T, u16> {
    let done = tokio::task::spawn_blocking(move || {
        let mut journal = Journal::default();
        let result = work(&mut journal);
        (result, journal)
    });
    match done.await {
        Ok((result, journal)) => {
            crate::contract::files::log_lines(r, journal);
            result
        }
        Err(e) => {
            r.error(
                Level::Alert,
                format_args!("work on files was not finished: {e}"),
            );
            Err(500)
        }
    }
}

fn path_of(r: &Request) -> std::result::Result<Vec<u8>, u16> {
    let mut path = Vec::with_capacity(128);
    paths::write_path(r, &r.uri, &mut path)?;
    Ok(path)
}

fn fail(r: &Request, call: &'static str, path: &[u8], e: &std::io::Error) -> u16 {
    let mut journal = Journal::default();
    let status = journal.failed(call, path, e, 404);
    crate::contract::files::log_lines(r, journal);
    status
}

fn refuse_body(r: &Request, what: &str) -> std::result::Result<(), u16> {
    if r.has_body() {
        r.error(Level::Error, format_args!("{what} unsupported"));
        return Err(415);
    }
    Ok(())
}

fn set_location(r: &mut Request) {
    let mut location = Vec::with_capacity(r.uri.len());
    escape(Escape::Uri, &r.uri, &mut location);
    r.out.location = location;
    r.out.content_length = Some(0);
}

/// The `Depth` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Zero,
    One,
    Infinity,
    Invalid,
}

fn depth(r: &Request, default: Depth) -> Depth {
    match r.headers().get_id(Known::Depth) {
        None => default,
        Some(b"0") => Depth::Zero,
        Some(b"1") => Depth::One,
        Some(b"infinity") => Depth::Infinity,
        Some(v) => {
            r.error(
                Level::Error,
                format_args!(
                    "client sent invalid \"Depth\" header: \"{}\"",
                    String::from_utf8_lossy(v)
                ),
            );
            Depth::Invalid
        }
    }
}
