//! Asking responders about certificates (RFC 6960): for stapling, and about the certificates of clients.

use super::error::describe;
use super::ffi;
use crate::dns::Resolver;
use crate::http::date;
use crate::http::escape::{Escape, escape};
use base64::Engine;
use openssl::error::ErrorStack;
use openssl::hash::{MessageDigest, hash};
use openssl::ocsp::{
    OcspCertId, OcspCertStatus, OcspFlag, OcspRequest, OcspResponse, OcspResponseStatus,
};
use openssl::ssl::SslRef;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreRef;
use openssl::x509::{X509, X509Ref, X509StoreContext, X509VerifyResult};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `http://host[:port]/uri`.
pub struct Responder {
    /// The host, as written.
    pub host: String,
    port: u16,
    uri: String,
    /// Where the host is, if that is known beforehand.
    addrs: Vec<SocketAddr>,
}

/// What a request and its answer may take, as nginx's.
const TIMEOUT: Duration = Duration::from_secs(60);
/// More than any response has, bytes.
const LONGEST: u64 = 64 * 1024;

impl Responder {
    /// A responder whose name is not looked up yet, unless it is an address.
    ///
    /// # Errors
    /// nginx's text, up to where the URL comes from.
    pub fn parse(url: &str) -> Result<Responder, String> {
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
        if host.is_empty() {
            return Err(format!("no host in OCSP responder \"{rest}\""));
        }
        let literal = bare(host).parse().map(|ip| SocketAddr::new(ip, port));
        Ok(Responder {
            host: host.to_owned(),
            port,
            uri: if uri.is_empty() {
                "/".to_owned()
            } else {
                uri.to_owned()
            },
            addrs: literal.into_iter().collect(),
        })
    }

    /// The same, with the addresses of its host: for use while the configuration is read.
    ///
    /// # Errors
    /// As [`Responder::parse`], or that there is no such host.
    pub fn resolved(url: &str) -> Result<Responder, String> {
        let mut r = Responder::parse(url)?;
        if r.addrs.is_empty() {
            r.addrs = crate::dns::resolve_at_load(bare(&r.host), r.port)
                .map_err(|_| format!("host not found in OCSP responder \"{url}\""))?;
        }
        Ok(r)
    }

    /// RFC 6960 appendix A.1: the request in the URI.
    fn request(&self, der: &[u8]) -> Vec<u8> {
        let mut out = format!("GET {}", self.uri).into_bytes();
        if !self.uri.ends_with('/') {
            out.push(b'/');
        }
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        escape(Escape::UriComponent, text.as_bytes(), &mut out);
        out.extend_from_slice(format!(" HTTP/1.0\r\nHost: {}\r\n\r\n", self.host).as_bytes());
        out
    }

    /// Asks about a certificate, one address after the other; the answer is a response in DER.
    ///
    /// # Errors
    /// nginx's texts, or like them.
    pub async fn ask(
        &self,
        cert: &X509,
        issuer: &X509,
        resolver: Option<&Arc<Resolver>>,
    ) -> Result<Vec<u8>, String> {
        let asked = tokio::time::timeout(TIMEOUT, self.exchange(cert, issuer, resolver)).await;
        asked.unwrap_or_else(|_| {
            Err("OCSP responder timed out (110: Connection timed out)".to_owned())
        })
    }

    async fn exchange(
        &self,
        cert: &X509,
        issuer: &X509,
        resolver: Option<&Arc<Resolver>>,
    ) -> Result<Vec<u8>, String> {
        let der = || {
            let mut r = OcspRequest::new()?;
            r.add_id(id(cert, issuer)?)?;
            r.to_der()
        };
        let der = der().map_err(|e| describe("making an OCSP request failed", &e))?;
        let head = self.request(&der);
        let found;
        let addrs = if self.addrs.is_empty() {
            let Some(resolver) = resolver else {
                return Err(format!("no resolver defined to resolve {}", self.host));
            };
            let list = resolver.resolve(&self.host).await;
            let list = list.map_err(|e| e.to_string())?;
            found = list
                .into_iter()
                .map(|ip| SocketAddr::new(ip, self.port))
                .collect();
            &found
        } else {
            &self.addrs
        };
        let mut last = "no OCSP responder".to_owned();
        for addr in addrs {
            match talk(*addr, &head).await {
                Ok(answer) => return body(&answer).map(<[u8]>::to_vec),
                Err(e) => {
                    let errno = crate::log::Errno::of(&e);
                    last = format!("asking the OCSP responder {addr} failed{errno}");
                }
            }
        }
        Err(last)
    }
}

