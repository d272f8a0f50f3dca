//! Runs one group against one program and writes down what could be seen, as text that does not depend on ports,
//! dates and names.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::case::{Closing, Exchange, Group, Kind};
use crate::common::client::{Client, Response};
use crate::common::origin::Origin;
use crate::common::proc::{Server, Setup};
use crate::common::{DEADLINE, wait_for};
use crate::http2;

/// What each exchange of the group gave.
///
/// # Errors
/// The program did not start.
pub fn observe(group: &Group, program: &Path) -> Result<Vec<String>, String> {
    // what nginx takes for a comment
    let config = match program.file_name().is_some_and(|name| name == "couloir") {
        true => group.config.replace("#couloir ", ""),
        false => group.config.clone(),
    };
    let scripted = group.origin.clone();
    let ends = Arc::new(AtomicUsize::new(0));
    let origin = {
        let ends = ends.clone();
        Origin::respond(move |request| answer(&scripted, request, &ends))
    };
    let mut setup = Setup::new(&format!(
        "%%TEST_GLOBALS%%\nevents {{ }}\nhttp {{\n%%TEST_GLOBALS_HTTP%%\n{config}\n}}\n"
    ))
    .set("ORIGIN", origin.addr());
    let mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(MTIME);
    for (name, bytes) in &group.files {
        setup = setup.file(name, bytes, Some(mtime));
    }
    let server = setup.try_start(program)?;
    let seen = Seen {
        server,
        origin,
        ends,
    };
    if group.error_log {
        // the start and the looks at the listeners
        seen.log(0);
    }
    Ok(group
        .exchanges
        .iter()
        .enumerate()
        .map(|(i, exchange)| {
            let mut text = seen.exchange(exchange);
            // whoever holds an answer back lets go of it
            seen.ends.fetch_add(1, Ordering::Relaxed);
            if group.error_log {
                let log = seen.log(i + 1);
                let before = format!("\"mark-{i}\"");
                let lines = log.lines().skip_while(|line| !line.contains(&before));
                for line in lines {
                    if let Some(line) = seen.line(line) {
                        let _ = writeln!(text, "=== log {line}");
                    }
                }
            }
            text
        })
        .collect())
}

/// Of every file, in seconds: 2024-01-02 03:04:05 UTC.
const MTIME: u64 = 1_704_164_645;

/// Sent when a response promised that the connection stays, to see whether it does.
const SENTINEL: &str = "GET /-sentinel HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

struct Seen {
    server: Server,
    origin: Origin,
    /// How many exchanges are over.
    ends: Arc<AtomicUsize>,
}

impl Seen {
    /// The error log with everything that has happened up to now: a request that is refused comes last.
    fn log(&self, number: usize) -> String {
        let mark = format!("mark-{number}\r\n\r\n");
        let mut client = Client::connect(self.server.addr(8080)).limit(Duration::from_secs(5));
        let _ = client.send(&mark);
        let _ = client.read_to_close();
        let mark = format!("\"mark-{number}\"");
        self.server.wait_for_text("error.log", &mark);
        let bytes = std::fs::read(self.server.dir().join("error.log")).unwrap_or_default();
        bytes.into_iter().map(char::from).collect()
    }

    /// A line of the error log without time, process and connection; `None` for what is not compared.
    fn line(&self, line: &str) -> Option<String> {
        let (_, rest) = line.split_once(" [")?;
        let (level, rest) = rest.split_once("] ")?;
        let (_, rest) = rest.split_once(": ")?;
        let rest = match rest.strip_prefix('*').and_then(|r| r.split_once(' ')) {
            Some((_, rest)) => rest,
            None => rest,
        };
        let own = rest.contains("\"mark-") || rest.contains("has no meaning here");
        if level == "notice" || own {
            return None;
        }
        // ours ends with the cause in one word
        let rest = rest.split(", upstream_failure: ").next()?;
        let text = self.neutral(&escape_latin(&format!("[{level}] {rest}")));
        Some(figures(&text, "excess: "))
    }

