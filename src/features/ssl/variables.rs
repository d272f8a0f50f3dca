//! `$ssl_…`: what the handshake settled and what the client's certificate says.

use crate::contract::{Request, TlsInfo, Val, Variable};
use crate::http::escape::{Escape, escape};
use crate::tls::ffi;
use openssl::hash::MessageDigest;
use openssl::x509::{X509, X509VerifyResult};

/// Every variable of nginx's ngx_http_ssl_module.
pub const VARIABLES: &[Variable] = &[
    Variable::new("ssl_protocol", |r, _| {
        info(r, |i| Val::Bytes(i.protocol.as_bytes()))
    })
    .changeable(),
    Variable::new("ssl_cipher", |r, _| {
        info(r, |i| Val::Bytes(i.cipher.as_bytes()))
    })
    .changeable(),
    Variable::new("ssl_ciphers", |r, _| more(r, "ssl_ciphers")).changeable(),
    Variable::new("ssl_curve", |r, _| more(r, "ssl_curve")).changeable(),
    Variable::new("ssl_curves", |r, _| more(r, "ssl_curves")).changeable(),
    Variable::new("ssl_sigalg", |r, _| more(r, "ssl_sigalg")).changeable(),
    Variable::new("ssl_sigalgs", |r, _| more(r, "ssl_sigalgs")).changeable(),
    Variable::new("ssl_session_id", |r, _| {
        info(r, |i| some(hex(&i.session_id)))
    })
    .changeable(),
    Variable::new("ssl_session_reused", |r, _| {
        info(r, |i| Val::Bytes(if i.reused { b"r" } else { b"." }))
    })
    .changeable(),
    Variable::new("ssl_early_data", |r, _| {
        info(r, |i| {
            if i.early.load(std::sync::atomic::Ordering::Relaxed) {
                Val::Bytes(b"1")
            } else {
                Val::None
            }
        })
    })
    .changeable(),
    Variable::new("ssl_server_name", |r, _| {
        info(r, |i| {
            present(i.server_name.as_deref().unwrap_or_default().as_bytes())
        })
    })
    .changeable(),
    Variable::new("ssl_alpn_protocol", |r, _| {
        info(r, |i| present(i.alpn.as_deref().unwrap_or_default()))
    })
    .changeable(),
    // OpenSSL 3.6 has no encrypted hello
    Variable::new("ssl_ech_status", |_, _| Val::None).changeable(),
    Variable::new("ssl_ech_outer_server_name", |_, _| Val::None).changeable(),
    Variable::new("ssl_client_cert", |r, _| client(r, |c| indented(&pem(c)))).changeable(),
    Variable::new("ssl_client_raw_cert", |r, _| client(r, pem)).changeable(),
    Variable::new("ssl_client_escaped_cert", |r, _| client(r, escaped)).changeable(),
    Variable::new("ssl_client_s_dn", |r, _| {
        client(r, |c| ffi::name_rfc2253(c.subject_name()))
    })
    .changeable(),
    Variable::new("ssl_client_i_dn", |r, _| {
        client(r, |c| ffi::name_rfc2253(c.issuer_name()))
    })
    .changeable(),
    Variable::new("ssl_client_s_dn_legacy", |r, _| {
        client(r, |c| ffi::name_oneline(c.subject_name()))
    })
    .changeable(),
    Variable::new("ssl_client_i_dn_legacy", |r, _| {
        client(r, |c| ffi::name_oneline(c.issuer_name()))
    })
    .changeable(),
    Variable::new("ssl_client_serial", |r, _| client(r, serial)).changeable(),
    Variable::new("ssl_client_fingerprint", |r, _| client(r, fingerprint)).changeable(),
    Variable::new("ssl_client_verify", |r, _| info(r, verify)).changeable(),
    Variable::new("ssl_client_v_start", |r, _| {
        client(r, |c| c.not_before().to_string().into_bytes())
    })
    .changeable(),
    Variable::new("ssl_client_v_end", |r, _| {
        client(r, |c| c.not_after().to_string().into_bytes())
    })
    .changeable(),
    Variable::new("ssl_client_v_remain", |r, _| client(r, remain)).changeable(),
    Variable::new("ssl_client_sigalg", |r, _| more(r, "ssl_client_sigalg")).changeable(),
];

fn info<'r>(r: &'r Request, get: impl FnOnce(&'r TlsInfo) -> Val<'r>) -> Val<'r> {
    r.conn().tls.get().map_or(Val::None, |i| get(i))
}

/// A value that was worked out in the handshake because some text of the site names it.
fn more<'r>(r: &'r Request, name: &str) -> Val<'r> {
    info(r, |i| {
        present(
            i.more
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| &**v)
                .unwrap_or_default(),
        )
    })
}

/// A value of the client's certificate.
fn client<'r>(r: &'r Request, get: impl FnOnce(&X509) -> Vec<u8>) -> Val<'r> {
    info(r, |i| i.client.as_ref().map_or(Val::None, |c| some(get(c))))
}

/// nginx has no value where the text is empty.
fn present(text: &[u8]) -> Val<'_> {
    if text.is_empty() {
        Val::None
    } else {
        Val::Bytes(text)
    }
}

fn some(text: Vec<u8>) -> Val<'static> {
    if text.is_empty() {
        Val::None
    } else {
        Val::Owned(text)
    }
}

fn pem(c: &X509) -> Vec<u8> {
    c.to_pem().unwrap_or_default()
}

/// PEM as the value of a header: every line but the first begins with a tab.
fn indented(pem: &[u8]) -> Vec<u8> {
    let text = pem.strip_suffix(b"\n").unwrap_or(pem);
    let mut out = Vec::with_capacity(text.len() + 32);
    for c in text {
        out.push(*c);
        if *c == b'\n' {
            out.push(b'\t');
        }
    }
    out
}

fn escaped(c: &X509) -> Vec<u8> {
    let mut out = Vec::new();
    escape(Escape::UriComponent, &pem(c), &mut out);
    out
}

fn serial(c: &X509) -> Vec<u8> {
    let text = c
        .serial_number()
        .to_bn()
        .and_then(|n| n.to_hex_str().map(|t| t.as_bytes().to_vec()))
        .unwrap_or_default();
    if text == b"0" { b"00".to_vec() } else { text }
}

fn fingerprint(c: &X509) -> Vec<u8> {
    c.digest(MessageDigest::sha1())
        .map(|d| hex(&d))
        .unwrap_or_default()
}

/// Whole days until the certificate ends.
fn remain(c: &X509) -> Vec<u8> {
    let days = ffi::remaining(c).map(|s| (s / 86_400).max(0));
    days.map(|d| d.to_string().into_bytes()).unwrap_or_default()
}

fn verify(i: &TlsInfo) -> Val<'_> {
    match &i.client {
        None => Val::Bytes(b"NONE"),
        Some(_) if i.verify == X509VerifyResult::OK => match i.ocsp {
            None => Val::Bytes(b"SUCCESS"),
            Some(text) => Val::Owned(format!("FAILED:{text}").into_bytes()),
        },
        Some(_) => Val::Owned(format!("FAILED:{}", i.verify.error_string()).into_bytes()),
    }
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_fits_a_header() {
        assert_eq!(
            indented(b"-----BEGIN\nabc\n-----END\n"),
            b"-----BEGIN\n\tabc\n\t-----END"
        );
        assert_eq!(indented(b""), b"");
        assert_eq!(hex(&[0, 0xaf]), b"00af");
    }
}
