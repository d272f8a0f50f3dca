//! One request's stream: its body as it comes, its response in frames.

mod downstream;

use super::stream_io::{HIGH_WATER, Link, Output};
use super::{response, websocket};
use crate::http::h2::allowance::worth_of_data;
use crate::http::h2::frame::{self, HEAD};
use crate::http::h2::{Code, MAX_WINDOW};
use crate::http::headers::Headers;
use crate::log::Level;
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// A request's side of a stream.
pub(super) struct Stream {
    pub id: u32,
    /// When the request's head had come.
    pub opened: Instant,
    link: Arc<Link>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Body bytes that have come and were not read.
    body: BytesMut,
    /// What the client may still send.
    recv_window: i64,
    /// What a client may send ahead of the reader.
    target: usize,
    /// How much of `target` was taken from the connection's share.
    grown: usize,
    /// The size that the head declared.
    declared: Option<u64>,
    received: u64,
    /// The client has ended its side.
    in_closed: bool,
    /// The body is not what the head said (RFC 9113, section 8.1.1).
    malformed: bool,
    request_trailers: Option<Headers>,

    /// Written and not yet in a frame.
    queue: BytesMut,
    send_window: i64,
    chunk: usize,
    trailers: Option<Headers>,
    /// The response is complete.
    finished: bool,
    /// Its end is in a frame.
    out_closed: bool,
    /// RST_STREAM was sent.
    reset: bool,
    /// RST_STREAM was received.
    taken_back: bool,
    /// What a WebSocket's origin must answer with.
    accept: Option<[u8; 28]>,
    tunnel: bool,
    error: Option<io::ErrorKind>,
    aborted: bool,
    /// Bytes of frames with heads and bodies.
    sent: u64,
    /// How many of them are heads of DATA frames, and trailers.
    framing_sent: u64,

    /// When the stream last waited for the connection.
    turn: u64,
    read_waker: Option<Waker>,
    send_waker: Option<Waker>,
    closed_waker: Option<Waker>,
}

/// What a stream begins with.
pub(super) struct Begin {
    /// When the request's head had come.
    pub opened: Instant,
    pub in_closed: bool,
    /// `http2_body_preread_size`.
    pub preread: u32,
    /// `http2_chunk_size`.
    pub chunk: usize,
}

/// Above this much queued, a writer waits.
const QUEUE: usize = 32 * 1024;
/// One read of a file.
const FILE_READ: usize = 16 * 1024;
/// The least that a client may send ahead of a reader.
const LEAST_WINDOW: usize = 128 * 1024;
/// The most that a client may send ahead of a reader that keeps up with it.
const MOST_WINDOW: usize = 4 << 20;

impl Stream {
    pub fn new(id: u32, link: Arc<Link>, begin: Begin) -> Stream {
        let send_window = link.lock().initial_window;
        Stream {
            id,
            opened: begin.opened,
            link,
            inner: Mutex::new(Inner {
                recv_window: i64::from(begin.preread),
                target: begin.preread as usize,
                in_closed: begin.in_closed,
                chunk: begin.chunk.max(1),
                send_window,
                ..Inner::default()
            }),
        }
    }

    /// What the head says of the body.
    pub fn declare(&self, length: Option<u64>) {
        self.inner.lock().declared = length;
    }

    /// The head is broken: the stream ends with an error, whatever is answered.
    pub fn malformed(&self) {
        self.inner.lock().malformed = true;
    }

    /// The request asks for a WebSocket with this key.
    pub fn websocket(&self, key: &str) {
        self.inner.lock().accept = Some(websocket::accept(key));
    }

    /// Takes a DATA frame, whose flow-controlled length is `size`.
    ///
    /// # Errors
    /// The stream's error.
    pub fn receive(&self, data: &[u8], size: usize, end: bool) -> Result<(), Code> {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() {
            return Ok(());
        }
        if inner.in_closed {
            self.link.log(
                Level::Info,
                format_args!("client sent DATA frame for half-closed stream {}", self.id),
            );
            return Err(Code::STREAM_CLOSED);
        }
        if size as i64 > inner.recv_window {
            self.link.log(
                Level::Info,
                format_args!(
                    "client violated flow control for stream {}: received DATA frame length {size}, available window {}",
                    self.id, inner.recv_window
                ),
            );
            return Err(Code::FLOW_CONTROL_ERROR);
        }
        inner.recv_window -= size as i64;
        inner.received += data.len() as u64;
        if inner.declared.is_some_and(|n| inner.received > n) {
            if !inner.malformed {
                self.link.log(
                    Level::Info,
                    format_args!("client intended to send body data larger than declared"),
                );
            }
            inner.malformed = true;
        } else {
            inner.body.extend_from_slice(data);
        }
        if end {
            self.close_in(inner);
        }
        wake(&mut inner.read_waker);
        Ok(())
    }

