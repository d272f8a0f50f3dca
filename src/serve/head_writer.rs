//! The response head of HTTP/1 on the wire, its lines in nginx's order.

use crate::contract::{Framing, ResponseHead, Tokens};
use crate::http::status::{SERVER, SERVER_BUILD};
use crate::http::{date, status};
use bytes::BytesMut;

/// Appends the head to `out`.
pub fn write(head: &ResponseHead, framing: Framing, out: &mut BytesMut) {
    if head.http09 {
        return;
    }
    out.reserve(512);
    let mut put = |parts: &[&[u8]]| {
        for p in parts {
            out.extend_from_slice(p);
        }
    };
    let code = status::on_wire(head.status);
    put(&[b"HTTP/1.1 "]);
    match (head.status_line.is_empty(), status::line(code)) {
        (false, _) => put(&[&head.status_line]),
        (true, Some(line)) => put(&[line.as_bytes()]),
        // nginx writes an unknown status without a reason
        (true, None) => put(&[format!("{code:03} ").as_bytes()]),
    }
    put(&[b"\r\n"]);
    if (100..200).contains(&head.status) && head.status != 101 {
        for (name, value) in head.headers.iter() {
            put(&[name, b": ", value, b"\r\n"]);
        }
        put(&[b"\r\n"]);
        return;
    }
    if !head.no_server {
        put(&[b"Server: ", server(head), b"\r\n"]);
    }
    if head.no_date {
    } else if head.date.is_empty() {
        put(&[b"Date: ", &date::now().http_date, b"\r\n"]);
    } else {
        put(&[b"Date: ", &head.date, b"\r\n"]);
    }
    if !head.content_type.is_empty() {
        put(&[b"Content-Type: ", &head.content_type]);
        if !head.charset.is_empty() {
            put(&[b"; charset=", &head.charset]);
        }
        put(&[b"\r\n"]);
    }
    if let Some(n) = head.content_length {
        put(&[
            b"Content-Length: ",
            itoa::Buffer::new().format(n).as_bytes(),
            b"\r\n",
        ]);
    }
    if !head.last_modified_text.is_empty() {
        put(&[b"Last-Modified: ", &head.last_modified_text, b"\r\n"]);
    } else if let Some(t) = head.last_modified {
        put(&[b"Last-Modified: ", &date::format(t), b"\r\n"]);
    }
    if head.absolute_location {
        put(&[b"Location: ", &head.location, b"\r\n"]);
    }
    if framing == Framing::Chunked {
        put(&[b"Transfer-Encoding: chunked\r\n"]);
    }
    if head.upgrade {
        put(&[b"Connection: upgrade\r\n"]);
    } else if head.keepalive {
        put(&[b"Connection: keep-alive\r\n"]);
        if head.keepalive_header > 0 {
            put(&[
                b"Keep-Alive: timeout=",
                itoa::Buffer::new().format(head.keepalive_header).as_bytes(),
                b"\r\n",
            ]);
        }
    } else {
        put(&[b"Connection: close\r\n"]);
    }
    if head.vary_encoding {
        put(&[b"Vary: Accept-Encoding\r\n"]);
    }
    if !head.absolute_location && !head.location.is_empty() {
        put(&[b"Location: ", &head.location, b"\r\n"]);
    }
    for (name, value) in head.headers.iter() {
        put(&[name, b": ", value, b"\r\n"]);
    }
    put(&[b"\r\n"]);
}

/// The value of `Server`: an origin's, or our own as `server_tokens` says.
pub(super) fn server(head: &ResponseHead) -> &[u8] {
    if !head.server.is_empty() {
        return &head.server;
    }
    match head.tokens {
        Tokens::On => SERVER.as_bytes(),
        Tokens::Off => b"nginx",
        Tokens::Build => SERVER_BUILD.as_bytes(),
    }
}
