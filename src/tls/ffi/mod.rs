//! What the openssl crate does not wrap: the only folder of `tls` with unsafe code.

#![allow(unsafe_code)]

mod offers;
mod pem;

pub use offers::{curve, offered_ciphers, offered_curves, offered_sigalgs, sigalg};
pub use pem::{Call, Source, add_crls, read_authorities, read_chain, read_key, set_dh};

use super::accept;
use super::session::{TicketKey, Zone};
use foreign_types::ForeignTypeRef;
use libc::{c_char, c_int, c_long, c_uchar, c_uint, c_ulong, c_void, size_t, time_t};
use pem::Bio;
use pingora::tls::ssl::{SslContextBuilder, SslContextRef, SslRef, SslSession, SslVersion};
use pingora::tls::ssl_sys as sys;
use pingora::tls::x509::{X509NameRef, X509Ref};
use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::Arc;

type TicketCallback = unsafe extern "C" fn(
    *mut sys::SSL,
    *mut c_uchar,
    *mut c_uchar,
    *mut sys::EVP_CIPHER_CTX,
    *mut c_void,
    c_int,
) -> c_int;

#[repr(C)]
struct Param {
    key: *const c_char,
    data_type: c_uint,
    data: *mut c_void,
    data_size: size_t,
    return_size: size_t,
}

unsafe extern "C" {
    fn X509_NAME_print_ex(
        out: *mut sys::BIO,
        name: *const sys::X509_NAME,
        indent: c_int,
        flags: c_ulong,
    ) -> c_int;
    fn X509_NAME_oneline(name: *const sys::X509_NAME, buf: *mut c_char, size: c_int)
    -> *mut c_char;
    fn ASN1_TIME_diff(
        days: *mut c_int,
        seconds: *mut c_int,
        from: *const sys::ASN1_TIME,
        to: *const sys::ASN1_TIME,
    ) -> c_int;
    fn ERR_error_string_n(e: c_ulong, buf: *mut c_char, len: size_t);
    fn OBJ_nid2sn(n: c_int) -> *const c_char;
    fn CRYPTO_free(p: *mut c_void, file: *const c_char, line: c_int);

    fn SSL_CTX_set_timeout(ctx: *mut sys::SSL_CTX, t: c_long) -> c_long;
    fn SSL_CTX_get_timeout(ctx: *const sys::SSL_CTX) -> c_long;
    fn SSL_CTX_set_cert_cb(
        ctx: *mut sys::SSL_CTX,
        cb: Option<unsafe extern "C" fn(*mut sys::SSL, *mut c_void) -> c_int>,
        arg: *mut c_void,
    );
    fn SSL_CTX_set_info_callback(
        ctx: *mut sys::SSL_CTX,
        cb: Option<unsafe extern "C" fn(*const sys::SSL, c_int, c_int)>,
    );
    fn SSL_CTX_set_tlsext_ticket_key_evp_cb(
        ctx: *mut sys::SSL_CTX,
        cb: Option<TicketCallback>,
    ) -> c_int;
    fn SSL_CTX_get_options(ctx: *const sys::SSL_CTX) -> u64;
    fn SSL_get_options(ssl: *const sys::SSL) -> u64;
    fn SSL_set_options(ssl: *mut sys::SSL, options: u64) -> u64;
    fn SSL_clear_options(ssl: *mut sys::SSL, options: u64) -> u64;
    fn SSL_CTX_compress_certs(ctx: *mut sys::SSL_CTX, algorithm: c_int) -> c_int;
    fn SSL_CTX_clear_options(ctx: *mut sys::SSL_CTX, options: u64) -> u64;
    fn SSL_CTX_get_num_tickets(ctx: *const sys::SSL_CTX) -> size_t;
    fn SSL_set_num_tickets(ssl: *mut sys::SSL, n: size_t) -> c_int;
    fn SSL_CTX_sess_get_new_cb(
        ctx: *mut sys::SSL_CTX,
    ) -> Option<unsafe extern "C" fn(*mut sys::SSL, *mut sys::SSL_SESSION) -> c_int>;
    fn SSL_CTX_get_verify_depth(ctx: *const sys::SSL_CTX) -> c_int;
    fn SSL_set_verify_depth(ssl: *mut sys::SSL, depth: c_int);
    fn SSL_SESSION_get_time(s: *const sys::SSL_SESSION) -> c_long;
    fn SSL_SESSION_set_time(s: *mut sys::SSL_SESSION, t: c_long) -> c_long;
    fn SSL_SESSION_get_timeout(s: *const sys::SSL_SESSION) -> c_long;
    fn SSL_SESSION_set_timeout(s: *mut sys::SSL_SESSION, t: c_long) -> c_long;
    fn SSL_SESSION_set1_id_context(
        s: *mut sys::SSL_SESSION,
        id: *const c_uchar,
        len: c_uint,
    ) -> c_int;
    fn SSL_get_session(ssl: *const sys::SSL) -> *mut sys::SSL_SESSION;
    fn X509_check_host(
        x: *mut sys::X509,
        name: *const c_char,
        len: size_t,
        flags: c_uint,
        peer: *mut *mut c_char,
    ) -> c_int;
    fn SSL_is_init_finished(ssl: *const sys::SSL) -> c_int;
    fn SSL_version(ssl: *const sys::SSL) -> c_int;
    fn SSL_group_to_name(ssl: *mut sys::SSL, id: c_int) -> *const c_char;
    fn SSL_get_sigalgs(
        ssl: *mut sys::SSL,
        i: c_int,
        sign: *mut c_int,
        hash: *mut c_int,
        both: *mut c_int,
        rsig: *mut c_uchar,
        rhash: *mut c_uchar,
    ) -> c_int;
    fn SSL_CIPHER_find(ssl: *mut sys::SSL, p: *const c_uchar) -> *const sys::SSL_CIPHER;
    fn SSL_CONF_CTX_new() -> *mut c_void;
    fn SSL_CONF_CTX_free(c: *mut c_void);
    fn SSL_CONF_CTX_set_flags(c: *mut c_void, flags: c_uint) -> c_uint;
    fn SSL_CONF_CTX_set_ssl_ctx(c: *mut c_void, ctx: *mut sys::SSL_CTX);
    fn SSL_CONF_cmd(c: *mut c_void, name: *const c_char, value: *const c_char) -> c_int;
    fn SSL_CONF_cmd_value_type(c: *mut c_void, name: *const c_char) -> c_int;
    fn SSL_CONF_CTX_finish(c: *mut c_void) -> c_int;
    fn EVP_MAC_CTX_set_params(ctx: *mut c_void, params: *const Param) -> c_int;
}

