//! The runtime's own settings: what nginx calls core. They register like every other module.

pub mod errors;
pub mod http;
pub mod listen;
pub mod location;
pub mod main;
pub mod server;

pub use http::HttpCore;
pub use main::Core;
pub use server::HttpServer;

use crate::config::{Result, Statement};

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
