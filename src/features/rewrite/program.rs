//! The codes, and how a request runs through them.

use super::RewriteConf;
use crate::contract::files::{self, Kind};
use crate::contract::{Body, Handler, LocCell, Next, Pattern, Request, Step, Template, VarId};
use crate::http::escape::{Unescape, unescape};
use crate::log::Level;
use bytes::Bytes;
use std::sync::Arc;

/// Runs the codes of one block.
pub struct Program {
    pub conf: Arc<RewriteConf>,
}

impl Handler for Program {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        let mut run = Run {
            log: self.conf.log.unwrap_or(false),
            quote: true,
            r,
        };
        let codes = &self.conf.codes;
        let mut at = 0;
        while let Some((code, place)) = codes.get(at) {
            at += 1;
            let traced = run.r.trace.is_some();
            let before = if traced {
                run.r.uri.clone()
            } else {
                Vec::new()
            };
            let end = match code {
                Code::Set(id, value) => {
                    let mut text = Vec::new();
                    run.write(value, &mut text);
                    run.r.explain(|| {
                        let name = run.r.site.vars.get(id.0 as usize).map_or("", |v| &*v.name);
                        let parts = [b"$", name.as_bytes(), b" is \"", &text, b"\""];
                        step("set", place, &parts)
                    });
                    run.r.set_var(*id, text);
                    None
                }
                Code::If {
                    test,
                    settings,
                    skip,
                } => match run.tested(test, place) {
                    Ok(true) => {
                        if let Some(id) = settings.as_ref().and_then(|c| c.get()) {
                            run.r.enter_if(*id);
                        }
                        None
                    }
                    Ok(false) => {
                        at += skip;
                        None
                    }
                    Err(status) => Some(Next::Status(status)),
                },
                Code::Rewrite(rule) => {
                    let next = run.rewrite(rule);
                    if traced {
                        run.tell_rewrite(rule, place, &before, &next);
                    }
                    next
                }
                Code::Return(answer) => {
                    let next = run.answer(answer);
                    run.r.explain(|| answered(run.r, answer, place));
                    Some(next)
                }
                Code::Break => {
                    run.r
                        .explain(|| step("break", place, &[b"the rest is left out"]));
                    if run.r.uri_changed {
                        run.r.valid_location = false;
                        run.r.uri_changed = false;
                    }
                    Some(Next::Continue)
                }
            };
            if let Some(next) = end {
                return next;
            }
        }
        Next::Continue
    }
}

/// One step.
#[derive(Clone)]
pub enum Code {
    /// `set`
    Set(VarId, Template),
    /// `if`: where the condition does not hold, `skip` codes are left out; in a location, `settings` take its place.
    If {
        test: Test,
        settings: Option<LocCell>,
        skip: usize,
    },
    /// `rewrite`
    Rewrite(Arc<Rule>),
    /// `return`
    Return(Arc<Answer>),
    /// `break`
    Break,
}

/// The condition of `if`.
#[derive(Clone)]
pub enum Test {
    /// Neither empty nor `0`.
    True(VarId),
    /// `=`, `!=`
    Equal {
        var: VarId,
        value: Template,
        not: bool,
    },
    /// `~`, `~*`, `!~`, `!~*`
    Matches {
        var: VarId,
        pattern: Arc<Pattern>,
        not: bool,
    },
    /// `-f`, `-d`, `-e`, `-x` and their negations.
    File {
        kind: FileTest,
        path: Template,
        not: bool,
    },
}

/// What is asked of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileTest {
    /// `-f`
    Plain,
    /// `-d`
    Dir,
    /// `-e`
    Exists,
    /// `-x`
    Exec,
}

/// A `rewrite`.
pub struct Rule {
    pub pattern: Arc<Pattern>,
    /// The replacement; up to its `?` where it is no redirect.
    pub path: Template,
    /// What follows the `?`.
    pub args: Option<Template>,
    /// The replacement has a `?`.
    pub has_args: bool,
    /// The request's own arguments are appended: the replacement does not end with `?`.
    pub keep_args: bool,
    /// 301 or 302.
    pub redirect: Option<u16>,
    /// No further code is run after a match.
    pub last: bool,
    /// `break`: the request stays in its location.
    pub end_cycle: bool,
}

/// A `return`.
pub struct Answer {
    pub status: u16,
    pub text: Template,
    /// The text where it has no variables.
    pub literal: Option<Bytes>,
}

fn step(kind: &'static str, place: &Arc<str>, text: &[&[u8]]) -> Step {
    Step::new(kind, String::from_utf8_lossy(&text.concat())).at(place)
}

