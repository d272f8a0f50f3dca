//! The connection as the side of a request that its client is on.

use super::super::transport::Transport;
use super::super::{head_writer, tcp_info};
use super::{BodyIn, COALESCE, Conn, HIGH_WATER, Inner, READ};
use crate::contract::{BodyRead, ConnInfo, Downstream, Framing, ResponseHead};
use crate::http::h1::chunked::{self, BadChunk};
use crate::http::headers::Headers;
use crate::runtime::buffers;
use bytes::{Buf, BytesMut};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;

impl Downstream for Conn {
    fn info(&self) -> &ConnInfo {
        &self.info
    }

    fn head(&self, head: &ResponseHead, framing: Framing) {
        let inner = &mut *self.inner.lock();
        if inner.error.is_some() {
            return;
        }
        if inner.wbuf.capacity() == 0 {
            inner.wbuf = buffers::take();
        }
        let old = inner.wbuf.len();
        head_writer::write(head, framing, &mut inner.wbuf);
        inner.sent += (inner.wbuf.len() - old) as u64;
        if head.status >= 200 || head.status == 101 {
            inner.framing = framing;
            inner.last = !head.keepalive && !head.upgrade && framing != Framing::Tunnel;
        }
        match framing {
            Framing::Tunnel => {
                inner.body = BodyIn::Raw;
                inner.close = true;
                // it may be silent for hours
                if inner.rbuf.is_empty() {
                    buffers::give(std::mem::take(&mut inner.rbuf));
                }
            }
            Framing::Close => inner.close = true,
            _ => {}
        }
    }

    fn write(&self, data: &[u8]) {
        let inner = &mut *self.inner.lock();
        if data.is_empty() || inner.framing == Framing::None {
            return;
        }
        let data = inner.declared(data);
        if inner.framing == Framing::Chunked {
            let mut size = Vec::with_capacity(16);
            chunked::write_chunk_head(data.len() as u64, &mut size);
            inner.push(&size);
            inner.push(data);
            inner.push(chunked::CHUNK_END);
        } else {
            inner.push(data);
        }
    }

