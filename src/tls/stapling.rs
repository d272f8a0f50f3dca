//! OCSP responses for our own certificates (RFC 6066 section 8): from a file, or fetched from their responders.

use super::ffi;
use super::load::Chain;
use crate::http::date;
use crate::http::escape::{Escape, escape};
use base64::Engine;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::ocsp::{
    OcspCertId, OcspCertStatus, OcspFlag, OcspRequest, OcspResponse, OcspResponseStatus,
};
use openssl::ssl::{SslContextBuilder, SslRef};
use openssl::stack::Stack;
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::{X509, X509VerifyResult};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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

/// `http://host[:port]/uri`.
struct Responder {
    host: String,
    uri: String,
    addrs: Vec<SocketAddr>,
}

/// What a request and its answer may take, as nginx's.
const TIMEOUT: Duration = Duration::from_secs(60);
/// More than any response has, bytes.
const LONGEST: u64 = 64 * 1024;

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
            responder: Responder::parse(url)
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
        let fetched = tokio::time::timeout(TIMEOUT, self.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| {
            Err("OCSP responder timed out (110: Connection timed out)".to_owned())
        });
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

    fn id(&self) -> Result<OcspCertId, ErrorStack> {
        OcspCertId::from_cert(MessageDigest::sha1(), &self.cert, &self.issuer)
    }

    /// Asks the responder's addresses, one after the other.
    async fn fetch(&self) -> Result<Vec<u8>, String> {
        let request = || {
            let mut r = OcspRequest::new()?;
            r.add_id(self.id()?)?;
            r.to_der()
        };
        let request =
            request().map_err(|e| super::error::describe("making an OCSP request failed", &e))?;
        let head = self.responder.request(&request);
        let mut last = "no OCSP responder".to_owned();
        for addr in &self.responder.addrs {
            match exchange(*addr, &head).await {
                Ok(answer) => return body(&answer).map(<[u8]>::to_vec),
                Err(e) => {
                    last = format!(
                        "asking the OCSP responder {addr} failed{}",
                        crate::log::Errno::of(&e)
                    )
                }
            }
        }
        Err(last)
    }

    /// Checks a response, and says until when it is valid.
    fn check(&self, der: &[u8]) -> Result<i64, String> {
        let said = |what: &str, e: ErrorStack| super::error::describe(format!("{what} failed"), &e);
        let response = OcspResponse::from_der(der).map_err(|e| said("d2i_OCSP_RESPONSE()", e))?;
        let status = response.status();
        if status != OcspResponseStatus::SUCCESSFUL {
            return Err(format!(
                "OCSP response not successful ({})",
                status.as_raw()
            ));
        }
        let basic = response
            .basic()
            .map_err(|e| said("OCSP_response_get1_basic()", e))?;
        let mut certs = Stack::new().map_err(|e| said("sk_X509_new()", e))?;
        for c in &self.chain {
            certs
                .push(c.clone())
                .map_err(|e| said("sk_X509_push()", e))?;
        }
        let flags = if self.verify {
            OcspFlag::TRUST_OTHER
        } else {
            OcspFlag::NO_VERIFY
        };
        basic
            .verify(&certs, &self.trusted, flags)
            .map_err(|e| said("OCSP_basic_verify()", e))?;
        let id = self.id().map_err(|e| said("OCSP_cert_to_id()", e))?;
        let Some(found) = basic.find_status(&id) else {
            return Err("certificate status not found in the OCSP response".to_owned());
        };
        found
            .check_validity(300, None)
            .map_err(|e| said("OCSP_check_validity()", e))?;
        if found.status != OcspCertStatus::GOOD {
            let status = if found.status == OcspCertStatus::REVOKED {
                "revoked"
            } else {
                "unknown"
            };
            return Err(format!(
                "certificate status \"{status}\" in the OCSP response"
            ));
        }
        match found.next_update() {
            Some(t) => ffi::seconds_until(t)
                .map(|s| date::time().0 + s)
                .ok_or_else(|| "invalid nextUpdate time in certificate status".to_owned()),
            None => Ok(i64::MAX),
        }
    }
}

