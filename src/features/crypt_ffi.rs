//! crypt(3) of the C library's libcrypt, which knows every kind of password hash that the system knows.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};

/// Larger than `struct crypt_data` of libxcrypt (32 KiB) and of the old glibc (about 128 KiB).
const DATA_SIZE: usize = 160 * 1024;

#[link(name = "crypt")]
unsafe extern "C" {
    fn crypt_r(phrase: *const c_char, setting: *const c_char, data: *mut c_void) -> *mut c_char;
}

/// Hashes `phrase` by `setting`, which is a hash already made or the beginning of one; `None` if libcrypt refuses.
///
/// Neither may contain a zero byte. Slow by design: not for the thread that serves connections.
pub fn crypt(phrase: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
    let (phrase, setting) = (CString::new(phrase).ok()?, CString::new(setting).ok()?);
    let mut data = vec![0u128; DATA_SIZE / size_of::<u128>()];
    // SAFETY: both strings end with a zero byte and outlive the call; `data` is zeroed, as crypt_r(3) asks for before
    // its first use, aligned for any type, at least as large as `struct crypt_data`, and used by this call alone.
    let hash = unsafe { crypt_r(phrase.as_ptr(), setting.as_ptr(), data.as_mut_ptr().cast()) };
    if hash.is_null() {
        return None;
    }
    // SAFETY: a result that is not null is a string that ends with a zero byte, inside `data`, which is still alive.
    Some(unsafe { CStr::from_ptr(hash) }.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_password_files_have() {
        for (phrase, hash) in [
            ("foob", "arlEKn0OzVJn."),
            ("password", "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/"),
            (
                "password",
                "$5$rounds=1000$saltstring$S2dlplsLzofRuJ/frAjtaYev58CdqEN6fUby2laILG1",
            ),
            (
                "password",
                "$2y$04$abcdefghijklmnopqrstuughE8Ev8uGFaUgY2cNEySvxngrb/Jzdm",
            ),
            (
                "password",
                "$y$j75$abcdefgh$hycRI05iyPwUdPZDaw/SJaABdj2h8B1Bgxi1Z/4Xke0",
            ),
        ] {
            assert_eq!(
                crypt(phrase.as_bytes(), hash.as_bytes()).as_deref(),
                Some(hash.as_bytes())
            );
        }
        assert_eq!(crypt(b"pass\0word", b"$1$saltsalt$"), None);
    }
}
