//! TLS towards origins: one context per set of settings, as in nginx, and the sessions to resume.

use super::context::{self, DEFAULT_PROTOCOLS};
use super::load::{ByName, Loader, Name};
use super::{accept, error, ffi};
use crate::log::LogFile;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslRef, SslSessionCacheMode, SslVerifyMode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

/// What a context is made of: equal settings share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// `proxy_ssl_protocols`: bits of [`context::PROTOCOLS`].
    pub protocols: u32,
    /// `proxy_ssl_ciphers`.
    pub ciphers: String,
    /// `proxy_ssl_certificate` and `proxy_ssl_certificate_key` without variables.
    pub certificate: Option<(Name, Name)>,
    /// `proxy_ssl_password_file`.
    pub passwords: Option<Arc<Vec<Vec<u8>>>>,
    /// `proxy_ssl_trusted_certificate` and `proxy_ssl_verify_depth`, where the origin is verified.
    pub verify: Option<(PathBuf, u32)>,
    /// `proxy_ssl_crl`.
    pub crl: Option<PathBuf>,
    /// `proxy_ssl_conf_command`.
    pub commands: Vec<(String, String)>,
    /// What relative names in commands begin with.
    pub base: PathBuf,
    /// `proxy_ssl_session_reuse`.
    pub reuse: bool,
    /// `proxy_ssl_key_log`.
    pub key_log: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            protocols: DEFAULT_PROTOCOLS,
            ciphers: "DEFAULT".to_owned(),
            certificate: None,
            passwords: None,
            verify: None,
            crl: None,
            commands: Vec::new(),
            base: PathBuf::new(),
            reuse: true,
            key_log: None,
        }
    }
}

/// A context for connections to origins.
pub struct Client {
    id: u64,
    context: SslContext,
    verify: bool,
    sessions: Option<Arc<Sessions>>,
}

impl Client {
    /// Makes the context; files come from `loader`.
    ///
    /// # Errors
    /// nginx's text.
    pub fn new(
        s: &Settings,
        loader: &mut Loader,
        key_log: Option<Arc<LogFile>>,
    ) -> Result<Client, String> {
        error::clear();
        let mut ctx = context::base(SslMethod::tls_client(), s.protocols)?;
        context::ciphers(&mut ctx, &s.ciphers)?;
        accept::verify_later(&mut ctx, SslVerifyMode::NONE);
        if let Some((certificate, key)) = &s.certificate {
            let passwords = s.passwords.as_deref().map(Vec::as_slice);
            context::pair(&mut ctx, loader, certificate, key, passwords).map_err(|e| e.text)?;
        }
        if let Some((trusted, depth)) = &s.verify {
            ctx.set_verify_depth(*depth);
            context::trust(&mut ctx, loader, trusted)?;
            if let Some(crl) = &s.crl {
                context::revoke(&mut ctx, loader, crl)?;
            }
        }
        let sessions = s.reuse.then(Arc::<Sessions>::default);
        if let Some(sessions) = &sessions {
            ctx.set_session_cache_mode(
                SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL,
            );
            let sessions = sessions.clone();
            ctx.set_new_session_callback(move |ssl, session| {
                let whose = index().and_then(|i| ssl.ex_data(i).cloned());
                if let (Some(whose), Ok(der)) = (whose, session.to_der()) {
                    sessions.keep(whose, der);
                }
            });
        }
        context::conf_commands(&mut ctx, &s.commands, &s.base)?;
        if let Some(file) = key_log {
            context::log_keys(&mut ctx, file);
        }
        let context = ctx.build();
        error::clear();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(Client {
            id: NEXT.fetch_add(1, Relaxed),
            context,
            verify: s.verify.is_some(),
            sessions,
        })
    }

    /// The context of `https://` without any other directive.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn plain() -> Result<Arc<Client>, String> {
        static PLAIN: LazyLock<Result<Arc<Client>, String>> = LazyLock::new(|| {
            Client::new(&Settings::default(), &mut Loader::default(), None).map(Arc::new)
        });
        PLAIN.clone()
    }

    /// A number that no other context has had in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Prepares a connection.
    ///
    /// # Errors
    /// nginx's text.
    pub fn begin(&self, to: &Hello) -> Result<Ssl, String> {
        error::clear();
        let mut ssl =
            Ssl::new(&self.context).map_err(|e| error::describe("SSL_new() failed", &e))?;
        if let Some(name) = &to.server_name {
            ssl.set_hostname(name).map_err(|e| {
                error::describe(format!("SSL_set_tlsext_host_name(\"{name}\") failed"), &e)
            })?;
        }
        if let Some(own) = &to.certificate {
            own.by_name.give(&mut ssl, &own.certificate, &own.key)?;
        }
        if !to.alpn.is_empty() {
            ssl.set_alpn_protos(to.alpn)
                .map_err(|e| error::describe("SSL_set_alpn_protos() failed", &e))?;
        }
        if let Some(sessions) = &self.sessions {
            let whose = to.whose();
            if let Some(der) = sessions.get(&whose) {
                ffi::resume(&mut ssl, &der);
            }
            if let Some(index) = index() {
                ssl.set_ex_data(index, whose);
            }
        }
        Ok(ssl)
    }

    /// Checks the origin's certificate after the handshake; `name` is what it must be for.
    ///
    /// # Errors
    /// nginx's text.
    pub fn check(&self, ssl: &SslRef, name: &[u8]) -> Result<(), String> {
        if !self.verify {
            return Ok(());
        }
        let result = ssl.verify_result();
        if result != openssl::x509::X509VerifyResult::OK {
            return Err(format!(
                "upstream SSL certificate verify error: ({}:{})",
                result.as_raw(),
                result.error_string()
            ));
        }
        let named = ssl
            .peer_certificate()
            .is_some_and(|c| ffi::is_for_host(&c, name));
        if named {
            Ok(())
        } else {
            Err(format!(
                "upstream SSL certificate does not match \"{}\"",
                String::from_utf8_lossy(name)
            ))
        }
    }

    /// Whether the origin is verified.
    pub fn verifies(&self) -> bool {
        self.verify
    }

    /// Forgets the session of an origin: a handshake with it failed.
    pub fn forget(&self, to: &Hello) {
        if let Some(sessions) = &self.sessions {
            sessions.by_peer.lock().remove(&to.whose());
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("verify", &self.verify)
            .field("reuse", &self.sessions.is_some())
            .finish_non_exhaustive()
    }
}

