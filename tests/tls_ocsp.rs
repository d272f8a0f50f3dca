//! OCSP: responses stapled to our own certificates, and questions about those of clients, with a responder that says
//! what it is told to.

mod common;

use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};
use common::tls::{Answer, Hello, authority, issued, request};
use common::{DEADLINE, wait_for};
use foreign_types::ForeignType;
use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::ocsp::{OcspCertId, OcspResponse};
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;
use std::ffi::{c_int, c_ulong, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Pair = (X509, PKey<Private>);

const GOOD: c_int = 0;
const REVOKED: c_int = 1;
const UNKNOWN: c_int = 2;

/// A response about `cert`, signed by its issuer.
fn response(cert: &X509, issuer: &Pair, status: c_int) -> Vec<u8> {
    response_by(cert, issuer, issuer, status)
}

#[allow(unsafe_code)]
fn response_by(cert: &X509, issuer: &Pair, signer: &Pair, status: c_int) -> Vec<u8> {
    unsafe extern "C" {
        fn OCSP_BASICRESP_new() -> *mut c_void;
        fn OCSP_BASICRESP_free(basic: *mut c_void);
        fn OCSP_basic_add1_status(
            basic: *mut c_void,
            id: *mut c_void,
            status: c_int,
            reason: c_int,
            revoked: *mut c_void,
            this: *mut c_void,
            next: *mut c_void,
        ) -> *mut c_void;
        fn OCSP_basic_sign(
            basic: *mut c_void,
            signer: *mut c_void,
            key: *mut c_void,
            digest: *const c_void,
            certs: *mut c_void,
            flags: c_ulong,
        ) -> c_int;
        fn OCSP_response_create(status: c_int, basic: *mut c_void) -> *mut c_void;
    }
    let id = OcspCertId::from_cert(MessageDigest::sha1(), cert, &issuer.0).unwrap();
    let (now, next) = (
        Asn1Time::days_from_now(0).unwrap(),
        Asn1Time::days_from_now(1).unwrap(),
    );
    let revoked = if status == REVOKED {
        now.as_ptr().cast()
    } else {
        null_mut()
    };
    // SAFETY: every object is valid and lives across the calls; the result is taken over by its wrapper
    unsafe {
        let basic = OCSP_BASICRESP_new();
        let added = OCSP_basic_add1_status(
            basic,
            id.as_ptr().cast(),
            status,
            0,
            revoked,
            now.as_ptr().cast(),
            next.as_ptr().cast(),
        );
        assert!(!added.is_null());
        let signed = OCSP_basic_sign(
            basic,
            signer.0.as_ptr().cast(),
            signer.1.as_ptr().cast(),
            MessageDigest::sha256().as_ptr().cast(),
            null_mut(),
            0,
        );
        assert_eq!(signed, 1);
        let made = OCSP_response_create(0, basic);
        assert!(!made.is_null());
        OCSP_BASICRESP_free(basic);
        OcspResponse::from_ptr(made.cast()).to_der().unwrap()
    }
}

/// A responder that answers every question with the same response.
fn responder(der: Vec<u8>) -> Origin {
    Origin::respond(move |_| {
        let mut answer =
            b"HTTP/1.0 200 OK\r\nContent-Type: application/ocsp-response\r\n\r\n".to_vec();
        answer.extend_from_slice(&der);
        answer
    })
}

/// A server whose certificate `one` and key are by `ca`.
fn setup(conf: &str, ca: &Pair, one: &Pair) -> Setup {
    let mut chain = one.0.to_pem().unwrap();
    chain.extend(ca.0.to_pem().unwrap());
    let key = one.1.private_key_to_pem_pkcs8().unwrap();
    Setup::new(conf)
        .file("one.crt", chain, None)
        .file("one.key", key, None)
        .file("ca.crt", ca.0.to_pem().unwrap(), None)
}

fn ask(server: &Server, port: u16, certificate: Option<&Pair>) -> Answer {
    let hello = Hello {
        status: true,
        certificate,
        ..Hello::default()
    };
    request(server.addr(port), hello, "h", "/").unwrap()
}

const STAPLED: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% ssl_stapling on;
    ssl_certificate one.crt; ssl_certificate_key one.key;
    server { listen 127.0.0.1:%%PORT_8443%% ssl; %%MORE%% return 200 ok; } }";

