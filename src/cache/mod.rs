//! The cache: zones of stored responses, on disk as nginx lays them out and in memory while they are hot.
//!
//! What a request does with a zone is `exchange/cache`; the directives are `features/pass/cache`.

mod entry;
pub mod file;
pub mod index;
pub mod key;
mod live;
mod manager;
mod names;
mod path;
mod pingora;
mod purged;
pub mod rfc9111;
pub mod rules;
mod saved;
mod shard;
pub mod store;
mod zone;

pub use entry::{Entry, Status, Update};
pub use key::Digest;
pub use live::{Live, Piece};
pub use manager::{active, close_all};
pub use names::{Names, split as split_tags};
pub use path::{CachePath, PathsRef};
pub use pingora::ZoneStorage;
pub use store::{Content, Fill, Object, ReadError};
pub use zone::{Counts, DEFAULT_MEMORY, Pace, Params, Zone, reason};
