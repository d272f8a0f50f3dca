//! Carries out the commands of one page as it passes.

use super::TimeFormat;
use super::parse::{Found, MAX_PARAMS, Parser};
use super::text::{Failed, Memory, complain, expand, failed, holds, variable};
use crate::contract::subrequest::DEPTH;
use crate::contract::*;
use crate::http::escape::{self, Escape, escape};
use crate::http::uri;
use std::io;

const ERROR: &[u8] = b"[an error occurred while processing the directive]";

/// One response whose commands are carried out.
pub struct Page {
    parser: Parser,
    silent: bool,
    error_text: Vec<u8>,
    time_format: Option<Slot<TimeFormat>>,
    encoding: Encoding,
    /// Whether text is sent: not in a branch that was not chosen.
    output: bool,
    /// Whether a branch of the `if` has been chosen.
    chosen: bool,
    branch: Branch,
    /// Whether text goes to a block.
    block: bool,
    /// What is read once the subrequest that the page waits for has ended.
    rest: Vec<u8>,
    waits: bool,
    asked: Vec<Include>,
}

/// How `echo` writes values.
#[derive(Clone, Copy)]
enum Encoding {
    None,
    Url,
    Entity,
}

/// Where an `if` stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Branch {
    Outside,
    If,
    Else,
}

/// What a command is and what it takes.
struct Known {
    name: &'static str,
    does: fn(&mut Page, &mut Request, &Params, &mut Vec<u8>) -> Result<(), Failed>,
    /// Parameters, those first that must be there.
    params: &'static [&'static str],
    mandatory: usize,
    /// The last place in an `if` where it may stand; [`Branch::Outside`] for anywhere.
    within: Branch,
}

/// The values of a command's parameters, in the order of [`Known::params`].
#[derive(Default)]
struct Params([Option<Vec<u8>>; 5]);

impl Params {
    fn get(&self, i: usize) -> Option<&[u8]> {
        self.0.get(i)?.as_deref()
    }

    /// One that must be there.
    fn must(&self, i: usize) -> &[u8] {
        self.get(i).unwrap_or_default()
    }
}

const COMMANDS: &[Known] = &[
    Known {
        name: "include",
        does: Page::include,
        params: &["virtual", "file", "wait", "set", "stub"],
        mandatory: 0,
        within: Branch::Outside,
    },
    Known {
        name: "echo",
        does: Page::echo,
        params: &["var", "default", "encoding"],
        mandatory: 1,
        within: Branch::Outside,
    },
    Known {
        name: "config",
        does: Page::config,
        params: &["errmsg", "timefmt"],
        mandatory: 0,
        within: Branch::Outside,
    },
    Known {
        name: "set",
        does: Page::set,
        params: &["var", "value"],
        mandatory: 2,
        within: Branch::Outside,
    },
    Known {
        name: "if",
        does: Page::begin_if,
        params: &["expr"],
        mandatory: 1,
        within: Branch::Outside,
    },
    Known {
        name: "elif",
        does: Page::test,
        params: &["expr"],
        mandatory: 1,
        within: Branch::If,
    },
    Known {
        name: "else",
        does: Page::otherwise,
        params: &[],
        mandatory: 0,
        within: Branch::If,
    },
    Known {
        name: "endif",
        does: Page::end_if,
        params: &[],
        mandatory: 0,
        within: Branch::Else,
    },
    Known {
        name: "block",
        does: Page::begin_block,
        params: &["name"],
        mandatory: 1,
        within: Branch::Outside,
    },
    Known {
        name: "endblock",
        does: Page::end_block,
        params: &[],
        mandatory: 0,
        within: Branch::Outside,
    },
];

impl BodyFilter for Page {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.waits = false;
        let mut rest = std::mem::take(&mut self.rest);
        let data = if rest.is_empty() {
            data
        } else {
            rest.extend_from_slice(data);
            &rest[..]
        };
        let mut at = 0;
        let mut skipped = Vec::new();
        loop {
            let text = if self.output { &mut *out } else { &mut skipped };
            let found = self.parser.next(data, &mut at, text);
            self.put_aside(r, &mut skipped);
            match found {
                Found::Text => break,
                Found::Fault(why) => complain(r, format_args!("{why}")),
                Found::Broken => self.fail(out),
                Found::Command => {
                    if self.command(r, out).is_err() {
                        self.fail(out);
                    }
                }
            }
            if self.waits {
                self.rest = data.get(at..).unwrap_or_default().to_vec();
                return Ok(());
            }
        }
        if last && self.output {
            self.parser.end(out);
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        self.waits
    }

