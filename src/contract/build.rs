//! Reading a configuration into blocks of module settings.

use super::block::{self, BlockData, BlockId, BlockKind};
use super::template::Part;
use super::{
    Background, Evaluate, Module, ModuleRegistry, PathTemplate, Pattern, Place, Slot, Template,
    VarId,
};
use crate::config::{self, Diag, Result, Statement};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A variable while the configuration is read.
pub(crate) struct VarBuild {
    pub name: Box<str>,
    pub assigned: bool,
    /// A named capture: reading it before a match is no mistake.
    pub captured: bool,
    pub source: Option<(Arc<dyn Evaluate>, bool)>,
    pub first_use: Option<Box<Diag>>,
    /// Used only where nginx never looks: it has no value, and need not exist.
    pub unused: bool,
}

type Finisher = Box<dyn FnOnce(&mut Build) -> Result<()>>;

/// The configuration while it is read: what a directive's setter may ask for.
pub struct Build {
    pub(crate) registry: Arc<ModuleRegistry>,
    pub(crate) blocks: Vec<BlockData>,
    pub(crate) vars: Vec<VarBuild>,
    var_ids: HashMap<Box<str>, VarId>,
    pub(crate) module_slots: u16,
    current: BlockId,
    shared: HashMap<TypeId, Box<dyn Any>>,
    finishers: Vec<Finisher>,
    pub(crate) background: Vec<Arc<Background>>,
    /// Warnings (`[warn]`), in order.
    pub warnings: Vec<Box<Diag>>,
    /// Notices about directives without meaning here.
    pub notices: Vec<String>,
    /// `-p`: relative paths of logs, temporary files and documents begin here.
    pub prefix: PathBuf,
    /// The folder of the main configuration file: relative paths of includes and key files begin here.
    pub conf_prefix: PathBuf,
    /// `-t`: nothing is to be started.
    pub testing: bool,
    /// `start_degraded`: known before anything else is read, wherever it stands.
    pub(crate) start_degraded: bool,
    groups: super::GroupsRef,
    /// What stands where, if a request is to be explained.
    pub(crate) written: Option<super::WrittenList>,
    /// What `load_module` names and is not built in.
    pub(crate) absent_modules: Vec<String>,
    /// The file and the line of the end of `http`, which nginx names for what it finds when it merges settings.
    http_end: Option<(Arc<str>, u32)>,
    late: super::late::Late,
}

impl Build {
    /// An empty configuration.
    pub fn new(registry: Arc<ModuleRegistry>, prefix: &Path, conf_prefix: &Path) -> Build {
        let mut b = Build {
            registry,
            blocks: Vec::new(),
            vars: Vec::new(),
            var_ids: HashMap::new(),
            module_slots: 0,
            current: BlockId(0),
            shared: HashMap::new(),
            finishers: Vec::new(),
            background: Vec::new(),
            warnings: Vec::new(),
            notices: Vec::new(),
            prefix: prefix.into(),
            conf_prefix: conf_prefix.into(),
            testing: false,
            start_degraded: false,
            groups: super::GroupsRef::default(),
            written: None,
            absent_modules: Vec::new(),
            http_end: None,
            late: super::late::Late::default(),
        };
        b.push_block(None, Place::MAIN, BlockKind::Main, "");
        b
    }

    /// Reads the statements of the whole configuration.
    pub(crate) fn read(&mut self, root: &crate::config::Block) -> Result<()> {
        self.statements(root)
    }

    /// Lets every module fill in its defaults.
    pub(crate) fn configured(&mut self) -> Result<()> {
        let registry = self.registry.clone();
        registry.modules().try_for_each(|m| m.configured(self))
    }

    /// Notes where `http` ends.
    pub(crate) fn http_ends(&mut self, s: &Statement) {
        let end = s.block.as_ref().map_or(s.line, |b| b.end_line);
        self.http_end = Some((s.source.name.to_string().into(), end));
    }

    /// Puts a fault that nginx finds when it merges settings where nginx reports it: at the end of `http`. What nginx
    /// says without a place stays without one.
    pub(crate) fn at_merge(&self, diag: Box<Diag>) -> Box<Diag> {
        match &self.http_end {
            Some((file, line)) if diag.file.is_some() => diag.placed(file, *line),
            _ => diag,
        }
    }

