//! One request's stream: reads its body, gathers what is written into frames.

use super::{Live, response};
use crate::http::headers::Headers;
use crate::module::{BodyRead, ConnInfo, Downstream, Framing, Http2Conf, ResponseHead};
use crate::serve::conn::Conn;
use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A request's side of a stream.
pub(super) struct Stream {
    conn: Arc<Conn>,
    live: Arc<Live>,
    inner: Mutex<Inner>,
}

struct Inner {
    respond: SendResponse<Bytes>,
    /// Where the body goes; there once the head has been handed over.
    send: Option<SendStream<Bytes>>,
    body: RecvStream,
    /// Read and not yet given away.
    unread: Bytes,
    body_ended: bool,
    request_trailers: Option<Headers>,
    /// The head, kept back until it is known whether it ends the stream.
    head: Option<Response<()>>,
    /// Written and not yet handed over.
    queue: BytesMut,
    trailers: Option<HeaderMap>,
    /// The response is complete.
    finished: bool,
    /// Its end has been handed over.
    closed: bool,
    error: Option<io::ErrorKind>,
    /// The largest DATA frame.
    chunk: usize,
    /// Half of the window that the stream began with.
    half_window: u64,
    received: u64,
    sent: u64,
}

/// Above this much queued, a writer waits.
const HIGH_WATER: usize = 64 * 1024;
/// One read of a file.
const FILE_READ: usize = 32 * 1024;
/// The head of a frame, bytes.
const FRAME_HEAD: u64 = 9;

impl Stream {
    pub(super) fn new(
        conn: Arc<Conn>,
        respond: SendResponse<Bytes>,
        body: RecvStream,
        conf: Http2Conf,
        live: Arc<Live>,
    ) -> Stream {
        Stream {
            conn,
            live,
            inner: Mutex::new(Inner {
                respond,
                send: None,
                body_ended: body.is_end_stream(),
                body,
                unread: Bytes::new(),
                request_trailers: None,
                head: None,
                queue: BytesMut::new(),
                trailers: None,
                finished: false,
                closed: false,
                error: None,
                chunk: conf.chunk_size.max(1),
                half_window: u64::from(conf.preread_size / 2),
                received: 0,
                sent: 0,
            }),
        }
    }

    /// Ends a stream whose response was never completed.
    pub(super) fn end(&self) {
        let inner = &mut *self.inner.lock();
        if !inner.closed {
            inner.reset(Reason::INTERNAL_ERROR);
        }
    }
}

impl Inner {
    fn reset(&mut self, reason: Reason) {
        if self.error.is_none() {
            match &mut self.send {
                Some(s) => s.send_reset(reason),
                None => self.respond.send_reset(reason),
            }
        }
        self.fail(io::ErrorKind::ConnectionAborted);
    }

    fn fail(&mut self, kind: io::ErrorKind) -> io::Error {
        self.queue.clear();
        self.head = None;
        self.closed = true;
        (*self.error.get_or_insert(kind)).into()
    }

    /// Hands over frames until at most `down_to` bytes are left.
    fn poll_send(&mut self, cx: &mut Context<'_>, down_to: usize) -> Poll<io::Result<()>> {
        if let Some(kind) = self.error {
            return Poll::Ready(Err(kind.into()));
        }
        if let Some(head) = self.head.take() {
            let last = self.finished && self.queue.is_empty() && self.trailers.is_none();
            match self.respond.send_response(head, last) {
                Ok(s) => self.send = Some(s),
                Err(e) => return Poll::Ready(Err(self.broken(e))),
            }
            self.closed = last;
        }
        while self.queue.len() > down_to {
            let wanted = self.queue.len().min(self.chunk);
            let Some(send) = &mut self.send else {
                return Poll::Ready(Ok(()));
            };
            send.reserve_capacity(wanted);
            let room = match send.capacity() {
                0 => match ready!(send.poll_capacity(cx)) {
                    Some(Ok(n)) => n,
                    Some(Err(e)) => return Poll::Ready(Err(self.broken(e))),
                    None => return Poll::Ready(Err(self.fail(io::ErrorKind::ConnectionReset))),
                },
                n => n,
            };
            let data = self.queue.split_to(room.min(wanted)).freeze();
            if data.is_empty() {
                continue;
            }
            let last = self.finished && self.queue.is_empty() && self.trailers.is_none();
            self.sent += FRAME_HEAD + data.len() as u64;
            if let Err(e) = send.send_data(data, last) {
                return Poll::Ready(Err(self.broken(e)));
            }
            self.closed = last;
        }
        self.poll_end()
    }

