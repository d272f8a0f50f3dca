//! TLS contexts of listeners and servers.

use pingora::tls::ssl::{SslAcceptor, SslContext};
use std::sync::Arc;

/// TLS of one address: the default server's context, with the callback that finds the others by SNI.
pub struct TlsListener {
    /// Accepts handshakes.
    pub acceptor: SslAcceptor,
}

/// TLS of one virtual server.
pub struct TlsServer {
    /// Certificates, protocols, ciphers.
    pub context: Option<SslContext>,
    /// `ssl_reject_handshake`.
    pub reject: bool,
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsServer").field("reject", &self.reject).finish_non_exhaustive()
    }
}

/// Shared by the listeners that a server is on.
pub type SharedTls = Arc<TlsServer>;
