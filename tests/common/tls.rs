//! TLS as a client of the tests speaks it, and certificates made on the spot.

use super::DEADLINE;
use super::proc::{Couloir, Server, Setup};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    SslConnector, SslMethod, SslRef, SslSession, SslSessionCacheMode, SslStream, SslVerifyMode,
    SslVersion, StatusType,
};
use openssl::x509::extension::BasicConstraints;
use openssl::x509::{X509, X509Name};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

/// A certificate for `cn` and its key, self-signed.
pub fn pair(cn: &str) -> (X509, PKey<Private>) {
    issued(cn, None, (0, 3))
}

/// An authority: a self-signed certificate that may issue others.
pub fn authority(cn: &str) -> (X509, PKey<Private>) {
    issue(cn, None, (0, 3), true)
}

/// A certificate for `cn` and its key, by `issuer` or self-signed, good from and until so many days from now.
pub fn issued(
    cn: &str,
    issuer: Option<&(X509, PKey<Private>)>,
    days: (i64, i64),
) -> (X509, PKey<Private>) {
    issue(cn, issuer, days, false)
}

fn issue(
    cn: &str,
    issuer: Option<&(X509, PKey<Private>)>,
    (from, until): (i64, i64),
    authority: bool,
) -> (X509, PKey<Private>) {
    const DAY: i64 = 86_400;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let day = |n: i64| Asn1Time::from_unix(now.as_secs() as i64 + n * DAY).unwrap();
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", cn).unwrap();
    let name = name.build();
    let mut c = X509::builder().unwrap();
    c.set_version(2).unwrap();
    c.set_subject_name(&name).unwrap();
    match issuer {
        Some((by, _)) => c.set_issuer_name(by.subject_name()).unwrap(),
        None => c.set_issuer_name(&name).unwrap(),
    }
    c.set_pubkey(&key).unwrap();
    c.set_not_before(&day(from)).unwrap();
    c.set_not_after(&day(until)).unwrap();
    if authority {
        let ca = BasicConstraints::new().critical().ca().build().unwrap();
        c.append_extension(ca).unwrap();
    }
    let signer = issuer.map_or(&key, |(_, key)| key);
    c.sign(signer, MessageDigest::sha256()).unwrap();
    (c.build(), key)
}

/// `name.crt` and `name.key` beside the configuration.
pub fn with_pairs(conf: &str, names: &[&str]) -> Setup {
    let mut setup = Setup::new(conf);
    for name in names {
        let (cert, key) = pair(name);
        setup = setup
            .file(&format!("{name}.crt"), cert.to_pem().unwrap(), None)
            .file(
                &format!("{name}.key"),
                key.private_key_to_pem_pkcs8().unwrap(),
                None,
            );
    }
    setup
}

pub fn start(conf: &str, names: &[&str]) -> Server {
    with_pairs(conf, names).start(&Couloir::program())
}

/// How a client says hello.
#[derive(Default)]
pub struct Hello<'a> {
    pub sni: Option<&'a str>,
    pub version: Option<SslVersion>,
    pub session: Option<Vec<u8>>,
    pub certificate: Option<&'a (X509, PKey<Private>)>,
    pub alpn: &'static [u8],
    /// Sends the request as early data.
    pub early: bool,
    /// The ciphers of TLS 1.2.
    pub ciphers: Option<&'a str>,
    /// Asks for an OCSP response.
    pub status: bool,
}

/// What a connection was and got.
pub struct Answer {
    pub cn: String,
    pub text: String,
    pub session: Option<Vec<u8>>,
    pub alpn: Option<Vec<u8>>,
    /// The OCSP response that came with the certificate.
    pub ocsp: Option<Vec<u8>>,
}

/// One handshake and one request; the error is OpenSSL's text.
pub fn request(
    addr: SocketAddr,
    hello: Hello<'_>,
    host: &str,
    path: &str,
) -> Result<Answer, String> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    if let Some(v) = hello.version {
        builder.set_max_proto_version(Some(v)).unwrap();
        builder.set_min_proto_version(Some(v)).unwrap();
    }
    if let Some((cert, key)) = hello.certificate {
        builder.set_certificate(cert).unwrap();
        builder.set_private_key(key).unwrap();
    }
    if let Some(list) = hello.ciphers {
        builder.set_cipher_list(list).unwrap();
    }
    if !hello.alpn.is_empty() {
        builder.set_alpn_protos(hello.alpn).unwrap();
    }
    // as bytes: a session itself cannot be used again once its context has ended
    let kept: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let keep = kept.clone();
    builder.set_session_cache_mode(SslSessionCacheMode::CLIENT);
    builder.set_new_session_callback(move |_: &mut SslRef, s| {
        *keep.lock().unwrap() = Some(s.to_der().unwrap())
    });
    let connector = builder.build();
    let mut config = connector
        .configure()
        .unwrap()
        .verify_hostname(false)
        .use_server_name_indication(hello.sni.is_some());
    if let Some(s) = &hello.session {
        // SAFETY: the session was made for this connection.
        #[allow(unsafe_code)]
        unsafe {
            config
                .set_session(&SslSession::from_der(s).unwrap())
                .unwrap();
        }
    }
    let tcp = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut ssl = config.into_ssl(hello.sni.unwrap_or("none")).unwrap();
    ssl.set_connect_state();
    if hello.status {
        ssl.set_status_type(StatusType::OCSP).unwrap();
    }
    let mut stream = SslStream::new(ssl, tcp).unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    if hello.early {
        stream
            .write_early_data(text.as_bytes())
            .map_err(|e| e.to_string())?;
    }
    stream.connect().map_err(|e| e.to_string())?;
    if !hello.early {
        stream.write_all(text.as_bytes()).unwrap();
    }
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    let cert = stream.ssl().peer_certificate().unwrap();
    let cn = cert
        .subject_name()
        .entries()
        .next()
        .unwrap()
        .data()
        .to_string()
        .unwrap();
    let alpn = stream.ssl().selected_alpn_protocol().map(<[u8]>::to_vec);
    let ocsp = stream.ssl().ocsp_status().map(<[u8]>::to_vec);
    let session = kept.lock().unwrap().take();
    Ok(Answer {
        cn,
        text,
        session,
        alpn,
        ocsp,
    })
}

pub fn get(addr: SocketAddr, sni: &str) -> Answer {
    request(
        addr,
        Hello {
            sni: Some(sni),
            ..Hello::default()
        },
        sni,
        "/",
    )
    .unwrap()
}
