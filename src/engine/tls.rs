//! TLS of listeners.

use crate::config::Result;
use crate::module::{BlockId, Build, Names, Server, TlsListener};
use std::sync::Arc;

/// The TLS side of an address, where one of its servers asks for it.
pub(super) fn listener(
    _b: &mut Build,
    _ids: &[BlockId],
    _servers: &[u32],
    _default: u32,
    ssl: bool,
    _table: &mut [Server],
    _names: &Names,
) -> Result<Option<Arc<TlsListener>>> {
    if ssl {
        return Err(crate::config::Diag::plain("\"ssl\" is not built in yet"));
    }
    Ok(None)
}
