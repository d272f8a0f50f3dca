//! Validation of an authority's host (RFC 3986, section 3.2.2), with nginx's rules.

/// Checks `host[:port]` as it stands in a `Host` field or an absolute request-target.
///
/// Returns how many leading bytes are the host (brackets of an IP literal stay, one trailing dot is cut) and the port,
/// 0 if none is given. `None` if empty, if a label between two dots is empty, if a byte cannot stand in a host, or if
/// the port is above 65535. The caller lower-cases.
pub fn parse_host(text: &[u8]) -> Option<(usize, u16)> {
    let literal = text.first() == Some(&b'[');
    let mut dot = None;
    let mut end = text.len();
    for (at, &byte) in text.iter().enumerate().skip(usize::from(literal)) {
        match byte {
            b'.' => {
                if at > 0 && dot == Some(at - 1) {
                    return None;
                }
                dot = Some(at);
            }
            b':' if !literal => {
                end = at;
                break;
            }
            b':' => {}
            b']' if literal => {
                end = at + 1;
                break;
            }
            b'%' if literal => return None,
            // a sub-delimiter of an IP literal (RFC 3986); in a name it would make a list of hosts
            b',' if literal => {}
            _ if is_host_byte(byte) => {}
            _ => return None,
        }
    }
    if literal && (end == 1 || text.get(end - 1) != Some(&b']')) {
        return None;
    }
    let port = match text.get(end..)? {
        [] => 0,
        [b':', digits @ ..] => parse_port(digits)?,
        _ => return None,
    };
    if end > 0 && dot == Some(end - 1) {
        end -= 1;
    }
    (end > 0).then_some((end, port))
}

/// Digits only; nothing at all is 0, as in `Host: example.org:`.
fn parse_port(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0u16, |port, &byte| {
        let digit = byte.is_ascii_digit().then(|| u16::from(byte - b'0'))?;
        port.checked_mul(10)?.checked_add(digit)
    })
}

/// Unreserved, sub-delims and `%`; no comma: a list of hosts is refused, which nginx lets pass.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b';'
                | b'='
                | b'%'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("example.org", Some(("example.org", 0))),
            ("example.org.", Some(("example.org", 0))),
            ("example.org.:8080", Some(("example.org", 8080))),
            ("EXAMPLE.org:", Some(("EXAMPLE.org", 0))),
            ("h:65535", Some(("h", 65535))),
            ("h:65536", None),
            ("h:080", Some(("h", 80))),
            ("h:8a", None),
            ("h:80:80", None),
            (".h", Some((".h", 0))),
            ("a..b", None),
            ("..", None),
            (".", None),
            ("", None),
            (":80", None),
            ("a/b", None),
            ("a b", None),
            ("a@b", None),
            ("a\\b", None),
            ("a\tb", None),
            ("a,b", None),
            ("%41_~!$&'()*+;=", Some(("%41_~!$&'()*+;=", 0))),
            ("\u{e4}", None),
            ("[::1]", Some(("[::1]", 0))),
            ("[::1]:443", Some(("[::1]", 443))),
            ("[::1.]", Some(("[::1.]", 0))),
            ("[1..2]", None),
            ("[]", Some(("[]", 0))),
            ("[", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[%41]", None),
            ("[a[b]", None),
            ("a[b]", None),
            ("a]", None),
        ] {
            assert_eq!(
                parse_host(text.as_bytes()).map(|(n, port)| (&text[..n], port)),
                expected,
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in prop::collection::vec(prop_oneof![Just(b'.'), Just(b':'), Just(b'['), Just(b']'), any::<u8>()], 0..20)) {
            if let Some((n, _)) = parse_host(&text) {
                prop_assert!(n > 0 && n <= text.len());
            }
        }
    }
}
