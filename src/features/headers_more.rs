//! `more_set_headers` and its kin, as the headers-more module has them.

use crate::config::Result;
use crate::contract::*;
use std::sync::Arc;

/// Sets, replaces and clears headers of requests and responses.
pub struct HeadersMore;

/// What a block changes; what stands further out comes first.
#[derive(Clone, Default)]
pub struct HeadersMoreConf {
    output: Vec<Arc<Command>>,
    input: Vec<Arc<Command>>,
}

/// One directive.
struct Command {
    /// `-s`: statuses; empty is any.
    statuses: Vec<u16>,
    /// `-t`: media types, in lower case; empty is any.
    types: Vec<Box<[u8]>>,
    /// `-r`: only headers that are there.
    replace: bool,
    /// `-a`: another line.
    append: bool,
    changes: Vec<Change>,
}

/// One header.
struct Change {
    /// The name; with `wildcard` what it begins with.
    name: Box<[u8]>,
    wildcard: bool,
    /// `None` clears it.
    value: Option<Template>,
}

impl Conf for HeadersMoreConf {
    fn inherit(&mut self, outer: &Self) {
        self.output.splice(0..0, outer.output.iter().cloned());
        self.input.splice(0..0, outer.input.iter().cloned());
    }
}

const SOME: Args = Args::AtLeast(1);

impl Module for HeadersMore {
    const NAME: &'static str = "http_headers_more_filter";
    type Conf = HeadersMoreConf;
    const DIRECTIVES: &'static [Directive<HeadersMoreConf>] = &[
        Directive::new(
            "more_set_headers",
            Place::ANY_HTTP_IF,
            SOME,
            "`more_set_headers [-t 'type …'] [-s 'status …'] [-a] 'name: value' …;` Sets headers of responses of whatever status; without a value a header is cleared, with `-a` another line is added.",
            |c, s, b| push(&mut c.output, Kind::SetOutput, s, b),
        ),
        Directive::new(
            "more_clear_headers",
            Place::ANY_HTTP_IF,
            SOME,
            "`more_clear_headers [-t 'type …'] [-s 'status …'] name …;` Clears headers of responses; `name*` stands for all that begin so.",
            |c, s, b| push(&mut c.output, Kind::ClearOutput, s, b),
        ),
        Directive::new(
            "more_set_input_headers",
            Place::ANY_HTTP_IF,
            SOME,
            "`more_set_input_headers [-r] [-t 'type …'] 'name: value' …;` Sets headers of the request, with `-r` only those that it has.",
            |c, s, b| push(&mut c.input, Kind::SetInput, s, b),
        ),
        Directive::new(
            "more_clear_input_headers",
            Place::ANY_HTTP_IF,
            SOME,
            "`more_clear_input_headers [-t 'type …'] name …;` Clears headers of the request; `name*` stands for all that begin so.",
            |c, s, b| push(&mut c.input, Kind::ClearInput, s, b),
        ),
    ];

    fn attach(conf: &Arc<HeadersMoreConf>, on: &mut Hooks) -> Result<()> {
        if !conf.output.is_empty() {
            on.response(Output(conf.clone()));
        }
        if !conf.input.is_empty() && on.level() != Level::Server {
            on.on(Phase::PreAccess, Input(conf.clone()));
        }
        Ok(())
    }
}

struct Output(Arc<HeadersMoreConf>);

impl HeadFilter for Output {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        for command in &self.0.output {
            if command.fits_status(r.out.status) && command.fits_type(&r.out.content_type) {
                command.changes.iter().for_each(|c| c.output(r, command));
            }
        }
        None
    }
}

struct Input(Arc<HeadersMoreConf>);

impl Handler for Input {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !r.subrequest {
            for command in &self.0.input {
                let kind = r.headers().get(b"content-type").unwrap_or_default();
                if command.fits_type(kind) {
                    command.changes.iter().for_each(|c| c.input(r, command));
                }
            }
        }
        Next::Continue
    }

    fn name(&self) -> &'static str {
        "more_set_input_headers"
    }
}

impl Command {
    fn fits_status(&self, status: u16) -> bool {
        self.statuses.is_empty() || self.statuses.contains(&status)
    }

    /// The type as it stands there, or what precedes its parameters.
    fn fits_type(&self, kind: &[u8]) -> bool {
        let bare = kind.split(|c| *c == b';').next().unwrap_or_default();
        let fits = |t: &[u8]| t.eq_ignore_ascii_case(kind) || t.eq_ignore_ascii_case(bare);
        self.types.is_empty() || self.types.iter().any(|t| fits(t))
    }
}

impl Change {
    fn fits(&self, name: &[u8]) -> bool {
        match name.get(..self.name.len()) {
            Some(start) if self.wildcard => start.eq_ignore_ascii_case(&self.name),
            _ => name.eq_ignore_ascii_case(&self.name),
        }
    }

    /// The value, if one is given; `None` where it cannot be written into a head: the request ends then.
    fn evaluate(&self, r: &mut Request, directive: &str) -> Option<Option<Vec<u8>>> {
        let Some(template) = &self.value else {
            return Some(None);
        };
        let mut value = Vec::new();
        template
            .put_value(r, directive, &mut value)
            .then_some(Some(value))
    }

