//! What the sides of a handshake offered and took, in the words of `$ssl_ciphers`, `$ssl_curves` and their kin.

use super::{
    CTRL_GET_GROUPS, CTRL_GET_NEGOTIATED_GROUP, CTRL_GET_PEER_SIGNATURE_NAME,
    CTRL_GET_RAW_CIPHERLIST, CTRL_GET_SIGNATURE_NAME, OBJ_nid2sn, SSL_CIPHER_find, SSL_get_sigalgs,
    SSL_group_to_name, UNKNOWN_GROUP, sys,
};
use foreign_types::ForeignTypeRef;
use libc::{c_char, c_int, c_uchar};
use openssl::ssl::SslRef;
use std::ffi::CStr;
use std::ptr;

/// `$ssl_ciphers`: what the client offered.
pub fn offered_ciphers(ssl: &SslRef) -> Vec<u8> {
    let mut list: *const c_uchar = ptr::null();
    let mut out = Vec::new();
    // SAFETY: the list lives as long as the connection; each entry has `size` bytes.
    unsafe {
        let size = sys::SSL_ctrl(ssl.as_ptr(), CTRL_GET_RAW_CIPHERLIST, 0, ptr::null_mut());
        let len = sys::SSL_ctrl(
            ssl.as_ptr(),
            CTRL_GET_RAW_CIPHERLIST,
            0,
            (&raw mut list).cast(),
        );
        if len <= 0 || size <= 0 || list.is_null() {
            return out;
        }
        for id in std::slice::from_raw_parts(list, len as usize).chunks_exact(size as usize) {
            if !out.is_empty() {
                out.push(b':');
            }
            let cipher = SSL_CIPHER_find(ssl.as_ptr(), id.as_ptr());
            if cipher.is_null() {
                hex(id, &mut out);
            } else {
                out.extend_from_slice(CStr::from_ptr(sys::SSL_CIPHER_get_name(cipher)).to_bytes());
            }
        }
    }
    out
}

/// `$ssl_curve`.
pub fn curve(ssl: &SslRef) -> Vec<u8> {
    let mut out = Vec::new();
    // SAFETY: plain call.
    let id = unsafe { sys::SSL_ctrl(ssl.as_ptr(), CTRL_GET_NEGOTIATED_GROUP, 0, ptr::null_mut()) }
        as c_int;
    if id != 0 {
        group(ssl, id, &mut out);
    }
    out
}

/// `$ssl_curves`: what the client offered.
pub fn offered_curves(ssl: &SslRef) -> Vec<u8> {
    let mut out = Vec::new();
    // SAFETY: the first call gives the number of entries that the second fills.
    unsafe {
        let n = sys::SSL_ctrl(ssl.as_ptr(), CTRL_GET_GROUPS, 0, ptr::null_mut());
        if n <= 0 {
            return out;
        }
        let mut ids = vec![0 as c_int; n as usize];
        sys::SSL_ctrl(ssl.as_ptr(), CTRL_GET_GROUPS, 0, ids.as_mut_ptr().cast());
        for id in ids {
            if !out.is_empty() {
                out.push(b':');
            }
            group(ssl, id, &mut out);
        }
    }
    out
}

fn group(ssl: &SslRef, id: c_int, out: &mut Vec<u8>) {
    // SAFETY: names are static or live as long as the connection.
    unsafe {
        let name = if id & UNKNOWN_GROUP == 0 {
            OBJ_nid2sn(id)
        } else {
            SSL_group_to_name(ssl.as_ptr(), id)
        };
        if name.is_null() {
            hex(&((id & 0xffff) as u16).to_be_bytes(), out);
        } else {
            out.extend_from_slice(CStr::from_ptr(name).to_bytes());
        }
    }
}

/// `$ssl_sigalgs`: what the client offered, as codes.
pub fn offered_sigalgs(ssl: &SslRef) -> Vec<u8> {
    let mut out = Vec::new();
    let none = ptr::null_mut();
    // SAFETY: null is allowed for what is not wanted.
    unsafe {
        let n = SSL_get_sigalgs(
            ssl.as_ptr(),
            -1,
            none,
            none,
            none,
            ptr::null_mut(),
            ptr::null_mut(),
        );
        for i in 0..n.max(0) {
            let (mut sign, mut hash) = (0, 0);
            SSL_get_sigalgs(
                ssl.as_ptr(),
                i,
                none,
                none,
                none,
                &raw mut sign,
                &raw mut hash,
            );
            if !out.is_empty() {
                out.push(b':');
            }
            hex(&[hash, sign], &mut out);
        }
    }
    out
}

/// `$ssl_sigalg` and `$ssl_client_sigalg`: of our signature, or of the client's.
pub fn sigalg(ssl: &SslRef, peer: bool) -> Vec<u8> {
    let mut name: *const c_char = ptr::null();
    let cmd = if peer {
        CTRL_GET_PEER_SIGNATURE_NAME
    } else {
        CTRL_GET_SIGNATURE_NAME
    };
    // SAFETY: the name is static.
    unsafe {
        if sys::SSL_ctrl(ssl.as_ptr(), cmd, 0, (&raw mut name).cast()) != 1 || name.is_null() {
            return Vec::new();
        }
        CStr::from_ptr(name).to_bytes().to_vec()
    }
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"0x");
    for b in bytes {
        out.push(DIGITS[usize::from(b >> 4)]);
        out.push(DIGITS[usize::from(b & 15)]);
    }
}
