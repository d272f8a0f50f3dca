//! One client connection of HTTP/1: reads bodies, gathers what is written into few sends.

use super::front::Client;
use super::{buffers, head_writer};
use crate::exchange::h1::chunked::{self, Decoder};
use crate::http::headers::Headers;
use crate::module::{BodyRead, ConnInfo, Downstream, Framing, ResponseHead};
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};

/// A stream that is neither plain TCP nor a UNIX-domain socket: TLS.
pub trait AnyStream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Holds back what is written until this is ended, or until the stream is shut down; false where it cannot.
    fn hold(&mut self, _on: bool) -> bool {
        false
    }
}

/// What carries a connection.
pub enum Transport {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A UNIX-domain socket.
    Unix(UnixStream),
    /// TLS over either; the descriptor is that of the socket below.
    Other(Box<dyn AnyStream>, RawFd),
}

impl Transport {
    fn fd(&self) -> RawFd {
        match self {
            Transport::Tcp(s) => s.as_raw_fd(),
            Transport::Unix(s) => s.as_raw_fd(),
            Transport::Other(_, fd) => *fd,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Transport::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Other(s, _) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Other(s, _) => Pin::new(s).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Sends what the socket takes at once; 0 where it takes nothing now.
    fn try_write(&mut self, a: &[u8], b: &[u8]) -> io::Result<usize> {
        let slices = [IoSlice::new(a), IoSlice::new(b)];
        let sent = match self {
            Transport::Tcp(s) => s.try_write_vectored(&slices),
            Transport::Unix(s) => s.try_write_vectored(&slices),
            Transport::Other(..) => return Ok(0),
        };
        match sent {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tcp(s) => s.poll_read_ready(cx),
            Transport::Unix(s) => s.poll_read_ready(cx),
            Transport::Other(..) => Poll::Ready(Ok(())),
        }
    }
}

/// How the present request's body is told apart from what follows it.
enum BodyIn {
    None,
    Length(u64),
    Chunked(Box<Decoder>),
    /// An upgraded connection: everything belongs to it.
    Raw,
    Done,
}

pub(super) struct Inner {
    pub(super) transport: Transport,
    /// Read and not yet consumed.
    pub(super) rbuf: BytesMut,
    /// Written and not yet sent.
    wbuf: BytesMut,
    body: BodyIn,
    framing: Framing,
    /// Boxed: few requests have any.
    trailers: Option<Box<Headers>>,
    /// Bytes of the present response, head included.
    sent: u64,
    eof: bool,
    error: Option<io::ErrorKind>,
    close: bool,
    /// Whether a TLS session has been ended.
    shut: bool,
    /// Whether the present response says that it is the last one.
    last: bool,
    /// Whether the present response is whole.
    ended: bool,
}

/// A connection of HTTP/1. Shared by the loop that reads heads, Pingora's session and the request.
pub struct Conn {
    info: ConnInfo,
    fd: RawFd,
    pub(super) inner: Mutex<Inner>,
    /// Waits for its next request: a drain closes it.
    idle: AtomicBool,
    /// What is being handed through Pingora.
    pub(super) parked: Mutex<Option<Box<Client>>>,
}

/// Small writes are gathered up to this size.
const COALESCE: usize = 16 * 1024;
/// Above this much unsent, a writer waits.
const HIGH_WATER: usize = 64 * 1024;
/// How long the end of a TLS session may take to be sent.
const GOODBYE: std::time::Duration = std::time::Duration::from_millis(100);
/// One read of a head or of a body.
const READ: usize = 16 * 1024;

impl Conn {
    /// A connection that has just been accepted.
    pub fn new(transport: Transport, info: ConnInfo) -> Conn {
        Conn {
            fd: transport.fd(),
            info,
            inner: Mutex::new(Inner {
                transport,
                rbuf: BytesMut::new(),
                wbuf: BytesMut::new(),
                body: BodyIn::None,
                framing: Framing::None,
                trailers: None,
                sent: 0,
                eof: false,
                error: None,
                close: false,
                shut: false,
                last: false,
                ended: false,
            }),
            idle: AtomicBool::new(false),
            parked: Mutex::new(None),
        }
    }

    /// The socket's descriptor.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Ready when bytes can be read, the end included; holds no buffer while it waits.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        if !inner.rbuf.is_empty() || inner.eof {
            return Poll::Ready(Ok(()));
        }
        if let Transport::Other(..) = inner.transport {
            // a TLS stream cannot tell readiness without reading
            let filled = inner.fill(cx, 4096).map_ok(drop);
            if filled.is_pending() {
                buffers::give(std::mem::take(&mut inner.rbuf));
            }
            return filled;
        }
        ready!(inner.transport.poll_readable(cx))?;
        // readiness may be a guess: tokio gives it to every accepted socket
        let filled = inner.fill(cx, 4096);
        if filled.is_pending() {
            buffers::give(std::mem::take(&mut inner.rbuf));
        }
        filled.map_ok(drop)
    }

