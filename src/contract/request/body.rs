//! Reading the body of a request.

use super::Request;
use crate::contract::{BodyInFile, BodyRead, CoreConf, Framing, ResponseHead};
use crate::http::head::Version;
use crate::log::{Errno, Level};
use bytes::BytesMut;
use std::future::poll_fn;
use std::time::Duration;

/// How much of a body is read at once.
const PIECE: usize = 16 * 1024;

const TOO_LARGE: &str = "client intended to send too large chunked body";

impl Request {
    /// Whether the client sends a body.
    pub fn has_body(&self) -> bool {
        self.head.chunked || self.head.content_length.is_some_and(|n| n > 0)
    }

    /// Reads the next piece of the body, waiting at most `client_body_timeout`.
    ///
    /// Sends 100 Continue first where the client waits for it.
    pub async fn read_chunk(
        &mut self,
        out: &mut BytesMut,
        max: usize,
    ) -> std::io::Result<BodyRead> {
        self.send_continue();
        let timeout = Duration::from_millis(self.core().client_body_timeout);
        let limit = self.core().client_max_body_size;
        let down = self.down.clone();
        if self.head.chunked {
            down.limit_body(limit);
        }
        let read = poll_fn(|cx| down.poll_body(cx, out, max));
        match tokio::time::timeout(timeout, read).await {
            Ok(Ok(BodyRead::Data(n))) => {
                self.body.received += n as u64;
                if limit > 0 && self.body.received > limit {
                    let all = self.body.received;
                    return Ok(self.body_fails(413, format_args!("{TOO_LARGE}: {all} bytes")));
                }
                Ok(BodyRead::Data(n))
            }
            Ok(Ok(BodyRead::Bad(status))) => {
                if let Some((before, chunk)) = down.too_large() {
                    return Ok(self
                        .body_fails(status, format_args!("{TOO_LARGE}: {before}+{chunk} bytes")));
                }
                self.body.failed = true;
                let chunked = self.head.chunked && self.head.http_major_minor.0 < 2;
                if chunked && !self.down.filters_bodies() {
                    self.error(
                        Level::Error,
                        format_args!("client sent invalid chunked body"),
                    );
                }
                Ok(BodyRead::Bad(status))
            }
            Ok(other) => other,
            Err(_) => {
                self.body.failed = true;
                self.timed_out = true;
                // nginx tells of this for HTTP/2 alone
                if self.head.http_major_minor.0 >= 2 {
                    self.error(
                        Level::Info,
                        format_args!("client timed out (110: Connection timed out)"),
                    );
                }
                Ok(BodyRead::Bad(408))
            }
        }
    }

    fn body_fails(&mut self, status: u16, why: std::fmt::Arguments<'_>) -> BodyRead {
        self.body.failed = true;
        self.error(Level::Error, why);
        BodyRead::Bad(status)
    }

    /// Reads the whole body into [`BodyState::spool`].
    ///
    /// # Errors
    /// The status with which the request ends: 400, 408, 413, 499 or 500.
    pub async fn read_body(&mut self) -> Result<(), u16> {
        if self.body.read || self.body.discarded {
            return Ok(());
        }
        // as in nginx, the expectation is met even where the body turns out to be empty
        self.send_continue();
        if !self.has_body() {
            self.body.read = true;
            return Ok(());
        }
        let site = self.site.clone();
        let core = site.locations[self.location as usize].core.clone();
        let limit = core.client_body_buffer_size;
        let in_file = core.client_body_in_file_only;
        if in_file != BodyInFile::Off {
            self.spill_body(&core, in_file == BodyInFile::On)?;
        }
        // what fits the memory is read into it, which grows with what comes, and the rest passes through `chunk`
        let mut chunk = BytesMut::new();
        loop {
            chunk.clear();
            let read = match self.body.spool.memory_mut(limit).map(std::mem::take) {
                Some(mut memory) => {
                    let room = (limit - memory.len()).min(PIECE);
                    let read = self.read_chunk(&mut memory, room).await;
                    if let Some(place) = self.body.spool.memory_mut(limit) {
                        *place = memory;
                    }
                    read
                }
                None => self.read_chunk(&mut chunk, PIECE).await,
            };
            match read {
                Ok(BodyRead::Data(_)) if chunk.is_empty() => {}
                Ok(BodyRead::Data(_)) => {
                    let had_file = self.body.spool.file().is_some();
                    if let Err(e) =
                        self.body
                            .spool
                            .append(&chunk, limit, &core.client_body_temp_path)
                    {
                        self.error(Level::Crit, format_args!("{e}"));
                        return Err(500);
                    }
                    if !had_file && let Some(path) = self.body.spool.path() {
                        self.error(
                            Level::Warn,
                            format_args!(
                                "a client request body is buffered to a temporary file {}",
                                path.display()
                            ),
                        );
                    }
                }
                Ok(BodyRead::End) => break,
                Ok(BodyRead::Bad(status)) => {
                    self.keepalive = false;
                    return Err(status);
                }
                Err(e) => {
                    match e.raw_os_error() {
                        Some(_) => {
                            self.error(Level::Info, format_args!("recv() failed{}", Errno::of(&e)))
                        }
                        None => self.error(
                            Level::Info,
                            format_args!("client prematurely closed connection"),
                        ),
                    }
                    self.client_closed = true;
                    return Err(400);
                }
            }
        }
        self.body.read = true;
        Ok(())
    }

    fn spill_body(&mut self, core: &CoreConf, keep: bool) -> Result<(), u16> {
        self.body
            .spool
            .spill(&core.client_body_temp_path, keep)
            .map_err(|e| {
                self.error(Level::Crit, format_args!("{e}"));
                500
            })
    }

    /// Sends 100 Continue once, where the client asked for it and nothing has been answered.
    pub fn send_continue(&mut self) {
        if self.body.continued {
            return;
        }
        self.body.continued = true;
        if self.head.expect_continue && self.head.version == Version::V11 && !self.header_sent {
            let head = ResponseHead {
                status: 100,
                status_line: b"100 Continue".to_vec(),
                ..ResponseHead::default()
            };
            self.down.head(&head, Framing::None);
        }
    }
}
