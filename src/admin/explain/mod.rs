//! `couloir explain`: which server and location serve a request, and why.
//!
//! The request goes through the very code that serves requests; only origins are not connected to and nothing is
//! logged.

mod report;

use crate::config::Disk;
use crate::contract::{
    ConnInfo, DetachedConn, ListenAddr, Listener, ModuleRegistry, Remote, Request, Site, SiteRef,
    TlsInfo, Trace,
};
use crate::engine::load::load_written;
use crate::engine::phases;
use crate::http::head::Version;
use crate::http::head::{Limits, Parser, Progress};
use crate::log::{ErrorLog, Level, set_process_log};
use report::Report;
use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use structopt::StructOpt;

/// Explains which server and location serve a request, what each step decides, and which directives are in force.
#[derive(Debug, StructOpt)]
#[structopt(name = "couloir explain", no_version)]
struct Options {
    /// Configuration file
    #[structopt(short = "c", parse(from_os_str))]
    conf: Option<PathBuf>,
    /// Prefix of relative paths
    #[structopt(short = "p", parse(from_os_str))]
    prefix: Option<PathBuf>,
    /// Directives of the main level
    #[structopt(short = "g", parse(from_os_str))]
    directives: Option<OsString>,
    /// Header of the request, as 'Name: value'; may be repeated
    #[structopt(short = "H", number_of_values = 1)]
    headers: Vec<String>,
    /// Address of the client
    #[structopt(long, default_value = "127.0.0.1")]
    from: IpAddr,
    /// Listening address, where the port of the URL does not tell which one
    #[structopt(long)]
    to: Option<String>,
    /// Print JSON
    #[structopt(long)]
    json: bool,
    /// Method and URL: 'GET https://host/path'; GET may be left out
    request: String,
}

/// Runs the subcommand; `args` begin with its name.
pub fn main(registry: ModuleRegistry, args: &[OsString]) -> i32 {
    let options = match Options::from_iter_safe(args) {
        Ok(options) => options,
        Err(e) => {
            // help was asked for, or something is wrong with the arguments
            let _ = writeln!(std::io::stderr(), "{}", e.message);
            return i32::from(e.use_stderr());
        }
    };
    match explain(registry, &options) {
        Ok(report) => {
            let text = if options.json {
                serde_json::to_string_pretty(&report).unwrap_or_default()
            } else {
                report.to_string()
            };
            // a reader that has gone needs no more of it
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            0
        }
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            1
        }
    }
}

fn explain(registry: ModuleRegistry, options: &Options) -> Result<Report, String> {
    let wanted = Wanted::parse(&options.request)?;
    set_process_log(ErrorLog::stderr(Level::Emerg));
    let registry = Arc::new(registry);
    let load = super::load_options(
        options.conf.as_deref(),
        options.prefix.as_deref(),
        options.directives.as_deref(),
    )?;
    let (loaded, written) = load_written(&registry, &load, &Disk)
        .map_err(|e| format!("nginx: [{}] {}", e.diag.level.name(), e.diag))?;
    let site = SiteRef::new(Arc::new(loaded.site));
    let index = wanted.listener(&site, options.to.as_deref())?;
    let listener = site
        .listeners
        .get(index)
        .ok_or("there is no listening address")?;
    let mut r = request(&site, index, listener, &wanted, options)?;
    let trace = Arc::new(Trace::dry());
    r.trace = Some(trace.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    runtime.block_on(phases::serve(&mut r));
    Ok(Report::new(
        &options.request,
        listener,
        &r,
        &trace,
        &written,
    ))
}

/// The request that is asked about.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    method: String,
    tls: bool,
    /// As in `Host`.
    authority: String,
    port: u16,
    target: String,
}

impl Wanted {
    /// Reads `METHOD URL` or `URL`.
    fn parse(text: &str) -> Result<Wanted, String> {
        let (method, url) = match text.trim().split_once(' ') {
            Some((method, url)) => (method, url.trim()),
            None => ("GET", text.trim()),
        };
        let (tls, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => {
                return Err(format!(
                    "\"{url}\" is not a URL: it begins with http:// or https://"
                ));
            }
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let target = target.split('#').next().unwrap_or_default();
        if authority.is_empty() {
            return Err(format!("\"{url}\" names no host"));
        }
        let digits = authority
            .bytes()
            .rev()
            .take_while(u8::is_ascii_digit)
            .count();
        let port = match authority.split_at(authority.len() - digits) {
            (before, number) if before.ends_with(':') && !number.is_empty() => number
                .parse()
                .map_err(|_| format!("invalid port in \"{url}\""))?,
            _ if tls => 443,
            _ => 80,
        };
        let target = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("/{target}")
        };
        Ok(Wanted {
            method: method.to_owned(),
            tls,
            authority: authority.to_owned(),
            port,
            target,
        })
    }

