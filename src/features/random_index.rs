//! `random_index`: any file stands for its directory.

use super::autoindex::{failed, open_folder};
use crate::config::Result;
use crate::contract::paths;
use crate::contract::*;
use crate::http::method::Method;
use crate::inherit;
use std::fs::DirEntry;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// nginx's ngx_http_random_index_module.
pub struct RandomIndex;

/// Whether it is on.
#[derive(Clone, Default)]
pub struct RandomIndexConf {
    enable: Option<bool>,
}

impl Conf for RandomIndexConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; enable);
    }
}

impl Module for RandomIndex {
    const NAME: &'static str = "http_random_index";
    type Conf = RandomIndexConf;
    const DIRECTIVES: &'static [Directive<RandomIndexConf>] = &[Directive::new(
        "random_index",
        Place::LOCATION,
        Args::Flag,
        "`random_index on|off;` Answers with any file of the directory. Default: off.",
        |c, s, _| once(&mut c.enable, s, s.flag(0)?),
    )];

    fn attach(conf: &Arc<RandomIndexConf>, on: &mut Hooks) -> Result<()> {
        if conf.enable == Some(true) {
            on.offer_content(Pick);
        }
        Ok(())
    }
}

struct Pick;

impl Handler for Pick {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !r.uri.ends_with(b"/") || !matches!(r.method, Method::Get | Method::Head | Method::Post)
        {
            return Next::Continue;
        }
        match files(r) {
            Ok(names) => match names.get(any(names.len())) {
                Some(name) => {
                    Next::Redirect(RedirectTo::Uri([&r.uri[..], name].concat(), r.args.clone()))
                }
                None => Next::Continue,
            },
            Err(status) => Next::Status(status),
        }
    }
}

/// The regular files of the directory, hidden ones left out.
fn files(r: &Request) -> std::result::Result<Vec<Vec<u8>>, u16> {
    let mut path = Vec::with_capacity(128);
    paths::write_path(r, &r.uri, &mut path)?;
    if path.len() > 1 && path.ends_with(b"/") {
        path.pop();
    }
    let mut names = Vec::new();
    for entry in open_folder(r, &path)? {
        let entry = entry.map_err(|e| failed(r, "readdir()", &path, &e))?;
        let name = entry.file_name().into_vec();
        if !name.starts_with(b".")
            && is_file(&entry)
                .map_err(|e| failed(r, "stat()", &[&path[..], b"/", &name].concat(), &e))?
        {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_file(entry: &DirEntry) -> std::io::Result<bool> {
    let kind = entry.file_type()?;
    if !kind.is_symlink() {
        return Ok(kind.is_file());
    }
    match std::fs::metadata(entry.path()) {
        Ok(info) => Ok(info.is_file()),
        // a link that leads nowhere
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// A number below `n`; 0 where there is none.
fn any(n: usize) -> usize {
    // every RandomState has keys of its own, drawn from the system's randomness
    let random = RandomState::new().build_hasher().finish();
    ((u128::from(random) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_every_one() {
        let mut seen = [false; 4];
        for _ in 0..1000 {
            seen[any(4)] = true;
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(any(0), 0);
    }
}
