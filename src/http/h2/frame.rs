//! Frames (RFC 9113, sections 4 and 6).

use super::{Code, DEFAULT_FRAME, MAX_FRAME, MAX_WINDOW};
use bytes::{BufMut, BytesMut};
use std::fmt;

/// The head of a frame, bytes.
pub const HEAD: usize = 9;

/// The types of frames, as they are on the wire.
#[allow(missing_docs)]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The flags of frames; the same bit has other meanings in other types.
#[allow(missing_docs)]
pub mod flag {
    pub const ACK: u8 = 0x01;
    pub const END_STREAM: u8 = 0x01;
    pub const END_HEADERS: u8 = 0x04;
    pub const PADDED: u8 = 0x08;
    pub const PRIORITY: u8 = 0x20;
}

/// The settings (RFC 9113, section 6.5.2; RFC 8441, section 3).
#[allow(missing_docs)]
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes that follow the head.
    pub length: usize,
    /// One of [`kind`], or an unknown type.
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
}

impl Head {
    /// Reads a head; `None` while it is not whole.
    pub fn parse(input: &[u8]) -> Option<Head> {
        let &[a, b, c, kind, flags, d, e, f, g] = input.first_chunk::<HEAD>()?;
        Some(Head {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([d, e, f, g]) & MAX_WINDOW,
        })
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Appends the head.
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(HEAD);
        out.put_uint(self.length as u64, 3);
        out.put_u8(self.kind);
        out.put_u8(self.flags);
        out.put_u32(self.stream & MAX_WINDOW);
    }
}

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Bytes of a body, without padding.
    Data {
        /// The body's bytes.
        data: &'a [u8],
        /// END_STREAM.
        end: bool,
    },
    /// The beginning of a header block.
    Headers {
        /// The block, or its first part.
        block: &'a [u8],
        /// END_STREAM.
        end: bool,
        /// END_HEADERS.
        whole: bool,
        /// The stream that it depends on.
        depends: Option<u32>,
    },
    /// More of a header block.
    Continuation {
        /// The next part.
        block: &'a [u8],
        /// END_HEADERS.
        whole: bool,
    },
    /// A priority, which nobody heeds (RFC 9113, section 5.3.2).
    Priority {
        /// The stream that it depends on.
        depends: u32,
    },
    /// The end of a stream.
    Reset(Code),
    /// Settings of the peer.
    Settings(Settings<'a>),
    /// The peer took our settings.
    SettingsAck,
    /// A server's promise.
    PushPromise,
    /// A sign of life.
    Ping {
        /// Whether it answers one.
        ack: bool,
        /// What is to be sent back.
        data: [u8; 8],
    },
    /// The peer takes no more streams.
    GoAway {
        /// The last stream that it serves.
        last: u32,
        /// Why.
        code: Code,
    },
    /// More may be sent.
    WindowUpdate(u32),
    /// A type that is not known: to be ignored.
    Unknown,
}

