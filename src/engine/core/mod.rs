//! The runtime's own settings: what nginx calls core. They register like every other module.

pub mod errors;
pub mod http;
pub mod http2;
pub mod listen;
pub mod location;
pub mod main;
pub mod server;

pub use http::HttpCore;
pub use http2::Http2;
pub use main::Core;
pub use server::HttpServer;

pub use crate::contract::once;
