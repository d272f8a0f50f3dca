//! `try_files`: the first of several files that exists, or somewhere else.

use crate::config::Result;
use crate::config::value::parse_number;
use crate::contract::*;
use crate::contract::{files, paths};
use crate::log::Level;
use std::sync::Arc;

/// nginx's ngx_http_try_files_module.
pub struct TryFiles;

/// What is tried, and what is done if nothing was found.
#[derive(Clone, Default)]
pub struct TryFilesConf {
    tries: Option<Arc<Tries>>,
}

impl Conf for TryFilesConf {
    const INHERITED: bool = false;

    fn inherit(&mut self, _outer: &Self) {}
}

#[derive(Debug)]
struct Tries {
    files: Vec<Try>,
    last: Last,
}

#[derive(Debug)]
struct Try {
    name: Template,
    /// The name was written with a slash at its end.
    directory: bool,
}

#[derive(Debug)]
enum Last {
    Status(u16),
    /// A URI with its arguments, or a named location.
    Uri(Template),
}

impl Module for TryFiles {
    const NAME: &'static str = "http_try_files";
    type Conf = TryFilesConf;
    const DIRECTIVES: &'static [Directive<TryFilesConf>] = &[Directive::new(
        "try_files",
        Place::SERVER.or(Place::LOCATION),
        Args::AtLeast(2),
        "`try_files file … uri;`, `try_files file … =code;` Serves the first file that exists (with `/` at the end: the first directory), else goes to the URI or `@name`, or ends with the code.",
        |c, s, b| {
            if c.tries.is_some() {
                return Err(s.duplicate());
            }
            c.tries = Some(Arc::new(parse(s, b)?));
            Ok(())
        },
    )];

    fn attach(conf: &Arc<TryFilesConf>, on: &mut Hooks) -> Result<()> {
        if let Some(tries) = &conf.tries {
            on.on(
                Phase::PreContent,
                Find {
                    tries: tries.clone(),
                },
            );
        }
        Ok(())
    }
}

fn parse(s: &Statement, b: &mut Build) -> Result<Tries> {
    let last = s.len().saturating_sub(1);
    let mut files = Vec::with_capacity(last);
    for i in 0..last {
        let (name, directory) = match s.arg(i) {
            [name @ .., b'/'] => (name, true),
            name => (name, false),
        };
        files.push(Try {
            name: b.template_of(s, name)?,
            directory,
        });
    }
    let last = match s.arg(last) {
        [b'=', code @ ..] => match parse_number(code) {
            Some(code @ 0..=999) => Last::Status(code as u16),
            _ => {
                return Err(s.error_at(
                    last,
                    format!("invalid code \"{}\"", String::from_utf8_lossy(s.arg(last))),
                ));
            }
        },
        uri => Last::Uri(b.template_of(s, uri)?),
    };
    Ok(Tries { files, last })
}

struct Find {
    tries: Arc<Tries>,
}

impl Handler for Find {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        let mut path = r.scratch();
        let next = self.tries.find(r, &mut path);
        r.put_scratch(path);
        next
    }
}

impl Tries {
    fn find(&self, r: &mut Request, path: &mut Vec<u8>) -> Next<'static> {
        let root = match paths::write_path(r, b"", path) {
            Ok(root) => root,
            Err(status) => return Next::Status(status),
        };
        for file in &self.files {
            write_name(r, &file.name, root, path);
            let found_there = files::stat(r, path);
            r.explain(|| {
                let there = matches!(&found_there, Ok(info) if info.is_dir() == file.directory);
                let what = if file.directory { "folder" } else { "file" };
                let shown = crate::http::text::shown(path);
                let verdict = if there { "is there" } else { "is not there" };
                Step::new("try_files", format!("the {what} \"{shown}\" {verdict}")).by("try_files")
            });
            match found_there {
                Ok(info) if info.is_dir() == file.directory => {
                    found(r, path.get(root..).unwrap_or_default(), file.directory);
                    return Next::Continue;
                }
                Ok(_) => {}
                Err(e) if e.is_missing() => {}
                Err(e) => files::log_failure(r, &e, Level::Crit, path),
            }
        }
        match &self.last {
            Last::Status(code) => Next::Status(*code),
            Last::Uri(uri) => {
                write_name(r, uri, root, path);
                let uri = path.get(root..).unwrap_or_default();
                if uri.starts_with(b"@") {
                    return Next::Redirect(RedirectTo::Named(uri.to_vec()));
                }
                let (uri, args) = crate::http::uri::split_args(uri);
                Next::Redirect(RedirectTo::Uri(uri.to_vec(), args.to_vec()))
            }
        }
    }
}

/// Puts a name behind the root; below an `alias`, what the alias replaces is taken off names with variables.
fn write_name(r: &Request, name: &Template, root: usize, path: &mut Vec<u8>) {
    path.truncate(root);
    name.write(r, path);
    let replaces = r.core().root.replaces;
    if replaces > 0
        && name.as_literal().is_none()
        && let Some(prefix) = r.uri.get(..replaces)
        && path.get(root..).is_some_and(|n| n.starts_with(prefix))
    {
        path.drain(root..root + replaces);
    }
}

/// Makes the file that was found the request's URI.
fn found(r: &mut Request, name: &[u8], directory: bool) {
    match r.core().root.replaces {
        0 => {
            r.uri.clear();
            r.uri.extend_from_slice(name);
        }
        Root::WHOLE if directory => {}
        Root::WHOLE => {
            r.uri.clear();
            r.uri.extend_from_slice(name);
            r.add_uri_to_alias = true;
        }
        n => {
            r.uri.truncate(n);
            r.uri.extend_from_slice(name);
        }
    }
}