    fn includes(&mut self) -> Vec<Include> {
        std::mem::take(&mut self.asked)
    }
}

impl Page {
    /// A page of which nothing has been read.
    pub fn new(value_len: usize, silent: bool, time_format: Option<Slot<TimeFormat>>) -> Page {
        Page {
            parser: Parser::new(value_len),
            silent,
            error_text: ERROR.to_vec(),
            time_format,
            encoding: Encoding::Entity,
            output: true,
            chosen: false,
            branch: Branch::Outside,
            block: false,
            rest: Vec::new(),
            waits: false,
            asked: Vec::new(),
        }
    }

    fn fail(&self, out: &mut Vec<u8>) {
        if !self.silent {
            out.extend_from_slice(&self.error_text);
        }
    }

    /// Keeps text of a block; other text that is not sent is forgotten.
    fn put_aside(&self, r: &Request, text: &mut Vec<u8>) {
        if self.block
            && !text.is_empty()
            && let Some(memory) = Memory::of(r)
        {
            memory.extend_block(text);
        }
        text.clear();
    }

    /// Carries out the command that has just been read.
    fn command(&mut self, r: &mut Request, out: &mut Vec<u8>) -> Result<(), Failed> {
        let command = std::mem::take(&mut self.parser.command);
        let name = String::from_utf8_lossy(&command.name);
        let Some(known) = COMMANDS.iter().find(|k| k.name == name) else {
            return if self.output {
                Err(failed(r, format_args!("invalid SSI command: \"{name}\"")))
            } else {
                Ok(())
            };
        };
        if !self.output && known.name != "endblock" {
            if self.block {
                let mut text = Vec::new();
                command.write(&mut text);
                self.put_aside(r, &mut text);
                return Ok(());
            }
            if known.within == Branch::Outside {
                return Ok(());
            }
        }
        if known.within != Branch::Outside
            && (self.branch == Branch::Outside || self.branch > known.within)
        {
            return Err(failed(
                r,
                format_args!("invalid context of SSI command: \"{name}\""),
            ));
        }
        if command.params.len() > MAX_PARAMS {
            return Err(failed(
                r,
                format_args!("too many SSI command parameters: \"{name}\""),
            ));
        }
        let mut params = Params::default();
        for (key, value) in command.params {
            let key = String::from_utf8_lossy(&key);
            let at = known.params.iter().position(|p| *p == key);
            let Some(slot) = at.and_then(|i| params.0.get_mut(i)) else {
                return Err(failed(
                    r,
                    format_args!("invalid parameter name: \"{key}\" in \"{name}\" SSI command"),
                ));
            };
            if slot.is_some() {
                return Err(failed(
                    r,
                    format_args!("duplicate \"{key}\" parameter in \"{name}\" SSI command"),
                ));
            }
            *slot = Some(value);
        }
        for (i, key) in known.params.iter().enumerate().take(known.mandatory) {
            if params.get(i).is_none() {
                return Err(failed(
                    r,
                    format_args!(
                        "mandatory \"{key}\" parameter is absent in \"{name}\" SSI command"
                    ),
                ));
            }
        }
        (known.does)(self, r, &params, out)
    }

