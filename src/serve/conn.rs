//! One client connection of HTTP/1: reads bodies, gathers what is written into few sends.

mod downstream;

use super::front::Client;
use super::reusable::{Reusable, Roster};
use super::thread::STAYS;
use super::transport::Transport;
use crate::contract::{ConnInfo, Framing};
use crate::http::h1::chunked_strict::Chunks;
use crate::http::head::RequestHead;
use crate::http::headers::Headers;
use crate::runtime::buffers;
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// How the present request's body is told apart from what follows it.
enum BodyIn {
    None,
    Length(u64),
    Chunked(Box<Chunks>),
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
    /// Bytes of the present request's chunked body with its coding.
    coded: u64,
    /// See [`crate::contract::Downstream::too_large`].
    too_large: Option<Box<(u64, u64)>>,
    eof: bool,
    error: Option<io::ErrorKind>,
    /// The error number with which reading ended.
    errno: i32,
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
    /// The epoch of the site with which the client was told that the connection ends.
    told: AtomicU64,
    /// The thread's connections, and its number among them.
    roster: OnceLock<(&'static Roster, u32)>,
    /// What is being handed through Pingora.
    pub(super) handover_slot: Mutex<Option<Box<Client>>>,
}

/// Small writes are gathered up to this size.
const COALESCE: usize = 16 * 1024;
/// Above this much unsent, a writer waits.
const HIGH_WATER: usize = 32 * 1024;
/// How long the end of a TLS session may take to be sent.
const GOODBYE: std::time::Duration = std::time::Duration::from_millis(100);
/// The least memory for a head that has come in part (nginx's default of `client_header_buffer_size`).
const HEAD: usize = 1024;
/// One read of a body.
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
                coded: 0,
                too_large: None,
                eof: false,
                error: None,
                errno: 0,
                close: false,
                shut: false,
                last: false,
                ended: false,
            }),
            idle: AtomicBool::new(false),
            told: AtomicU64::new(STAYS),
            roster: OnceLock::new(),
            handover_slot: Mutex::new(None),
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
        let read = inner.transport.poll_read_into(cx, buf, size);
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

    /// Whether all of the present request's body, or that there is none, has been read already, as far as can be told
    /// without looking into it.
    pub(super) fn has_body(&self) -> bool {
        let inner = self.inner.lock();
        match &inner.body {
            BodyIn::Length(n) => inner.rbuf.len() as u64 >= *n,
            BodyIn::Chunked(_) => false,
            BodyIn::None | BodyIn::Done | BodyIn::Raw => true,
        }
    }

    /// Keeps what has been read of a head in no more memory than it needs.
    pub(super) fn shrink(&self) {
        let inner = &mut *self.inner.lock();
        let needed = (inner.rbuf.len() + HEAD / 4).next_power_of_two().max(HEAD);
        if inner.rbuf.capacity() > needed {
            let mut small = BytesMut::with_capacity(needed);
            small.extend_from_slice(&inner.rbuf);
            buffers::give(std::mem::replace(&mut inner.rbuf, small));
        }
    }

    /// Sets the framing of the next request's body.
    pub(super) fn begin(&self, head: &RequestHead, keep_trailers: usize) {
        let inner = &mut *self.inner.lock();
        inner.body = match (head.chunked, head.content_length) {
            (true, _) => BodyIn::Chunked(Box::new(Chunks::new(head.strict, keep_trailers))),
            (false, Some(n)) if n > 0 => BodyIn::Length(n),
            _ => BodyIn::None,
        };
        inner.trailers = None;
        inner.sent = 0;
        inner.coded = 0;
        inner.too_large = None;
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
        self.inner.lock().rest();
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

    /// Says which of the thread's connections it is.
    pub(super) fn enrol(&self, roster: &'static Roster, id: u32) {
        let _ = self.roster.set((roster, id));
    }

    /// Lets the connection give way to others for as long as what this returns lives.
    pub(super) fn reusable(&self) -> Option<Reusable> {
        self.roster.get().map(|(r, id)| Reusable::new(r, *id))
    }

    /// Something has come on a new connection: it does not give way any more.
    pub(super) fn begun(&self) {
        if let Some((r, id)) = self.roster.get() {
            r.set_reusable(*id, false);
        }
    }

    /// Whether the connection has been told to give way: nothing more is read from it.
    pub(super) fn is_retired(&self) -> bool {
        self.roster.get().is_some_and(|(r, id)| r.is_retired(*id))
    }

    /// Whether the connection waits for its next request.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// Says whether the connection waits for its next request.
    pub(super) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Relaxed);
    }

    /// The epoch of the site with which the client was told that the connection ends (HTTP/2); [`STAYS`] if it was not.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Notes that a site of this epoch ends the connection.
    pub(super) fn set_told(&self, epoch: u64) {
        self.told.fetch_min(epoch, Ordering::Relaxed);
    }

    /// Ends both directions at once: whoever reads or writes finds the connection closed.
    pub(super) fn cut(&self) {
        let _ = nix::sys::socket::shutdown(self.fd, nix::sys::socket::Shutdown::Both);
    }
}

impl Inner {
    /// Frees the buffers that hold nothing.
    fn rest(&mut self) {
        for buf in [&mut self.rbuf, &mut self.wbuf] {
            if buf.is_empty() && buf.capacity() > 0 {
                buffers::give(std::mem::take(buf));
            }
        }
    }

    /// Reads at most `size` bytes of a body into a buffer of the caller's, which grows by what has come.
    fn read_body(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        size: usize,
    ) -> Poll<io::Result<usize>> {
        if out.capacity() - out.len() >= size {
            return self.transport.poll_read_exactly(cx, out, size);
        }
        let mut some = buffers::take();
        let read = self
            .transport
            .poll_read_exactly(cx, &mut some, size.min(buffers::SIZE));
        if out.is_empty() && some.len() > buffers::SMALL {
            std::mem::swap(out, &mut some);
        } else {
            out.extend_from_slice(&some);
        }
        buffers::give(some);
        read
    }

    fn fill(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let Inner {
            transport, rbuf, ..
        } = self;
        if rbuf.capacity() == 0 {
            *rbuf = match size > buffers::SMALL {
                true => buffers::take(),
                false => buffers::take_small(),
            };
        }
        let n = match ready!(transport.poll_read_into(cx, rbuf, size)) {
            Ok(n) => n,
            Err(e) => {
                // the next read finds but the end
                self.errno = e.raw_os_error().unwrap_or(0);
                return Poll::Ready(Err(e));
            }
        };
        self.eof |= n == 0;
        Poll::Ready(Ok(n))
    }

    fn fail(&mut self, e: &io::Error) {
        self.error.get_or_insert(e.kind());
        self.close = true;
        self.wbuf.clear();
    }

    /// What of the body's next bytes lies within the length that the head declared; it is counted.
    fn declared<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let Framing::Length(left) = &mut self.framing else {
            return data;
        };
        let n = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
        *left -= n as u64;
        data.get(..n).unwrap_or_default()
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

    /// Sends at most so many bytes of what is queued, with one write.
    fn poll_part(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        let part = self.wbuf.get(..bytes).unwrap_or(&self.wbuf);
        if !part.is_empty() {
            match ready!(self.transport.poll_write(cx, part)) {
                Ok(n) => self.wbuf.advance(n),
                Err(e) => {
                    self.fail(&e);
                    return Poll::Ready(Err(e));
                }
            }
        }
        ready!(self.transport.poll_flush(cx))?;
        match self.error {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Poll::Ready(Ok(())),
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