    /// The listening address that such a request reaches.
    fn listener(&self, site: &Site, to: Option<&str>) -> Result<usize, String> {
        let all = || {
            let list: Vec<String> = site.listeners.iter().map(|l| l.addr.to_string()).collect();
            list.join(", ")
        };
        if let Some(to) = to {
            let found = site.listeners.iter().position(|l| l.addr.to_string() == to);
            return found.ok_or_else(|| format!("nobody listens on {to}; there are: {}", all()));
        }
        let fits = |l: &&Listener| matches!(l.addr, ListenAddr::Inet(a) if a.port() == self.port);
        let mut there: Vec<&Listener> = site.listeners.iter().filter(fits).collect();
        // an address with the scheme asked for comes first, then one that every host has
        there.sort_by_key(|l| {
            let any = matches!(l.addr, ListenAddr::Inet(a) if a.ip().is_unspecified());
            (l.tls.is_some() != self.tls, !any)
        });
        let Some(first) = there.first() else {
            return Err(format!(
                "nobody listens on port {}; the addresses are: {} (--to names one)",
                self.port,
                all()
            ));
        };
        let index = site.listeners.iter().position(|l| l.addr == first.addr);
        index.ok_or_else(|| "there is no listening address".to_owned())
    }
}

fn request(
    site: &SiteRef,
    index: usize,
    listener: &Listener,
    wanted: &Wanted,
    options: &Options,
) -> Result<Request, String> {
    let local = match &listener.addr {
        ListenAddr::Inet(a) => Remote::new(*a),
        ListenAddr::Unix(_) => Remote::unix(),
    };
    let info = ConnInfo {
        serial: 1,
        remote: Remote::new(SocketAddr::new(options.from, 0)),
        local,
        listener: AtomicUsize::new(index),
        start: Instant::now(),
        requests: AtomicU64::new(1),
        tls: OnceLock::new(),
        proxy: OnceLock::new(),
    };
    if listener.tls.is_some() && wanted.tls {
        let digits = format!(":{}", wanted.port);
        let name = wanted
            .authority
            .strip_suffix(&digits)
            .unwrap_or(&wanted.authority);
        let _ = info.tls.set(Arc::new(TlsInfo {
            protocol: "TLSv1.3",
            cipher: "TLS_AES_256_GCM_SHA384",
            server_name: Some(name.to_owned()),
            ..TlsInfo::default()
        }));
    }
    let server = site
        .servers
        .get(listener.default_server as usize)
        .ok_or("the listening address has no server")?;
    let mut r = Request::new(site.clone(), Arc::new(DetachedConn::default()));
    r.reset(site, Arc::new(DetachedConn::of(info)));
    let mut head = format!("{} {} HTTP/1.1\r\n", wanted.method, wanted.target);
    let names_host = |h: &String| h.to_ascii_lowercase().starts_with("host:");
    if !options.headers.iter().any(names_host) {
        head += &format!("Host: {}\r\n", wanted.authority);
    }
    for header in &options.headers {
        head += header;
        head += "\r\n";
    }
    head += "\r\n";
    let conf = &server.conf;
    let limits = Limits {
        header_buffer: conf.client_header_buffer_size,
        large: conf.large_client_header_buffers,
        ignore_invalid: conf.ignore_invalid_headers,
        underscores: conf.underscores_in_headers,
        max_headers: conf.max_headers,
        allow_connect: conf.allow_connect,
        strict: conf.strict,
    };
    match Parser::default().parse(head.as_bytes(), &limits, &mut r.head) {
        Progress::Done { consumed } if consumed == head.len() => {}
        Progress::Bad(e) => {
            return Err(format!(
                "such a request is refused with {} before a server is looked for: {e}",
                e.status
            ));
        }
        _ => return Err("the headers do not end where they should".to_owned()),
    }
    r.server = listener.default_server;
    r.location = server.default_location;
    r.method = r.head.method;
    r.out.http11 = r.head.version == Version::V11;
    r.start = Instant::now();
    let (sec, msec) = crate::http::date::time();
    r.start_msec = sec as u64 * 1000 + u64::from(msec);
    // nobody is there to send a body
    r.body.continued = true;
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::Wanted;

    #[test]
    fn urls_are_taken_apart() {
        let parse = |text| Wanted::parse(text).unwrap();
        let w = parse("GET https://a.example/x?y#z");
        assert_eq!(
            (w.method.as_str(), w.tls, w.port, w.target.as_str()),
            ("GET", true, 443, "/x?y")
        );
        let w = parse("POST http://[::1]:8080");
        assert_eq!(
            (w.authority.as_str(), w.port, w.target.as_str()),
            ("[::1]:8080", 8080, "/")
        );
        assert_eq!(parse("http://a?b").target, "/?b");
        assert_eq!(parse("http://[::1]/").port, 80);
        for bad in [
            "",
            "GET",
            "ftp://a/",
            "GET /x",
            "http://",
            "http://a:99999/",
        ] {
            assert!(Wanted::parse(bad).is_err(), "{bad:?}");
        }
    }
}
