//! Reading PEM: certificates, revocation lists, keys and parameters.

use foreign_types::{ForeignType, ForeignTypeRef};
use libc::{c_char, c_int, c_long, c_uchar, c_ulong, c_void};
use pingora::tls::pkey::{PKey, Private};
use pingora::tls::ssl::SslContextBuilder;
use pingora::tls::ssl_sys as sys;
use pingora::tls::x509::X509;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

type PasswordCallback = unsafe extern "C" fn(*mut c_char, c_int, c_int, *mut c_void) -> c_int;

unsafe extern "C" {
    fn BIO_new_file(name: *const c_char, mode: *const c_char) -> *mut sys::BIO;
    fn BIO_ctrl(bio: *mut sys::BIO, cmd: c_int, larg: c_long, parg: *mut c_void) -> c_long;
    fn PEM_read_bio_X509_AUX(
        bio: *mut sys::BIO,
        x: *mut *mut sys::X509,
        cb: Option<PasswordCallback>,
        u: *mut c_void,
    ) -> *mut sys::X509;
    fn PEM_read_bio_X509_CRL(
        bio: *mut sys::BIO,
        x: *mut *mut c_void,
        cb: Option<PasswordCallback>,
        u: *mut c_void,
    ) -> *mut c_void;
    fn PEM_read_bio_Parameters(
        bio: *mut sys::BIO,
        x: *mut *mut sys::EVP_PKEY,
    ) -> *mut sys::EVP_PKEY;
    fn X509_CRL_free(crl: *mut c_void);
    fn X509_STORE_add_crl(store: *mut sys::X509_STORE, crl: *mut c_void) -> c_int;
    fn X509_STORE_set_flags(store: *mut sys::X509_STORE, flags: c_ulong) -> c_int;
    fn SSL_CTX_set0_tmp_dh_pkey(ctx: *mut sys::SSL_CTX, pkey: *mut sys::EVP_PKEY) -> c_int;
}

const BIO_CTRL_INFO: c_int = 3;
const BIO_C_SET_BUF_MEM_EOF_RETURN: c_int = 130;
const CRL_CHECK_ALL: c_ulong = 0x4 | 0x8;

/// The call that failed; the reasons are in OpenSSL's queue of errors.
pub type Call = &'static str;

/// Where PEM is read from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file.
    Path(&'a Path),
    /// Text in memory (`data:`).
    Data(&'a [u8]),
}

pub(super) struct Bio(pub(super) *mut sys::BIO);

impl Bio {
    fn open(source: Source<'_>) -> Result<Bio, Call> {
        match source {
            Source::Path(p) => {
                // where nothing is given the library reads, and words the error
                if let Some(text) = crate::config::load_inputs::recorded(p) {
                    return Bio::holding(&text);
                }
                let name =
                    CString::new(p.as_os_str().as_bytes()).map_err(|_| "BIO_new_file() failed")?;
                // SAFETY: both strings end with a NUL.
                let bio = unsafe { BIO_new_file(name.as_ptr(), c"r".as_ptr()) };
                if bio.is_null() {
                    Err("BIO_new_file() failed")
                } else {
                    Ok(Bio(bio))
                }
            }
            Source::Data(d) => {
                let len = c_int::try_from(d.len()).map_err(|_| "BIO_new_mem_buf() failed")?;
                // SAFETY: callers drop the BIO before the data.
                let bio = unsafe { sys::BIO_new_mem_buf(d.as_ptr().cast(), len) };
                if bio.is_null() {
                    Err("BIO_new_mem_buf() failed")
                } else {
                    Ok(Bio(bio))
                }
            }
        }
    }

    /// A copy of a text.
    fn holding(text: &[u8]) -> Result<Bio, Call> {
        const FAILED: Call = "BIO_new_mem_buf() failed";
        let bio = Bio::memory().ok_or(FAILED)?;
        let len = c_int::try_from(text.len()).map_err(|_| FAILED)?;
        // SAFETY: the library copies `len` bytes, which live through the call
        let copied = unsafe { sys::BIO_write(bio.0, text.as_ptr().cast(), len) };
        if len > 0 && copied != len {
            return Err(FAILED);
        }
        // SAFETY: a plain setting: an empty BIO means the end of the text, not "try again"
        unsafe { BIO_ctrl(bio.0, BIO_C_SET_BUF_MEM_EOF_RETURN, 0, ptr::null_mut()) };
        Ok(bio)
    }

    pub(super) fn memory() -> Option<Bio> {
        // SAFETY: plain constructor.
        let bio = unsafe { sys::BIO_new(sys::BIO_s_mem()) };
        (!bio.is_null()).then_some(Bio(bio))
    }

    pub(super) fn text(&self) -> Vec<u8> {
        let mut data: *mut c_uchar = ptr::null_mut();
        // SAFETY: a memory BIO gives a pointer that is valid until it is written or freed.
        unsafe {
            let len = BIO_ctrl(self.0, BIO_CTRL_INFO, 0, (&raw mut data).cast());
            if len <= 0 || data.is_null() {
                Vec::new()
            } else {
                std::slice::from_raw_parts(data, len as usize).to_vec()
            }
        }
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::BIO_free_all(self.0) }
    }
}

/// Whether the last error is the end of a PEM file; it is then forgotten.
fn at_end() -> bool {
    // ERR_LIB_PEM, PEM_R_NO_START_LINE
    const NO_START_LINE: c_ulong = (9 << 23) | 108;
    // SAFETY: plain calls.
    unsafe {
        let end = sys::ERR_peek_last_error() == NO_START_LINE;
        if end {
            sys::ERR_clear_error();
        }
        end
    }
}

