//! Keys of cached responses: a digest of the key's text, of what `Vary` names, and the path of the file.

use crate::http::headers::Headers;
use md5::{Digest as _, Md5};
use std::path::{Path, PathBuf};

/// MD5 of a key's text, as nginx names its files: not a guard against forgery, the text itself is compared on every hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The digest of a key's text.
    pub fn of(key: &[u8]) -> Digest {
        Digest(Md5::digest(key).into())
    }

    /// The digest of a variant: the main key's, and the request's values of the fields that `vary` names.
    ///
    /// As in nginx names are compared without regard to case, and spaces in lists of `Accept-…` say nothing.
    pub fn of_variant(main: Digest, vary: &[u8], request: &Headers) -> Digest {
        let mut md5 = Md5::new();
        md5.update(main.0);
        for name in words(vary) {
            let name = name.to_ascii_lowercase();
            md5.update(&name);
            md5.update(b":");
            let list = matches!(
                &name[..],
                b"accept-charset" | b"accept-encoding" | b"accept-language"
            );
            let mut separator: &[u8] = b"";
            for value in request.get_all(&name) {
                if !list {
                    md5.update(separator);
                    md5.update(value);
                    separator = b",";
                    continue;
                }
                for word in words(value) {
                    md5.update(separator);
                    md5.update(word);
                    separator = b",";
                }
            }
            md5.update(b"\r\n");
        }
        Digest(md5.finalize().into())
    }

    /// 32 hexadecimal digits.
    pub fn hex(&self) -> String {
        use std::fmt::Write;
        self.0.iter().fold(String::with_capacity(32), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// Reads 32 hexadecimal digits in lower case.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let bytes = text.as_bytes();
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        if bytes.len() != 32 {
            return None;
        }
        let mut out = [0; 16];
        for (to, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *to = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Digest(out))
    }

    /// The file below `root`; `levels` are the lengths of the folders' names, taken from the digest's end.
    pub fn path(&self, root: &Path, levels: &[u8]) -> PathBuf {
        let name = self.hex();
        let mut path = PathBuf::with_capacity(root.as_os_str().len() + name.len() + 12);
        path.push(root);
        let mut end = name.len();
        for level in levels {
            let begin = end.saturating_sub(usize::from(*level));
            path.push(name.get(begin..end).unwrap_or_default());
            end = begin;
        }
        path.push(&name);
        path
    }

    /// The digest as a number, for tables.
    pub fn number(&self) -> u128 {
        u128::from_ne_bytes(self.0)
    }
}

/// The words of a list, without commas and spaces.
fn words(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| matches!(b, b' ' | b','))
        .filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_nginxs() {
        let d = Digest::of(b"http://127.0.0.1:8081/t.html");
        let hex = d.hex();
        assert_eq!(Digest::from_hex(&hex), Some(d));
        assert_eq!(
            d.path(Path::new("/c"), &[1, 2]),
            Path::new("/c")
                .join(&hex[31..])
                .join(&hex[29..31])
                .join(&hex)
        );
        assert_eq!(d.path(Path::new("/c"), &[]), Path::new("/c").join(&hex));
        assert_eq!(
            Digest::of(b"").hex(),
            "d41d8cd98f00b204e9800998ecf8427e",
            "the name of an empty key"
        );
    }

    #[test]
    fn hex_is_strict() {
        for text in [
            "",
            "d41d8cd98f00b204e9800998ecf8427",
            "D41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert_eq!(Digest::from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn variants_depend_on_what_vary_names() {
        let main = Digest::of(b"k");
        let of = |vary: &[u8], fields: &[(&[u8], &[u8])]| {
            let mut h = Headers::new();
            for (n, v) in fields {
                h.append(n, v);
            }
            Digest::of_variant(main, vary, &h)
        };
        let gzip = of(b"Accept-Encoding", &[(b"Accept-Encoding", b"gzip, br")]);
        assert_eq!(
            gzip,
            of(b"accept-encoding", &[(b"accept-encoding", b"gzip,br")])
        );
        assert_eq!(
            gzip,
            of(
                b"Accept-Encoding,",
                &[(b"Accept-Encoding", b"gzip"), (b"Accept-Encoding", b"br")]
            )
        );
        assert_ne!(gzip, of(b"Accept-Encoding", &[]));
        assert_ne!(
            gzip,
            of(b"Accept-Encoding", &[(b"Accept-Encoding", b"br,gzip")])
        );
        let foo = of(b"X-Foo", &[(b"X-Foo", b"a, b")]);
        assert_ne!(foo, of(b"X-Foo", &[(b"X-Foo", b"a,b")]));
        assert_eq!(foo, of(b"x-foo", &[(b"x-foo", b"a, b"), (b"other", b"z")]));
    }
}
