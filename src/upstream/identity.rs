//! What two requests must have in common for one to use the other's connection or TLS session.

use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

/// What the configuration of a location says of its connections to a peer. Made when the configuration is loaded; what
/// depends on the request is compared beside it ([`Tag::own`](super::connect::Tag::own)).
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    settings: Settings,
    hash: u64,
}

/// See [`Identity`]: all of it must be equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The protocol spoken: a connection of HTTP/2 carries no HTTP/1, and one of SCGI no uwsgi.
    pub protocol: &'static str,
    /// TLS, where it is spoken.
    pub tls: Option<TlsSettings>,
    /// `proxy_bind` without variables.
    pub bind: Option<Box<[u8]>>,
    /// `proxy_bind … transparent`.
    pub transparent: bool,
    /// `proxy_socket_keepalive`.
    pub keepalive: bool,
    /// `proxy_socket_rcvbuf`, bytes.
    pub rcvbuf: Option<usize>,
    /// `proxy_socket_sndbuf`, bytes.
    pub sndbuf: Option<usize>,
    /// Connections begin with a PROXY protocol header. Such a connection serves one request; its TLS sessions are not
    /// those of others.
    pub proxy_header: bool,
}

/// TLS of a connection to a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// The number of the context ([`Client::id`](crate::tls::client::Client::id)): protocols, ciphers, verification with
    /// its depth, authorities and revoked certificates, the certificate shown. A reload makes contexts anew, since the
    /// files that they were made of may have changed.
    pub context: u64,
    /// Whether the name is sent (SNI).
    pub send_name: bool,
    /// The name sent or verified, where it is the same for all requests.
    pub name: Option<Box<[u8]>>,
    /// Protocols offered by ALPN.
    pub alpn: &'static [u8],
}

impl Identity {
    /// The identity of these settings.
    pub fn new(settings: Settings) -> Arc<Identity> {
        let hash = foldhash::fast::FixedState::default().hash_one(&settings);
        Arc::new(Identity { settings, hash })
    }

    /// Of connections that no location makes.
    pub fn plain() -> &'static Arc<Identity> {
        static PLAIN: LazyLock<Arc<Identity>> =
            LazyLock::new(|| Identity::new(Settings::default()));
        &PLAIN
    }

    /// The hash of the settings.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether two identities are the same one; mostly they are the same object.
    pub fn is(a: &Arc<Identity>, b: &Arc<Identity>) -> bool {
        Arc::ptr_eq(a, b) || (a.hash == b.hash && a.settings == b.settings)
    }
}
