//! The chunked transfer coding (RFC 9112, section 7.1), both ways.

use std::{fmt, ops::Range};

use memchr::memchr2;

use super::response::{NAMES, next_line};
use crate::http::{
    field::{Field, FieldScanner},
    headers::Headers,
};

/// Decodes a chunked body that arrives in pieces: a request's or an upstream response's.
///
/// As strict as nginx: lines end with CR LF only, chunk extensions are skipped, a size above 2^63/16 is refused.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    /// Bytes of the current chunk still to come.
    size: u64,
    /// Bytes of the chunks before it.
    before: u64,
    /// The largest body, bytes; 0 is without limit.
    limit: u64,
    trailers: Option<Box<Trailers>>,
}

/// What [`Decoder::decode`] read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input that belong to the body; all of it unless `done`.
    pub consumed: usize,
    /// The body is complete. What follows `consumed` is not part of it.
    pub done: bool,
}

/// Why a chunked body was refused. `Display` is nginx's log text for an upstream response; for a request body, where
/// only [`BadChunk::Invalid`] occurs, it is [`CLIENT_INVALID`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadChunk {
    /// Not in chunked coding.
    Invalid,
    /// A malformed trailer field, with the bytes up to and including the offending one.
    Trailer(String),
    /// The trailers are larger than was allowed for.
    TrailersTooBig,
    /// A chunk makes the body larger than [`Decoder::limit`] allows.
    TooLarge {
        /// Bytes of the chunks before it.
        before: u64,
        /// Its size.
        chunk: u64,
    },
}

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadChunk::Invalid => f.write_str("upstream sent invalid chunked response"),
            BadChunk::Trailer(line) => write!(f, "upstream sent invalid trailer: {line}"),
            BadChunk::TrailersTooBig => f.write_str("upstream sent too big trailers"),
            BadChunk::TooLarge { before, chunk } => {
                write!(f, "too large chunked body: {before}+{chunk} bytes")
            }
        }
    }
}

impl std::error::Error for BadChunk {}

/// nginx's log text (`error`) for a request body that is not in chunked coding.
pub const CLIENT_INVALID: &str = "client sent invalid chunked body";

#[derive(Debug)]
struct Trailers {
    /// Whether they are a client's: skipped whatever they hold, and kept if they can be read.
    skipped: bool,
    limit: usize,
    held: Vec<u8>,
    scanner: FieldScanner,
    fields: Headers,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Size,
    Extension,
    SizeLf,
    FirstData,
    Data,
    AfterData,
    AfterDataLf,
    LastExtension,
    LastLf,
    Trailer,
    TrailerLine,
    TrailerLineLf,
    EndLf,
    KeptTrailers,
    Done,
}

impl State {
    /// Whether the last chunk has been read.
    fn is_trailing(self) -> bool {
        matches!(
            self,
            State::Trailer | State::TrailerLine | State::TrailerLineLf | State::EndLf | State::Done
        )
    }
}

impl Trailers {
    /// Keeps what is skipped, up to the limit, and reads it at its end.
    fn keep(&mut self, bytes: &[u8], end: bool) {
        if bytes.len() > self.limit.saturating_sub(self.held.len()) {
            (self.held, self.limit) = (Vec::new(), 0);
            return;
        }
        self.held.extend_from_slice(bytes);
        if !end {
            return;
        }
        loop {
            match self.scanner.next(&self.held, NAMES) {
                Field::Line { name, value, .. } => self.fields.append(
                    self.held.get(name).unwrap_or_default(),
                    self.held.get(value).unwrap_or_default(),
                ),
                Field::End => return,
                Field::More | Field::Invalid(_) => return self.fields.clear(),
            }
        }
    }
}

impl Decoder {
    /// A decoder that skips trailers, whatever they hold.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder that keeps trailers, at most `limit` bytes of them (`proxy_buffer_size`).
    pub fn with_trailers(limit: usize) -> Self {
        Self::keeping(limit, false)
    }

