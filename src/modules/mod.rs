//! The features: one file each, written against [`crate::module`] alone.

pub mod access;
pub mod access_log;
pub mod auth_basic;
pub mod auth_request;
mod crypt_ffi;
pub mod headers;
mod leaky;
pub mod limit_conn;
pub mod limit_req;
mod password;
pub mod proxy;
pub mod realip;
pub mod referer;
pub mod secure_link;
pub mod upstream;
pub mod zones;

use crate::engine::core::{Core, HttpCore, HttpServer};
use crate::module::Registry;

/// Every built-in module, in the order in which their hooks run within a phase.
pub fn builtin() -> Registry {
    let mut r = Registry::new();
    r.add::<Core>().add::<HttpServer>().add::<HttpCore>();
    r.add::<access_log::AccessLog>();
    r.add::<referer::Referer>();
    r.add::<secure_link::SecureLink>();
    // before access and access, in nginx's order
    r.add::<realip::RealIp>();
    r.add::<limit_req::LimitReq>();
    r.add::<limit_conn::LimitConn>();
    r.add::<access::Access>();
    r.add::<auth_basic::AuthBasic>();
    r.add::<auth_request::AuthRequest>();
    // response heads, in nginx's order
    r.add::<headers::HeadersModule>();
    r.add::<upstream::HttpUpstream>();
    r.add::<proxy::Proxy>();
    r
}
