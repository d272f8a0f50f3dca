//! `autoindex`: lists of directories.

mod listing;

use self::listing::{Entry, Kind};
use crate::config::Result;
use crate::contract::paths;
use crate::contract::*;
use crate::http::method::Method;
use crate::inherit;
use crate::log::{Errno, Level};
use bytes::Bytes;
use std::ffi::OsStr;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// nginx's ngx_http_autoindex_module.
pub struct Autoindex;

/// See the directives.
#[derive(Clone, Default)]
pub struct AutoindexConf {
    enable: Option<bool>,
    format: Option<Format>,
    local_time: Option<bool>,
    exact_size: Option<bool>,
}

impl Conf for AutoindexConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; enable, format, local_time, exact_size);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    #[default]
    Html,
    Json,
    Jsonp,
    Xml,
}

impl Module for Autoindex {
    const NAME: &'static str = "http_autoindex";
    type Conf = AutoindexConf;
    const DIRECTIVES: &'static [Directive<AutoindexConf>] = &[
        Directive::new(
            "autoindex",
            Place::ANY_HTTP,
            Args::Flag,
            "`autoindex on|off;` Lists a directory that has no index file. Default: off.",
            |c, s, _| once(&mut c.enable, s, s.flag(0)?),
        ),
        Directive::new(
            "autoindex_format",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`autoindex_format html|json|jsonp|xml;` The form of the list. Default: html.",
            |c, s, _| {
                let formats = [
                    ("html", Format::Html),
                    ("json", Format::Json),
                    ("jsonp", Format::Jsonp),
                    ("xml", Format::Xml),
                ];
                once(&mut c.format, s, s.one_of(0, &formats)?)
            },
        ),
        Directive::new(
            "autoindex_localtime",
            Place::ANY_HTTP,
            Args::Flag,
            "`autoindex_localtime on|off;` Whether an HTML list has local times, not UTC. Default: off.",
            |c, s, _| once(&mut c.local_time, s, s.flag(0)?),
        ),
        Directive::new(
            "autoindex_exact_size",
            Place::ANY_HTTP,
            Args::Flag,
            "`autoindex_exact_size on|off;` Whether an HTML list has sizes in bytes, not rounded. Default: on.",
            |c, s, _| once(&mut c.exact_size, s, s.flag(0)?),
        ),
    ];

    fn attach(conf: &Arc<AutoindexConf>, on: &mut Hooks) -> Result<()> {
        if conf.enable == Some(true) {
            on.offer_content(List {
                format: conf.format.unwrap_or_default(),
                local_time: conf.local_time.unwrap_or(false),
                exact_size: conf.exact_size.unwrap_or(true),
            });
        }
        Ok(())
    }
}

struct List {
    format: Format,
    local_time: bool,
    exact_size: bool,
}

impl Handler for List {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !r.uri.ends_with(b"/") || !matches!(r.method, Method::Get | Method::Head) {
            return Next::Continue;
        }
        match self.list(r) {
            Ok(body) => Next::Respond(body),
            Err(status) => Next::Status(status),
        }
    }
}

impl List {
    fn list(&self, r: &mut Request) -> std::result::Result<Body, u16> {
        let mut path = Vec::with_capacity(128);
        paths::write_path(r, &r.uri, &mut path)?;
        if path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let callback = match self.format {
            Format::Jsonp => callback(r)?,
            _ => None,
        };
        let folder = open_folder(r, &path)?;
        r.out.status = 200;
        let content_type: &[u8] = match self.format {
            Format::Html => b"text/html",
            Format::Jsonp if callback.is_some() => b"application/javascript",
            Format::Json | Format::Jsonp => b"application/json",
            Format::Xml => b"text/xml",
        };
        r.out.set_content_type(content_type);
        if self.format == Format::Xml {
            r.out.charset.clear();
            r.out.charset.extend_from_slice(b"utf-8");
        }
        let mut entries = Vec::new();
        for entry in folder {
            let entry = match entry {
                Ok(e) => e,
                Err(e) => return Err(failed(r, "readdir()", &path, &e)),
            };
            if let Some(entry) = look_at(r, &path, &entry)? {
                entries.push(entry);
            }
        }
        listing::sort(&mut entries);
        let mut out = Vec::with_capacity(256 + entries.len() * 160);
        match self.format {
            Format::Html => {
                let charset = match &r.out.charset[..] {
                    b"" => r.location().hooks.charset(r).unwrap_or_default(),
                    c => c.to_vec(),
                };
                let options = listing::Html {
                    utf8: charset.eq_ignore_ascii_case(b"utf-8"),
                    exact_size: self.exact_size,
                    offset: if self.local_time {
                        crate::http::date::local_offset(crate::http::date::time().0)
                    } else {
                        0
                    },
                };
                listing::html(&r.uri, &entries, options, &mut out);
            }
            Format::Json | Format::Jsonp => listing::json(&entries, callback.as_deref(), &mut out),
            Format::Xml => listing::xml(&entries, &mut out),
        }
        Ok(Body::Unsized(Bytes::from(out)))
    }
}