/// Parses what follows a frame's head; `payload` must be whole.
///
/// # Errors
/// How the frame is broken: an error of the connection, or of the stream where [`Invalid::stream`] says so.
pub fn parse<'a>(head: &Head, payload: &'a [u8]) -> Result<Frame<'a>, Invalid> {
    let size = |want: usize, why| {
        if payload.len() == want {
            Ok(())
        } else {
            Err(Invalid(Code::FRAME_SIZE_ERROR, why))
        }
    };
    let length = payload.len();
    let on_stream = |name| {
        if head.stream == 0 {
            Err(Invalid(Code::PROTOCOL_ERROR, Why::Identifier(name)))
        } else {
            Ok(())
        }
    };
    let on_connection = |name| {
        if head.stream != 0 {
            Err(Invalid(Code::PROTOCOL_ERROR, Why::Identifier(name)))
        } else {
            Ok(())
        }
    };
    Ok(match head.kind {
        kind::DATA => {
            on_stream("DATA")?;
            Frame::Data {
                data: unpad(head, payload, "DATA")?,
                end: head.has(flag::END_STREAM),
            }
        }
        kind::HEADERS => {
            on_stream("HEADERS")?;
            let mut block = unpad(head, payload, "HEADERS")?;
            let mut depends = None;
            if head.has(flag::PRIORITY) {
                let (d, rest) = priority(block).ok_or(Invalid(
                    Code::FRAME_SIZE_ERROR,
                    Why::Length("HEADERS", length),
                ))?;
                (depends, block) = (Some(d), rest);
            }
            Frame::Headers {
                block,
                end: head.has(flag::END_STREAM),
                whole: head.has(flag::END_HEADERS),
                depends,
            }
        }
        kind::CONTINUATION => {
            on_stream("CONTINUATION")?;
            Frame::Continuation {
                block: payload,
                whole: head.has(flag::END_HEADERS),
            }
        }
        kind::PRIORITY => {
            on_stream("PRIORITY")?;
            size(5, Why::Length("PRIORITY", length))?;
            let depends = priority(payload).map_or(0, |(d, _)| d);
            Frame::Priority { depends }
        }
        kind::RST_STREAM => {
            size(4, Why::Length("RST_STREAM", length))?;
            on_stream("RST_STREAM")?;
            Frame::Reset(Code(number(payload)))
        }
        kind::SETTINGS => {
            on_connection("SETTINGS")?;
            if head.has(flag::ACK) {
                size(0, Why::AckLength)?;
                return Ok(Frame::SettingsAck);
            }
            if !length.is_multiple_of(6) {
                return Err(Invalid(
                    Code::FRAME_SIZE_ERROR,
                    Why::Length("SETTINGS", length),
                ));
            }
            Frame::Settings(Settings(payload))
        }
        kind::PUSH_PROMISE => Frame::PushPromise,
        kind::PING => {
            size(8, Why::Length("PING", length))?;
            on_connection("PING")?;
            Frame::Ping {
                ack: head.has(flag::ACK),
                data: payload.first_chunk().copied().unwrap_or_default(),
            }
        }
        kind::GOAWAY => {
            if length < 8 {
                return Err(Invalid(
                    Code::FRAME_SIZE_ERROR,
                    Why::Length("GOAWAY", length),
                ));
            }
            on_connection("GOAWAY")?;
            Frame::GoAway {
                last: number(payload) & MAX_WINDOW,
                code: Code(payload.get(4..).map_or(0, number)),
            }
        }
        kind::WINDOW_UPDATE => {
            size(4, Why::Length("WINDOW_UPDATE", length))?;
            match number(payload) & MAX_WINDOW {
                0 => return Err(Invalid(Code::PROTOCOL_ERROR, Why::Increment)),
                n => Frame::WindowUpdate(n),
            }
        }
        _ => Frame::Unknown,
    })
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

/// The stream that one depends on, and what follows the priority.
fn priority(block: &[u8]) -> Option<(u32, &[u8])> {
    let (p, rest) = block.split_at_checked(5)?;
    Some((number(p) & MAX_WINDOW, rest))
}

fn unpad<'a>(head: &Head, payload: &'a [u8], name: &'static str) -> Result<&'a [u8], Invalid> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(Invalid(
        Code::FRAME_SIZE_ERROR,
        Why::PaddedLength(name, 0, None),
    ))?;
    let padding = usize::from(*padding);
    rest.len()
        .checked_sub(padding)
        .and_then(|n| rest.get(..n))
        .ok_or(Invalid(
            Code::PROTOCOL_ERROR,
            Why::PaddedLength(name, payload.len(), Some(padding)),
        ))
}

/// The settings of a SETTINGS frame, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings<'a>(&'a [u8]);

impl Settings<'_> {
    /// Identifiers and values.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u32)> {
        self.0.as_chunks::<6>().0.iter().map(|&[a, b, c, d, e, f]| {
            (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]))
        })
    }

    /// Checks a value against the bounds of its setting (RFC 9113, section 6.5.2).
    ///
    /// # Errors
    /// The connection's error.
    pub fn check(id: u16, value: u32) -> Result<(), Invalid> {
        let bad = |code, name| Err(Invalid(code, Why::Setting(name, value)));
        match id {
            setting::ENABLE_PUSH if value > 1 => bad(Code::PROTOCOL_ERROR, "ENABLE_PUSH"),
            setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                bad(Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE")
            }
            setting::MAX_FRAME_SIZE if !(DEFAULT_FRAME..=MAX_FRAME).contains(&value) => {
                bad(Code::PROTOCOL_ERROR, "MAX_FRAME_SIZE")
            }
            setting::ENABLE_CONNECT_PROTOCOL if value > 1 => {
                bad(Code::PROTOCOL_ERROR, "ENABLE_CONNECT_PROTOCOL")
            }
            _ => Ok(()),
        }
    }
}