    /// Takes the request's trailers, with which its body ends; false where it had ended before.
    pub fn receive_trailers(&self, trailers: Option<Headers>) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.in_closed {
            return false;
        }
        inner.request_trailers = trailers;
        self.close_in(inner);
        wake(&mut inner.read_waker);
        true
    }

    fn close_in(&self, inner: &mut Inner) {
        inner.in_closed = true;
        if let Some(n) = inner.declared.filter(|n| inner.received < *n) {
            let received = inner.received;
            self.link.log(Level::Info, format_args!(
                "client prematurely closed stream: only {received} out of {n} bytes of request body received"));
            inner.malformed = true;
        }
    }

    /// Whether the client has ended its side.
    pub fn in_closed(&self) -> bool {
        self.inner.lock().in_closed
    }

    /// Whether the stream has been ended from outside, and why it need not be served any more.
    pub fn is_closed(&self) -> bool {
        self.inner.lock().error.is_some()
    }

    /// The window grew or shrank; false where it would be larger than allowed.
    pub fn add_window(&self, delta: i64) -> bool {
        let inner = &mut *self.inner.lock();
        let window = inner.send_window + delta;
        if window > i64::from(MAX_WINDOW) {
            self.link.log(
                Level::Info,
                format_args!(
                    "client violated flow control for stream {}: received WINDOW_UPDATE frame with window increment {delta} not allowed for window {}",
                    self.id, inner.send_window
                ),
            );
            return false;
        }
        inner.send_window = window;
        if window > 0 {
            wake(&mut inner.send_waker);
        }
        true
    }

    /// Ends the stream from outside: the client reset it, or we do, or the connection is lost.
    ///
    pub fn close(&self, code: Option<Code>) {
        let inner = &mut *self.inner.lock();
        if let Some(code) = code
            && !inner.reset
        {
            self.link.lock().reset(self.id, code);
            inner.reset = true;
        }
        inner.fail(io::ErrorKind::ConnectionAborted);
        for waker in [
            &mut inner.read_waker,
            &mut inner.send_waker,
            &mut inner.closed_waker,
        ] {
            wake(waker);
        }
    }

    /// The client reset the stream; true where a response was cut short by it.
    pub fn taken_back(&self) -> bool {
        let cut = {
            let inner = &mut *self.inner.lock();
            inner.taken_back = true;
            inner.in_closed = true;
            !inner.out_closed && inner.error.is_none()
        };
        self.close(None);
        cut
    }

    /// Bytes of the body that were declared and have not come.
    pub fn rest(&self) -> Option<u64> {
        let inner = self.inner.lock();
        inner.declared.map(|n| n.saturating_sub(inner.received))
    }

    /// Whether we reset the stream: frames for it may still be on their way.
    pub fn is_reset(&self) -> bool {
        self.inner.lock().reset
    }

    /// The request has been served: ends what is still open. Tells whether we sent RST_STREAM.
    pub fn end(&self, timed_out: bool) -> bool {
        let inner = &mut *self.inner.lock();
        let out = &mut *self.link.lock();
        out.growth += std::mem::take(&mut inner.grown);
        if inner.reset || inner.taken_back {
            return inner.reset;
        }
        let code = if inner.out_closed {
            match (inner.malformed, inner.in_closed) {
                (true, _) => Code::PROTOCOL_ERROR,
                (false, false) => Code::NO_ERROR,
                (false, true) => return false,
            }
        } else if inner.tunnel && !inner.aborted && inner.error.is_none() && !out.dead {
            // the origin closed its side, which ended the tunnel
            frame::data(&mut out.buf, self.id, b"", true);
            out.touched();
            if inner.in_closed {
                return false;
            }
            Code::CANCEL
        } else if timed_out || inner.malformed {
            Code::PROTOCOL_ERROR
        } else {
            Code::INTERNAL_ERROR
        };
        out.reset(self.id, code);
        inner.reset = true;
        true
    }

    /// Puts queued bytes into frames until at most `down_to` are left, and the end once all are.
    fn poll_send(
        &self,
        inner: &mut Inner,
        cx: &mut Context<'_>,
        down_to: usize,
    ) -> Poll<io::Result<()>> {
        if let Some(kind) = inner.error {
            return Poll::Ready(Err(kind.into()));
        }
        if inner.queue.len() <= down_to && !inner.must_end() {
            return Poll::Ready(Ok(()));
        }
        let out = &mut *self.link.lock();
        if out.dead {
            return Poll::Ready(Err(inner.fail(io::ErrorKind::ConnectionReset)));
        }
        while inner.queue.len() > down_to {
            let n = inner.room(out).min(inner.queue.len());
            if n == 0 {
                inner.wait(out, cx);
                return Poll::Pending;
            }
            let last = inner.finished && n == inner.queue.len() && inner.trailers.is_none();
            inner.put_queued(out, self.id, n, last);
        }
        if inner.must_end() && inner.queue.is_empty() {
            match inner.trailers.take() {
                Some(t) => {
                    let n = response::trailers(out, self.id, &t);
                    inner.sent += n as u64;
                    inner.framing_sent += n as u64;
                    inner.out_closed = true;
                }
                None => inner.put(out, self.id, b"", true),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Inner {
    /// The end of the response is not yet in a frame.
    fn must_end(&self) -> bool {
        self.finished && !self.out_closed
    }

    /// The largest DATA frame that may be sent now.
    fn room(&self, out: &Output) -> usize {
        if out.buf.len() >= HIGH_WATER {
            return 0;
        }
        let window = self.send_window.min(out.window).max(0) as usize;
        window.min(self.chunk).min(out.max_frame)
    }

    /// Wakes the task once there is room.
    fn wait(&mut self, out: &mut Output, cx: &Context<'_>) {
        if self.send_window <= 0 {
            keep(&mut self.send_waker, cx);
        } else {
            out.wait(&mut self.turn, cx);
        }
    }

    fn put(&mut self, out: &mut Output, id: u32, data: &[u8], last: bool) {
        frame::data(&mut out.buf, id, data, last);
        self.account(out, data.len());
        self.out_closed = last;
    }

    fn put_queued(&mut self, out: &mut Output, id: u32, n: usize, last: bool) {
        let mut queue = std::mem::take(&mut self.queue);
        self.put(out, id, queue.get(..n).unwrap_or_default(), last);
        queue.advance(n.min(queue.len()));
        self.queue = queue;
    }

    fn account(&mut self, out: &mut Output, n: usize) {
        self.send_window -= n as i64;
        out.window -= n as i64;
        self.sent += (HEAD + n) as u64;
        self.framing_sent += HEAD as u64;
        out.worth += worth_of_data(n, self.send_window.min(out.window));
        out.touched();
    }

    fn fail(&mut self, kind: io::ErrorKind) -> io::Error {
        self.queue.clear();
        self.body.clear();
        (*self.error.get_or_insert(kind)).into()
    }

    /// Lets the client send more where enough has been read.
    fn credit(&mut self, link: &Link, id: u32) {
        if self.in_closed {
            return;
        }
        let ahead = self.body.len() as i64 + self.recv_window;
        let more = self.target as i64 - ahead;
        let rest = self.declared.map(|n| n.saturating_sub(self.received));
        let enough = rest.is_some_and(|n| n <= self.recv_window.max(0) as u64);
        if more > 0 && !enough && (more >= self.target as i64 / 2 || self.recv_window <= 0) {
            link.lock().window_update(id, more as u32);
            self.recv_window += more;
        }
    }

    /// A reader that has read all there is lets the client send more ahead: a slow path is to be filled.
    fn grow(&mut self, link: &Link) {
        let wanted = if self.target < LEAST_WINDOW {
            LEAST_WINDOW
        } else if self.received >= self.target as u64 && self.target < MOST_WINDOW {
            self.target * 2
        } else {
            return;
        };
        let out = &mut *link.lock();
        let more = (wanted - self.target).min(out.growth);
        out.growth -= more;
        self.grown += more;
        self.target += more;
    }
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(w) if w.will_wake(cx.waker()) => {}
        slot => *slot = Some(cx.waker().clone()),
    }
}

fn wake(slot: &mut Option<Waker>) {
    if let Some(w) = slot.take() {
        w.wake();
    }
}