const CTRL_CHAIN_CERT: c_int = 89;
const CTRL_SET_MAX_SEND_FRAGMENT: c_int = 52;
const CTRL_GET_GROUPS: c_int = 90;
const CTRL_GET_RAW_CIPHERLIST: c_int = 110;
const CTRL_GET_NEGOTIATED_GROUP: c_int = 134;
const CTRL_GET_SIGNATURE_NAME: c_int = 140;
const CTRL_GET_PEER_SIGNATURE_NAME: c_int = 141;
const UNKNOWN_GROUP: c_int = 0x0100_0000;
const XN_FLAG_RFC2253: c_ulong = 0x0111_0317;

/// Adds a certificate to the chain of the one that was set last.
pub fn add_chain(ctx: &mut SslContextBuilder, cert: &X509Ref) -> bool {
    // SAFETY: with 1 the context takes a reference of its own.
    unsafe { sys::SSL_CTX_ctrl(ctx.as_ptr(), CTRL_CHAIN_CERT, 1, cert.as_ptr().cast()) == 1 }
}

/// `ssl_buffer_size`: the size of records that are sent.
pub fn set_record_size(ctx: &mut SslContextBuilder, size: usize) {
    // SAFETY: plain call; sizes outside 512..16384 are refused.
    unsafe {
        sys::SSL_CTX_ctrl(
            ctx.as_ptr(),
            CTRL_SET_MAX_SEND_FRAGMENT,
            size as c_long,
            ptr::null_mut(),
        )
    };
}

