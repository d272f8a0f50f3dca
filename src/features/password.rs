//! Password hashes of `auth_basic_user_file`: nginx's own kinds, and crypt(3) for all others.

use super::crypt_ffi;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use sha1::Sha1;

/// Whether hashes of this kind take long on purpose.
pub fn is_slow(hash: &[u8]) -> bool {
    ![&b"{PLAIN}"[..], b"{SSHA}", b"{SHA}"]
        .iter()
        .any(|kind| hash.starts_with(kind))
}

/// Whether `password` belongs to `hash`; `None` where the kind of hash is not known.
pub fn verify(password: &[u8], hash: &[u8]) -> Option<bool> {
    // nginx passes C strings on
    let password = password.split(|c| *c == 0).next().unwrap_or_default();
    let made = if let Some(rest) = hash.strip_prefix(b"$apr1$") {
        apr1(password, rest)
    } else if hash.starts_with(b"{PLAIN}") {
        [b"{PLAIN}", password].concat()
    } else if let Some(rest) = hash.strip_prefix(b"{SSHA}") {
        ssha(password, rest)
    } else if hash.starts_with(b"{SHA}") {
        [b"{SHA}", STANDARD.encode(Sha1::digest(password)).as_bytes()].concat()
    } else {
        crypt_ffi::crypt(password, hash)?
    };
    Some(same(&made, hash))
}

/// `{SSHA}`: base64 of SHA-1 of password and salt, and of the salt.
fn ssha(password: &[u8], encoded: &[u8]) -> Vec<u8> {
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    let salt = decoded.get(20..).unwrap_or_default();
    let mut raw = Sha1::new()
        .chain_update(password)
        .chain_update(salt)
        .finalize()
        .to_vec();
    raw.extend_from_slice(salt);
    [b"{SSHA}", STANDARD.encode(raw).as_bytes()].concat()
}

/// Apache's variant of the MD5 crypt of FreeBSD; `rest` is what follows `$apr1$`.
fn apr1(password: &[u8], rest: &[u8]) -> Vec<u8> {
    let salt = rest.split(|c| *c == b'$').next().unwrap_or_default();
    let salt = salt.get(..8).unwrap_or(salt);
    let inner = Md5::new()
        .chain_update(password)
        .chain_update(salt)
        .chain_update(password)
        .finalize();
    let mut outer = Md5::new()
        .chain_update(password)
        .chain_update(b"$apr1$")
        .chain_update(salt);
    for chunk in password.chunks(16) {
        outer.update(inner.get(..chunk.len()).unwrap_or_default());
    }
    let mut bits = password.len();
    while bits > 0 {
        outer.update(if bits & 1 == 1 {
            b"\0"
        } else {
            password.get(..1).unwrap_or_default()
        });
        bits >>= 1;
    }
    let mut digest = outer.finalize();
    for round in 0..1000 {
        let odd = round % 2 == 1;
        let mut h = Md5::new();
        h.update(if odd { password } else { digest.as_slice() });
        if round % 3 != 0 {
            h.update(salt);
        }
        if round % 7 != 0 {
            h.update(password);
        }
        h.update(if odd { digest.as_slice() } else { password });
        digest = h.finalize();
    }
    let mut out = [b"$apr1$", salt, b"$"].concat();
    let d: [u8; 16] = digest.into();
    for [a, b, c] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        base64_of_crypt(
            u32::from(d[a]) << 16 | u32::from(d[b]) << 8 | u32::from(d[c]),
            4,
            &mut out,
        );
    }
    base64_of_crypt(u32::from(d[11]), 2, &mut out);
    out
}

/// Six bits a character, the lowest first.
fn base64_of_crypt(mut value: u32, characters: usize, out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for _ in 0..characters {
        out.push(ALPHABET[(value & 0x3f) as usize]);
        value >>= 6;
    }
}

/// Compares in a time that does not tell how much agrees.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_made_elsewhere() {
        // openssl passwd -apr1 -salt abcdefgh password, and nginx's own tests' kinds
        for (password, hash) in [
            ("password", "$apr1$abcdefgh$FBwExRW4dCc8aL.OvjpIE1"),
            ("password", "{PLAIN}password"),
            ("password", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="),
            ("password", "{SSHA}yI6cZwQadOA1e+/f+T+H3eCQQhRzYWx0"),
            ("password", "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/"),
        ] {
            assert_eq!(
                verify(password.as_bytes(), hash.as_bytes()),
                Some(true),
                "{hash}"
            );
            assert_eq!(verify(b"passwore", hash.as_bytes()), Some(false), "{hash}");
            assert_eq!(verify(b"", hash.as_bytes()), Some(false), "{hash}");
        }
        assert_eq!(verify(b"x", b"{SSHA}%%%"), Some(false));
        assert!(is_slow(b"$apr1$x") && !is_slow(b"{SHA}x"));
    }

    proptest::proptest! {
        #[test]
        fn apr1_takes_anything(password: Vec<u8>, rest: Vec<u8>) {
            let hash = apr1(&password, &rest);
            proptest::prop_assert!(hash.len() >= 6 + 1 + 22);
            let rest: Vec<u8> = hash.iter().skip(6).copied().collect();
            proptest::prop_assert_eq!(apr1(&password, &rest), hash);
        }
    }
}
