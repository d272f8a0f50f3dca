//! A connection to a peer, whatever is below it.

use super::coarse_millis;
use super::connect::PoolKey;
use bytes::BytesMut;
use openssl::ssl::SslRef;
use pingora::tls::tokio_ssl::SslStream;
use pingora_core::protocols::IO;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a peer, with what was read beyond the last response.
#[derive(Debug)]
pub struct UpConn {
    pub(super) io: Io,
    /// Bytes received and not yet consumed.
    pub rbuf: BytesMut,
    /// Requests sent on it, the current one included.
    pub requests: u64,
    /// When it was opened.
    pub opened: Instant,
    /// It served a request before: if it breaks before the first byte, a fresh one may do.
    pub reused: bool,
    /// What HTTP/2 remembers between requests.
    pub h2: Option<Box<crate::http::h2::origin::Kept>>,
    /// No other request may use it.
    pub single_use: bool,
    pub(super) opened_ms: u64,
    pub(super) key: PoolKey,
}

impl UpConn {
    pub(super) fn new(io: Io, key: PoolKey) -> Self {
        Self {
            io,
            rbuf: BytesMut::new(),
            requests: 1,
            opened: Instant::now(),
            reused: false,
            h2: None,
            single_use: false,
            opened_ms: coarse_millis(),
            key,
        }
    }

    /// The descriptor of the socket.
    pub fn id(&self) -> i32 {
        match &self.io {
            Io::Plain(stream) => stream.as_raw_fd(),
            Io::Tls(stream) => stream.get_ref().as_raw_fd(),
        }
    }

    /// Pingora's stream, for its digests (TCP info); below TLS where there is any.
    pub fn stream(&self) -> &dyn IO {
        match &self.io {
            Io::Plain(stream) => stream.as_ref(),
            Io::Tls(stream) => stream.get_ref(),
        }
    }

    /// What TLS settled, where it is spoken: the protocol chosen by ALPN and the like.
    pub fn ssl(&self) -> Option<&SslRef> {
        match &self.io {
            Io::Plain(_) => None,
            Io::Tls(stream) => Some(stream.ssl()),
        }
    }
}

impl Drop for UpConn {
    /// Tells the peer that a TLS session ends; nobody waits for its answer.
    fn drop(&mut self) {
        if let Io::Tls(stream) = &mut self.io {
            let mut context = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut **stream).poll_shutdown(&mut context);
        }
    }
}

impl AsyncRead for UpConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

/// Pingora's stream by its own type, which spares a virtual call per read and write; TLS above it.
///
/// It has no buffers of its own, so a read is one recvfrom and a write one sendto.
#[derive(Debug)]
pub(super) enum Io {
    Plain(Box<L4Stream>),
    Tls(Box<SslStream<L4Stream>>),
}
