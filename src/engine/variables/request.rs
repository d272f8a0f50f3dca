//! Variables of the request: its head, its URI, its body.

use crate::contract::paths;
use crate::contract::{Request, Val};
use crate::http::cookie;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// `$host`: of the request line, of `Host`, or the server's name.
pub fn host<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    if r.head.host.is_empty() {
        Val::Bytes(&r.server().name)
    } else {
        Val::Bytes(&r.head.host)
    }
}

/// `$cookie_…`: the name's case does not matter, spaces may surround `=`.
pub fn cookie<'r>(r: &'r Request, name: &'r [u8]) -> Val<'r> {
    Val::from_option(
        r.headers()
            .get_all(b"cookie")
            .find_map(|line| cookie::find(line, name)),
    )
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let n = text.iter().take_while(|c| **c == b' ').count();
    text.get(n..).unwrap_or_default()
}

/// `$content_length`: the header, or what a chunked body came to.
pub fn content_length<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    match r.headers().get(b"content-length") {
        Some(text) => Val::Bytes(text),
        None => match r.head.content_length {
            Some(n) => Val::number(n),
            None if r.head.chunked && r.body.read => Val::number(r.body.received),
            None => Val::None,
        },
    }
}

/// `$remote_user`: the name in `Authorization: Basic`.
pub fn remote_user<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    let connect = r.method == crate::http::method::Method::Connect;
    let field: &[u8] = if connect {
        b"proxy-authorization"
    } else {
        b"authorization"
    };
    match r.headers().get(field).and_then(basic_user) {
        Some(user) => Val::Owned(user),
        None => Val::None,
    }
}

fn basic_user(value: &[u8]) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    );
    let (scheme, text) = value.split_at_checked(b"Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let text = skip_spaces(text).split(|c| *c == b'=').next()?;
    let mut user = LENIENT.decode(text).ok()?;
    let colon = memchr::memchr(b':', &user).filter(|at| *at > 0)?;
    user.truncate(colon);
    Some(user)
}

/// `set $args`.
pub fn set_args(r: &mut Request, value: &[u8]) {
    r.args.clear();
    r.args.extend_from_slice(value);
    r.valid_unparsed_uri = false;
}

/// `$document_root`: `root` or `alias`.
pub fn document_root(r: &Request) -> Val<'_> {
    let path = &r.core().root.path;
    if let Some(text) = path.as_literal() {
        return Val::Bytes(text);
    }
    let mut root = Vec::with_capacity(128);
    paths::write_root(r, &mut root);
    Val::Owned(root)
}

/// `$realpath_root`: the same without symbolic links.
pub fn realpath_root<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    paths::realpath_root(r).map_or(Val::None, Val::Owned)
}

/// `$request_body`: where it has been read and is in memory.
pub fn body<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    match r.body.spool.memory() {
        Some(bytes) if r.body.read && !bytes.is_empty() => Val::Bytes(bytes),
        _ => Val::None,
    }
}

/// `$request_body_file`.
pub fn body_file<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    Val::from_option(r.body.spool.path().map(|p| p.as_os_str().as_bytes()))
}

/// `$request_id`: 32 hexadecimal digits that nobody can foresee.
pub fn id<'r>(_: &'r Request, _: &'r [u8]) -> Val<'r> {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(2, Ordering::Relaxed);
    let mut text = crate::contract::Small::default();
    let _ = write!(text, "{:016x}{:016x}", KEY.hash_one(n), KEY.hash_one(n + 1));
    Val::Small(text)
}

/// `$server_protocol`.
pub fn protocol<'r>(r: &'r Request, _: &'r [u8]) -> Val<'r> {
    match &r.head.protocol {
        Some(p) => Val::Bytes(r.head.text(p)),
        // a broken head of HTTP/2 has no request line
        None if r.head.http_major_minor.0 == 2 => Val::Bytes(b"HTTP/2.0"),
        None => Val::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn users() {
        let user =
            |v: &str| basic_user(v.as_bytes()).map(|u| String::from_utf8_lossy(&u).into_owned());
        assert_eq!(user("Basic dXNlcjpwYXNz").as_deref(), Some("user"));
        assert_eq!(user("basic   dTo=").as_deref(), Some("u"));
        assert_eq!(user("Basic dTo").as_deref(), Some("u"));
        for bad in [
            "",
            "Basic",
            "Basic ",
            "Basic =",
            "Bearer dTo=",
            "Basic Onh4",
            "Basic dXNlcg==",
            "Basic d!",
        ] {
            assert_eq!(user(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[aA=;, \\PC]{0,20}") {
            let _ = basic_user(text.as_bytes());
        }
    }
}
