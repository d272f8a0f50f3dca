//! TLS on OpenSSL, towards clients and origins: what contexts, handshakes and certificates need beyond the openssl crate.

pub mod accept;
pub mod client;
pub mod context;
pub mod empty_ca;
pub mod error;
pub mod ffi;
pub mod load;
pub mod ocsp;
pub mod session;
pub mod stapling;
pub mod watch;
