//! Files on disk: opening with `disable_symlinks`, `open_file_cache`, temporary files, trees of files.

mod cache;
mod open;
mod spool;
mod temp;
pub mod tree;

pub use cache::{FileCache, FileRules, Found};
pub use open::{Failure, Info, Kind, Links, open_now, stat_now, trusted};
pub use spool::Spool;
pub use temp::TempPath;
