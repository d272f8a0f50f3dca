//! FastCGI (the protocol's specification 1.0, responder role): records written and read.

use bytes::BytesMut;
use std::fmt;
use std::ops::Range;

/// Length of a record's head.
pub const RECORD_HEAD: usize = 8;
/// The most that one record holds, bytes.
pub const MAX_CONTENT: usize = 0xffff;

const VERSION: u8 = 1;
const BEGIN_REQUEST: u8 = 1;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
const RESPONDER: u8 = 1;
const KEEP_CONN: u8 = 1;
/// What one record of a request's body holds, as in nginx.
const PIECE: usize = 32 * 1024;

/// Begins a request; `keep` asks the application to leave the connection open.
pub fn begin(keep: bool, out: &mut Vec<u8>) {
    record_head(BEGIN_REQUEST, 8, 0, out);
    let flags = if keep { KEEP_CONN } else { 0 };
    out.extend_from_slice(&[0, RESPONDER, flags, 0, 0, 0, 0, 0]);
}

/// Writes the parameters: `write` appends the pairs ([`pair`]); an empty record ends them.
///
/// # Errors
/// The length where it is more than a record holds; nothing is to be sent then.
pub fn params(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), usize> {
    let begin = out.len();
    record_head(PARAMS, 0, 0, out);
    write(out);
    let length = out.len().saturating_sub(begin + RECORD_HEAD);
    let content = u16::try_from(length).map_err(|_| length)?;
    let padding = padding(length);
    if let Some(head) = out.get_mut(begin + 4..begin + 7) {
        let [high, low] = content.to_be_bytes();
        head.copy_from_slice(&[high, low, padding]);
    }
    pad(padding, out);
    // without parameters this record ends them
    if length > 0 {
        record_head(PARAMS, 0, 0, out);
    }
    Ok(())
}

/// Writes one pair: its name, and the value that `value` appends.
pub fn pair(name: &[u8], value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    length(name.len(), out);
    let at = out.len();
    out.push(0);
    out.extend_from_slice(name);
    let begin = out.len();
    value(out);
    let len = out.len().saturating_sub(begin);
    if len > 127 {
        let long = (len as u32 | 1 << 31).to_be_bytes();
        out.splice(at..at + 1, long);
    } else if let Some(byte) = out.get_mut(at) {
        *byte = len as u8;
    }
}

fn length(len: usize, out: &mut Vec<u8>) {
    if len > 127 {
        out.extend_from_slice(&(len as u32 | 1 << 31).to_be_bytes());
    } else {
        out.push(len as u8);
    }
}

/// Writes a piece of the request's body; nothing for an empty one, which would end it.
pub fn stdin(body: &[u8], out: &mut Vec<u8>) {
    for piece in body.chunks(PIECE) {
        let padding = padding(piece.len());
        record_head(STDIN, piece.len() as u16, padding, out);
        out.extend_from_slice(piece);
        pad(padding, out);
    }
}

/// Ends the request's body.
pub fn stdin_end(out: &mut Vec<u8>) {
    record_head(STDIN, 0, 0, out);
}

fn record_head(kind: u8, length: u16, padding: u8, out: &mut Vec<u8>) {
    let [high, low] = length.to_be_bytes();
    out.extend_from_slice(&[VERSION, kind, 0, 1, high, low, padding, 0]);
}

fn padding(length: usize) -> u8 {
    (length.wrapping_neg() & 7) as u8
}

fn pad(padding: u8, out: &mut Vec<u8>) {
    out.resize(out.len() + usize::from(padding), 0);
}

/// Takes an application's records apart.
#[derive(Debug, Default, Clone)]
pub struct Demux {
    state: State,
    kind: u8,
    /// Bytes of content that are still to come.
    content: usize,
    padding: usize,
    /// The record had no content to begin with.
    empty: bool,
    odd_end: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of the head have been read.
    Head(u8),
    Content,
    Padding,
    Ended,
    #[default]
    Start,
}

/// What [`Demux::next`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the answer.
    Stdout(Range<usize>),
    /// Bytes of the application's error output.
    Stderr(Range<usize>),
    /// The answer is complete.
    StdoutEnd,
    /// The request is over; nothing else may follow. `clean`: in a record of the length that it must have.
    End {
        /// See above.
        clean: bool,
    },
}

