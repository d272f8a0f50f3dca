//! Reading the PROXY protocol's header off a connection that has just been accepted.

use super::conn::Transport;
use crate::http::proxy_protocol::{LONGEST, Parsed, parse};
use crate::log::{ErrorLog, Level};
use crate::module::{ConnInfo, ProxyProtocol, Remote};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Reads the header and nothing beyond it; false closes the connection.
pub(super) async fn read(transport: &mut Transport, info: &ConnInfo, limit: Duration, log: &ErrorLog) -> bool {
    match tokio::time::timeout(limit, header(transport, info, log)).await {
        Ok(Ok(())) => true,
        Ok(Err(e)) => {
            write(log, info, Level::Info, &format!("reading the PROXY protocol header failed: {e}"));
            false
        }
        Err(_) => {
            write(log, info, Level::Info, "client timed out (110: Connection timed out)");
            false
        }
    }
}

async fn header(transport: &mut Transport, info: &ConnInfo, log: &ErrorLog) -> io::Result<()> {
    let mut buf = vec![0; LONGEST];
    let mut seen = 0;
    loop {
        let n = peek(transport, &mut buf).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let head = match parse(buf.get(..n).unwrap_or_default()) {
            Parsed::Done(h) => h,
            Parsed::More => {
                if n == seen {
                    // nothing new: peeking again at once would spin
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                seen = n;
                continue;
            }
            Parsed::Broken => {
                let line = buf.get(..n).unwrap_or_default().split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
                write(log, info, Level::Error, &format!("broken header: \"{}\"", String::from_utf8_lossy(line)));
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        consume(transport, buf.get_mut(..head.len).unwrap_or_default()).await?;
        if let Some((source, destination)) = head.addrs {
            let header = ProxyProtocol { source: Remote::new(source), destination: Remote::new(destination), tlvs: head.tlvs };
            let _ = info.proxy.set(Arc::new(header));
        }
        return Ok(());
    }
}

async fn peek(t: &mut Transport, buf: &mut [u8]) -> io::Result<usize> {
    match t {
        Transport::Tcp(s) => s.peek(buf).await,
        Transport::Unix(s) => loop {
            s.readable().await?;
            let flags = nix::sys::socket::MsgFlags::MSG_PEEK;
            let fd = std::os::fd::AsRawFd::as_raw_fd(s);
            match s.try_io(tokio::io::Interest::READABLE, || nix::sys::socket::recv(fd, buf, flags).map_err(io::Error::from)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        },
        Transport::Other(..) => Err(io::ErrorKind::Unsupported.into()),
    }
}

async fn consume(t: &mut Transport, buf: &mut [u8]) -> io::Result<()> {
    use tokio::io::AsyncReadExt;
    match t {
        Transport::Tcp(s) => s.read_exact(buf).await.map(drop),
        Transport::Unix(s) => s.read_exact(buf).await.map(drop),
        Transport::Other(..) => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn write(log: &ErrorLog, info: &ConnInfo, level: Level, text: &str) {
    let client = String::from_utf8_lossy(info.remote.text.as_bytes()).into_owned();
    log.write(level, Some(info.serial), format_args!("{text} while reading PROXY protocol, client: {client}"));
}
