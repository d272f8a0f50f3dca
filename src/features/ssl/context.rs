//! From a server's settings to OpenSSL's context, in nginx's order and words.

use super::{Builtin, Named, SslConf, warning};
use crate::config::Diag;
use crate::contract::*;
use crate::log::LogFiles;
use crate::tls::context::{self, DEFAULT_PROTOCOLS};
use crate::tls::load::{ByName, Cache, Chain, Loader, Name, SharedLoader};
use crate::tls::ocsp::{ClientOcsp, Responder};
use crate::tls::session::{TicketKey, Tickets};
use crate::tls::stapling::{self, Staple};
use crate::tls::{accept, error, ffi};
use openssl::hash::{MessageDigest, hash};
use openssl::ssl::{SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslVerifyMode};
use openssl::x509::X509;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What making a context draws on.
struct Making<'a> {
    loader: &'a mut Loader,
    /// What relative names begin with.
    base: &'a Path,
    // boxed as `Build::warn` takes them
    #[allow(clippy::vec_box)]
    warnings: Vec<Box<Diag>>,
    /// `start_degraded`: what one server lacks is a warning.
    lenient: bool,
}

impl Making<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.base.join(file)
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(warning(text));
    }
}

/// The TLS settings of a server.
///
/// # Errors
/// What nginx refuses, in its words; most without a place.
pub fn server(c: &Arc<SslConf>, b: &mut Build) -> ConfResult<TlsServer> {
    let base = b.conf_prefixed("");
    let files = c.files(&base);
    let loader = b.shared::<SharedLoader>().clone();
    let mut m = Making {
        loader: &mut loader.lock(),
        base: &base,
        warnings: Vec::new(),
        lenient: b.start_degraded,
    };
    let made = make(c, &mut m);
    let warnings = m.warnings;
    for w in warnings {
        b.warn(w);
    }
    let mut out = made?;
    let interval = c.watch.unwrap_or(Some(WATCH));
    if let Some(interval) = interval.filter(|_| !files.is_empty() && out.dynamic.is_none()) {
        let c = c.clone();
        out.renew = Some(Renew {
            interval,
            files,
            make: Box::new(move |loader| {
                let mut m = Making {
                    loader,
                    base: &base,
                    warnings: Vec::new(),
                    lenient: false,
                };
                let made = make(&c, &mut m).map_err(|e| e.first_line())?;
                Ok(made.context.swap(None))
            }),
        });
    }
    Ok(out)
}

/// How often files are looked at where `ssl_certificate_watch` says nothing.
pub(super) const WATCH: Duration = Duration::from_secs(5);

