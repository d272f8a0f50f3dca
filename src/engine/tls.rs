//! TLS of servers and listeners, and what a request must satisfy on a connection that has TLS.

use crate::config::{Diag, Result};
use crate::contract::{Listener, Request, Server, TlsInfo, TlsListener, VerifyClient};
use crate::log::Level;
use openssl::x509::X509VerifyResult;
use std::sync::Arc;

/// The TLS side of an address of these servers.
pub(super) fn listener(on: &[u32], default: u32, servers: &[Server]) -> Result<Arc<TlsListener>> {
    let missing = |n: u32| {
        let place = servers.get(n as usize).map_or("", |s| &s.place);
        Diag::plain(format!(
            "no \"ssl_certificate\" is defined for the \"listen ... ssl\" directive in {place}"
        ))
    };
    let tls = |n: u32| servers.get(n as usize).and_then(|s| s.tls.as_ref());
    let certified = |n: u32| tls(n).is_some_and(|t| t.certified);
    let rejects = |n: u32| tls(n).is_some_and(|t| t.reject);
    if !certified(default) {
        if !rejects(default) {
            return Err(missing(default));
        }
        // the default server only refuses: the others must be able to serve
        if let Some(n) = on.iter().find(|n| !certified(**n) && !rejects(**n)) {
            return Err(missing(*n));
        }
    }
    let tls = tls(default).cloned().ok_or_else(|| missing(default))?;
    if tls.context.load().is_none() {
        return Err(missing(default));
    }
    Ok(Arc::new(TlsListener {
        default: tls,
        several: on.len() > 1,
    }))
}

/// Whether a request may be served on its connection: 497, 421, 495 and 496.
pub(super) fn check(r: &mut Request, listener: &Listener) -> std::result::Result<(), u16> {
    let Some(info) = r.conn().tls.get().cloned() else {
        r.error(
            Level::Info,
            format_args!(
                "client sent plain HTTP request to HTTPS port while reading client request headers"
            ),
        );
        return Err(497);
    };
    let site = r.site.clone();
    let tls = |n: u32| site.servers.get(n as usize).and_then(|s| s.tls.as_deref());
    if let Some(name) = info
        .chosen_by
        .as_deref()
        .filter(|name| *name != r.head.host)
    {
        let asked = super::lookup::by_host(listener, r).unwrap_or(listener.default_server);
        if tls(asked).is_some_and(|t| t.verify != VerifyClient::Off) {
            // answered by the server that the handshake was made with
            if let Some(n) = listener.names.find(name, r) {
                r.server = n;
                r.location = r.server().default_location;
            }
            r.error(Level::Info, format_args!("client attempted to request the server name different from the one that was negotiated while reading client request headers"));
            return Err(421);
        }
    }
    let Some(tls) = tls(r.server).filter(|t| t.verify != VerifyClient::Off) else {
        return Ok(());
    };
    verify(r, tls.verify, &info).inspect_err(|_| {
        // a session that was refused is not to be resumed
        if let Some(zone) = &tls.zone {
            zone.remove(&info.session_id);
        }
    })
}

fn verify(r: &Request, mode: VerifyClient, info: &TlsInfo) -> std::result::Result<(), u16> {
    if info.verify != X509VerifyResult::OK
        && !(mode == VerifyClient::OptionalNoCa && is_about_trust(info.verify))
    {
        let (code, text) = (info.verify.as_raw(), info.verify.error_string());
        r.error(Level::Info, format_args!("client SSL certificate verify error: ({code}:{text}) while reading client request headers"));
        return Err(495);
    }
    if mode == VerifyClient::On && info.client.is_none() {
        r.error(
            Level::Info,
            format_args!(
                "client sent no required SSL certificate while reading client request headers"
            ),
        );
        return Err(496);
    }
    if let Some(text) = info.ocsp {
        r.error(
            Level::Info,
            format_args!(
                "client SSL certificate verify error: {text} while reading client request headers"
            ),
        );
        return Err(495);
    }
    Ok(())
}

/// What `optional_no_ca` lets pass: no trusted authority vouches for the certificate.
fn is_about_trust(e: X509VerifyResult) -> bool {
    // DEPTH_ZERO_SELF_SIGNED_CERT, SELF_SIGNED_CERT_IN_CHAIN, UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    // UNABLE_TO_VERIFY_LEAF_SIGNATURE, CERT_UNTRUSTED
    matches!(e.as_raw(), 18..=21 | 27)
}