    /// Reads more into the buffer; 0 at the end.
    pub(super) fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.lock();
        inner.fill(cx, 4096)
    }

    /// Reads into a buffer of the caller's, what has been read here already first; 0 at the end.
    ///
    /// A buffer without memory gets some once there is something to be read, and loses it where there is nothing.
    pub(super) fn poll_into(
        &self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
        size: usize,
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.lock();
        if !inner.rbuf.is_empty() {
            let n = inner.rbuf.len();
            buf.extend_from_slice(&inner.rbuf);
            buffers::give(std::mem::take(&mut inner.rbuf));
            return Poll::Ready(Ok(n));
        }
        if inner.eof {
            return Poll::Ready(Ok(0));
        }
        if buf.capacity() == 0 {
            ready!(inner.transport.poll_readable(cx))?;
            *buf = buffers::take();
        }
        let read = read_into(&mut inner.transport, cx, buf, size);
        match &read {
            Poll::Pending if buf.is_empty() => buffers::give(std::mem::take(buf)),
            Poll::Ready(Ok(n)) => inner.eof |= *n == 0,
            _ => {}
        }
        read
    }

    /// Sends what a buffer of the caller's holds; ready once it is empty.
    pub(super) fn poll_out(
        &self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        while !buf.is_empty() {
            match ready!(inner.transport.poll_write(cx, buf))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => buf.advance(n),
            }
        }
        inner.transport.poll_flush(cx)
    }

    /// Gives the unread bytes to `f`, which says how many it used.
    pub(super) fn with_read<T>(&self, f: impl FnOnce(&[u8]) -> (usize, T)) -> T {
        let inner = &mut *self.inner.lock();
        let (used, value) = f(&inner.rbuf);
        inner.rbuf.advance(used.min(inner.rbuf.len()));
        value
    }

    /// Whether bytes of a further request have been read.
    pub(super) fn has_input(&self) -> bool {
        !self.inner.lock().rbuf.is_empty()
    }

    /// Sets the framing of the next request's body.
    pub(super) fn begin(&self, length: Option<u64>, chunked: bool, keep_trailers: usize) {
        let inner = &mut *self.inner.lock();
        inner.body = match (chunked, length) {
            (true, _) => BodyIn::Chunked(Box::new(if keep_trailers > 0 {
                Decoder::with_trailers(keep_trailers)
            } else {
                Decoder::new()
            })),
            (false, Some(n)) if n > 0 => BodyIn::Length(n),
            _ => BodyIn::None,
        };
        inner.trailers = None;
        inner.sent = 0;
        inner.framing = Framing::None;
        inner.last = false;
        inner.ended = false;
    }

    /// Whether the request's body has been read to its end.
    pub(super) fn body_done(&self) -> bool {
        matches!(
            self.inner.lock().body,
            BodyIn::None | BodyIn::Done | BodyIn::Raw
        )
    }

    /// Whether the connection must be closed after the present response.
    pub(super) fn must_close(&self) -> bool {
        let inner = self.inner.lock();
        inner.close || inner.eof || inner.error.is_some()
    }

    /// Frees the buffers of an idle connection.
    pub(super) fn rest(&self) {
        let inner = &mut *self.inner.lock();
        if inner.rbuf.is_empty() {
            buffers::give(std::mem::take(&mut inner.rbuf));
        }
        if inner.wbuf.is_empty() {
            buffers::give(std::mem::take(&mut inner.wbuf));
        }
    }

    /// Closes our side; the client still may send.
    pub(super) fn shutdown_write(&self) {
        let _ = nix::sys::socket::shutdown(self.fd, nix::sys::socket::Shutdown::Write);
    }

    /// Ends a TLS session politely: sends close_notify as far as the socket takes it.
    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.lock();
        match &mut inner.transport {
            Transport::Other(s, _) if !inner.shut && inner.error.is_none() => {
                let done = Pin::new(s).poll_shutdown(cx);
                inner.shut = done.is_ready();
                done
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ends a TLS session that has not been ended yet; a client that takes nothing is not waited for.
    pub(super) async fn goodbye(&self) {
        let tls = {
            let inner = self.inner.lock();
            matches!(inner.transport, Transport::Other(..)) && !inner.shut
        };
        if tls {
            let _ =
                tokio::time::timeout(GOODBYE, std::future::poll_fn(|cx| self.poll_shutdown(cx)))
                    .await;
        }
    }

    /// Makes closing the socket reset the connection (`reset_timedout_connection`, 444).
    pub(super) fn reset_on_close(&self) {
        if let Transport::Tcp(s) = &self.inner.lock().transport {
            let _ = socket2::SockRef::from(s).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// Reads and forgets, for a lingering close; 0 at the end.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.lock();
        if !inner.rbuf.is_empty() {
            let n = inner.rbuf.len();
            inner.rbuf.clear();
            return Poll::Ready(Ok(n));
        }
        let n = ready!(inner.fill(cx, READ))?;
        inner.rbuf.clear();
        Poll::Ready(Ok(n))
    }

    /// Whether the connection waits for its next request.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// Says whether the connection waits for its next request.
    pub(super) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Relaxed);
    }

    /// Ends both directions at once: whoever reads or writes finds the connection closed.
    pub(super) fn cut(&self) {
        let _ = nix::sys::socket::shutdown(self.fd, nix::sys::socket::Shutdown::Both);
    }
}

