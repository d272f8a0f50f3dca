//! `grpc_web`: gRPC for browsers, which see no trailers (gRPC's PROTOCOL-WEB.md), in locations with `grpc_pass`.
//!
//! Messages are framed as in gRPC itself. A request needs another media type and, where it is text, base64 undone; the
//! trailers of a response become a last frame of its body. What browsers ask of other origins (CORS) is `add_header`'s:
//!
//! ```text
//! location /shop.Cart/ {
//!     grpc_web on;
//!     grpc_pass grpc://127.0.0.1:50051;
//!     add_header Access-Control-Allow-Origin https://shop.example always;
//!     add_header Access-Control-Expose-Headers grpc-status,grpc-message always;
//!     if ($request_method = OPTIONS) {
//!         add_header Access-Control-Allow-Origin https://shop.example;
//!         add_header Access-Control-Allow-Headers content-type,x-grpc-web,x-user-agent,grpc-timeout;
//!         return 204;
//!     }
//! }
//! ```

use crate::config::Result;
use crate::contract::*;
use crate::http::headers::{Headers, Known};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io;
use std::sync::Arc;

/// gRPC-Web in front of gRPC servers.
pub struct GrpcWeb;

/// What a block says.
#[derive(Clone, Default)]
pub struct GrpcWebConf {
    on: Option<bool>,
}

impl Conf for GrpcWebConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; on);
    }
}

impl Module for GrpcWeb {
    const NAME: &'static str = "http_grpc_web";
    type Conf = GrpcWebConf;
    const DIRECTIVES: &'static [Directive<GrpcWebConf>] = &[Directive::own(
        "grpc_web",
        Place::ANY_HTTP,
        Args::Flag,
        "`grpc_web on|off;` Lets clients of gRPC-Web (application/grpc-web and application/grpc-web-text, over HTTP/1.1 or HTTP/2) call the servers of `grpc_pass`; other requests pass as they are. Headers for calls from other sites (CORS) are added with `add_header`, for OPTIONS too. Default: off.",
        |c, s, _| once(&mut c.on, s, s.flag(0)?),
    )];

    fn attach(conf: &Arc<GrpcWebConf>, on: &mut Hooks) -> Result<()> {
        if conf.on == Some(true) {
            on.on(Phase::PreContent, Begin);
            on.response(Answer);
        }
        Ok(())
    }
}

/// A request that is bridged, to its end: whether it is answered in base64.
struct Bridged {
    text: bool,
}

/// Makes a request of gRPC-Web one of gRPC.
struct Begin;

impl Handler for Begin {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if r.subrequest || r.shared::<Bridged>().is_some() {
            return Next::Continue;
        }
        let origin = r.location().hooks.origin();
        if origin.is_none_or(|p| p.protocol.scheme() != "grpc") {
            return Next::Continue;
        }
        let asked = r.head.headers.get_id(Known::ContentType);
        let Some((text, kind)) = asked.and_then(grpc_type) else {
            return Next::Continue;
        };
        // who accepts something else than what he sends says so
        let accept = r.head.headers.get(b"accept").unwrap_or_default();
        let answer = match web_type(accept) {
            Some((text, _)) => text,
            None => text,
        };
        let headers = &mut r.head.headers;
        headers.set_id(Known::ContentType, &kind);
        headers.set(b"TE", b"trailers");
        headers.remove(b"accept");
        r.set_shared(Bridged { text: answer });
        if text
            && r.has_body()
            && let Err(status) = decode_body(r)
        {
            return Next::Status(status);
        }
        Next::Continue
    }
}

/// Splits a media type of gRPC-Web: whether it is the one of base64, and what follows its name.
fn web_type(text: &[u8]) -> Option<(bool, &[u8])> {
    const NAME: &[u8] = b"application/grpc-web";
    let (name, rest) = text.split_at_checked(NAME.len())?;
    if !name.eq_ignore_ascii_case(NAME) {
        return None;
    }
    let (text, rest) = match rest.split_at_checked(5) {
        Some((suffix, rest)) if suffix.eq_ignore_ascii_case(b"-text") => (true, rest),
        _ => (false, rest),
    };
    matches!(rest.first(), None | Some(b'+' | b';' | b',' | b' ')).then_some((text, rest))
}

/// The media type of gRPC for one of gRPC-Web.
fn grpc_type(web: &[u8]) -> Option<(bool, Vec<u8>)> {
    let (text, rest) = web_type(web)?;
    Some((text, [b"application/grpc", rest].concat()))
}

