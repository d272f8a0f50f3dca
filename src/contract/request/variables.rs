//! The variables of a request: computed when asked for, assigned by `set` and captures.

use super::Request;
use crate::contract::{Val, VarId, VarKind};
use crate::log::Level;
use crate::runtime::panics::{self, HookName};
use std::sync::{Arc, OnceLock};

/// Calls what computes or sets a variable, so that a panic is reported with the variable's name.
#[inline]
fn named<T>(name: &str, call: impl FnOnce() -> T) -> T {
    panics::named(
        || HookName {
            text: format!("variable \"${name}\""),
            id: 0,
        },
        call,
    )
}

impl Request {
    /// The value of a variable.
    pub fn var(&self, id: VarId) -> Val<'_> {
        let Some(def) = self.site.vars.get(id.0 as usize) else {
            return Val::None;
        };
        let slot = def.slot.and_then(|s| self.values.get(s as usize));
        if let Some(value) = slot.and_then(|s| s.get()) {
            return Val::from_option(value.as_deref());
        }
        let value = match &def.kind {
            VarKind::Assigned => return Val::None,
            VarKind::Getter(v, at) => named(&def.name, || {
                (v.get)(self, def.name.as_bytes().get(*at..).unwrap_or_default())
            }),
            VarKind::Source(s) => match Depth::enter() {
                Some(_depth) => named(&def.name, || s.evaluate(self)),
                None => {
                    self.error(
                        Level::Error,
                        format_args!("cycle while evaluating variable \"{}\"", def.name),
                    );
                    Val::None
                }
            },
        };
        match slot {
            Some(slot) if def.memo => {
                slot.push((!value.is_none()).then(|| value.as_bytes().into()));
                Val::from_option(slot.get().and_then(|v| v.as_deref()))
            }
            _ => value,
        }
    }

    /// The value of a variable by its name, for tools and tests; modules resolve names to ids at load.
    pub fn var_by_name(&self, name: &str) -> Val<'_> {
        self.site
            .var_names
            .get(name)
            .map_or(Val::None, |id| self.var(*id))
    }

    /// The value of any variable that a module provides or the configuration knows, by its name in lower case.
    pub fn var_named<'a>(&'a self, name: &'a str) -> Val<'a> {
        if let Some(id) = self.site.var_names.get(name) {
            return self.var(*id);
        }
        match self.site.registry.variable(name) {
            Some((v, at)) => named(name, || {
                (v.get)(self, name.as_bytes().get(at..).unwrap_or_default())
            }),
            None => Val::None,
        }
    }

    /// Assigns a variable (`set`, captures).
    pub fn set_var(&mut self, id: VarId, value: Vec<u8>) {
        let Some(def) = self.site.vars.get(id.0 as usize) else {
            return;
        };
        if let VarKind::Getter(v, _) = &def.kind
            && let Some(set) = v.set
        {
            set(self, &value);
            return;
        }
        let Some(i) = def.slot else { return };
        if let Some(slot) = Arc::get_mut(&mut self.values).and_then(|v| v.get_mut(i as usize)) {
            slot.take();
        }
        if let Some(slot) = self.values.get(i as usize) {
            slot.push(Some(value.into_boxed_slice()));
        }
    }

    /// Assigns a variable while others are being read: a named capture of a pattern in `map`.
    ///
    /// What [`Request::var`] has lent stays as it was. Variables with a setter of their own are not assigned.
    pub fn note_var(&self, id: VarId, value: &[u8]) {
        let Some(def) = self.site.vars.get(id.0 as usize) else {
            return;
        };
        let own_setter = matches!(&def.kind, VarKind::Getter(v, _) if v.set.is_some());
        if let Some(slot) = def.slot.and_then(|s| self.values.get(s as usize))
            && !own_setter
        {
            slot.push(Some(value.into()));
        }
    }
}

pub(super) fn empty_values(n: usize) -> Arc<[Kept]> {
    std::iter::repeat_with(Kept::default).take(n).collect()
}

/// The value of a variable in one request: the newest of a chain, so that a value can be replaced while it is lent.
#[derive(Default)]
pub(super) struct Kept {
    value: OnceLock<Option<Box<[u8]>>>,
    newer: OnceLock<Box<Kept>>,
}

impl Kept {
    fn newest(&self) -> &Kept {
        let mut k = self;
        while let Some(n) = k.newer.get() {
            k = n;
        }
        k
    }

    fn get(&self) -> Option<&Option<Box<[u8]>>> {
        self.newest().value.get()
    }

    fn push(&self, value: Option<Box<[u8]>>) {
        let newest = self.newest();
        if newest.value.get() == Some(&value) {
            return;
        }
        if let Err(value) = newest.value.set(value) {
            let _ = newest.newer.set(Box::new(Kept {
                value: OnceLock::from(value),
                newer: OnceLock::new(),
            }));
        }
    }

    pub(super) fn take(&mut self) {
        self.value.take();
        self.newer.take();
    }
}

/// One level of variables that are computed from others; there may be a hundred, as in nginx.
struct Depth;

thread_local! {
    static DEPTH: std::cell::Cell<u8> = const { std::cell::Cell::new(100) };
}

impl Depth {
    fn enter() -> Option<Depth> {
        DEPTH.with(|d| {
            let left = d.get().checked_sub(1)?;
            d.set(left);
            Some(Depth)
        })
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.with(|d| d.set(d.get() + 1));
    }
}