/// Why a frame is refused: the code for GOAWAY or RST_STREAM, and what to log behind "client" or "upstream".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(pub Code, pub Why);

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The length does not fit the type.
    Length(&'static str, usize),
    /// A padded frame without room for its padding.
    PaddedLength(&'static str, usize, Option<usize>),
    /// On a stream what belongs to the connection, or the other way round.
    Identifier(&'static str),
    /// An acknowledgement with settings in it.
    AckLength,
    /// A window that grows by nothing.
    Increment,
    /// A setting out of its bounds.
    Setting(&'static str, u32),
}

impl Invalid {
    /// Whether the error is one of the stream alone (RFC 9113, section 6.9).
    pub fn stream(&self, head: &Head) -> bool {
        head.stream != 0
            && (self.1 == Why::Increment || matches!(self.1, Why::Length("PRIORITY", _)))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Why::Length(name, n) => write!(f, "sent {name} frame with incorrect length {n}"),
            Why::PaddedLength(name, n, None) => {
                write!(f, "sent padded {name} frame with incorrect length: {n}")
            }
            Why::PaddedLength(name, n, Some(p)) => write!(
                f,
                "sent padded {name} frame with incorrect length: {n}, padding: {p}"
            ),
            Why::Identifier(name) => write!(f, "sent {name} frame with incorrect identifier"),
            Why::AckLength => {
                write!(
                    f,
                    "sent SETTINGS frame with the ACK flag and nonzero length"
                )
            }
            Why::Increment => {
                write!(
                    f,
                    "sent WINDOW_UPDATE frame with incorrect window increment 0"
                )
            }
            Why::Setting(name, value) => {
                write!(f, "sent SETTINGS frame with incorrect {name} value {value}")
            }
        }
    }
}

/// Appends a DATA frame.
pub fn data(out: &mut BytesMut, stream: u32, data: &[u8], end: bool) {
    out.reserve(HEAD + data.len());
    Head {
        length: data.len(),
        kind: kind::DATA,
        flags: if end { flag::END_STREAM } else { 0 },
        stream,
    }
    .write(out);
    out.extend_from_slice(data);
}

/// Leaves room for the head of a HEADERS frame; the block follows, then [`headers_end`] with what this gave.
pub fn headers_begin(out: &mut BytesMut) -> usize {
    let at = out.len();
    out.put_bytes(0, HEAD);
    at
}

/// Ends a HEADERS frame whose block stands behind `at`; what is too large for one frame continues in others.
pub fn headers_end(out: &mut BytesMut, at: usize, stream: u32, end: bool, max_frame: usize) {
    let length = out.len().saturating_sub(at + HEAD);
    let end = if end { flag::END_STREAM } else { 0 };
    let rest = (length > max_frame).then(|| out.split_off(at + HEAD + max_frame));
    let mut head = BytesMut::with_capacity(HEAD);
    Head {
        length: length.min(max_frame),
        kind: kind::HEADERS,
        flags: end | if rest.is_none() { flag::END_HEADERS } else { 0 },
        stream,
    }
    .write(&mut head);
    if let Some(place) = out.get_mut(at..at + HEAD) {
        place.copy_from_slice(&head);
    }
    let Some(rest) = rest else { return };
    let mut parts = rest.chunks(max_frame.max(1)).peekable();
    while let Some(part) = parts.next() {
        Head {
            length: part.len(),
            kind: kind::CONTINUATION,
            flags: if parts.peek().is_none() {
                flag::END_HEADERS
            } else {
                0
            },
            stream,
        }
        .write(out);
        out.extend_from_slice(part);
    }
}

/// Appends a SETTINGS frame.
pub fn settings(out: &mut BytesMut, list: &[(u16, u32)]) {
    control(out, kind::SETTINGS, 0, 0, 6 * list.len());
    for (id, value) in list {
        out.put_u16(*id);
        out.put_u32(*value);
    }
}

/// Appends the acknowledgement of a SETTINGS frame.
pub fn settings_ack(out: &mut BytesMut) {
    control(out, kind::SETTINGS, flag::ACK, 0, 0);
}

/// Appends a PING frame.
pub fn ping(out: &mut BytesMut, ack: bool, data: [u8; 8]) {
    control(out, kind::PING, if ack { flag::ACK } else { 0 }, 0, 8);
    out.put_slice(&data);
}

/// Appends a GOAWAY frame.
pub fn go_away(out: &mut BytesMut, last: u32, code: Code) {
    control(out, kind::GOAWAY, 0, 0, 8);
    out.put_u32(last);
    out.put_u32(code.0);
}

/// Appends a RST_STREAM frame.
pub fn reset(out: &mut BytesMut, stream: u32, code: Code) {
    control(out, kind::RST_STREAM, 0, stream, 4);
    out.put_u32(code.0);
}

/// Appends a WINDOW_UPDATE frame; stream 0 is the connection.
pub fn window_update(out: &mut BytesMut, stream: u32, increment: u32) {
    control(out, kind::WINDOW_UPDATE, 0, stream, 4);
    out.put_u32(increment & MAX_WINDOW);
}

fn control(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, length: usize) {
    out.reserve(HEAD + length);
    Head {
        length,
        kind,
        flags,
        stream,
    }
    .write(out);
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