/// `ssl_certificate_compression`: compresses the context's certificates, once, with each algorithm that OpenSSL was
/// built with (RFC 8879). False where there is none.
pub fn compress_certificates(ctx: &mut SslContextBuilder) -> bool {
    // SAFETY: plain calls; 0 stands for every algorithm.
    unsafe {
        let done = SSL_CTX_compress_certs(ctx.as_ptr(), 0) == 1;
        if done {
            SSL_CTX_clear_options(ctx.as_ptr(), super::context::NO_TX_COMPRESSION);
        }
        done
    }
}

/// `ssl_session_timeout`, seconds.
pub fn set_timeout(ctx: &mut SslContextBuilder, seconds: u64) {
    // SAFETY: plain call.
    unsafe {
        SSL_CTX_set_timeout(
            ctx.as_ptr(),
            c_long::try_from(seconds).unwrap_or(c_long::MAX),
        )
    };
}

/// Why an `ssl_conf_command` was refused.
pub enum Refused {
    /// The command at this index.
    Command(usize),
    /// The commands as a whole.
    Finish,
}

/// `ssl_conf_command`, in order; names of files are made absolute by `resolve`.
///
/// # Errors
/// Which command.
pub fn conf_commands(
    ctx: &mut SslContextBuilder,
    commands: &[(String, String)],
    resolve: impl Fn(&str) -> String,
) -> Result<(), Refused> {
    // FILE | CLIENT | SERVER | SHOW_ERRORS | CERTIFICATE
    const FLAGS: c_uint = 0x2 | 0x4 | 0x8 | 0x10 | 0x20;
    struct Conf(*mut c_void);
    impl Drop for Conf {
        fn drop(&mut self) {
            // SAFETY: owned.
            unsafe { SSL_CONF_CTX_free(self.0) }
        }
    }
    // SAFETY: all strings end with a NUL and live across the calls.
    unsafe {
        let conf = Conf(SSL_CONF_CTX_new());
        if conf.0.is_null() {
            return Err(Refused::Finish);
        }
        SSL_CONF_CTX_set_flags(conf.0, FLAGS);
        SSL_CONF_CTX_set_ssl_ctx(conf.0, ctx.as_ptr());
        for (i, (name, value)) in commands.iter().enumerate() {
            let Ok(key) = CString::new(&**name) else {
                return Err(Refused::Command(i));
            };
            // SSL_CONF_TYPE_FILE, SSL_CONF_TYPE_DIR
            let path = matches!(SSL_CONF_cmd_value_type(conf.0, key.as_ptr()), 2 | 3);
            let text = if path { resolve(value) } else { value.clone() };
            let Ok(text) = CString::new(text) else {
                return Err(Refused::Command(i));
            };
            if SSL_CONF_cmd(conf.0, key.as_ptr(), text.as_ptr()) <= 0 {
                return Err(Refused::Command(i));
            }
        }
        if SSL_CONF_CTX_finish(conf.0) == 1 {
            Ok(())
        } else {
            Err(Refused::Finish)
        }
    }
}

/// Calls [`accept::Hooks::certificates`] when a handshake needs a certificate.
pub fn set_certificate_callback(ctx: &mut SslContextBuilder) {
    unsafe extern "C" fn call(ssl: *mut sys::SSL, _: *mut c_void) -> c_int {
        // SAFETY: OpenSSL passes the connection that it is working on.
        let ssl = unsafe { SslRef::from_ptr_mut(ssl) };
        c_int::from(accept::certificates(ssl))
    }
    // SAFETY: the function needs no argument.
    unsafe { SSL_CTX_set_cert_cb(ctx.as_ptr(), Some(call), ptr::null_mut()) };
}