#[test]
fn a_response_from_a_file_is_stapled() {
    let ca = authority("ca");
    let one = issued("one", Some(&ca), (0, 3));
    let good = response(&one.0, &ca, GOOD);
    let conf = STAPLED.replace("%%MORE%%", "ssl_stapling_file good.der;");
    let server = setup(&conf, &ca, &one)
        .file("good.der", &good, None)
        .start(&Couloir::program());
    let answer = ask(&server, 8443, None);
    assert!(answer.text.ends_with("ok"), "{}", answer.text);
    assert_eq!(answer.ocsp.as_ref(), Some(&good));
    // only to clients that ask
    let silent = request(server.addr(8443), Hello::default(), "h", "/").unwrap();
    assert_eq!(silent.ocsp, None);
    assert!(server.stop().success());
}

#[test]
fn a_file_that_holds_no_response_is_refused() {
    let ca = authority("ca");
    let one = issued("one", Some(&ca), (0, 3));
    let conf = STAPLED.replace("%%MORE%%", "ssl_stapling_file bad.der;");
    let (status, text) = setup(&conf, &ca, &one)
        .file("bad.der", "no response", None)
        .test(&Couloir::program());
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("[emerg] d2i_OCSP_RESPONSE_bio(\"")
            && text.contains("bad.der\") failed (SSL: error:"),
        "{text}"
    );
}

#[test]
fn a_response_is_fetched_once_and_stapled() {
    let ca = authority("ca");
    let one = issued("one", Some(&ca), (0, 3));
    let good = response(&one.0, &ca, GOOD);
    let origin = responder(good.clone());
    let more = format!(
        "ssl_stapling_verify on; ssl_trusted_certificate ca.crt; ssl_stapling_responder http://127.0.0.1:{}/ocsp;",
        origin.port()
    );
    let server = setup(&STAPLED.replace("%%MORE%%", &more), &ca, &one).start(&Couloir::program());
    // the first handshake does not wait for the responder
    let stapled = wait_for(DEADLINE, || ask(&server, 8443, None).ocsp);
    assert_eq!(stapled, Some(good));
    ask(&server, 8443, None);
    let asked = origin.requests();
    assert_eq!(asked.len(), 1);
    // RFC 6960 appendix A.1: the question is in the URI
    let line = String::from_utf8_lossy(&asked[0].raw).into_owned();
    assert!(line.starts_with("GET /ocsp/M"), "{line}");
    assert!(server.stop().success());
}

#[test]
fn a_response_that_is_not_good_is_not_stapled() {
    let ca = authority("ca");
    let stranger = authority("stranger");
    let one = issued("one", Some(&ca), (0, 3));
    for (origin, said) in [
        (
            responder(response(&one.0, &ca, REVOKED)),
            "certificate status \"revoked\" in the OCSP response while requesting certificate status, responder: 127.0.0.1",
        ),
        (
            // about the right certificate, signed by somebody else
            responder(response_by(&one.0, &ca, &stranger, GOOD)),
            "OCSP_basic_verify() failed (SSL: error:",
        ),
        (
            Origin::respond(|_| b"HTTP/1.0 500 x\r\n\r\n".to_vec()),
            "OCSP responder sent invalid status 500",
        ),
    ] {
        let more = format!(
            "ssl_stapling_verify on; ssl_trusted_certificate ca.crt; ssl_stapling_responder http://127.0.0.1:{}/;",
            origin.port()
        );
        let server =
            setup(&STAPLED.replace("%%MORE%%", &more), &ca, &one).start(&Couloir::program());
        assert_eq!(ask(&server, 8443, None).ocsp, None);
        server.wait_for_text("error.log", said);
        assert_eq!(ask(&server, 8443, None).ocsp, None);
        assert!(server.stop().success());
    }
}

