//! The features: one file each, written against [`crate::module`] alone.

pub mod access;
pub mod access_log;
pub mod headers;
pub mod proxy;
pub mod upstream;

use crate::engine::core::{Core, HttpCore, HttpServer};
use crate::module::Registry;

/// Every built-in module, in the order in which their hooks run within a phase.
pub fn builtin() -> Registry {
    let mut r = Registry::new();
    r.add::<Core>().add::<HttpServer>().add::<HttpCore>();
    r.add::<access_log::AccessLog>();
    // access, in nginx's order
    r.add::<access::Access>();
    // response heads, in nginx's order
    r.add::<headers::HeadersModule>();
    r.add::<upstream::HttpUpstream>();
    r.add::<proxy::Proxy>();
    r
}