fn make(c: &SslConf, m: &mut Making<'_>) -> ConfResult<TlsServer> {
    let mut out = TlsServer {
        certified: c.has_certificates(),
        enabled: c.is_enabled(),
        reject: c.rejects(),
        verify: c.verify.unwrap_or_default(),
        zone: c.zone.clone(),
        ..TlsServer::default()
    };
    if let Some(list) = &c.certificates {
        let keys = c.keys.as_ref().map_or(0, Vec::len);
        if keys < list.len() {
            let last = list
                .last()
                .map(|n| String::from_utf8_lossy(&n.text).into_owned())
                .unwrap_or_default();
            return Err(Diag::plain(format!(
                "no \"ssl_certificate_key\" is defined for certificate \"{last}\""
            )));
        }
    } else if !out.reject {
        return Ok(out);
    }
    error::clear();
    let mut ctx = base(c)?;
    let loaded = certificates(c, &mut ctx, &mut out, m)?;
    let leaves: Vec<X509> = loaded
        .iter()
        .filter_map(|(_, chain)| chain.first().cloned())
        .collect();
    if let Some(size) = c.buffer_size.filter(|n| (512..16_384).contains(n)) {
        ffi::set_record_size(&mut ctx, size as usize);
    }
    let mut authorities = Vec::new();
    verification(c, &mut ctx, &mut authorities, out.verify, m)?;
    out.ocsp = client_ocsp(c)?;
    if let Some(file) = c.dhparam.as_deref().filter(|f| !f.is_empty()) {
        let path = m.path(file);
        ffi::set_dh(&mut ctx, &path)
            .map_err(|call| failed(format!("{call}(\"{}\") failed", path.display())))?;
    }
    if c.ech_files.is_some() {
        m.warn("\"ssl_ech_file\" is not supported on this platform, ignored");
    }
    let curve = c.curve.as_deref().unwrap_or("auto");
    if curve != "auto" {
        groups(&mut ctx, curve)?;
    }
    sessions(c, &mut ctx, &mut out, &leaves, &authorities, m)?;
    if c.stapling == Some(true) {
        stapling(c, &mut ctx, &loaded, m)?;
    }
    if let Some(commands) = &c.commands {
        context::conf_commands(&mut ctx, commands, m.base).map_err(Diag::plain)?;
    }
    if let Some(path) = &c.key_log {
        let file = LogFiles::global()
            .open(path)
            .map_err(|e| Diag::plain(e.to_string()))?;
        context::log_keys(&mut ctx, file);
    }
    if c.early_data == Some(true) {
        // nginx's NGX_SSL_BUFSIZE
        ctx.set_max_early_data(16 * 1024)
            .map_err(|e| stack("SSL_CTX_set_max_early_data() failed", &e))?;
    }
    let leaf =
        |(name, chain): &(String, Chain)| Some((name.as_str().into(), chain.first()?.clone()));
    out.context.store(Some(Arc::new(ServerContext {
        context: ctx.build(),
        certificates: loaded.iter().filter_map(leaf).collect(),
    })));
    error::clear();
    Ok(out)
}

/// `ssl_ecdh_curve`.
fn groups(ctx: &mut SslContextBuilder, list: &str) -> ConfResult<()> {
    let call = format!("SSL_CTX_set1_curves_list(\"{list}\") failed");
    if list.contains('\0') {
        return Err(Diag::plain(call));
    }
    let Err(e) = ctx.set_groups_list(list) else {
        return Ok(());
    };
    if !e.errors().is_empty() {
        return Err(stack(call, &e));
    }
    // newer releases of OpenSSL leave no reason; this is that of those before
    let mut names = list.split(':');
    let bad = names.find(|name| ctx.set_groups_list(name).is_err());
    Err(Diag::plain(format!(
        "{call} (SSL: error:0A080106:SSL routines::passed invalid argument:group '{}' cannot be set)",
        bad.unwrap_or(list)
    )))
}

fn failed(text: impl Into<String>) -> Box<Diag> {
    Diag::plain(error::failure(text))
}

fn stack(text: impl Into<String>, e: &openssl::error::ErrorStack) -> Box<Diag> {
    Diag::plain(error::describe(text, e))
}

/// A context with options, protocols, ciphers and callbacks.
fn base(c: &SslConf) -> ConfResult<SslContextBuilder> {
    let protocols = c.protocols.unwrap_or(DEFAULT_PROTOCOLS);
    let mut ctx = context::base(SslMethod::tls_server(), protocols).map_err(Diag::plain)?;
    accept::install(&mut ctx);
    accept::verify_later(&mut ctx, SslVerifyMode::NONE);
    let ciphers = c.ciphers.as_deref().unwrap_or("HIGH:!aNULL:!MD5");
    context::ciphers(&mut ctx, ciphers).map_err(Diag::plain)?;
    if c.prefer_server_ciphers == Some(true) {
        ctx.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
    }
    Ok(ctx)
}

/// How soon a file is looked at again that was not good at the start.
const RETRY: Duration = Duration::from_secs(2);
/// How long what it holds is kept without being used.
const FORGET: Duration = Duration::from_secs(600);

