//! The response head, the same for local, proxied and cached responses.

use super::{Val, has_break};
use crate::http::headers::{Headers, Known};

/// A response head on its way to the client.
///
/// Headers that nginx itself writes in a fixed place have fields of their own; [`ResponseHead::set`]
/// and [`ResponseHead::get`] find them by name all the same.
#[derive(Default, Clone)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// A status line other than the standard one (`200 Fine`), as an origin may send it.
    pub status_line: Vec<u8>,
    /// `Server`; empty writes our own as `server_tokens` says.
    pub server: Vec<u8>,
    /// `Date`; empty writes the current one.
    pub date: Vec<u8>,
    /// Whether `Server` is left to an origin that sent none (`proxy_pass_header`).
    pub no_server: bool,
    /// The same for `Date`.
    pub no_date: bool,
    /// `Content-Type`; empty writes none.
    pub content_type: Vec<u8>,
    /// `charset=` to be added to the type; empty adds none.
    pub charset: Vec<u8>,
    /// Whether a `charset` parameter inside `content_type` names the response's charset: an origin's does, that of a
    /// configured type is just text.
    pub type_charset: bool,
    /// `X-Accel-Charset`: the charset that an origin asks the response to be recoded to.
    pub override_charset: Vec<u8>,
    /// `Content-Length`; `None` where the length is not known.
    pub content_length: Option<u64>,
    /// `Last-Modified` in seconds since the epoch.
    pub last_modified: Option<i64>,
    /// `Last-Modified` as an origin wrote it.
    pub last_modified_text: Vec<u8>,
    /// `Location`; what begins with `/` is made absolute as `absolute_redirect` says.
    pub location: Vec<u8>,
    /// Whether `location` was made absolute here: it then stands before `Connection`.
    pub absolute_location: bool,
    /// Every other header, in order.
    pub headers: Headers,
    /// Trailers to be sent after a chunked body.
    pub trailers: Headers,
    /// Whether trailers will follow: HTTP/1.1 responses of known length are chunked all the same.
    pub expect_trailers: bool,
    /// Whether ranges may be cut from this response.
    pub allow_ranges: bool,
    /// Whether at most one range is cut: what is asked for several gets all.
    pub single_range: bool,
    /// Whether If-Modified-Since and its kin are left to the origin, which has seen them.
    pub unconditional: bool,
    /// Whether conditions are evaluated as RFC 9110, section 13, says, and not as nginx does (`proxy_cache_rfc9111`):
    /// If-None-Match goes before If-Modified-Since, and dates are compared.
    pub rfc9110: bool,
    /// Whether only the head is sent (HEAD, 304).
    pub header_only: bool,
    /// Whether the connection is offered for another request.
    pub keepalive: bool,
    /// HTTP/1.1 or later on the client's side.
    pub http11: bool,
    /// `Keep-Alive: timeout=`, seconds; 0 writes none.
    pub keepalive_header: u64,
    /// How much our own `Server` tells.
    pub tokens: super::Tokens,
    /// Whether `Connection: upgrade` is written.
    pub upgrade: bool,
    /// HTTP/0.9: no head at all is written.
    pub http09: bool,
    /// `Vary: Accept-Encoding` (gzip_vary).
    pub vary_encoding: bool,
}

