//! The list of modules, in the order in which their hooks run.

use super::{AnyConf, Args, BlockId, Build, Conf, Hooks, Module, Place, Server, Variable};
use crate::config::{Result, Statement};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

/// Every module of a binary: the built-in ones and the user's own.
#[derive(Default)]
pub struct Registry {
    modules: Vec<Box<dyn AnyModule>>,
    by_type: HashMap<TypeId, usize>,
    by_name: HashMap<&'static str, Vec<(usize, usize)>>,
    variables: HashMap<&'static str, Variable>,
    prefixes: Vec<Variable>,
}

impl Registry {
    /// An empty list.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Adds a module after those that are already there.
    pub fn add<M: Module>(&mut self) -> &mut Self {
        let index = self.modules.len();
        if self.by_type.insert(TypeId::of::<M>(), index).is_some() {
            return self;
        }
        for (i, d) in M::DIRECTIVES.iter().enumerate() {
            self.by_name.entry(d.name).or_default().push((index, i));
        }
        for v in M::VARIABLES {
            if v.prefix {
                self.prefixes.push(*v);
            } else {
                self.variables.insert(v.name, *v);
            }
        }
        self.modules.push(Box::new(Erased::<M>(PhantomData)));
        self
    }

    /// The modules, in order.
    pub fn modules(&self) -> impl Iterator<Item = &dyn AnyModule> {
        self.modules.iter().map(|m| &**m)
    }

    /// How many modules there are.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    pub(crate) fn module(&self, index: usize) -> Option<&dyn AnyModule> {
        self.modules.get(index).map(|m| &**m)
    }

    pub(crate) fn index_of<M: Module>(&self) -> Option<usize> {
        self.by_type.get(&TypeId::of::<M>()).copied()
    }

    /// The directives of a name: module and directive index.
    pub(crate) fn directives(&self, name: &str) -> &[(usize, usize)] {
        self.by_name
            .get(name)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// Whether a directive does something: it is known, and not only to be refused with a reason.
    pub fn offers(&self, name: &str) -> bool {
        let mut known = self.directives(name).iter();
        known.any(|(m, _)| self.module(*m).is_some_and(AnyModule::offered))
    }

    /// All names of directives.
    pub fn directive_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.by_name.keys().copied()
    }

    pub(crate) fn variable(&self, name: &str) -> Option<(Variable, usize)> {
        if let Some(v) = self.variables.get(name) {
            return Some((*v, name.len()));
        }
        let longest = self
            .prefixes
            .iter()
            .filter(|v| name.starts_with(v.name) && name.len() > v.name.len());
        longest
            .max_by_key(|v| v.name.len())
            .map(|v| (*v, v.name.len()))
    }

    /// All names of variables, for the nearest-name hint.
    pub(crate) fn variable_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.variables.keys().copied()
    }
}

/// What the documentation and the checks need to know of a directive.
#[derive(Clone, Copy, Debug)]
pub struct DirectiveInfo {
    /// Its name.
    pub name: &'static str,
    /// Where it may stand.
    pub place: Place,
    /// How many parameters it takes.
    pub args: Args,
    /// Syntax and meaning.
    pub help: &'static str,
    /// Couloir's own.
    pub own: bool,
    /// Accepted without meaning.
    pub inert: bool,
    /// What is asked of the parameters where it is.
    pub check: super::directive::Check,
}

/// A [`Module`] whose type has been erased.
pub trait AnyModule: Send + Sync {
    /// [`Module::NAME`].
    fn name(&self) -> &'static str;
    /// [`Module::ALWAYS`].
    fn always(&self) -> bool;
    /// Its directives.
    fn directives(&self) -> Vec<DirectiveInfo>;
    /// One directive.
    fn directive(&self, index: usize) -> Option<DirectiveInfo>;
    /// Its variables.
    fn variables(&self) -> &'static [Variable];
    /// Default settings.
    fn new_conf(&self) -> Box<AnyConf>;
    /// [`Conf::INHERITED`].
    fn inherited(&self) -> bool;
    /// Fills what is not written from the outer settings.
    fn inherit(&self, conf: &mut AnyConf, outer: &AnyConf);
    /// Calls a directive's setter.
    fn set(&self, directive: usize, conf: &mut AnyConf, s: &Statement, b: &mut Build)
    -> Result<()>;
    /// [`Module::configured`].
    fn configured(&self, b: &mut Build) -> Result<()>;
    /// [`Module::OFFERED`].
    fn offered(&self) -> bool;
    /// [`Module::assembled`].
    fn assembled(&self, b: &mut Build, ids: &[BlockId], servers: &mut [Server]) -> Result<()>;
    /// [`Module::attach`].
    fn attach(&self, conf: &Arc<AnyConf>, on: &mut Hooks) -> Result<()>;
}

struct Erased<M>(PhantomData<fn() -> M>);

impl<M: Module> AnyModule for Erased<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn always(&self) -> bool {
        M::ALWAYS
    }

    fn directives(&self) -> Vec<DirectiveInfo> {
        (0..M::DIRECTIVES.len())
            .filter_map(|i| self.directive(i))
            .collect()
    }

    fn directive(&self, index: usize) -> Option<DirectiveInfo> {
        M::DIRECTIVES.get(index).map(|d| DirectiveInfo {
            name: d.name,
            place: d.place,
            args: d.args,
            help: d.help,
            own: d.own,
            inert: d.inert,
            check: d.check,
        })
    }

    fn variables(&self) -> &'static [Variable] {
        M::VARIABLES
    }

    fn new_conf(&self) -> Box<AnyConf> {
        Box::new(M::Conf::default())
    }

    fn inherited(&self) -> bool {
        M::Conf::INHERITED
    }

    fn inherit(&self, conf: &mut AnyConf, outer: &AnyConf) {
        if let (Some(c), Some(o)) = (
            conf.downcast_mut::<M::Conf>(),
            outer.downcast_ref::<M::Conf>(),
        ) {
            c.inherit(o);
        }
    }

    fn set(
        &self,
        directive: usize,
        conf: &mut AnyConf,
        s: &Statement,
        b: &mut Build,
    ) -> Result<()> {
        match (conf.downcast_mut::<M::Conf>(), M::DIRECTIVES.get(directive)) {
            (Some(c), Some(d)) => (d.set)(c, s, b),
            _ => Err(s.error("settings of another module")),
        }
    }

    fn configured(&self, b: &mut Build) -> Result<()> {
        M::configured(b)
    }

    fn offered(&self) -> bool {
        M::OFFERED
    }

    fn assembled(&self, b: &mut Build, ids: &[BlockId], servers: &mut [Server]) -> Result<()> {
        M::assembled(b, ids, servers)
    }

    fn attach(&self, conf: &Arc<AnyConf>, on: &mut Hooks) -> Result<()> {
        let any: Arc<dyn Any + Send + Sync> = conf.clone();
        match any.downcast::<M::Conf>() {
            Ok(c) => M::attach(&c, on),
            Err(_) => Ok(()),
        }
    }
}
