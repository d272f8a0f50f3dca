//! OpenSSL's errors in nginx's form: `… (SSL: error:0A000412:SSL routines::…)`.

use super::ffi;
use pingora::tls::error::ErrorStack;
use std::fmt::Write;

/// `message` with the errors that OpenSSL has queued.
pub fn failure(message: impl Into<String>) -> String {
    describe(message, &ErrorStack::get())
}

/// `message` with these errors.
pub fn describe(message: impl Into<String>, stack: &ErrorStack) -> String {
    let mut text = message.into();
    if stack.errors().is_empty() {
        return text;
    }
    text.push_str(" (SSL:");
    for e in stack.errors() {
        let _ = write!(text, " {}", ffi::error_text(e.code()));
        if let Some(data) = e.data().filter(|d| !d.is_empty()) {
            let _ = write!(text, ":{data}");
        }
    }
    text.push(')');
    text
}

/// Whether a failed handshake or read is the client's doing: logged at `info`, everything else at `crit`.
pub fn is_common(stack: &ErrorStack) -> bool {
    // SSL_R_…: nginx's list of what clients and scanners cause
    const COMMON: &[i32] = &[
        101, 102, 103, 108, 110, 111, 112, 115, 118, 122, 129, 133, 137, 145, 146, 149, 150, 151,
        152, 154, 155, 156, 159, 160, 182, 183, 186, 187, 193, 198, 205, 213, 220, 226, 227, 234,
        235, 244, 245, 246, 252, 253, 256, 258, 266, 267, 270, 271, 281, 291, 292, 293, 298, 300,
        306, 313, 335, 336, 337, 338, 345, 373, 376, 377, 396, 409, 443,
    ];
    let Some(last) = stack.errors().last() else {
        return false;
    };
    let reason = (last.code() & 0x7f_ffff) as i32;
    COMMON.contains(&reason) || (1000..=1255).contains(&reason)
}

/// Forgets what OpenSSL has queued.
pub fn clear() {
    drop(ErrorStack::get());
}

/// Whether the last queued error says that a key does not belong to a certificate.
pub fn is_mismatch(stack: &ErrorStack) -> bool {
    // ERR_LIB_X509, X509_R_KEY_VALUES_MISMATCH
    const MISMATCH: libc::c_ulong = (11 << 23) | 116;
    stack.errors().last().is_some_and(|e| e.code() == MISMATCH)
}
