//! `index`: the file that stands for a directory.

use crate::config::Result;
use crate::contract::files::{self, Failure};
use crate::contract::paths;
use crate::contract::*;
use crate::http::method::Method;
use crate::inherit;
use crate::log::Level;
use std::sync::Arc;

/// Index files: nginx's ngx_http_index_module.
pub struct Index;

/// Names in the order in which they are tried.
#[derive(Clone, Default)]
pub struct IndexConf {
    names: Option<Vec<Template>>,
}

impl Conf for IndexConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; names);
    }
}

impl Module for Index {
    const NAME: &'static str = "http_index";
    type Conf = IndexConf;
    const ALWAYS: bool = true;
    const DIRECTIVES: &'static [Directive<IndexConf>] = &[Directive::new(
        "index",
        Place::ANY_HTTP,
        Args::AtLeast(1),
        "`index file …;` Files that stand for a directory, the first that exists; the last may be an absolute URI. Default: index.html.",
        |c, s, b| {
            for i in 0..s.len() {
                let name = s.arg(i);
                if name.starts_with(b"/") && i + 1 < s.len() {
                    b.warn(s.warn_at(
                        i,
                        "only the last index in \"index\" directive should be absolute",
                    ));
                }
                if name.is_empty() {
                    return Err(s.error_at(i, "index \"\" in \"index\" directive is invalid"));
                }
                let name = b.template(s, i)?;
                c.names.get_or_insert_default().push(name);
            }
            Ok(())
        },
    )];

    fn attach(conf: &Arc<IndexConf>, on: &mut Hooks) -> Result<()> {
        let names = conf
            .names
            .clone()
            .unwrap_or_else(|| vec![Template::literal(b"index.html")]);
        on.offer_content(Find {
            names: names.into(),
        });
        Ok(())
    }
}

struct Find {
    names: Box<[Template]>,
}

impl Handler for Find {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !r.uri.ends_with(b"/") || !matches!(r.method, Method::Get | Method::Head | Method::Post)
        {
            return Next::Continue;
        }
        let mut path = r.scratch();
        let next = self.find(r, &mut path);
        r.put_scratch(path);
        next
    }
}

impl Find {
    fn find(&self, r: &mut Request, path: &mut Vec<u8>) -> Next<'static> {
        if let Err(status) = paths::write_path(r, &r.uri, path) {
            return Next::Status(status);
        }
        let folder = path.len();
        let mut folder_tested = false;
        for name in &self.names {
            path.truncate(folder);
            name.write(r, path);
            let name = path.get(folder..).unwrap_or_default();
            if name.starts_with(b"/") {
                return Next::Redirect(RedirectTo::Uri(name.to_vec(), r.args.clone()));
            }
            let e = match files::stat(r, path) {
                Ok(_) => {
                    let uri = [&r.uri[..], name].concat();
                    return Next::Redirect(RedirectTo::Uri(uri, r.args.clone()));
                }
                Err(e) => e,
            };
            if e.is_link() {
                return Next::Status(403);
            }
            if e.is_denied() || (e.is_missing() && !e.is_not_found()) {
                return Next::Status(refuse(r, path, e));
            }
            if !folder_tested {
                if let Err(status) = test_folder(r, path, folder) {
                    return Next::Status(status);
                }
                folder_tested = true;
            }
            if !e.is_not_found() {
                files::log_failure(r, &e, Level::Crit, path);
                return Next::Status(500);
            }
        }
        Next::Continue
    }
}

/// Whether the folder is there at all; `path` is that of the first file in it.
fn test_folder(r: &Request, path: &[u8], folder: usize) -> std::result::Result<(), u16> {
    let name = match path.get(..folder).unwrap_or_default() {
        [] | b"/" => &b"/"[..],
        [name @ .., b'/'] => name,
        // an alias without a slash at its end
        name => name,
    };
    match files::stat(r, name) {
        Ok(info) if info.is_dir() => Ok(()),
        Ok(_) => {
            r.error(
                Level::Alert,
                format_args!("\"{}\" is not a directory", crate::http::text::shown(name)),
            );
            Err(500)
        }
        Err(e) if e.is_link() => Err(403),
        Err(e) if e.is_not_found() => Err(refuse(r, path, e)),
        // the first file was looked for, so the folder may be searched
        Err(e) if e.is_denied() => Ok(()),
        Err(e) => {
            files::log_failure(r, &e, Level::Crit, name);
            Err(500)
        }
    }
}

fn refuse(r: &Request, path: &[u8], e: Failure) -> u16 {
    let name = crate::http::text::shown(path);
    if e.is_denied() {
        r.error(
            Level::Error,
            format_args!("\"{name}\" is forbidden{}", e.errno),
        );
        return 403;
    }
    if r.core().log_not_found {
        r.error(
            Level::Error,
            format_args!("\"{name}\" is not found{}", e.errno),
        );
    }
    404
}
