//! The response head of HTTP/2: the same fields as in HTTP/1, in nginx's order, without those of the connection.

use crate::http::headers::{Headers, Known};
use crate::http::{date, status};
use crate::module::ResponseHead;
use crate::serve::head_writer;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};

/// A head as the frames' writer takes it, and about how many bytes it is.
pub(super) fn head(head: &ResponseHead) -> (Response<()>, u64) {
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    *response.status_mut() = StatusCode::from_u16(status::on_wire(head.status))
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut out = Fields {
        map: HeaderMap::with_capacity(8 + head.headers.len()),
        size: 0,
    };
    if head.status >= 200 {
        own(head, &mut out);
    }
    for (known, name, value) in head.headers.entries() {
        if !is_of_connection(known) {
            out.append(name, value);
        }
    }
    *response.headers_mut() = out.map;
    (response, out.size)
}

/// Trailers; `None` where none can be sent.
pub(super) fn trailers(list: &Headers) -> Option<HeaderMap> {
    let mut out = Fields {
        map: HeaderMap::with_capacity(list.len()),
        size: 0,
    };
    for (known, name, value) in list.entries() {
        if !is_of_connection(known) {
            out.append(name, value);
        }
    }
    (!out.map.is_empty()).then_some(out.map)
}

/// The fields that have a place of their own.
fn own(head: &ResponseHead, out: &mut Fields) {
    out.put(header::SERVER, head_writer::server(head));
    if head.date.is_empty() {
        out.put(header::DATE, &date::now().http_date);
    } else {
        out.put(header::DATE, &head.date);
    }
    if !head.content_type.is_empty() {
        if head.charset.is_empty() {
            out.put(header::CONTENT_TYPE, &head.content_type);
        } else {
            out.put(
                header::CONTENT_TYPE,
                &[&head.content_type, &b"; charset="[..], &head.charset].concat(),
            );
        }
    }
    if let Some(n) = head.content_length {
        out.size += 16;
        out.map.append(header::CONTENT_LENGTH, HeaderValue::from(n));
    }
    if !head.last_modified_text.is_empty() {
        out.put(header::LAST_MODIFIED, &head.last_modified_text);
    } else if let Some(t) = head.last_modified {
        out.put(header::LAST_MODIFIED, &date::format(t));
    }
    if !head.location.is_empty() {
        out.put(header::LOCATION, &head.location);
    }
    if head.vary_encoding {
        out.put(header::VARY, b"Accept-Encoding");
    }
}

/// Fields that speak of an HTTP/1 connection (RFC 9113, section 8.2.2).
fn is_of_connection(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade
    )
}

struct Fields {
    map: HeaderMap,
    size: u64,
}

impl Fields {
    fn put(&mut self, name: HeaderName, value: &[u8]) {
        // a value with control bytes cannot be sent: such a field is left out
        if let Ok(v) = HeaderValue::from_bytes(value) {
            self.size += name.as_str().len() as u64 + value.len() as u64;
            self.map.append(name, v);
        }
    }

    fn append(&mut self, name: &[u8], value: &[u8]) {
        if let Ok(n) = HeaderName::from_bytes(name) {
            self.put(n, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_order_and_none_of_the_connection() {
        let mut h = ResponseHead {
            status: 200,
            content_length: Some(3),
            ..ResponseHead::default()
        };
        h.server.extend_from_slice(b"s");
        h.date.extend_from_slice(b"d");
        h.content_type.extend_from_slice(b"text/html");
        h.charset.extend_from_slice(b"utf-8");
        h.keepalive = true;
        h.headers.append(b"X-One", b"1");
        h.headers.append(b"Connection", b"x");
        h.headers.append(b"X-Two", b"a\nb");
        let (r, size) = head(&h);
        let list: Vec<_> = r
            .headers()
            .iter()
            .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
            .collect();
        assert_eq!(
            list,
            [
                ("server", "s"),
                ("date", "d"),
                ("content-type", "text/html; charset=utf-8"),
                ("content-length", "3"),
                ("x-one", "1")
            ]
        );
        assert!(size > 0);
    }

    #[test]
    fn statuses() {
        let mut h = ResponseHead {
            status: 494,
            ..ResponseHead::default()
        };
        assert_eq!(head(&h).0.status(), 400);
        h.status = 103;
        h.headers.append(b"Link", b"<a>");
        let (r, _) = head(&h);
        assert_eq!((r.status().as_u16(), r.headers().len()), (103, 1));
    }

    #[test]
    fn trailers_are_lower_case() {
        let mut t = Headers::new();
        assert!(trailers(&t).is_none());
        t.append(b"X-Sum", b"1");
        assert_eq!(trailers(&t).unwrap().get("x-sum").unwrap(), "1");
    }
}
