//! `Cookie` (RFC 6265, section 4.2), read as leniently as nginx does.

/// The value of a cookie in one line: the name's case does not matter, spaces may surround `=`.
pub fn find<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut rest = line;
    while !rest.is_empty() {
        if let Some((key, after)) = rest.split_at_checked(name.len())
            && key.eq_ignore_ascii_case(name)
            && let Some(value) = skip_spaces(after).strip_prefix(b"=")
        {
            let value = skip_spaces(value);
            return Some(value.split(|c| *c == b';').next().unwrap_or_default());
        }
        let end = memchr::memchr(b';', rest).map_or(rest.len(), |at| at + 1);
        rest = skip_spaces(rest.get(end..).unwrap_or_default());
    }
    None
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let n = text.iter().take_while(|c| **c == b' ').count();
    text.get(n..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn cookies() {
        let find = |line: &str, name: &str| {
            super::find(line.as_bytes(), name.as_bytes())
                .map(|v| String::from_utf8_lossy(v).into_owned())
        };
        assert_eq!(find("a=1; bb=2;c=3", "bb").as_deref(), Some("2"));
        assert_eq!(find("a=1; bb=2;c=3", "C").as_deref(), Some("3"));
        assert_eq!(find("a=1, b=2; c", "b"), None);
        assert_eq!(find("a=1,2; c", "a").as_deref(), Some("1,2"));
        assert_eq!(find("a  =  1 ; c", "a").as_deref(), Some("1 "));
        assert_eq!(find("xa=1; a", "a"), None);
        assert_eq!(find("a=", "a").as_deref(), Some(""));
        assert_eq!(find("", "a"), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[aA=;, \\PC]{0,20}", name in "[ab]{1,2}") {
            let _ = super::find(text.as_bytes(), name.as_bytes());
        }
    }
}
