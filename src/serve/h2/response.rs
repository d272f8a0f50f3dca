//! The response head of HTTP/2: the same fields as in HTTP/1, in nginx's order, without those of the connection.

use super::stream_io::Output;
use crate::contract::ResponseHead;
use crate::http::h2::frame::{headers_begin, headers_end};
use crate::http::h2::hpack::Indexing;
use crate::http::headers::{Headers, Known};
use crate::http::{date, status};
use crate::serve::head_writer;

/// Appends a head with this status; how many bytes its frames are.
pub(super) fn head(
    out: &mut Output,
    stream: u32,
    head: &ResponseHead,
    code: u16,
    end: bool,
) -> usize {
    let mut w = Writer::new(out, stream);
    w.out.encoder.status(&mut w.out.buf, status::on_wire(code));
    if head.status >= 200 || head.status == 101 {
        own(head, &mut w);
    }
    for (known, name, value) in head.headers.entries() {
        let tunnel = head.status == 101 && name.eq_ignore_ascii_case(b"sec-websocket-accept");
        if !is_of_connection(known) && !tunnel {
            w.field(name, value, indexing(known));
        }
    }
    w.end(end)
}

/// Appends trailers, with which the response ends; how many bytes their frames are.
pub(super) fn trailers(out: &mut Output, stream: u32, list: &Headers) -> usize {
    let mut w = Writer::new(out, stream);
    for (known, name, value) in list.entries() {
        if !is_of_connection(known) {
            w.field(name, value, Indexing::Passing);
        }
    }
    w.end(true)
}

/// The fields that have a place of their own.
fn own(head: &ResponseHead, w: &mut Writer<'_>) {
    if !head.no_server {
        w.field(b"server", head_writer::server(head), Indexing::Kept);
    }
    if head.no_date {
    } else if head.date.is_empty() {
        w.field(b"date", &date::now().http_date, Indexing::Kept);
    } else {
        w.field(b"date", &head.date, Indexing::Passing);
    }
    if !head.content_type.is_empty() {
        if head.charset.is_empty() {
            w.field(b"content-type", &head.content_type, Indexing::Kept);
        } else {
            let mut text = std::mem::take(&mut w.out.scratch);
            text.clear();
            for part in [&head.content_type[..], b"; charset=", &head.charset] {
                text.extend_from_slice(part);
            }
            w.field(b"content-type", &text, Indexing::Kept);
            w.out.scratch = text;
        }
    }
    if let Some(n) = head.content_length {
        let mut text = itoa::Buffer::new();
        w.field(
            b"content-length",
            text.format(n).as_bytes(),
            Indexing::Passing,
        );
    }
    if !head.last_modified_text.is_empty() {
        w.field(
            b"last-modified",
            &head.last_modified_text,
            Indexing::Passing,
        );
    } else if let Some(t) = head.last_modified {
        w.field(b"last-modified", &date::format(t), Indexing::Passing);
    }
    if !head.location.is_empty() {
        w.field(b"location", &head.location, Indexing::Passing);
    }
    if head.vary_encoding {
        w.field(b"vary", b"Accept-Encoding", Indexing::Kept);
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

/// What is the same in many responses is kept.
fn indexing(known: Known) -> Indexing {
    match known {
        Known::Other
        | Known::AcceptRanges
        | Known::CacheControl
        | Known::ContentEncoding
        | Known::Vary
        | Known::Via => Indexing::Kept,
        _ => Indexing::Passing,
    }
}

/// Values longer than this are not kept: they would push the others out.
const KEPT: usize = 128;

struct Writer<'a> {
    out: &'a mut Output,
    stream: u32,
    at: usize,
}

impl Writer<'_> {
    fn new(out: &mut Output, stream: u32) -> Writer<'_> {
        out.buf.reserve(256);
        let at = headers_begin(&mut out.buf);
        out.encoder.begin(&mut out.buf);
        Writer { out, stream, at }
    }

    /// A field that cannot be sent, with control bytes in it, is left out.
    fn field(&mut self, name: &[u8], value: &[u8], indexing: Indexing) {
        let broken = |b: &u8| *b <= b' ' || *b == 0x7f || *b == b':';
        if memchr::memchr3(0, b'\r', b'\n', value).is_some()
            || name.is_empty()
            || name.iter().any(broken)
        {
            return;
        }
        let indexing = match indexing {
            Indexing::Kept if value.len() > KEPT => Indexing::Passing,
            other => other,
        };
        self.out
            .encoder
            .field(&mut self.out.buf, name, value, indexing);
    }

    fn end(self, end: bool) -> usize {
        let out = self.out;
        headers_end(&mut out.buf, self.at, self.stream, end, out.max_frame);
        let n = out.buf.len() - self.at;
        out.touched();
        n
    }
}
