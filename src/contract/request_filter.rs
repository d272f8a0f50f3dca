//! Filters of the bodies of requests.

use super::{BodyRead, ConnInfo, Downstream, Framing, Request, ResponseHead, TcpInfo};
use crate::files::Spool;
use crate::http::headers::{Headers, Known};
use crate::log::Level;
use crate::runtime::panics::{self, HookName};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Changes the body of a request on its way to an origin or to a handler of content.
///
/// A handler of a phase before the content gives one to a request with [`Request::filter_body`]. It is called as the body
/// arrives, whether it is buffered (`proxy_request_buffering on`) or passed on at once, and must not block.
///
/// A panic ends the request with 500; the rest of the body is not passed on then.
///
/// ```
/// use couloir::prelude::*;
///
/// /// Refuses bodies with a NUL.
/// struct NoNul;
///
/// impl RequestBodyFilter for NoNul {
///     fn chunk(&mut self, data: &[u8], _: bool, out: &mut Vec<u8>) -> Result<(), u16> {
///         if data.contains(&0) {
///             return Err(400);
///         }
///         out.extend_from_slice(data);
///         Ok(())
///     }
///
///     fn keeps_length(&self) -> bool {
///         true
///     }
/// }
/// ```
pub trait RequestBodyFilter: Send + Sync {
    /// Takes `data` and appends what is to be passed on to `out`; `last` is true at the end of the body.
    ///
    /// # Errors
    /// The status with which the request ends.
    fn chunk(&mut self, data: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), u16>;

    /// Whether what is passed on is as long as what came. Where it is not, the request loses its `Content-Length`.
    fn keeps_length(&self) -> bool {
        false
    }

    /// Its name where it panics.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

/// Calls a filter, so that a panic is reported with its name.
fn chunk(
    filter: &mut dyn RequestBodyFilter,
    data: &[u8],
    last: bool,
    out: &mut Vec<u8>,
) -> Result<(), u16> {
    let name = filter.name();
    panics::named(
        || HookName {
            text: format!("request body filter \"{name}\""),
            id: 0,
        },
        || filter.chunk(data, last, out),
    )
}

/// How much is read at once of what has been buffered already.
const PIECE: usize = 16 * 1024;

impl Request {
    /// Passes the request's body through `filter`: what has been read of it now, and the rest as it is read.
    ///
    /// Of several filters, the first that was given sees the client's own bytes. Limits such as `client_max_body_size`
    /// count these. A request without a body is left as it is.
    ///
    /// # Errors
    /// The status with which the request ends: the filter's own, or 500 where a temporary file cannot be used.
    pub fn filter_body(&mut self, mut filter: Box<dyn RequestBodyFilter>) -> Result<(), u16> {
        if !self.has_body() || self.body.discarded {
            return Ok(());
        }
        if !filter.keeps_length() {
            self.head.content_length = None;
            self.head.chunked = true;
            self.head.headers.remove_id(Known::ContentLength);
        }
        if !self.body.spool.is_empty() || self.body.read {
            self.filter_spool(&mut *filter)?;
        }
        if !self.body.read {
            self.down = Arc::new(Filtered {
                to: self.down.clone(),
                state: Mutex::new(State {
                    filter,
                    raw: BytesMut::new(),
                    made: Vec::new(),
                    taken: 0,
                    ended: false,
                    panicked: false,
                }),
            });
        }
        Ok(())
    }

    /// Passes what has been buffered of the body through a filter.
    fn filter_spool(&mut self, filter: &mut dyn RequestBodyFilter) -> Result<(), u16> {
        let limit = self.core().client_body_buffer_size;
        let temp = self.core().client_body_temp_path.clone();
        let (mut piece, mut made, mut at) = (vec![0; PIECE], Vec::new(), 0);
        let mut spool = Spool::default();
        loop {
            let n = match self.body.spool.read_at(&mut piece, at) {
                Ok(n) => n,
                Err(e) => return Err(self.file_failed(&e)),
            };
            at += n as u64;
            made.clear();
            if n > 0 || self.body.read {
                let data = piece.get(..n).unwrap_or_default();
                chunk(filter, data, n == 0, &mut made)?;
            }
            if let Err(e) = spool.append(&made, limit, &temp) {
                return Err(self.file_failed(&e));
            }
            if n == 0 {
                break;
            }
        }
        if self.body.read && self.head.content_length.is_some() {
            self.head.content_length = Some(spool.len());
        }
        self.body.spool = spool;
        Ok(())
    }

