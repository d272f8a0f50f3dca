//! The chunked transfer coding by its grammar alone (RFC 9112, section 7.1), for `request_parsing strict` and
//! `response_parsing strict`.

use super::chunked::{BadChunk, Decoded, Decoder};
use crate::http::headers::{Headers, Known};
use crate::http::strict::{has_control, is_forbidden_trailer, is_tchar, is_token};
use std::ops::Range;

/// A decoder of chunked bodies.
#[derive(Debug)]
pub enum Chunks {
    /// As lenient as nginx.
    Nginx(Decoder),
    /// By the grammar.
    Strict(StrictDecoder),
}

impl Chunks {
    /// A decoder that keeps at most `keep` bytes of trailers; 0 keeps none.
    pub fn new(strict: bool, keep: usize) -> Chunks {
        match (strict, keep) {
            (true, _) => Chunks::Strict(StrictDecoder::new(keep)),
            (false, _) => Chunks::Nginx(Decoder::of_request(keep)),
        }
    }

    /// As [`Decoder::decode`].
    ///
    /// # Errors
    /// As there.
    pub fn decode(
        &mut self,
        input: &[u8],
        data: impl FnMut(Range<usize>),
    ) -> Result<Decoded, BadChunk> {
        match self {
            Chunks::Nginx(d) => d.decode(input, data),
            Chunks::Strict(d) => d.decode(input, data),
        }
    }

    /// As [`Decoder::limit`].
    pub fn limit(&mut self, most: u64) {
        match self {
            Chunks::Nginx(d) => d.limit(most),
            Chunks::Strict(d) => d.limit = most,
        }
    }

    /// The trailer fields, once the body is complete.
    pub fn trailers(&self) -> Option<&Headers> {
        match self {
            Chunks::Nginx(d) => d.trailers(),
            Chunks::Strict(d) => Some(&d.trailers).filter(|t| !t.is_empty()),
        }
    }
}

/// Decodes a chunked body of which nothing is guessed: lines end with CR LF; sizes have at most 16 digits and nothing
/// but extensions behind them; extensions and trailer fields follow their grammar and stay small.
#[derive(Debug)]
pub struct StrictDecoder {
    state: State,
    size: u64,
    digits: u8,
    /// Bytes of content so far, and how many there may be; 0 is any number.
    content: u64,
    limit: u64,
    /// The line of extensions or trailers being read.
    line: Vec<u8>,
    /// Bytes of extensions and trailers so far.
    extra: usize,
    keep: usize,
    trailers: Headers,
}

/// The longest line of extensions or trailers, bytes.
const LINE: usize = 4096;
/// Extensions and trailers of a body, bytes.
const EXTRA: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Extensions,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    Done,
    /// After an error.
    Broken,
}

impl StrictDecoder {
    /// A decoder that keeps at most `keep` bytes of trailers.
    pub fn new(keep: usize) -> StrictDecoder {
        StrictDecoder {
            state: State::Size,
            size: 0,
            digits: 0,
            content: 0,
            limit: 0,
            line: Vec::new(),
            extra: 0,
            keep,
            trailers: Headers::new(),
        }
    }

    /// As [`Decoder::decode`].
    ///
    /// # Errors
    /// [`BadChunk::Invalid`] for whatever does not follow the grammar; the decoder stays there.
    pub fn decode(
        &mut self,
        input: &[u8],
        mut data: impl FnMut(Range<usize>),
    ) -> Result<Decoded, BadChunk> {
        let mut pos = 0;
        while let Some(&byte) = input.get(pos) {
            match self.state {
                State::Data => {
                    if self.limit > 0 && self.content.saturating_add(self.size) > self.limit {
                        return Err(BadChunk::TooLarge {
                            before: self.content,
                            chunk: self.size,
                        });
                    }
                    let left = input.len() - pos;
                    let take = usize::try_from(self.size).map_or(left, |size| size.min(left));
                    data(pos..pos + take);
                    pos += take;
                    self.size -= take as u64;
                    self.content += take as u64;
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                    continue;
                }
                State::Done => break,
                _ => match self.step(byte) {
                    Some(state) => self.state = state,
                    None => {
                        self.state = State::Broken;
                        return Err(BadChunk::Invalid);
                    }
                },
            }
            pos += 1;
        }
        Ok(Decoded {
            consumed: pos,
            done: self.state == State::Done,
        })
    }

