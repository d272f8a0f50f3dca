//! The case files' form: groups of a configuration, its files, its origin's answers, and exchanges.

/// One configuration and what is sent to it.
#[derive(Debug, Default)]
pub struct Group {
    /// Line of its `--- config`.
    pub line: usize,
    /// What stands in the `http` block.
    pub config: String,
    /// Files in the server's folder.
    pub files: Vec<(String, Vec<u8>)>,
    /// Answers of the origin by path; others are echoed.
    pub origin: Vec<(String, Vec<u8>)>,
    /// What is sent, each on a connection of its own.
    pub exchanges: Vec<Exchange>,
    /// Whether what is written to the error log at `info` is compared, too.
    pub error_log: bool,
    /// Only nginx of our level knows the configuration: an older one is not asked.
    pub since: bool,
}

/// Whether the client closes its side without reading an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Closing {
    /// It reads the answers that are expected.
    #[default]
    No,
    /// Once everything has been sent.
    Sent,
    /// Once the origin has the request.
    AtOrigin,
}

/// Bytes to send, and what to know when comparing.
#[derive(Debug, Default)]
pub struct Exchange {
    /// Line of its section.
    pub line: usize,
    /// For messages.
    pub name: String,
    /// What is done.
    pub kind: Kind,
    /// What to send, markers in it; the body over HTTP/2.
    pub request: Vec<u8>,
    /// How many responses to expect.
    pub responses: usize,
    /// How many requests reach the origin, some perhaps after the response: they are waited for, and put in order.
    pub arrivals: usize,
    /// Headers whose values may differ.
    pub ignore: Vec<String>,
    /// Whether an answer is read at all.
    pub closing: Closing,
    /// What Couloir answers where the installed nginx answers otherwise.
    pub differs: Option<(Reason, String)>,
}

/// What an exchange is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Bytes on a connection of their own.
    #[default]
    Http1,
    /// A request on a connection of HTTP/2 of its own: its fields.
    Http2(Vec<(String, String)>),
    /// So many lines of a log.
    Log(usize),
}

/// Why an answer differs from the installed nginx's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `differs since 1.31: …`: nginx itself does so at our level, an older one does not.
    Level,
    /// `differs on purpose: …`: Couloir is stricter than any nginx.
    Purpose,
}

/// Reads a case file.
///
/// # Errors
/// The line and what is wrong there.
pub fn parse(text: &str) -> Result<Vec<Group>, String> {
    let mut groups: Vec<Group> = Vec::new();
    for section in sections(text) {
        let Section { line, title, body } = section;
        let fail = |what: &str| Err(format!("line {line}: {what}"));
        let (word, rest) = title.split_once(' ').unwrap_or((title, ""));
        if word == "config" {
            groups.push(Group {
                line,
                config: body.join("\n"),
                ..Group::default()
            });
            continue;
        }
        let Some(group) = groups.last_mut() else {
            return fail("a configuration comes first");
        };
        match word {
            "error_log" => group.error_log = true,
            "since" if rest == "1.31" => group.since = true,
            "file" => group
                .files
                .push((rest.to_owned(), unescape(&body.join("\n"))?)),
            "origin" => group.origin.push((rest.to_owned(), message(&body)?)),
            "request" => group
                .exchanges
                .push(Exchange::new(line, rest, message(&body)?)),
            "raw" => group
                .exchanges
                .push(Exchange::new(line, rest, unescape(&body.concat())?)),
            "get" => group
                .exchanges
                .push(Exchange::new(line, rest, get(rest, &body)?)),
            "h2" => group.exchanges.push(h2(line, rest, &body)?),
            "log" => {
                let (name, lines) = rest.split_once(' ').unwrap_or((rest, "1"));
                let lines = lines
                    .parse()
                    .map_err(|_| format!("line {line}: a number"))?;
                group.exchanges.push(Exchange {
                    kind: Kind::Log(lines),
                    ..Exchange::new(line, name, Vec::new())
                });
            }
            "ignore" | "responses" | "arrivals" | "differs" | "closes" => {
                let Some(exchange) = group.exchanges.last_mut() else {
                    return fail("a request comes first");
                };
                match word {
                    "closes" => {
                        exchange.closing = match rest {
                            "" => Closing::Sent,
                            "at the origin" => Closing::AtOrigin,
                            _ => return fail("closes, or closes at the origin"),
                        }
                    }
                    "ignore" => match rest.strip_prefix("header ") {
                        Some(name) => exchange.ignore.push(name.to_owned()),
                        None => return fail("ignore header NAME"),
                    },
                    "responses" => {
                        exchange.responses =
                            rest.parse().map_err(|_| format!("line {line}: a number"))?
                    }
                    "arrivals" => {
                        exchange.arrivals =
                            rest.parse().map_err(|_| format!("line {line}: a number"))?
                    }
                    _ => {
                        let reason = if rest.starts_with("since 1.31: ") {
                            Reason::Level
                        } else if rest.starts_with("on purpose: ") {
                            Reason::Purpose
                        } else {
                            return fail(
                                "differs since 1.31: REASON, or differs on purpose: REASON",
                            );
                        };
                        exchange.differs = Some((reason, body.join("\n") + "\n"));
                    }
                }
            }
            _ => return fail("unknown section"),
        }
    }
    match groups.iter().find(|group| group.exchanges.is_empty()) {
        Some(group) => Err(format!("line {}: nothing is sent", group.line)),
        None => Ok(groups),
    }
}