/// Why records are refused. Its `Display` is nginx's log text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Another version than 1.
    Version(u8),
    /// A type that an application does not send.
    Kind(u8),
    /// Another request than the one asked.
    IdHigh(u8),
    /// The same, in the low byte.
    IdLow(u8),
    /// A record that cannot stand in the head of an answer.
    Unexpected(u8),
    /// The answer ended before its head did.
    StdoutClosed,
    /// The request ended before as many bytes had come as were declared.
    RequestClosed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Version(v) => {
                write!(f, "upstream sent unsupported FastCGI protocol version: {v}")
            }
            Error::Kind(k) => write!(f, "upstream sent invalid FastCGI record type: {k}"),
            Error::IdHigh(b) => {
                write!(
                    f,
                    "upstream sent unexpected FastCGI request id high byte: {b}"
                )
            }
            Error::IdLow(b) => {
                write!(
                    f,
                    "upstream sent unexpected FastCGI request id low byte: {b}"
                )
            }
            Error::Unexpected(k) => write!(f, "upstream sent unexpected FastCGI record: {k}"),
            Error::StdoutClosed => f.write_str("upstream prematurely closed FastCGI stdout"),
            Error::RequestClosed => f.write_str("upstream prematurely closed FastCGI request"),
        }
    }
}

impl std::error::Error for Error {}

impl Demux {
    /// The next event in `buf` from `pos` on, which is moved behind what was used; `None` where more is needed.
    ///
    /// # Errors
    /// A record that an application must not send.
    pub fn next(&mut self, buf: &[u8], pos: &mut usize) -> Result<Option<Event>, Error> {
        loop {
            let rest = buf.get(*pos..).unwrap_or_default();
            match self.state {
                State::Ended => return Ok(None),
                State::Start => {
                    // most heads come whole
                    let Some(head) = rest.first_chunk::<RECORD_HEAD>() else {
                        self.state = State::Head(0);
                        continue;
                    };
                    for (i, byte) in (0u8..).zip(head) {
                        self.head_byte(i, *byte)?;
                    }
                    *pos += RECORD_HEAD;
                    self.head_done();
                }
                State::Head(at) => {
                    let Some(byte) = rest.first() else {
                        return Ok(None);
                    };
                    self.head_byte(at, *byte)?;
                    *pos += 1;
                    self.state = State::Head(at + 1);
                    if usize::from(at) + 1 == RECORD_HEAD {
                        self.head_done();
                    }
                }
                State::Content => {
                    if self.content == 0 {
                        self.state = State::Padding;
                        if self.empty && self.kind == STDOUT {
                            return Ok(Some(Event::StdoutEnd));
                        }
                        continue;
                    }
                    let n = self.content.min(rest.len());
                    if n == 0 {
                        return Ok(None);
                    }
                    let range = *pos..*pos + n;
                    *pos += n;
                    self.content -= n;
                    match self.kind {
                        STDOUT => return Ok(Some(Event::Stdout(range))),
                        STDERR => return Ok(Some(Event::Stderr(range))),
                        _ => {}
                    }
                }
                State::Padding => {
                    let n = self.padding.min(rest.len());
                    *pos += n;
                    self.padding -= n;
                    if self.padding > 0 {
                        return Ok(None);
                    }
                    if self.kind == END_REQUEST {
                        self.state = State::Ended;
                        return Ok(Some(Event::End {
                            clean: !self.odd_end,
                        }));
                    }
                    self.state = State::Start;
                }
            }
        }
    }

    /// Whether the bytes so far end where a record does.
    pub fn is_between_records(&self) -> bool {
        matches!(self.state, State::Start | State::Head(0) | State::Ended)
    }

    fn head_byte(&mut self, at: u8, byte: u8) -> Result<(), Error> {
        match at {
            0 if byte != VERSION => return Err(Error::Version(byte)),
            1 if !matches!(byte, STDOUT | STDERR | END_REQUEST) => return Err(Error::Kind(byte)),
            1 => self.kind = byte,
            2 if byte != 0 => return Err(Error::IdHigh(byte)),
            3 if byte != 1 => return Err(Error::IdLow(byte)),
            4 => self.content = usize::from(byte) << 8,
            5 => self.content |= usize::from(byte),
            6 => self.padding = usize::from(byte),
            _ => {}
        }
        Ok(())
    }