/// Loads the certificates, or leaves those with variables to the handshake.
fn certificates(
    c: &SslConf,
    ctx: &mut SslContextBuilder,
    out: &mut TlsServer,
    m: &mut Making<'_>,
) -> ConfResult<Vec<(String, Chain)>> {
    let (Some(list), Some(keys)) = (&c.certificates, &c.keys) else {
        return Ok(Vec::new());
    };
    let pairs = list.iter().zip(keys);
    let dynamic = |n: &Named| n.template.as_literal().is_none();
    let at_handshake = |cache, base| DynamicCertificates {
        pairs: pairs
            .clone()
            .map(|(c, k)| (c.template.clone(), k.template.clone()))
            .collect(),
        by_name: ByName {
            base,
            passwords: c.passwords.as_ref().map(|p| p.to_vec()).unwrap_or_default(),
            cache,
        },
    };
    if pairs.clone().any(|(c, k)| dynamic(c) || dynamic(k)) {
        let cache = c.cache.clone().flatten();
        out.dynamic = Some(at_handshake(cache, m.base.to_path_buf()));
        ffi::set_certificate_callback(ctx);
        return Ok(Vec::new());
    }
    let base = m.base;
    let mut loaded = Vec::with_capacity(list.len());
    for (certificate, key) in pairs.clone() {
        let (name, key_name) = (
            Name::parse(&certificate.text, base),
            Name::parse(&key.text, base),
        );
        let passwords = c.passwords.as_deref().map(Vec::as_slice);
        match context::pair(ctx, m.loader, &name, &key_name, passwords) {
            Ok(chain) => loaded.push((name.shown(), chain)),
            Err(e) => {
                let written = if e.key { key } else { certificate };
                let error = written.at.error_at(0, e.text).unplaced();
                if !m.lenient {
                    return Err(error);
                }
                m.warnings.push(error);
                // handshakes look for the files themselves, and are refused until they are good
                let cache = Arc::new(Cache::new(2 * list.len(), RETRY, FORGET));
                out.dynamic = Some(at_handshake(Some(cache), base.to_path_buf()));
                ffi::set_certificate_callback(ctx);
                return Ok(Vec::new());
            }
        }
    }
    if c.compression == Some(true) && !ffi::compress_certificates(ctx) {
        let text = error::failure("SSL_CTX_compress_certs() failed, ignored");
        m.warn(text);
    }
    Ok(loaded)
}

/// Clients' certificates: authorities, depth and revocation.
fn verification(
    c: &SslConf,
    ctx: &mut SslContextBuilder,
    names: &mut Vec<X509>,
    verify: VerifyClient,
    m: &mut Making<'_>,
) -> ConfResult<()> {
    let (client, trusted) = (given(&c.client_certificate), given(&c.trusted_certificate));
    let depth = u32::try_from(c.verify_depth.unwrap_or(1)).unwrap_or(u32::MAX >> 1);
    if verify != VerifyClient::Off {
        if verify != VerifyClient::OptionalNoCa && client.is_none() && trusted.is_none() {
            return Err(Diag::plain(
                "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
            ));
        }
        accept::verify_later(ctx, SslVerifyMode::PEER);
        if let Some(file) = client {
            let list = trust(ctx, file, m)?;
            for cert in list.iter() {
                let der = cert.subject_name().to_der().unwrap_or_default();
                if names
                    .iter()
                    .any(|n: &X509| n.subject_name().to_der().is_ok_and(|d| d == der))
                {
                    continue;
                }
                ctx.add_client_ca(cert)
                    .map_err(|e| stack(format!("SSL_CTX_add_client_CA(\"{file}\") failed"), &e))?;
                names.push(cert.clone());
            }
        }
    }
    ctx.set_verify_depth(depth);
    if let Some(file) = trusted {
        trust(ctx, file, m)?;
    }
    if let Some(file) = given(&c.crl) {
        let path = m.path(file);
        context::revoke(ctx, m.loader, &path).map_err(Diag::plain)?;
    }
    Ok(())
}

