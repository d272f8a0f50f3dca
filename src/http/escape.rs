//! Escaping of URIs, HTML, JSON and log lines, byte for byte as nginx does it.

/// What the escaped text becomes a part of; decides which bytes turn into `%XX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// A path: space, `"`, `#`, `%`, `<`, `>`, `?`, `\`, `^`, `` ` ``, `{`, `|`, `}`, controls, 8-bit.
    Uri,
    /// An argument: those of [`Escape::Uri`] and `&`, `+`, `;`.
    Args,
    /// One URI component: all but RFC 3986's unreserved characters.
    UriComponent,
    /// A URI inside of HTML: as [`Escape::Uri`] with `'`, without `?`.
    Html,
    /// A URI inside of a `Refresh` tag, where `%` stays as it is.
    Refresh,
    /// A memcached key: only controls, space and `%`.
    Memcached,
}

impl Escape {
    fn table(self) -> &'static Table {
        match self {
            Self::Uri => &URI,
            Self::Args => &ARGS,
            Self::UriComponent => &COMPONENT,
            Self::Html => &HTML_URI,
            Self::Refresh => &REFRESH,
            Self::Memcached => &MEMCACHED,
        }
    }
}

/// How far [`unescape`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unescape {
    /// Decodes everything.
    All,
    /// Decodes up to the first `?`, written or escaped, and stops after it.
    Uri,
    /// As `Uri`, but leaves the bytes up to `%` and from DEL on escaped, for a `Location`.
    Redirect,
}

/// Appends `src` with the bytes that `kind` does not allow as `%XX`.
pub fn escape(kind: Escape, src: &[u8], out: &mut Vec<u8>) {
    copy_escaping(kind.table(), src, out, |byte, out| {
        out.extend_from_slice(&[b'%', hex_digit(byte >> 4), hex_digit(byte)]);
    });
}

/// Whether [`escape`] would change anything.
pub fn needs_escape(kind: Escape, src: &[u8]) -> bool {
    let table = kind.table();
    src.iter().any(|&byte| table[usize::from(byte)])
}

/// Appends `src` with `%XX` decoded and returns how much of `src` was used (all of it unless a `?` stopped it).
///
/// Broken escapes are dropped as nginx drops them: `%g` gives `g`, `%1g` and a cut `%1` give nothing.
pub fn unescape(kind: Unescape, src: &[u8], out: &mut Vec<u8>) -> usize {
    let stop = kind != Unescape::All;
    let mut at = 0;
    while let Some(&byte) = src.get(at) {
        at += 1;
        if byte != b'%' {
            out.push(byte);
            if stop && byte == b'?' {
                return at;
            }
            continue;
        }
        let Some(&high) = src.get(at) else { break };
        at += 1;
        let Some(first) = hex_value(high) else {
            out.push(high);
            continue;
        };
        let Some(&low) = src.get(at) else { break };
        at += 1;
        let Some(second) = hex_value(low) else {
            continue;
        };
        let decoded = first << 4 | second;
        if stop && decoded == b'?' {
            out.push(decoded);
            return at;
        }
        if kind == Unescape::Redirect && !(b'&'..0x7f).contains(&decoded) {
            out.extend_from_slice(&[b'%', high, low]);
        } else {
            out.push(decoded);
        }
    }
    at
}

/// Appends `src` with `<`, `>`, `&` and `"` as entities.
pub fn html(src: &[u8], out: &mut Vec<u8>) {
    copy_escaping(&HTML, src, out, |byte, out| {
        out.extend_from_slice(match byte {
            b'<' => b"&lt;",
            b'>' => b"&gt;",
            b'&' => b"&amp;",
            _ => b"&quot;",
        });
    });
}

/// Appends `src` as the inside of a JSON string (`escape=json`); 8-bit bytes stay as they are.
pub fn json(src: &[u8], out: &mut Vec<u8>) {
    copy_escaping(&JSON, src, out, |byte, out| match byte {
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0c => out.extend_from_slice(b"\\f"),
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[hex_digit(byte >> 4), hex_digit(byte)]);
        }
    });
}

/// Appends `src` with `"`, `\`, controls and 8-bit bytes as `\xHH` (`escape=default` of `log_format`).
pub fn log(src: &[u8], out: &mut Vec<u8>) {
    copy_escaping(&LOG, src, out, |byte, out| {
        out.extend_from_slice(&[b'\\', b'x', hex_digit(byte >> 4), hex_digit(byte)]);
    });
}

/// Value of a hexadecimal digit of either case.
pub(crate) fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Upper-case digit of the low four bits.
fn hex_digit(nibble: u8) -> u8 {
    match nibble & 0xf {
        low @ 0..=9 => b'0' + low,
        low => b'A' + low - 10,
    }
}