/// Undoes the base64 of the request's body: of what has been read, and of what is to come.
fn decode_body(r: &mut Request) -> std::result::Result<(), u16> {
    r.filter_body(Box::<Decoder>::default())
        .inspect_err(|status| {
            if *status == 400 {
                r.error(
                    crate::log::Level::Info,
                    format_args!("client sent invalid base64 in a gRPC-Web body"),
                );
            }
        })
}

impl RequestBodyFilter for Decoder {
    fn chunk(
        &mut self,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> std::result::Result<(), u16> {
        self.push(data, out).map_err(|Invalid| 400u16)?;
        match last && !self.is_whole() {
            true => Err(400),
            false => Ok(()),
        }
    }
}

/// Makes a response of gRPC one of gRPC-Web.
struct Answer;

impl HeadFilter for Answer {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let text = r.shared::<Bridged>()?.text;
        const NAME: &[u8] = b"application/grpc";
        let (name, rest) = r.out.content_type.split_at_checked(NAME.len())?;
        let plain = matches!(rest.first(), None | Some(b'+' | b';'));
        // what is no answer of gRPC (an error page) stays what it is
        if r.subrequest || !plain || !name.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let web: &[u8] = if text { b"-web-text" } else { b"-web" };
        r.out.content_type = [name, web, rest].concat();
        r.out.expect_trailers = false;
        // an error without a message has its status in the head
        let told = r.out.headers.contains(b"grpc-status");
        if told && r.out.content_length == Some(0) {
            return None;
        }
        r.out.clear_length();
        Some(Box::new(Framer {
            text: text.then(Encoder::default),
            told,
            ended: false,
        }))
    }
}

/// Puts the trailers into the body.
struct Framer {
    text: Option<Encoder>,
    told: bool,
    ended: bool,
}

impl BodyFilter for Framer {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.put(data, out);
        if last && !std::mem::replace(&mut self.ended, true) {
            let mut trailers = std::mem::take(&mut r.out.trailers);
            if !self.told && !trailers.contains(b"grpc-status") {
                // UNKNOWN: what any client of gRPC makes of an end without a status
                trailers.append(b"grpc-status", b"2");
            }
            if !trailers.is_empty() {
                self.put(&trailer_frame(&trailers), out);
            }
            self.flush(r, out)?;
        }
        Ok(())
    }

    fn flush(&mut self, _: &mut Request, out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(text) = &mut self.text {
            text.flush(out);
        }
        Ok(())
    }
}

impl Framer {
    fn put(&mut self, data: &[u8], out: &mut Vec<u8>) {
        match &mut self.text {
            Some(text) => text.push(data, out),
            None => out.extend_from_slice(data),
        }
    }
}

/// The last frame of a body: trailers as lines, with names in lower case.
fn trailer_frame(trailers: &Headers) -> Vec<u8> {
    // flag and length
    let mut frame = vec![0x80, 0, 0, 0, 0];
    for (name, value) in trailers.iter() {
        frame.extend(name.iter().map(u8::to_ascii_lowercase));
        frame.extend_from_slice(b": ");
        frame.extend_from_slice(value);
        frame.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(frame.len() - 5).unwrap_or(u32::MAX);
    if let Some(place) = frame.get_mut(1..5) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    frame
}

/// A character that is no base64, or padding in a wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Undoes base64 that comes in pieces, and may be several padded texts one behind the other.
#[derive(Default)]
pub struct Decoder {
    /// Characters of a group of four that is not whole yet.
    held: [u8; 4],
    len: usize,
}

impl Decoder {
    /// Decodes the next piece and appends the bytes to `out`.
    ///
    /// # Errors
    /// The text is not base64.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), Invalid> {
        let mut piece = piece;
        if self.len > 0 {
            let n = piece.len().min(4 - self.len);
            let (now, rest) = piece.split_at(n);
            let place = self.held.get_mut(self.len..self.len + n).ok_or(Invalid)?;
            place.copy_from_slice(now);
            self.len += n;
            piece = rest;
            if self.len < 4 {
                return Ok(());
            }
            decode(&self.held, out)?;
            self.len = 0;
        }
        let (whole, rest) = piece.split_at(piece.len() / 4 * 4);
        let mut whole = whole;
        while !whole.is_empty() {
            // padding ends a text, and another one may follow
            let end = memchr::memchr(b'=', whole).map_or(whole.len(), |at| at / 4 * 4 + 4);
            let (text, following) = whole.split_at_checked(end).ok_or(Invalid)?;
            decode(text, out)?;
            whole = following;
        }
        self.len = rest.len();
        self.held
            .get_mut(..rest.len())
            .ok_or(Invalid)?
            .copy_from_slice(rest);
        Ok(())
    }

    /// Whether what has come so far may be all.
    pub fn is_whole(&self) -> bool {
        self.len == 0
    }
}

