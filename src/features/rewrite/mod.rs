//! `rewrite`, `if`, `set`, `break` and `return`.
//!
//! The directives of a server or location, those of its `if` blocks included, become one flat list of codes.

mod condition;
mod program;

use crate::config::value::parse_number;
use crate::contract::once;
use crate::contract::*;
use crate::inherit;
use bytes::Bytes;
use program::{Answer, Code, Program, Rule};
use std::sync::Arc;

/// nginx's ngx_http_rewrite_module.
pub struct Rewrite;

/// The codes of a block, and `rewrite_log`.
#[derive(Default, Clone)]
pub struct RewriteConf {
    /// With the places at which they stand.
    codes: Vec<(Code, Arc<str>)>,
    /// The block in which the codes stand: they are not inherited.
    block: Option<BlockId>,
    log: Option<bool>,
}

impl Conf for RewriteConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; log);
    }
}

const SERVER_LOCATION_SERVER_IF_LOCATION_IF: Place = Place::SERVER
    .or(Place::LOCATION)
    .or(Place::SERVER_IF)
    .or(Place::LOCATION_IF);

impl Module for Rewrite {
    const NAME: &'static str = "http_rewrite";
    type Conf = RewriteConf;
    const DIRECTIVES: &'static [Directive<RewriteConf>] = &[
        Directive::new(
            "rewrite",
            SERVER_LOCATION_SERVER_IF_LOCATION_IF,
            Args::Between(2, 3),
            "`rewrite pattern replacement [last|break|redirect|permanent];` Changes a URI that matches the pattern.",
            rewrite,
        ),
        Directive::new(
            "return",
            SERVER_LOCATION_SERVER_IF_LOCATION_IF,
            Args::Between(1, 2),
            "`return code [text];`, `return code URL;`, `return URL;` Ends the request with this status; 444 closes the connection.",
            answer,
        ),
        Directive::new(
            "break",
            SERVER_LOCATION_SERVER_IF_LOCATION_IF,
            Args::None,
            "`break;` Leaves the rest of this module's directives out.",
            |c, s, b| {
                c.push(Code::Break, s, b);
                Ok(())
            },
        ),
        Directive::new(
            "if",
            Place::SERVER.or(Place::LOCATION),
            Args::Block(1, 255),
            "`if (condition) { … }` Settings for requests of which the condition holds.",
            if_block,
        ),
        Directive::new(
            "set",
            SERVER_LOCATION_SERVER_IF_LOCATION_IF,
            Args::Exactly(2),
            "`set $variable value;` Assigns a variable.",
            set,
        ),
        Directive::new(
            "rewrite_log",
            SERVER_LOCATION_SERVER_IF_LOCATION_IF.or(Place::HTTP),
            Args::Flag,
            "`rewrite_log on|off;` Whether this module's doings are logged at the level notice. Default: off.",
            |c, s, _| once(&mut c.log, s, s.flag(0)?),
        ),
    ];

    fn attach(conf: &Arc<RewriteConf>, on: &mut Hooks) -> ConfResult<()> {
        let phase = match on.level() {
            Level::Server => Phase::ServerRewrite,
            Level::Location => Phase::Rewrite,
            // the codes of an `if` stand in the list around it; `limit_except` and the server's default location have none
            Level::ServerDefault | Level::If | Level::LimitExcept => return Ok(()),
        };
        if !conf.codes.is_empty() && conf.block == on.block() {
            on.on(phase, Program { conf: conf.clone() });
        }
        Ok(())
    }
}

impl RewriteConf {
    fn push(&mut self, code: Code, s: &Statement, b: &Build) {
        self.block = Some(b.block());
        self.codes.push((code, s.place().into()));
    }
}

/// What makes a replacement or a `return` a redirect without further words.
fn is_url(text: &[u8]) -> bool {
    [&b"http://"[..], b"https://", b"$scheme"]
        .iter()
        .any(|p| text.starts_with(p))
}

