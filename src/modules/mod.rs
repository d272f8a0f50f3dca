//! The features: one file each, written against [`crate::module`] alone.

pub mod access;
pub mod access_log;
pub mod geo;
pub mod headers;
pub mod map;
pub mod proxy;
pub mod rewrite;
pub mod split_clients;
pub mod upstream;

use crate::engine::core::{Core, HttpCore, HttpServer};
use crate::module::Registry;

/// Every built-in module, in the order in which their hooks run within a phase.
pub fn builtin() -> Registry {
    let mut r = Registry::new();
    r.add::<Core>().add::<HttpServer>().add::<HttpCore>();
    // variables
    r.add::<map::Map>();
    r.add::<geo::Geo>();
    r.add::<split_clients::SplitClients>();
    r.add::<rewrite::Rewrite>();
    r.add::<access_log::AccessLog>();
    // access, in nginx's order
    r.add::<access::Access>();
    // response heads, in nginx's order
    r.add::<headers::HeadersModule>();
    r.add::<upstream::HttpUpstream>();
    r.add::<proxy::Proxy>();
    r
}
