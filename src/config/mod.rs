//! nginx's configuration language: files to a tree of statements with their places in the text.
//!
//! This layer knows the grammar, `include`, values and addresses, and how to report a fault. It knows no directive
//! but `include`.
//!
//! nginx acts on each statement as it reads it, so a fault in one line hides every fault after it. A tree keeps that
//! order: [`Block::error`] stands behind the block's statements, and whoever walks a block checks the statements first.

pub mod addr;
mod diag;
mod dump;
mod lexer;
pub mod load_inputs;
mod parser;
mod source;
mod statement;
mod suggest;
pub mod value;

pub use diag::{Diag, Level, Snippet};
pub use dump::dump;
pub use parser::{COMMAND_LINE, MAX_DEPTH, Tree, parse_command_line, parse_file, parse_text};
pub use source::{Disk, FileId, Memory, Reader, Source, SourceKind, Sources, Span};
pub use statement::{Block, Statement, Word};
pub use suggest::nearest;

/// The result of anything that can refuse a configuration.
pub type Result<T> = std::result::Result<T, Box<Diag>>;
