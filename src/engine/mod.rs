//! The runtime that calls the modules: assembling a site, finding server and location, the phases,
//! the response on its way out, error pages.

pub mod changes;
pub mod content;
pub mod core;
pub mod decisions;
mod dispatch;
pub mod error_page;
pub mod gzip;
mod inherit;
mod listeners;
pub mod load;
pub mod lookup;
pub mod phases;
pub mod selection;
pub mod site;
pub mod target;
mod tls;
pub mod variables;

pub use load::{LoadError, LoadOptions, load};
