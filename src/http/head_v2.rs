//! The head of a request of HTTP/2 (RFC 9113, section 8.3), in the form that the rest knows from HTTP/1.

use super::{
    HeadError, Known, Limits, Method, RequestHead, Version, error, parse_host, parse_length,
    refused, strict,
};

/// What is known of a request beside its fields.
#[derive(Clone, Copy, Debug)]
pub struct OptionsV2 {
    /// Whether no body follows.
    pub ended: bool,
    /// Whether CONNECT may name a protocol (RFC 8441).
    pub connect_protocol: bool,
}

/// What a request of HTTP/2 asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A response.
    Response,
    /// A WebSocket (RFC 8441); the head is that of the GET that asks for one in HTTP/1.1, without the headers that HTTP/2
    /// has no need of (`Upgrade`, `Connection`, `Sec-WebSocket-Key`).
    WebSocket,
}

const ENDING: &[u8] = b" HTTP/2.0";

/// The pseudo-header fields.
#[derive(Clone, Copy, Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    protocol: Option<&'a [u8]>,
}

impl RequestHead {
    /// Takes a request of HTTP/2; `dropped` receives the names of fields that are ignored as invalid.
    ///
    /// # Errors
    /// Why it is refused; what could be read of it is in `self`, for the log.
    pub fn take_v2<'a>(
        &mut self,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        options: OptionsV2,
        limits: &Limits,
        mut dropped: impl FnMut(&[u8]),
    ) -> Result<Asked, HeadError> {
        self.clear();
        self.strict = limits.strict;
        (self.version, self.http_major_minor) = (Version::V11, (2, 0));
        let mut pseudo = Pseudo::default();
        let taken = self.take_fields_v2(&mut pseudo, fields, limits, &mut dropped);
        let asked = taken.and_then(|()| self.finish_v2(&pseudo, options));
        asked.map_err(|e| HeadError {
            line_known: !self.line.is_empty(),
            ..e
        })
    }

    fn take_pseudo<'a>(
        &mut self,
        pseudo: &mut Pseudo<'a>,
        name: &'a [u8],
        value: &'a [u8],
    ) -> Result<(), HeadError> {
        if !self.line.is_empty() {
            return refuse("client sent out of order pseudo-headers");
        }
        match name {
            b"method" => {
                put(
                    &mut pseudo.method,
                    value,
                    "client sent duplicate :method header",
                    "client sent empty :method header",
                )?;
                if !value
                    .iter()
                    .all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-'))
                {
                    return refuse_with("client sent invalid method", value);
                }
                // known even where the rest of the head is refused
                self.method = Method::of(value);
            }
            b"path" => {
                put(
                    &mut pseudo.path,
                    value,
                    "client sent duplicate :path header",
                    "client sent empty :path header",
                )?;
                if value.first() != Some(&b'/') || value.iter().any(|b| *b <= b' ' || *b == 0x7f) {
                    return refuse_with("client sent invalid :path header", value);
                }
                if self.strict {
                    strict::path_and_query(value).map_err(refused)?;
                }
            }
            b"scheme" => {
                put(
                    &mut pseudo.scheme,
                    value,
                    "client sent duplicate :scheme header",
                    "client sent empty :scheme header",
                )?;
                let usual = |(i, b): (usize, &u8)| {
                    b.is_ascii_alphabetic()
                        || (i > 0 && (b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.')))
                };
                if !value.iter().enumerate().all(usual) || (self.strict && !strict::is_web(value)) {
                    return refuse_with("client sent invalid :scheme header", value);
                }
            }
            b"authority" => {
                if pseudo.authority.replace(value).is_some() {
                    return refuse("client sent duplicate \":authority\" header");
                }
                let host = parse_host(value)
                    .ok_or_else(|| error(400, "client sent invalid \":authority\" header", None))?;
                if self.strict {
                    strict::host(value).map_err(refused)?;
                }
                self.set_host(value, host);
            }
            b"protocol" => {
                put(
                    &mut pseudo.protocol,
                    value,
                    "client sent duplicate :protocol header",
                    "client sent empty :protocol header",
                )?;
            }
            _ => return refuse_with("client sent unknown pseudo-header ", &[b":", name].concat()),
        }
        Ok(())
    }

    /// Writes the request line, once.
    fn take_line_v2(&mut self, pseudo: &Pseudo<'_>) -> Result<(), HeadError> {
        if !self.line.is_empty() {
            return Ok(());
        }
        let missing = |reason| move || error(400, reason, None);
        let method = pseudo
            .method
            .ok_or_else(missing("client sent no :method header"))?;
        if pseudo.scheme.is_none() {
            return refuse("client sent no :scheme header");
        }
        let path = pseudo
            .path
            .ok_or_else(missing("client sent no :path header"))?;
        let method = if is_websocket(pseudo) { b"GET" } else { method };
        for part in [method, b" ", path, ENDING] {
            self.line.extend_from_slice(part);
        }
        self.method = Method::of(method);
        self.method_text = 0..method.len();
        self.uri = method.len() + 1..method.len() + 1 + path.len();
        self.target = self.uri.clone();
        self.protocol = Some(self.uri.end + 1..self.line.len());
        let query = memchr::memchr(b'?', path);
        self.query = query.map(|at| self.uri.start + at + 1);
        self.complex = is_complex(path, query.unwrap_or(path.len()));
        Ok(())
    }

    fn take_fields_v2<'a>(
        &mut self,
        pseudo: &mut Pseudo<'a>,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        limits: &Limits,
        dropped: &mut impl FnMut(&[u8]),
    ) -> Result<(), HeadError> {
        let usual = |b: &u8| {
            b.is_ascii_lowercase()
                || b.is_ascii_digit()
                || *b == b'-'
                || (*b == b'_' && limits.underscores)
        };
        let mut cookie: Option<Vec<u8>> = None;
        let mut count = 0;
        for (name, value) in fields {
            self.header_in_bytes += name.len() + value.len();
            let (colon, plain) = match name.split_first() {
                Some((b':', rest)) => (true, rest),
                _ => (false, name),
            };
            let usual = plain.iter().all(usual);
            if !usual
                && plain
                    .iter()
                    .any(|b| *b <= b' ' || *b == 0x7f || *b == b':' || b.is_ascii_uppercase())
            {
                return refuse_with("client sent invalid header name", name);
            }
            if memchr::memchr3(0, b'\r', b'\n', value).is_some() {
                let [name, value] = [name, value].map(crate::http::text::shown);
                let detail = format!("\"{name}\" with invalid value: \"{value}\"");
                return Err(error(400, "client sent header ", Some(detail)));
            }
            if colon {
                self.take_pseudo(pseudo, plain, value)?;
                continue;
            }
            self.take_line_v2(pseudo)?;
            if limits.strict {
                strict::field_v2(name, value).map_err(refused)?;
            }
            if !usual && limits.ignore_invalid {
                dropped(name);
                continue;
            }
            if name == b"cookie" {
                // crumbs are joined again (RFC 9113, section 8.2.3)
                match &mut cookie {
                    Some(c) => {
                        c.extend_from_slice(b"; ");
                        c.extend_from_slice(value);
                    }
                    None => cookie = Some(value.to_vec()),
                }
                continue;
            }
            if count >= limits.max_headers {
                return Err(error(494, "client sent too many header lines", None));
            }
            count += 1;
            self.take_field(name, value)?;
        }
        self.take_line_v2(pseudo)?;
        if let Some(value) = cookie {
            self.headers.append_as(Known::Cookie, b"cookie", &value);
        }
        Ok(())
    }

    /// What can be judged only when all fields are known, in nginx's order.
    fn finish_v2(&mut self, pseudo: &Pseudo<'_>, options: OptionsV2) -> Result<Asked, HeadError> {
        // no interim response is sent for it in HTTP/2
        self.expect_continue = false;
        for (known, reason) in [
            (Known::Connection, "client sent \"Connection\" header"),
            (Known::KeepAlive, "client sent \"Keep-Alive\" header"),
            (
                Known::TransferEncoding,
                "client sent \"Transfer-Encoding\" header",
            ),
            (Known::Upgrade, "client sent \"Upgrade\" header"),
            (
                Known::ProxyConnection,
                "client sent \"Proxy-Connection\" header",
            ),
        ] {
            if self.headers.contains_id(known) {
                return refuse(reason);
            }
        }
        let mut te = self.headers.get_all_id(Known::Te);
        if te
            .next()
            .is_some_and(|v| !v.eq_ignore_ascii_case(b"trailers"))
            || te.next().is_some()
        {
            return refuse("client sent invalid \"TE\" header");
        }
        drop(te);
        if self.host.is_empty() {
            return refuse("client sent neither \":authority\" nor \"Host\" header");
        }
        if let Some(authority) = pseudo.authority {
            match self.headers.get_id(Known::Host) {
                Some(host) if host != authority => {
                    return refuse(
                        "client sent \":authority\" and \"Host\" headers with different values",
                    );
                }
                Some(_) => {}
                None => self.headers.append_as(Known::Host, b"host", authority),
            }
        }
        let length = self.headers.get_id(Known::ContentLength).map(parse_length);
        if pseudo.protocol.is_some() {
            let length = length.is_some();
            self.headers.clean();
            return self.connect_protocol(pseudo, options, length);
        }
        match length {
            Some(None) => return refuse("client sent invalid \"Content-Length\" header"),
            Some(Some(n)) if n > 0 && options.ended => {
                return refuse("client prematurely closed stream");
            }
            Some(length) => self.content_length = length,
            None => self.chunked = !options.ended,
        }
        if self.strict {
            self.finish_strict()?;
        }
        self.headers.clean();
        match self.method {
            Method::Connect => Err(error(405, "client sent CONNECT method", None)),
            Method::Trace => Err(error(405, "client sent TRACE method", None)),
            _ => Ok(Asked::Response),
        }
    }

    fn connect_protocol(
        &self,
        pseudo: &Pseudo<'_>,
        options: OptionsV2,
        length: bool,
    ) -> Result<Asked, HeadError> {
        if !options.connect_protocol {
            return refuse_with("client sent unknown pseudo-header ", b":protocol");
        }
        if pseudo.method != Some(b"CONNECT") {
            return refuse("client sent :protocol header without CONNECT method");
        }
        if !is_websocket(pseudo) {
            let shown = format!(
                "\"{}\"",
                crate::http::text::shown(pseudo.protocol.unwrap_or_default())
            );
            return Err(error(
                501,
                "client sent unknown :protocol header",
                Some(shown),
            ));
        }
        if pseudo.authority.is_none() {
            return refuse("client sent no :authority header with :protocol");
        }
        if length || options.ended {
            return refuse("client sent request for a WebSocket with a body or without a stream");
        }
        Ok(Asked::WebSocket)
    }
}