impl Exchange {
    fn new(line: usize, name: &str, request: Vec<u8>) -> Self {
        Self {
            line,
            name: name.to_owned(),
            request,
            responses: 1,
            ..Self::default()
        }
    }
}

struct Section<'a> {
    line: usize,
    title: &'a str,
    body: Vec<&'a str>,
}

/// Splits at `--- ` lines; empty lines at a section's end do not count.
fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("--- ") {
            sections.push(Section {
                line: index + 1,
                title: title.trim(),
                body: Vec::new(),
            });
        } else if let Some(section) = sections.last_mut()
            && !line.starts_with("### ")
        {
            section.body.push(line);
        }
    }
    for section in &mut sections {
        while section.body.last().is_some_and(|line| line.is_empty()) {
            section.body.pop();
        }
    }
    sections
}

/// Lines become a head; after an empty line comes the body, without a line end of its own. `\c` alone is nothing.
fn message(lines: &[&str]) -> Result<Vec<u8>, String> {
    if lines == ["\\c"] {
        return Ok(Vec::new());
    }
    let mut text = lines.join("\r\n");
    if !lines.iter().any(|line| line.is_empty()) {
        text += "\r\n\r\n";
    }
    unescape(&text)
}

/// `get PATH`: a GET with Host and Connection, unless the lines below say otherwise.
fn get(path: &str, headers: &[&str]) -> Result<Vec<u8>, String> {
    let given = |name: &str| {
        headers
            .iter()
            .any(|line| line.to_ascii_lowercase().starts_with(name))
    };
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    for (name, default) in [
        ("host:", "Host: localhost\r\n"),
        ("connection:", "Connection: close\r\n"),
    ] {
        if !given(name) {
            text += default;
        }
    }
    for line in headers {
        text += line;
        text += "\r\n";
    }
    text += "\r\n";
    unescape(&text)
}

/// `h2 PATH`: a request over HTTP/2, a GET unless the lines below say otherwise; its body stands behind an empty line.
fn h2(line: usize, path: &str, lines: &[&str]) -> Result<Exchange, String> {
    let mut parts = lines.splitn(2, |line| line.is_empty());
    let own = parts.next().unwrap_or_default();
    let body = parts.next().map(|body| body.join("\r\n"));
    let mut given = Vec::new();
    for field in own {
        // the name of a pseudo-header field begins with a colon
        let at = field.get(1..).and_then(|rest| rest.find(':'));
        let (name, value) = at
            .and_then(|at| Some((field.get(..=at)?, field.get(at + 2..)?)))
            .ok_or_else(|| format!("line {line}: NAME: VALUE"))?;
        let text = |bytes: Vec<u8>| bytes.into_iter().map(char::from).collect::<String>();
        given.push((text(unescape(name)?), text(unescape(value.trim())?)));
    }
    let usual = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
    ];
    let mut fields: Vec<(String, String)> = Vec::new();
    for (name, value) in usual {
        match given.iter().position(|(known, _)| known == name) {
            Some(at) => fields.push(given.remove(at)),
            None => fields.push((name.to_owned(), value.to_owned())),
        }
    }
    fields.extend(given);
    Ok(Exchange {
        kind: Kind::Http2(fields),
        ..Exchange::new(line, path, unescape(&body.unwrap_or_default())?)
    })
}

