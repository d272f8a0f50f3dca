//! What carries a connection of a client.

use crate::runtime::buffers;
use bytes::{BufMut, BytesMut};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
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
    pub(super) fn fd(&self) -> RawFd {
        match self {
            Transport::Tcp(s) => s.as_raw_fd(),
            Transport::Unix(s) => s.as_raw_fd(),
            Transport::Other(_, fd) => *fd,
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Transport::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Other(s, _) => Pin::new(s).poll_write(cx, buf),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Other(s, _) => Pin::new(s).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Sends what the socket takes at once; 0 where it takes nothing now.
    pub(super) fn try_write(&mut self, a: &[u8], b: &[u8]) -> io::Result<usize> {
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

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tcp(s) => s.poll_read_ready(cx),
            Transport::Unix(s) => s.poll_read_ready(cx),
            Transport::Other(..) => Poll::Ready(Ok(())),
        }
    }

    /// Reads up to `size` bytes into the spare room of `buf`.
    pub(super) fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
        size: usize,
    ) -> Poll<io::Result<usize>> {
        // a head that dribbles in must not make the buffer grow with every piece
        if size > buffers::SMALL {
            buf.reserve(size);
        } else if buf.capacity() - buf.len() < 64 {
            buf.reserve(buf.len().clamp(1024, size.max(1024)));
        }
        // a fresh future for each poll: `read_buf` keeps nothing between polls
        match self {
            Transport::Tcp(s) => std::pin::pin!(s.read_buf(buf)).poll(cx),
            Transport::Unix(s) => std::pin::pin!(s.read_buf(buf)).poll(cx),
            Transport::Other(s, _) => std::pin::pin!(s.read_buf(buf)).poll(cx),
        }
    }

    /// Reads at most `size` bytes, so that nothing beyond the body is taken.
    pub(super) fn poll_read_exactly(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        size: usize,
    ) -> Poll<io::Result<usize>> {
        out.reserve(size);
        let mut out = out.limit(size);
        match self {
            Transport::Tcp(s) => std::pin::pin!(s.read_buf(&mut out)).poll(cx),
            Transport::Unix(s) => std::pin::pin!(s.read_buf(&mut out)).poll(cx),
            Transport::Other(s, _) => std::pin::pin!(s.read_buf(&mut out)).poll(cx),
        }
    }
}
