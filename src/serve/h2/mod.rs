//! HTTP/2 towards clients (RFC 9113): one task for a connection and the requests on it.

mod connection;
mod flood;
mod frames;
mod open;
mod parting;
mod response;
mod stream;
mod stream_io;
mod websocket;

use super::conn::Conn;
use super::thread::Thread;
use crate::contract::{Downstream, ListenAddr, Listener, Server, Site};
use crate::http::h2::PREFACE;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::time::sleep;

/// What a client speaks.
pub(super) enum Protocol {
    /// HTTP/1, or nothing that can be told from it.
    Http1,
    /// HTTP/2.
    Http2,
    /// It said nothing in time.
    Gone,
}

/// What a client speaks, where that is known before it says anything: by ALPN, or because only one is spoken.
///
/// # Errors
/// It is to be found out by [`sniffed`] within that time.
pub(super) fn known(
    thread: &'static Thread,
    conn: &Conn,
    addr: &ListenAddr,
) -> Result<Protocol, Duration> {
    if let Some(tls) = conn.info().tls.get() {
        return Ok(if tls.alpn.as_deref() == Some(b"h2") {
            Protocol::Http2
        } else {
            Protocol::Http1
        });
    }
    let site = thread.site();
    let Some((_, l, server)) = listener(&site, addr) else {
        return Ok(Protocol::Http1);
    };
    // without a handshake on a TLS port it is a mistake, which HTTP/1 answers
    if l.tls.is_some() || (!l.http2 && !server.conf.http2.enable) {
        return Ok(Protocol::Http1);
    }
    Err(Duration::from_millis(server.conf.client_header_timeout))
}

/// Finds out what a client speaks by its first bytes, as soon as they differ.
pub(super) async fn sniffed(conn: &Conn, header_timeout: Duration) -> Protocol {
    let mut deadline = std::pin::pin!(sleep(header_timeout));
    let _reusable = conn.reusable();
    loop {
        match conn.with_read(|buf| (0, sniff(buf))) {
            Some(true) => return Protocol::Http2,
            Some(false) => return Protocol::Http1,
            None => {}
        }
        // no buffer is held while nothing has come
        let more = poll_fn(|cx| {
            if !conn.has_input() {
                ready!(conn.poll_readable(cx))?;
                if conn.has_input() {
                    return Poll::Ready(Ok(1));
                }
            }
            conn.poll_fill(cx)
        });
        tokio::select! {
            biased;
            n = more => if !matches!(n, Ok(n) if n > 0) {
                // the end of the connection is the other side's to log
                return Protocol::Http1;
            },
            () = &mut deadline => return if conn.has_input() { Protocol::Http1 } else { Protocol::Gone },
        }
    }
}

/// Whether these first bytes are HTTP/2's; `None` while they may become either.
fn sniff(buf: &[u8]) -> Option<bool> {
    let n = buf.len().min(PREFACE.len());
    if buf.get(..n) != PREFACE.get(..n) {
        return Some(false);
    }
    (n == PREFACE.len()).then_some(true)
}

fn listener<'s>(site: &'s Site, addr: &ListenAddr) -> Option<(usize, &'s Listener, &'s Server)> {
    let index = site.listeners.iter().position(|l| l.addr == *addr)?;
    let l = site.listeners.get(index)?;
    Some((index, l, site.servers.get(l.default_server as usize)?))
}

/// Serves a connection whose client speaks HTTP/2, until it ends; `None` where its address is no longer configured.
///
/// Boxed, and no `async` function: connections of HTTP/1 do not carry the room for it.
pub(super) fn serve(
    thread: &'static Thread,
    conn: &Arc<Conn>,
    addr: &ListenAddr,
) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let connection = connection::Connection::new(thread, conn, addr)?;
    Some(Box::pin(connection.serve()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_that_differ_decide() {
        assert_eq!(sniff(b""), None);
        assert_eq!(sniff(b"P"), None);
        assert_eq!(sniff(b"PUT / HTTP/1.1\r\n"), Some(false));
        assert_eq!(sniff(b"G"), Some(false));
        assert_eq!(sniff(&PREFACE[..23]), None);
        assert_eq!(sniff(PREFACE), Some(true));
        assert_eq!(sniff(&[PREFACE, b"x"].concat()), Some(true));
    }
}