fn answered(r: &Request, answer: &Answer, place: &Arc<str>) -> Step {
    let text = format!("ends with {}", answer.status);
    match &r.out.location[..] {
        b"" => Step::new("return", text).at(place),
        to => step("return", place, &[text.as_bytes(), b" to \"", to, b"\""]),
    }
}

struct Run<'r> {
    r: &'r mut Request,
    log: bool,
    /// Captures in values are escaped; nginx does so until the first replacement has been made.
    quote: bool,
}

impl Run<'_> {
    /// Writes a value of `set` or of a condition.
    fn write(&self, value: &Template, out: &mut Vec<u8>) {
        if self.quote && value.has_captures() && is_quoted(self.r) {
            value.write_escaping(self.r, out);
        } else {
            value.write(self.r, out);
        }
    }

    fn notice(&self, message: std::fmt::Arguments<'_>) {
        if self.log {
            self.r.error(Level::Notice, message);
        }
    }

    /// Matches; where nothing is found the captures of earlier matches are gone, as in nginx.
    fn matches(&mut self, pattern: &Pattern, subject: &[u8]) -> Result<bool, u16> {
        let shown = String::from_utf8_lossy;
        match pattern.try_exec(subject, self.r) {
            Ok(true) => {
                self.notice(format_args!(
                    "\"{}\" matches \"{}\"",
                    pattern.source(),
                    shown(subject)
                ));
                Ok(true)
            }
            Ok(false) => {
                self.notice(format_args!(
                    "\"{}\" does not match \"{}\"",
                    pattern.source(),
                    shown(subject)
                ));
                self.r.captures.clear();
                Ok(false)
            }
            Err(e) => {
                let text = format_args!(
                    "pcre2_match() failed: {e} on \"{}\" using \"{}\"",
                    shown(subject),
                    pattern.source()
                );
                self.r.error(Level::Alert, text);
                Err(500)
            }
        }
    }

    /// Tells what a `rewrite` did.
    fn tell_rewrite(&self, rule: &Rule, place: &Arc<str>, before: &[u8], next: &Option<Next<'_>>) {
        let r = &*self.r;
        let pattern = rule.pattern.source().as_bytes();
        r.explain(|| match next {
            Some(Next::Status(s)) if rule.redirect == Some(*s) => step(
                "rewrite",
                place,
                &[
                    b"\"",
                    pattern,
                    b"\" matches \"",
                    before,
                    b"\": redirects to \"",
                    &r.out.location,
                    b"\"",
                ],
            ),
            _ if self.quote && before == r.uri => step(
                "rewrite",
                place,
                &[b"\"", pattern, b"\" does not match \"", before, b"\""],
            ),
            _ if before == r.uri => step(
                "rewrite",
                place,
                &[b"\"", pattern, b"\" leaves \"", before, b"\""],
            ),
            _ => step(
                "rewrite",
                place,
                &[
                    b"\"",
                    pattern,
                    b"\" matches \"",
                    before,
                    b"\": the URI becomes \"",
                    &r.uri,
                    b"\"",
                ],
            ),
        });
    }

    fn tested(&mut self, test: &Test, place: &Arc<str>) -> Result<bool, u16> {
        let holds = self.holds(test);
        self.r.explain(|| {
            let text: &[u8] = match holds {
                Ok(true) => b"the condition holds",
                Ok(false) => b"the condition does not hold",
                Err(_) => b"the condition cannot be evaluated",
            };
            step("if", place, &[text])
        });
        holds
    }

    fn holds(&mut self, test: &Test) -> Result<bool, u16> {
        match test {
            Test::True(var) => Ok(self.r.var(*var).is_true()),
            Test::Equal { var, value, not } => {
                let equal = match (value.as_literal(), value.as_variable()) {
                    (Some(text), _) => self.r.var(*var).as_bytes() == text,
                    (None, Some(other)) => {
                        self.r.var(*var).as_bytes() == self.r.var(other).as_bytes()
                    }
                    (None, None) => {
                        let mut text = self.r.scratch();
                        self.write(value, &mut text);
                        let equal = self.r.var(*var).as_bytes() == text;
                        self.r.put_scratch(text);
                        equal
                    }
                };
                Ok(equal != *not)
            }
            Test::Matches { var, pattern, not } => {
                let mut subject = self.r.scratch();
                subject.extend_from_slice(self.r.var(*var).as_bytes());
                let matched = self.matches(pattern, &subject);
                self.r.put_scratch(subject);
                Ok(matched? != *not)
            }
            Test::File { kind, path, not } => {
                let mut text = self.r.scratch();
                self.write(path, &mut text);
                let found = self.file(*kind, &text);
                self.r.put_scratch(text);
                Ok(found != *not)
            }
        }
    }

    fn file(&self, kind: FileTest, path: &[u8]) -> bool {
        match files::stat(self.r, path) {
            Ok(info) => match kind {
                FileTest::Plain => info.kind == Kind::File,
                FileTest::Dir => info.is_dir(),
                FileTest::Exists => info.kind != Kind::Other,
                FileTest::Exec => info.mode & 0o100 != 0,
            },
            Err(e) => {
                if !e.is_missing() {
                    files::log_failure(self.r, &e, Level::Crit, path);
                }
                false
            }
        }
    }

    fn rewrite(&mut self, rule: &Rule) -> Option<Next<'static>> {
        let uri = std::mem::take(&mut self.r.uri);
        let matched = self.matches(&rule.pattern, &uri);
        self.r.uri = uri;
        match matched {
            Ok(true) => {}
            Ok(false) => return None,
            Err(status) => return Some(Next::Status(status)),
        }
        let r = &mut *self.r;
        r.internal = true;
        r.valid_unparsed_uri = false;
        if rule.end_cycle {
            r.valid_location = false;
        }
        r.uri_changed = !rule.end_cycle;
        self.quote = false;
        if let Some(status) = rule.redirect {
            return Some(Next::Status(
                self.redirect(rule).map_or_else(|e| e, |()| status),
            ));
        }
        if let Err(status) = self.replace(rule) {
            return Some(Next::Status(status));
        }
        rule.last.then_some(Next::Continue)
    }

    fn redirect(&mut self, rule: &Rule) -> Result<(), u16> {
        let r = &mut *self.r;
        let mut escaped = r.scratch();
        if rule.path.has_captures() && is_quoted(r) {
            rule.path.write_escaping(r, &mut escaped);
        } else {
            rule.path.write(r, &mut escaped);
        }
        let mut location = std::mem::take(&mut r.out.location);
        location.clear();
        let used = unescape(Unescape::Redirect, &escaped, &mut location);
        location.extend_from_slice(escaped.get(used..).unwrap_or_default());
        if rule.keep_args && !r.args.is_empty() {
            location.push(if rule.has_args { b'&' } else { b'?' });
            location.extend_from_slice(&r.args);
        }
        r.put_scratch(escaped);
        r.check_value("rewrite", "the new URI", &location)?;
        r.out.location = location;
        self.notice(format_args!(
            "rewritten redirect: \"{}\"",
            String::from_utf8_lossy(&self.r.out.location)
        ));
        Ok(())
    }

    fn replace(&mut self, rule: &Rule) -> Result<(), u16> {
        let r = &mut *self.r;
        let mut uri = r.scratch();
        rule.path.write(r, &mut uri);
        if let Some(template) = &rule.args {
            let mut args = Vec::new();
            if template.has_captures() && is_quoted(r) {
                template.write_escaping(r, &mut args);
            } else {
                template.write(r, &mut args);
            }
            if rule.keep_args && !r.args.is_empty() {
                args.push(b'&');
                args.extend_from_slice(&r.args);
            }
            r.args = args;
        } else if !rule.keep_args {
            r.args.clear();
        }
        std::mem::swap(&mut r.uri, &mut uri);
        r.put_scratch(uri);
        let shown = String::from_utf8_lossy;
        self.notice(format_args!(
            "rewritten data: \"{}\", args: \"{}\"",
            shown(&self.r.uri),
            shown(&self.r.args)
        ));
        if self.r.uri.is_empty() {
            self.r.error(
                Level::Error,
                format_args!("the rewritten URI has a zero length"),
            );
            return Err(500);
        }
        Ok(())
    }

    fn answer(&mut self, answer: &Answer) -> Next<'static> {
        let r = &mut *self.r;
        let status = answer.status;
        if status >= 400 && answer.text.is(b"") {
            return Next::Status(status);
        }
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            let mut location = std::mem::take(&mut r.out.location);
            location.clear();
            let written = answer.text.write_value(r, "return", &mut location);
            r.out.location = location;
            if let Err(status) = written {
                r.out.location.clear();
                return Next::Status(status);
            }
            return Next::Status(status);
        }
        r.out.status = status;
        let text = match &answer.literal {
            Some(text) => text.clone(),
            None => {
                let mut text = Vec::new();
                answer.text.write(r, &mut text);
                Bytes::from(text)
            }
        };
        r.out.content_length = Some(text.len() as u64);
        r.set_content_type();
        Next::Respond(if text.is_empty() {
            Body::Empty
        } else {
            Body::Bytes(text)
        })
    }
}

/// Whether the path that the client sent has `%` or `+`: captures of it must be escaped where it becomes arguments.
fn is_quoted(r: &Request) -> bool {
    let (path, _) = crate::http::uri::split_args(r.unparsed_uri());
    memchr::memchr2(b'%', b'+', path).is_some()
}