/// What one connection says to its origin.
#[derive(Debug, Default)]
pub struct Hello {
    /// The name of the origin's group.
    pub group: Arc<str>,
    /// The origin's address, as logs show it.
    pub peer: Arc<str>,
    /// The hash of what the configuration says of the connection.
    pub settings: u64,
    /// What of that depends on the request.
    pub own: Box<[u8]>,
    /// The name to send (SNI).
    pub server_name: Option<String>,
    /// The certificate to show, where it is not the context's.
    pub certificate: Option<OwnCertificate>,
    /// Protocols for ALPN, each behind its length; empty offers none.
    pub alpn: &'static [u8],
}

impl Hello {
    /// Sessions belong to an address in a group, and to connections that are equal in all that is configured.
    fn whose(&self) -> Whose {
        Whose {
            group: self.group.clone(),
            peer: self.peer.clone(),
            settings: self.settings,
            own: self.own.clone(),
            name: self.server_name.as_deref().unwrap_or_default().into(),
            alpn: self.alpn,
        }
    }
}

/// A certificate whose name has variables, for one connection.
pub struct OwnCertificate {
    /// Its name, evaluated.
    pub certificate: Vec<u8>,
    /// The name of its key, evaluated.
    pub key: Vec<u8>,
    /// How both are loaded.
    pub by_name: Arc<ByName>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OwnCertificate").finish()
    }
}

/// Whose session it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Whose {
    group: Arc<str>,
    peer: Arc<str>,
    settings: u64,
    own: Box<[u8]>,
    name: Box<str>,
    alpn: &'static [u8],
}

/// The last session of each origin, for every thread.
#[derive(Default)]
struct Sessions {
    by_peer: Mutex<HashMap<Whose, Arc<[u8]>>>,
}

/// Origins of one context whose sessions are remembered: names may have variables.
const MOST_SESSIONS: usize = 4096;

impl Sessions {
    fn get(&self, whose: &Whose) -> Option<Arc<[u8]>> {
        self.by_peer.lock().get(whose).cloned()
    }

    fn keep(&self, whose: Whose, der: Vec<u8>) {
        let mut all = self.by_peer.lock();
        if all.len() >= MOST_SESSIONS
            && !all.contains_key(&whose)
            && let Some(any) = all.keys().next().cloned()
        {
            all.remove(&any);
        }
        all.insert(whose, der.into());
    }
}

fn index() -> Option<Index<Ssl, Whose>> {
    static INDEX: LazyLock<Option<Index<Ssl, Whose>>> = LazyLock::new(|| Ssl::new_ex_index().ok());
    *INDEX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_bounded() {
        let sessions = Sessions::default();
        let whose = |n: usize| Whose {
            group: "u".into(),
            peer: "127.0.0.1:443".into(),
            settings: 0,
            own: Box::default(),
            name: n.to_string().into(),
            alpn: b"",
        };
        for n in 0..2 * MOST_SESSIONS {
            sessions.keep(whose(n), vec![1]);
        }
        assert_eq!(sessions.by_peer.lock().len(), MOST_SESSIONS);
        assert!(sessions.get(&whose(2 * MOST_SESSIONS - 1)).is_some());
    }

    #[test]
    fn settings_that_openssl_refuses() {
        let mut s = Settings {
            ciphers: "NONE-SUCH".to_owned(),
            ..Settings::default()
        };
        let text = |s: &Settings| {
            Client::new(s, &mut Loader::default(), None)
                .err()
                .unwrap_or_default()
        };
        let refused = text(&s);
        assert!(
            refused.starts_with(
                "SSL_CTX_set_cipher_list(\"NONE-SUCH\") failed (SSL: error:0A0000B9:SSL routines::no cipher match"
            ),
            "{refused}"
        );
        s.ciphers = "DEFAULT".to_owned();
        s.commands = vec![("Nothing".to_owned(), "x".to_owned())];
        let refused = text(&s);
        assert!(
            refused.starts_with("SSL_CONF_cmd(\"Nothing\", \"x\") failed (SSL: "),
            "{refused}"
        );
        assert!(Client::plain().is_ok());
    }
}