    fn finish(&self, trailers: Option<&Headers>) {
        let inner = &mut *self.inner.lock();
        inner.ended = true;
        if inner.framing == Framing::Chunked {
            match trailers.filter(|t| !t.is_empty()) {
                Some(t) => {
                    let mut end = Vec::with_capacity(128);
                    chunked::write_last_chunk(t, &mut end);
                    inner.push(&end);
                }
                None => inner.push(chunked::LAST_CHUNK),
            }
            inner.framing = Framing::None;
        }
        // whatever is missing, the next response must not be taken for it
        if matches!(inner.framing, Framing::Length(1..)) {
            inner.close = true;
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        if inner.wbuf.len() <= HIGH_WATER && inner.error.is_none() {
            return Poll::Ready(Ok(()));
        }
        inner.poll_send(cx, HIGH_WATER / 2)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        if inner.last && inner.ended {
            inner.send_last(cx);
        }
        ready!(inner.poll_send(cx, 0))?;
        if inner.framing == Framing::Tunnel && inner.wbuf.capacity() > 0 {
            buffers::give(std::mem::take(&mut inner.wbuf));
        }
        inner.transport.poll_flush(cx)
    }

    fn poll_part(&self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        inner.poll_part(cx, bytes)
    }

    fn poll_file(
        &self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>> {
        let inner = &mut *self.inner.lock();
        let plain = matches!(inner.framing, Framing::Length(_) | Framing::Close);
        if let (Transport::Tcp(s), true) = (&inner.transport, plain) {
            if !inner.wbuf.is_empty() {
                // head and file may leave in one packet: MSG_MORE is what tcp_nopush does for nginx
                ready!(inner.poll_send(cx, 0))?;
                return Poll::Ready(Ok(0));
            }
            loop {
                ready!(s.poll_write_ready(cx))?;
                let mut at = offset as i64;
                let count = len.min(2 << 20) as usize;
                let sent = s.try_io(Interest::WRITABLE, || {
                    nix::sys::sendfile::sendfile(s, file, Some(&mut at), count)
                        .map_err(io::Error::from)
                });
                match sent {
                    // the file was cut short while it was sent
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    Ok(n) => {
                        inner.sent += n as u64;
                        if let Framing::Length(left) = &mut inner.framing {
                            *left = left.saturating_sub(n as u64);
                        }
                        return Poll::Ready(Ok(n as u64));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => {
                        inner.fail(&e);
                        return Poll::Ready(Err(e));
                    }
                }
            }
        }
        ready!(inner.poll_send(cx, COALESCE))?;
        let mut buf = vec![0; len.min(32 * 1024) as usize];
        let n = file.read_at(&mut buf, offset)?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let data = inner.declared(buf.get(..n).unwrap_or_default());
        if inner.framing == Framing::Chunked {
            let mut size = Vec::with_capacity(16);
            chunked::write_chunk_head(n as u64, &mut size);
            inner.push(&size);
            inner.push(data);
            inner.push(chunked::CHUNK_END);
        } else if inner.framing != Framing::None {
            inner.push(data);
        }
        Poll::Ready(Ok(n as u64))
    }

    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        max: usize,
    ) -> Poll<io::Result<BodyRead>> {
        let inner = &mut *self.inner.lock();
        let read = inner.poll_body(cx, out, max);
        if read.is_pending() {
            // the client may take its time: nothing is held that holds nothing
            inner.rest();
            if out.is_empty() && out.capacity() >= buffers::SMALL {
                buffers::give(std::mem::take(out));
            }
        }
        read
    }

    fn limit_body(&self, bytes: u64) {
        if let BodyIn::Chunked(decoder) = &mut self.inner.lock().body {
            decoder.limit(bytes);
        }
    }

    fn too_large(&self) -> Option<(u64, u64)> {
        self.inner.lock().too_large.as_deref().copied()
    }

    fn coded_body(&self) -> Option<u64> {
        Some(self.inner.lock().coded).filter(|n| *n > 0)
    }

    fn errno(&self) -> i32 {
        self.inner.lock().errno
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let inner = &mut *self.inner.lock();
        loop {
            if inner.eof || inner.error.is_some() {
                return Poll::Ready(());
            }
            // what a client pipelines hides its end until it is read
            if inner.rbuf.len() >= READ || !matches!(inner.body, BodyIn::None | BodyIn::Done) {
                return Poll::Pending;
            }
            match ready!(inner.fill(cx, 2048)) {
                Ok(0) => {
                    inner.eof = true;
                    return Poll::Ready(());
                }
                Err(e) => {
                    inner.eof = true;
                    inner.errno = e.raw_os_error().unwrap_or(0);
                    return Poll::Ready(());
                }
                Ok(_) => {}
            }
        }
    }

    fn queued(&self) -> usize {
        self.inner.lock().wbuf.len()
    }

    fn sent(&self) -> u64 {
        self.inner.lock().sent
    }

    fn trailers(&self) -> Option<Headers> {
        self.inner.lock().trailers.as_deref().cloned()
    }

    fn tcp_info(&self) -> Option<crate::contract::TcpInfo> {
        tcp_info::of(self.fd)
    }

    fn abort(&self) {
        let inner = &mut *self.inner.lock();
        inner.framing = Framing::None;
        inner.close = true;
    }

    fn close_after(&self) {
        self.inner.lock().close = true;
    }
}

impl Inner {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        max: usize,
    ) -> Poll<io::Result<BodyRead>> {
        // the interim response must leave before its answer is waited for
        if !self.wbuf.is_empty()
            && let Poll::Ready(Err(e)) = self.poll_send(cx, 0)
        {
            return Poll::Ready(Err(e));
        }
        loop {
            match &mut self.body {
                BodyIn::None | BodyIn::Done => return Poll::Ready(Ok(BodyRead::End)),
                BodyIn::Length(left) => {
                    if *left == 0 {
                        self.body = BodyIn::Done;
                        continue;
                    }
                    if self.rbuf.is_empty() {
                        if self.eof {
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                        let size = (*left).min(max as u64) as usize;
                        // a read that is not filled tells, without another one, that nothing follows the body
                        let more = usize::from(size as u64 == *left);
                        let old = out.len();
                        let mut n = ready!(self.read_body(cx, out, size + more))?;
                        if n == 0 {
                            self.eof = true;
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                        if n > size {
                            self.rbuf
                                .extend_from_slice(out.get(old + size..).unwrap_or_default());
                            out.truncate(old + size);
                            n = size;
                        }
                        if let BodyIn::Length(left) = &mut self.body {
                            *left -= n as u64;
                        }
                        return Poll::Ready(Ok(BodyRead::Data(n)));
                    }
                    let n = (*left).min(self.rbuf.len() as u64).min(max as u64) as usize;
                    out.extend_from_slice(self.rbuf.get(..n).unwrap_or_default());
                    self.rbuf.advance(n);
                    *left -= n as u64;
                    return Poll::Ready(Ok(BodyRead::Data(n)));
                }
                BodyIn::Chunked(decoder) => {
                    if !self.rbuf.is_empty() {
                        let old = out.len();
                        let input = &self.rbuf;
                        let decoded = decoder.decode(input, |r| {
                            out.extend_from_slice(input.get(r).unwrap_or_default())
                        });
                        match decoded {
                            Ok(d) => {
                                if d.done {
                                    self.trailers = decoder.trailers().cloned().map(Box::new);
                                    self.body = BodyIn::Done;
                                }
                                self.coded += d.consumed as u64;
                                self.rbuf.advance(d.consumed);
                                if out.len() > old {
                                    return Poll::Ready(Ok(BodyRead::Data(out.len() - old)));
                                }
                                if d.done {
                                    continue;
                                }
                            }
                            Err(e) => {
                                self.close = true;
                                let status = match e {
                                    BadChunk::TooLarge { before, chunk } => {
                                        self.too_large = Some(Box::new((before, chunk)));
                                        413
                                    }
                                    _ => 400,
                                };
                                return Poll::Ready(Ok(BodyRead::Bad(status)));
                            }
                        }
                    }
                    if ready!(self.fill(cx, READ))? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                BodyIn::Raw => {
                    if self.rbuf.is_empty() {
                        let n = ready!(self.read_body(cx, out, max))?;
                        return Poll::Ready(Ok(if n == 0 {
                            BodyRead::End
                        } else {
                            BodyRead::Data(n)
                        }));
                    }
                    let n = self.rbuf.len().min(max);
                    out.extend_from_slice(self.rbuf.get(..n).unwrap_or_default());
                    self.rbuf.advance(n);
                    if self.rbuf.is_empty() {
                        buffers::give(std::mem::take(&mut self.rbuf));
                    }
                    return Poll::Ready(Ok(BodyRead::Data(n)));
                }
            }
        }
    }
}