impl Inner {
    fn fill(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let Inner {
            transport, rbuf, ..
        } = self;
        if rbuf.capacity() == 0 {
            *rbuf = buffers::take_small();
        }
        let n = ready!(read_into(transport, cx, rbuf, size))?;
        self.eof |= n == 0;
        Poll::Ready(Ok(n))
    }

    fn fail(&mut self, e: &io::Error) {
        self.error.get_or_insert(e.kind());
        self.close = true;
        self.wbuf.clear();
    }

    /// Queues bytes as they are.
    fn push(&mut self, data: &[u8]) {
        if self.error.is_some() {
            return;
        }
        self.sent += data.len() as u64;
        if self.wbuf.len() + data.len() <= COALESCE {
            if self.wbuf.capacity() == 0 {
                self.wbuf = buffers::take();
            }
            self.wbuf.extend_from_slice(data);
            return;
        }
        match self.transport.try_write(&self.wbuf, data) {
            Ok(n) => {
                let old = self.wbuf.len();
                if n < old {
                    self.wbuf.advance(n);
                    self.wbuf.extend_from_slice(data);
                } else {
                    self.wbuf.clear();
                    self.wbuf
                        .extend_from_slice(data.get(n - old..).unwrap_or_default());
                }
            }
            Err(e) => self.fail(&e),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, down_to: usize) -> Poll<io::Result<()>> {
        while self.wbuf.len() > down_to {
            match ready!(self.transport.poll_write(cx, &self.wbuf)) {
                Ok(0) => {
                    let e = io::Error::from(io::ErrorKind::WriteZero);
                    self.fail(&e);
                    return Poll::Ready(Err(e));
                }
                Ok(n) => self.wbuf.advance(n),
                Err(e) => {
                    self.fail(&e);
                    return Poll::Ready(Err(e));
                }
            }
        }
        match self.error {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Inner {
    /// Has the end of a TLS session leave with the last piece of the last response.
    fn send_last(&mut self, cx: &mut Context<'_>) {
        if self.shut || self.error.is_some() || self.wbuf.len() > COALESCE {
            return;
        }
        let Transport::Other(s, _) = &mut self.transport else {
            return;
        };
        if !s.hold(true) {
            return;
        }
        let written = self.poll_send(cx, 0);
        if let Transport::Other(s, _) = &mut self.transport {
            if matches!(written, Poll::Ready(Ok(()))) {
                // whoever flushes waits for what the socket does not take now
                self.shut = true;
                let _ = Pin::new(&mut **s).poll_shutdown(cx);
            }
            s.hold(false);
        }
    }
}

/// Reads up to `size` bytes into the spare room of `buf`.
fn read_into(
    t: &mut Transport,
    cx: &mut Context<'_>,
    buf: &mut BytesMut,
    size: usize,
) -> Poll<io::Result<usize>> {
    use tokio::io::AsyncReadExt;
    // a head that dribbles in must not make the buffer grow with every piece
    if size > buffers::SMALL || buf.capacity() - buf.len() < 1024 {
        buf.reserve(size);
    }
    // a fresh future for each poll: `read_buf` keeps nothing between polls
    match t {
        Transport::Tcp(s) => std::pin::pin!(s.read_buf(buf)).poll(cx),
        Transport::Unix(s) => std::pin::pin!(s.read_buf(buf)).poll(cx),
        Transport::Other(s, _) => std::pin::pin!(s.read_buf(buf)).poll(cx),
    }
}

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
        let data = buf.get(..n).unwrap_or_default();
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
        // the interim response must leave before its answer is waited for
        if !inner.wbuf.is_empty()
            && let Poll::Ready(Err(e)) = inner.poll_send(cx, 0)
        {
            return Poll::Ready(Err(e));
        }
        loop {
            match &mut inner.body {
                BodyIn::None | BodyIn::Done => return Poll::Ready(Ok(BodyRead::End)),
                BodyIn::Length(left) => {
                    if *left == 0 {
                        inner.body = BodyIn::Done;
                        continue;
                    }
                    if inner.rbuf.is_empty() {
                        if inner.eof {
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                        let size = (*left).min(max as u64) as usize;
                        // a read that is not filled tells, without another one, that nothing follows the body
                        let more = usize::from(size as u64 == *left);
                        let old = out.len();
                        let Inner {
                            transport, rbuf, ..
                        } = inner;
                        let mut n = ready!(read_exactly_into(transport, cx, out, size + more))?;
                        if n == 0 {
                            inner.eof = true;
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                        if n > size {
                            rbuf.extend_from_slice(out.get(old + size..).unwrap_or_default());
                            out.truncate(old + size);
                            n = size;
                        }
                        *left -= n as u64;
                        return Poll::Ready(Ok(BodyRead::Data(n)));
                    }
                    let n = (*left).min(inner.rbuf.len() as u64).min(max as u64) as usize;
                    out.extend_from_slice(inner.rbuf.get(..n).unwrap_or_default());
                    inner.rbuf.advance(n);
                    *left -= n as u64;
                    return Poll::Ready(Ok(BodyRead::Data(n)));
                }
                BodyIn::Chunked(decoder) => {
                    if !inner.rbuf.is_empty() {
                        let old = out.len();
                        let input = &inner.rbuf;
                        let decoded = decoder.decode(input, |r| {
                            out.extend_from_slice(input.get(r).unwrap_or_default())
                        });
                        match decoded {
                            Ok(d) => {
                                if d.done {
                                    inner.trailers = decoder.trailers().cloned().map(Box::new);
                                    inner.body = BodyIn::Done;
                                }
                                inner.rbuf.advance(d.consumed);
                                if out.len() > old {
                                    return Poll::Ready(Ok(BodyRead::Data(out.len() - old)));
                                }
                                if d.done {
                                    continue;
                                }
                            }
                            Err(_) => {
                                inner.close = true;
                                return Poll::Ready(Ok(BodyRead::Bad(400)));
                            }
                        }
                    }
                    if ready!(inner.fill(cx, READ))? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                BodyIn::Raw => {
                    if inner.rbuf.is_empty() {
                        let Inner { transport, .. } = inner;
                        let n = ready!(read_exactly_into(transport, cx, out, max))?;
                        return Poll::Ready(Ok(if n == 0 {
                            BodyRead::End
                        } else {
                            BodyRead::Data(n)
                        }));
                    }
                    let n = inner.rbuf.len().min(max);
                    out.extend_from_slice(inner.rbuf.get(..n).unwrap_or_default());
                    inner.rbuf.advance(n);
                    if inner.rbuf.is_empty() {
                        buffers::give(std::mem::take(&mut inner.rbuf));
                    }
                    return Poll::Ready(Ok(BodyRead::Data(n)));
                }
            }
        }
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
                Ok(0) | Err(_) => {
                    inner.eof = true;
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

    fn tcp_info(&self) -> Option<crate::module::TcpInfo> {
        super::tcp_info::of(self.fd)
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

/// Reads at most `size` bytes, so that nothing beyond the body is taken.
fn read_exactly_into(
    t: &mut Transport,
    cx: &mut Context<'_>,
    out: &mut BytesMut,
    size: usize,
) -> Poll<io::Result<usize>> {
    use bytes::BufMut;
    use tokio::io::AsyncReadExt;
    out.reserve(size);
    let mut out = out.limit(size);
    match t {
        Transport::Tcp(s) => std::pin::pin!(s.read_buf(&mut out)).poll(cx),
        Transport::Unix(s) => std::pin::pin!(s.read_buf(&mut out)).poll(cx),
        Transport::Other(s, _) => std::pin::pin!(s.read_buf(&mut out)).poll(cx),
    }
}