    /// Hands over the end of a response whose last byte has gone before.
    fn poll_end(&mut self) -> Poll<io::Result<()>> {
        let Some(send) = &mut self.send else {
            return Poll::Ready(Ok(()));
        };
        if self.closed || !self.finished || !self.queue.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.closed = true;
        self.sent += FRAME_HEAD;
        let result = match self.trailers.take() {
            Some(t) => send.send_trailers(t),
            None => send.send_data(Bytes::new(), true),
        };
        Poll::Ready(result.map_err(|e| self.broken(e)))
    }

    fn broken(&mut self, _: h2::Error) -> io::Error {
        self.fail(io::ErrorKind::ConnectionReset)
    }
}

impl Downstream for Stream {
    fn info(&self) -> &ConnInfo {
        self.conn.info()
    }

    fn head(&self, head: &ResponseHead, framing: Framing) {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() || inner.closed {
            return;
        }
        let (response, size) = response::head(head);
        if head.status < 200 {
            // switching protocols has no meaning in a stream; the rest is advice
            if head.status != 101 && inner.respond.send_informational(response).is_ok() {
                inner.sent += FRAME_HEAD + size;
            }
            return;
        }
        inner.sent += FRAME_HEAD + size;
        inner.head = Some(response);
        inner.finished = framing == Framing::None;
    }

    fn write(&self, data: &[u8]) {
        let inner = &mut *self.inner.lock();
        if inner.error.is_none() && !inner.finished {
            inner.queue.extend_from_slice(data);
        }
    }

    fn finish(&self, trailers: Option<&Headers>) {
        let inner = &mut *self.inner.lock();
        if !inner.finished {
            inner.finished = true;
            inner.trailers = trailers
                .filter(|t| !t.is_empty())
                .and_then(response::trailers);
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        if inner.queue.len() <= HIGH_WATER && inner.error.is_none() {
            return Poll::Ready(Ok(()));
        }
        inner.poll_send(cx, HIGH_WATER / 2)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.lock().poll_send(cx, 0)
    }

    fn poll_file(
        &self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>> {
        let inner = &mut *self.inner.lock();
        ready!(inner.poll_send(cx, FILE_READ / 2))?;
        let old = inner.queue.len();
        inner
            .queue
            .resize(old + len.min(FILE_READ as u64) as usize, 0);
        let read = file.read_at(inner.queue.get_mut(old..).unwrap_or_default(), offset);
        inner.queue.truncate(old + read.as_ref().map_or(0, |n| *n));
        match read {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            other => Poll::Ready(other.map(|n| n as u64)),
        }
    }

    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        max: usize,
    ) -> Poll<io::Result<BodyRead>> {
        let inner = &mut *self.inner.lock();
        loop {
            if !inner.unread.is_empty() {
                let n = inner.unread.len().min(max);
                out.extend_from_slice(inner.unread.get(..n).unwrap_or_default());
                inner.unread.advance(n);
                let _ = inner.body.flow_control().release_capacity(n);
                return Poll::Ready(Ok(BodyRead::Data(n)));
            }
            if inner.body_ended {
                return Poll::Ready(Ok(BodyRead::End));
            }
            let Poll::Ready(data) = inner.body.poll_data(cx) else {
                if inner.received >= inner.half_window {
                    self.live.grow();
                }
                return Poll::Pending;
            };
            match data {
                Some(Ok(data)) => {
                    inner.received += data.len() as u64;
                    inner.unread = data;
                }
                Some(Err(_)) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    let trailers = ready!(inner.body.poll_trailers(cx));
                    inner.body_ended = true;
                    match trailers {
                        Ok(t) => inner.request_trailers = t.as_ref().map(headers),
                        Err(_) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                    }
                }
            }
        }
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() {
            return Poll::Ready(());
        }
        match &mut inner.send {
            _ if inner.closed => Poll::Pending,
            Some(s) => s.poll_reset(cx).map(drop),
            None => inner.respond.poll_reset(cx).map(drop),
        }
    }

    fn queued(&self) -> usize {
        self.inner.lock().queue.len()
    }

    fn sent(&self) -> u64 {
        self.inner.lock().sent
    }

    fn trailers(&self) -> Option<Headers> {
        self.inner.lock().request_trailers.clone()
    }

    fn tcp_info(&self) -> Option<crate::module::TcpInfo> {
        self.conn.tcp_info()
    }

    fn abort(&self) {
        self.inner.lock().reset(Reason::INTERNAL_ERROR);
    }

    /// The connection goes on: only this stream ends.
    fn close_after(&self) {}
}

fn headers(map: &HeaderMap) -> Headers {
    let mut list = Headers::new();
    for (name, value) in map {
        list.append(name.as_str().as_bytes(), value.as_bytes());
    }
    list
}