fn copy_escaping(table: &Table, src: &[u8], out: &mut Vec<u8>, put: impl Fn(u8, &mut Vec<u8>)) {
    out.reserve(src.len());
    let mut rest = src;
    while let Some(at) = rest.iter().position(|&byte| table[usize::from(byte)]) {
        let Some((run, tail)) = rest.split_at_checked(at) else {
            break;
        };
        out.extend_from_slice(run);
        let Some((&byte, tail)) = tail.split_first() else {
            return;
        };
        put(byte, out);
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// True where a byte is escaped.
type Table = [bool; 256];

static URI: Table = table(true, true, b" \"#%<>?\\^`{|}");
static ARGS: Table = table(true, true, b" \"#%&+;<>?\\^`{|}");
static HTML_URI: Table = table(true, true, b" \"#%'<>\\^`{|}");
// `~` and not `}`: nginx's table has it so.
static REFRESH: Table = table(true, true, b" \"'<>\\^`{|~");
static MEMCACHED: Table = table(true, false, b" %");
static HTML: Table = table(false, false, b"<>&\"");
static JSON: Table = table(true, false, b"\"\\");
static LOG: Table = table(true, true, b"\"\\");
static COMPONENT: Table = {
    let mut table = [true; 256];
    let mut byte = 0u8;
    while byte < 0x80 {
        table[byte as usize] =
            !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'));
        byte += 1;
    }
    table
};

const fn table(controls: bool, delete_and_8bit: bool, others: &[u8]) -> Table {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (controls && byte < 0x20) || (delete_and_8bit && byte >= 0x7f);
        byte += 1;
    }
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Escape; 6] = [
        Escape::Uri,
        Escape::Args,
        Escape::UriComponent,
        Escape::Html,
        Escape::Refresh,
        Escape::Memcached,
    ];

    fn with(f: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        f(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// The printable ASCII characters that a kind escapes.
    fn escaped(kind: Escape) -> String {
        (b' '..0x7f)
            .filter(|&b| needs_escape(kind, &[b]))
            .map(char::from)
            .collect()
    }

    #[test]
    fn escapes_what_nginx_escapes() {
        assert_eq!(escaped(Escape::Uri), " \"#%<>?\\^`{|}");
        assert_eq!(escaped(Escape::Args), " \"#%&+;<>?\\^`{|}");
        assert_eq!(
            escaped(Escape::UriComponent),
            " !\"#$%&'()*+,/:;<=>?@[\\]^`{|}"
        );
        assert_eq!(escaped(Escape::Html), " \"#%'<>\\^`{|}");
        assert_eq!(escaped(Escape::Refresh), " \"'<>\\^`{|~");
        assert_eq!(escaped(Escape::Memcached), " %");
        for kind in KINDS {
            assert!(
                needs_escape(kind, b"\0") && needs_escape(kind, b"\x1f"),
                "{kind:?}"
            );
            assert_eq!(
                needs_escape(kind, b"\x7f"),
                kind != Escape::Memcached,
                "{kind:?}"
            );
            assert_eq!(
                needs_escape(kind, b"\xff"),
                kind != Escape::Memcached,
                "{kind:?}"
            );
        }
        assert_eq!(
            with(|out| escape(Escape::Uri, "/a b\u{e9}%".as_bytes(), out)),
            "/a%20b%C3%A9%25"
        );
    }

    #[test]
    fn unescapes_as_nginx() {
        for (kind, src, want, used) in [
            (Unescape::All, "a%20b?%3fc", "a b??c", 10),
            (Unescape::All, "%gx%1gy%", "gxy", 8),
            (Unescape::All, "%%41", "%41", 4),
            (Unescape::All, "a%4", "a", 3),
            (Unescape::Uri, "a%20b?%20", "a b?", 6),
            (Unescape::Uri, "a%3Fb", "a?", 4),
            (
                Unescape::Redirect,
                "%20%25%26%7e%7F%c3",
                "%20%25&~%7F%c3",
                18,
            ),
            (Unescape::Redirect, "a%3fb", "a?", 4),
        ] {
            let mut out = Vec::new();
            assert_eq!(unescape(kind, src.as_bytes(), &mut out), used, "{src}");
            assert_eq!(String::from_utf8_lossy(&out), want, "{src}");
        }
    }

    #[test]
    fn escapes_html_json_log() {
        assert_eq!(
            with(|out| html(b"<a href=\"x\">'&", out)),
            "&lt;a href=&quot;x&quot;&gt;'&amp;"
        );
        assert_eq!(
            with(|out| json(b"\"\\\n\r\t\x08\x0c\x01\x1f/", out)),
            r#"\"\\\n\r\t\b\f\u0001\u001F/"#
        );
        assert_eq!(
            with(|out| json("\u{e9}\u{7f}".as_bytes(), out)),
            "\u{e9}\u{7f}"
        );
        assert_eq!(
            with(|out| log("a\"b\\c\n\u{7f}\u{e9}'".as_bytes(), out)),
            r"a\x22b\x5Cc\x0A\x7F\xC3\xA9'"
        );
    }

    proptest! {
        #[test]
        fn round_trips(src in proptest::collection::vec(any::<u8>(), 0..64)) {
            for kind in KINDS.into_iter().filter(|&kind| kind != Escape::Refresh) {
                let (mut there, mut back) = (Vec::new(), Vec::new());
                escape(kind, &src, &mut there);
                prop_assert_eq!(needs_escape(kind, &src), there != src);
                unescape(Unescape::All, &there, &mut back);
                prop_assert_eq!(&back, &src);
            }
        }

        #[test]
        fn never_panics(src in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut out = Vec::new();
            for kind in [Unescape::All, Unescape::Uri, Unescape::Redirect] {
                prop_assert!(unescape(kind, &src, &mut out) <= src.len());
            }
            json(&src, &mut out);
            log(&src, &mut out);
            html(&src, &mut out);
        }
    }
}
