//! `request_parsing strict`: what nginx lets pass although RFC 9110, RFC 9112 and RFC 9113 do not allow it, or although
//! HTTP implementations are known to read it differently.
//!
//! The parsers of [`crate::http::head`] take a superset of this. In strict mode they ask the functions below about each
//! part as soon as it is whole, with the bytes as they came.

use super::headers::{Headers, Known, has_token};
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Why a part of a request is refused: the text that is logged after "client sent ".
pub type Why = &'static str;

/// What [`request_line`] found wrong: the status and the reason.
pub type LineError = (u16, Why);

/// A byte of a token (RFC 9110, section 5.6.2).
pub const fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether `text` is a token (RFC 9110, section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| is_tchar(*b))
}

/// Whether a byte is a control character other than HTAB: it may not stand in a field value (RFC 9110, section 5.5).
pub const fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Whether `text` holds a control character other than HTAB.
pub fn has_control(text: &[u8]) -> bool {
    // without an early exit, so that it is compiled to vector instructions
    text.iter().fold(false, |found, b| found | is_control(*b))
}

/// Empty lines before a request line, of which `seen` bytes have been dropped already: one is allowed
/// (RFC 9112, section 2.2).
///
/// # Errors
/// More than one empty line, or one without CR.
pub fn empty_lines(seen: usize, bytes: &[u8]) -> Result<(), Why> {
    match b"\r\n".get(seen..seen + bytes.len()) {
        Some(allowed) if allowed == bytes => Ok(()),
        _ => Err("more than one empty line before the request line"),
    }
}

/// A whole request line with its line end.
///
/// # Errors
/// What does not follow the grammar of RFC 9112, section 3.
pub fn request_line(raw: &[u8]) -> Result<(), LineError> {
    let bad = |why| (400, why);
    let Some(line) = raw.strip_suffix(b"\r\n") else {
        return Err(bad("request line without CR LF"));
    };
    let mut words = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad(
            "request line that is not a method, a target and a version",
        ));
    };
    if !is_token(method) {
        return Err(bad("invalid method"));
    }
    match version {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9'] => {}
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err((505, "unsupported version"));
        }
        _ => return Err(bad("invalid version")),
    }
    if method == b"CONNECT" {
        return host(target).map_err(bad);
    }
    let rest = if target.first() == Some(&b'/') {
        target
    } else {
        let Some(at) = memchr::memmem::find(target, b"://") else {
            return Err(bad("invalid request target"));
        };
        let (scheme, rest) = target.split_at(at);
        if !is_web(scheme) {
            return Err(bad("request target with an unknown scheme"));
        }
        let rest = rest.get(3..).unwrap_or_default();
        let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        host(authority).map_err(bad)?;
        rest
    };
    path_and_query(rest).map_err(bad)
}

/// Whether a scheme is `http` or `https`.
pub fn is_web(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
}