    fn file_failed(&self, e: &io::Error) -> u16 {
        self.error(Level::Crit, format_args!("{e}"));
        500
    }
}

/// A client whose body is read through a filter.
struct Filtered {
    to: Arc<dyn Downstream>,
    state: Mutex<State>,
}

struct State {
    filter: Box<dyn RequestBodyFilter>,
    /// What has come from the client and not been filtered.
    raw: BytesMut,
    /// What the filter has made.
    made: Vec<u8>,
    /// How much of `made` has been handed on.
    taken: usize,
    /// Whether the filter has seen the end.
    ended: bool,
    /// Whether it has panicked; set while it runs.
    panicked: bool,
}

impl Downstream for Filtered {
    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        max: usize,
    ) -> Poll<io::Result<BodyRead>> {
        let state = &mut *self.state.lock();
        if state.panicked {
            // what it would have made is not known: nobody gets the bytes as they are
            return Poll::Ready(Ok(BodyRead::Bad(500)));
        }
        loop {
            let rest = state.made.get(state.taken..).unwrap_or_default();
            if !rest.is_empty() {
                let n = rest.len().min(max);
                out.extend_from_slice(rest.get(..n).unwrap_or_default());
                state.taken += n;
                return Poll::Ready(Ok(BodyRead::Data(n)));
            }
            state.made.clear();
            state.taken = 0;
            if state.ended {
                return Poll::Ready(Ok(BodyRead::End));
            }
            let read = self.to.poll_body(cx, &mut state.raw, max);
            if read.is_pending() {
                // nothing is held while the client is silent
                (state.raw, state.made) = (BytesMut::new(), Vec::new());
            }
            let read = ready!(read)?;
            if let BodyRead::Bad(_) = read {
                return Poll::Ready(Ok(read));
            }
            state.ended = read == BodyRead::End;
            state.panicked = true;
            let filter = &mut *state.filter;
            let filtered = chunk(filter, &state.raw, state.ended, &mut state.made);
            state.panicked = false;
            state.raw.clear();
            if let Err(status) = filtered {
                return Poll::Ready(Ok(BodyRead::Bad(status)));
            }
        }
    }

    fn info(&self) -> &ConnInfo {
        self.to.info()
    }
    fn head(&self, head: &ResponseHead, framing: Framing) {
        self.to.head(head, framing);
    }
    fn write(&self, data: &[u8]) {
        self.to.write(data);
    }
    fn write_bytes(&self, data: Bytes) {
        self.to.write_bytes(data);
    }
    fn finish(&self, trailers: Option<&Headers>) {
        self.to.finish(trailers);
    }
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to.poll_ready(cx)
    }
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to.poll_flush(cx)
    }
    fn poll_file(
        &self,
        cx: &mut Context<'_>,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>> {
        self.to.poll_file(cx, file, offset, len)
    }
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.to.poll_closed(cx)
    }
    fn queued(&self) -> usize {
        self.to.queued()
    }
    fn sent(&self) -> u64 {
        self.to.sent()
    }
    fn framing_sent(&self) -> u64 {
        self.to.framing_sent()
    }
    fn limit_body(&self, most: u64) {
        self.to.limit_body(most);
    }
    fn too_large(&self) -> Option<(u64, u64)> {
        self.to.too_large()
    }
    fn coded_body(&self) -> Option<u64> {
        self.to.coded_body()
    }
    fn trailers(&self) -> Option<Headers> {
        self.to.trailers()
    }
    fn errno(&self) -> i32 {
        self.to.errno()
    }
    fn filters_bodies(&self) -> bool {
        true
    }
    fn tcp_info(&self) -> Option<TcpInfo> {
        self.to.tcp_info()
    }
    fn chunk_size(&self, bytes: usize) {
        self.to.chunk_size(bytes);
    }
    fn abort(&self) {
        self.to.abort();
    }
    fn close_after(&self) {
        self.to.close_after();
    }
}