    fn head_done(&mut self) {
        self.empty = self.content == 0;
        self.odd_end = self.kind == END_REQUEST && self.content != 8;
        self.state = State::Content;
    }
}

/// One answer: what [`Demux`] finds, gathered.
#[derive(Debug, Default)]
pub struct Answer {
    demux: Demux,
    /// Bytes of the answer that nobody has taken yet.
    pub stdout: BytesMut,
    /// The application's error output, in the pieces in which it came.
    pub stderr: Vec<Vec<u8>>,
    /// The answer is complete.
    pub closed: bool,
    /// The request is over; whether its record was as it must be.
    pub ended: Option<bool>,
}

impl Answer {
    /// Takes what has come; returns how much of it was used: all, unless the request is over.
    ///
    /// # Errors
    /// A record that an application must not send.
    pub fn feed(&mut self, buf: &[u8]) -> Result<usize, Error> {
        let mut pos = 0;
        while let Some(event) = self.demux.next(buf, &mut pos)? {
            match event {
                // what follows the end of the answer belongs to nobody
                Event::Stdout(_) if self.closed => return Err(Error::Unexpected(STDOUT)),
                Event::Stdout(range) => self
                    .stdout
                    .extend_from_slice(buf.get(range).unwrap_or_default()),
                Event::Stderr(range) => {
                    if let Some(text) = buf.get(range) {
                        self.stderr.push(text.to_vec());
                    }
                }
                Event::StdoutEnd => self.closed = true,
                Event::End { clean } => {
                    self.ended = Some(clean);
                    return Ok(pos);
                }
            }
        }
        Ok(pos)
    }

    /// Why the head of the answer cannot come any more.
    pub fn no_head(&self) -> Option<Error> {
        if self.closed {
            Some(Error::StdoutClosed)
        } else {
            self.ended.map(|_| Error::Unexpected(END_REQUEST))
        }
    }

    /// Whether the bytes so far end where a record does.
    pub fn is_between_records(&self) -> bool {
        self.demux.is_between_records()
    }
}