    fn exchange(&self, exchange: &Exchange) -> String {
        self.origin.take_requests();
        match &exchange.kind {
            Kind::Http1 => {}
            Kind::Http2(fields) => {
                let text = http2::exchange(
                    self.server.addr(8080),
                    fields,
                    &exchange.request,
                    |response, text| render(response, &exchange.ignore, text),
                );
                return self.neutral(&(text + &self.at_origin(exchange)));
            }
            Kind::Log(lines) => return self.file(&exchange.name, *lines),
        }
        let mut client = Client::connect(self.server.addr(8080)).limit(Duration::from_secs(5));
        // an early answer may end the connection while we still send
        let _ = client.send(self.concrete(&exchange.request));
        let mut text = String::new();
        let end = match exchange.closing {
            Closing::No => self.responses(&mut client, exchange, &mut text),
            closing => {
                if closing == Closing::AtOrigin {
                    let _ = wait_for(DEADLINE, || {
                        (!self.origin.requests().is_empty()).then_some(())
                    });
                }
                client.finish();
                let _ = client.read_to_close();
                "left".into()
            }
        };
        let _ = writeln!(text, "=== {end}");
        text += &self.at_origin(exchange);
        self.neutral(&text)
    }

    /// What the origin has received.
    fn at_origin(&self, exchange: &Exchange) -> String {
        let mut requests = self.arrivals(exchange.arrivals);
        if exchange.arrivals > 0 {
            requests.sort();
        }
        let mut text = String::new();
        for request in requests {
            text += "=== origin\n";
            text += &request;
        }
        text
    }

    /// A log, as soon as it has so many lines.
    fn file(&self, name: &str, lines: usize) -> String {
        let whole = wait_for(DEADLINE, || {
            let text = std::fs::read(self.server.dir().join(name)).ok()?;
            (text.iter().filter(|b| **b == b'\n').count() >= lines).then_some(text)
        });
        match whole {
            Some(text) => self.neutral(&String::from_utf8_lossy(&text)),
            None => format!("{name} has fewer than {lines} lines"),
        }
    }

    /// What has reached the origin, once there are so many requests, or none has come for long.
    fn arrivals(&self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let _ = wait_for(DEADLINE, || {
            for request in self.origin.take_requests() {
                if request.target() != "/-sentinel" {
                    seen.push(self.request(&request.raw));
                }
            }
            (seen.len() >= count).then_some(())
        });
        seen
    }

    /// Reads what comes back; tells what became of the connection.
    fn responses(&self, client: &mut Client, exchange: &Exchange, text: &mut String) -> String {
        let method = exchange
            .request
            .split(|&byte| byte == b' ')
            .next()
            .unwrap_or_default();
        let method = String::from_utf8_lossy(method).into_owned();
        let mut expected = exchange.responses;
        loop {
            let response = match client.response(&method) {
                Ok(response) => response,
                Err(error) => {
                    if let Some(partial) = client.partial() {
                        render(&partial, &exchange.ignore, text);
                    }
                    return ending(error.kind(), client.buffered());
                }
            };
            render(&response, &exchange.ignore, text);
            if (100..200).contains(&response.status) && response.status != 101 {
                continue;
            }
            if !response.keeps_alive() {
                return match client.read_to_close() {
                    Ok(rest) if rest.is_empty() => "closed".into(),
                    Ok(rest) => format!("closed after {}", escape(&rest)),
                    Err(error) => ending(error.kind(), client.buffered()),
                };
            }
            expected -= 1;
            if expected == 0 {
                break;
            }
        }
        if client.send(SENTINEL).is_err() {
            return "closed, though it was to stay".into();
        }
        match client.response("GET") {
            Ok(_) => "kept".into(),
            Err(error) => format!(
                "was to stay, but: {}",
                ending(error.kind(), client.buffered())
            ),
        }
    }

    /// The request with this run's ports.
    fn concrete(&self, request: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = request;
        while let Some(at) = crate::common::client::find(rest, b"%%PORT_8080%%") {
            bytes.extend_from_slice(&rest[..at]);
            bytes.extend_from_slice(self.server.port(8080).to_string().as_bytes());
            rest = &rest[at + b"%%PORT_8080%%".len()..];
        }
        bytes.extend_from_slice(rest);
        bytes
    }

    /// A request at the origin: the line, the headers in order of name, the body.
    fn request(&self, raw: &[u8]) -> String {
        let split = crate::common::client::find(raw, b"\r\n\r\n").unwrap_or(raw.len());
        let (head, body) = raw.split_at(split);
        let head = escape(head);
        let mut lines = head.split("\\r\n");
        let mut text = lines.next().unwrap_or_default().to_owned() + "\n";
        let mut headers: Vec<_> = lines.collect();
        headers.sort_by_key(|line| {
            line.split(':')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        });
        for header in headers {
            text += header;
            text.push('\n');
        }
        if let Some(body) = body.get(4..).filter(|body| !body.is_empty()) {
            let _ = writeln!(text, "\n{}", escape(body));
        }
        text
    }