fn rewrite(c: &mut RewriteConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let replacement = s.arg(1);
    if replacement.is_empty() {
        return Err(s.error_at(1, "empty replacement"));
    }
    let pattern = b.pattern(s, s.arg(0), false)?;
    let mut rule = Rule {
        pattern,
        path: Template::default(),
        args: None,
        has_args: false,
        keep_args: true,
        redirect: None,
        last: false,
        end_cycle: false,
    };
    let text = match replacement.strip_suffix(b"?") {
        Some(text) => {
            rule.keep_args = false;
            text
        }
        None => replacement,
    };
    if is_url(text) {
        (rule.redirect, rule.last) = (Some(302), true);
    }
    if s.len() > 2 {
        rule.last = true;
        match s.arg(2) {
            b"last" => {}
            b"break" => rule.end_cycle = true,
            b"redirect" => rule.redirect = Some(302),
            b"permanent" => rule.redirect = Some(301),
            _ => return Err(s.invalid_parameter(2)),
        }
    }
    let question = memchr::memchr(b'?', text);
    rule.has_args = question.is_some();
    match question {
        Some(at) if rule.redirect.is_none() => {
            rule.path = b.template_of(s, text.get(..at).unwrap_or_default())?;
            rule.args = Some(b.template_of(s, text.get(at + 1..).unwrap_or_default())?);
        }
        _ => rule.path = b.template_of(s, text)?,
    }
    c.push(Code::Rewrite(Arc::new(rule)), s, b);
    Ok(())
}

fn answer(c: &mut RewriteConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let invalid = || {
        s.error_at(
            0,
            format!(
                "invalid return code \"{}\"",
                String::from_utf8_lossy(s.arg(0))
            ),
        )
    };
    let (status, text) = match parse_number(s.arg(0)) {
        Some(n @ 0..=999) => (
            n as u16,
            match n {
                _ if s.len() < 2 => Template::default(),
                301 | 302 | 303 | 307 | 308 => b.head_template(s, 1)?,
                _ => b.template(s, 1)?,
            },
        ),
        None if s.len() == 1 && is_url(s.arg(0)) => (302, b.head_template(s, 0)?),
        _ => return Err(invalid()),
    };
    let literal = text.as_literal().map(Bytes::copy_from_slice);
    c.push(
        Code::Return(Arc::new(Answer {
            status,
            text,
            literal,
        })),
        s,
        b,
    );
    Ok(())
}

fn if_block(c: &mut RewriteConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let test = condition::parse(s, b)?;
    let (inner, cell) = if b.place() == Place::SERVER {
        (b.enter(s, Place::SERVER_IF, BlockKind::If)?, None)
    } else {
        let (inner, cell) = b.enter_if(s)?;
        (inner, Some(cell))
    };
    let codes = b
        .conf_of::<Rewrite>(inner)
        .map(|conf| std::mem::take(&mut conf.codes))
        .unwrap_or_default();
    c.push(
        Code::If {
            test,
            settings: cell,
            skip: codes.len(),
        },
        s,
        b,
    );
    c.codes.extend(codes);
    Ok(())
}

fn set(c: &mut RewriteConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let name = b.var_name(s, 0)?;
    let id = b.assigned_var(s, &name)?;
    let value = b.template(s, 1)?;
    b.at_end(move |b| {
        let registry = b.registry.clone();
        if let Some(v) = b.vars.get_mut(id.0 as usize)
            && v.source.is_none()
            && !v.captured
            && registry.variable(&v.name).is_none()
        {
            v.source = Some((Arc::new(Uninitialized(v.name.clone())), true));
        }
        Ok(())
    });
    c.push(Code::Set(id, value), s, b);
    Ok(())
}

/// A variable of `set` before its first assignment.
struct Uninitialized(Box<str>);

impl Evaluate for Uninitialized {
    fn evaluate<'r>(&'r self, r: &'r Request) -> Val<'r> {
        if r.core().uninitialized_variable_warn {
            r.error(
                crate::log::Level::Warn,
                format_args!("using uninitialized \"{}\" variable", self.0),
            );
        }
        Val::EMPTY
    }
}
