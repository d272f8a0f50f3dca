//! What contexts have in common, towards clients and towards origins. Errors are nginx's texts.

use super::load::{Chain, Loader, Name};
use super::{error, ffi};
use crate::log::LogFile;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions};
use std::path::Path;
use std::sync::Arc;

/// The names of protocols in `ssl_protocols`, as bits.
pub const PROTOCOLS: &[(&str, u32)] = &[
    ("SSLv2", 1),
    ("SSLv3", 1 << 1),
    ("TLSv1", 1 << 2),
    ("TLSv1.1", 1 << 3),
    ("TLSv1.2", 1 << 4),
    ("TLSv1.3", 1 << 5),
];

/// TLSv1.2 and TLSv1.3.
pub const DEFAULT_PROTOCOLS: u32 = (1 << 4) | (1 << 5);

/// A peer that closes without close_notify is no error.
const IGNORE_UNEXPECTED_EOF: u64 = 1 << 7;
/// Replays of early data are not searched for: `$ssl_early_data` tells whoever must know.
const NO_ANTI_REPLAY: u64 = 1 << 24;

/// Certificates are compressed only where `ssl_certificate_compression` asks for it, and are not taken compressed.
pub(super) const NO_TX_COMPRESSION: u64 = 1 << 32;
const NO_RX_COMPRESSION: u64 = 1 << 33;

/// A context with nginx's options and these protocols (bits of [`PROTOCOLS`]).
///
/// # Errors
/// nginx's text.
pub fn base(method: SslMethod, protocols: u32) -> Result<SslContextBuilder, String> {
    let mut ctx = SslContext::builder(method).map_err(|e| stack("SSL_CTX_new() failed", &e))?;
    let versions = [
        (1 << 1, SslOptions::NO_SSLV3),
        (1 << 2, SslOptions::NO_TLSV1),
        (1 << 3, SslOptions::NO_TLSV1_1),
        (1 << 4, SslOptions::NO_TLSV1_2),
        (1 << 5, SslOptions::NO_TLSV1_3),
    ];
    for (bit, option) in versions {
        if protocols & bit == 0 {
            ctx.set_options(option);
        } else {
            ctx.clear_options(option);
        }
    }
    let _ = ctx.set_min_proto_version(None);
    let _ = ctx.set_max_proto_version(None);
    ctx.set_options(
        SslOptions::SINGLE_DH_USE
            | SslOptions::SINGLE_ECDH_USE
            | SslOptions::NO_COMPRESSION
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::from_bits_retain(
                IGNORE_UNEXPECTED_EOF | NO_ANTI_REPLAY | NO_TX_COMPRESSION | NO_RX_COMPRESSION,
            ),
    );
    ctx.set_mode(
        SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::AUTO_RETRY
            | SslMode::NO_AUTO_CHAIN
            | SslMode::RELEASE_BUFFERS,
    );
    ctx.set_read_ahead(true);
    Ok(ctx)
}

/// `ssl_ciphers`.
///
/// # Errors
/// nginx's text.
pub fn ciphers(ctx: &mut SslContextBuilder, list: &str) -> Result<(), String> {
    ctx.set_cipher_list(list)
        .map_err(|e| stack(format!("SSL_CTX_set_cipher_list(\"{list}\") failed"), &e))
}

/// Why a pair was refused.
pub struct Unfit {
    /// nginx's text.
    pub text: String,
    /// Whether the key is at fault, not the certificate.
    pub key: bool,
}

/// Loads one certificate with its key, and gives it to a context.
///
/// # Errors
/// Which of the two is at fault, and how.
pub fn pair(
    ctx: &mut SslContextBuilder,
    loader: &mut Loader,
    certificate: &Name,
    key: &Name,
    passwords: Option<&[Vec<u8>]>,
) -> Result<Chain, Unfit> {
    let of_chain = |text| Unfit { text, key: false };
    let of_key = |text| Unfit { text, key: true };
    let mut chain = loader.chain(certificate).map_err(of_chain)?;
    let mut pkey = loader.key(key, passwords).map_err(of_key)?;
    if !fits(&chain, &pkey) {
        // files that were replaced one after the other get a second look
        loader.forget(certificate, key);
        chain = loader.chain(certificate).map_err(of_chain)?;
        pkey = loader.key(key, passwords).map_err(of_key)?;
    }
    give(ctx, &chain, certificate).map_err(of_chain)?;
    ctx.set_private_key(&pkey).map_err(|e| {
        let name = key.shown();
        of_key(stack(
            format!("SSL_CTX_use_PrivateKey(\"{name}\") failed"),
            &e,
        ))
    })?;
    Ok(chain)
}

