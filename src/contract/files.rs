//! Local files of a location: opened or looked up as `open_file_cache` and `disable_symlinks` say.

use super::Request;
pub use crate::files::Found;
pub use crate::files::{Failure, Info, Kind};
use crate::files::{Links, open_now, stat_now, trusted};
use crate::log::Level;
use std::sync::Arc;

/// Opens a file for reading, or takes it from `open_file_cache`. A FIFO or device does not block; a folder may not be open.
///
/// # Errors
/// The system call that failed.
pub fn open(r: &Request, path: &[u8]) -> Result<Found, Failure> {
    let links = links(r, path);
    match &r.core().open_file_cache {
        None => open_now(path, links).map(|(file, info)| (Some(Arc::new(file)), info)),
        Some(rules) => {
            let now = crate::http::date::time().0;
            let look = || stat_now(path, links);
            rules.open(path, links, now, || open_now(path, links), look)
        }
    }
}

/// Looks at a file. With `open_file_cache`, whoever looks at it will want it next: it is opened.
///
/// # Errors
/// The system call that failed.
pub fn stat(r: &Request, path: &[u8]) -> Result<Info, Failure> {
    if r.core().open_file_cache.is_some() {
        return open(r, path).map(|(_, info)| info);
    }
    stat_now(path, links(r, path))
}

/// Logs `open() "path" failed (2: No such file or directory)`.
pub fn log_failure(r: &Request, failure: &Failure, level: Level, path: &[u8]) {
    r.error(
        level,
        format_args!(
            "{} \"{}\" failed{}",
            failure.call,
            crate::http::text::shown(path),
            failure.errno
        ),
    );
}

fn links(r: &Request, path: &[u8]) -> Links {
    match &r.core().disable_symlinks {
        (0, _) => Links::Followed,
        (mode, None) => Links::Checked {
            owner: *mode == 2,
            from: 0,
        },
        (mode, Some(from)) => match trusted(path, &from.eval(r)) {
            Some(from) => Links::Checked {
                owner: *mode == 2,
                from,
            },
            None => Links::Followed,
        },
    }
}

/// Logs what operations on a tree of files came to.
pub fn log_lines(r: &Request, journal: crate::files::tree::Journal) {
    for (level, text) in journal.into_lines() {
        r.error(level, format_args!("{text}"));
    }
}