/// An address without the brackets of IPv6.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn talk(addr: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
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

fn id(cert: &X509Ref, issuer: &X509Ref) -> Result<OcspCertId, ErrorStack> {
    OcspCertId::from_cert(MessageDigest::sha1(), cert, issuer)
}

/// What a response says of a certificate, and until when (seconds since the epoch).
///
/// # Errors
/// nginx's texts.
pub fn read(
    der: &[u8],
    (cert, issuer): (&X509Ref, &X509Ref),
    chain: &[X509],
    trusted: &X509StoreRef,
    flags: OcspFlag,
) -> Result<(OcspCertStatus, i64), String> {
    let said = |what: &str, e: ErrorStack| describe(format!("{what} failed"), &e);
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
    for c in chain {
        certs
            .push(c.clone())
            .map_err(|e| said("sk_X509_push()", e))?;
    }
    basic
        .verify(&certs, trusted, flags)
        .map_err(|e| said("OCSP_basic_verify()", e))?;
    let id = id(cert, issuer).map_err(|e| said("OCSP_cert_to_id()", e))?;
    let found = basic
        .find_status(&id)
        .ok_or("certificate status not found in the OCSP response")?;
    found
        .check_validity(300, None)
        .map_err(|e| said("OCSP_check_validity()", e))?;
    let valid = match found.next_update() {
        Some(t) => ffi::seconds_until(t)
            .map(|s| date::time().0 + s)
            .ok_or("invalid nextUpdate time in certificate status")?,
        None => i64::MAX,
    };
    Ok((found.status, valid))
}

/// `ssl_ocsp`: asks whether the certificates of clients are revoked.
pub struct ClientOcsp {
    /// How many certificates of a chain are asked about; all but its root where it is `None`.
    pub depth: Option<usize>,
    /// `ssl_ocsp_responder`.
    pub responder: Option<Responder>,
    /// `ssl_ocsp_cache`.
    pub cache: Option<Arc<Cache>>,
}

/// A certificate that passed the handshake and not this.
pub struct Doubt {
    /// nginx's text for `$ssl_client_verify`.
    pub verdict: &'static str,
    /// What is to be logged, where asking failed.
    pub log: Option<String>,
}

impl ClientOcsp {
    /// Asks about the client's certificate; `None` where all is well, or there is nothing to ask about.
    pub async fn validate(&self, ssl: &SslRef, resolver: Option<&Arc<Resolver>>) -> Option<Doubt> {
        if ssl.verify_result() != X509VerifyResult::OK {
            return None;
        }
        let cert = ssl.peer_certificate()?;
        let failed = |log| {
            Some(Doubt {
                verdict: "certificate status request failed",
                log: Some(log),
            })
        };
        let chain = match chain(ssl, &cert) {
            Ok(chain) => chain,
            Err(e) => return failed(describe("X509_verify_cert() failed", &e)),
        };
        let trusted = ssl.ssl_context().cert_store();
        for pair in chain.windows(2).take(self.depth.unwrap_or(usize::MAX)) {
            let [cert, issuer] = pair else { break };
            match self.status(cert, issuer, &chain, trusted, resolver).await {
                Ok(OcspCertStatus::GOOD) => {}
                Ok(status) => {
                    return Some(Doubt {
                        verdict: if status == OcspCertStatus::REVOKED {
                            "certificate revoked"
                        } else {
                            "certificate status unknown"
                        },
                        log: None,
                    });
                }
                Err(text) => return failed(text),
            }
        }
        None
    }

    async fn status(
        &self,
        cert: &X509,
        issuer: &X509,
        chain: &[X509],
        trusted: &X509StoreRef,
        resolver: Option<&Arc<Resolver>>,
    ) -> Result<OcspCertStatus, String> {
        let own;
        let responder = match &self.responder {
            Some(r) => r,
            None => {
                own = of_certificate(cert)?;
                &own
            }
        };
        let key = key(cert, issuer);
        let known = self.cache.as_ref().zip(key);
        if let Some(status) = known.and_then(|(c, k)| c.get(&k)) {
            return Ok(status);
        }
        let named = |text| {
            let host = &responder.host;
            format!("{text} while requesting certificate status, responder: {host}")
        };
        let der = responder.ask(cert, issuer, resolver).await;
        let der = der.map_err(named)?;
        let (status, valid) =
            read(&der, (cert, issuer), chain, trusted, OcspFlag::empty()).map_err(named)?;
        if let Some((cache, key)) = known {
            cache.keep(key, status, valid);
        }
        Ok(status)
    }
}

