//! The client's side of a request, whatever carries it: HTTP/1 or a stream of HTTP/2.

use super::{ResponseHead, Small};
use bytes::{Bytes, BytesMut};
use openssl::x509::{X509, X509VerifyResult};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

/// Reads the request's body and writes the response.
///
/// All calls come from the one task that serves the request; the methods take `&self` so that a
/// body can be read while a response is written.
pub trait Downstream: Send + Sync + 'static {
    /// The connection.
    fn info(&self) -> &ConnInfo;

    /// Queues a response head; `1xx` heads may precede the final one.
    fn head(&self, head: &ResponseHead, framing: Framing);

    /// Queues body bytes, sending at once what the socket takes when much is queued.
    fn write(&self, data: &[u8]);

    /// The same for bytes that need not be copied.
    fn write_bytes(&self, data: Bytes) {
        self.write(&data);
    }

    /// Queues the end of the body, with trailers where the framing carries them.
    fn finish(&self, trailers: Option<&crate::http::headers::Headers>);

    /// Ready when little enough is queued that more may be written.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when everything queued has been sent.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends some of what is queued, at most so many bytes, and returns; the default sends all of it.
    fn poll_part(&self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        let _ = bytes;
        self.poll_flush(cx)
    }

    /// Sends up to `len` bytes of a file; the default reads and writes, a plain socket uses `sendfile`.
    fn poll_file(
        &self,
        cx: &mut Context<'_>,
        file: &std::fs::File,
        offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>>;

    /// Appends up to `max` bytes of the request's body to `out`.
    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        max: usize,
    ) -> Poll<io::Result<BodyRead>>;

    /// The error number with which the client's connection ended; 0 where it was closed, or is open.
    fn errno(&self) -> i32 {
        0
    }

    /// Whether a filter changes the request's body, and may refuse it.
    fn filters_bodies(&self) -> bool {
        false
    }

    /// Bounds a body whose length is not known beforehand, bytes; 0 is no limit. One that is larger reads as
    /// [`BodyRead::Bad`] with 413, as soon as that is announced.
    fn limit_body(&self, _most: u64) {}

    /// Where the body was larger than that: how many bytes had come, and how many more were announced.
    fn too_large(&self) -> Option<(u64, u64)> {
        None
    }

    /// Bytes of the body so far with its transfer coding, where it has one.
    fn coded_body(&self) -> Option<u64> {
        None
    }

    /// Ready when the client has closed its side.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Bytes queued and not yet sent.
    fn queued(&self) -> usize;

    /// Bytes given to the client so far for this request, heads included.
    fn sent(&self) -> u64;

    /// How many of the bytes of [`Downstream::sent`] beyond the head are neither the body's nor of its transfer coding:
    /// the heads of HTTP/2's frames, and its trailers.
    fn framing_sent(&self) -> u64 {
        0
    }

    /// Trailers of the request, once its body has ended.
    fn trailers(&self) -> Option<crate::http::headers::Headers> {
        None
    }

    /// What the kernel knows of the TCP connection; `None` where there is none.
    fn tcp_info(&self) -> Option<TcpInfo> {
        None
    }

    /// The largest piece that a response is sent in, where the protocol has pieces (`http2_chunk_size`).
    fn chunk_size(&self, _bytes: usize) {}

    /// Ends the stream or connection abruptly: what has been sent must not look complete.
    fn abort(&self);

    /// Marks the connection as not to be used again.
    fn close_after(&self);
}

/// `$tcpinfo_…`.
#[derive(Clone, Copy, Debug)]
pub struct TcpInfo {
    /// The smoothed round-trip time, microseconds.
    pub rtt: u32,
    /// Its variation, microseconds.
    pub rttvar: u32,
    /// The congestion window, segments.
    pub snd_cwnd: u32,
    /// The receiver's buffer, bytes.
    pub rcv_space: u32,
}

/// How the end of a response's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body: HEAD, 204, 304, 1xx.
    None,
    /// `Content-Length` bytes.
    Length(u64),
    /// HTTP/1.1 chunks.
    Chunked,
    /// The end of the connection.
    Close,
    /// No end: an upgraded connection, bytes pass as they are in both directions.
    Tunnel,
}

/// What a read of the request's body brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyRead {
    /// So many bytes were appended.
    Data(usize),
    /// The body has ended.
    End,
    /// The framing is broken or a limit is passed: answer with this status.
    Bad(u16),
}

/// What is known of a connection, the same for all its requests.
pub struct ConnInfo {
    /// `$connection`: a number of its own.
    pub serial: u64,
    /// The peer of the TCP connection.
    pub remote: Remote,
    /// The address that the client connected to.
    pub local: Remote,
    /// Index of the site's listener; a reload may change it.
    pub listener: AtomicUsize,
    /// When it was accepted.
    pub start: Instant,
    /// `$connection_requests`.
    pub requests: AtomicU64,
    /// TLS, if the connection has it.
    pub tls: OnceLock<Arc<TlsInfo>>,
    /// The PROXY protocol header, if the listener reads one.
    pub proxy: OnceLock<Arc<ProxyProtocol>>,
}

