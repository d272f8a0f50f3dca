//! `access_log`, `log_format` and `open_log_file_cache`.

use crate::config::{Result, Statement, value};
use crate::contract::once;
use crate::contract::*;
use crate::http::{date, escape};
use crate::log::{
    AccessLogError, AccessLogs, AccessWriter, Buffering, CacheLimits, FileCache, LogFiles,
    SyslogConfig, SyslogPeer,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Access logs.
pub struct AccessLog;

/// Access logs of a block.
#[derive(Default, Clone)]
pub struct AccessLogConf {
    logs: Option<Vec<Entry>>,
    off: bool,
    cache: Option<Arc<FileCache>>,
}

impl Conf for AccessLogConf {
    fn inherit(&mut self, outer: &Self) {
        if self.cache.is_none() {
            self.cache.clone_from(&outer.cache);
        }
        if self.logs.is_none() && !self.off {
            self.logs.clone_from(&outer.logs);
            self.off = outer.off;
        }
    }
}

/// One `access_log`.
#[derive(Clone)]
struct Entry {
    to: To,
    format: Arc<Format>,
    condition: Option<Template>,
}

#[derive(Clone)]
enum To {
    /// A file; the cell is filled when everything has been read.
    File(WriterCell),
    /// A path with variables.
    Path(Template),
    Syslog(Arc<SyslogPeer>),
}

type WriterCell = Arc<OnceLock<Arc<AccessWriter>>>;

/// A compiled `log_format`.
struct Format {
    ops: Box<[Op]>,
    escape: Escape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    Default,
    Json,
    None,
}

/// A piece of a line. What logs ask for most is written without going through a variable.
enum Op {
    Literal(Box<[u8]>),
    Var(VarId),
    TimeLocal,
    TimeIso8601,
    Msec,
    RequestTime,
    Status,
    BytesSent,
    BodyBytesSent,
}

/// The formats known so far, in order; `combined` is compiled when it is first used.
#[derive(Default)]
struct Formats {
    named: Vec<(Box<[u8]>, Arc<Format>)>,
    combined: Option<Arc<Format>>,
}

/// The files of this configuration.
struct Files(AccessLogs<'static>);

impl Default for Files {
    fn default() -> Self {
        Files(AccessLogs::new(LogFiles::global()))
    }
}

/// The cells of the files that are still to be opened.
#[derive(Default)]
struct Cells(HashMap<PathBuf, WriterCell>);

const COMBINED: &[u8] = b"$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_referer\" \"$http_user_agent\"";

impl Module for AccessLog {
    const NAME: &'static str = "http_log";
    type Conf = AccessLogConf;
    const DIRECTIVES: &'static [Directive<AccessLogConf>] = &[
        Directive::new(
            "log_format",
            Place::HTTP,
            Args::AtLeast(2),
            "`log_format name [escape=default|json|none] string …;` A format of lines. Default: combined.",
            |_, s, b| log_format(s, b),
        ),
        Directive::new(
            "access_log",
            Place::ANY_HTTP_IF.or(Place::LIMIT_EXCEPT),
            Args::AtLeast(1),
            "`access_log path [format [buffer=size] [gzip[=level]] [flush=time] [if=condition]];` or `access_log off;` A line for every request; the path may be `syslog:server=…` or have variables. Default: logs/access.log combined.",
            access_log,
        ),
        Directive::new(
            "open_log_file_cache",
            Place::ANY_HTTP,
            Args::Between(1, 4),
            "`open_log_file_cache max=N [inactive=time] [min_uses=N] [valid=time];` or `open_log_file_cache off;` Keeps log files open whose paths have variables. Default: off.",
            open_log_file_cache,
        ),
    ];

    /// Servers that name no access log get the default one.
    fn configured(b: &mut Build) -> Result<()> {
        let servers: Vec<BlockId> = b.blocks_of(Place::SERVER).collect();
        for id in servers {
            let says = |id| {
                b.written::<AccessLog>(id)
                    .is_some_and(|c| c.off || c.logs.is_some())
            };
            if says(id) || b.parent_of(id).is_some_and(says) {
                continue;
            }
            let format = combined(b)?;
            let path = b.prefixed(crate::log::HTTP_LOG_PATH);
            let to = To::File(open_at_end(b, path, None, None));
            if let Some(c) = b.conf_of::<AccessLog>(id) {
                c.logs = Some(vec![Entry {
                    to,
                    format,
                    condition: None,
                }]);
            }
        }
        Ok(())
    }

    fn attach(conf: &Arc<AccessLogConf>, on: &mut Hooks) -> Result<()> {
        if conf.off || on.level() == crate::contract::Level::Server {
            return Ok(());
        }
        for entry in conf.logs.iter().flatten() {
            let cache = conf
                .cache
                .clone()
                .unwrap_or_else(|| Arc::new(FileCache::off()));
            on.log(Writer {
                entry: entry.clone(),
                cache,
            });
        }
        Ok(())
    }
}

/// Writes one log of a location.
struct Writer {
    entry: Entry,
    cache: Arc<FileCache>,
}

impl Logger for Writer {
    fn log(&self, r: &mut Request) {
        if let Some(condition) = &self.entry.condition
            && !is_true(&condition.eval(r))
        {
            return;
        }
        thread_local! {
            static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        // taken, not borrowed: a failure is logged, and that may come back here
        let mut line = LINE.try_with(Cell::take).unwrap_or_default();
        line.clear();
        self.entry.format.write(r, &mut line);
        self.send(r, &mut line);
        let _ = LINE.try_with(|l| l.set(line));
    }
}

impl Writer {
    fn send(&self, r: &mut Request, line: &mut Vec<u8>) {
        let outcome = match &self.entry.to {
            To::Syslog(peer) => {
                if let Err(e) = peer.send_access(line) {
                    r.error(
                        crate::log::Level::Warn,
                        format_args!("{e} while logging request"),
                    );
                }
                return;
            }
            To::File(cell) => match cell.get() {
                Some(writer) => {
                    line.push(b'\n');
                    writer.write(line)
                }
                None => return,
            },
            To::Path(template) => {
                line.push(b'\n');
                if !root_exists(r) {
                    return;
                }
                let path = template.eval(r);
                self.cache
                    .write(Path::new(std::ffi::OsStr::from_bytes(&path)), line)
            }
        };
        if let Err(e) = outcome {
            r.error(e.level(), format_args!("{e} while logging request"));
        }
    }
}

/// nginx writes no log whose name comes from the request where the root of the request does not exist.
fn root_exists(r: &Request) -> bool {
    let root = crate::contract::paths::map_uri(r, b"");
    let path = Path::new(std::ffi::OsStr::from_bytes(&root));
    let error = match std::fs::metadata(path) {
        Ok(m) if m.is_dir() => return true,
        Ok(_) => std::io::Error::from_raw_os_error(libc::ENOTDIR),
        Err(e) => e,
    };
    let errno = crate::log::Errno::of(&error);
    r.error(
        crate::log::Level::Error,
        format_args!(
            "testing \"{}\" existence failed{errno} while logging request",
            path.display()
        ),
    );
    false
}

fn is_true(v: &[u8]) -> bool {
    !v.is_empty() && v != b"0"
}

impl Format {
    fn compile(
        b: &mut Build,
        escape: Escape,
        pieces: &[&[u8]],
        s: Option<&Statement>,
    ) -> Result<Format> {
        let invalid = |from: &[u8]| {
            let text = format!("invalid parameter \"{}\"", String::from_utf8_lossy(from));
            s.map_or_else(|| Diag::plain(text.clone()), |s| s.error(text.clone()))
        };
        let mut ops = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let Some(name) = rest.strip_prefix(b"$") else {
                    let len = memchr::memchr(b'$', rest).unwrap_or(rest.len());
                    let (literal, next) = rest.split_at(len);
                    // the next piece of the same line joins on
                    match ops.last_mut() {
                        Some(Op::Literal(l)) => *l = [l, literal].concat().into(),
                        _ => ops.push(Op::Literal(literal.into())),
                    }
                    rest = next;
                    continue;
                };
                let braced = name.first() == Some(&b'{');
                let name = name.get(usize::from(braced)..).unwrap_or_default();
                let len = name
                    .iter()
                    .take_while(|c| c.is_ascii_alphanumeric() || **c == b'_')
                    .count();
                let (name, next) = name.split_at(len);
                let name = std::str::from_utf8(name).unwrap_or_default();
                let next = match (braced, next) {
                    (false, next) | (true, [b'}', next @ ..]) => next,
                    (true, []) if len == 0 => return Err(invalid(rest)),
                    (true, _) => {
                        let text = format!("the closing bracket in \"{name}\" variable is missing");
                        return Err(
                            s.map_or_else(|| Diag::plain(text.clone()), |s| s.error(text.clone()))
                        );
                    }
                };
                if len == 0 {
                    return Err(invalid(rest));
                }
                ops.push(match name {
                    "time_local" => Op::TimeLocal,
                    "time_iso8601" => Op::TimeIso8601,
                    "msec" => Op::Msec,
                    "request_time" => Op::RequestTime,
                    "status" => Op::Status,
                    "bytes_sent" => Op::BytesSent,
                    "body_bytes_sent" => Op::BodyBytesSent,
                    _ => Op::Var(match s {
                        Some(s) => b.var(s, name),
                        None => b.known_var(name),
                    }),
                });
                rest = next;
            }
        }
        Ok(Format {
            ops: ops.into(),
            escape,
        })
    }

    /// Appends the line, without its line feed.
    fn write(&self, r: &Request, out: &mut Vec<u8>) {
        for op in &self.ops {
            match op {
                Op::Literal(l) => out.extend_from_slice(l),
                Op::Var(id) => self.value(&r.var(*id), out),
                Op::TimeLocal => out.extend_from_slice(&date::now().time_local),
                Op::TimeIso8601 => out.extend_from_slice(&date::now().time_iso8601),
                Op::Msec => {
                    let (sec, msec) = date::time();
                    let _ = write!(out, "{sec}.{msec:03}");
                }
                Op::RequestTime => {
                    let ms = r.elapsed();
                    let _ = write!(out, "{}.{:03}", ms / 1000, ms % 1000);
                }
                Op::Status => {
                    let _ = write!(out, "{:03}", status(r));
                }
                Op::BytesSent => number(r.down.sent(), out),
                Op::BodyBytesSent => number(r.body_bytes_sent(), out),
            }
        }
    }

    fn value(&self, v: &Val<'_>, out: &mut Vec<u8>) {
        match (self.escape, v) {
            (Escape::Default, Val::None) => out.push(b'-'),
            (_, Val::None) => {}
            (Escape::Default, v) => escape::log(v.as_bytes(), out),
            (Escape::Json, v) => escape::json(v.as_bytes(), out),
            (Escape::None, v) => out.extend_from_slice(v.as_bytes()),
        }
    }
}

