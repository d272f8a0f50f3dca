//! `match {}`: what a good answer to a health check looks like.

use crate::config::value::parse_number;
use crate::contract::*;
use std::sync::{Arc, OnceLock};

/// `match` and what stands in it.
pub struct HealthMatch;

/// The tests of one `match {}`.
#[derive(Default, Clone)]
pub struct MatchWritten {
    tests: Vec<Test>,
}

impl Conf for MatchWritten {
    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for HealthMatch {
    const NAME: &'static str = "http_upstream_hc_match";
    type Conf = MatchWritten;
    const DIRECTIVES: &'static [Directive<MatchWritten>] = &[
        Directive::new(
            "match",
            Place::HTTP,
            Args::Block(1, 1),
            "`match name { … }` What a good answer to a `health_check` looks like: all tests in it must hold.",
            block,
        ),
        Directive::new(
            "status",
            Place::MATCH,
            Args::AtLeast(1),
            "`status [!] code …;` The status is, or is not, one of these codes and ranges (`200-399`).",
            status,
        ),
        Directive::new(
            "header",
            Place::MATCH,
            Args::AtLeast(1),
            "`header [!] name;`, `header name =|!=|~|!~|~*|!~* value;` The header is there or not, has the value or not, or matches the pattern or not.",
            header,
        ),
        Directive::new(
            "body",
            Place::MATCH,
            Args::Exactly(2),
            "`body ~|!~|~*|!~* pattern;` The first 256k of the body match the pattern, or do not.",
            body,
        ),
        Directive::new(
            "require",
            Place::MATCH,
            Args::AtLeast(1),
            "`require $variable …;` All of the variables have a value that is neither empty nor 0.",
            require,
        ),
    ];

