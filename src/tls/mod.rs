//! TLS towards clients on OpenSSL: what contexts, handshakes and certificates need beyond the openssl crate.

pub mod accept;
pub mod error;
pub mod ffi;
pub mod load;
pub mod session;
pub mod stapling;
