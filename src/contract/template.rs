//! Text with variables, prepared when the configuration is read.

use super::{Request, VarId};
use crate::http::escape::{Escape, escape};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A parameter such as `"$host:$server_port"`, split into literals, variables and captures.
#[derive(Clone, Debug, Default)]
pub struct Template {
    pub(crate) parts: Box<[Part]>,
}

/// The path of a file, with variables; relative to a folder whatever they hold.
#[derive(Clone, Debug)]
pub struct PathTemplate {
    path: Template,
    /// What a relative path is relative to; none where the path is known to be absolute.
    base: Option<Arc<Path>>,
}

impl PathTemplate {
    pub(crate) fn new(path: Template, base: Option<Arc<Path>>) -> PathTemplate {
        PathTemplate { path, base }
    }

    /// The path.
    pub fn eval(&self, r: &Request) -> Cow<'_, Path> {
        let path = match self.path.eval(r) {
            Cow::Borrowed(path) => Cow::Borrowed(Path::new(OsStr::from_bytes(path))),
            Cow::Owned(path) => Cow::Owned(PathBuf::from(OsString::from_vec(path))),
        };
        match &self.base {
            Some(base) => Cow::Owned(base.join(path)),
            None => path,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(Box<[u8]>),
    Var(VarId),
    /// `$1` … `$9`: a group of the last regular expression that matched.
    Capture(u8),
}

impl Template {
    /// A template without variables.
    pub fn literal(text: &[u8]) -> Template {
        if text.is_empty() {
            return Template::default();
        }
        Template {
            parts: Box::new([Part::Literal(text.into())]),
        }
    }

    /// The text, if there is no variable in it.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(b""),
            [Part::Literal(l)] => Some(l),
            _ => None,
        }
    }

    /// The variable, if there is nothing else.
    pub fn as_variable(&self) -> Option<VarId> {
        match &*self.parts {
            [Part::Var(id)] => Some(*id),
            _ => None,
        }
    }

    /// Whether the template is just this text.
    pub fn is(&self, text: &[u8]) -> bool {
        self.as_literal() == Some(text)
    }

    /// Appends the value to `out`.
    pub fn write(&self, r: &Request, out: &mut Vec<u8>) {
        for p in &self.parts {
            match p {
                Part::Literal(l) => out.extend_from_slice(l),
                Part::Var(id) => out.extend_from_slice(r.var(*id).as_bytes()),
                Part::Capture(n) => out.extend_from_slice(r.captures.get(*n as usize)),
            }
        }
    }

    /// Whether a group of the last match stands in it.
    pub fn has_captures(&self) -> bool {
        self.parts.iter().any(|p| matches!(p, Part::Capture(_)))
    }

    /// As [`Template::write`], with captures escaped as arguments are: `rewrite` and `set` of escaped URIs.
    pub fn write_escaping(&self, r: &Request, out: &mut Vec<u8>) {
        for p in &self.parts {
            match p {
                Part::Literal(l) => out.extend_from_slice(l),
                Part::Var(id) => out.extend_from_slice(r.var(*id).as_bytes()),
                Part::Capture(n) => escape(Escape::Args, r.captures.get(*n as usize), out),
            }
        }
    }

    /// The value; borrowed where there is no variable in it.
    pub fn eval<'t>(&'t self, r: &Request) -> Cow<'t, [u8]> {
        match self.as_literal() {
            Some(l) => Cow::Borrowed(l),
            None => {
                let mut v = Vec::with_capacity(64);
                self.write(r, &mut v);
                Cow::Owned(v)
            }
        }
    }

    /// Each part in turn, for writers that treat variables differently from literals (logs).
    pub fn each(
        &self,
        r: &Request,
        mut literal: impl FnMut(&[u8]),
        mut value: impl FnMut(super::Val<'_>),
    ) {
        for p in &self.parts {
            match p {
                Part::Literal(l) => literal(l),
                Part::Var(id) => value(r.var(*id)),
                Part::Capture(n) => value(super::Val::Bytes(r.captures.get(*n as usize))),
            }
        }
    }
}
