//! OCSP responses for our own certificates (RFC 6066 section 8): from a file, or fetched from their responders.

use super::load::Chain;
use super::ocsp::{self, Responder};
use crate::http::date;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::ocsp::{OcspCertStatus, OcspFlag};
use openssl::ssl::{SslContextBuilder, SslRef};
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::{X509, X509VerifyResult};
use parking_lot::Mutex;
use std::sync::Arc;

/// Answers for one certificate.
pub struct Staple {
    /// For messages.
    name: String,
    cert: X509,
    issuer: X509,
    /// Certificates among which the responder's is searched.
    chain: Vec<X509>,
    trusted: X509Store,
    verify: bool,
    responder: Responder,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    response: Option<Arc<[u8]>>,
    /// Until when the response may be sent; seconds since the epoch.
    valid: i64,
    /// When the next one is asked for.
    refresh: i64,
    loading: bool,
}

impl Staple {
    /// Prepares to answer for a certificate.
    ///
    /// # Errors
    /// Why that is not possible: the rest of nginx's warning `"ssl_stapling" ignored, …`.
    pub fn new(
        name: &str,
        chain: &Chain,
        trusted: &[X509],
        url: Option<&str>,
        verify: bool,
    ) -> Result<Staple, String> {
        let Some((cert, rest)) = chain.split_first() else {
            return Err(format!("no certificate in \"{name}\""));
        };
        let issued = |c: &&X509| c.issued(cert) == X509VerifyResult::OK;
        let issuer = rest
            .iter()
            .find(issued)
            .or_else(|| trusted.iter().find(issued));
        let issuer = issuer
            .ok_or_else(|| format!("issuer certificate not found for certificate \"{name}\""))?;
        let own;
        let url = match url {
            Some(u) => u,
            None => {
                let list = cert.ocsp_responders().ok();
                own = list
                    .as_ref()
                    .and_then(|l| l.iter().next())
                    .map(|u| u.to_string());
                own.as_deref()
                    .ok_or_else(|| format!("no OCSP responder URL in the certificate \"{name}\""))?
            }
        };
        let mut store = X509StoreBuilder::new().map_err(|e| e.to_string())?;
        for c in trusted {
            let _ = store.add_cert(c.clone());
        }
        Ok(Staple {
            name: name.to_owned(),
            cert: cert.clone(),
            issuer: issuer.clone(),
            chain: rest.to_vec(),
            trusted: store.build(),
            verify,
            responder: Responder::resolved(url)
                .map_err(|e| format!("{e} in the certificate \"{name}\""))?,
            state: Mutex::default(),
        })
    }

    /// The response in force; asks for another one where it is time to.
    fn current(self: &Arc<Self>) -> Option<Arc<[u8]>> {
        let now = date::time().0;
        let mut state = self.state.lock();
        let response = state.response.clone().filter(|_| state.valid >= now);
        if !state.loading
            && state.refresh <= now
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.loading = true;
            let staple = self.clone();
            runtime.spawn(async move { staple.update().await });
        }
        response
    }

    async fn update(self: Arc<Self>) {
        let fetched = self.responder.ask(&self.cert, &self.issuer, None).await;
        let checked = fetched.and_then(|body| self.check(&body).map(|valid| (body, valid)));
        let now = date::time().0;
        let mut state = self.state.lock();
        state.loading = false;
        state.refresh = now + 300;
        match checked {
            Ok((body, valid)) => {
                state.response = Some(body.into());
                state.valid = valid;
                state.refresh = (valid - 300).min(now + 3600).max(now + 300);
            }
            Err(text) => {
                let Responder { host, .. } = &self.responder;
                log::error!(
                    "{text} while requesting certificate status, responder: {host}, certificate: \"{}\"",
                    self.name
                );
            }
        }
    }

    /// Checks a response, and says until when it is valid.
    fn check(&self, der: &[u8]) -> Result<i64, String> {
        let flags = if self.verify {
            OcspFlag::TRUST_OTHER
        } else {
            OcspFlag::NO_VERIFY
        };
        let about = (&*self.cert, &*self.issuer);
        let (status, valid) = ocsp::read(der, about, &self.chain, &self.trusted, flags)?;
        if status == OcspCertStatus::GOOD {
            return Ok(valid);
        }
        let status = if status == OcspCertStatus::REVOKED {
            "revoked"
        } else {
            "unknown"
        };
        Err(format!(
            "certificate status \"{status}\" in the OCSP response"
        ))
    }
}

/// Sends the response of the certificate that a handshake uses.
///
/// # Errors
/// OpenSSL's.
pub fn install(ctx: &mut SslContextBuilder, staples: Vec<Arc<Staple>>) -> Result<(), ErrorStack> {
    ctx.set_status_callback(move |ssl: &mut SslRef| {
        let used = ssl
            .certificate()
            .and_then(|c| c.digest(MessageDigest::sha1()).ok());
        let same = |s: &&Arc<Staple>| {
            s.cert
                .digest(MessageDigest::sha1())
                .ok()
                .is_some_and(|d| Some(&*d) == used.as_deref())
        };
        match staples.iter().find(same).and_then(Staple::current) {
            Some(response) => ssl.set_ocsp_status(&response).map(|()| true),
            None => Ok(false),
        }
    })
}
