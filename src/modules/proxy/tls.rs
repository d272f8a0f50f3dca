//! `proxy_ssl_*`: TLS towards origins, as far as Pingora's connector lets it be chosen.

use super::ProxyConf;
use crate::module::once;
use crate::module::*;
use pingora::tls::pkey::{PKey, Private};
use pingora::tls::x509::X509;
use pingora_core::utils::tls::CertKey;
use std::sync::Arc;

/// What the `proxy_ssl_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct TlsWritten {
    name: Option<Template>,
    send_name: Option<bool>,
    verify: Option<(bool, Arc<Statement>)>,
    verify_depth: Option<u64>,
    trusted: Option<Arc<Box<[X509]>>>,
    protocols: Option<u32>,
    ciphers: Option<()>,
    session_reuse: Option<bool>,
    certificate: Option<Certificate>,
    key: Option<Option<PKey<Private>>>,
}

/// A client certificate with its chain; none where the directive says so.
#[derive(Clone)]
struct Certificate {
    chain: Vec<X509>,
    at: Arc<Statement>,
}

impl Conf for TlsWritten {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; name, send_name, verify, verify_depth, trusted, protocols, ciphers,
            session_reuse, certificate, key);
    }
}

impl TlsWritten {
    /// The settings of a location whose origin may speak TLS.
    ///
    /// # Errors
    /// nginx's texts for certificates that are missing.
    pub fn build(&self) -> ConfResult<UpstreamTls> {
        let verify = match &self.verify {
            Some((true, at)) if self.trusted.is_none() => {
                return Err(at.error("no proxy_ssl_trusted_certificate for proxy_ssl_verify"));
            }
            Some((on, _)) => *on,
            None => false,
        };
        let client = match (&self.certificate, &self.key) {
            (Some(c), _) if c.chain.is_empty() => None,
            (Some(c), Some(Some(key))) => {
                Some(Arc::new(CertKey::new(c.chain.clone(), key.clone())))
            }
            (Some(c), _) => {
                let name = String::from_utf8_lossy(c.at.arg(0)).into_owned();
                return Err(c.at.error(format!(
                    "no \"proxy_ssl_certificate_key\" is defined for certificate \"{name}\""
                )));
            }
            (None, _) => None,
        };
        Ok(UpstreamTls {
            name: self.name.clone(),
            send_name: self.send_name.unwrap_or(false),
            verify,
            trusted: self.trusted.clone().filter(|_| verify),
            client,
        })
    }
}

/// `proxy_ssl_protocols`, in nginx's spelling.
const PROTOCOLS: &[(&str, u32)] = &[
    ("SSLv2", 1),
    ("SSLv3", 1 << 1),
    ("TLSv1", 1 << 2),
    ("TLSv1.1", 1 << 3),
    ("TLSv1.2", 1 << 4),
    ("TLSv1.3", 1 << 5),
];

pub(super) fn protocols(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    crate::modules::pass::bits(&mut c.tls.protocols, s, b, PROTOCOLS)?;
    let both = (1 << 4) | (1 << 5);
    if c.tls.protocols.is_some_and(|p| p & both != both) {
        return Err(s.error(
            "\"proxy_ssl_protocols\" without both TLSv1.2 and TLSv1.3 is not supported yet",
        ));
    }
    Ok(())
}

pub(super) fn ciphers(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    if s.arg(0) != b"DEFAULT" {
        return Err(s.error_at(
            0,
            "\"proxy_ssl_ciphers\" other than \"DEFAULT\" is not supported yet",
        ));
    }
    once(&mut c.tls.ciphers, s, ())
}

pub(super) fn name(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    crate::modules::pass::template(&mut c.tls.name, s, b)
}

pub(super) fn server_name(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    once(&mut c.tls.send_name, s, s.flag(0)?)
}

pub(super) fn verify(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    once(&mut c.tls.verify, s, (s.flag(0)?, Arc::new(s.clone())))
}

pub(super) fn verify_depth(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    once(&mut c.tls.verify_depth, s, s.number(0)?)
}

pub(super) fn session_reuse(c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    once(&mut c.tls.session_reuse, s, s.flag(0)?)
}

pub(super) fn trusted(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let list = certificates(s, b)?;
    once(&mut c.tls.trusted, s, Arc::new(list.into()))
}

pub(super) fn certificate(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let chain = if s.arg(0).is_empty() {
        Vec::new()
    } else {
        certificates(s, b)?
    };
    once(
        &mut c.tls.certificate,
        s,
        Certificate {
            chain,
            at: Arc::new(s.clone()),
        },
    )
}

pub(super) fn certificate_key(c: &mut ProxyConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if s.arg(0).is_empty() {
        return once(&mut c.tls.key, s, None);
    }
    let pem = read(s, b, "certificate key")?;
    // without a password, and without asking for one on the terminal
    let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(|e| {
        s.error_at(
            0,
            format!("cannot load certificate key \"{}\": {e}", shown(s, b)),
        )
    })?;
    once(&mut c.tls.key, s, Some(key))
}

/// What Pingora's connector has no door for.
pub(super) fn unsupported(_c: &mut ProxyConf, s: &Statement, _b: &mut Build) -> ConfResult<()> {
    Err(s.error(format!(
        "the \"{}\" directive is not supported yet",
        s.name()
    )))
}

fn certificates(s: &Statement, b: &Build) -> ConfResult<Vec<X509>> {
    let pem = read(s, b, "certificate")?;
    let error = |e: &dyn std::fmt::Display| {
        s.error_at(
            0,
            format!("cannot load certificate \"{}\": {e}", shown(s, b)),
        )
    };
    let list = X509::stack_from_pem(&pem).map_err(|e| error(&e))?;
    if list.is_empty() {
        Err(error(&"no certificate in it"))
    } else {
        Ok(list)
    }
}

fn read(s: &Statement, b: &Build, what: &str) -> ConfResult<Vec<u8>> {
    let name = s.str(0)?;
    if name.contains('$') {
        return Err(s.error_at(
            0,
            format!("variables in \"{}\" are not supported yet", s.name()),
        ));
    }
    if let Some(text) = name.strip_prefix("data:") {
        return Ok(text.as_bytes().to_vec());
    }
    std::fs::read(b.conf_prefixed(name))
        .map_err(|e| s.error_at(0, format!("cannot load {what} \"{}\": {e}", shown(s, b))))
}

fn shown(s: &Statement, b: &Build) -> String {
    b.conf_prefixed(&String::from_utf8_lossy(s.arg(0)))
        .display()
        .to_string()
}