/// `\r \n \t \0 \\ \xHH`; `\c` at a line's end takes the line end away; `\{N}X` is X repeated N times.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next() {
            Some('r') => bytes.push(b'\r'),
            Some('n') => bytes.push(b'\n'),
            Some('t') => bytes.push(b'\t'),
            Some('0') => bytes.push(0),
            Some('\\') => bytes.push(b'\\'),
            Some('x') => {
                let digits: String = chars.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).map_err(|_| format!("\\x{digits}"))?);
            }
            Some('c') => {
                if chars.as_str().starts_with("\r\n") {
                    chars.next();
                }
                chars.next();
            }
            Some('{') => {
                let digits: String = chars.by_ref().take_while(|&c| c != '}').collect();
                let count = digits.parse().map_err(|_| format!("\\{{{digits}}}"))?;
                let what = chars.next().ok_or("nothing to repeat")?;
                bytes.extend_from_slice(what.to_string().repeat(count).as_bytes());
            }
            other => return Err(format!("unknown escape \\{}", other.unwrap_or(' '))),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_make_groups() {
        let text = "notes\n--- config\nserver { }\n--- file a.txt\nx\\xff\\c\n\ny\n\n--- origin /r\nHTTP/1.1 204 No Content\n\
                    --- get /a b\nHost: x\n--- differs since 1.31: why\nHTTP/1.1 200 OK\n\n--- request post\n\
                    POST / HTTP/1.1\n### a comment\nContent-Length: 2\n\nab\n--- responses 2\n--- ignore header X\n--- raw r\nG\\r\nE\\n";
        let groups = parse(text).unwrap();
        assert_eq!(groups.len(), 1);
        let group = &groups[0];
        assert_eq!(group.config, "server { }");
        assert_eq!(group.files, [("a.txt".to_owned(), b"x\xff\ny".to_vec())]);
        assert_eq!(group.origin[0].1, b"HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(
            group.exchanges[0].request,
            b"GET /a b HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n"
        );
        assert_eq!(
            group.exchanges[0].differs,
            Some((Reason::Level, "HTTP/1.1 200 OK\n".to_owned()))
        );
        assert_eq!(
            group.exchanges[1].request,
            b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"
        );
        assert_eq!(group.exchanges[1].responses, 2);
        assert_eq!(group.exchanges[1].ignore, ["X"]);
        assert_eq!(group.exchanges[2].request, b"G\rE\n");
    }

    #[test]
    fn requests_over_http2() {
        let text = "--- config\n--- h2 /a\n:method: POST\nx: a\\xff\n\nbody\n--- log x.log 2\n";
        let groups = parse(text).unwrap();
        let [request, log] = &groups[0].exchanges[..] else {
            panic!("two exchanges");
        };
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/a"),
            (":authority", "localhost"),
            ("x", "a\u{ff}"),
        ];
        let fields = fields.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(request.kind, Kind::Http2(fields.to_vec()));
        assert_eq!(request.request, b"body");
        assert_eq!((&log.kind, &log.name[..]), (&Kind::Log(2), "x.log"));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(
            parse("--- get /\n")
                .unwrap_err()
                .contains("configuration comes first")
        );
        assert!(
            parse("--- config\n\n--- nonsense\n")
                .unwrap_err()
                .contains("line 3")
        );
        assert!(
            parse("--- config\n")
                .unwrap_err()
                .contains("nothing is sent")
        );
    }

    #[test]
    fn repetition() {
        assert_eq!(unescape("\\{3}ab").unwrap(), b"aaab");
    }
}
