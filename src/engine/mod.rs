//! The runtime that calls the modules: assembling a site, finding server and location, the phases,
//! the response on its way out, error pages.

pub mod changes;
pub mod choice;
pub mod content;
pub mod core;
pub mod error_page;
pub mod file_cache;
pub mod files;
pub mod filters;
pub mod gzip;
mod inherit;
mod listeners;
pub mod load;
pub mod lookup;
pub mod output;
pub mod phases;
pub mod redirect;
pub mod site;
pub mod subrequest;
pub mod tale;
pub mod target;
mod tls;
pub mod variables;

pub use load::{LoadError, LoadOptions, load};
