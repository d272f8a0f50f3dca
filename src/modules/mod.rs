//! The features: one file each, written against [`crate::module`] alone.

use crate::engine::core::{Core, HttpCore, HttpServer};
use crate::module::Registry;

/// Every built-in module, in the order in which their hooks run within a phase.
pub fn builtin() -> Registry {
    let mut r = Registry::new();
    r.add::<Core>().add::<HttpServer>().add::<HttpCore>();
    r
}