/// The responder that a certificate names.
fn of_certificate(cert: &X509) -> Result<Responder, String> {
    let list = cert.ocsp_responders().ok();
    let url = list
        .as_ref()
        .and_then(|l| l.iter().next())
        .map(|u| u.to_string())
        .ok_or("no OCSP responder URL in certificate")?;
    Responder::parse(&url).map_err(|e| format!("{e} in certificate"))
}

/// The chain up to the root. A resumed session has only the certificate: it is verified once more.
fn chain(ssl: &SslRef, cert: &X509) -> Result<Vec<X509>, ErrorStack> {
    if let Some(chain) = ssl.verified_chain() {
        return Ok(chain.iter().map(ToOwned::to_owned).collect());
    }
    let none = Stack::new()?;
    let sent = ssl.peer_cert_chain();
    let mut ctx = X509StoreContext::new()?;
    ctx.init(
        ssl.ssl_context().cert_store(),
        cert,
        sent.unwrap_or(&none),
        |c| {
            if !c.verify_cert()? {
                return Err(ErrorStack::get());
            }
            let chain = c.chain().into_iter().flatten();
            Ok(chain.map(ToOwned::to_owned).collect())
        },
    )
}

type Key = [u8; 20];

/// What an answer is remembered by: the issuer and the serial number.
fn key(cert: &X509, issuer: &X509) -> Option<Key> {
    let sha1 = MessageDigest::sha1();
    let mut all = issuer.digest(sha1).ok()?.to_vec();
    all.extend_from_slice(&cert.serial_number().to_bn().ok()?.to_vec());
    hash(sha1, &all).ok()?.as_ref().try_into().ok()
}

/// `ssl_ocsp_cache shared:name:size`.
pub struct Cache {
    size: usize,
    known: Mutex<HashMap<Key, (OcspCertStatus, i64)>>,
}

/// What nginx's slab spends on an answer, bytes.
const COST: usize = 128;

impl Cache {
    /// The cache of this name; one of the same size lives on through reloads.
    pub fn named(name: &str, size: usize) -> Arc<Cache> {
        static CACHES: LazyLock<Mutex<HashMap<String, Arc<Cache>>>> = LazyLock::new(Mutex::default);
        let mut caches = CACHES.lock();
        match caches.get(name) {
            Some(c) if c.size == size => c.clone(),
            _ => {
                let c = Arc::new(Cache {
                    size,
                    known: Mutex::default(),
                });
                caches.insert(name.to_owned(), c.clone());
                c
            }
        }
    }

    fn get(&self, key: &Key) -> Option<OcspCertStatus> {
        let mut known = self.known.lock();
        let (status, valid) = known.get(key)?;
        if *valid > date::time().0 {
            return Some(*status);
        }
        known.remove(key);
        None
    }

    fn keep(&self, key: Key, status: OcspCertStatus, valid: i64) {
        let now = date::time().0;
        if valid <= now {
            return;
        }
        let mut known = self.known.lock();
        if known.len() >= self.size / COST && !known.contains_key(&key) {
            known.retain(|_, (_, valid)| *valid > now);
            if known.len() >= self.size / COST
                && let Some(any) = known.keys().next().copied()
            {
                known.remove(&any);
            }
        }
        known.insert(key, (status, valid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responders() {
        let r = Responder::resolved("HTTP://127.0.0.1:8081/ocsp").unwrap();
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
        let named = Responder::parse("http://ocsp.example.com:81/x").unwrap();
        assert!(named.addrs.is_empty() && named.port == 81);
        for bad in [
            "https://h/",
            "http://",
            "http:///x",
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

    proptest::proptest! {
        #[test]
        fn nothing_panics(url in "http://.{0,40}", answer in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Responder::parse(&url);
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\n";
            let _ = body(&[&head[..], &answer].concat());
            let _ = body(&answer);
        }
    }

    #[test]
    fn a_cache_is_bounded_and_forgets() {
        let cache = Cache {
            size: 2 * COST,
            known: Mutex::default(),
        };
        let later = date::time().0 + 100;
        cache.keep([1; 20], OcspCertStatus::GOOD, 1);
        assert_eq!(cache.get(&[1; 20]), None);
        for n in 0..5 {
            cache.keep([n; 20], OcspCertStatus::REVOKED, later);
        }
        assert_eq!(cache.known.lock().len(), 2);
        assert_eq!(cache.get(&[4; 20]), Some(OcspCertStatus::REVOKED));
    }
}