/// Opens a directory to be listed; what fails is logged.
///
/// # Errors
/// 403, 404 or 500.
pub(super) fn open_folder(r: &Request, path: &[u8]) -> std::result::Result<std::fs::ReadDir, u16> {
    use nix::libc::{EACCES, ENAMETOOLONG, ENOENT, ENOTDIR};
    std::fs::read_dir(Path::new(OsStr::from_bytes(path))).map_err(|e| {
        let (level, status) = match e.raw_os_error() {
            Some(ENOENT | ENOTDIR | ENAMETOOLONG) => (Level::Error, 404),
            Some(EACCES) => (Level::Error, 403),
            _ => (Level::Crit, 500),
        };
        let (path, errno) = (crate::http::text::shown(path), Errno::of(&e));
        r.error(level, format_args!("opendir() \"{path}\" failed{errno}"));
        status
    })
}

/// Logs a system call that failed, and gives 500.
pub(super) fn failed(r: &Request, call: &str, path: &[u8], e: &io::Error) -> u16 {
    r.error(
        Level::Crit,
        format_args!(
            "{call} \"{}\" failed{}",
            crate::http::text::shown(path),
            Errno::of(e)
        ),
    );
    500
}

fn look_at(
    r: &Request,
    folder: &[u8],
    entry: &DirEntry,
) -> std::result::Result<Option<Entry>, u16> {
    use nix::libc::{EACCES, ELOOP, ENOENT};
    let name = std::os::unix::ffi::OsStringExt::into_vec(entry.file_name());
    if name.starts_with(b".") {
        return Ok(None);
    }
    let path = entry.path();
    let shown = || [folder, b"/", &name].concat();
    let info = match std::fs::metadata(&path) {
        Ok(info) => info,
        // a link that leads nowhere is listed as what it is
        Err(e) if matches!(e.raw_os_error(), Some(ENOENT | ELOOP)) => {
            std::fs::symlink_metadata(&path).map_err(|e| failed(r, "lstat()", &shown(), &e))?
        }
        Err(e) => {
            let status = failed(r, "stat()", &shown(), &e);
            return if e.raw_os_error() == Some(EACCES) {
                Ok(None)
            } else {
                Err(status)
            };
        }
    };
    Ok(Some(Entry {
        name,
        kind: kind(&info),
        mtime: info.mtime(),
        size: info.len(),
    }))
}

fn kind(info: &Metadata) -> Kind {
    match () {
        () if info.is_dir() => Kind::Directory,
        () if info.is_file() => Kind::File,
        () => Kind::Other,
    }
}

/// The `callback` argument; `None` makes plain JSON of it.
fn callback(r: &Request) -> std::result::Result<Option<Vec<u8>>, u16> {
    let Some(name) = crate::http::uri::arg(&r.args, b"callback") else {
        return Ok(None);
    };
    let problem = if name.len() > 128 {
        "too long"
    } else if !name
        .iter()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.'))
    {
        "invalid"
    } else {
        return Ok((!name.is_empty()).then(|| name.to_vec()));
    };
    r.error(
        Level::Info,
        format_args!(
            "client sent {problem} callback name: \"{}\"",
            String::from_utf8_lossy(name)
        ),
    );
    Err(400)
}