    /// Warns of what shows when the settings of a block are merged, where nginx does.
    pub(crate) fn warn_at_merge(&mut self, block: BlockId, text: String) {
        let mut diag = Diag::new(config::Level::Warn, text);
        let at = self.blocks.get(block.0 as usize).map(|b| b.at.to_string());
        diag.written_at = at.filter(|at| !at.is_empty());
        if let Some((file, line)) = &self.http_end {
            (diag.file, diag.line) = (Some(file.to_string()), *line);
        }
        self.warnings.push(diag);
    }

    /// Runs what setters left to be done once everything has been read.
    pub(crate) fn finish(&mut self) -> Result<()> {
        // a finisher may add another
        while !self.finishers.is_empty() {
            for f in std::mem::take(&mut self.finishers) {
                f(self)?;
            }
        }
        Ok(())
    }

    fn push_block(
        &mut self,
        parent: Option<BlockId>,
        place: Place,
        kind: BlockKind,
        at: &str,
    ) -> BlockId {
        let id = BlockId(self.blocks.len() as u32);
        if let Some(outer) = parent.and_then(|p| self.blocks.get_mut(p.0 as usize)) {
            outer.children.push(id);
        }
        self.blocks.push(BlockData {
            parent,
            place,
            kind,
            at: at.into(),
            children: Vec::new(),
            written: Vec::new(),
            effective: Arc::new([]),
            content: None,
            print: 0,
        });
        id
    }

    /// Opens a block of settings and reads the statements in it: how `server`, `location` and `if` are made.
    pub fn enter(&mut self, s: &Statement, place: Place, kind: BlockKind) -> Result<BlockId> {
        let outer = self.current;
        let id = self.push_block(Some(outer), place, kind, &s.place());
        if let Some(b) = self.blocks.get_mut(id.0 as usize) {
            b.print = block::print_words(&s.args);
        }
        self.current = id;
        let result = s.block.as_ref().map_or(Ok(()), |b| self.statements(b));
        self.current = outer;
        result.map(|()| id)
    }

    fn statements(&mut self, block: &crate::config::Block) -> Result<()> {
        for s in &block.items {
            self.statement(s)?;
        }
        match &block.error {
            Some(e) => Err(e.clone()),
            None => Ok(()),
        }
    }