impl Responder {
    fn parse(url: &str) -> Result<Responder, String> {
        let rest = match url.split_at_checked(7) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") && !rest.is_empty() => {
                rest
            }
            _ => return Err(format!("invalid URL prefix in OCSP responder \"{url}\"")),
        };
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, uri) = rest.split_at(at);
        let port_at = authority
            .rfind(':')
            .filter(|i| !authority.get(*i..).unwrap_or_default().contains(']'));
        let (host, port) = match port_at {
            Some(i) => (
                authority.get(..i).unwrap_or_default(),
                authority
                    .get(i + 1..)
                    .unwrap_or_default()
                    .parse::<u16>()
                    .ok()
                    .filter(|p| *p > 0),
            ),
            None => (authority, Some(80)),
        };
        let port = port.ok_or_else(|| format!("invalid port in OCSP responder \"{rest}\""))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addrs = crate::upstream::resolve_at_load(bare, port)
            .map_err(|_| format!("host not found in OCSP responder \"{rest}\""))?;
        Ok(Responder {
            host: host.to_owned(),
            uri: if uri.is_empty() {
                "/".to_owned()
            } else {
                uri.to_owned()
            },
            addrs,
        })
    }

    /// RFC 6960 appendix A.1: the request in the URI.
    fn request(&self, der: &[u8]) -> Vec<u8> {
        let mut out = format!("GET {}", self.uri).into_bytes();
        if !self.uri.ends_with('/') {
            out.push(b'/');
        }
        escape(
            Escape::UriComponent,
            base64::engine::general_purpose::STANDARD
                .encode(der)
                .as_bytes(),
            &mut out,
        );
        out.extend_from_slice(format!(" HTTP/1.0\r\nHost: {}\r\n\r\n", self.host).as_bytes());
        out
    }
}

async fn exchange(addr: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The body of a response that ends with its connection.
fn body(answer: &[u8]) -> Result<&[u8], String> {
    // lines may end with LF alone
    let ends = [&b"\r\n\r\n"[..], b"\n\n"]
        .into_iter()
        .filter_map(|end| memchr::memmem::find(answer, end).map(|at| (at, end.len())));
    let (at, blank) = ends
        .min()
        .ok_or("OCSP responder sent an incomplete response")?;
    let (head, rest) = answer.split_at(at);
    let mut lines = head.split(|c| *c == b'\n').map(<[u8]>::trim_ascii);
    let status = lines
        .next()
        .and_then(|l| l.split(|c| *c == b' ').nth(1))
        .unwrap_or_default();
    if status != b"200" {
        return Err(format!(
            "OCSP responder sent invalid status {}",
            String::from_utf8_lossy(status)
        ));
    }
    let typed = lines
        .filter_map(|l| l.split_at_checked(13))
        .find(|(name, _)| name.eq_ignore_ascii_case(b"content-type:"));
    match typed {
        Some((_, value))
            if value
                .trim_ascii()
                .eq_ignore_ascii_case(b"application/ocsp-response") =>
        {
            Ok(rest.get(blank..).unwrap_or_default())
        }
        Some((_, value)) => {
            let value = String::from_utf8_lossy(value.trim_ascii()).into_owned();
            Err(format!(
                "OCSP responder sent invalid \"Content-Type\" header: \"{value}\""
            ))
        }
        None => Err("OCSP responder sent no \"Content-Type\" header".to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responders() {
        let r = Responder::parse("HTTP://127.0.0.1:8081/ocsp").unwrap();
        assert_eq!(
            (&*r.host, &*r.uri, r.addrs[0].port()),
            ("127.0.0.1", "/ocsp", 8081)
        );
        assert_eq!(
            r.request(&[0xff, 0xef]),
            b"GET /ocsp/%2F%2B8%3D HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
        );
        let r = Responder::parse("http://[::1]").unwrap();
        assert_eq!((&*r.uri, r.addrs[0].port()), ("/", 80));
        for bad in [
            "https://h/",
            "http://",
            "x",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:x/",
        ] {
            assert!(Responder::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers() {
        let ok =
            b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-type: application/ocsp-response\r\n\r\nDER";
        assert_eq!(body(ok).unwrap(), b"DER");
        assert_eq!(
            body(b"HTTP/1.1 200 OK\nContent-Type: application/ocsp-response\n\n\r\n\r\n").unwrap(),
            b"\r\n\r\n"
        );
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 404 No\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nDER",
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nDER",
        ] {
            assert!(body(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