/// Keeps a TLS 1.3 session from living on by being resumed: its age counts from the first handshake. Lets go of what
/// only the handshake needs once it is over.
pub fn set_progress_callback(ctx: &mut SslContextBuilder) {
    // SSL_CB_ACCEPT_LOOP
    const LOOP: c_int = 0x2001;
    // SSL_CB_HANDSHAKE_DONE
    const DONE: c_int = 0x20;
    const TLS13: c_int = 0x304;
    unsafe extern "C" fn call(ssl: *const sys::SSL, place: c_int, _: c_int) {
        // SAFETY: OpenSSL passes the connection that it is working on; its session is alive with it.
        unsafe {
            if place & DONE != 0 {
                accept::over(SslRef::from_ptr_mut(ssl.cast_mut()));
                return;
            }
            if place & LOOP != LOOP || SSL_version(ssl) != TLS13 {
                return;
            }
            let session = SSL_get_session(ssl);
            let conn = SslRef::from_ptr_mut(ssl.cast_mut());
            if session.is_null() || !accept::first_time(conn) {
                return;
            }
            let now = crate::http::date::time().0 as c_long;
            let age = now - SSL_SESSION_get_time(session);
            let timeout = SSL_SESSION_get_timeout(session).min(accept::timeout(conn));
            if age >= timeout {
                SSL_SESSION_set1_id_context(session, c"".as_ptr().cast(), 0);
            } else {
                SSL_SESSION_set_time(session, now);
                SSL_SESSION_set_timeout(session, timeout - age);
            }
        }
    }
    // SAFETY: the function has the right type.
    unsafe { SSL_CTX_set_info_callback(ctx.as_ptr(), Some(call)) };
}

/// The timeout of a context's sessions, seconds.
pub fn timeout(ctx: &SslContextRef) -> c_long {
    // SAFETY: plain call.
    unsafe { SSL_CTX_get_timeout(ctx.as_ptr()) }
}

/// Keeps sessions in a zone that all contexts of its name share.
pub fn share_sessions(ctx: &mut SslContextBuilder, zone: &Arc<Zone>, timeout: u64) {
    const TLS13_WITH_TICKETS: u64 = 1 << 14;
    let z = zone.clone();
    ctx.set_new_session_callback(move |ssl, session| {
        // sessions of TLS 1.3 travel in their tickets
        if ssl.version2() == Some(SslVersion::TLS1_3) && options(ssl) & TLS13_WITH_TICKETS == 0 {
            return;
        }
        if let Ok(der) = session.to_der() {
            z.insert(session.id(), der, timeout);
        }
    });
    let z = zone.clone();
    // SAFETY: the session is made anew from its encoding for this context.
    unsafe {
        ctx.set_get_session_callback(move |_, id| {
            z.get(id).and_then(|der| SslSession::from_der(&der).ok())
        });
    }
    let z = zone.clone();
    ctx.set_remove_session_callback(move |_, session| z.remove(session.id()));
}

/// Encrypts session tickets with keys of our own.
pub fn set_ticket_callback(ctx: &mut SslContextBuilder) {
    unsafe extern "C" fn call(
        ssl: *mut sys::SSL,
        name: *mut c_uchar,
        iv: *mut c_uchar,
        cipher: *mut sys::EVP_CIPHER_CTX,
        mac: *mut c_void,
        encrypt: c_int,
    ) -> c_int {
        const IV: usize = 16;
        // SAFETY: OpenSSL passes the connection, 16 bytes of name, room for an IV, and fresh contexts.
        unsafe {
            let conn = SslRef::from_ptr_mut(ssl);
            let Some(tickets) = accept::tickets(conn) else {
                return -1;
            };
            if encrypt == 1 {
                let Some(key) = tickets.current() else {
                    return -1;
                };
                if sys::RAND_bytes(iv, IV as c_int) != 1 || !start_mac(mac, &key) {
                    return -1;
                }
                if sys::EVP_EncryptInit_ex(
                    cipher,
                    cipher_of(&key),
                    ptr::null_mut(),
                    key.aes.as_ptr(),
                    iv,
                ) != 1
                {
                    return -1;
                }
                ptr::copy_nonoverlapping(key.name.as_ptr(), name, key.name.len());
                return 1;
            }
            let Some((key, old)) = tickets.find(std::slice::from_raw_parts(name, 16)) else {
                return 0;
            };
            if !start_mac(mac, &key)
                || sys::EVP_DecryptInit_ex(
                    cipher,
                    cipher_of(&key),
                    ptr::null_mut(),
                    key.aes.as_ptr(),
                    iv,
                ) != 1
            {
                return -1;
            }
            // 2 asks for a new ticket: always in TLS 1.3, else where the key is going out of use
            if old || conn.version2() == Some(SslVersion::TLS1_3) {
                2
            } else {
                1
            }
        }
    }
    // SAFETY: the function has the right type.
    unsafe { SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx.as_ptr(), Some(call)) };
}