    fn statement(&mut self, s: &Statement) -> Result<()> {
        let registry = self.registry.clone();
        let place = self.place();
        let candidates = registry.directives(s.name());
        let info = |&(m, d): &(usize, usize)| {
            registry
                .module(m)
                .and_then(|x| x.directive(d))
                .map(|i| (m, d, i))
        };
        let Some((m, d, info)) = candidates
            .iter()
            .filter_map(info)
            .find(|(_, _, i)| i.place.allows(place))
        else {
            if candidates.is_empty() {
                return Err(self.unknown_directive(s));
            }
            return Err(s.not_allowed_here());
        };
        if info.args.is_block() && s.block.is_none() {
            return Err(s.no_opening());
        }
        if !info.args.is_block() && s.block.is_some() {
            return Err(s.not_terminated());
        }
        if !info.args.accepts(s.len()) {
            return Err(s.invalid_number_of_arguments());
        }
        let (current, inherited) = (
            self.current,
            registry.module(m).is_some_and(|m| m.inherited()),
        );
        if let Some(list) = self.written.as_mut().filter(|_| !info.args.is_block()) {
            list.add(current, s, inherited);
        }
        if info.inert {
            (info.check)(s, self)?;
            let notice = format!("\"{}\" has no meaning here and is not used", s.name());
            if !self.notices.contains(&notice) {
                self.notices.push(notice);
            }
            return Ok(());
        }
        let Some(module) = registry.module(m) else {
            return Ok(());
        };
        let block = self.current.0 as usize;
        let next = self.blocks.len();
        let taken = self.blocks.get_mut(block).and_then(|b| b.take_written(m));
        let mut conf = taken.unwrap_or_else(|| module.new_conf());
        self.late.begin(place, current, info.name);
        let result = module.set(d, &mut *conf, s, self);
        self.late.end();
        // a block that is told apart by itself is not part of what stands around it
        let apart = s.block.is_some()
            && self
                .blocks
                .get(next)
                .is_some_and(|b| !matches!(b.kind, BlockKind::If | BlockKind::LimitExcept(_)));
        if let Some(b) = self.blocks.get_mut(block) {
            // what the setter itself asked for in its own block is not kept
            b.take_written(m);
            b.written.push((m, conf));
            if info.content {
                b.content = Some(m);
            }
            if !apart {
                b.print = block::print(b.print, s);
            }
        }
        result?;
        match s.syntax_error() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn unknown_directive(&self, s: &Statement) -> Box<Diag> {
        let diag = s.unknown_directive(self.registry.directive_names());
        match self.absent_modules.as_slice() {
            [] => diag,
            names => {
                let or = diag
                    .help
                    .as_ref()
                    .map_or(String::new(), |h| format!(" {h}"));
                diag.with_help(format!(
                    "{} named by \"load_module\" and not built in, so there are no directives of it.{or}",
                    match names {
                        [one] => format!("\"{one}\" is"),
                        more => format!("\"{}\" are", more.join("\", \"")),
                    }
                ))
            }
        }
    }

    /// The groups of the site, for targets with variables; filled once everything has been read.
    pub fn groups(&self) -> super::GroupsRef {
        self.groups.clone()
    }

    /// A module's effective settings of a block, once inner blocks have inherited: in [`Module::assembled`].
    pub fn effective<M: Module>(&self, id: BlockId) -> Arc<M::Conf> {
        let m = self.registry.index_of::<M>();
        let found = m.and_then(|m| self.blocks.get(id.0 as usize)?.effective.get(m)?.clone());
        found
            .and_then(|a| a.downcast::<M::Conf>().ok())
            .unwrap_or_default()
    }

    /// Lets every module finish what it has on the servers.
    pub(crate) fn assembled(
        &mut self,
        ids: &[BlockId],
        servers: &mut [super::Server],
    ) -> Result<()> {
        let registry = self.registry.clone();
        registry
            .modules()
            .try_for_each(|m| m.assembled(self, ids, servers))
    }

    /// The kind of block that is being read.
    pub fn place(&self) -> Place {
        self.blocks
            .get(self.current.0 as usize)
            .map_or(Place::MAIN, |b| b.place)
    }

    /// The block that is being read.
    pub fn block(&self) -> BlockId {
        self.current
    }

    /// What the block being read is.
    pub fn kind(&self) -> &BlockKind {
        self.kind_of(self.current)
    }

    /// What a block is.
    pub fn kind_of(&self, id: BlockId) -> &BlockKind {
        self.blocks
            .get(id.0 as usize)
            .map_or(&BlockKind::Main, |b| &b.kind)
    }

    /// The block around a block.
    pub fn parent_of(&self, id: BlockId) -> Option<BlockId> {
        self.blocks.get(id.0 as usize).and_then(|b| b.parent)
    }

    /// Another module's settings in the block being read; `None` if that module is not there or its own setter runs.
    pub fn conf<M: Module>(&mut self) -> Option<&mut M::Conf> {
        self.conf_of::<M>(self.current)
    }

    /// A module's settings as written in a block.
    pub fn conf_of<M: Module>(&mut self, id: BlockId) -> Option<&mut M::Conf> {
        let m = self.registry.index_of::<M>()?;
        let written = &mut self.blocks.get_mut(id.0 as usize)?.written;
        let at = match written.iter().position(|(n, _)| *n == m) {
            Some(at) => at,
            None => {
                written.push((m, Box::new(M::Conf::default())));
                written.len() - 1
            }
        };
        written.get_mut(at)?.1.downcast_mut()
    }

    /// A module's settings as written in a block, if one of its directives stands there.
    pub fn written<M: Module>(&self, id: BlockId) -> Option<&M::Conf> {
        let m = self.registry.index_of::<M>()?;
        self.blocks.get(id.0 as usize)?.written(m)?.downcast_ref()
    }

    /// The blocks right inside a block, in the order of the configuration.
    pub fn children_of(&self, id: BlockId) -> &[BlockId] {
        self.blocks
            .get(id.0 as usize)
            .map_or(&[], |b| b.children.as_slice())
    }

    /// Every block of these kinds, in the order of the configuration.
    pub fn blocks_of(&self, place: Place) -> impl Iterator<Item = BlockId> + '_ {
        let ids = self
            .blocks
            .iter()
            .enumerate()
            .filter(move |(_, b)| place.allows(b.place));
        ids.map(|(i, _)| BlockId(i as u32))
    }

