//! What frames do to a connection (RFC 9113, sections 5 and 6).

use super::connection::{Block, Connection, Fault};
use super::parting::Going;
use super::stream::Stream;
use crate::http::h2::frame::{self, Frame, HEAD, Head, Settings, flag, kind, setting};
use crate::http::h2::hpack::{DecodeError, ListLimits, too_long};
use crate::http::h2::{Code, MAX_WINDOW, PREFACE};
use crate::http::headers::{Headers, Known};
use crate::http::strict;
use crate::log::Level;
use bytes::{Buf, BytesMut};
use std::sync::Arc;
use std::time::Instant;

/// What a header block is for.
enum Purpose {
    /// A new stream.
    Open,
    /// The end of a request's body.
    Trailers(Arc<Stream>),
    /// The same on a stream that we have reset already.
    Late,
    /// Nothing: it is read for the sake of the table.
    Nothing,
}

/// The largest frame that a client is allowed once it sends bodies, bytes.
const LARGEST_FRAME: u32 = 1 << 17;
/// CONTINUATION frames of one block.
const CONTINUATIONS: usize = 1000;
/// Bytes that a block may have beyond its fields: lengths and indexes.
const BLOCK_OVERHEAD: usize = 16 * 1024;

impl Connection {
    /// Whether a whole frame waits to be parsed.
    pub(super) fn has_frame(&self) -> bool {
        self.preface == 0
            && Head::parse(&self.input).is_some_and(|h| self.input.len() >= HEAD + h.length)
    }

    /// Parses the frames that have come. Stops before a new request while there are too many, and others wait for their
    /// first turn or for their last one.
    pub(super) fn parse(&mut self) -> Result<(), Fault> {
        let mut input = std::mem::take(&mut self.input);
        let parsed = self.parse_all(&mut input);
        self.input = input;
        parsed
    }

    fn parse_all(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        if self.preface > 0 {
            let n = self.preface.min(input.len());
            let wanted = PREFACE.get(PREFACE.len() - self.preface..);
            if wanted.and_then(|w| w.get(..n)) != input.get(..n) {
                return self.fault(
                    Code::PROTOCOL_ERROR,
                    format_args!("invalid connection preface"),
                );
            }
            input.advance(n);
            self.preface -= n;
        }
        let mut at = 0;
        let result = loop {
            let rest = input.get(at..).unwrap_or_default();
            let Some(head) = Head::parse(rest) else {
                break Ok(());
            };
            if head.kind == kind::PUSH_PROMISE {
                break self.fault(
                    Code::PROTOCOL_ERROR,
                    format_args!("client sent PUSH_PROMISE frame"),
                );
            }
            if head.length > self.max_frame as usize {
                break self.fault(
                    Code::FRAME_SIZE_ERROR,
                    format_args!(
                        "client sent frame of type {} with too large length {}",
                        head.kind, head.length
                    ),
                );
            }
            let block = matches!(head.kind, kind::HEADERS | kind::CONTINUATION);
            if block && head.length > self.largest_block() {
                break self.fault(
                    Code::ENHANCE_YOUR_CALM,
                    format_args!("client sent too large header"),
                );
            }
            let Some(payload) = rest.get(HEAD..HEAD + head.length) else {
                if head.kind == kind::HEADERS && head.stream > self.seen {
                    let until = Instant::now() + self.conf.header_timeout;
                    self.partial.get_or_insert((head.stream, until));
                    let plain = head.flags & (flag::PADDED | flag::PRIORITY) == 0;
                    let part = rest.get(HEAD..).filter(|_| plain).unwrap_or_default();
                    if let Some(e) = too_long(part) {
                        break self.fault(Code::COMPRESSION_ERROR, format_args!("client {e}"));
                    }
                }
                break Ok(());
            };
            self.partial = None;
            let full = self.processing >= self.conf.max_concurrent_streams as usize;
            if head.kind == kind::HEADERS && full && (self.leaving || !self.opened.is_empty()) {
                break Ok(());
            }
            at += HEAD + head.length;
            let payload = match frame::parse(&head, payload) {
                Ok(p) => p,
                Err(e) => break self.fault(e.0, format_args!("client {e}")),
            };
            if let Err(e) = self.frame(&head, payload) {
                break Err(e);
            }
        };
        input.advance(at);
        result
    }