    #[expect(clippy::ptr_arg, reason = "all commands have the same form")]
    fn include(
        &mut self,
        r: &mut Request,
        params: &Params,
        out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        let show = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        let [uri, file, wait, set, stub] = std::array::from_fn(|i| params.get(i));
        let target = match (uri, file) {
            (Some(uri), Some(file)) => {
                let (uri, file) = (show(uri), show(file));
                return Err(failed(
                    r,
                    format_args!("inclusion may be either virtual=\"{uri}\" or file=\"{file}\""),
                ));
            }
            (None, None) => {
                return Err(failed(
                    r,
                    format_args!("no parameter in \"include\" SSI command"),
                ));
            }
            (Some(target), None) | (None, Some(target)) => target,
        };
        if set.is_some() && stub.is_some() {
            let why = "\"set\" and \"stub\" cannot be used together in \"include\" SSI command";
            return Err(failed(r, format_args!("{why}")));
        }
        let waits = match (wait, file) {
            (Some(_), Some(file)) => {
                return Err(failed(
                    r,
                    format_args!("\"wait\" cannot be used with file=\"{}\"", show(file)),
                ));
            }
            (Some(w), None) if w.eq_ignore_ascii_case(b"no") => false,
            (Some(w), None) if w.eq_ignore_ascii_case(b"yes") => true,
            (Some(w), None) => {
                return Err(failed(
                    r,
                    format_args!("invalid value \"{}\" in the \"wait\" parameter", show(w)),
                ));
            }
            (None, file) => file.is_some(),
        };
        let target = expand(r, target, true)?;
        let Ok(safe) = uri::parse_unsafe(&target) else {
            return Err(failed(
                r,
                format_args!("unsafe URI \"{}\" was detected", show(&target)),
            ));
        };
        let mut ask = Include {
            at: out.len(),
            uri: safe.path.into_owned(),
            args: safe.args.unwrap_or_default().to_vec(),
            ..Include::default()
        };
        if let Some(stub) = stub {
            let Some(text) = Memory::of(r).and_then(|m| m.block(stub)) else {
                return Err(failed(
                    r,
                    format_args!("\"stub\"=\"{}\" for \"include\" not found", show(stub)),
                ));
            };
            ask.stub = Some(text);
        }
        if r.depth >= DEPTH {
            return Err(failed(
                r,
                format_args!("subrequests cycle while processing \"{}\"", show(&ask.uri)),
            ));
        }
        if let Some(set) = set {
            let name = set.to_ascii_lowercase();
            if let Some(memory) = Memory::of(r) {
                memory.declare(&name);
            }
            ask.keep = Some(Box::new(move |r, status, body| {
                if status < 300
                    && let Some(memory) = Memory::of(r)
                {
                    memory.set(&name, body);
                }
            }));
        }
        self.waits = waits || set.is_some();
        self.asked.push(ask);
        Ok(())
    }

    fn echo(&mut self, r: &mut Request, params: &Params, out: &mut Vec<u8>) -> Result<(), Failed> {
        let value = variable(r, params.must(0));
        let value = value.as_deref().or(params.get(1)).unwrap_or(b"(none)");
        if value.is_empty() {
            return Ok(());
        }
        match params.get(2) {
            Some(b"none") => self.encoding = Encoding::None,
            Some(b"url") => self.encoding = Encoding::Url,
            Some(b"entity") => self.encoding = Encoding::Entity,
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                complain(
                    r,
                    format_args!("unknown encoding \"{other}\" in the \"echo\" command"),
                );
            }
            None => {}
        }
        match self.encoding {
            Encoding::None => out.extend_from_slice(value),
            Encoding::Url => escape(Escape::Html, value, out),
            Encoding::Entity => escape::html(value, out),
        }
        Ok(())
    }

    fn config(
        &mut self,
        r: &mut Request,
        params: &Params,
        _out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        if let Some(text) = params.get(0) {
            self.error_text = text.to_vec();
        }
        if let (Some(format), Some(slot)) = (params.get(1), self.time_format) {
            r.set_slot(slot, TimeFormat(format.to_vec()));
        }
        Ok(())
    }

    fn set(&mut self, r: &mut Request, params: &Params, _out: &mut Vec<u8>) -> Result<(), Failed> {
        let value = expand(r, params.must(1), false)?;
        if let Some(memory) = Memory::of(r) {
            memory.set(&params.must(0).to_ascii_lowercase(), value);
        }
        Ok(())
    }

    fn begin_if(
        &mut self,
        r: &mut Request,
        params: &Params,
        out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        if self.branch != Branch::Outside {
            return Err(failed(
                r,
                format_args!("the \"if\" command inside the \"if\" command"),
            ));
        }
        self.test(r, params, out)
    }

    fn test(&mut self, r: &mut Request, params: &Params, _out: &mut Vec<u8>) -> Result<(), Failed> {
        if self.chosen {
            self.output = false;
            return Ok(());
        }
        self.output = holds(r, params.must(0))?;
        self.chosen = self.output;
        self.branch = Branch::If;
        Ok(())
    }

    fn otherwise(
        &mut self,
        _r: &mut Request,
        _params: &Params,
        _out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        self.output = !self.chosen;
        self.branch = Branch::Else;
        Ok(())
    }

    fn end_if(
        &mut self,
        _r: &mut Request,
        _params: &Params,
        _out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        self.output = true;
        self.chosen = false;
        self.branch = Branch::Outside;
        Ok(())
    }

    fn begin_block(
        &mut self,
        r: &mut Request,
        params: &Params,
        _out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        if let Some(memory) = Memory::of(r) {
            memory.begin_block(params.must(0));
        }
        self.output = false;
        self.block = true;
        Ok(())
    }

    fn end_block(
        &mut self,
        _r: &mut Request,
        _params: &Params,
        _out: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        self.output = true;
        self.block = false;
        Ok(())
    }
}
