//! Blocks of a configuration while it is read, and their fingerprints.

use super::{AnyConf, Pattern, Place};
use crate::config::{Statement, Word};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

/// A block's number while the configuration is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The main level.
    pub const MAIN: BlockId = BlockId(0);
}

/// What a block is.
#[derive(Clone, Debug)]
pub enum BlockKind {
    /// The whole configuration.
    Main,
    /// `events`.
    Events,
    /// `http`.
    Http,
    /// `server`.
    Server,
    /// `location`.
    Location(LocationName),
    /// `if`, in a server or location.
    If,
    /// `limit_except`: a set of methods as bits.
    LimitExcept(u32),
    /// `upstream`.
    Upstream(String),
    /// `stream` and what else has settings of its own.
    Other(&'static str),
}

/// The parameters of `location`.
#[derive(Clone, Debug)]
pub enum LocationName {
    /// `= name`.
    Exact(Box<[u8]>),
    /// `name`; the flag is `^~`.
    Prefix(Box<[u8]>, bool),
    /// `~` and `~*`.
    Pattern(Arc<Pattern>),
    /// `@name`.
    Named(Box<[u8]>),
}

impl LocationName {
    /// The name as written.
    pub fn text(&self) -> &[u8] {
        match self {
            LocationName::Exact(n) | LocationName::Prefix(n, _) | LocationName::Named(n) => n,
            LocationName::Pattern(p) => p.source().as_bytes(),
        }
    }
}

/// A block with what its directives wrote.
pub(crate) struct BlockData {
    pub parent: Option<BlockId>,
    pub place: Place,
    pub kind: BlockKind,
    /// `FILE:LINE`.
    pub at: Arc<str>,
    /// The blocks inside, in order.
    pub children: Vec<BlockId>,
    /// What was written, by module: few of them have a say in a block.
    pub written: Vec<(usize, Box<AnyConf>)>,
    /// By module; blocks that write nothing share their parent's.
    pub effective: Arc<[Option<Arc<AnyConf>>]>,
    /// The module whose directive gave the block its content handler last.
    pub content: Option<usize>,
    /// A fingerprint of what the block says, without the blocks inside that have one of their own.
    pub print: u64,
}

impl BlockData {
    pub fn written(&self, module: usize) -> Option<&AnyConf> {
        self.written
            .iter()
            .find(|(m, _)| *m == module)
            .map(|(_, c)| &**c)
    }

    pub fn take_written(&mut self, module: usize) -> Option<Box<AnyConf>> {
        let at = self.written.iter().position(|(m, _)| *m == module)?;
        Some(self.written.swap_remove(at).1)
    }
}

/// Goes on with a fingerprint of statements: `before` is what precedes.
pub(super) fn print(before: u64, s: &Statement) -> u64 {
    let mut h = foldhash::fast::FixedState::default().build_hasher();
    h.write_u64(before);
    print_into(&mut h, s);
    h.finish()
}

/// A fingerprint of the parameters of a block.
pub(super) fn print_words(words: &[Word]) -> u64 {
    let mut h = foldhash::fast::FixedState::default().build_hasher();
    words.iter().for_each(|w| w.text.hash(&mut h));
    h.finish()
}

fn print_into(h: &mut impl Hasher, s: &Statement) {
    s.name().hash(h);
    h.write_usize(s.len());
    for i in 0..s.len() {
        s.arg(i).hash(h);
    }
    for inner in s.block.iter().flat_map(|b| &b.items) {
        print_into(h, inner);
    }
}
