//! The features: one file each, written against [`crate::contract`] alone.

pub mod access;
pub mod access_log;
pub mod addition;
pub mod api;
pub mod auth_basic;
pub mod auth_request;
pub mod autoindex;
pub mod brotli;
pub mod browser;
pub mod charset;
mod compress;
mod crypt_ffi;
pub mod dav;
pub mod early_read;
pub mod empty_gif;
pub mod explain;
pub mod fastcgi;
pub mod flv;
pub mod geo;
pub mod grpc;
pub mod grpc_web;
pub mod gunzip;
pub mod gzip;
pub mod gzip_static;
pub mod headers;
pub mod headers_more;
pub mod health_check;
pub mod index;
pub mod leaky_bucket;
pub mod limit_conn;
pub mod limit_req;
mod limit_stats;
pub mod map;
mod media_types;
pub mod memcached;
pub mod metrics;
pub mod mirror;
pub mod mp4;
pub mod pass;
mod password;
pub mod proxy;
pub mod random_index;
pub mod realip;
pub mod referer;
mod refusal;
pub mod refused;
pub mod rewrite;
pub mod scgi;
pub mod secure_link;
pub mod slice;
pub mod split_clients;
pub mod ssi;
pub mod ssl;
pub mod static_files;
pub mod stub_status;
pub mod sub_filter;
pub mod try_files;
pub mod tunnel;
pub mod upstream;
pub mod userid;
pub mod uwsgi;
pub mod zones;
pub mod zstd;

#[cfg(test)]
mod local_tests;

use crate::contract::ModuleRegistry;
use crate::engine::core::{Core, Http2, HttpCore, HttpServer};

/// Every built-in module, in the order in which their hooks run within a phase.
pub fn builtin() -> ModuleRegistry {
    let mut r = ModuleRegistry::new();
    r.add::<Core>()
        .add::<HttpServer>()
        .add::<HttpCore>()
        .add::<Http2>();
    r.add::<ssl::Ssl>();
    // variables
    r.add::<map::Map>();
    r.add::<geo::Geo>();
    r.add::<split_clients::SplitClients>();
    r.add::<browser::Browser>();
    r.add::<rewrite::Rewrite>();
    r.add::<access_log::AccessLog>();
    r.add::<referer::Referer>();
    r.add::<secure_link::SecureLink>();
    // before access and access, in nginx's order
    r.add::<early_read::EarlyRead>();
    r.add::<headers_more::HeadersMore>();
    r.add::<realip::RealIp>();
    r.add::<limit_req::LimitReq>();
    r.add::<limit_conn::LimitConn>();
    r.add::<access::Access>();
    r.add::<auth_basic::AuthBasic>();
    r.add::<auth_request::AuthRequest>();
    r.add::<explain::Explain>();
    // response heads, in nginx's order
    r.add::<slice::Slice>();
    r.add::<headers::HeadersModule>();
    // behind `add_trailer`, before what compresses
    r.add::<grpc_web::GrpcWeb>();
    r.add::<userid::UserId>();
    r.add::<gunzip::Gunzip>();
    r.add::<addition::Addition>();
    r.add::<sub_filter::SubFilter>();
    r.add::<charset::Charset>();
    r.add::<ssi::Ssi>();
    // modules of a user's own: their body filters see what is not compressed yet
    r.set_extension_point();
    // a response is compressed once: by the first that the client accepts
    r.append::<zstd::Zstd>();
    r.append::<brotli::Brotli>();
    r.append::<gzip::Gzip>();
    // origins
    r.append::<upstream::HttpUpstream>();
    r.append::<proxy::Proxy>();
    r.append::<fastcgi::FastCgi>();
    r.append::<uwsgi::Uwsgi>();
    r.append::<scgi::Scgi>();
    r.append::<grpc::Grpc>();
    r.append::<memcached::Memcached>();
    r.append::<tunnel::Tunnel>();
    r.append::<health_check::HealthMatch>();
    r.append::<health_check::HealthCheck>();
    // content of a location's own
    r.append::<empty_gif::EmptyGif>();
    r.append::<flv::Flv>();
    r.append::<mp4::Mp4>();
    r.append::<stub_status::StubStatus>();
    r.append::<api::Api>();
    r.append::<metrics::Metrics>();
    // before content, in nginx's order: what `try_files` sends elsewhere is not mirrored here
    r.append::<try_files::TryFiles>();
    r.append::<mirror::Mirror>();
    // who is offered content where the location has none of its own, in nginx's order
    r.append::<random_index::RandomIndex>();
    r.append::<index::Index>();
    r.append::<autoindex::Autoindex>();
    r.append::<dav::Dav>();
    r.append::<zstd::ZstdStatic>();
    r.append::<brotli::BrotliStatic>();
    r.append::<gzip_static::GzipStatic>();
    r.append::<static_files::StaticFiles>();
    r.append::<refused::Refused>();
    // a fault of this list is found by the compliance tests; a configuration is not loaded with it
    let _ = r.arrange();
    r
}