/// Error output as nginx logs it: without the line ends, dots and spaces behind it.
pub fn trimmed(text: &[u8]) -> &[u8] {
    let mut end = text.len();
    while end > 1 && matches!(text.get(end - 1), Some(b'\n' | b'\r' | b'.' | b' ')) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, content: &[u8], padding: u8) -> Vec<u8> {
        let mut out = Vec::new();
        record_head(kind, content.len() as u16, padding, &mut out);
        out.extend_from_slice(content);
        pad(padding, &mut out);
        out
    }

    fn end() -> Vec<u8> {
        record(END_REQUEST, &[0; 8], 0)
    }

    /// The answer to pieces of bytes, and how many of them were used.
    fn read(pieces: &[&[u8]]) -> Result<(Answer, usize), Error> {
        let mut answer = Answer::default();
        let mut used = 0;
        for p in pieces {
            used += answer.feed(p)?;
        }
        Ok((answer, used))
    }

    #[test]
    fn an_answer_in_records() {
        let text = [
            record(STDERR, b"oops\n", 3),
            record(STDOUT, b"a: b\r\n", 2),
            record(STDOUT, b"\r\nbody", 0),
            record(STDOUT, b"", 5),
            end(),
            b"more".to_vec(),
        ]
        .concat();
        let (a, used) = read(&[&text]).unwrap();
        assert_eq!(&a.stdout[..], b"a: b\r\n\r\nbody");
        assert_eq!(a.stderr, [b"oops\n"]);
        assert!(a.closed);
        assert_eq!((a.ended, used), (Some(true), text.len() - 4));
    }

    #[test]
    fn refused_records() {
        let bad = |text: &[u8]| read(&[text]).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            bad(b"\x02"),
            "upstream sent unsupported FastCGI protocol version: 2"
        );
        assert_eq!(
            bad(b"\x01\x0b"),
            "upstream sent invalid FastCGI record type: 11"
        );
        assert_eq!(
            bad(b"\x01\x06\x01"),
            "upstream sent unexpected FastCGI request id high byte: 1"
        );
        assert_eq!(
            bad(b"\x01\x06\x00\x02"),
            "upstream sent unexpected FastCGI request id low byte: 2"
        );
        let twice = [record(STDOUT, b"", 0), record(STDOUT, b"x", 0)].concat();
        assert_eq!(bad(&twice), "upstream sent unexpected FastCGI record: 6");
    }

    #[test]
    fn an_end_of_another_length_is_no_clean_end() {
        let (a, _) = read(&[&record(END_REQUEST, b"", 0)]).unwrap();
        assert_eq!(a.ended, Some(false));
        assert_eq!(a.no_head(), Some(Error::Unexpected(END_REQUEST)));
    }

    #[test]
    fn requests_are_written_in_records() {
        let mut out = Vec::new();
        begin(true, &mut out);
        params(&mut out, |out| {
            pair(b"A", |v| v.extend_from_slice(b"xy"), out);
            pair(b"B", |v| v.extend_from_slice(&[b'z'; 200]), out);
        })
        .unwrap();
        stdin(b"body", &mut out);
        stdin_end(&mut out);
        let pairs = [&b"\x01\x02Axy\x01\x80\0\0\xc8B"[..], &[b'z'; 200]].concat();
        let mut expected = b"\x01\x01\0\x01\0\x08\0\0\0\x01\x01\0\0\0\0\0".to_vec();
        expected.extend(record(PARAMS, &pairs, padding(pairs.len())));
        expected.extend(record(PARAMS, b"", 0));
        expected.extend(record(STDIN, b"body", 4));
        expected.extend(record(STDIN, b"", 0));
        assert_eq!(out, expected);
        assert_eq!(out.len() % 8, 0);
    }

    #[test]
    fn too_many_parameters_are_refused() {
        let mut out = Vec::new();
        let result = params(&mut out, |out| {
            pair(b"A", |v| v.resize(v.len() + 70_000, b'x'), out)
        });
        assert_eq!(result, Err(70_006));
    }

    #[test]
    fn error_output_is_trimmed() {
        assert_eq!(trimmed(b"PHP message: x. \r\n"), b"PHP message: x");
        assert_eq!(trimmed(b"\n\n"), b"\n");
        assert_eq!(trimmed(b""), b"");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            records in prop::collection::vec((prop_oneof![Just(STDOUT), Just(STDERR)],
                prop::collection::vec(any::<u8>(), 1..40), 0u8..9), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut text: Vec<u8> = records.iter().flat_map(|(k, c, p)| record(*k, c, *p)).collect();
            text.extend(end());
            let stdout: Vec<u8> = records.iter().filter(|r| r.0 == STDOUT).flat_map(|r| r.1.clone()).collect();
            let at = cut.index(text.len() + 1);
            let (a, used) = read(&[&text[..at], &text[at..]]).unwrap();
            prop_assert_eq!(used, text.len());
            prop_assert_eq!(&a.stdout[..], &stdout[..]);
            prop_assert_eq!(a.ended, Some(true));
            let whole = read(&[&text]).unwrap().0;
            prop_assert_eq!(whole.stderr.concat(), a.stderr.concat());
        }

        #[test]
        fn never_panics(text in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, used)) = read(&[&text]) {
                prop_assert!(used <= text.len());
            }
        }

        #[test]
        fn bodies_come_back(body in prop::collection::vec(any::<u8>(), 0..70_000)) {
            let mut out = Vec::new();
            stdin(&body, &mut out);
            stdin_end(&mut out);
            // an application's side of it, as records of output
            for_records(&mut out);
            let a = read(&[&out]).unwrap().0;
            prop_assert_eq!(&a.stdout[..], &body[..]);
            prop_assert!(a.closed);
        }
    }

    /// Turns records of input into records of output.
    fn for_records(text: &mut [u8]) {
        let mut at = 0;
        while at < text.len() {
            text[at + 1] = STDOUT;
            let content = usize::from(text[at + 4]) << 8 | usize::from(text[at + 5]);
            at += RECORD_HEAD + content + usize::from(text[at + 6]);
        }
    }
}
