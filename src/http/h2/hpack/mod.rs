//! Header compression (RFC 7541).

mod decoder;
mod encoder;
pub mod huffman;
mod table;

pub use decoder::{DecodeError, Decoder, ListLimits, too_long};
pub use encoder::{Encoder, Indexing};

/// The size of a dynamic table before anything was settled, bytes.
pub const DEFAULT_TABLE: usize = 4096;

/// A decoded header list, made to be used again.
#[derive(Debug, Default)]
pub struct Fields {
    arena: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<(usize, usize)>,
}

impl Fields {
    /// Empties the list and keeps its memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.ends.clear();
    }

    /// Gives memory back that an unusually large list took.
    pub fn shrink(&mut self) {
        self.clear();
        self.arena.shrink_to(4096);
        self.ends.shrink_to(64);
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |&(name, value)| {
            let from = std::mem::replace(&mut start, value);
            (
                self.arena.get(from..name).unwrap_or_default(),
                self.arena.get(name..value).unwrap_or_default(),
            )
        })
    }

    /// Adds a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.arena.extend_from_slice(name);
        let name = self.arena.len();
        self.arena.extend_from_slice(value);
        self.ends.push((name, self.arena.len()));
    }
}
