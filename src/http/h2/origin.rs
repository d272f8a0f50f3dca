//! One request on an HTTP/2 connection to an origin: frames in and out, without IO.

use crate::http::h1::response::UpstreamHead;
use crate::http::h2::allowance::{Allowance, FRAME, worth_of_data};
use crate::http::h2::frame::{self, Frame, Head, setting};
use crate::http::h2::hpack::{Decoder, Fields, ListLimits};
use crate::http::h2::{Code, DEFAULT_FRAME, DEFAULT_WINDOW, MAX_WINDOW, PREFACE};
use crate::http::head::parse_length;
use crate::http::headers::Headers;
use bytes::{Bytes, BytesMut};

/// What a connection remembers between requests.
#[derive(Debug)]
pub struct Kept {
    /// The next request's stream.
    next: u32,
    /// What may be sent on the connection, bytes.
    window: i64,
    /// What the origin may still send on the connection.
    recv: i64,
    /// SETTINGS_INITIAL_WINDOW_SIZE of the origin.
    initial: i64,
    /// SETTINGS_MAX_FRAME_SIZE of the origin.
    max_frame: usize,
    decoder: Decoder,
    /// What the origin may send that carries nothing, relative to what it is sent and sends.
    frames: Allowance,
}

/// What an answered request is worth to the allowance of frames.
const ANSWERED: i64 = 16 * FRAME;
/// What an interim response costs it: its fields are decoded, and may be passed on.
const INTERIM: i64 = 10 * FRAME;

/// What an origin is let send before it must wait: all there is.
const WINDOW: u32 = MAX_WINDOW;

/// A request under way.
pub struct Stream {
    kept: Box<Kept>,
    id: u32,
    /// What may be sent on the stream, bytes.
    window: i64,
    recv: i64,
    /// Frames to be sent.
    pub out: BytesMut,
    block: BytesMut,
    /// The block being read: END_STREAM of its HEADERS.
    in_block: Option<bool>,
    has_head: bool,
    /// What Content-Length says is still to come.
    left: Option<u64>,
    ended: bool,
    sent: bool,
    /// No further request may follow on this connection.
    closing: bool,
    /// The origin has reset the stream.
    reset: bool,
    /// Bytes that a header list may have.
    limit: usize,
}

/// What the origin said.
#[derive(Debug)]
pub enum Event {
    /// The head of the answer.
    Head,
    /// An interim answer (103); its fields stand in the head until the next one.
    EarlyHints,
    /// A piece of the body.
    Data(Bytes),
    /// The answer is whole; trailers may have come.
    End,
    /// More bytes are needed.
    Need,
}

impl Stream {
    /// Begins a request; `kept` is of the connection's earlier requests.
    pub fn begin(kept: Option<Box<Kept>>, block: &[u8], body: bool, limit: usize) -> Stream {
        let mut out = BytesMut::with_capacity(block.len() + 128);
        let mut kept = kept.unwrap_or_else(|| {
            out.extend_from_slice(PREFACE);
            let settings = [
                (setting::HEADER_TABLE_SIZE, 0),
                (setting::ENABLE_PUSH, 0),
                (setting::INITIAL_WINDOW_SIZE, WINDOW),
            ];
            frame::settings(&mut out, &settings);
            frame::window_update(&mut out, 0, WINDOW - DEFAULT_WINDOW);
            Box::new(Kept {
                next: 1,
                window: i64::from(DEFAULT_WINDOW),
                recv: i64::from(WINDOW),
                initial: i64::from(DEFAULT_WINDOW),
                max_frame: DEFAULT_FRAME as usize,
                decoder: Decoder::new(0),
                frames: Allowance::frames(),
            })
        });
        let id = kept.next;
        kept.next += 2;
        let at = frame::headers_begin(&mut out);
        out.extend_from_slice(block);
        frame::headers_end(&mut out, at, id, !body, kept.max_frame);
        Stream {
            window: kept.initial,
            recv: i64::from(WINDOW),
            closing: kept.next >= MAX_WINDOW,
            kept,
            id,
            out,
            block: BytesMut::new(),
            in_block: None,
            has_head: false,
            reset: false,
            left: None,
            ended: false,
            sent: !body,
            limit,
        }
    }

