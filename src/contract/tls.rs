//! TLS contexts of listeners and servers.

use super::Template;
use crate::tls::load::{ByName, Loader, Version};
use crate::tls::ocsp::ClientOcsp;
use crate::tls::session::{Tickets, Zone};
use arc_swap::ArcSwapOption;
use openssl::ssl::SslContext;
use openssl::x509::X509;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// TLS of one address: handshakes begin with its default server's context.
pub struct TlsListener {
    /// The default server's settings.
    pub default: SharedTls,
    /// Whether the address has more than one server, so that names choose between them.
    pub several: bool,
}

/// TLS of one virtual server.
#[derive(Default)]
pub struct TlsServer {
    /// Certificates, protocols, ciphers; `None` where the server has neither certificates nor `ssl_reject_handshake`.
    ///
    /// Replaced while it serves when its files change.
    pub context: ArcSwapOption<ServerContext>,
    /// Whether the server has certificates.
    pub certified: bool,
    /// `ssl on`.
    pub enabled: bool,
    /// `ssl_reject_handshake`.
    pub reject: bool,
    /// `ssl_verify_client`.
    pub verify: VerifyClient,
    /// Certificates whose names have variables: they are loaded in the handshake.
    pub dynamic: Option<DynamicCertificates>,
    /// The keys of session tickets, where they are not OpenSSL's own.
    pub tickets: Option<Tickets>,
    /// `ssl_session_cache shared:`.
    pub zone: Option<Arc<Zone>>,
    /// `ssl_ocsp`.
    pub ocsp: Option<Arc<ClientOcsp>>,
    /// How the context is made anew when its files change; `None` where they are not watched.
    pub renew: Option<Renew>,
}

/// A context with what is to be known of it.
pub struct ServerContext {
    /// OpenSSL's.
    pub context: SslContext,
    /// Its certificates by their files.
    pub certificates: Vec<(Arc<str>, X509)>,
}

/// How a server's context is made anew.
pub struct Renew {
    /// How often its files are looked at.
    pub interval: Duration,
    /// Its files, as they were before they were read.
    pub files: Vec<(PathBuf, Option<Version>)>,
    /// Makes it; the error is the text for the log.
    pub make: MakeContext,
}

/// Makes a server's context from its files.
pub type MakeContext =
    Box<dyn Fn(&mut Loader) -> Result<Option<Arc<ServerContext>>, String> + Send + Sync>;

/// `ssl_verify_client`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyClient {
    /// No certificate is asked for.
    #[default]
    Off,
    /// A certificate is required.
    On,
    /// A certificate is verified if there is one.
    Optional,
    /// A certificate need not be signed by a trusted authority.
    OptionalNoCa,
}

/// Certificates and keys by names with variables.
pub struct DynamicCertificates {
    /// Certificates with their keys.
    pub pairs: Vec<(Template, Template)>,
    /// How they are loaded.
    pub by_name: ByName,
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsServer")
            .field("reject", &self.reject)
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

/// Shared by the listeners that a server is on.
pub type SharedTls = Arc<TlsServer>;