/// `ssl_ocsp`: how clients' certificates are asked about.
fn client_ocsp(c: &SslConf) -> ConfResult<Option<Arc<ClientOcsp>>> {
    let depth = match c.ocsp {
        None | Some(0) => return Ok(None),
        Some(1) => None,
        Some(_) => Some(1),
    };
    if c.verify == Some(VerifyClient::OptionalNoCa) {
        return Err(Diag::plain(
            "\"ssl_ocsp\" is incompatible with \"ssl_verify_client optional_no_ca\"",
        ));
    }
    let responder = given(&c.ocsp_responder).map(|url| {
        Responder::resolved(url).map_err(|e| Diag::plain(format!("{e} in \"ssl_ocsp_responder\"")))
    });
    Ok(Some(Arc::new(ClientOcsp {
        depth,
        responder: responder.transpose()?,
        cache: c.ocsp_cache.clone().flatten(),
    })))
}

/// Adds the certificates of a file to the context's store.
fn trust(ctx: &mut SslContextBuilder, file: &str, m: &mut Making<'_>) -> ConfResult<Chain> {
    let path = m.path(file);
    context::trust(ctx, m.loader, &path).map_err(Diag::plain)
}

/// Caches of sessions, and tickets.
fn sessions(
    c: &SslConf,
    ctx: &mut SslContextBuilder,
    out: &mut TlsServer,
    leaves: &[X509],
    authorities: &[X509],
    m: &Making<'_>,
) -> ConfResult<()> {
    let timeout = c.session_timeout.unwrap_or(300);
    ffi::set_timeout(ctx, timeout);
    let id = session_context(c, leaves, authorities)
        .map_err(|e| stack("EVP_DigestFinal_ex() failed", &e))?;
    ctx.set_session_id_context(&id)
        .map_err(|e| stack("SSL_CTX_set_session_id_context() failed", &e))?;
    match c.builtin.unwrap_or(Builtin::None) {
        Builtin::Off => {
            ctx.set_session_cache_mode(SslSessionCacheMode::OFF);
        }
        Builtin::None => {
            // clients are told that sessions can be reused, but none is kept
            ctx.set_session_cache_mode(
                SslSessionCacheMode::SERVER
                    | SslSessionCacheMode::NO_AUTO_CLEAR
                    | SslSessionCacheMode::NO_INTERNAL_STORE,
            );
            ctx.set_session_cache_size(1);
        }
        builtin => {
            let mut mode = SslSessionCacheMode::SERVER;
            if c.zone.is_some() && builtin == Builtin::Unused {
                mode |= SslSessionCacheMode::NO_INTERNAL;
            }
            ctx.set_session_cache_mode(mode);
            if let Builtin::Size(Some(n)) = builtin {
                ctx.set_session_cache_size(n);
            }
            if let Some(zone) = &c.zone {
                ffi::share_sessions(ctx, zone, timeout);
            }
        }
    }
    if c.session_tickets == Some(false) {
        ctx.set_options(SslOptions::NO_TICKET);
    }
    let uses_zone = !matches!(c.builtin, None | Some(Builtin::Off | Builtin::None));
    out.tickets = match &c.ticket_keys {
        Some(files) => Some(Tickets::Files(
            files
                .iter()
                .map(|(file, at)| ticket_key(file, at, m))
                .collect::<ConfResult<Vec<_>>>()?
                .into(),
        )),
        None => c
            .zone
            .clone()
            .filter(|_| uses_zone)
            .map(|z| Tickets::Zone(z, timeout)),
    };
    if out.tickets.is_some() {
        ffi::set_ticket_callback(ctx);
    }
    Ok(())
}

