//! A request's head as HTTP/1 text becomes a header block (RFC 9113, section 8).

use crate::http::h2::hpack::{Encoder, Indexing};
use bytes::BytesMut;

/// Appends the header block of a request whose head is `text` to `out`.
///
/// No field is kept in the connection's table, so that the block serves for every try on any connection. Fields that
/// belong to an HTTP/1 connection are left out; `Host` becomes `:authority`.
pub fn from_http1(text: &[u8], tls: bool, out: &mut Vec<u8>) {
    let mut lines = text
        .split(|c| *c == b'\n')
        .map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let line = lines.next().unwrap_or_default();
    let mut words = line.splitn(2, |c| *c == b' ');
    let method = words.next().unwrap_or_default();
    let rest = words.next().unwrap_or_default();
    let end = memchr::memrchr(b' ', rest).unwrap_or(rest.len());
    let path = rest.get(..end).unwrap_or_default();

    let mut encoder = Encoder::default();
    let mut block = BytesMut::with_capacity(text.len());
    let mut put = |block: &mut BytesMut, name: &[u8], value: &[u8]| {
        encoder.field(block, name, value, Indexing::Passing);
    };
    put(&mut block, b":method", method);
    put(&mut block, b":scheme", if tls { b"https" } else { b"http" });
    put(&mut block, b":path", path);
    // pseudo-header fields stand before all others
    let mut fields = BytesMut::new();
    for line in lines {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"host") {
            put(&mut block, b":authority", value);
        } else if !belongs_to_connection(name, value) {
            put(&mut fields, name, value);
        }
    }
    out.extend_from_slice(&block);
    out.extend_from_slice(&fields);
}

fn belongs_to_connection(name: &[u8], value: &[u8]) -> bool {
    const NAMES: [&[u8]; 5] = [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    ];
    NAMES.iter().any(|n| name.eq_ignore_ascii_case(n))
        || name.eq_ignore_ascii_case(b"te") && !value.eq_ignore_ascii_case(b"trailers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h2::hpack::{Decoder, Fields, ListLimits};

    #[test]
    fn heads_become_blocks() {
        let text = b"POST /a b?c=d HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\nTE: trailers\r\nX-Y:  z \r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut block = Vec::new();
        from_http1(text, true, &mut block);
        let mut fields = Fields::default();
        let limits = ListLimits {
            string: 1000,
            list: 1000,
        };
        Decoder::new(0).decode(&block, limits, &mut fields).unwrap();
        let shown: Vec<String> = fields
            .iter()
            .map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii()))
            .collect();
        assert_eq!(
            shown,
            [
                ":method=POST",
                ":scheme=https",
                ":path=/a b?c=d",
                ":authority=x:1",
                "te=trailers",
                "x-y=z"
            ]
        );
    }
}
