//! The file that a URI stands for (`root`, `alias`).

use super::{Request, Root};
use crate::log::{Errno, Level};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file that the URI stands for (`root`, `alias`); empty where there is none.
pub fn map_path(r: &Request) -> Vec<u8> {
    map_uri(r, &r.uri)
}

/// The same for any URI of the request's location.
pub fn map_uri(r: &Request, uri: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(128);
    match write_path(r, uri, &mut path) {
        Ok(_) => path,
        Err(_) => Vec::new(),
    }
}

/// Appends the file that a URI of the request's location stands for, and returns how long its root is.
///
/// # Errors
/// 500, logged, where `alias` is in force and `rewrite … break` changed the URI.
pub fn write_path(r: &Request, uri: &[u8], out: &mut Vec<u8>) -> Result<usize, u16> {
    let location = r.location();
    let root = &location.core.root;
    if root.replaces > 0 && !r.valid_location {
        let name = crate::http::text::shown(&location.name);
        r.error(
            Level::Alert,
            format_args!("\"alias\" cannot be used in location \"{name}\" where URI was rewritten"),
        );
        return Err(500);
    }
    let begin = out.len();
    write_root(r, out);
    let length = out.len() - begin;
    match root.replaces {
        Root::WHOLE if r.add_uri_to_alias => out.extend_from_slice(uri),
        n => out.extend_from_slice(uri.get(n..).unwrap_or_default()),
    }
    Ok(length)
}

/// Appends `$document_root`: the path of `root` or `alias`.
pub fn write_root(r: &Request, out: &mut Vec<u8>) {
    let path = &r.core().root.path;
    let begin = out.len();
    path.write(r, out);
    // what has no variables was made absolute when it was read
    if path.as_literal().is_none() && out.get(begin) != Some(&b'/') {
        let mut prefix = r.site.main.prefix.as_os_str().as_bytes().to_vec();
        if !prefix.ends_with(b"/") {
            prefix.push(b'/');
        }
        out.splice(begin..begin, prefix);
    }
}

/// `$realpath_root`: the root without symbolic links; `None`, logged, where it cannot be resolved.
pub fn realpath_root(r: &Request) -> Option<Vec<u8>> {
    let mut root = Vec::with_capacity(128);
    write_root(r, &mut root);
    match Path::new(OsStr::from_bytes(&root)).canonicalize() {
        Ok(real) => Some(std::os::unix::ffi::OsStringExt::into_vec(
            real.into_os_string(),
        )),
        Err(e) => {
            let (root, errno) = (crate::http::text::shown(&root), Errno::of(&e));
            r.error(
                Level::Crit,
                format_args!("realpath() \"{root}\" failed{errno}"),
            );
            None
        }
    }
}