    /// How many bytes of the body may be sent now.
    pub fn room(&self) -> usize {
        let window = self.window.min(self.kept.window).max(0);
        usize::try_from(window)
            .unwrap_or(usize::MAX)
            .min(self.kept.max_frame)
    }

    /// Queues a piece of the body; `end` is its end.
    pub fn send(&mut self, data: &[u8], end: bool) {
        if self.sent || (data.is_empty() && !end) {
            return;
        }
        frame::data(&mut self.out, self.id, data, end);
        let length = data.len() as i64;
        self.window -= length;
        self.kept.window -= length;
        let window = self.window.min(self.kept.window);
        self.kept.frames.earn(worth_of_data(data.len(), window));
        self.sent = end;
    }

    /// What the connection remembers, if another request may follow on it.
    pub fn end(self) -> Option<Box<Kept>> {
        (self.ended && self.sent && !self.closing && self.out.is_empty() && self.in_block.is_none())
            .then_some(self.kept)
    }

    /// Whether the answer is whole.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Reads one event from what has been received.
    ///
    /// # Errors
    /// nginx's log text.
    pub fn read(
        &mut self,
        buf: &mut BytesMut,
        head: &mut UpstreamHead,
        trailers: &mut Headers,
    ) -> Result<Event, String> {
        loop {
            let Some(h) = Head::parse(buf) else {
                return Ok(Event::Need);
            };
            if h.length > DEFAULT_FRAME as usize {
                return Err(format!("upstream sent too large http2 frame: {}", h.length));
            }
            if self.in_block.is_some()
                && (h.kind != frame::kind::CONTINUATION || h.stream != self.id)
            {
                return Err(format!("upstream sent unexpected http2 frame: {}", h.kind));
            }
            if buf.len() < frame::HEAD + h.length {
                return Ok(Event::Need);
            }
            let payload = buf.split_to(frame::HEAD + h.length).freeze();
            let payload = payload.slice(frame::HEAD..);
            if let Some(event) = self.frame(&h, &payload, head, trailers)? {
                return Ok(event);
            }
        }
    }

    fn frame(
        &mut self,
        h: &Head,
        payload: &Bytes,
        head: &mut UpstreamHead,
        trailers: &mut Headers,
    ) -> Result<Option<Event>, String> {
        let parsed = frame::parse(h, payload).map_err(|e| format!("upstream {e}"))?;
        let known = h.stream == self.id;
        if h.stream != 0 && !known {
            return match parsed {
                // what is left of an earlier request's stream
                Frame::WindowUpdate(_) | Frame::Reset(_) if h.stream < self.id => {
                    self.spend(FRAME, "late")?;
                    Ok(None)
                }
                _ => Err(format!(
                    "upstream sent frame for unknown stream {}",
                    h.stream
                )),
            };
        }
        match parsed {
            Frame::Data { data, end } => self.data(h, payload.slice_ref(data), end),
            Frame::Headers {
                block, end, whole, ..
            } => {
                if self.ended {
                    return Err(format!("upstream sent frame for closed stream {}", self.id));
                }
                self.in_block = Some(end);
                self.block.clear();
                self.add(block, whole, head, trailers)
            }
            Frame::Continuation { block, whole } => {
                if self.in_block.is_none() {
                    return Err(format!("upstream sent unexpected http2 frame: {}", h.kind));
                }
                self.spend(FRAME, "continuation")?;
                self.add(block, whole, head, trailers)
            }
            Frame::Reset(code) => {
                self.closing = true;
                // an answer that is whole may be followed by "I need no more of the request"
                if std::mem::replace(&mut self.reset, true) {
                    return Err(format!("upstream sent frame for closed stream {}", self.id));
                }
                if code == Code::NO_ERROR && self.ended {
                    return Ok(None);
                }
                Err(format!("upstream rejected request with error {}", code.0))
            }
            Frame::Settings(list) => {
                self.spend(FRAME, "settings")?;
                self.settings(list)?;
                frame::settings_ack(&mut self.out);
                Ok(None)
            }
            Frame::Ping { ack: false, data } => {
                self.spend(FRAME, "ping")?;
                frame::ping(&mut self.out, true, data);
                Ok(None)
            }
            Frame::GoAway { last, code } => {
                self.spend(FRAME, "goaway")?;
                self.closing = true;
                if last < self.id {
                    return Err(format!("upstream sent goaway with error {}", code.0));
                }
                Ok(None)
            }
            Frame::WindowUpdate(n) => {
                if n == 0 {
                    return Err("upstream sent zero window update".to_owned());
                }
                self.spend(FRAME, "window update")?;
                let window = if known {
                    &mut self.window
                } else {
                    &mut self.kept.window
                };
                *window += i64::from(n);
                if *window > i64::from(MAX_WINDOW) {
                    return Err("upstream sent too large window update".to_owned());
                }
                Ok(None)
            }
            Frame::PushPromise => Err("upstream sent unexpected push promise frame".to_owned()),
            Frame::Ping { .. } => Err("upstream sent ping frame with ack flag".to_owned()),
            Frame::SettingsAck | Frame::Priority { .. } | Frame::Unknown => {
                self.spend(FRAME, "unused")?;
                Ok(None)
            }
        }
    }

