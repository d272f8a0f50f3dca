//! Where COPY and MOVE lead: the `Destination` header (RFC 4918, section 10.3).

use crate::contract::paths;
use crate::contract::{Request, Root};
use crate::http::headers::Known;
use crate::http::uri;
use crate::log::Level;

/// A `Destination` that was found good.
pub struct Destination {
    /// The header as the client sent it.
    text: Vec<u8>,
    /// The decoded path in it.
    uri: Vec<u8>,
}

/// Source and target of COPY and MOVE.
pub struct Paths {
    /// The source, with a slash at its end where the URI has one.
    pub from: Vec<u8>,
    /// The target, without a slash at its end.
    pub to: Vec<u8>,
    /// Whether the target was named with a slash at its end.
    pub slash: bool,
}

impl Destination {
    /// Reads the header.
    ///
    /// # Errors
    /// 400 or 409, logged.
    pub fn of(r: &Request) -> Result<Destination, u16> {
        let Some(text) = r.headers().get_id(Known::Destination) else {
            r.error(
                Level::Error,
                format_args!("client sent no \"Destination\" header"),
            );
            return Err(400);
        };
        let shown = String::from_utf8_lossy(text);
        let invalid = || {
            r.error(
                Level::Error,
                format_args!("client sent invalid \"Destination\" header: \"{shown}\""),
            );
            400
        };
        let path = match text.first() {
            Some(b'/') => text,
            _ if r.head.host.is_empty() => {
                r.error(Level::Error, format_args!("client sent no \"Host\" header"));
                return Err(400);
            }
            _ => {
                let scheme: &[u8] = if r.conn().tls.get().is_some() {
                    b"https://"
                } else {
                    b"http://"
                };
                let authority = text.strip_prefix(scheme).ok_or_else(invalid)?;
                let Some(rest) = authority.strip_prefix(&r.head.host[..]) else {
                    r.error(
                        Level::Error,
                        format_args!("\"Destination\" URI \"{shown}\" is handled by different repository than the source URI"),
                    );
                    return Err(400);
                };
                memchr::memchr(b'/', rest)
                    .and_then(|at| rest.get(at..))
                    .ok_or_else(invalid)?
            }
        };
        let Ok(safe) = uri::parse_unsafe(path) else {
            r.error(
                Level::Error,
                format_args!(
                    "unsafe URI \"{}\" was detected",
                    crate::http::text::shown(path)
                ),
            );
            return Err(invalid());
        };
        if r.uri.ends_with(b"/") != text.ends_with(b"/") {
            let uri = crate::http::text::shown(&r.uri);
            r.error(
                Level::Error,
                format_args!(
                    "both URI \"{uri}\" and \"Destination\" URI \"{shown}\" should be either collections or non-collections"
                ),
            );
            return Err(409);
        }
        let replaces = r.core().root.replaces;
        if replaces != Root::WHOLE && safe.path.len() < replaces {
            return Err(invalid());
        }
        Ok(Destination {
            text: text.to_vec(),
            uri: safe.path.into_owned(),
        })
    }

    /// Maps both URIs to files.
    ///
    /// # Errors
    /// 403, logged, where one is, or lies in, the other.
    pub fn paths(&self, r: &Request, mut from: Vec<u8>) -> Result<Paths, u16> {
        let mut to = Vec::with_capacity(128);
        paths::write_path(r, &self.uri, &mut to)?;
        merge_slashes(&mut from);
        merge_slashes(&mut to);
        let slash = to.ends_with(b"/");
        if slash {
            to.pop();
        }
        let source = from.strip_suffix(b"/").unwrap_or(&from);
        if source == to {
            let (uri, text) = (
                crate::http::text::shown(&r.uri),
                crate::http::text::shown(&self.text),
            );
            r.error(
                Level::Error,
                format_args!("both URI \"{uri}\" and \"Destination\" URI \"{text}\" point to the same location"),
            );
            return Err(403);
        }
        if slash && (is_inside(&to, source) || is_inside(source, &to)) {
            self.not_to_collection(r);
            return Err(403);
        }
        Ok(Paths { from, to, slash })
    }

    /// Logs that something could not be copied or moved to this collection.
    pub fn not_to_collection(&self, r: &Request) {
        let text = String::from_utf8_lossy;
        let (uri, method, to) = (text(&r.uri), text(r.method_text()), text(&self.text));
        r.error(
            Level::Error,
            format_args!("\"{uri}\" could not be {method}ed to collection \"{to}\""),
        );
    }
}

/// Whether a path lies below a folder.
fn is_inside(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with(b"/"))
}

fn merge_slashes(path: &mut Vec<u8>) {
    let mut last = 0;
    path.retain(|c| {
        let keep = !(last == b'/' && *c == b'/');
        last = *c;
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_is_inside() {
        assert!(is_inside(b"/a/b", b"/a"));
        assert!(!is_inside(b"/ab", b"/a"));
        assert!(!is_inside(b"/a", b"/a"));
        assert!(!is_inside(b"/a", b"/a/b"));
    }

    #[test]
    fn merges_slashes() {
        for (path, want) in [("//a///b//", "/a/b/"), ("/", "/"), ("", ""), ("a/b", "a/b")] {
            let mut p = path.as_bytes().to_vec();
            merge_slashes(&mut p);
            assert_eq!(p, want.as_bytes());
        }
    }
}
