//! What a directive declares about itself; docs/directives.md is made from these declarations.

use super::Build;
use crate::config::{Result, Statement};

/// Checks the parameters of a directive without meaning; see [`super::inert`].
pub type Check = fn(&Statement, &mut Build) -> Result<()>;

/// One directive of a module.
pub struct Directive<C: 'static> {
    /// Its name in the configuration.
    pub name: &'static str,
    /// The blocks in which it may stand.
    pub place: Place,
    /// How many parameters it takes.
    pub args: Args,
    /// Its syntax and meaning, for docs/directives.md: `SYNTAX: meaning. Default: …`.
    pub help: &'static str,
    /// Whether it is Couloir's own: not nginx's, Plus's nor a known third-party module's.
    pub own: bool,
    /// Whether it is accepted but has no meaning in Couloir (logged once at `info`).
    pub inert: bool,
    /// Whether it gives its block a content handler; of several in one block the last one counts.
    pub content: bool,
    /// What is asked of the parameters of an inert directive.
    pub check: Check,
    /// Writes the directive's parameters to the block's settings.
    pub set: fn(&mut C, &Statement, &mut Build) -> Result<()>,
}

impl<C> Clone for Directive<C> {
    fn clone(&self) -> Self {
        *self
    }
}

// whatever `C` is: only a function names it
impl<C> Copy for Directive<C> {}

impl<C> Directive<C> {
    /// A directive of nginx's or of a known third-party module's.
    pub const fn new(
        name: &'static str,
        place: Place,
        args: Args,
        help: &'static str,
        set: fn(&mut C, &Statement, &mut Build) -> Result<()>,
    ) -> Self {
        Self {
            name,
            place,
            args,
            help,
            own: false,
            inert: false,
            content: false,
            check: super::inert::anything,
            set,
        }
    }

    /// A directive of Couloir's own, marked as such in the documentation.
    pub const fn own(
        name: &'static str,
        place: Place,
        args: Args,
        help: &'static str,
        set: fn(&mut C, &Statement, &mut Build) -> Result<()>,
    ) -> Self {
        Self {
            name,
            place,
            args,
            help,
            own: true,
            inert: false,
            content: false,
            check: super::inert::anything,
            set,
        }
    }

    /// A directive that is accepted and has no meaning here; `help` says why. Its parameters are checked as nginx does.
    pub const fn inert(
        name: &'static str,
        place: Place,
        args: Args,
        check: Check,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            place,
            args,
            help,
            own: false,
            inert: true,
            content: false,
            check,
            set: |_, _, _| Ok(()),
        }
    }

    /// The directive gives its block a content handler (`proxy_pass`, `empty_gif`), with which [`super::Module::attach`]
    /// calls [`super::Hooks::content`] or [`super::Hooks::upstream`].
    pub const fn content(mut self) -> Self {
        self.content = true;
        self
    }
}

/// The kinds of block in which a directive may stand (nginx's "Context").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

impl Place {
    /// Outside every block.
    pub const MAIN: Place = Place(1);
    /// `events {}`.
    pub const EVENTS: Place = Place(1 << 1);
    /// `http {}`.
    pub const HTTP: Place = Place(1 << 2);
    /// `server {}` of `http`.
    pub const SERVER: Place = Place(1 << 3);
    /// `location {}`.
    pub const LOCATION: Place = Place(1 << 4);
    /// `if {}` in a server.
    pub const SERVER_IF: Place = Place(1 << 5);
    /// `if {}` in a location.
    pub const LOCATION_IF: Place = Place(1 << 6);
    /// `limit_except {}`.
    pub const LIMIT_EXCEPT: Place = Place(1 << 7);
    /// `upstream {}` of `http`.
    pub const UPSTREAM: Place = Place(1 << 8);
    /// `stream {}`.
    pub const STREAM: Place = Place(1 << 9);
    /// `server {}` of `stream`.
    pub const STREAM_SERVER: Place = Place(1 << 10);
    /// `upstream {}` of `stream`.
    pub const STREAM_UPSTREAM: Place = Place(1 << 11);
    /// `match {}` of `http`.
    pub const MATCH: Place = Place(1 << 12);
    /// `http`, `server` and `location`: where most settings may stand.
    pub const ANY_HTTP: Place = Place::HTTP.or(Place::SERVER).or(Place::LOCATION);
    /// `http`, `server`, `location` and `if` in a location.
    pub const ANY_HTTP_IF: Place = Place::ANY_HTTP.or(Place::LOCATION_IF);

    /// Both kinds of block.
    pub const fn or(self, other: Place) -> Place {
        Place(self.0 | other.0)
    }

    /// Whether any of `other`'s blocks is among these.
    pub const fn allows(self, other: Place) -> bool {
        self.0 & other.0 != 0
    }

    /// The names of the blocks, as nginx's documentation writes them.
    pub fn names(self) -> Vec<&'static str> {
        const NAMES: [&str; 13] = [
            "main",
            "events",
            "http",
            "server",
            "location",
            "if in server",
            "if in location",
            "limit_except",
            "upstream",
            "stream",
            "stream server",
            "stream upstream",
            "match",
        ];
        NAMES
            .iter()
            .enumerate()
            .filter(|(i, _)| self.0 & (1 << i) != 0)
            .map(|(_, n)| *n)
            .collect()
    }
}

/// How many parameters a directive takes, and whether it opens a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Args {
    /// None.
    None,
    /// One, `on` or `off`; read it with [`Statement::flag`].
    Flag,
    /// Just so many.
    Exactly(u8),
    /// From the first number to the second.
    Between(u8, u8),
    /// So many or more.
    AtLeast(u8),
    /// A block, with between so many and so many parameters before it.
    Block(u8, u8),
}

impl Args {
    /// Whether the directive opens a block.
    pub const fn is_block(self) -> bool {
        matches!(self, Args::Block(..))
    }

    /// Whether `n` parameters are right.
    pub const fn accepts(self, n: usize) -> bool {
        match self {
            Args::None => n == 0,
            Args::Flag => n == 1,
            Args::Exactly(k) => n == k as usize,
            Args::Between(a, b) | Args::Block(a, b) => n >= a as usize && n <= b as usize,
            Args::AtLeast(a) => n >= a as usize,
        }
    }
}

/// Stores a value that may be given only once in a block.
///
/// # Errors
/// nginx's `"…" directive is duplicate`.
pub fn once<T>(slot: &mut Option<T>, s: &Statement, value: T) -> Result<()> {
    if slot.is_some() {
        return Err(s.duplicate());
    }
    *slot = Some(value);
    Ok(())
}
