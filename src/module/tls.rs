//! TLS contexts of listeners and servers.

use super::Template;
use crate::tls::load::{Cache, Chain, Name};
use crate::tls::session::{Tickets, Zone};
use openssl::pkey::{PKey, Private};
use openssl::ssl::SslContext;
use std::sync::Arc;

/// TLS of one address: handshakes begin with its default server's context.
pub struct TlsListener {
    /// The default server's settings.
    pub default: SharedTls,
    /// The default server's context.
    pub context: SslContext,
    /// Whether the address has more than one server, so that names choose between them.
    pub several: bool,
}

/// TLS of one virtual server.
#[derive(Default)]
pub struct TlsServer {
    /// Certificates, protocols, ciphers; `None` where the server has neither certificates nor `ssl_reject_handshake`.
    pub context: Option<SslContext>,
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
}

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
    /// What relative names begin with.
    pub base: std::path::PathBuf,
    /// `ssl_password_file`.
    pub passwords: Vec<Vec<u8>>,
    /// `ssl_certificate_cache`.
    pub cache: Option<Arc<Cache>>,
}

impl DynamicCertificates {
    /// Loads one pair; `fresh` goes round the cache.
    ///
    /// # Errors
    /// nginx's text.
    pub fn load(
        &self,
        certificate: &[u8],
        key: &[u8],
        fresh: bool,
    ) -> Result<(Chain, PKey<Private>, Name), String> {
        use crate::tls::load;
        let (certificate, key) = (
            Name::parse(certificate, &self.base),
            Name::parse(key, &self.base),
        );
        let pair = match &self.cache {
            Some(c) => (
                c.chain(&certificate, fresh)?,
                c.key(&key, Some(&self.passwords), fresh)?,
            ),
            None => (
                load::chain(&certificate)?,
                load::key(&key, Some(&self.passwords), true)?,
            ),
        };
        Ok((pair.0, pair.1, key))
    }
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