    fn attach(_conf: &Arc<MatchWritten>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

/// How much of a body is looked at, bytes.
pub const BODY: usize = 256 * 1024;

/// A `match` that a `health_check` names; known once everything has been read.
pub type MatchRef = Arc<OnceLock<Match>>;

/// The tests that an answer must pass.
#[derive(Clone)]
pub struct Match {
    tests: Box<[Test]>,
}

impl Match {
    /// Whether the answer passes: what was tested last, in Plus's words; that is the one that failed where it did.
    pub fn test(&self, r: &Request, body: &[u8]) -> Result<&'static str, &'static str> {
        let mut last = "checking status code";
        for test in &self.tests {
            last = test.doing();
            if !test.passes(r, body) {
                return Err(last);
            }
        }
        Ok(last)
    }

    /// Whether the body is looked at.
    pub fn wants_body(&self) -> bool {
        self.tests.iter().any(|t| matches!(t, Test::Body { .. }))
    }
}

/// Without a `match`: 2xx and 3xx are good.
pub fn default_test(r: &Request) -> Result<&'static str, &'static str> {
    const DOING: &str = "checking status code";
    match r.upstream.head.status {
        200..400 => Ok(DOING),
        _ => Err(DOING),
    }
}

#[derive(Clone)]
enum Test {
    Status {
        not: bool,
        ranges: Box<[(u16, u16)]>,
    },
    Header {
        name: Box<[u8]>,
        not: bool,
        value: HeaderTest,
    },
    Body {
        not: bool,
        pattern: Arc<Pattern>,
    },
    Require(Box<[VarId]>),
}

#[derive(Clone)]
enum HeaderTest {
    Present,
    Equal(Box<[u8]>),
    Pattern(Arc<Pattern>),
}

impl Test {
    fn doing(&self) -> &'static str {
        match self {
            Self::Status { .. } => "checking status code",
            Self::Header { .. } => "checking header",
            Self::Body { .. } => "checking body",
            Self::Require(_) => "checking variables",
        }
    }

    fn passes(&self, r: &Request, body: &[u8]) -> bool {
        match self {
            Self::Status { not, ranges } => {
                let status = r.upstream.head.status;
                let inside = |(low, high): &(u16, u16)| (*low..=*high).contains(&status);
                ranges.iter().any(inside) != *not
            }
            Self::Header { name, not, value } => {
                let mut values = r.upstream.head.headers.get_all(name);
                let found = match value {
                    HeaderTest::Present => values.next().is_some(),
                    HeaderTest::Equal(wanted) => values.any(|v| *v == **wanted),
                    HeaderTest::Pattern(pattern) => values.any(|v| pattern.is_match(v)),
                };
                found != *not
            }
            Self::Body { not, pattern } => pattern.is_match(body) != *not,
            Self::Require(vars) => vars.iter().all(|id| {
                let value = r.var(*id);
                let value = value.as_bytes();
                !value.is_empty() && value != b"0"
            }),
        }
    }
}

/// Every `match` that is defined or named.
#[derive(Default)]
struct Table(Vec<(String, MatchRef)>);

/// Names a `match`, which may be defined later.
pub fn reference(b: &mut Build, s: &Statement, name: &str) -> MatchRef {
    let found = named(b, name);
    let (s, name, check) = (s.clone(), name.to_owned(), found.clone());
    b.at_end(move |_| match check.get() {
        Some(_) => Ok(()),
        None => Err(s.error(format!("match \"{name}\" is not defined"))),
    });
    found
}

fn named(b: &mut Build, name: &str) -> MatchRef {
    let table = &mut b.shared::<Table>().0;
    if let Some((_, known)) = table.iter().find(|(n, _)| n == name) {
        return known.clone();
    }
    let new = MatchRef::default();
    table.push((name.into(), new.clone()));
    new
}

fn block(_c: &mut MatchWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let name = s.str(0)?;
    let id = b.enter(s, Place::MATCH, BlockKind::Other("match"))?;
    if let Some(e) = s.syntax_error() {
        return Err(e);
    }
    let tests = b.conf_of::<HealthMatch>(id).map(|c| c.tests.clone());
    let made = Match {
        tests: tests.unwrap_or_default().into(),
    };
    let duplicate = named(b, name).set(made).is_err();
    if duplicate {
        return Err(s.error(format!("duplicate match \"{name}\"")));
    }
    Ok(())
}

fn status(c: &mut MatchWritten, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    let not = s.arg(0) == b"!";
    let mut ranges = Vec::new();
    for i in usize::from(not)..s.len() {
        let word = s.str(i)?;
        let code = |text: &str| {
            let n = parse_number(text.as_bytes()).and_then(|n| u16::try_from(n).ok());
            n.filter(|n| (100..=999).contains(n))
                .ok_or_else(|| s.invalid_value(i))
        };
        let (low, high) = word.split_once('-').unwrap_or((word, word));
        let range = (code(low)?, code(high)?);
        if range.0 > range.1 {
            return Err(s.invalid_value(i));
        }
        ranges.push(range);
    }
    if ranges.is_empty() {
        return Err(s.invalid_number_of_arguments());
    }
    c.tests.push(Test::Status {
        not,
        ranges: ranges.into(),
    });
    Ok(())
}

fn header(c: &mut MatchWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let test = match (s.len(), s.arg(0)) {
        (1, name) if name != b"!" => Test::Header {
            name: name.to_ascii_lowercase().into(),
            not: false,
            value: HeaderTest::Present,
        },
        (2, b"!") => Test::Header {
            name: s.arg(1).to_ascii_lowercase().into(),
            not: true,
            value: HeaderTest::Present,
        },
        (3, name) => {
            let (not, value) = match s.arg(1) {
                b"=" => (false, HeaderTest::Equal(s.arg(2).into())),
                b"!=" => (true, HeaderTest::Equal(s.arg(2).into())),
                _ => {
                    let (not, pattern) = pattern(s, b, 1)?;
                    (not, HeaderTest::Pattern(pattern))
                }
            };
            Test::Header {
                name: name.to_ascii_lowercase().into(),
                not,
                value,
            }
        }
        _ => return Err(s.invalid_number_of_arguments()),
    };
    c.tests.push(test);
    Ok(())
}

fn body(c: &mut MatchWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let (not, pattern) = pattern(s, b, 0)?;
    c.tests.push(Test::Body { not, pattern });
    Ok(())
}

fn require(c: &mut MatchWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let mut vars = Vec::new();
    for i in 0..s.len() {
        let name = b.var_name(s, i)?;
        vars.push(b.var(s, &name));
    }
    c.tests.push(Test::Require(vars.into()));
    Ok(())
}

/// `~ pattern` and its kin; the operator is parameter `i`.
fn pattern(s: &Statement, b: &mut Build, i: usize) -> ConfResult<(bool, Arc<Pattern>)> {
    let (not, caseless) = match s.arg(i) {
        b"~" => (false, false),
        b"~*" => (false, true),
        b"!~" => (true, false),
        b"!~*" => (true, true),
        _ => return Err(s.invalid_parameter(i)),
    };
    let text = s.arg(i + 1).to_vec();
    Ok((not, b.pattern(s, &text, caseless)?))
}