/// Whether a key belongs to the first certificate of a chain.
pub fn fits(chain: &Chain, key: &PKey<Private>) -> bool {
    chain
        .first()
        .and_then(|leaf| leaf.public_key().ok())
        .is_none_or(|public| public.public_eq(key))
}

/// Gives a context a certificate with its chain.
fn give(ctx: &mut SslContextBuilder, chain: &Chain, name: &Name) -> Result<(), String> {
    let shown = name.shown();
    let Some((leaf, rest)) = chain.split_first() else {
        return Err(format!("no certificate in \"{shown}\""));
    };
    ctx.set_certificate(leaf)
        .map_err(|e| stack(format!("SSL_CTX_use_certificate(\"{shown}\") failed"), &e))?;
    for c in rest {
        if !ffi::add_chain(ctx, c) {
            return Err(error::failure(format!(
                "SSL_CTX_set0_chain(\"{shown}\") failed"
            )));
        }
    }
    Ok(())
}

/// Adds the certificates of a file to a context's store.
///
/// # Errors
/// nginx's text.
pub fn trust(
    ctx: &mut SslContextBuilder,
    loader: &mut Loader,
    path: &Path,
) -> Result<Chain, String> {
    let list = loader.authorities(path)?;
    for cert in list.iter() {
        ctx.cert_store_mut().add_cert(cert.clone()).map_err(|e| {
            let path = path.display();
            stack(format!("X509_STORE_add_cert(\"{path}\") failed"), &e)
        })?;
    }
    Ok(list)
}

/// `ssl_crl`: has chains checked against the revocation lists of a file.
///
/// # Errors
/// nginx's text.
pub fn revoke(ctx: &mut SslContextBuilder, loader: &mut Loader, path: &Path) -> Result<(), String> {
    let text = loader.revoked(path);
    // OpenSSL words the error of a file that cannot be read
    let source = text
        .as_deref()
        .map_or(ffi::Source::Path(path), ffi::Source::Data);
    ffi::add_crls(ctx, source).map_err(|call| {
        let shown = path.display();
        error::failure(match call {
            "X509_STORE_add_crl() failed" => format!("X509_STORE_add_crl(\"{shown}\") failed"),
            call => format!("cannot load CRL \"{shown}\": {call}"),
        })
    })
}

/// `ssl_conf_command`, in order; relative names of files begin at `base`.
///
/// # Errors
/// nginx's text.
pub fn conf_commands(
    ctx: &mut SslContextBuilder,
    commands: &[(String, String)],
    base: &Path,
) -> Result<(), String> {
    let resolved = |f: &str| base.join(f).display().to_string();
    ffi::conf_commands(ctx, commands, resolved).map_err(|e| match e {
        ffi::Refused::Command(i) => {
            let (name, value) = commands.get(i).cloned().unwrap_or_default();
            error::failure(format!("SSL_CONF_cmd(\"{name}\", \"{value}\") failed"))
        }
        ffi::Refused::Finish => error::failure("SSL_CONF_finish() failed"),
    })
}

/// `ssl_key_log`: writes the secrets of handshakes in the form of SSLKEYLOGFILE.
pub fn log_keys(ctx: &mut SslContextBuilder, file: Arc<LogFile>) {
    ctx.set_keylog_callback(move |_, line| {
        let mut text = Vec::with_capacity(line.len() + 1);
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        let _ = file.append(&text);
    });
}

fn stack(text: impl Into<String>, e: &ErrorStack) -> String {
    error::describe(text, e)
}
