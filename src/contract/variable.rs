//! Variables: declared by modules, resolved to ids when the configuration is read.

use super::{Request, Val};
use std::sync::Arc;

/// A variable that a module provides.
///
/// A getter is a plain function. What it needs is kept with the location ([`super::Hooks::keep`], [`Request::kept`]) or with
/// the request ([`Request::slot`]).
///
/// ```
/// use couloir::prelude::*;
///
/// const VARIABLES: &[Variable] = &[Variable::new("method_length", |r, _| {
///     Val::number(r.method_text().len() as u64)
/// })];
/// ```
#[derive(Clone, Copy)]
pub struct Variable {
    /// Its name without `$`; for a family such as `http_` the common prefix.
    pub name: &'static str,
    /// Its value; the second argument is what follows the prefix in the name of a family's member.
    pub get: for<'r> fn(&'r Request, &'r [u8]) -> Val<'r>,
    /// What `set $name …` does, where that is more than remembering a value.
    pub set: Option<fn(&mut Request, &[u8])>,
    /// Whether the name is a prefix.
    pub prefix: bool,
    /// Whether the first value is kept for the rest of the request.
    pub memo: bool,
    /// Whether `set` and `map` may define it anew.
    pub changeable: bool,
}

impl Variable {
    /// A variable computed whenever it is asked for.
    pub const fn new(
        name: &'static str,
        get: for<'r> fn(&'r Request, &'r [u8]) -> Val<'r>,
    ) -> Self {
        Variable {
            name,
            get,
            set: None,
            prefix: false,
            memo: false,
            changeable: false,
        }
    }

    /// A family of variables that share a prefix, such as `$http_…`.
    pub const fn prefix(
        name: &'static str,
        get: for<'r> fn(&'r Request, &'r [u8]) -> Val<'r>,
    ) -> Self {
        Variable {
            name,
            get,
            set: None,
            prefix: true,
            memo: false,
            changeable: true,
        }
    }

    /// The same, computed once a request.
    pub const fn memo(mut self) -> Self {
        self.memo = true;
        self
    }

    /// The same, and `set` may change it.
    pub const fn changeable(mut self) -> Self {
        self.changeable = true;
        self
    }

    /// The same, and `set` calls this.
    pub const fn setter(mut self, set: fn(&mut Request, &[u8])) -> Self {
        self.set = Some(set);
        self.changeable = true;
        self
    }
}

/// A variable made by a directive (`map`, `geo`, `split_clients`).
pub trait Evaluate: Send + Sync + 'static {
    /// The value for this request; `None` is "not found".
    fn evaluate<'r>(&'r self, r: &'r Request) -> Val<'r>;
}

/// A variable's number in the site's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VarId(pub u16);

/// How a variable of the site gets its value.
#[derive(Clone)]
pub enum VarKind {
    /// Only by assignment (`set`, a named capture, `auth_request_set`).
    Assigned,
    /// By a module's getter; the number is where the suffix begins in the name.
    Getter(Variable, usize),
    /// By a directive's object.
    Source(Arc<dyn Evaluate>),
}

/// One variable of a site.
#[derive(Clone)]
pub struct VarDef {
    /// Its name, in lower case, without `$`.
    pub name: Box<str>,
    /// How it gets its value.
    pub kind: VarKind,
    /// Where an assigned or remembered value is kept in the request.
    pub slot: Option<u16>,
    /// Whether the first value is kept for the rest of the request.
    pub memo: bool,
}
