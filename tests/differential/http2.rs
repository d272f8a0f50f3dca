//! A request over cleartext HTTP/2 by prior knowledge, and what came of it as text.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::BytesMut;
use couloir::http::h2::frame::{self, Frame, HEAD, Head};
use couloir::http::h2::hpack::{Decoder, Encoder, Fields, Indexing, ListLimits};
use couloir::http::h2::{Code, PREFACE};

use crate::common::DEADLINE;
use crate::common::client::Response;

/// Larger bodies would need window updates to be waited for.
const LARGEST_BODY: usize = 60_000;
const PING: [u8; 8] = *b"sentinel";

/// Sends a request with these fields, characters standing for bytes one to one; `render` writes down a response.
pub fn exchange(
    addr: SocketAddr,
    fields: &[(String, String)],
    body: &[u8],
    render: impl Fn(&Response, &mut String),
) -> String {
    assert!(body.len() <= LARGEST_BODY);
    let mut talk = Talk::new(addr);
    let mut text = String::new();
    let end = talk.run(fields, body, &render, &mut text);
    let _ = writeln!(text, "=== {end}");
    text
}

struct Talk {
    stream: TcpStream,
    input: Vec<u8>,
    out: BytesMut,
    decoder: Decoder,
}

impl Talk {
    fn new(addr: SocketAddr) -> Talk {
        let stream = TcpStream::connect(addr).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("timeout");
        let mut out = BytesMut::from(PREFACE);
        frame::settings(&mut out, &[]);
        Talk {
            stream,
            input: Vec::new(),
            out,
            decoder: Decoder::new(4096),
        }
    }

    /// Tells what became of the stream and of the connection.
    fn run(
        &mut self,
        fields: &[(String, String)],
        body: &[u8],
        render: &impl Fn(&Response, &mut String),
        text: &mut String,
    ) -> String {
        self.request(fields, body);
        let mut end = String::new();
        let mut response = Response::default();
        let mut asked = false;
        loop {
            if self.stream.write_all(&self.out).is_err() {
                return end + "closed";
            }
            self.out.clear();
            let Some((head, payload)) = self.frame() else {
                if !response.line.is_empty() && !asked {
                    render(&response, text);
                }
                return end + "closed";
            };
            let (fin, reset) = match frame::parse(&head, &payload) {
                Ok(Frame::Headers {
                    block, end, whole, ..
                }) => {
                    assert!(whole, "no test has heads so large");
                    self.head(block, &mut response, render, text);
                    (end, None)
                }
                Ok(Frame::Data { data, end }) => {
                    response.body.extend_from_slice(data);
                    (end, None)
                }
                Ok(Frame::Settings(_)) => {
                    frame::settings_ack(&mut self.out);
                    (false, None)
                }
                // whether a body that nobody reads has come before the answer is a matter of time
                Ok(Frame::Reset(Code::NO_ERROR)) if asked => (false, None),
                Ok(Frame::Reset(code)) => (false, Some(code)),
                Ok(Frame::Ping { ack: false, data }) => {
                    frame::ping(&mut self.out, true, data);
                    (false, None)
                }
                Ok(Frame::Ping { ack: true, data }) if data == PING => {
                    return end + "kept";
                }
                Ok(Frame::GoAway { code, .. }) if code != Code::NO_ERROR => {
                    let _ = write!(end, "goaway {code}, ");
                    (false, None)
                }
                _ => (false, None),
            };
            if let Some(code) = reset {
                let _ = write!(end, "reset {code}, ");
            }
            if (fin || reset.is_some()) && !asked {
                if !response.line.is_empty() {
                    render(&response, text);
                }
                // what follows the end of the stream comes before the answer to this
                asked = true;
                frame::ping(&mut self.out, false, PING);
            }
        }
    }

    fn request(&mut self, fields: &[(String, String)], body: &[u8]) {
        let mut encoder = Encoder::default();
        let at = frame::headers_begin(&mut self.out);
        encoder.begin(&mut self.out);
        let bytes = |text: &str| -> Vec<u8> {
            text.chars()
                .map(|c| u8::try_from(c).expect("a byte"))
                .collect()
        };
        for (name, value) in fields {
            encoder.field(
                &mut self.out,
                &bytes(name),
                &bytes(value),
                Indexing::Passing,
            );
        }
        frame::headers_end(&mut self.out, at, 1, body.is_empty(), 16_384);
        let mut pieces = body.chunks(16_384).peekable();
        while let Some(piece) = pieces.next() {
            frame::data(&mut self.out, 1, piece, pieces.peek().is_none());
        }
    }

    /// A head, or the trailers.
    fn head(
        &mut self,
        block: &[u8],
        response: &mut Response,
        render: &impl Fn(&Response, &mut String),
        text: &mut String,
    ) {
        let mut list = Fields::default();
        let limits = ListLimits {
            string: 1 << 20,
            list: 1 << 20,
        };
        self.decoder
            .decode(block, limits, &mut list)
            .expect("a header block");
        let latin = |bytes: &[u8]| -> String { bytes.iter().map(|b| char::from(*b)).collect() };
        let fields: Vec<_> = list.iter().map(|(n, v)| (latin(n), latin(v))).collect();
        let trailers = !response.line.is_empty();
        for (name, value) in fields {
            match (trailers, name.as_str()) {
                (true, _) => response.trailers.push((name, value)),
                (false, ":status") => {
                    response.status = value.parse().expect("a status");
                    response.line = format!("HTTP/2 {value}");
                }
                (false, _) => response.headers.push((name, value)),
            }
        }
        if (100..200).contains(&response.status) {
            render(response, text);
            *response = Response::default();
        }
    }

    fn frame(&mut self) -> Option<(Head, Vec<u8>)> {
        loop {
            if let Some(head) = Head::parse(&self.input)
                && self.input.len() >= HEAD + head.length
            {
                let rest = self.input.split_off(HEAD + head.length);
                let payload = std::mem::replace(&mut self.input, rest).split_off(HEAD);
                return Some((head, payload));
            }
            let mut piece = [0; 16_384];
            match self.stream.read(&mut piece) {
                Ok(n) if n > 0 => self.input.extend_from_slice(&piece[..n]),
                _ => return None,
            }
        }
    }
}
