//! Early data of TLS 1.3 (RFC 8446 section 2.3): a request may be read, and answered, before the handshake is over.

use super::tls_socket::Wire;
use super::transport::AnyStream;
use crate::tls::ffi;
use openssl::ssl;
use pingora::tls::tokio_ssl::SslStream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A TLS stream whose first bytes may be early data.
pub(super) struct Early {
    stream: SslStream<Wire>,
    /// The byte by which early data was found.
    first: Option<u8>,
    /// Early data may follow.
    early: bool,
    /// A write of early data waits for the socket; until it is done nothing may be read.
    blocked: bool,
    /// Whether the handshake is under way still; `$ssl_early_data` reads it.
    pending: Arc<AtomicBool>,
}

/// What a client began with.
pub(super) enum Begun {
    /// A byte of early data.
    Data(u8),
    /// None: the handshake goes on as ever.
    Nothing,
}

/// Reads as far as the first byte of early data.
///
/// # Errors
/// OpenSSL's.
pub(super) async fn begin(stream: &mut SslStream<Wire>) -> Result<Begun, ssl::Error> {
    let mut byte = [0];
    let n = Pin::new(stream).read_early_data(&mut byte).await?;
    Ok(if n == 0 {
        Begun::Nothing
    } else {
        Begun::Data(byte[0])
    })
}

impl Early {
    /// A stream on which `first` has come.
    pub fn new(stream: SslStream<Wire>, first: u8, pending: Arc<AtomicBool>) -> Early {
        pending.store(true, Ordering::Relaxed);
        Early {
            stream,
            first: Some(first),
            early: true,
            blocked: false,
            pending,
        }
    }

    /// Notes whether the handshake is over.
    fn note(&self) {
        if self.pending.load(Ordering::Relaxed) && ffi::is_finished(self.stream.ssl()) {
            self.pending.store(false, Ordering::Relaxed);
        }
    }

    /// More early data; `false` once it has ended.
    fn poll_early(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        if let Some(first) = self.first.take() {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(true));
        }
        let read = Pin::new(&mut self.stream).poll_read_early_data(cx, buf.initialize_unfilled());
        let n = ready!(read).map_err(into_io)?;
        if n == 0 {
            self.early = false;
            return Poll::Ready(Ok(false));
        }
        buf.advance(n);
        Poll::Ready(Ok(true))
    }
}

fn into_io(e: ssl::Error) -> io::Error {
    e.into_io_error().unwrap_or_else(io::Error::other)
}

impl AnyStream for Early {}

impl AsyncRead for Early {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.early {
            if this.blocked {
                return Poll::Pending;
            }
            if ready!(this.poll_early(cx, buf))? {
                return Poll::Ready(Ok(()));
            }
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.note();
        read
    }
}

impl AsyncWrite for Early {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.early {
            let written = Pin::new(&mut this.stream).poll_write_early_data(cx, buf);
            this.blocked = written.is_pending();
            return written.map_err(into_io);
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.note();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // close_notify cannot be sent before the handshake is over, and a socket that is closed with the client's
        // Finished unread would reset what was sent
        while !ffi::is_finished(this.stream.ssl()) {
            let mut rest = [0; 512];
            let mut rest = ReadBuf::new(&mut rest);
            ready!(Pin::new(&mut *this).poll_read(cx, &mut rest))?;
            if rest.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