fn decode(text: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), Invalid> {
    STANDARD.decode_vec(text, out).map_err(|_| Invalid)
}

/// Writes base64 in pieces; each time it is flushed, a text ends.
#[derive(Default)]
pub struct Encoder {
    held: [u8; 3],
    len: usize,
}

impl Encoder {
    /// Appends the text of as many of the bytes as make whole groups to `out`, and keeps the others.
    pub fn push(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let mut data = data;
        if self.len > 0 {
            let (now, rest) = data.split_at(data.len().min(3 - self.len));
            self.hold(now);
            data = rest;
            if self.len < 3 {
                return;
            }
            self.flush(out);
        }
        let (whole, rest) = data.split_at(data.len() / 3 * 3);
        encode(whole, out);
        self.hold(rest);
    }

    /// Ends the text with what is kept.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        encode(self.held.get(..self.len).unwrap_or_default(), out);
        self.len = 0;
    }

    fn hold(&mut self, data: &[u8]) {
        if let Some(place) = self.held.get_mut(self.len..self.len + data.len()) {
            place.copy_from_slice(data);
            self.len += data.len();
        }
    }
}

fn encode(data: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + data.len().div_ceil(3) * 4, 0);
    // the room is what the text needs
    let _ = STANDARD.encode_slice(data, out.get_mut(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> std::result::Result<(Vec<u8>, bool), Invalid> {
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.push(piece, &mut out)?;
        }
        Ok((out, decoder.is_whole()))
    }

    #[test]
    fn media_types() {
        for (text, kind) in [
            ("application/grpc-web", Some((false, ""))),
            ("application/grpc-web+proto", Some((false, "+proto"))),
            ("Application/gRPC-Web-Text", Some((true, ""))),
            (
                "application/grpc-web-text+json; a=b",
                Some((true, "+json; a=b")),
            ),
            ("application/grpc", None),
            ("application/grpc+proto", None),
            ("application/grpc-website", None),
            ("application/grpc-web-texture", None),
            ("", None),
        ] {
            let expected = kind.map(|(t, k): (bool, &str)| (t, k.as_bytes()));
            assert_eq!(web_type(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(
            grpc_type(b"application/grpc-web-text+proto"),
            Some((true, b"application/grpc+proto".to_vec()))
        );
    }

    #[test]
    fn trailers_are_a_frame() {
        let mut trailers = Headers::new();
        trailers.append(b"Grpc-Status", b"0");
        trailers.append(b"x", b"a b");
        assert_eq!(
            trailer_frame(&trailers),
            b"\x80\x00\x00\x00\x18grpc-status: 0\r\nx: a b\r\n"
        );
    }

    #[test]
    fn texts_follow_each_other_and_garbage_does_not() {
        assert_eq!(
            decoded([&b"YQ==YmM=ZGVm"[..]]),
            Ok((b"abcdef".to_vec(), true))
        );
        assert_eq!(decoded([&b"YQ"[..], b"=", b"="]), Ok((b"a".to_vec(), true)));
        assert_eq!(decoded([&b"YWJj"[..], b"YQ"]), Ok((b"abc".to_vec(), false)));
        for bad in ["Y===", "====", "=aaa", "YQ=a", "Y Q=", "YWJj\r\nYQ", "YR=="] {
            assert_eq!(decoded([bad.as_bytes()]), Err(Invalid), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_out(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..8),
            cut in 1usize..9,
        ) {
            let (mut encoder, mut text, mut plain) = (Encoder::default(), Vec::new(), Vec::new());
            for (piece, flush) in &pieces {
                plain.extend_from_slice(piece);
                encoder.push(piece, &mut text);
                if *flush {
                    encoder.flush(&mut text);
                    // all that has gone in can be read
                    prop_assert_eq!(decoded([&text[..]]).unwrap(), (plain.clone(), true));
                }
            }
            encoder.flush(&mut text);
            prop_assert_eq!(decoded(text.chunks(cut)).unwrap(), (plain, true));
        }

        #[test]
        fn pieces_change_nothing(text in "[A-Da-d01+/= ]{0,24}", cut in 1usize..9) {
            let whole = decoded([text.as_bytes()]);
            let parts = decoded(text.as_bytes().chunks(cut));
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn anything_is_refused_or_decoded(text in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decoded([&text[..]]);
        }
    }
}