    /// A decoder for a request's body. As in nginx lines of trailers end with CR LF and may hold anything; they are kept
    /// if they are fields, of at most `keep` bytes.
    pub fn of_request(keep: usize) -> Self {
        Self::keeping(keep, true)
    }

    fn keeping(limit: usize, skipped: bool) -> Self {
        let trailers = Trailers {
            skipped,
            limit,
            held: Vec::new(),
            scanner: FieldScanner::default(),
            fields: Headers::new(),
        };
        Decoder {
            trailers: Some(Box::new(trailers)),
            ..Self::default()
        }
    }

    /// Refuses the first chunk that makes the body larger than so many bytes, as soon as its data begins; 0 is without
    /// limit.
    pub fn limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    /// Decodes the next piece of the body. `data` is given the ranges of `input` that are content, in order; a range is
    /// never empty. After an error or the end, the decoder stays there.
    pub fn decode(
        &mut self,
        input: &[u8],
        mut data: impl FnMut(Range<usize>),
    ) -> Result<Decoded, BadChunk> {
        let mut pos = 0;
        let mut trailers = 0;
        while let Some(&byte) = input.get(pos) {
            self.state = match (self.state, byte) {
                (State::FirstData, _) => {
                    let (before, chunk) = (self.before, self.size);
                    if self.limit > 0 && self.limit.saturating_sub(before) < chunk {
                        return Err(BadChunk::TooLarge { before, chunk });
                    }
                    self.before = before.saturating_add(chunk);
                    self.state = State::Data;
                    continue;
                }
                (State::Data, _) => {
                    let left = input.len() - pos;
                    let take = usize::try_from(self.size).map_or(left, |size| size.min(left));
                    data(pos..pos + take);
                    pos += take;
                    self.size -= take as u64;
                    if self.size == 0 {
                        self.state = State::AfterData;
                    }
                    continue;
                }
                (State::Start, _) => {
                    self.size = hex(byte).ok_or(BadChunk::Invalid)?;
                    State::Size
                }
                (State::Size, _) => self.size_byte(byte).ok_or(BadChunk::Invalid)?,
                (State::Extension | State::LastExtension | State::TrailerLine, _) => {
                    // Only a CR ends these; a bare LF in them is refused.
                    let rest = input.get(pos..).unwrap_or_default();
                    let Some(found) = memchr2(b'\r', b'\n', rest) else {
                        pos = input.len();
                        break;
                    };
                    pos += found;
                    match (rest.get(found), self.state) {
                        (Some(b'\r'), State::Extension) => State::SizeLf,
                        (Some(b'\r'), State::LastExtension) => State::LastLf,
                        (Some(b'\r'), _) => State::TrailerLineLf,
                        _ => return Err(BadChunk::Invalid),
                    }
                }
                (State::SizeLf, b'\n') => State::FirstData,
                (State::AfterData, b'\r') => State::AfterDataLf,
                (State::AfterDataLf, b'\n') => State::Start,
                (State::LastLf, b'\n') if self.trailers.as_ref().is_some_and(|t| !t.skipped) => {
                    State::KeptTrailers
                }
                (State::LastLf, b'\n') => {
                    trailers = pos + 1;
                    State::Trailer
                }
                (State::TrailerLineLf, b'\n') => State::Trailer,
                (State::Trailer, b'\r') => State::EndLf,
                (State::Trailer, b'\n') => return Err(BadChunk::Invalid),
                (State::Trailer, _) => State::TrailerLine,
                (State::EndLf, b'\n') => State::Done,
                (State::KeptTrailers, _) => {
                    let (taken, done) = self.keep_trailers(input.get(pos..).unwrap_or_default())?;
                    pos += taken;
                    if done {
                        self.state = State::Done;
                    }
                    break;
                }
                (State::Done, _) => break,
                _ => return Err(BadChunk::Invalid),
            };
            pos += 1;
        }
        if self.state.is_trailing()
            && let Some(t) = self.trailers.as_mut().filter(|t| t.skipped)
        {
            t.keep(
                input.get(trailers..pos).unwrap_or_default(),
                self.state == State::Done,
            );
        }
        Ok(Decoded {
            consumed: pos,
            done: self.state == State::Done,
        })
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer fields seen so far; empty unless made by [`Decoder::with_trailers`].
    pub fn trailers(&self) -> Option<&Headers> {
        self.trailers
            .as_ref()
            .map(|t| &t.fields)
            .filter(|fields| !fields.is_empty())
    }

    /// The fewest bytes that must still arrive before the body can end: how much is safe to wait for.
    pub fn at_least(&self) -> u64 {
        const LAST: u64 = LAST_CHUNK.len() as u64;
        match self.state {
            State::Start => LAST,
            State::Size if self.size == 0 => 4,
            State::Size | State::Extension => 2 + self.size + 2 + LAST,
            State::SizeLf => 1 + self.size + 2 + LAST,
            State::FirstData | State::Data => self.size + 2 + LAST,
            State::AfterData => 2 + LAST,
            State::AfterDataLf => 1 + LAST,
            State::LastExtension | State::TrailerLine => 4,
            State::LastLf | State::TrailerLineLf => 3,
            State::Trailer => 2,
            State::EndLf | State::KeptTrailers => 1,
            State::Done => 0,
        }
    }

    fn size_byte(&mut self, byte: u8) -> Option<State> {
        if self.size > i64::MAX as u64 / 16 {
            return None;
        }
        if let Some(digit) = hex(byte) {
            self.size = self.size * 16 + digit;
            return Some(State::Size);
        }
        match (byte, self.size) {
            (b'\r', 0) => Some(State::LastLf),
            (b'\r', _) => Some(State::SizeLf),
            (b';' | b' ' | b'\t', 0) => Some(State::LastExtension),
            (b';' | b' ' | b'\t', _) => Some(State::Extension),
            _ => None,
        }
    }

    /// Takes trailer lines from `input`: how many bytes, and whether the last line was among them.
    fn keep_trailers(&mut self, input: &[u8]) -> Result<(usize, bool), BadChunk> {
        let Some(trailers) = &mut self.trailers else {
            return Err(BadChunk::Invalid);
        };
        let before = trailers.held.len();
        let take = input.len().min(trailers.limit.saturating_sub(before));
        trailers
            .held
            .extend_from_slice(input.get(..take).unwrap_or_default());
        loop {
            let held = &trailers.held[..];
            match next_line(&mut trailers.scanner, held, false) {
                Ok(Some(Some((name, value)))) => trailers.fields.append(
                    held.get(name).unwrap_or_default(),
                    held.get(value).unwrap_or_default(),
                ),
                Ok(Some(None)) => return Ok((trailers.scanner.pos() - before, true)),
                Ok(None) if held.len() >= trailers.limit => {
                    return Err(BadChunk::TrailersTooBig);
                }
                Ok(None) => return Ok((take, false)),
                Err(line) => return Err(BadChunk::Trailer(line)),
            }
        }
    }
}

/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The line before a chunk's `len` bytes, which [`CHUNK_END`] follows. `len` must not be 0: that is [`LAST_CHUNK`].
pub fn write_chunk_head(len: u64, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut shift = 60 - (len | 1).leading_zeros() / 4 * 4;
    loop {
        out.push(DIGITS[(len >> shift) as usize & 15]);
        if shift == 0 {
            break;
        }
        shift -= 4;
    }
    out.extend_from_slice(b"\r\n");
}

/// What follows the bytes of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The end of a chunked body with trailers.
pub fn write_last_chunk(trailers: &Headers, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    trailers.write_to(out);
    out.extend_from_slice(b"\r\n");
}

fn hex(byte: u8) -> Option<u64> {
    (byte as char).to_digit(16).map(u64::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Content, bytes consumed, done.
    type Outcome = Result<(Vec<u8>, usize, bool), BadChunk>;

    fn decode(decoder: &mut Decoder, input: &[u8], step: usize) -> Outcome {
        let (mut content, mut consumed, mut done) = (Vec::new(), 0, false);
        for piece in input.chunks(step) {
            let decoded = decoder.decode(piece, |range| {
                assert!(!range.is_empty());
                content.extend_from_slice(&piece[range]);
            })?;
            consumed += decoded.consumed;
            done = decoded.done;
            if done {
                break;
            }
            assert_eq!(decoded.consumed, piece.len());
            assert!(decoder.at_least() > 0);
        }
        Ok((content, consumed, done))
    }

    #[test]
    fn bodies() {
        for (input, expected) in [
            ("0\r\n\r\n", Some(("", 5, true))),
            ("5\r\nhello\r\n0\r\n\r\nGET", Some(("hello", 15, true))),
            (
                "A\r\n0123456789\r\n00\r\n\r\n",
                Some(("0123456789", 21, true)),
            ),
            (
                "1;a=\"b\"\r\nx\r\n1 ;c\r\ny\r\n0\t;d\r\n\r\n",
                Some(("xy", 29, true)),
            ),
            (
                "1\r\nx\r\n0\r\nA: b\r\nnonsense \0\r\n\r\nrest",
                Some(("x", 29, true)),
            ),
            ("3\r\nab", Some(("ab", 5, false))),
            ("", Some(("", 0, false))),
            ("\r\n", None),
            ("g", None),
            (" 1", None),
            ("-1", None),
            ("0x1", None),
            ("1\nx", None),
            ("1;a\nx", None),
            ("1\r\nxy", None),
            ("1\r\nx\n0\r\n", None),
            ("1\r\nx\r0", None),
            ("0\n\n", None),
            ("0;a\n", None),
            ("0\r\n\n", None),
            ("0\r\nA: b\n\r\n", None),
            ("0\r\nA: b\rc", None),
            ("0\r\n\rx", None),
            ("7ffffffffffffff\r\n", Some(("", 17, false))),
            ("800000000000000\r\n", None),
            ("ffffffffffffffff", None),
            ("00000000000000000000001\r\nx", Some(("x", 26, false))),
        ] {
            for step in [99, 1, 2, 3] {
                let outcome = decode(&mut Decoder::new(), input.as_bytes(), step);
                let expected = expected
                    .map(|(c, n, d)| (c.as_bytes().to_vec(), n, d))
                    .ok_or(BadChunk::Invalid);
                assert_eq!(outcome, expected, "{input:?} by {step}");
            }
        }
    }

    #[test]
    fn trailers_are_kept_within_their_limit() {
        let input = b"1\r\nx\r\n0\r\nA: b\r\nC:d\r\n\r\nrest";
        for step in [99, 1, 4] {
            let mut decoder = Decoder::with_trailers(14);
            assert_eq!(
                decode(&mut decoder, input, step),
                Ok((b"x".to_vec(), 22, true)),
                "by {step}"
            );
            let mut out = Vec::new();
            write_last_chunk(decoder.trailers().unwrap(), &mut out);
            assert_eq!(out, b"0\r\nA: b\r\nC: d\r\n\r\n");
            let outcome = decode(&mut Decoder::with_trailers(12), input, step);
            assert_eq!(outcome, Err(BadChunk::TrailersTooBig), "by {step}");
            let outcome = decode(&mut Decoder::with_trailers(99), b"0\r\nA b\r\n\r\n", step);
            assert_eq!(outcome, Err(BadChunk::Trailer("\"A\\x20...\"".into())));
        }
        let mut decoder = Decoder::with_trailers(99);
        assert_eq!(decode(&mut decoder, b"0\r\n\r\n", 1), Ok((vec![], 5, true)));
        assert!(decoder.trailers().is_none());
    }

    #[test]
    fn trailers_of_requests_are_skipped_and_kept_if_they_are_fields() {
        for (input, kept) in [
            ("0\r\nA: b\r\nC:d\r\n\r\n", "A: b\r\nC: d\r\n"),
            ("1\r\nx\r\n0\r\nA: b\r\n\r\n", "A: b\r\n"),
            ("0\r\n\r\n", ""),
            ("0\r\nA: b\r\nno field \0\r\n\r\n", ""),
            (
                "0\r\nA: 0123456789012345678901234567890123456789\r\n\r\n",
                "",
            ),
        ] {
            for step in [99, 1, 2, 3] {
                let mut decoder = Decoder::of_request(30);
                let (_, consumed, done) = decode(&mut decoder, input.as_bytes(), step).unwrap();
                assert_eq!((consumed, done), (input.len(), true), "{input:?} by {step}");
                let mut out = Vec::new();
                if let Some(t) = decoder.trailers() {
                    t.write_to(&mut out);
                }
                assert_eq!(String::from_utf8_lossy(&out), kept, "{input:?} by {step}");
            }
        }
        for input in ["0\r\n\n", "0\r\nT: x\n", "0\r\nT: x\r\n\n", "0\r\nT: x\rx"] {
            let outcome = decode(&mut Decoder::of_request(99), input.as_bytes(), 1);
            assert_eq!(outcome, Err(BadChunk::Invalid), "{input:?}");
        }
    }

    #[test]
    fn a_body_has_a_limit() {
        let input = b"3\r\nabc\r\n8\r\n01234567\r\n0\r\n\r\n";
        for step in [99, 1, 3] {
            for (limit, fits) in [(0, true), (11, true), (10, false), (3, false)] {
                let mut decoder = Decoder::new();
                decoder.limit(limit);
                let outcome = decode(&mut decoder, input, step);
                match fits {
                    true => assert!(outcome.is_ok(), "{limit} by {step}"),
                    false => assert_eq!(
                        outcome,
                        Err(BadChunk::TooLarge {
                            before: 3,
                            chunk: 8
                        }),
                        "{limit} by {step}"
                    ),
                }
            }
        }
        // what is announced is enough
        let mut decoder = Decoder::new();
        decoder.limit(4);
        assert!(decode(&mut decoder, b"ffffff\r\n", 99).is_ok());
        let too_large = BadChunk::TooLarge {
            before: 0,
            chunk: 0xff_ffff,
        };
        assert_eq!(decode(&mut decoder, b"x", 99), Err(too_large));
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        let mut decoder = Decoder::new();
        decode(&mut decoder, LAST_CHUNK, 1).unwrap();
        assert_eq!(
            decoder.decode(b"more", |_| panic!()),
            Ok(Decoded {
                consumed: 0,
                done: true
            })
        );
        assert_eq!(decoder.at_least(), 0);
    }

    proptest! {
        #[test]
        fn chunk_heads_are_hex(len in prop_oneof![0u64..300, any::<u64>()]) {
            let mut out = Vec::new();
            write_chunk_head(len, &mut out);
            prop_assert_eq!(out, format!("{len:x}\r\n").into_bytes());
        }

        #[test]
        fn encoded_decodes(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6), step in 1usize..9) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                write_chunk_head(chunk.len() as u64, &mut wire);
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(CHUNK_END);
            }
            wire.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(decode(&mut Decoder::new(), &wire, step), Ok((chunks.concat(), wire.len(), true)));
        }

        #[test]
        fn split_anywhere_reads_the_same(input in "([0-3]{1,2}|a|;|\r\n|\r|\n|[0-9a-zA-Z:]){0,14}", step in 1usize..5, keep in any::<bool>()) {
            let new = || if keep { Decoder::with_trailers(9) } else { Decoder::new() };
            let whole = decode(&mut new(), input.as_bytes(), 99);
            let split = decode(&mut new(), input.as_bytes(), step);
            prop_assert_eq!(whole, split);
        }
    }
}
