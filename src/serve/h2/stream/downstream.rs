//! The stream as the side of a request that its client is on.

use super::super::response;
use super::{FILE_READ, QUEUE, Stream, keep};
use crate::contract::{BodyRead, ConnInfo, Downstream, Framing, ResponseHead};
use crate::http::h2::frame::{self, HEAD};
use crate::http::headers::Headers;
use bytes::{Buf, BytesMut};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::task::{Context, Poll, ready};

impl Downstream for Stream {
    fn info(&self) -> &ConnInfo {
        self.link.conn.info()
    }

    fn head(&self, head: &ResponseHead, framing: Framing) {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() || inner.out_closed {
            return;
        }
        let interim = (100..200).contains(&head.status);
        let tunnel = framing == Framing::Tunnel;
        let mut status = head.status;
        if tunnel {
            let accepted = inner
                .accept
                .take()
                .is_some_and(|key| head.headers.get(b"sec-websocket-accept") == Some(&key[..]));
            status = if accepted { 200 } else { 502 };
            inner.tunnel = accepted;
        } else if head.status == 101 {
            return;
        }
        // clients of gRPC take an empty frame behind the head for one that broke off
        let empty = match framing {
            Framing::None => true,
            Framing::Length(0) => !head.expect_trailers,
            _ => false,
        };
        let end = !interim && empty || tunnel && !inner.tunnel;
        let out = &mut *self.link.lock();
        if out.dead {
            return;
        }
        let n = response::head(out, self.id, head, status, end);
        inner.sent += n as u64;
        (inner.finished, inner.out_closed) = (end, end);
        if tunnel && end {
            inner.fail(io::ErrorKind::ConnectionAborted);
        }
    }

    fn write(&self, data: &[u8]) {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() || inner.finished || data.is_empty() {
            return;
        }
        let mut rest = data;
        if inner.queue.len() + data.len() > inner.chunk {
            // more follows a whole frame, so that it cannot be the last one: it need not wait
            let out = &mut *self.link.lock();
            let missing = inner.chunk.saturating_sub(inner.queue.len()) % inner.chunk;
            if !inner.queue.is_empty() {
                let (now, later) = rest.split_at_checked(missing).unwrap_or((rest, b""));
                inner.queue.extend_from_slice(now);
                rest = later;
            }
            while !inner.queue.is_empty() && !rest.is_empty() && !out.dead {
                let n = inner.room(out).min(inner.queue.len());
                if n == 0 {
                    break;
                }
                inner.put_queued(out, self.id, n, false);
            }
            while inner.queue.is_empty() && !out.dead {
                let n = inner.room(out);
                match rest.split_at_checked(n) {
                    Some((now, later)) if n > 0 && !later.is_empty() => {
                        inner.put(out, self.id, now, false);
                        rest = later;
                    }
                    _ => break,
                }
            }
        }
        inner.queue.extend_from_slice(rest);
    }

    fn finish(&self, trailers: Option<&Headers>) {
        let inner = &mut *self.inner.lock();
        if !inner.finished {
            inner.finished = true;
            inner.trailers = trailers.filter(|t| !t.is_empty()).cloned();
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        if inner.queue.len() <= QUEUE && inner.error.is_none() {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(inner, cx, QUEUE / 2)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(&mut self.inner.lock(), cx, 0)
    }

    fn poll_file(
        &self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>> {
        let inner = &mut *self.inner.lock();
        ready!(self.poll_send(inner, cx, FILE_READ / 2))?;
        let read = |buf: &mut BytesMut, n: usize| {
            let old = buf.len();
            buf.resize(old + n, 0);
            let read = file.read_at(buf.get_mut(old..).unwrap_or_default(), offset);
            buf.truncate(old + read.as_ref().map_or(0, |n| *n));
            read
        };
        let mut out = self.link.lock();
        let room = inner.room(&out);
        if room == 0 && inner.queue.is_empty() {
            // nothing is read before it can be sent
            inner.wait(&mut out, cx);
            return Poll::Pending;
        }
        let n = if inner.queue.is_empty() && len > room as u64 {
            // what is not the last piece goes straight into its frame
            let at = out.buf.len();
            frame::data(&mut out.buf, self.id, b"", false);
            let n = read(&mut out.buf, room);
            match n {
                Ok(n) if n > 0 => {
                    let mut head = BytesMut::with_capacity(HEAD);
                    frame::Head {
                        length: n,
                        kind: frame::kind::DATA,
                        flags: 0,
                        stream: self.id,
                    }
                    .write(&mut head);
                    if let Some(place) = out.buf.get_mut(at..at + HEAD) {
                        place.copy_from_slice(&head);
                    }
                    inner.account(&mut out, n);
                }
                _ => out.buf.truncate(at),
            }
            n
        } else {
            drop(out);
            read(&mut inner.queue, len.min(FILE_READ as u64) as usize)
        };
        match n {
            // the file was cut short while it was sent
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
        if let Some(kind) = inner.error {
            return Poll::Ready(Err(kind.into()));
        }
        if inner.malformed && !inner.tunnel {
            return Poll::Ready(Ok(BodyRead::Bad(400)));
        }
        if !inner.body.is_empty() {
            let n = inner.body.len().min(max);
            out.extend_from_slice(inner.body.get(..n).unwrap_or_default());
            inner.body.advance(n);
            inner.credit(&self.link, self.id);
            return Poll::Ready(Ok(BodyRead::Data(n)));
        }
        if inner.in_closed {
            return Poll::Ready(Ok(BodyRead::End));
        }
        inner.grow(&self.link);
        inner.credit(&self.link, self.id);
        keep(&mut inner.read_waker, cx);
        Poll::Pending
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() {
            return Poll::Ready(());
        }
        keep(&mut inner.closed_waker, cx);
        Poll::Pending
    }

    fn queued(&self) -> usize {
        self.inner.lock().queue.len()
    }

    fn sent(&self) -> u64 {
        self.inner.lock().sent
    }

    fn framing_sent(&self) -> u64 {
        self.inner.lock().framing_sent
    }

    fn trailers(&self) -> Option<Headers> {
        self.inner.lock().request_trailers.clone()
    }

    fn tcp_info(&self) -> Option<crate::contract::TcpInfo> {
        self.link.conn.tcp_info()
    }

    fn chunk_size(&self, bytes: usize) {
        self.inner.lock().chunk = bytes.max(1);
    }

    fn abort(&self) {
        let inner = &mut *self.inner.lock();
        inner.aborted = true;
        inner.fail(io::ErrorKind::ConnectionAborted);
    }

    /// The connection goes on: only this stream ends.
    fn close_after(&self) {}
}