/// A certificate and the chain that follows it.
///
/// # Errors
/// The call that failed.
pub fn read_chain(source: Source<'_>) -> Result<Vec<X509>, Call> {
    let bio = Bio::open(source)?;
    let mut list = Vec::with_capacity(2);
    // SAFETY: the BIO is valid, and a result that is not null is ours.
    unsafe {
        let first = PEM_read_bio_X509_AUX(bio.0, ptr::null_mut(), None, ptr::null_mut());
        if first.is_null() {
            return Err("PEM_read_bio_X509_AUX() failed");
        }
        list.push(X509::from_ptr(first));
        loop {
            let next = sys::PEM_read_bio_X509(bio.0, ptr::null_mut(), None, ptr::null_mut());
            if next.is_null() {
                return if at_end() {
                    Ok(list)
                } else {
                    Err("PEM_read_bio_X509() failed")
                };
            }
            list.push(X509::from_ptr(next));
        }
    }
}

/// The certificates of authorities; at least one.
///
/// # Errors
/// The call that failed.
pub fn read_authorities(source: Source<'_>) -> Result<Vec<X509>, Call> {
    let bio = Bio::open(source)?;
    let mut list = Vec::new();
    loop {
        // SAFETY: as above.
        let next = unsafe { PEM_read_bio_X509_AUX(bio.0, ptr::null_mut(), None, ptr::null_mut()) };
        if next.is_null() {
            return if !list.is_empty() && at_end() {
                Ok(list)
            } else {
                Err("PEM_read_bio_X509_AUX() failed")
            };
        }
        // SAFETY: as above.
        list.push(unsafe { X509::from_ptr(next) });
    }
}

/// Adds the revocation lists of a file to a context's store, and has chains checked against them.
///
/// # Errors
/// The call that failed.
pub fn add_crls(ctx: &mut SslContextBuilder, source: Source<'_>) -> Result<(), Call> {
    let bio = Bio::open(source)?;
    let store = ctx.cert_store_mut().as_ptr();
    let mut some = false;
    loop {
        // SAFETY: the store takes a reference of its own, ours is released.
        unsafe {
            let crl = PEM_read_bio_X509_CRL(bio.0, ptr::null_mut(), None, ptr::null_mut());
            if crl.is_null() {
                if some && at_end() {
                    break;
                }
                return Err("PEM_read_bio_X509_CRL() failed");
            }
            let added = X509_STORE_add_crl(store, crl);
            X509_CRL_free(crl);
            if added != 1 {
                return Err("X509_STORE_add_crl() failed");
            }
        }
        some = true;
    }
    // SAFETY: the store belongs to the context.
    unsafe { X509_STORE_set_flags(store, CRL_CHECK_ALL) };
    Ok(())
}

struct Password<'a> {
    text: Option<&'a [u8]>,
    asked: bool,
}

unsafe extern "C" fn password(
    buf: *mut c_char,
    size: c_int,
    writing: c_int,
    data: *mut c_void,
) -> c_int {
    if writing != 0 || data.is_null() || size <= 0 {
        return 0;
    }
    // SAFETY: `data` is the `Password` that lives across the call, and `buf` has `size` bytes.
    unsafe {
        let password = &mut *data.cast::<Password<'_>>();
        password.asked = true;
        let Some(text) = password.text else {
            return 0;
        };
        let n = text.len().min(size as usize);
        ptr::copy_nonoverlapping(text.as_ptr(), buf.cast(), n);
        n as c_int
    }
}

/// A private key, and whether it is behind a password; each one is tried. Without a list OpenSSL asks on the terminal,
/// unless `quiet`.
///
/// # Errors
/// The call that failed.
pub fn read_key(
    source: Source<'_>,
    passwords: Option<&[Vec<u8>]>,
    quiet: bool,
) -> Result<(PKey<Private>, bool), Call> {
    let none = [None];
    let tries: Vec<Option<&[u8]>> = match passwords {
        Some(list) if !list.is_empty() => list.iter().map(|p| Some(&**p)).collect(),
        _ => none.to_vec(),
    };
    let asked = passwords.is_none() && !quiet;
    let mut rest = tries.len();
    for text in tries {
        let bio = Bio::open(source)?;
        let mut p = Password { text, asked };
        let cb = (!asked).then_some(password as PasswordCallback);
        // SAFETY: `p` outlives the call.
        let key = unsafe {
            sys::PEM_read_bio_PrivateKey(
                bio.0,
                ptr::null_mut(),
                cb,
                if asked {
                    ptr::null_mut()
                } else {
                    (&raw mut p).cast()
                },
            )
        };
        if !key.is_null() {
            // SAFETY: ours.
            return Ok((unsafe { PKey::from_ptr(key) }, p.asked));
        }
        rest -= 1;
        if rest > 0 {
            // SAFETY: plain call.
            unsafe { sys::ERR_clear_error() };
        }
    }
    Err("PEM_read_bio_PrivateKey() failed")
}

/// `ssl_dhparam`.
///
/// # Errors
/// The call that failed, without its arguments.
pub fn set_dh(ctx: &mut SslContextBuilder, path: &Path) -> Result<(), Call> {
    let bio = Bio::open(Source::Path(path)).map_err(|_| "BIO_new_file")?;
    // SAFETY: on success the context owns the parameters.
    unsafe {
        let dh = PEM_read_bio_Parameters(bio.0, ptr::null_mut());
        if dh.is_null() {
            return Err("PEM_read_bio_DHparams");
        }
        if SSL_CTX_set0_tmp_dh_pkey(ctx.as_ptr(), dh) != 1 {
            sys::EVP_PKEY_free(dh);
            return Err("SSL_CTX_set0_tmp_dh_pkey");
        }
    }
    Ok(())
}
