//! The handle of a connection that Pingora's session holds.

use super::conn::Conn;
use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID,
};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives Pingora's session the connection. Heads and bodies go through [`Conn`] itself, so nothing is read here.
pub struct Handle {
    /// The connection.
    pub conn: Arc<Conn>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("fd", &self.conn.fd())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Handle {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // the end, as far as Pingora is concerned: the front reads every head itself
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Handle {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // responses are written through `Downstream`; what Pingora itself would answer must not get between them
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl Shutdown for Handle {
    async fn shutdown(&mut self) {}
}

impl UniqueID for Handle {
    fn id(&self) -> i32 {
        self.conn.fd()
    }
}

impl Ssl for Handle {}

#[async_trait]
impl Peek for Handle {}

impl GetTimingDigest for Handle {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Handle {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }

    fn set_proxy_digest(&mut self, _digest: ProxyDigest) {}
}

impl GetSocketDigest for Handle {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        // what Pingora would log is ours to log, and connections that wait carry nothing for it
        None
    }

    fn set_socket_digest(&mut self, _digest: SocketDigest) {}
}
