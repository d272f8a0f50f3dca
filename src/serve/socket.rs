//! A client's socket, before anything is spoken on it and below TLS.

use super::transport::Transport;
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// TCP or a UNIX-domain socket.
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A UNIX-domain socket.
    Unix(UnixStream),
}

impl Socket {
    /// The socket of a transport that has no layer above it.
    pub fn new(transport: Transport) -> Result<Socket, Transport> {
        match transport {
            Transport::Tcp(s) => Ok(Socket::Tcp(s)),
            Transport::Unix(s) => Ok(Socket::Unix(s)),
            other => Err(other),
        }
    }

    /// Looks at the first byte without taking it; `None` at the end.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let n = self.peek(&mut byte).await?;
        Ok(byte.first().copied().filter(|_| n > 0))
    }

    /// Looks at what has come, once there is something, without taking it; 0 at the end.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf, MsgFlags::MSG_PEEK).await
    }

    /// Takes what was looked at.
    pub async fn take(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf, MsgFlags::empty()).await
    }

    async fn receive(&self, buf: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        let fd = self.as_raw_fd();
        let mut peek = || recv(fd, buf, flags).map_err(io::Error::from);
        loop {
            let looked = match self {
                Socket::Tcp(s) => {
                    s.readable().await?;
                    s.try_io(Interest::READABLE, &mut peek)
                }
                Socket::Unix(s) => {
                    s.readable().await?;
                    s.try_io(Interest::READABLE, &mut peek)
                }
            };
            match looked {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// The transport again.
    pub fn plain(self) -> Transport {
        match self {
            Socket::Tcp(s) => Transport::Tcp(s),
            Socket::Unix(s) => Transport::Unix(s),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Socket::Tcp(s) => s.as_raw_fd(),
            Socket::Unix(s) => s.as_raw_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Leaves the socket open: what follows close_notify is the business of whoever closes the connection.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