fn cipher_of(key: &TicketKey) -> *const sys::EVP_CIPHER {
    // SAFETY: plain calls.
    unsafe {
        if key.short {
            sys::EVP_aes_128_cbc()
        } else {
            sys::EVP_aes_256_cbc()
        }
    }
}

/// HMAC-SHA256 with the key's second half.
unsafe fn start_mac(mac: *mut c_void, key: &TicketKey) -> bool {
    let size = if key.short { 16 } else { 32 };
    let digest = c"SHA256";
    let param = |name: &CStr, data_type, data: *const c_void, data_size| Param {
        key: name.as_ptr(),
        data_type,
        data: data.cast_mut(),
        data_size,
        return_size: usize::MAX,
    };
    let params = [
        // OSSL_PARAM_OCTET_STRING, OSSL_PARAM_UTF8_STRING
        param(c"key", 5, key.hmac.as_ptr().cast(), size),
        param(c"digest", 4, digest.as_ptr().cast(), 6),
        Param {
            key: ptr::null(),
            data_type: 0,
            data: ptr::null_mut(),
            data_size: 0,
            return_size: 0,
        },
    ];
    // SAFETY: the list ends with an empty entry and lives across the call.
    unsafe { EVP_MAC_CTX_set_params(mac, params.as_ptr()) == 1 }
}

/// Random bytes from OpenSSL.
pub fn random(buf: &mut [u8]) -> bool {
    // SAFETY: the length is that of the buffer.
    unsafe { sys::RAND_bytes(buf.as_mut_ptr(), buf.len() as c_int) == 1 }
}

/// The options of a connection.
pub fn options(ssl: &SslRef) -> u64 {
    // SAFETY: plain call.
    unsafe { SSL_get_options(ssl.as_ptr()) }
}

/// Whether no session of this context's connections is kept where another connection would find it.
pub fn keeps_no_sessions(ctx: &SslContextRef) -> bool {
    const GET_SESS_CACHE_MODE: c_int = 45;
    const SERVER: c_long = 0x2;
    const NO_INTERNAL_STORE: c_long = 0x200;
    // SAFETY: plain calls.
    unsafe {
        let mode = sys::SSL_CTX_ctrl(ctx.as_ptr(), GET_SESS_CACHE_MODE, 0, ptr::null_mut());
        mode & SERVER == 0
            || mode & NO_INTERNAL_STORE != 0 && SSL_CTX_sess_get_new_cb(ctx.as_ptr()).is_none()
    }
}

/// Sends no tickets that stand for a session kept here (TLS 1.3 without `ssl_session_tickets`): none is kept.
pub fn send_no_empty_tickets(ssl: &mut SslRef) {
    const NO_TICKET: u64 = 1 << 14;
    if options(ssl) & NO_TICKET != 0 {
        // SAFETY: plain call.
        unsafe { SSL_set_num_tickets(ssl.as_ptr(), 0) };
    }
}

/// What `SSL_set_SSL_CTX` does not take over: options, the depth of verification, the number of tickets.
pub fn adopt(ssl: &mut SslRef, ctx: &SslContextRef) {
    // SAFETY: plain calls on valid objects.
    unsafe {
        let wanted = SSL_CTX_get_options(ctx.as_ptr());
        SSL_clear_options(ssl.as_ptr(), SSL_get_options(ssl.as_ptr()) & !wanted);
        SSL_set_options(ssl.as_ptr(), wanted);
        SSL_set_verify_depth(ssl.as_ptr(), SSL_CTX_get_verify_depth(ctx.as_ptr()));
        SSL_set_num_tickets(ssl.as_ptr(), SSL_CTX_get_num_tickets(ctx.as_ptr()));
    }
}