    /// Something that several directives share while the configuration is read, such as the table of log formats.
    pub fn shared<T: Default + 'static>(&mut self) -> &mut T {
        let slot = self
            .shared
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(T::default()));
        if !slot.is::<T>() {
            *slot = Box::new(T::default());
        }
        #[allow(clippy::unreachable)]
        slot.downcast_mut()
            .unwrap_or_else(|| unreachable!("the slot was just made of this type"))
    }

    /// Runs `f` once everything has been read (an `upstream` may follow the directive that names it).
    pub fn at_end(&mut self, f: impl FnOnce(&mut Build) -> Result<()> + 'static) {
        self.finishers.push(Box::new(f));
    }

    /// Runs a service for as long as this configuration is in force, once in a process, on a serving thread: it must
    /// not block. It is told of the end by its [`super::ShutdownWatch`].
    pub fn background(&mut self, service: Arc<Background>) {
        self.background.push(service);
    }

    /// Reserves a place in every request for a module's own state.
    pub fn slot<T: Send + Sync + 'static>(&mut self) -> Slot<T> {
        let s = Slot::new(self.module_slots);
        self.module_slots += 1;
        s
    }

    /// Prints a warning when the configuration has been read; it does not stop the start.
    pub fn warn(&mut self, diag: Box<Diag>) {
        self.warnings.push(diag);
    }

    /// Takes what is wrong with one upstream or server alone: where `start_degraded` is on it is told with its own level
    /// and the others are served, else it is refused.
    ///
    /// # Errors
    /// `diag`, unless `start_degraded` is on.
    pub fn degrade(&mut self, diag: Box<Diag>) -> Result<()> {
        if !self.start_degraded {
            return Err(diag);
        }
        self.warnings.push(diag);
        Ok(())
    }

    /// A path relative to the prefix (documents, logs, temporary files).
    pub fn prefixed(&self, path: &str) -> PathBuf {
        self.prefix.join(path)
    }

    /// A path relative to the configuration's own folder (keys, password files).
    pub fn conf_prefixed(&self, path: &str) -> PathBuf {
        self.conf_prefix.join(path)
    }

    /// A parameter with variables.
    pub fn template(&mut self, s: &Statement, i: usize) -> Result<Template> {
        let text = s.arg(i).to_vec();
        self.template_of(s, &text)
    }

    /// A parameter that is a path with variables, relative to the configuration's own folder, as that of
    /// [`Build::conf_prefixed`].
    pub fn conf_path(&mut self, s: &Statement, i: usize) -> Result<PathTemplate> {
        use std::os::unix::ffi::OsStrExt;
        if s.arg(i).first() == Some(&b'$') {
            // it may be absolute all the same
            let base = self.conf_prefix.clone().into();
            return Ok(PathTemplate::new(self.template(s, i)?, Some(base)));
        }
        let path = self.conf_prefix.join(std::ffi::OsStr::from_bytes(s.arg(i)));
        let path = self.template_of(s, path.as_os_str().as_bytes())?;
        Ok(PathTemplate::new(path, None))
    }

    /// A parameter that becomes part of a head: line breaks written in it become spaces.
    pub fn head_template(&mut self, s: &Statement, i: usize) -> Result<Template> {
        let t = self.template(s, i)?;
        if !t.has_break() {
            return Ok(t);
        }
        let notice = format!(
            "line breaks in a value of \"{}\" are written as spaces",
            s.name()
        );
        if !self.notices.contains(&notice) {
            self.notices.push(notice);
        }
        Ok(t.unfolded())
    }

    /// Any text with variables; `s` is where an error is reported.
    pub fn template_of(&mut self, s: &Statement, text: &[u8]) -> Result<Template> {
        let mut parts: Vec<Part> = Vec::new();
        let mut literal = Vec::new();
        let mut i = 0;
        while let Some(&c) = text.get(i) {
            if c != b'$' {
                literal.push(c);
                i += 1;
                continue;
            }
            i += 1;
            let flush = |literal: &mut Vec<u8>, parts: &mut Vec<Part>| {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(literal).into()));
                }
            };
            if let Some(d @ b'1'..=b'9') = text.get(i) {
                flush(&mut literal, &mut parts);
                parts.push(Part::Capture(d - b'0'));
                i += 1;
                continue;
            }
            let braced = text.get(i) == Some(&b'{');
            let begin = i + usize::from(braced);
            let len = text
                .get(begin..)
                .unwrap_or_default()
                .iter()
                .take_while(|c| c.is_ascii_alphanumeric() || **c == b'_')
                .count();
            let end = begin + len;
            if braced && begin < text.len() && text.get(end) != Some(&b'}') {
                let name = String::from_utf8_lossy(text.get(begin..end).unwrap_or_default());
                return Err(s.error(format!(
                    "the closing bracket in \"{name}\" variable is missing"
                )));
            }
            if len == 0 {
                return Err(s.error("invalid variable name"));
            }
            let name =
                String::from_utf8_lossy(text.get(begin..end).unwrap_or_default()).into_owned();
            flush(&mut literal, &mut parts);
            parts.push(Part::Var(self.var(s, &name)));
            i = end + usize::from(braced);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Template {
            parts: parts.into(),
        })
    }

    fn var_id(&mut self, name: &str) -> VarId {
        let name = name.to_ascii_lowercase();
        if let Some(id) = self.var_ids.get(&*name) {
            return *id;
        }
        let id = VarId(self.vars.len().min(u16::MAX as usize) as u16);
        let name: Box<str> = name.into();
        self.var_ids.insert(name.clone(), id);
        self.vars.push(VarBuild {
            name,
            assigned: false,
            captured: false,
            source: None,
            first_use: None,
            unused: false,
        });
        id
    }

    /// A variable that is read; whether it exists is checked when everything has been read.
    pub fn var(&mut self, s: &Statement, name: &str) -> VarId {
        let id = self.var_id(name);
        if let Some(v) = self.vars.get_mut(id.0 as usize)
            && v.first_use.is_none()
        {
            let unknown = || {
                s.error(format!("unknown \"{}\" variable", v.name))
                    .unplaced()
            };
            if !self.late.uses(id, unknown) {
                v.first_use = Some(unknown());
            }
        }
        id
    }

    /// A variable that is known to exist, by name.
    pub fn known_var(&mut self, name: &str) -> VarId {
        self.var_id(name)
    }

    /// A variable that a directive assigns to (`set`, a named capture).
    pub fn assigned_var(&mut self, s: &Statement, name: &str) -> Result<VarId> {
        let name = name.to_ascii_lowercase();
        if let Some((v, _)) = self.registry.variable(&name)
            && !v.changeable
        {
            return Err(s.error(format!("the duplicate \"{name}\" variable")));
        }
        let id = self.var_id(&name);
        if let Some(v) = self.vars.get_mut(id.0 as usize) {
            v.assigned = true;
        }
        Ok(id)
    }

    /// A variable that a directive computes (`map`, `geo`); `memo` keeps the first value of a request.
    pub fn define_var(
        &mut self,
        s: &Statement,
        name: &str,
        source: Arc<dyn Evaluate>,
        memo: bool,
    ) -> Result<VarId> {
        let id = self.assigned_var(s, name)?;
        if let Some(v) = self.vars.get_mut(id.0 as usize) {
            v.source = Some((source, memo));
        }
        Ok(id)
    }

    /// The name of a variable parameter such as `$name`, without the `$`.
    pub fn var_name(&self, s: &Statement, i: usize) -> Result<String> {
        match s.str(i)?.strip_prefix('$') {
            Some(n) if !n.is_empty() => Ok(n.to_owned()),
            _ => Err(s.error_at(
                i,
                format!(
                    "invalid variable name \"{}\"",
                    String::from_utf8_lossy(s.arg(i))
                ),
            )),
        }
    }

    /// A regular expression; its named groups become variables.
    pub fn pattern(&mut self, s: &Statement, text: &[u8], caseless: bool) -> Result<Arc<Pattern>> {
        let Ok(text) = std::str::from_utf8(text) else {
            return Err(s.error(format!(
                "pattern \"{}\" is not valid UTF-8",
                String::from_utf8_lossy(text)
            )));
        };
        let regex = Pattern::compile(text, caseless).map_err(|e| {
            let at = e.offset().and_then(|o| text.get(o..)).unwrap_or_default();
            let reason = e.to_string();
            let reason = reason.rsplit("PCRE2: ").next().unwrap_or(&reason);
            let reason = reason.split_once(": ").map_or(reason, |(_, r)| r);
            if at.is_empty() {
                s.error(format!("pcre2_compile() failed: {reason} in \"{text}\""))
            } else {
                s.error(format!(
                    "pcre2_compile() failed: {reason} in \"{text}\" at \"{at}\""
                ))
            }
        })?;
        let mut names = Vec::new();
        let groups: Vec<(usize, String)> = regex
            .capture_names()
            .iter()
            .enumerate()
            .filter_map(|(i, n)| n.clone().map(|n| (i, n)))
            .collect();
        for (i, name) in groups {
            let id = self.assigned_var(s, &name)?;
            if let Some(v) = self.vars.get_mut(id.0 as usize) {
                v.captured = true;
            }
            names.push((id, i));
        }
        Ok(Arc::new(Pattern::new(regex, text, names)))
    }

    /// Checks that every variable exists and gives each its final form.
    pub(crate) fn resolve_vars(&mut self) -> Result<(Box<[super::VarDef]>, usize)> {
        let servers: Vec<BlockId> = self.blocks_of(Place::SERVER).collect();
        for (id, unknown) in std::mem::take(&mut self.late).settle(&servers) {
            if let Some(v) = self.vars.get_mut(id.0 as usize)
                && v.first_use.is_none()
            {
                v.unused = unknown.is_none();
                v.first_use = unknown;
            }
        }
        let mut slots = 0u16;
        let mut take = || {
            slots += 1;
            Some(slots - 1)
        };
        let mut defs = Vec::with_capacity(self.vars.len());
        for v in &mut self.vars {
            let found = self.registry.variable(&v.name);
            let (kind, slot, memo) = match (v.source.take(), found) {
                (Some((source, memo)), _) => (super::VarKind::Source(source), take(), memo),
                (None, Some((var, at))) => {
                    let slot = if var.memo || v.assigned { take() } else { None };
                    (super::VarKind::Getter(var, at), slot, var.memo)
                }
                (None, None) if v.assigned || (v.unused && v.first_use.is_none()) => {
                    (super::VarKind::Assigned, take(), false)
                }
                (None, None) => {
                    let e = v
                        .first_use
                        .take()
                        .unwrap_or_else(|| Diag::plain(format!("unknown \"{}\" variable", v.name)));
                    return Err(
                        match config::nearest(&v.name, self.registry.variable_names()) {
                            Some(n) => Diag::with_help(e, format!("did you mean \"${n}\"?")),
                            None => e,
                        },
                    );
                }
            };
            defs.push(super::VarDef {
                name: v.name.clone(),
                kind,
                slot,
                memo,
            });
        }
        Ok((defs.into(), slots as usize))
    }
}

/// A cell that receives the location of a block opened with [`Build::enter_if`].
pub type LocCell = Arc<std::sync::OnceLock<super::LocId>>;

/// The cells of `if` blocks of locations.
#[derive(Default)]
pub(crate) struct IfBlocks(pub HashMap<BlockId, LocCell>);

impl Build {
    /// Opens the block of an `if` in a location: settings that take the location's place where the condition holds.
    ///
    /// The cell is filled when the site is assembled; [`super::Request::location`] is then set to it.
    pub fn enter_if(&mut self, s: &Statement) -> Result<(BlockId, LocCell)> {
        let id = self.enter(s, Place::LOCATION_IF, BlockKind::If)?;
        let cell = LocCell::default();
        self.shared::<IfBlocks>().0.insert(id, cell.clone());
        Ok((id, cell))
    }
}