fn number(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// The status that logs show: what `error_page` forces, what was sent, 9 for HTTP/0.9.
fn status(r: &Request) -> u16 {
    match (r.err_status, r.out.status) {
        (0, 0) if r.version() == crate::http::head::Version::V09 => 9,
        (0, s) => s,
        (s, _) => s,
    }
}

fn combined(b: &mut Build) -> Result<Arc<Format>> {
    if let Some(f) = &b.shared::<Formats>().combined {
        return Ok(f.clone());
    }
    let f = Arc::new(Format::compile(b, Escape::Default, &[COMBINED], None)?);
    b.shared::<Formats>().combined = Some(f.clone());
    Ok(f)
}

fn log_format(s: &Statement, b: &mut Build) -> Result<()> {
    let name = s.arg(0);
    let formats = &b.shared::<Formats>().named;
    if name == b"combined" || formats.iter().any(|(n, _)| **n == *name) {
        return Err(s.error(format!(
            "duplicate \"log_format\" name \"{}\"",
            String::from_utf8_lossy(name)
        )));
    }
    let escape = match s.arg(1).strip_prefix(b"escape=") {
        None => None,
        Some(b"default") => Some(Escape::Default),
        Some(b"json") => Some(Escape::Json),
        Some(b"none") => Some(Escape::None),
        Some(other) => {
            return Err(s.error(format!(
                "unknown log format escaping \"{}\"",
                String::from_utf8_lossy(other)
            )));
        }
    };
    let begin = if escape.is_some() { 2 } else { 1 };
    let pieces: Vec<&[u8]> = (begin..s.len()).map(|i| s.arg(i)).collect();
    let format = Arc::new(Format::compile(
        b,
        escape.unwrap_or(Escape::Default),
        &pieces,
        Some(s),
    )?);
    b.shared::<Formats>().named.push((name.into(), format));
    Ok(())
}

fn access_log(c: &mut AccessLogConf, s: &Statement, b: &mut Build) -> Result<()> {
    let path = s.arg(0);
    if path == b"off" {
        c.off = true;
        return if s.len() == 1 {
            Ok(())
        } else {
            Err(s.invalid_parameter(1))
        };
    }
    let syslog = match path.strip_prefix(b"syslog:") {
        Some(parameters) => Some(SyslogConfig::parse(parameters).map_err(|e| s.error(e))?),
        None => None,
    };
    let name = if s.len() > 1 { s.arg(1) } else { b"combined" };
    let format = if name.eq_ignore_ascii_case(b"combined") {
        combined(b)?
    } else {
        let found = b
            .shared::<Formats>()
            .named
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        match found {
            Some((_, f)) => f.clone(),
            None => {
                return Err(s.error(format!(
                    "unknown log format \"{}\"",
                    String::from_utf8_lossy(name)
                )));
            }
        }
    };
    let mut condition = None;
    let mut size = None;
    let mut flush = None;
    let mut gzip = None;
    for i in 2..s.len() {
        let word = s.arg(i);
        let shown = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        if let Some(v) = word.strip_prefix(b"buffer=") {
            let n = value::parse_size(v).filter(|n| *n > 0);
            size = Some(
                n.ok_or_else(|| s.error(format!("invalid buffer size \"{}\"", shown(v))))? as usize,
            );
        } else if let Some(v) = word.strip_prefix(b"flush=") {
            let n = value::parse_time_ms(v).filter(|n| *n > 0);
            flush = Some(Duration::from_millis(n.ok_or_else(|| {
                s.error(format!("invalid flush time \"{}\"", shown(v)))
            })?));
        } else if word == b"gzip" || word.starts_with(b"gzip=") {
            let level = match word.strip_prefix(b"gzip=") {
                None => 1,
                Some(v) => value::parse_number(v)
                    .filter(|n| (1..=9).contains(n))
                    .ok_or_else(|| s.error(format!("invalid compression level \"{}\"", shown(v))))?
                    as u32,
            };
            gzip = Some(level);
            size = size.or(Some(64 * 1024));
        } else if let Some(v) = word.strip_prefix(b"if=") {
            condition = Some(b.template_of(s, v)?);
        } else {
            return Err(s.invalid_parameter(i));
        }
    }
    let shown = String::from_utf8_lossy(path).into_owned();
    if flush.is_some() && size.is_none() {
        return Err(s.error(format!("no buffer is defined for access_log \"{shown}\"")));
    }
    let with_variables = path.contains(&b'$');
    if size.is_some() && syslog.is_none() && with_variables {
        return Err(s.error("buffered logs cannot have variables in name"));
    }
    if size.is_some() && syslog.is_some() {
        return Err(s.error("logs to syslog cannot be buffered"));
    }
    let buffering = size.map(|size| Buffering { size, flush, gzip });
    let to = match syslog {
        Some(conf) => To::Syslog(Arc::new(SyslogPeer::new(conf))),
        None if with_variables => {
            let full = b.prefix.join(std::ffi::OsStr::from_bytes(path));
            To::Path(b.template_of(s, full.as_os_str().as_bytes())?)
        }
        None => {
            let full = b.prefix.join(std::ffi::OsStr::from_bytes(path));
            let conflict = s.error(format!(
                "access_log \"{shown}\" already defined with conflicting parameters"
            ));
            To::File(open_at_end(b, full, buffering, Some(conflict)))
        }
    };
    c.logs.get_or_insert_default().push(Entry {
        to,
        format,
        condition,
    });
    Ok(())
}

/// Opens a log once the whole configuration has been found right, as nginx does.
fn open_at_end(
    b: &mut Build,
    path: PathBuf,
    buffering: Option<Buffering>,
    conflict: Option<Box<Diag>>,
) -> WriterCell {
    let cell = b
        .shared::<Cells>()
        .0
        .entry(path.clone())
        .or_default()
        .clone();
    let result = cell.clone();
    b.at_end(
        move |b| match b.shared::<Files>().0.open(&path, buffering) {
            Ok(writer) => {
                let _ = cell.set(writer);
                Ok(())
            }
            Err(AccessLogError::Open(e)) => Err(Diag::plain(e.to_string())),
            Err(AccessLogError::Conflict) => Err(conflict.unwrap_or_else(|| {
                Diag::plain("access_log already defined with conflicting parameters")
            })),
        },
    );
    result
}

fn open_log_file_cache(c: &mut AccessLogConf, s: &Statement, _: &mut Build) -> Result<()> {
    let mut limits = CacheLimits {
        max: 0,
        inactive: Duration::from_secs(10),
        min_uses: 1,
        valid: Duration::from_secs(60),
    };
    let mut off = false;
    for i in 0..s.len() {
        let word = s.arg(i);
        let split = memchr::memchr(b'=', word).map_or((word, &b""[..]), |at| word.split_at(at + 1));
        let fits = match split {
            (b"max=", v) => value::parse_number(v).map(|n| limits.max = n as usize),
            (b"inactive=", v) => {
                value::parse_time_sec(v).map(|n| limits.inactive = Duration::from_secs(n))
            }
            (b"min_uses=", v) => value::parse_number(v).map(|n| limits.min_uses = n),
            (b"valid=", v) => {
                value::parse_time_sec(v).map(|n| limits.valid = Duration::from_secs(n))
            }
            (b"off", _) => {
                off = true;
                Some(())
            }
            _ => None,
        };
        if fits.is_none() {
            return Err(s.error(format!(
                "invalid \"open_log_file_cache\" parameter \"{}\"",
                String::from_utf8_lossy(word)
            )));
        }
    }
    if !off && limits.max == 0 {
        return Err(s.error("\"open_log_file_cache\" must have \"max\" parameter"));
    }
    let cache = Arc::new(if off {
        FileCache::off()
    } else {
        FileCache::new(limits)
    });
    if !off {
        LogFiles::global().watch_cache(&cache);
    }
    once(&mut c.cache, s, cache)
}