    pub(super) fn fault<T>(&self, code: Code, text: std::fmt::Arguments<'_>) -> Result<T, Fault> {
        self.link.log(Level::Info, text);
        Err(Fault(code))
    }

    fn frame(&mut self, head: &Head, frame: Frame<'_>) -> Result<(), Fault> {
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return self.fault(
                Code::PROTOCOL_ERROR,
                format_args!("client sent inappropriate frame while CONTINUATION was expected"),
            );
        }
        let id = head.stream;
        match frame {
            Frame::Data { data, end } => self.data(head, data, end),
            Frame::Headers {
                block,
                end,
                whole,
                depends,
            } => {
                if block.is_empty() {
                    return self.fault(
                        Code::FRAME_SIZE_ERROR,
                        format_args!("client sent HEADERS frame with empty header block"),
                    );
                }
                if depends == Some(id) {
                    return self.fault(
                        Code::PROTOCOL_ERROR,
                        format_args!(
                            "client sent HEADERS frame for stream {id} with incorrect dependency"
                        ),
                    );
                }
                if whole {
                    return self.headers(id, block, end);
                }
                self.block = Some(Block {
                    stream: id,
                    bytes: BytesMut::from(block),
                    end_stream: end,
                    frames: 0,
                    until: Some(Instant::now() + self.conf.header_timeout),
                });
                Ok(())
            }
            Frame::Continuation { block, whole } => self.continuation(id, block, whole),
            Frame::Priority { depends } => {
                self.priorities = self.priorities.saturating_sub(1);
                if self.priorities == 0 {
                    return self.fault(
                        Code::ENHANCE_YOUR_CALM,
                        format_args!("client sent too many PRIORITY frames"),
                    );
                }
                if depends == id {
                    return self.fault(
                        Code::PROTOCOL_ERROR,
                        format_args!(
                            "client sent PRIORITY frame for stream {id} with incorrect dependency"
                        ),
                    );
                }
                Ok(())
            }
            Frame::Reset(code) => self.reset(id, code),
            Frame::Settings(list) => self.settings(list),
            Frame::SettingsAck => {
                self.flood.frame();
                self.settings_acked = true;
                Ok(())
            }
            // refused as soon as its type was seen
            Frame::PushPromise => Ok(()),
            Frame::Ping { ack, data } => {
                self.flood.frame();
                if ack {
                    self.acknowledged(data);
                } else {
                    frame::ping(&mut self.link.lock().buf, true, data);
                }
                Ok(())
            }
            Frame::GoAway { .. } => {
                self.flood.frame();
                Ok(())
            }
            Frame::WindowUpdate(n) => self.window_update(id, n),
            Frame::Unknown => {
                self.flood.frame();
                self.link.log(
                    Level::Info,
                    format_args!("client sent frame with unknown type {}", head.kind),
                );
                Ok(())
            }
        }
    }

    fn data(&mut self, head: &Head, data: &[u8], end: bool) -> Result<(), Fault> {
        let (id, size) = (head.stream, head.length);
        if size as i64 > self.recv_window {
            return self.fault(
                Code::FLOW_CONTROL_ERROR,
                format_args!(
                    "client violated connection flow control: received DATA frame length {size}, available window {}",
                    self.recv_window
                ),
            );
        }
        self.recv_window -= size as i64;
        let most = i64::from(MAX_WINDOW);
        if self.recv_window < most / 4 {
            let more = (most - self.recv_window) as u32;
            self.link.lock().window_update(0, more);
            self.recv_window = most;
        }
        if data.is_empty() && !end {
            self.flood.frame();
        }
        let Some(stream) = self.streams.get(&id).filter(|s| !s.is_closed()).cloned() else {
            if self.closed.late_data(id, data.len() as u64, end) {
                self.link.log(
                    Level::Info,
                    format_args!("client sent body of another size than declared on stream {id}"),
                );
                self.link.lock().reset(id, Code::PROTOCOL_ERROR);
                return Ok(());
            }
            return self.unknown(id, "DATA", true);
        };
        self.allow_large_frames();
        match stream.receive(data, size, end) {
            Ok(()) => self.flood.data(data.len()),
            Err(code) => self.reset_by_us(&stream, code),
        }
        Ok(())
    }

    /// A client that sends bodies may do so in larger frames: they cost it and us less.
    ///
    /// Others are not told of them: a frame is held until it is whole.
    fn allow_large_frames(&mut self) {
        if self.max_frame < LARGEST_FRAME {
            self.max_frame = LARGEST_FRAME;
            let out = &mut *self.link.lock();
            frame::settings(&mut out.buf, &[(setting::MAX_FRAME_SIZE, LARGEST_FRAME)]);
        }
    }

    /// A frame for a stream that is not there.
    fn unknown(&mut self, id: u32, name: &str, answered: bool) -> Result<(), Fault> {
        if id > self.seen || id.is_multiple_of(2) {
            return self.fault(
                Code::PROTOCOL_ERROR,
                format_args!("client sent {name} frame for idle stream {id}"),
            );
        }
        self.flood.frame();
        // what was on its way when we reset the stream is no error
        let open = self.streams.get(&id).map(|s| s.is_reset());
        if answered && open.or(self.closed.was_reset(id)) == Some(false) {
            self.link.lock().reset(id, Code::STREAM_CLOSED);
        }
        Ok(())
    }

    /// Bytes of the largest header block that can be of use.
    fn largest_block(&self) -> usize {
        self.conf.list.saturating_add(BLOCK_OVERHEAD)
    }

    fn continuation(&mut self, id: u32, bytes: &[u8], whole: bool) -> Result<(), Fault> {
        let Some(block) = &mut self.block else {
            return self.fault(
                Code::PROTOCOL_ERROR,
                format_args!("client sent unexpected CONTINUATION frame"),
            );
        };
        if block.stream != id {
            return self.fault(
                Code::PROTOCOL_ERROR,
                format_args!("client sent CONTINUATION frame with incorrect identifier"),
            );
        }
        self.flood.frame();
        block.frames += 1;
        block.bytes.extend_from_slice(bytes);
        let long = block.bytes.len();
        let frames = block.frames;
        if long > self.largest_block() {
            return self.fault(
                Code::ENHANCE_YOUR_CALM,
                format_args!("client sent too large header"),
            );
        }
        if frames > CONTINUATIONS {
            return self.fault(
                Code::ENHANCE_YOUR_CALM,
                format_args!("http2 flood detected"),
            );
        }
        if whole && let Some(block) = self.block.take() {
            self.headers(id, &block.bytes, block.end_stream)?;
        }
        Ok(())
    }

    /// A header block is whole.
    fn headers(&mut self, id: u32, block: &[u8], end: bool) -> Result<(), Fault> {
        let purpose = self.purpose(id, end)?;
        self.fields.clear();
        let limits = ListLimits {
            string: self.conf.field,
            list: self.conf.list,
        };
        if let Err(e) = self.decoder.decode(block, limits, &mut self.fields) {
            let code = match e {
                DecodeError::LargeField | DecodeError::LargeList => Code::ENHANCE_YOUR_CALM,
                DecodeError::NoName => Code::PROTOCOL_ERROR,
                // as nginx has it
                DecodeError::Truncated => Code::FRAME_SIZE_ERROR,
                _ => Code::COMPRESSION_ERROR,
            };
            return self.fault(code, format_args!("client {e}"));
        }
        match purpose {
            Purpose::Open => return self.open(id, block.len(), end),
            Purpose::Nothing => return Ok(()),
            Purpose::Trailers(_) | Purpose::Late => {}
        }
        let site = self.thread.site();
        let strict = super::listener(&site, &self.addr).is_some_and(|(.., s)| s.conf.strict);
        let trailers = end.then(|| trailers(&self.fields, strict)).flatten();
        if trailers.is_none() {
            self.link.log(
                Level::Info,
                format_args!("client sent invalid trailers on stream {id}"),
            );
        }
        let code = match (&purpose, trailers) {
            (_, None) => Some(Code::PROTOCOL_ERROR),
            (Purpose::Trailers(stream), t) => {
                (!stream.receive_trailers(t)).then_some(Code::STREAM_CLOSED)
            }
            _ => None,
        };
        match (purpose, code) {
            (Purpose::Trailers(stream), Some(code)) => self.reset_by_us(&stream, code),
            (_, Some(code)) => self.link.lock().reset(id, code),
            _ => {}
        }
        Ok(())
    }

    fn purpose(&mut self, id: u32, end: bool) -> Result<Purpose, Fault> {
        if id > self.seen && !id.is_multiple_of(2) {
            self.seen = id;
            if self.going == Going::Gone {
                return Ok(Purpose::Nothing);
            }
            self.last = id;
            return Ok(match self.refusal(end) {
                Some(reason) => {
                    self.refuse(id, reason)?;
                    Purpose::Nothing
                }
                None => Purpose::Open,
            });
        }
        if let Some(stream) = self.streams.get(&id).cloned() {
            if stream.is_reset() {
                self.flood.frame();
                return Ok(Purpose::Nothing);
            }
            if stream.in_closed() {
                self.link.log(
                    Level::Info,
                    format_args!("client sent HEADERS frame for half-closed stream {id}"),
                );
                self.reset_by_us(&stream, Code::STREAM_CLOSED);
                return Ok(Purpose::Nothing);
            }
            return Ok(Purpose::Trailers(stream));
        }
        if self.closed.was_reset(id) == Some(true) {
            self.flood.frame();
            return Ok(Purpose::Late);
        }
        self.fault(
            Code::PROTOCOL_ERROR,
            format_args!(
                "client sent HEADERS frame with incorrect identifier {id}, the last was {}",
                self.last
            ),
        )
    }

    /// Why a new stream cannot be served now.
    fn refusal(&mut self, end: bool) -> Option<&'static str> {
        let most = self.conf.max_concurrent_streams as usize;
        self.new_streams += 1;
        if self.processing >= most {
            Some("concurrent streams exceeded")
        } else if self.new_streams > most.saturating_mul(2) {
            Some("client sent too many streams at once")
        } else if !self.settings_acked && !end && self.conf.preread < 65_535 {
            Some("client sent stream with data before settings were acknowledged")
        } else {
            None
        }
    }

    fn refuse(&mut self, id: u32, reason: &str) -> Result<(), Fault> {
        if reason == "concurrent streams exceeded" {
            let n = self.processing;
            self.link.log(Level::Info, format_args!("{reason} {n}"));
        } else {
            self.link.log(Level::Info, format_args!("{reason}"));
        }
        self.refused += 1;
        if self.refused > 1 + self.conf.max_concurrent_streams.max(100) as usize {
            return self.fault(
                Code::NO_ERROR,
                format_args!("client sent too many refused streams"),
            );
        }
        self.link.lock().reset(id, Code::REFUSED_STREAM);
        Ok(())
    }

    fn reset(&mut self, id: u32, code: Code) -> Result<(), Fault> {
        let Some(stream) = self.streams.get(&id) else {
            self.closed.taken_back(id);
            return self.unknown(id, "RST_STREAM", false);
        };
        match code {
            Code::CANCEL => self
                .link
                .log(Level::Info, format_args!("client canceled stream {id}")),
            Code::INTERNAL_ERROR => self.link.log(
                Level::Info,
                format_args!("client terminated stream {id} due to internal error"),
            ),
            Code(n) => self.link.log(
                Level::Info,
                format_args!("client terminated stream {id} with status {n}"),
            ),
        }
        if stream.taken_back() {
            self.flood.reset(stream.opened);
        }
        self.leaving = true;
        Ok(())
    }

    /// The client makes us reset a stream: it costs what its own RST_STREAM does.
    fn reset_by_us(&mut self, stream: &Stream, code: Code) {
        if !stream.is_closed() {
            self.flood.reset(stream.opened);
        }
        stream.close(Some(code));
        self.leaving = true;
    }

    fn settings(&mut self, list: Settings<'_>) -> Result<(), Fault> {
        let mut window = None;
        let mut entries = 0;
        for (id, value) in list.iter() {
            entries += 1;
            if let Err(e) = Settings::check(id, value) {
                return self.fault(e.0, format_args!("client {e}"));
            }
            let out = &mut *self.link.lock();
            match id {
                setting::HEADER_TABLE_SIZE => out.encoder.allow(value as usize),
                setting::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                setting::MAX_FRAME_SIZE => out.max_frame = value as usize,
                _ => {}
            }
        }
        let delta = {
            let out = &mut *self.link.lock();
            frame::settings_ack(&mut out.buf);
            let delta = window.map_or(0, |w| w - out.initial_window);
            out.initial_window += delta;
            delta
        };
        let changed = if delta == 0 { 0 } else { self.streams.len() };
        self.flood.settings(entries, changed);
        if changed > 0 {
            let streams: Vec<Arc<Stream>> = self.streams.values().cloned().collect();
            for stream in streams {
                if !stream.add_window(delta) {
                    self.reset_by_us(&stream, Code::FLOW_CONTROL_ERROR);
                }
            }
        }
        Ok(())
    }

    fn window_update(&mut self, id: u32, n: u32) -> Result<(), Fault> {
        self.flood.frame();
        if id > 0 {
            match self.streams.get(&id) {
                Some(stream) => {
                    if !stream.add_window(i64::from(n)) {
                        let stream = stream.clone();
                        self.reset_by_us(&stream, Code::FLOW_CONTROL_ERROR);
                    }
                    return Ok(());
                }
                None => return self.unknown(id, "WINDOW_UPDATE", false),
            }
        }
        let mut out = self.link.lock();
        let window = out.window + i64::from(n);
        if window > i64::from(MAX_WINDOW) {
            let was = out.window;
            drop(out);
            return self.fault(
                Code::FLOW_CONTROL_ERROR,
                format_args!(
                    "client violated connection flow control: received WINDOW_UPDATE frame with window increment {n} not allowed for window {was}"
                ),
            );
        }
        out.window = window;
        if window > 0 {
            out.wake_waiting();
        }
        Ok(())
    }
}

/// Trailers as they are passed on; `None` where they are not allowed (RFC 9113, section 8.1).
fn trailers(fields: &crate::http::h2::hpack::Fields, strict: bool) -> Option<Headers> {
    let mut list = Headers::new();
    for (name, value) in fields.iter() {
        let broken = |b: &u8| *b <= b' ' || *b == 0x7f || *b == b':' || b.is_ascii_uppercase();
        if name.iter().any(broken) || memchr::memchr3(0, b'\r', b'\n', value).is_some() {
            return None;
        }
        let allowed = || {
            strict::field_v2(name, value).is_ok() && !strict::is_forbidden_trailer(Known::of(name))
        };
        if strict && !allowed() {
            return None;
        }
        list.append(name, value);
    }
    list.clean();
    Some(list)
}