/// Path and query of a target.
///
/// Beside what RFC 3986 allows, the bytes that browsers send as they are (`[`, `]`, `{`, `}`, `|`, `^` and the grave
/// accent) may stand in both.
///
/// # Errors
/// Bytes that may not stand in a target or that some read differently: 8-bit ones, `#`, `\`, `"`, `<`, `>`, a `%`
/// without two digits, and in the path escaped control characters and overlong UTF-8.
pub fn path_and_query(text: &[u8]) -> Result<(), Why> {
    let end = memchr::memchr(b'?', text).unwrap_or(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'%' => {
                let Some(value) = escaped(text, at) else {
                    return Err("request target with \"%\" without two digits");
                };
                if at < end {
                    if value < b' ' || value == 0x7f {
                        return Err("request target with an escaped control character");
                    }
                    let following = escaped(text, at + 3).filter(|_| at + 3 < end);
                    if is_overlong(value, following) {
                        return Err("request target with overlong UTF-8");
                    }
                }
                at += 2;
            }
            b'#' => return Err("request target with a fragment"),
            b'\\' => return Err("request target with a backslash"),
            0x80.. => return Err("request target with an 8-bit byte"),
            0..=b' ' | 0x7f | b'"' | b'<' | b'>' => return Err("invalid request target"),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The byte that `%XX` at `at` stands for.
fn escaped(text: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| (*text.get(at)? as char).to_digit(16);
    match text.get(at) {
        Some(b'%') => u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok(),
        _ => None,
    }
}

/// Whether two bytes begin the encoding of a character in more bytes than it needs (RFC 3629, section 3).
fn is_overlong(first: u8, second: Option<u8>) -> bool {
    matches!(
        (first, second),
        (0xc0 | 0xc1, Some(0x80..=0xbf)) | (0xe0, Some(0x80..=0x9f)) | (0xf0, Some(0x80..=0x8f))
    )
}

/// The value of `Host`, or the authority of a target (RFC 9110, section 7.2; RFC 3986, section 3.2.2). What
/// [`crate::http::host::parse_host`] refuses need not be found here.
///
/// # Errors
/// A literal that is no IPv6 address, an empty label at the beginning, a `%` without two digits.
pub fn host(text: &[u8]) -> Result<(), Why> {
    const WHY: Why = "invalid host";
    if let Some(rest) = text.strip_prefix(b"[") {
        let end = memchr::memchr(b']', rest).ok_or(WHY)?;
        let address = rest.get(..end).and_then(|a| std::str::from_utf8(a).ok());
        return match address.map(Ipv6Addr::from_str) {
            Some(Ok(_)) => Ok(()),
            _ => Err(WHY),
        };
    }
    let escapes = memchr::memchr_iter(b'%', text).all(|at| escaped(text, at).is_some());
    if text.first() == Some(&b'.') || !escapes {
        return Err(WHY);
    }
    Ok(())
}

/// A whole field line of HTTP/1 with its line end, and its name.
///
/// # Errors
/// What does not follow the grammar of RFC 9112, section 5.
pub fn field_line(raw: &[u8], name: &[u8]) -> Result<(), Why> {
    let Some(line) = raw.strip_suffix(b"\r\n") else {
        return Err("header line without CR LF");
    };
    if !is_token(name) {
        return Err("invalid header name");
    }
    match line.get(name.len()..).and_then(<[u8]>::split_first) {
        Some((b':', value)) if !has_control(value) => Ok(()),
        Some((b':', _)) => Err("header with a control character"),
        _ => Err("header line without a colon"),
    }
}

/// A field of HTTP/2 that is not a pseudo-header field, in a head or in trailers (RFC 9113, section 8.2.1).
///
/// # Errors
/// A name that is no token or has capitals, a value with control characters or with blanks around it.
pub fn field_v2(name: &[u8], value: &[u8]) -> Result<(), Why> {
    if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
        return Err("invalid header name");
    }
    if has_control(value) {
        return Err("header with a control character");
    }
    let is_blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if is_blank(value.first()) || is_blank(value.last()) {
        return Err("header value with blanks around it");
    }
    Ok(())
}

/// Whether a trailer field would change framing or routing where somebody merged it into the head
/// (RFC 9110, section 6.5.1).
pub fn is_forbidden_trailer(known: Known) -> bool {
    use Known::*;
    matches!(
        known,
        Host | ContentLength
            | TransferEncoding
            | Connection
            | KeepAlive
            | ProxyConnection
            | Upgrade
            | Te
            | Trailer
            | Expect
            | Authorization
            | ProxyAuthorization
            | ContentEncoding
            | ContentType
            | ContentRange
            | Cookie
    )
}

/// What can be said only of a whole head.
///
/// # Errors
/// The status and the reason; 417 for an expectation that cannot be met (RFC 9110, section 10.1.1).
pub fn fields(headers: &Headers, http11: bool, has_body: bool) -> Result<(), LineError> {
    let bad = |why| Err((400, why));
    if let Some(value) = headers.get_id(Known::Host)
        && let Err(why) = host(value)
    {
        return bad(why);
    }
    if let Some([b'0', _, ..]) = headers.get_id(Known::ContentLength) {
        return bad("\"Content-Length\" header with leading zeros");
    }
    for value in headers.get_all_id(Known::Connection) {
        for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if !(option.is_empty() || is_token(option)) {
                return bad("invalid \"Connection\" header");
            }
            // what names these would have a proxy take the frame or the host of the message away
            if matches!(
                Known::of(option),
                Known::Host | Known::ContentLength | Known::TransferEncoding
            ) {
                return bad("\"Connection\" header that names a header of the whole message");
            }
        }
    }
    if has_body
        && headers
            .get_all_id(Known::Upgrade)
            .any(|v| has_token(v, b"h2c"))
    {
        return bad("request to upgrade to HTTP/2 with a body");
    }
    match headers.get_id(Known::Expect) {
        Some(value) if http11 && !value.eq_ignore_ascii_case(b"100-continue") => {
            Err((417, "unknown \"Expect\" header"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines() {
        for (line, status) in [
            ("GET / HTTP/1.1\r\n", 0),
            ("GET / HTTP/1.0\r\n", 0),
            ("GET / HTTP/1.9\r\n", 0),
            ("M-SEARCH /a?b=c|[d]{e}^` HTTP/1.1\r\n", 0),
            ("GET /%c3%a4%E4%2f?%0a%c0%af HTTP/1.1\r\n", 0),
            ("GET http://a.b:80/c?d HTTP/1.1\r\n", 0),
            ("GET HTTPS://[::1]:80?d HTTP/1.1\r\n", 0),
            ("CONNECT a.b:443 HTTP/1.1\r\n", 0),
            ("GET / HTTP/2.0\r\n", 505),
            ("GET / HTTP/9.9\r\n", 505),
            ("GET / HTTP/0.9\r\n", 505),
            ("GET / HTTP/1.1\n", 400),
            ("GET / HTTP/1.1 \r\n", 400),
            ("GET / HTTP/1.10\r\n", 400),
            ("GET / HTTP/1\r\n", 400),
            ("GET / http/1.1\r\n", 400),
            ("GET  / HTTP/1.1\r\n", 400),
            ("GET /  HTTP/1.1\r\n", 400),
            ("GET /\r\n", 400),
            ("GET /a b HTTP/1.1\r\n", 400),
            ("GET /#a HTTP/1.1\r\n", 400),
            ("GET /a\\b HTTP/1.1\r\n", 400),
            ("GET /?a\\b HTTP/1.1\r\n", 400),
            ("GET /\u{e4} HTTP/1.1\r\n", 400),
            ("GET /?\u{e4} HTTP/1.1\r\n", 400),
            ("GET /<a> HTTP/1.1\r\n", 400),
            ("GET /%zz HTTP/1.1\r\n", 400),
            ("GET /?100% HTTP/1.1\r\n", 400),
            ("GET /%c0%af HTTP/1.1\r\n", 400),
            ("GET /%e0%80%af HTTP/1.1\r\n", 400),
            ("GET /%f0%80%80%af HTTP/1.1\r\n", 400),
            ("GET /%0d%0a HTTP/1.1\r\n", 400),
            ("GET /%7f HTTP/1.1\r\n", 400),
            ("GET ftp://a/ HTTP/1.1\r\n", 400),
            ("GET http://[::g]/ HTTP/1.1\r\n", 400),
            ("GET * HTTP/1.1\r\n", 400),
        ] {
            let found = request_line(line.as_bytes()).map_or_else(|e| e.0, |()| 0);
            assert_eq!(found, status, "{line:?}");
        }
    }

    #[test]
    fn field_lines() {
        for (line, name, ok) in [
            ("A: b\r\n", "A", true),
            ("A:\r\n", "A", true),
            ("A:\tb\t\u{e4}\r\n", "A", true),
            ("A_!#: b\r\n", "A_!#", true),
            ("A: b\n", "A", false),
            ("A: b\r\r\n", "A", false),
            ("A: b\x01\r\n", "A", false),
            ("A: b\x7f\r\n", "A", false),
            ("A\r\n", "A", false),
            ("A[: b\r\n", "A[", false),
            ("\u{e4}: b\r\n", "\u{e4}", false),
        ] {
            let found = field_line(line.as_bytes(), name.as_bytes()).is_ok();
            assert_eq!(found, ok, "{line:?}");
        }
        for (name, value, ok) in [
            ("a", "b", true),
            ("a", "", true),
            ("a", "b c", true),
            ("a", " b", false),
            ("a", "b\t", false),
            ("a", "b\x01", false),
            ("A", "b", false),
            ("", "b", false),
            ("a b", "c", false),
            ("a\u{e4}", "c", false),
        ] {
            let found = field_v2(name.as_bytes(), value.as_bytes()).is_ok();
            assert_eq!(found, ok, "{name:?} {value:?}");
        }
    }

    #[test]
    fn hosts() {
        for (text, ok) in [
            ("a", true),
            ("a:80", true),
            ("a.:80", true),
            ("%41", true),
            ("[::1]:80", true),
            ("[::1", false),
            ("[1]", false),
            (".a", false),
            ("a%4", false),
        ] {
            assert_eq!(host(text.as_bytes()).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn empty_lines_before_the_request_line() {
        for (seen, bytes, ok) in [
            (0, "", true),
            (0, "\r", true),
            (0, "\r\n", true),
            (1, "\n", true),
            (0, "\n", false),
            (0, "\r\n\r", false),
            (2, "\r", false),
            (9, "", false),
        ] {
            assert_eq!(
                empty_lines(seen, bytes.as_bytes()).is_ok(),
                ok,
                "{seen} {bytes:?}"
            );
        }
    }
}
