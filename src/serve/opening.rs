//! What may come before the first request: a PROXY protocol header, a TLS handshake.

use super::proxy_protocol::{Broken, LONGEST, parse};

use super::reusable::Reusable;
use super::socket::Socket;
use super::tls;
use super::transport::Transport;
use crate::contract::{ConnInfo, Listener, Site, SiteRef};
use crate::log::{Errno, ErrorLog, Level};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Opens a new connection as its listener says; `None` where that failed, which is logged.
///
/// While nothing has come the connection is `silent`, and gives way to others.
pub(super) async fn open(
    site: &SiteRef,
    index: usize,
    transport: Transport,
    info: &ConnInfo,
    silent: &(dyn Fn() -> Reusable + Sync),
) -> Option<Transport> {
    let listener = site.listeners.get(index)?;
    let server = site.servers.get(listener.default_server as usize)?;
    let mut log = Log {
        site,
        index,
        info,
        action: "reading PROXY protocol",
    };
    let socket = match Socket::new(transport) {
        Ok(s) => s,
        Err(other) => return Some(other),
    };
    let opening = async {
        let waits = silent();
        if listener.proxy_protocol && !proxy_header(&socket, info, &log, &waits).await {
            return None;
        }
        if listener.tls.is_none() {
            return Some(socket.plain());
        }
        log.action = "SSL handshaking";
        let first = socket.first_byte().await;
        if waits.is_retired() {
            return None;
        }
        drop(waits);
        tls::handshake(site, index, socket, first, info, &log).await
    };
    match timeout(
        Duration::from_millis(server.conf.client_header_timeout),
        opening,
    )
    .await
    {
        Ok(opened) => opened,
        Err(_) => {
            log.write(
                Level::Info,
                format_args!("client timed out (110: Connection timed out)"),
            );
            None
        }
    }
}

/// Reads a PROXY protocol header; false where there is none.
async fn proxy_header(socket: &Socket, info: &ConnInfo, log: &Log<'_>, waits: &Reusable) -> bool {
    let mut buf = vec![0; LONGEST];
    let come = match socket.peek(&mut buf).await {
        Ok(0) if waits.is_retired() => return false,
        Ok(0) => {
            log.write(Level::Info, format_args!("client closed connection"));
            return false;
        }
        Ok(n) => n,
        Err(e) => {
            log.write(Level::Info, format_args!("recv() failed{}", Errno::of(&e)));
            return false;
        }
    };
    match parse(buf.get(..come).unwrap_or_default()) {
        Ok((header, used)) => {
            if let Some(header) = header {
                let _ = info.proxy.set(Arc::new(header));
            }
            match buf.get_mut(..used) {
                Some(taken) => socket.take(taken).await.is_ok_and(|n| n == used),
                None => false,
            }
        }
        Err(e) => {
            // nginx tells nothing of addresses that are cut off
            if e != Broken::Addresses {
                log.write(Level::Error, format_args!("{e}"));
            }
            // what has not been read would make the close a reset
            let _ = socket.take(&mut buf).await;
            false
        }
    }
}

/// Writes to the error log of the listener's default server.
pub(super) struct Log<'a> {
    site: &'a Site,
    index: usize,
    info: &'a ConnInfo,
    action: &'static str,
}

impl<'a> Log<'a> {
    /// A log for the connection `info` of the listener `index`.
    pub fn new(site: &'a Site, index: usize, info: &'a ConnInfo, action: &'static str) -> Log<'a> {
        Log {
            site,
            index,
            info,
            action,
        }
    }

    /// Writes a line without any of that.
    pub fn plain(&self, level: Level, text: std::fmt::Arguments<'_>) {
        if let Some((log, _)) = self.log().filter(|(log, _)| log.enabled(level)) {
            log.write(level, Some(self.info.serial), text);
        }
    }

    fn log(&self) -> Option<(&ErrorLog, &Listener)> {
        let listener = self.site.listeners.get(self.index)?;
        let server = self.site.servers.get(listener.default_server as usize);
        let location = server.and_then(|s| self.site.locations.get(s.default_location as usize));
        let log = location.map_or(&self.site.error_log, |l| &l.core.error_log);
        Some((log, listener))
    }

    /// Writes a line, with what was being done and the addresses added as nginx adds them.
    pub fn write(&self, level: Level, text: std::fmt::Arguments<'_>) {
        if let Some((log, listener)) = self.log().filter(|(log, _)| log.enabled(level)) {
            let client = crate::http::text::shown(self.info.remote.text.as_bytes());
            log.write(
                level,
                Some(self.info.serial),
                format_args!(
                    "{text} while {}, client: {client}, server: {}",
                    self.action, listener.addr
                ),
            );
        }
    }
}