    /// The state after a byte that is not data; `None` where it is out of place.
    fn step(&mut self, byte: u8) -> Option<State> {
        match (self.state, byte) {
            (State::Size, b'\r') if self.digits > 0 => Some(State::SizeLf),
            (State::Size, b';') if self.digits > 0 => self.keep_byte(byte, State::Extensions),
            (State::Size, _) => {
                let digit = (byte as char).to_digit(16)?;
                self.digits += 1;
                // a body is as long as a signed number of 64 bits can tell, as in nginx
                let small = self.digits <= 16 && self.size <= i64::MAX as u64 / 16;
                self.size = self.size * u64::from(small) * 16 + u64::from(digit);
                small.then_some(State::Size)
            }
            (State::Extensions, b'\r') => {
                let fits = is_extensions(&self.line);
                self.line.clear();
                fits.then_some(State::SizeLf)
            }
            (State::Extensions, _) => self.keep_byte(byte, State::Extensions),
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                Some(match self.size {
                    0 => State::Trailer,
                    _ => State::Data,
                })
            }
            (State::DataCr, b'\r') => Some(State::DataLf),
            (State::DataLf, b'\n') => Some(State::Size),
            (State::Trailer, b'\r') => Some(State::TrailerLf),
            (State::Trailer, _) => self.keep_byte(byte, State::Trailer),
            (State::TrailerLf, b'\n') if self.line.is_empty() => Some(State::Done),
            (State::TrailerLf, b'\n') => self.trailer().then_some(State::Trailer),
            _ => None,
        }
    }

    fn keep_byte(&mut self, byte: u8, next: State) -> Option<State> {
        self.extra += 1;
        let fits = self.line.len() < LINE && self.extra <= EXTRA && !has_control(&[byte]);
        self.line.push(byte);
        fits.then_some(next)
    }

    /// Takes a trailer field; false where it is not one, or one that may not stand there.
    fn trailer(&mut self) -> bool {
        let line = std::mem::take(&mut self.line);
        let Some(colon) = memchr::memchr(b':', &line) else {
            return false;
        };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if !is_token(name) || is_forbidden_trailer(Known::of(name)) {
            return false;
        }
        if self.keep >= line.len() {
            self.keep -= line.len();
            self.trailers.append(name, value);
        }
        self.line = line;
        self.line.clear();
        true
    }
}

/// Whether `text` is one or more chunk extensions without blanks (RFC 9112, section 7.1.1).
fn is_extensions(mut text: &[u8]) -> bool {
    let token = |text: &[u8]| text.iter().take_while(|b| is_tchar(**b)).count();
    while let Some(rest) = text.strip_prefix(b";") {
        let name = token(rest);
        let rest = rest.get(name..).unwrap_or_default();
        if name == 0 {
            return false;
        }
        text = match rest.split_first() {
            Some((b'=', value)) => {
                let length = match value.first() {
                    Some(b'"') => quoted(value),
                    _ => token(value),
                };
                if length == 0 {
                    return false;
                }
                value.get(length..).unwrap_or_default()
            }
            _ => rest,
        };
    }
    text.is_empty()
}

/// Length of the quoted string that `text` begins with (RFC 9110, section 5.6.4); 0 if it has no end.
fn quoted(text: &[u8]) -> usize {
    let mut at = 1;
    loop {
        match text.get(at) {
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
            None => return 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let mut decoder = StrictDecoder::new(100);
        let (mut content, mut consumed, mut done) = (Vec::new(), 0, false);
        for piece in input.chunks(step) {
            let decoded = decoder.decode(piece, |r| content.extend_from_slice(&piece[r]))?;
            consumed += decoded.consumed;
            done = decoded.done;
            if done {
                break;
            }
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
                "1;a\r\nx\r\n0;b=c;d=\"e;\\\" f\"\r\n\r\n",
                Some(("x", 28, true)),
            ),
            ("1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n", Some(("x", 21, true))),
            ("3\r\nab", Some(("ab", 5, false))),
            ("\r\n", None),
            ("g", None),
            (" 1", None),
            ("1 \r\n", None),
            ("1\t\r\n", None),
            ("1 ;a\r\n", None),
            ("1; a\r\n", None),
            ("1;\r\n", None),
            ("1;a=\r\n", None),
            ("1;a b\r\n", None),
            ("1;a=\"b\r\n", None),
            ("1;a\x01\r\n", None),
            ("+1\r\n", None),
            ("0x1\r\n", None),
            ("1_0\r\n", None),
            ("1\nx", None),
            ("1\rx", None),
            ("1\r\nx\n0\r\n", None),
            ("1\r\nxy", None),
            ("0\n\n", None),
            ("0\r\n\n", None),
            ("0\r\n\rx", None),
            ("0\r\nA: b\n\r\n", None),
            ("0\r\nA\r\n", None),
            ("0\r\nA : b\r\n", None),
            ("0\r\n A: b\r\n", None),
            ("0\r\n: b\r\n", None),
            ("0\r\nA: b\x01\r\n", None),
            ("0\r\nContent-Length: 1\r\n", None),
            ("0\r\nhost: a\r\n", None),
            ("00000000000000001\r\n", None),
            ("ffffffffffffffff", None),
        ] {
            for step in [99, 1, 2, 3] {
                let expected = expected
                    .map(|(c, n, d)| (c.as_bytes().to_vec(), n, d))
                    .ok_or(BadChunk::Invalid);
                assert_eq!(
                    decode(input.as_bytes(), step),
                    expected,
                    "{input:?} by {step}"
                );
            }
        }
        let long = format!("1;{}\r\nx", "a".repeat(LINE));
        assert_eq!(decode(long.as_bytes(), 99), Err(BadChunk::Invalid));
    }

    proptest! {
        /// What is taken here is taken, and understood in the same way, as nginx does.
        #[test]
        fn nothing_is_taken_that_nginx_refuses(
            input in "([0-3]{1,2}|a|;|=|\"|\r\n|\r|\n| |[0-9a-zA-Z:]){0,16}(0\r\n\r\n)?",
            step in 1usize..5,
        ) {
            let strict = decode(input.as_bytes(), step);
            prop_assert_eq!(&strict, &decode(input.as_bytes(), 99));
            if let Ok((content, consumed, true)) = strict {
                let mut theirs = Vec::new();
                let decoded = Decoder::new().decode(input.as_bytes(), |r| {
                    theirs.extend_from_slice(&input.as_bytes()[r]);
                });
                prop_assert_eq!(decoded, Ok(Decoded { consumed, done: true }));
                prop_assert_eq!(content, theirs);
            }
        }
    }
}
