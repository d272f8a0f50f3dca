//! What stands where in a configuration, kept when a request is to be explained.

use super::{BlockId, BlockKind, Build, LocationName, Statement};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// A directive as it stands in the configuration.
#[derive(Clone, Debug)]
pub struct Written {
    /// The block in which it stands.
    pub block: BlockId,
    /// Its name.
    pub name: Box<str>,
    /// Name and parameters.
    pub text: String,
    /// `FILE:LINE`.
    pub at: Arc<str>,
    /// Whether blocks inside see it.
    pub inherited: bool,
}

/// Every directive of a configuration, and how its blocks lie in each other.
#[derive(Clone, Debug, Default)]
pub struct WrittenList {
    /// The directives, in order.
    pub list: Vec<Written>,
    blocks: Vec<(Option<BlockId>, String)>,
}

/// A directive that is in force in a block.
#[derive(Clone, Debug, Serialize)]
pub struct InForce {
    /// Name and parameters.
    pub text: String,
    /// Where it stands.
    pub at: Arc<str>,
    /// The block that it stands in.
    pub of: String,
    /// Whether that is a block further out.
    pub inherited: bool,
    /// Places of the same directive further out, which it takes the place of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instead_of: Vec<Arc<str>>,
}

/// Directives that hold where they stand and nowhere inside.
const HERE: [&str; 10] = [
    "rewrite",
    "return",
    "set",
    "break",
    "internal",
    "stub_status",
    "empty_gif",
    "try_files",
    "api",
    "explain_allow",
];

impl WrittenList {
    pub(super) fn add(&mut self, block: BlockId, s: &Statement, inherited: bool) {
        let mut text = s.name().to_owned();
        for word in &s.args {
            let shown = String::from_utf8_lossy(&word.text);
            text.push(' ');
            if word.quoted {
                let escaped = shown.replace('\\', "\\\\").replace('"', "\\\"");
                text += &format!("\"{escaped}\"");
            } else {
                text += &shown;
            }
        }
        let name = s.name();
        self.list.push(Written {
            block,
            name: name.into(),
            text,
            at: s.place().into(),
            inherited: inherited && !HERE.contains(&name) && !name.ends_with("_pass"),
        });
    }

    /// Takes over how the blocks lie in each other.
    pub(crate) fn blocks_of(&mut self, b: &Build) {
        let kind = |kind: &BlockKind| match kind {
            BlockKind::Main => "main".to_owned(),
            BlockKind::Events => "events".to_owned(),
            BlockKind::Http => "http".to_owned(),
            BlockKind::Server => "server".to_owned(),
            BlockKind::Location(name) => {
                let sign = match name {
                    LocationName::Exact(_) => "= ",
                    LocationName::Prefix(_, true) => "^~ ",
                    LocationName::Pattern(_) => "~ ",
                    _ => "",
                };
                format!("location {sign}{}", String::from_utf8_lossy(name.text()))
            }
            BlockKind::If => "if".to_owned(),
            BlockKind::LimitExcept(_) => "limit_except".to_owned(),
            BlockKind::Upstream(name) => format!("upstream {name}"),
            BlockKind::Other(name) => (*name).to_owned(),
        };
        self.blocks = b.blocks.iter().map(|x| (x.parent, kind(&x.kind))).collect();
    }

    /// Where the first directive stands that is in force in a block and is of a module, by its name; a name that begins
    /// with `_` is the end of the directive's.
    pub fn place_of(&self, block: BlockId, module: &str) -> Option<Arc<str>> {
        let list = self.in_force(block);
        let name = |d: &InForce| d.text.split(' ').next().unwrap_or_default().to_owned();
        let exact = list.iter().find(|d| name(d) == module);
        let kin = || {
            list.iter().find(|d| {
                let name = name(d);
                match module {
                    "static_files" => name == "root" || name == "alias",
                    "realip" => name == "set_real_ip_from",
                    "referer" => name == "valid_referers",
                    m if m.starts_with('_') => name.ends_with(m),
                    m => name
                        .strip_prefix(m)
                        .is_some_and(|rest| rest.starts_with('_')),
                }
            })
        };
        exact.or_else(kin).map(|d| d.at.clone())
    }

    /// What is in force in a block, innermost first.
    pub fn in_force(&self, block: BlockId) -> Vec<InForce> {
        let mut chain = Vec::new();
        let mut at = Some(block);
        while let Some(id) = at {
            chain.push(id);
            at = self.blocks.get(id.0 as usize).and_then(|b| b.0);
        }
        let mut found: Vec<InForce> = Vec::new();
        // by name: the first and the number of those that are in force
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        for (depth, id) in chain.iter().enumerate() {
            let of = self.blocks.get(id.0 as usize).map_or("", |b| &b.1);
            let mut here: HashMap<&str, (usize, usize)> = HashMap::new();
            for w in self.list.iter().filter(|w| w.block == *id) {
                if depth > 0 && !w.inherited {
                    continue;
                }
                if let Some((first, n)) = seen.get(&*w.name) {
                    for f in found.iter_mut().skip(*first).take(*n) {
                        f.instead_of.push(w.at.clone());
                    }
                    continue;
                }
                let inner = InForce {
                    text: w.text.clone(),
                    at: w.at.clone(),
                    of: of.to_owned(),
                    inherited: depth > 0,
                    instead_of: Vec::new(),
                };
                // those of one name stand together
                match here.get_mut(&*w.name) {
                    Some((first, n)) => {
                        let at = *first + *n;
                        *n += 1;
                        found.insert(at.min(found.len()), inner);
                        for (other, (first, _)) in here.iter_mut() {
                            if *other != &*w.name && *first >= at {
                                *first += 1;
                            }
                        }
                    }
                    None => {
                        here.insert(&w.name, (found.len(), 1));
                        found.push(inner);
                    }
                }
            }
            seen.extend(here);
        }
        found
    }
}