/// An address with its text, made once a connection.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The address; `None` for a UNIX-domain socket.
    pub addr: Option<SocketAddr>,
    /// `$remote_addr`: the address without its port, or `unix:`.
    pub text: Small,
}

impl Remote {
    /// From a socket address; IPv4-mapped IPv6 addresses are kept as nginx keeps them.
    pub fn new(addr: SocketAddr) -> Remote {
        use std::io::Write;
        let mut text = Small::default();
        let _ = write!(text, "{}", addr.ip());
        Remote {
            addr: Some(addr),
            text,
        }
    }

    /// A peer on a UNIX-domain socket.
    pub fn unix() -> Remote {
        Remote {
            addr: None,
            text: Small::new(b"unix:"),
        }
    }

    /// The IP address, if there is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.addr.map(|a| a.ip())
    }

    /// The port; 0 for a UNIX-domain socket.
    pub fn port(&self) -> u16 {
        self.addr.map_or(0, |a| a.port())
    }
}

/// What a TLS handshake settled.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// `$ssl_protocol`.
    pub protocol: &'static str,
    /// `$ssl_cipher`.
    pub cipher: &'static str,
    /// `$ssl_server_name`: the name the client asked for.
    pub server_name: Option<String>,
    /// The same in lower case, if it chose the server: requests for other names may be misdirected.
    pub chosen_by: Option<Box<[u8]>>,
    /// `$ssl_session_reused`.
    pub reused: bool,
    /// `$ssl_session_id`, bytes.
    pub session_id: Vec<u8>,
    /// `$ssl_alpn_protocol`.
    pub alpn: Option<Vec<u8>>,
    /// The client's certificate.
    pub client: Option<X509>,
    /// What is wrong with the client's certificate.
    pub verify: X509VerifyResult,
    /// What is wrong with it by OCSP.
    pub ocsp: Option<&'static str>,
    /// Whether the handshake is not over yet: a request may be a replay.
    pub early: Arc<AtomicBool>,
    /// Named values of those further `$ssl_*` variables that the site uses.
    pub more: Vec<(&'static str, Vec<u8>)>,
}

impl Default for TlsInfo {
    fn default() -> Self {
        TlsInfo {
            protocol: "",
            cipher: "",
            server_name: None,
            chosen_by: None,
            reused: false,
            session_id: Vec::new(),
            alpn: None,
            client: None,
            verify: X509VerifyResult::OK,
            ocsp: None,
            early: Arc::default(),
            more: Vec::new(),
        }
    }
}

/// The addresses that a PROXY protocol header names.
#[derive(Debug, Clone)]
pub struct ProxyProtocol {
    /// `$proxy_protocol_addr` and `$proxy_protocol_port`.
    pub source: Remote,
    /// `$proxy_protocol_server_addr` and `$proxy_protocol_server_port`.
    pub destination: Remote,
    /// Type-length-values of version 2.
    pub tlvs: Vec<(u8, Vec<u8>)>,
}

/// Stands in for a connection in a request that waits to be used again.
pub(crate) struct DetachedConn(ConnInfo);

impl DetachedConn {
    /// Stands in for a connection that has no request yet.
    pub(crate) fn of(info: ConnInfo) -> DetachedConn {
        DetachedConn(info)
    }
}

impl Default for DetachedConn {
    fn default() -> Self {
        DetachedConn(ConnInfo {
            serial: 0,
            remote: Remote::unix(),
            local: Remote::unix(),
            listener: AtomicUsize::new(0),
            start: Instant::now(),
            requests: AtomicU64::new(0),
            tls: OnceLock::new(),
            proxy: OnceLock::new(),
        })
    }
}

impl Downstream for DetachedConn {
    fn info(&self) -> &ConnInfo {
        &self.0
    }
    fn head(&self, _head: &ResponseHead, _framing: Framing) {}
    fn write(&self, _data: &[u8]) {}
    fn finish(&self, _trailers: Option<&crate::http::headers::Headers>) {}
    fn poll_ready(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_flush(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_file(
        &self,
        _cx: &mut Context<'_>,
        _file: &std::fs::File,
        _offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(len))
    }
    fn poll_body(
        &self,
        _cx: &mut Context<'_>,
        _out: &mut BytesMut,
        _max: usize,
    ) -> Poll<io::Result<BodyRead>> {
        Poll::Ready(Ok(BodyRead::End))
    }
    fn poll_closed(&self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
    fn queued(&self) -> usize {
        0
    }
    fn sent(&self) -> u64 {
        0
    }
    fn abort(&self) {}
    fn close_after(&self) {}
}