    fn output(&self, r: &mut Request, command: &Command) {
        let Some(value) = self.evaluate(r, "more_set_headers") else {
            return;
        };
        match value.filter(|v| !v.is_empty()) {
            Some(value) if command.append => r.out.append(&self.name, &value),
            Some(value) => {
                if self.name.eq_ignore_ascii_case(b"content-type") {
                    r.out.charset.clear();
                }
                r.out.set(&self.name, &value);
            }
            None => self.clear(&mut r.out),
        }
    }

    fn clear(&self, out: &mut ResponseHead) {
        // those that have fields of their own
        for name in OWN {
            if self.fits(name) {
                out.set(name, b"");
            }
        }
        if self.fits(b"Server") {
            out.no_server = true;
        }
        if self.fits(b"Date") {
            out.no_date = true;
        }
        if self.fits(b"Content-Type") {
            out.charset.clear();
        }
        out.headers.retain(|_, name, _| !self.fits(name));
    }

    fn input(&self, r: &mut Request, command: &Command) {
        let Some(value) = self.evaluate(r, "more_set_input_headers") else {
            return;
        };
        let headers = &mut r.head.headers;
        match value.filter(|v| !v.is_empty()) {
            Some(_) if command.replace && !headers.contains(&self.name) => {}
            Some(value) => {
                headers.set(&self.name, &value);
                if self.name.eq_ignore_ascii_case(b"host")
                    && let Some((len, _)) = crate::http::host::parse_host(&value)
                {
                    r.head.host = value.get(..len).unwrap_or_default().to_ascii_lowercase();
                }
            }
            None => headers.retain(|_, name, _| !self.fits(name)),
        }
    }
}

/// Headers that a response has fields for.
const OWN: [&[u8]; 6] = [
    b"Server",
    b"Date",
    b"Location",
    b"Content-Type",
    b"Last-Modified",
    b"Content-Length",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    SetOutput,
    ClearOutput,
    SetInput,
    ClearInput,
}

impl Kind {
    fn is_output(self) -> bool {
        matches!(self, Kind::SetOutput | Kind::ClearOutput)
    }

    fn clears(self) -> bool {
        matches!(self, Kind::ClearOutput | Kind::ClearInput)
    }
}

fn push(list: &mut Vec<Arc<Command>>, kind: Kind, s: &Statement, b: &mut Build) -> Result<()> {
    let mut command = Command {
        statuses: Vec::new(),
        types: Vec::new(),
        replace: false,
        append: false,
        changes: Vec::new(),
    };
    let mut i = 0;
    while i < s.len() {
        let word = s.arg(i);
        let unknown = || {
            let shown = String::from_utf8_lossy(word);
            s.error_at(i, format!("{}: invalid option name: \"{shown}\"", s.name()))
        };
        match word {
            b"" => {}
            b"-t" | b"-s" if i + 1 == s.len() => {
                let shown = String::from_utf8_lossy(word);
                return Err(s.error_at(
                    i,
                    format!("{}: option \"{shown}\" takes an argument", s.name()),
                ));
            }
            b"-t" => {
                i += 1;
                command.types.extend(words(s.arg(i)).map(Into::into));
            }
            b"-s" if kind.is_output() => {
                i += 1;
                for text in words(s.arg(i)) {
                    let code = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
                    let shown = String::from_utf8_lossy(text);
                    command.statuses.push(code.ok_or_else(|| {
                        s.error_at(i, format!("{}: bad status code: \"{shown}\"", s.name()))
                    })?);
                }
            }
            b"-r" if kind == Kind::SetInput => command.replace = true,
            b"-a" if kind == Kind::SetOutput => command.append = true,
            [b'-', ..] => return Err(unknown()),
            _ => command.changes.push(change(kind, s, i, b)?),
        }
        i += 1;
    }
    list.push(Arc::new(command));
    Ok(())
}

fn change(kind: Kind, s: &Statement, i: usize, b: &mut Build) -> Result<Change> {
    let word = s.arg(i);
    let (name, value) = match memchr::memchr(b':', word) {
        Some(at) if !kind.clears() => {
            let value = word.get(at + 1..).unwrap_or_default();
            (word.get(..at).unwrap_or_default(), value.trim_ascii())
        }
        _ => (word.strip_suffix(b":").unwrap_or(word), &b""[..]),
    };
    let name = name.trim_ascii();
    let (stem, wildcard) = match name.strip_suffix(b"*") {
        Some(stem) if value.is_empty() => (stem, true),
        _ => (name, false),
    };
    let bad = stem
        .iter()
        .any(|c| !c.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~".contains(c));
    if bad || (stem.is_empty() && !wildcard) {
        let shown = String::from_utf8_lossy(word);
        return Err(s.error_at(i, format!("invalid header \"{shown}\"")));
    }
    let framing = match kind {
        Kind::SetOutput => &FRAMING[..],
        _ => &FRAMING[..2],
    };
    if !value.is_empty() && framing.iter().any(|f| f.eq_ignore_ascii_case(stem)) {
        let shown = String::from_utf8_lossy(stem);
        return Err(s.error_at(
            i,
            format!("\"{shown}\" says where a message ends and cannot be changed"),
        ));
    }
    Ok(Change {
        name: stem.into(),
        wildcard,
        value: match value {
            b"" => None,
            text => Some(b.template_of(s, text)?.unfolded()),
        },
    })
}

/// What decides where a message ends, which no configuration may set; the last of responses only.
const FRAMING: [&[u8]; 3] = [b"Transfer-Encoding", b"Content-Length", b"Connection"];

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|c| *c == b' ' || *c == b'\t')
        .filter(|w| !w.is_empty())
}