impl ResponseHead {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        let ResponseHead {
            status_line,
            server,
            date,
            content_type,
            charset,
            last_modified_text,
            location,
            ..
        } = self;
        for v in [
            status_line,
            server,
            date,
            content_type,
            charset,
            last_modified_text,
            location,
        ] {
            v.clear();
        }
        self.type_charset = false;
        self.override_charset.clear();
        self.headers.clear();
        self.trailers.clear();
        self.status = 0;
        self.no_server = false;
        self.no_date = false;
        self.content_length = None;
        self.last_modified = None;
        self.allow_ranges = false;
        self.single_range = false;
        self.unconditional = false;
        self.rfc9110 = false;
        self.header_only = false;
        self.upgrade = false;
        self.http09 = false;
        self.vary_encoding = false;
        self.expect_trailers = false;
        self.absolute_location = false;
    }

    /// Makes room for the head of `post_action`, which is not sent; headers stay as they were.
    pub fn follow_up(&mut self) {
        self.status_line.clear();
        self.override_charset.clear();
        self.trailers.clear();
        self.allow_ranges = false;
        self.single_range = false;
        self.unconditional = true;
        self.rfc9110 = false;
        self.upgrade = false;
        self.expect_trailers = false;
        self.header_only = true;
    }

    /// What `error_page` and a fresh content handler begin with: no validators, no length, no ranges.
    pub fn clear_entity(&mut self) {
        self.content_type.clear();
        self.charset.clear();
        self.type_charset = false;
        self.override_charset.clear();
        self.content_length = None;
        self.clear_last_modified();
        self.allow_ranges = false;
        for name in ["ETag", "Accept-Ranges", "Content-Encoding", "Content-Range"] {
            self.headers.remove(name.as_bytes());
        }
    }

    /// Makes this the media type, whatever an internal redirect has brought along.
    pub fn set_content_type(&mut self, media_type: &[u8]) {
        self.content_type.clear();
        self.content_type.extend_from_slice(media_type);
        self.type_charset = false;
    }

    /// Forgets `Last-Modified`.
    pub fn clear_last_modified(&mut self) {
        self.last_modified = None;
        self.last_modified_text.clear();
    }

    /// What a filter that changes the body does to the head: the length is not known, no ranges are cut.
    pub fn clear_length(&mut self) {
        self.content_length = None;
        self.allow_ranges = false;
        self.headers.remove_id(Known::AcceptRanges);
    }

    /// Makes `ETag` a weak one (RFC 9110, section 8.8.1); what is no entity tag is removed.
    pub fn weaken_etag(&mut self) {
        let Some(tag) = self.headers.get_id(Known::ETag) else {
            return;
        };
        let mut tag = tag.to_vec();
        if crate::http::etag::weaken(&mut tag) {
            self.headers.set_id(Known::ETag, &tag);
        } else {
            self.headers.remove_id(Known::ETag);
        }
    }

    /// The media type; without the charset and what follows it where that is the response's ([`Self::type_charset`]).
    pub fn media_type(&self) -> &[u8] {
        match self.split_type() {
            Some((kind, _)) => kind,
            None => &self.content_type,
        }
    }

    /// The charset of the body, as far as the head names it.
    pub fn charset_name(&self) -> &[u8] {
        match self.split_type() {
            _ if !self.charset.is_empty() => &self.charset,
            Some((_, charset)) => charset,
            None => b"",
        }
    }

    /// Removes the charset from the type, so that another can take its place.
    pub fn cut_charset(&mut self) {
        if let Some((kind, _)) = self.split_type() {
            let n = kind.len();
            self.content_type.truncate(n);
        }
        self.charset.clear();
    }

    /// Media type and charset of an origin's `Content-Type`, where it names both.
    fn split_type(&self) -> Option<(&[u8], &[u8])> {
        if !self.type_charset {
            return None;
        }
        let text = &self.content_type[..];
        for at in memchr::memchr_iter(b';', text) {
            let (kind, rest) = text.split_at_checked(at)?;
            let spaces = rest.iter().skip(1).take_while(|c| **c == b' ').count();
            let parameter = rest.get(1 + spaces..)?;
            let (name, value) = parameter.split_at_checked(8).unwrap_or_default();
            if name.eq_ignore_ascii_case(b"charset=") {
                let value = value.strip_prefix(b"\"").unwrap_or(value);
                return Some((kind, value.strip_suffix(b"\"").unwrap_or(value)));
            }
        }
        None
    }

    /// Whether CR, LF or NUL stands anywhere in the head.
    pub fn has_break(&self) -> bool {
        // fields that were replaced may still be in memory: this is only a first look
        self.headers.has_break() || self.own().iter().any(|(_, value)| has_break(value))
    }

    /// Removes the first field with a CR, LF or NUL and returns its name; `None` where there is none.
    pub fn take_broken(&mut self) -> Option<Vec<u8>> {
        let broken = self.own().into_iter().find(|(_, value)| has_break(value));
        if let Some((name, _)) = broken {
            match name {
                "status line" => self.status_line.clear(),
                "charset" => self.charset.clear(),
                _ => self.set(name.as_bytes(), b""),
            }
            return Some(name.into());
        }
        let mut found = None;
        self.headers.retain(|_, name, value| {
            let broken = found.is_none() && (has_break(name) || has_break(value));
            if broken {
                found = Some(name.to_vec());
            }
            !broken
        });
        found
    }

    /// What has a place of its own in a head.
    fn own(&self) -> [(&'static str, &[u8]); 7] {
        [
            ("status line", &self.status_line),
            ("Server", &self.server),
            ("Date", &self.date),
            ("Content-Type", &self.content_type),
            ("charset", &self.charset),
            ("Last-Modified", &self.last_modified_text),
            ("Location", &self.location),
        ]
    }

    /// Sets a header, replacing any of the same name; an empty value removes it.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.field(name) {
            Some(f) => {
                f.clear();
                f.extend_from_slice(value);
                self.headers.remove(name);
            }
            None if name.eq_ignore_ascii_case(b"content-length") => {
                self.content_length = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            }
            None if value.is_empty() => {
                self.headers.remove(name);
            }
            None => self.headers.set(name, value),
        }
        if name.eq_ignore_ascii_case(b"last-modified") {
            self.last_modified = crate::http::date::parse(value);
        }
    }

    /// Adds a header; those with a field of their own are replaced.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        if self.field(name).is_some() || name.eq_ignore_ascii_case(b"content-length") {
            self.set(name, value);
        } else if !value.is_empty() {
            self.headers.append(name, value);
        }
    }

    /// The value of a header, if it is going to be sent.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let field = match name.len() {
            4 if name.eq_ignore_ascii_case(b"date") => &self.date,
            6 if name.eq_ignore_ascii_case(b"server") => &self.server,
            8 if name.eq_ignore_ascii_case(b"location") => &self.location,
            12 if name.eq_ignore_ascii_case(b"content-type") => &self.content_type,
            13 if name.eq_ignore_ascii_case(b"last-modified") => &self.last_modified_text,
            _ => return self.headers.get(name),
        };
        if field.is_empty() {
            self.headers.get(name)
        } else {
            Some(field)
        }
    }

    /// `$sent_http_…`: like [`ResponseHead::get`] by the variable's spelling, computed headers included.
    pub fn by_variable(&self, suffix: &[u8]) -> Val<'_> {
        match suffix {
            b"content_length" => self.content_length.map_or(Val::None, Val::number),
            b"content_type" if !self.content_type.is_empty() => {
                if self.charset.is_empty() {
                    return Val::Bytes(&self.content_type);
                }
                let mut v = self.content_type.clone();
                v.extend_from_slice(b"; charset=");
                v.extend_from_slice(&self.charset);
                Val::Owned(v)
            }
            b"last_modified" => {
                if !self.last_modified_text.is_empty() {
                    return Val::Bytes(&self.last_modified_text);
                }
                self.last_modified.map_or(Val::None, |t| {
                    Val::Small(super::Small::new(&crate::http::date::format(t)))
                })
            }
            b"location" if !self.location.is_empty() => Val::Bytes(&self.location),
            b"connection" if self.upgrade => Val::Bytes(b"upgrade"),
            b"connection" => Val::Bytes(if self.keepalive {
                b"keep-alive"
            } else {
                b"close"
            }),
            b"keep_alive" if self.keepalive && self.keepalive_header > 0 => {
                use std::io::Write;
                let mut s = super::Small::default();
                let _ = write!(s, "timeout={}", self.keepalive_header);
                Val::Small(s)
            }
            b"transfer_encoding"
                if self.content_length.is_none() && self.http11 && !self.header_only =>
            {
                Val::Bytes(b"chunked")
            }
            b"server" if !self.server.is_empty() => Val::Bytes(&self.server),
            b"date" if !self.date.is_empty() => Val::Bytes(&self.date),
            _ => Val::from_option(self.headers.by_variable(suffix)),
        }
    }

    fn field(&mut self, name: &[u8]) -> Option<&mut Vec<u8>> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"date") => Some(&mut self.date),
            6 if name.eq_ignore_ascii_case(b"server") => Some(&mut self.server),
            8 if name.eq_ignore_ascii_case(b"location") => Some(&mut self.location),
            12 if name.eq_ignore_ascii_case(b"content-type") => Some(&mut self.content_type),
            13 if name.eq_ignore_ascii_case(b"last-modified") => Some(&mut self.last_modified_text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origins_type_is_split() {
        for (text, kind, charset) in [
            ("text/html", "text/html", ""),
            ("text/html; charset=utf-8", "text/html", "utf-8"),
            ("text/html;CharSet=\"koi8-r\"", "text/html", "koi8-r"),
            ("text/html; a=b; charset=x; c=d", "text/html; a=b", "x; c=d"),
            ("text/html;", "text/html;", ""),
            ("text/html; chars", "text/html; chars", ""),
            ("text/html; charset=", "text/html", ""),
        ] {
            let mut head = ResponseHead {
                content_type: text.into(),
                type_charset: true,
                ..ResponseHead::default()
            };
            assert_eq!(
                (head.media_type(), head.charset_name()),
                (kind.as_bytes(), charset.as_bytes()),
                "{text}"
            );
            head.type_charset = false;
            assert_eq!(
                (head.media_type(), head.charset_name()),
                (text.as_bytes(), &b""[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn tags_are_weakened_once() {
        for (tag, weak) in [
            ("\"a\"", Some("W/\"a\"")),
            ("W/\"a\"", Some("W/\"a\"")),
            ("a", None),
            ("W/", None),
        ] {
            let mut head = ResponseHead::default();
            head.headers.set(b"ETag", tag.as_bytes());
            head.weaken_etag();
            assert_eq!(head.headers.get(b"ETag"), weak.map(str::as_bytes), "{tag}");
        }
    }
}