/// Whether the handshake is over.
pub fn is_finished(ssl: &SslRef) -> bool {
    // SAFETY: plain call.
    unsafe { SSL_is_init_finished(ssl.as_ptr()) == 1 }
}

/// Offers to resume a session (its DER encoding), if it is one.
pub fn resume(ssl: &mut SslRef, der: &[u8]) {
    if let Ok(session) = SslSession::from_der(der) {
        // SAFETY: the session is made anew from its encoding, so it belongs to no other context.
        let _ = unsafe { ssl.set_session(&session) };
    }
    super::error::clear();
}

/// Whether a certificate is for a host, by its alternative names or else its common name (RFC 6125).
pub fn is_for_host(cert: &X509Ref, name: &[u8]) -> bool {
    // SAFETY: the name is as long as said, and no copy of the match is asked for.
    !name.is_empty()
        && unsafe {
            X509_check_host(
                cert.as_ptr(),
                name.as_ptr().cast(),
                name.len(),
                0,
                ptr::null_mut(),
            )
        } == 1
}

/// The server name extension of a client's hello, as sent.
pub fn client_hello_name(ssl: &mut SslRef) -> Option<&[u8]> {
    let mut data: *const c_uchar = ptr::null();
    let mut len: size_t = 0;
    // SAFETY: within the callback the extension's bytes live as long as the hello.
    unsafe {
        if sys::SSL_client_hello_get0_ext(ssl.as_ptr(), 0, &raw mut data, &raw mut len) != 1
            || data.is_null()
        {
            return None;
        }
        Some(std::slice::from_raw_parts(data, len))
    }
}

/// A distinguished name as RFC 2253 writes it.
pub fn name_rfc2253(name: &X509NameRef) -> Vec<u8> {
    let Some(bio) = Bio::memory() else {
        return Vec::new();
    };
    // SAFETY: both objects are valid.
    unsafe { X509_NAME_print_ex(bio.0, name.as_ptr(), 0, XN_FLAG_RFC2253) };
    bio.text()
}

/// A distinguished name in the old form, `/C=…/CN=…`.
pub fn name_oneline(name: &X509NameRef) -> Vec<u8> {
    // SAFETY: the text that is returned is ours and ends with a NUL.
    unsafe {
        let p = X509_NAME_oneline(name.as_ptr(), ptr::null_mut(), 0);
        if p.is_null() {
            return Vec::new();
        }
        let text = CStr::from_ptr(p).to_bytes().to_vec();
        CRYPTO_free(p.cast(), ptr::null(), 0);
        text
    }
}

/// Seconds until a certificate ends; negative once it has.
pub fn remaining(cert: &X509Ref) -> Option<time_t> {
    until(cert.not_after().as_ptr().cast())
}

/// Seconds until a time; negative once it is past.
pub fn seconds_until(time: &openssl::asn1::Asn1GeneralizedTimeRef) -> Option<time_t> {
    until(time.as_ptr().cast())
}

/// Both kinds of time are the same structure to OpenSSL.
fn until(time: *const sys::ASN1_TIME) -> Option<time_t> {
    let (mut days, mut seconds) = (0, 0);
    // SAFETY: null stands for the present time, and callers pass a valid one.
    let ok = unsafe { ASN1_TIME_diff(&raw mut days, &raw mut seconds, ptr::null(), time) };
    (ok == 1).then(|| time_t::from(days) * 86_400 + time_t::from(seconds))
}

/// One error of the queue, as OpenSSL writes it.
pub fn error_text(code: c_ulong) -> String {
    let mut buf = [0u8; 256];
    // SAFETY: the text is cut to the buffer and ends with a NUL.
    unsafe { ERR_error_string_n(code, buf.as_mut_ptr().cast(), buf.len()) };
    CStr::from_bytes_until_nul(&buf)
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