    /// Charges for what carries nothing.
    fn spend(&mut self, cost: i64, name: &str) -> Result<(), String> {
        self.kept.frames.spend(cost);
        if self.kept.frames.is_spent() {
            return Err(format!("upstream sent too many {name} frames"));
        }
        Ok(())
    }

    fn settings(&mut self, list: frame::Settings<'_>) -> Result<(), String> {
        for (id, value) in list.iter() {
            match id {
                setting::INITIAL_WINDOW_SIZE => {
                    if value > MAX_WINDOW {
                        return Err(format!(
                            "upstream sent settings frame with too large initial window size: {value}"
                        ));
                    }
                    self.window += i64::from(value) - self.kept.initial;
                    self.kept.initial = i64::from(value);
                }
                setting::MAX_FRAME_SIZE if value >= DEFAULT_FRAME => {
                    // larger ones would gain nothing
                    self.kept.max_frame = DEFAULT_FRAME as usize;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn data(&mut self, h: &Head, data: Bytes, end: bool) -> Result<Option<Event>, String> {
        if !self.has_head {
            return Err(format!("upstream sent unexpected http2 frame: {}", h.kind));
        }
        if self.ended {
            return Err(format!(
                "upstream sent data frame for unknown stream {}",
                h.stream
            ));
        }
        if data.is_empty() && !end {
            self.spend(FRAME, "empty data")?;
        }
        self.kept.frames.earn(worth_of_data(data.len(), 1));
        let length = h.length as i64;
        for (window, name) in [(self.recv, "stream"), (self.kept.recv, "connection")] {
            if length > window {
                return Err(format!(
                    "upstream violated {name} flow control, received {length} data frame with window {window}"
                ));
            }
        }
        self.recv -= length;
        self.kept.recv -= length;
        let half = i64::from(WINDOW / 2);
        if self.recv < half && !end {
            let more = i64::from(WINDOW) - self.recv;
            frame::window_update(&mut self.out, self.id, u32::try_from(more).unwrap_or(0));
            self.recv += more;
        }
        if self.kept.recv < half {
            let more = i64::from(WINDOW) - self.kept.recv;
            frame::window_update(&mut self.out, 0, u32::try_from(more).unwrap_or(0));
            self.kept.recv += more;
        }
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(data.len() as u64)
                .ok_or("upstream sent response body larger than indicated content length")?;
        }
        if end {
            self.finish()?;
            return Ok(Some(if data.is_empty() {
                Event::End
            } else {
                Event::Data(data)
            }));
        }
        Ok((!data.is_empty()).then_some(Event::Data(data)))
    }

    fn finish(&mut self) -> Result<(), String> {
        self.ended = true;
        match self.left {
            Some(1..) => Err("upstream prematurely closed stream".to_owned()),
            _ => Ok(()),
        }
    }

    fn add(
        &mut self,
        block: &[u8],
        whole: bool,
        head: &mut UpstreamHead,
        trailers: &mut Headers,
    ) -> Result<Option<Event>, String> {
        if self.block.len() + block.len() > self.limit {
            return Err("upstream sent too large http2 header".to_owned());
        }
        self.block.extend_from_slice(block);
        if !whole {
            return Ok(None);
        }
        let end = self.in_block.take().unwrap_or(false);
        let mut fields = Fields::default();
        let limits = ListLimits {
            string: self.limit,
            list: self.limit,
        };
        let block = std::mem::take(&mut self.block);
        self.kept
            .decoder
            .decode(&block, limits, &mut fields)
            .map_err(|e| format!("upstream {e}"))?;
        if self.has_head {
            return self.trailers(&fields, end, trailers).map(Some);
        }
        let event = self.head(&fields, head)?;
        if matches!(event, Event::EarlyHints) {
            if end {
                return Err("upstream prematurely closed stream".to_owned());
            }
            self.spend(INTERIM, "interim headers")?;
            return Ok(Some(event));
        }
        self.has_head = true;
        self.kept.frames.earn(ANSWERED);
        self.left = head.content_length;
        if end {
            // a response to HEAD or without a body may name a length
            self.left = None;
            self.ended = true;
        }
        Ok(Some(event))
    }

    fn head(&mut self, fields: &Fields, head: &mut UpstreamHead) -> Result<Event, String> {
        head.clear();
        head.version = (1, 1);
        let mut status = None;
        for (name, value) in fields.iter() {
            let shown = || {
                format!(
                    "\"{}: {}\"",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value)
                )
            };
            if name.first() == Some(&b':') {
                if name != b":status" {
                    return Err(format!("upstream sent invalid header {}", shown()));
                }
                if status.is_some() {
                    return Err("upstream sent duplicate :status header".to_owned());
                }
                let text = String::from_utf8_lossy(value);
                let code = match value {
                    [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] => text.parse::<u16>().ok(),
                    _ => None,
                };
                let Some(code) = code else {
                    return Err(format!("upstream sent invalid :status \"{text}\""));
                };
                if code < 200 && code != 103 {
                    return Err(format!("upstream sent unexpected :status \"{text}\""));
                }
                status = Some(code);
                continue;
            }
            if status.is_none() {
                return Err("upstream sent no :status header".to_owned());
            }
            if !is_name(name) || !is_value(value) {
                return Err(format!("upstream sent invalid header: {}", shown()));
            }
            head.headers.append(name, value);
        }
        let Some(code) = status else {
            return Err("upstream sent no :status header".to_owned());
        };
        head.status = code;
        if let Some(value) = head.headers.get(b"content-length") {
            head.content_length =
                Some(parse_length(value).ok_or("upstream sent invalid \"Content-Length\" header")?);
        }
        Ok(if code == 103 {
            Event::EarlyHints
        } else {
            Event::Head
        })
    }

    fn trailers(
        &mut self,
        fields: &Fields,
        end: bool,
        trailers: &mut Headers,
    ) -> Result<Event, String> {
        if !end {
            return Err("upstream sent trailer without end stream flag".to_owned());
        }
        for (name, value) in fields.iter() {
            if name.first() == Some(&b':') || !is_name(name) || !is_value(value) {
                return Err(format!(
                    "upstream sent invalid trailer \"{}: {}\"",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value)
                ));
            }
            trailers.append(name, value);
        }
        self.finish()?;
        Ok(Event::End)
    }
}

/// A field name in lower case (RFC 9113, section 8.2.1).
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(c))
}

fn is_value(value: &[u8]) -> bool {
    !value.iter().any(|c| matches!(c, 0 | b'\r' | b'\n'))
}

#[cfg(test)]
mod tests;
