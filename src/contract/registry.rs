//! The list of modules, in the order in which their hooks run.

use super::{AnyConf, Args, BlockId, Build, Conf, Hooks, Module, Place, Server, Variable};
use crate::config::{Result, Statement};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

/// Every module of a binary: the built-in ones and the user's own.
///
/// The order of the list is the order in which hooks of the same kind run. [`ModuleRegistry::add`] puts a module in front of
/// what compresses responses and offers content, so that a body filter sees plain bytes; [`Module::ORDER`] says otherwise.
#[derive(Default)]
pub struct ModuleRegistry {
    modules: Vec<Entry>,
    by_type: HashMap<TypeId, usize>,
    by_name: HashMap<&'static str, Vec<(usize, usize)>>,
    variables: HashMap<&'static str, Variable>,
    prefixes: Vec<Variable>,
    /// Where modules are added from now on; at the end where it is not set.
    extension_point: Option<usize>,
    /// Faults of the list itself, found while it was filled.
    faults: Vec<String>,
    arranged: bool,
}

struct Entry {
    id: TypeId,
    module: Box<dyn AnyModule>,
}

/// How often each module that asks for a place is moved at most, before its order is taken to go in a circle.
const TURNS: usize = 64;

/// Where a module's hooks run among those of other modules, which are named by [`Module::NAME`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In front of this module's hooks.
    Before(&'static str),
    /// Behind this module's hooks.
    After(&'static str),
}

impl ModuleRegistry {
    /// An empty list.
    pub fn new() -> ModuleRegistry {
        ModuleRegistry::default()
    }

    /// Adds a module at the extension point, behind those that were added there before.
    ///
    /// What is wrong with it (a type, name, directive or variable that is taken) is reported by [`ModuleRegistry::arrange`].
    pub fn add<M: Module>(&mut self) -> &mut Self {
        let id = TypeId::of::<M>();
        self.arranged = false;
        if self.modules.iter().any(|e| e.id == id) {
            self.faults
                .push(format!("module \"{}\" is registered twice", M::NAME));
            return self;
        }
        let at = self.extension_point.unwrap_or(self.modules.len());
        let module = Box::new(Erased::<M>(PhantomData));
        self.modules.insert(at, Entry { id, module });
        if let Some(at) = &mut self.extension_point {
            *at += 1;
        }
        self
    }

    /// Lets modules be added here from now on, whatever is added behind this place by [`ModuleRegistry::append`].
    pub(crate) fn set_extension_point(&mut self) {
        self.extension_point = Some(self.modules.len());
    }

    /// Adds a module at the end of the list.
    pub(crate) fn append<M: Module>(&mut self) -> &mut Self {
        let point = self.extension_point.take();
        self.add::<M>();
        self.extension_point = point;
        self
    }

    /// Brings the modules into the order that they ask for, and checks that they fit together.
    ///
    /// # Errors
    /// A module, directive or variable that is declared twice, an order that names an unknown module, or one that cannot
    /// be kept; the text names both modules.
    pub fn arrange(&mut self) -> std::result::Result<(), String> {
        if let Some(fault) = self.faults.first() {
            return Err(fault.clone());
        }
        self.order()?;
        self.index()?;
        self.arranged = true;
        Ok(())
    }

    /// Whether the list may be used: [`ModuleRegistry::arrange`] has succeeded since the last module was added.
    pub fn is_arranged(&self) -> bool {
        self.arranged
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.modules.iter().position(|e| e.module.name() == name)
    }

    /// Moves each module that asks for a place to it, and checks that all are where they want to be.
    fn order(&mut self) -> std::result::Result<(), String> {
        let wishes: Vec<_> = self
            .modules
            .iter()
            .map(|e| (e.module.name(), e.module.order()))
            .filter(|(_, order)| !order.is_empty())
            .collect();
        for (name, order) in &wishes {
            for wish in order.iter() {
                let (Order::Before(other) | Order::After(other)) = wish;
                if self.position(other).is_none() {
                    return Err(format!(
                        "module \"{name}\" is ordered by module \"{other}\", which is unknown"
                    ));
                }
            }
            self.place(name, order);
        }
        // a module that moved later may have undone the place of an earlier one: each gets its turn again
        for _ in 0..TURNS * wishes.len() {
            let Some((name, order)) = wishes.iter().find(|(n, o)| self.misplaced(n, o).is_some())
            else {
                return Ok(());
            };
            self.place(name, order);
        }
        match wishes
            .iter()
            .find_map(|(n, o)| Some((n, self.misplaced(n, o)?)))
        {
            None => Ok(()),
            Some((name, other)) => Err(format!(
                "the order of module \"{name}\" and module \"{other}\" goes in a circle"
            )),
        }
    }

    /// Moves a module in front of the first that it must precede, or behind the last that it must follow.
    fn place(&mut self, name: &str, order: &[Order]) {
        if self.misplaced(name, order).is_none() {
            return;
        }
        let Some(from) = self.position(name) else {
            return;
        };
        let entry = self.modules.remove(from);
        let (mut first, mut last) = (None::<usize>, None::<usize>);
        for wish in order {
            match wish {
                Order::Before(other) => {
                    let at = self.position(other);
                    first = first.into_iter().chain(at).min();
                }
                Order::After(other) => last = last.max(self.position(other).map(|at| at + 1)),
            }
        }
        let to = first.or(last).unwrap_or(from).min(self.modules.len());
        self.modules.insert(to, entry);
    }

    /// The module on whose wrong side this one stands.
    fn misplaced(&self, name: &str, order: &[Order]) -> Option<&'static str> {
        let own = self.position(name)?;
        order.iter().find_map(|wish| match wish {
            Order::Before(other) => (self.position(other)? < own).then_some(*other),
            Order::After(other) => (self.position(other)? > own).then_some(*other),
        })
    }

    /// Makes the tables by which modules, directives and variables are found.
    fn index(&mut self) -> std::result::Result<(), String> {
        let mut names = HashMap::new();
        let mut owners: HashMap<&'static str, &'static str> = HashMap::new();
        self.by_type.clear();
        self.by_name.clear();
        self.variables.clear();
        self.prefixes.clear();
        for (index, entry) in self.modules.iter().enumerate() {
            let module = entry.module.name();
            if names.insert(module, index).is_some() {
                return Err(format!("two modules are named \"{module}\""));
            }
            self.by_type.insert(entry.id, index);
            for (i, d) in entry.module.directives().into_iter().enumerate() {
                let others = self.by_name.entry(d.name).or_default();
                let taken = others.iter().find(|(m, i)| {
                    let other = self.modules.get(*m).and_then(|e| e.module.directive(*i));
                    other.is_some_and(|o| o.place.allows(d.place))
                });
                if let Some((m, _)) = taken {
                    let other = self.modules.get(*m).map_or("", |e| e.module.name());
                    return Err(format!(
                        "directive \"{}\" of module \"{module}\" is taken by module \"{other}\"",
                        d.name
                    ));
                }
                others.push((index, i));
            }
            for v in entry.module.variables() {
                if let Some(other) = owners.insert(v.name, module) {
                    return Err(format!(
                        "variable \"${}\" of module \"{module}\" is taken by module \"{other}\"",
                        v.name
                    ));
                }
                if v.prefix {
                    self.prefixes.push(*v);
                } else {
                    self.variables.insert(v.name, *v);
                }
            }
        }
        Ok(())
    }

    /// The modules, in order.
    pub fn modules(&self) -> impl Iterator<Item = &dyn AnyModule> {
        self.modules.iter().map(|e| &*e.module)
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
        self.modules.get(index).map(|e| &*e.module)
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
        let longest = self.prefixes.iter().filter(|v| name.starts_with(v.name));
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
    /// Gives its block a content handler.
    pub content: bool,
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
    /// [`Module::ORDER`].
    fn order(&self) -> &'static [Order];
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
            content: d.content,
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

    fn order(&self) -> &'static [Order] {
        M::ORDER
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

#[cfg(test)]
mod tests {
    use super::super::{Hooks, Val};
    use super::*;

    macro_rules! module {
        ($type:ident, $name:literal, $order:expr, [$($directive:literal),*], [$($variable:literal),*]) => {
            struct $type;
            impl Module for $type {
                const NAME: &'static str = $name;
                type Conf = ();
                const ORDER: &'static [Order] = $order;
                const DIRECTIVES: &'static [super::super::Directive<()>] = &[$(super::super::Directive::new(
                    $directive, Place::HTTP, Args::Flag, "", |(), _, _| Ok(()))),*];
                const VARIABLES: &'static [Variable] = &[$(Variable::new($variable, |_, _| Val::None)),*];
                fn attach(_: &Arc<()>, _: &mut Hooks) -> Result<()> {
                    Ok(())
                }
            }
        };
    }

    module!(First, "first", &[], ["one"], ["v"]);
    module!(Last, "last", &[], [], []);
    module!(Middle, "middle", &[], [], []);
    module!(Front, "front", &[Order::Before("first")], [], []);
    module!(Behind, "behind", &[Order::After("last")], [], []);
    module!(
        Between,
        "between",
        &[Order::After("first"), Order::Before("front")],
        [],
        []
    );
    module!(Stranger, "stranger", &[Order::After("nothing")], [], []);
    module!(SameName, "first", &[], [], []);
    module!(SameDirective, "thief", &[], ["one"], []);
    module!(SameVariable, "borrower", &[], [], ["v"]);
    module!(Hen, "hen", &[Order::After("egg")], [], []);
    module!(Egg, "egg", &[Order::After("hen")], [], []);

    module!(One, "one", &[Order::After("two")], [], []);
    module!(Two, "two", &[Order::After("three")], [], []);
    module!(Three, "three", &[Order::After("four")], [], []);
    module!(Four, "four", &[Order::After("five")], [], []);
    module!(Five, "five", &[Order::After("six")], [], []);
    module!(Six, "six", &[], [], []);

    #[test]
    fn a_chain_is_no_circle() {
        let mut r = ModuleRegistry::new();
        r.add::<One>().add::<Two>().add::<Three>();
        r.add::<Four>().add::<Five>().add::<Six>();
        assert_eq!(r.arrange(), Ok(()));
        assert_eq!(names(&r), ["six", "five", "four", "three", "two", "one"]);
    }

    fn list() -> ModuleRegistry {
        let mut r = ModuleRegistry::new();
        r.add::<First>();
        r.set_extension_point();
        r.append::<Last>();
        r
    }

    fn names(r: &ModuleRegistry) -> Vec<&'static str> {
        r.modules().map(AnyModule::name).collect()
    }

    #[test]
    fn modules_stand_where_they_ask_to() {
        let mut r = list();
        r.add::<Middle>().add::<Front>().add::<Behind>();
        assert!(!r.is_arranged());
        assert_eq!(r.arrange(), Ok(()));
        assert!(r.is_arranged());
        assert_eq!(names(&r), ["front", "first", "middle", "last", "behind"]);
        assert_eq!(r.index_of::<Last>(), Some(3));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_both_names() {
        let refused = |add: fn(&mut ModuleRegistry) -> &mut ModuleRegistry| {
            let mut r = list();
            add(&mut r);
            r.arrange().unwrap_err()
        };
        assert_eq!(
            refused(|r| r.add::<First>()),
            "module \"first\" is registered twice"
        );
        assert_eq!(
            refused(|r| r.add::<SameName>()),
            "two modules are named \"first\""
        );
        assert_eq!(
            refused(|r| r.add::<SameDirective>()),
            "directive \"one\" of module \"thief\" is taken by module \"first\""
        );
        assert_eq!(
            refused(|r| r.add::<SameVariable>()),
            "variable \"$v\" of module \"borrower\" is taken by module \"first\""
        );
        assert_eq!(
            refused(|r| r.add::<Stranger>()),
            "module \"stranger\" is ordered by module \"nothing\", which is unknown"
        );
        assert_eq!(
            refused(|r| r.add::<Hen>().add::<Egg>()),
            "the order of module \"hen\" and module \"egg\" goes in a circle"
        );
        assert_eq!(
            refused(|r| r.add::<Front>().add::<Between>()),
            "the order of module \"between\" and module \"first\" goes in a circle"
        );
    }
}