/// What sessions must have in common: the certificates and the authorities of clients.
fn session_context(
    c: &SslConf,
    leaves: &[X509],
    authorities: &[X509],
) -> Result<Vec<u8>, openssl::error::ErrorStack> {
    let sha1 = MessageDigest::sha1();
    let mut all = b"HTTP".to_vec();
    for cert in leaves {
        all.extend_from_slice(&cert.digest(sha1)?);
    }
    if leaves.is_empty() {
        all.extend(
            c.certificates
                .iter()
                .flatten()
                .flat_map(|n| n.text.iter().copied()),
        );
    }
    for cert in authorities {
        all.extend_from_slice(&hash(sha1, &cert.subject_name().to_der()?)?);
    }
    Ok(hash(sha1, &all)?.to_vec())
}

/// A key of tickets; nginx reports what is wrong with it where settings are merged.
fn ticket_key(file: &str, at: &Statement, m: &Making<'_>) -> ConfResult<TicketKey> {
    let path = m.path(file);
    let shown = path.display();
    let text = crate::config::load_inputs::read(&path).map_err(|e| {
        let errno = crate::log::Errno::of(&e);
        at.error_at(0, format!("open() \"{shown}\" failed{errno}"))
    })?;
    TicketKey::from_file(&text)
        .ok_or_else(|| at.error_at(0, format!("\"{shown}\" must be 48 or 80 bytes")))
}

/// `ssl_stapling`: a file, or the responders of the certificates.
fn stapling(
    c: &SslConf,
    ctx: &mut SslContextBuilder,
    loaded: &[(String, Chain)],
    m: &mut Making<'_>,
) -> ConfResult<()> {
    if c.compression == Some(true) {
        return Err(Diag::plain(
            "\"ssl_stapling\" is incompatible with \"ssl_certificate_compression\"",
        ));
    }
    let refused = |e| stack("SSL_CTX_set_tlsext_status_cb() failed", &e);
    if let Some(file) = given(&c.stapling_file) {
        let path = m.path(file);
        let der = crate::config::load_inputs::read(&path).map_err(|e| {
            let (shown, errno) = (path.display(), e.raw_os_error().unwrap_or(libc::EIO));
            let reason = crate::log::Errno(errno).to_string();
            let reason = reason.split_once(": ").map_or("", |(_, text)| text);
            // in the words of OpenSSL, which does not read the file itself
            let code = 0x8000_0000u32 | errno.unsigned_abs();
            let file = match errno {
                libc::ENOENT => "no such file",
                _ => "system lib",
            };
            let bio = if errno == libc::ENOENT { 0x1000_0080 } else { 0x1008_0002 };
            Diag::plain(format!(
                "BIO_new_file(\"{shown}\") failed (SSL: error:{code:08X}:system library::{}:calling fopen({shown}, rb) error:{bio:08X}:BIO routines::{file})",
                reason.trim_end_matches(')')
            ))
        })?;
        openssl::ocsp::OcspResponse::from_der(&der).map_err(|e| {
            stack(
                format!("d2i_OCSP_RESPONSE_bio(\"{}\") failed", path.display()),
                &e,
            )
        })?;
        return ctx
            .set_status_callback(move |ssl| ssl.set_ocsp_status(&der).map(|()| true))
            .map_err(refused);
    }
    let mut trusted = Vec::new();
    let client =
        given(&c.client_certificate).filter(|_| c.verify.is_some_and(|v| v != VerifyClient::Off));
    for file in client.into_iter().chain(given(&c.trusted_certificate)) {
        let path = m.path(file);
        trusted.extend_from_slice(&m.loader.authorities(&path).map_err(Diag::plain)?);
    }
    let mut staples = Vec::new();
    for (name, chain) in loaded {
        match Staple::new(
            name,
            chain,
            &trusted,
            given(&c.stapling_responder),
            c.stapling_verify == Some(true),
        ) {
            Ok(s) => staples.push(Arc::new(s)),
            Err(why) => m.warn(format!("\"ssl_stapling\" ignored, {why}")),
        }
    }
    stapling::install(ctx, staples).map_err(refused)
}

/// A parameter that is not empty.
fn given(file: &Option<String>) -> Option<&str> {
    file.as_deref().filter(|f| !f.is_empty())
}
