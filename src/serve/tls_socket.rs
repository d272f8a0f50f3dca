//! What TLS reads from and writes to: a socket, with few system calls for the many small pieces of a handshake.
//!
//! OpenSSL reads each record of a handshake in two pieces, and sends each session ticket by itself. Here a handshake
//! takes whatever has come, and what it sends leaves when it waits for the client. What it sends at its end leaves with
//! the answer, where the request has come already; so does the end of a connection with the last answer.

use super::socket::Socket;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket below TLS.
pub(super) struct Wire {
    socket: Socket,
    /// While something is held back or has been taken early.
    held: Option<Box<Held>>,
}

#[derive(Default)]
struct Held {
    /// Whether what is written may leave at once.
    done: bool,
    /// Taken from the socket, and given to TLS as far as `given`.
    come: Vec<u8>,
    given: usize,
    /// Written by TLS, and sent as far as `sent`.
    out: Vec<u8>,
    sent: usize,
}

/// The most that is taken from a socket beyond what TLS asks for.
const AHEAD: usize = 4096;
/// The most that is held back.
const LARGEST: usize = 16 * 1024;

impl Wire {
    /// Below a connection that begins with its handshake.
    pub fn new(socket: Socket) -> Wire {
        Wire {
            socket,
            held: Some(Box::default()),
        }
    }

    /// Holds back what is written from now on; or nothing further, so that what was held back leaves with what follows.
    pub fn hold(&mut self, on: bool) {
        if on {
            self.held.get_or_insert_default().done = false;
        } else if let Some(held) = &mut self.held {
            held.done = true;
            self.forget();
        }
    }

    /// Sends what the socket takes now of what was held back; the rest leaves with what follows.
    pub fn push(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_out(cx);
    }

    /// Sends what was held back.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(held) = &mut self.held else {
            return Poll::Ready(Ok(()));
        };
        while let Some(rest) = held.out.get(held.sent..).filter(|r| !r.is_empty()) {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => held.sent += n,
            }
        }
        held.out.clear();
        held.sent = 0;
        self.forget();
        Poll::Ready(Ok(()))
    }

    /// Lets go of memory that nothing needs any more.
    fn forget(&mut self) {
        let empty = |h: &Held| h.done && h.given == h.come.len() && h.out.is_empty();
        if self.held.as_deref().is_some_and(empty) {
            self.held = None;
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(held) = &mut this.held else {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        };
        if held.give(buf) {
            this.forget();
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_out(cx))?;
        let Some(held) = this.held.as_mut().filter(|_| buf.remaining() < AHEAD) else {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        };
        let mut spare = [MaybeUninit::uninit(); AHEAD];
        let mut spare = ReadBuf::uninit(&mut spare);
        ready!(Pin::new(&mut this.socket).poll_read(cx, &mut spare))?;
        let (now, later) = spare
            .filled()
            .split_at(spare.filled().len().min(buf.remaining()));
        buf.put_slice(now);
        held.come.clear();
        held.given = 0;
        held.come.extend_from_slice(later);
        Poll::Ready(Ok(()))
    }
}

impl Held {
    /// Gives what has been taken already; false where there is nothing.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let rest = self.come.get(self.given..).unwrap_or_default();
        let n = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..n).unwrap_or_default());
        self.given += n;
        n > 0
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this
            .held
            .as_ref()
            .is_some_and(|h| h.out.len() + buf.len() > LARGEST)
        {
            ready!(this.poll_out(cx))?;
        }
        let Some(held) = this.held.as_mut().filter(|h| !h.done || !h.out.is_empty()) else {
            return Pin::new(&mut this.socket).poll_write(cx, buf);
        };
        held.out.extend_from_slice(buf);
        if held.done
            && let Poll::Ready(Err(e)) = this.poll_out(cx)
        {
            return Poll::Ready(Err(e));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.held {
            Some(held) if held.done => self.poll_out(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Leaves the socket open: what follows close_notify is the business of whoever closes the connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test);
    }

    fn pair() -> (Wire, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Wire::new(Socket::Unix(a)), b)
    }

    /// What the peer can read now.
    fn come(peer: &UnixStream) -> Vec<u8> {
        let mut buf = vec![0; 64 * 1024];
        match peer.try_read(&mut buf) {
            Ok(n) => buf.truncate(n),
            Err(_) => buf.clear(),
        }
        buf
    }

    #[test]
    fn what_a_handshake_sends_leaves_when_it_waits() {
        run(async {
            let (mut wire, mut peer) = pair();
            peer.writable().await.unwrap();
            wire.write_all(b"one").await.unwrap();
            wire.flush().await.unwrap();
            wire.write_all(b"two").await.unwrap();
            wire.flush().await.unwrap();
            assert_eq!(come(&peer), b"");
            let mut buf = [0; 2];
            let waits = poll_fn(|cx| {
                let mut buf = ReadBuf::new(&mut buf);
                Poll::Ready(Pin::new(&mut wire).poll_read(cx, &mut buf).is_pending())
            });
            assert!(waits.await);
            peer.readable().await.unwrap();
            assert_eq!(come(&peer), b"onetwo");
            // pieces of one read, then the end
            peer.write_all(b"hello").await.unwrap();
            drop(peer);
            for piece in ["he", "ll"] {
                wire.read_exact(&mut buf).await.unwrap();
                assert_eq!(buf, piece.as_bytes());
            }
            assert_eq!(wire.read(&mut buf).await.unwrap(), 1);
            assert_eq!(wire.read(&mut buf).await.unwrap(), 0);
        });
    }

    #[test]
    fn the_end_of_a_handshake_leaves_with_what_follows() {
        run(async {
            let (mut wire, mut peer) = pair();
            peer.write_all(b"finished, request").await.unwrap();
            let mut buf = [0; 9];
            wire.read_exact(&mut buf).await.unwrap();
            wire.write_all(b"tickets ").await.unwrap();
            wire.hold(false);
            let mut request = [0; 64];
            assert_eq!(wire.read(&mut request).await.unwrap(), 8);
            assert_eq!(come(&peer), b"", "the request had come already");
            wire.write_all(b"answer").await.unwrap();
            peer.readable().await.unwrap();
            assert_eq!(come(&peer), b"tickets answer");
            assert!(wire.held.is_none());
            wire.hold(true);
            wire.write_all(b"last").await.unwrap();
            wire.write_all(b" bye").await.unwrap();
            wire.hold(false);
            wire.flush().await.unwrap();
            peer.readable().await.unwrap();
            assert_eq!(come(&peer), b"last bye");
            assert!(wire.held.is_none());
        });
    }

    #[test]
    fn a_peer_that_reads_slowly_gets_everything_in_order() {
        run(async {
            let (mut wire, mut peer) = pair();
            let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
            let expected = sent.clone();
            let writer = async move {
                for (i, piece) in sent.chunks(9_000).enumerate() {
                    wire.hold(i % 3 == 0);
                    wire.write_all(piece).await.unwrap();
                }
                wire.hold(false);
                wire.flush().await.unwrap();
                assert!(wire.held.is_none());
            };
            let reader = async {
                let mut got = Vec::new();
                peer.read_to_end(&mut got).await.unwrap();
                assert!(got == expected);
            };
            futures_util::future::join(writer, reader).await;
        });
    }
}