fn is_websocket(pseudo: &Pseudo<'_>) -> bool {
    pseudo.method == Some(b"CONNECT")
        && pseudo
            .protocol
            .is_some_and(|p| p.eq_ignore_ascii_case(b"websocket"))
}

/// Keeps a pseudo-header field that may come once and not be empty.
fn put<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    duplicate: &'static str,
    empty: &'static str,
) -> Result<(), HeadError> {
    if slot.is_some() {
        return refuse(duplicate);
    }
    if value.is_empty() {
        return refuse(empty);
    }
    *slot = Some(value);
    Ok(())
}

#[cold]
fn refuse<T>(reason: &'static str) -> Result<T, HeadError> {
    Err(error(400, reason, None))
}

#[cold]
fn refuse_with<T>(reason: &'static str, shown: &[u8]) -> Result<T, HeadError> {
    let shown = format!("\"{}\"", crate::http::text::shown(shown));
    Err(error(400, reason, Some(shown)))
}

/// Whether the path, up to its query, must be normalised before use.
fn is_complex(path: &[u8], end: usize) -> bool {
    let (path, query) = path.split_at_checked(end).unwrap_or((path, b""));
    let segment = path.windows(2).any(|w| matches!(w, b"//" | b"/."));
    segment || memchr::memchr2(b'%', b'#', path).is_some() || memchr::memchr(b'#', query).is_some()
}

#[cfg(test)]
#[path = "head_v2_tests.rs"]
mod tests;