    /// The same text whichever program, port and folder it came from.
    fn neutral(&self, text: &str) -> String {
        let mut text = text.replace(&self.server.dir().display().to_string(), "%%TESTDIR%%");
        text = text.replace(&self.server.port(8080).to_string(), "%%PORT_8080%%");
        text = text.replace(&self.origin.addr().to_string(), "%%ORIGIN%%");
        text = text.replace(&self.origin.port().to_string(), "%%ORIGIN_PORT%%");
        let mut neutral = String::new();
        let mut rest = text.as_str();
        // the release in error pages
        while let Some(at) = rest.find("nginx/1.") {
            neutral += &rest[..at];
            neutral += "nginx";
            rest = rest[at + "nginx/1.".len()..]
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        }
        neutral + rest
    }
}

/// The origin's scripted answer for the request's path, or its method and target.
/// An empty answer is none: the origin waits until the exchange is over.
fn answer(
    scripted: &[(String, Vec<u8>)],
    request: &crate::common::origin::Request,
    ends: &AtomicUsize,
) -> Vec<u8> {
    let target = request.target();
    let path = target.split('?').next().unwrap_or_default();
    if let Some((_, response)) = scripted.iter().find(|(known, _)| known == path) {
        if response.is_empty() {
            let now = ends.load(Ordering::Relaxed);
            let _ = wait_for(DEADLINE, || {
                (ends.load(Ordering::Relaxed) != now).then_some(())
            });
        }
        return response.clone();
    }
    // not the whole request: its length would depend on the run's ports
    let body: Vec<u8> = format!("{} {target}", request.method())
        .chars()
        .map(|c| u8::try_from(c).unwrap_or(b'?'))
        .collect();
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Origin: echo\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if request.method() != "HEAD" {
        response.extend(body);
    }
    response
}

/// Times that a limit measured differ from run to run; how they are written does not.
fn figures(text: &str, before: &str) -> String {
    let Some((head, rest)) = text.split_once(before) else {
        return text.into();
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (figures, tail) = rest.split_at(end);
    let figures: String = figures
        .chars()
        .map(|c| if c == '.' { '.' } else { 'N' })
        .collect();
    format!("{head}{before}{figures}{tail}")
}

fn render(response: &Response, ignore: &[String], text: &mut String) {
    let _ = writeln!(text, "{}", escape_latin(&response.line));
    let mut headers: Vec<_> = response.headers.iter().collect();
    // order matters among headers of one name only
    headers.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    for (name, value) in headers {
        let ignored = ignore.iter().any(|known| known.eq_ignore_ascii_case(name));
        match name.as_str() {
            "Date" | "Server" | "date" | "server" => {
                let _ = writeln!(text, "{name}: *");
            }
            _ if ignored => {
                let _ = writeln!(text, "{name}: *");
            }
            _ => {
                let _ = writeln!(text, "{name}: {}", escape_latin(value));
            }
        }
    }
    if !response.body.is_empty() {
        let _ = writeln!(text, "\n{}", escape(&response.body));
    }
    for (name, value) in &response.trailers {
        let _ = writeln!(text, "trailer {name}: {}", escape_latin(value));
    }
}

fn ending(kind: ErrorKind, rest: &[u8]) -> String {
    let what = match kind {
        ErrorKind::UnexpectedEof => "closed",
        // bytes that the server did not read turn its close into a reset, or not, as the kernel likes
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "closed",
        ErrorKind::TimedOut => "nothing more comes",
        _ => "not a response",
    };
    if rest.is_empty() {
        what.into()
    } else {
        format!("{what} after {}", escape(rest))
    }
}

/// Visible text; a line feed stays one, so that bodies read as they are.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'\n' => text.push('\n'),
            b'\r' => text += "\\r",
            b'\t' => text += "\\t",
            b'\\' => text += "\\\\",
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// [`escape`] of text that stands for bytes one to one.
fn escape_latin(text: &str) -> String {
    escape(
        &text
            .chars()
            .map(|c| u8::try_from(c).unwrap_or(b'?'))
            .collect::<Vec<_>>(),
    )
}
