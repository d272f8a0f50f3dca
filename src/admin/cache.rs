//! `couloir cache`: lists the objects of a cache zone, and shows one with all that is known of it.
//!
//! It reads the files below the zone's folder; a running server is not asked and not disturbed.

use crate::cache::store::{self, Object, ReadError};
use crate::cache::{CachePath, Digest};
use crate::config::Disk;
use crate::contract::ModuleRegistry;
use crate::engine::load::load_written;
use crate::http::date;
use crate::log::{ErrorLog, Level, set_process_log};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use structopt::StructOpt;

/// Lists and shows the objects of a cache.
#[derive(Debug, StructOpt)]
#[structopt(name = "couloir cache", no_version)]
struct Options {
    /// Configuration file
    #[structopt(short = "c", parse(from_os_str))]
    conf: Option<PathBuf>,
    /// Prefix of relative paths
    #[structopt(short = "p", parse(from_os_str))]
    prefix: Option<PathBuf>,
    #[structopt(subcommand)]
    what: What,
}

#[derive(Debug, StructOpt)]
enum What {
    /// One line for each object: digest, status, bytes, seconds until it is stale, key
    Ls {
        /// The zone; not needed where there is but one
        #[structopt(long)]
        zone: Option<String>,
        /// Only objects whose key begins so
        #[structopt(long, default_value = "")]
        key_prefix: String,
        /// Only objects with this tag
        #[structopt(long)]
        tag: Option<String>,
    },
    /// Everything that is known of one object
    Inspect {
        /// The zone; not needed where there is but one
        #[structopt(long)]
        zone: Option<String>,
        /// Its key, or its digest
        key: String,
    },
}

/// Runs the subcommand; `args` begin with its name.
pub fn main(registry: ModuleRegistry, args: &[OsString]) -> i32 {
    let options = match Options::from_iter_safe(args) {
        Ok(options) => options,
        Err(e) => {
            // help was asked for, or something is wrong with the arguments
            let _ = writeln!(io::stderr(), "{}", e.message);
            return i32::from(e.use_stderr());
        }
    };
    match run(registry, &options) {
        Ok(()) => 0,
        Err(message) => {
            let _ = writeln!(io::stderr(), "{message}");
            1
        }
    }
}

fn run(registry: ModuleRegistry, options: &Options) -> Result<(), String> {
    set_process_log(ErrorLog::stderr(Level::Emerg));
    let load = super::load_options(options.conf.as_deref(), options.prefix.as_deref(), None)?;
    let (loaded, _) = load_written(&Arc::new(registry), &load, &Disk)
        .map_err(|e| format!("nginx: [{}] {}", e.diag.level.name(), e.diag))?;
    let zones = &loaded.site.cache_paths();
    let out = &mut io::BufWriter::new(io::stdout().lock());
    let written = match &options.what {
        What::Ls {
            zone,
            key_prefix,
            tag,
        } => {
            let path = choose(zones, zone.as_deref())?;
            let mut list = Lister {
                out,
                prefix: key_prefix.as_bytes(),
                tag: tag.as_deref().map(str::as_bytes),
                now: date::time().0,
            };
            list.folder(&path.zone.root, 0)
        }
        What::Inspect { zone, key } => {
            let path = choose(zones, zone.as_deref())?;
            let digest = Digest::from_hex(key).unwrap_or_else(|| Digest::of(key.as_bytes()));
            let file = path.zone.path(digest);
            let object = store::read(&file, 0).map_err(|e| match e {
                ReadError::Missing => format!("no object {}", file.display()),
                ReadError::Damaged(d) => format!("{} {d}", file.display()),
                ReadError::Collision => format!("{} is of another key", file.display()),
                ReadError::Io(e) => format!("{}: {e}", file.display()),
            })?;
            show(out, &file, &object)
        }
    };
    match written.and_then(|()| out.flush()) {
        // a reader that has gone needs no more of it
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(()),
    }
}

fn choose<'z>(zones: &'z [Arc<CachePath>], name: Option<&str>) -> Result<&'z CachePath, String> {
    let names = || {
        let list: Vec<&str> = zones.iter().map(|z| z.name.as_str()).collect();
        list.join(", ")
    };
    match (name, zones) {
        (None, [one]) => Ok(one),
        (None, []) => Err("no location of the configuration uses a cache".to_owned()),
        (None, _) => Err(format!("which zone? --zone is one of {}", names())),
        (Some(name), _) => zones
            .iter()
            .find(|z| z.name == name)
            .map(|z| &**z)
            .ok_or_else(|| format!("no zone \"{name}\"; there is {}", names())),
    }
}

struct Lister<'a, W> {
    out: &'a mut W,
    prefix: &'a [u8],
    tag: Option<&'a [u8]>,
    now: i64,
}

impl<W: Write> Lister<'_, W> {
    fn folder(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        for entry in std::fs::read_dir(path)?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if depth < 3 && name.len() <= 2 {
                    self.folder(&entry.path(), depth + 1)?;
                }
            } else if Digest::from_hex(&name).is_some()
                && let Ok(object) = store::read(&entry.path(), 0)
            {
                self.object(&name, &object)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, digest: &str, object: &Object) -> io::Result<()> {
        let meta = &object.meta;
        let tagged = |tag: &[u8]| crate::cache::split_tags(&meta.tags).any(|t| t == tag);
        if !meta.key.starts_with(self.prefix) || !self.tag.is_none_or(tagged) {
            return Ok(());
        }
        writeln!(
            self.out,
            "{digest} {} {} {} {}",
            object.head.status,
            object.body.len(),
            meta.valid.saturating_sub(self.now),
            meta.key.escape_ascii()
        )
    }
}

fn show(out: &mut impl Write, file: &Path, object: &Object) -> io::Result<()> {
    let meta = &object.meta;
    let time = |t: i64| String::from_utf8_lossy(&date::format(t)).into_owned();
    writeln!(out, "file: {}", file.display())?;
    writeln!(out, "key: {}", meta.key.escape_ascii())?;
    writeln!(out, "stored: {}", time(meta.date))?;
    writeln!(out, "fresh until: {}", time(meta.valid))?;
    writeln!(out, "stale while updating: {}s", meta.updating)?;
    writeln!(out, "stale if error: {}s", meta.error)?;
    for (name, text) in [("vary", &meta.vary), ("tags", &meta.tags)] {
        if !text.is_empty() {
            writeln!(out, "{name}: {}", text.escape_ascii())?;
        }
    }
    writeln!(out, "body: {} bytes", object.body.len())?;
    writeln!(out)?;
    writeln!(out, "{}", object.head.status_line.escape_ascii())?;
    for (name, value) in object.head.headers.iter() {
        writeln!(out, "{}: {}", name.escape_ascii(), value.escape_ascii())?;
    }
    Ok(())
}