const ASKING: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
    ssl_certificate one.crt; ssl_certificate_key one.key; ssl_verify_client on; ssl_client_certificate ca.crt; ssl_ocsp on;
    server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_ocsp_responder http://127.0.0.1:%%RESPONDER%%/; %%MORE%%
        error_page 495 =200 /bad; location /bad { return 200 'bad $ssl_client_verify'; }
        location / { return 200 'good $ssl_client_verify'; } }
    server { listen 127.0.0.1:%%PORT_8444%% ssl; ssl_ocsp_responder http://127.0.0.1:%%RESPONDER%%/;
        location / { return 200 'good $ssl_client_verify'; } } }";

fn asking(more: &str, responder: u16, ca: &Pair) -> Server {
    let one = issued("one", Some(ca), (0, 3));
    let conf = ASKING
        .replace("%%RESPONDER%%", &responder.to_string())
        .replace("%%MORE%%", more);
    setup(&conf, ca, &one).start(&Couloir::program())
}

#[test]
fn the_certificates_of_clients_are_asked_about() {
    let ca = authority("ca");
    let client = issued("client", Some(&ca), (0, 3));
    for (status, verdict) in [
        (GOOD, "good SUCCESS"),
        (REVOKED, "bad FAILED:certificate revoked"),
        (UNKNOWN, "bad FAILED:certificate status unknown"),
    ] {
        let origin = responder(response(&client.0, &ca, status));
        let server = asking("", origin.port(), &ca);
        let answer = ask(&server, 8443, Some(&client));
        assert!(answer.text.ends_with(verdict), "{}", answer.text);
        assert_eq!(origin.requests().len(), 1);
        if status == REVOKED {
            let plain = ask(&server, 8444, Some(&client)).text;
            assert!(
                plain.starts_with("HTTP/1.1 400 ") && plain.contains("The SSL certificate error"),
                "{plain}"
            );
        }
        assert!(server.stop().success());
    }
}

#[test]
fn verdicts_are_kept_in_a_cache() {
    let ca = authority("ca");
    let client = issued("client", Some(&ca), (0, 3));
    let gone = Arc::new(AtomicBool::new(false));
    let (good, told) = (response(&client.0, &ca, GOOD), gone.clone());
    let origin = Origin::respond(move |_| {
        if told.load(Ordering::SeqCst) {
            return b"HTTP/1.0 503 x\r\n\r\n".to_vec();
        }
        let mut answer =
            b"HTTP/1.0 200 OK\r\nContent-Type: application/ocsp-response\r\n\r\n".to_vec();
        answer.extend_from_slice(&good);
        answer
    });
    let server = asking("ssl_ocsp_cache shared:ocsp:1m;", origin.port(), &ca);
    let first = ask(&server, 8443, Some(&client)).text;
    assert!(first.ends_with("good SUCCESS"), "{first}");
    gone.store(true, Ordering::SeqCst);
    let second = ask(&server, 8443, Some(&client)).text;
    assert!(second.ends_with("good SUCCESS"), "{second}");
    assert_eq!(origin.requests().len(), 1);
    assert!(server.stop().success());
}

#[test]
fn a_responder_that_is_dead_lets_nobody_in() {
    let ca = authority("ca");
    let client = issued("client", Some(&ca), (0, 3));
    // nobody listens there
    let server = asking("", 1, &ca);
    let text = ask(&server, 8443, Some(&client)).text;
    assert!(
        text.ends_with("bad FAILED:certificate status request failed"),
        "{text}"
    );
    let log = server.wait_for_text("error.log", "asking the OCSP responder 127.0.0.1:1 failed");
    assert!(
        log.contains("(111: Connection refused) while requesting certificate status, responder: 127.0.0.1 while SSL handshaking, client: 127.0.0.1"),
        "{log}"
    );
    assert!(server.stop().success());
}
