//! Requests that a request makes of its own site: for `auth_request`, mirrors and included parts.

use super::phases;
use crate::http::method::Method;
use crate::http::headers::Headers;
use crate::log::Level;
use crate::module::{BodyRead, ConnInfo, Downstream, Framing, Request, ResponseHead};
use bytes::BytesMut;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

/// How deep subrequests may be inside each other.
pub const DEPTH: u8 = 50;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The URI, decoded.
    pub uri: &'a [u8],
    /// The arguments.
    pub args: &'a [u8],
    /// GET, unless the parent's own method is to be repeated.
    pub method: Method,
    /// Whether the body of the response is wanted, or just its head.
    pub body: bool,
}

/// A subrequest that has been answered.
pub struct Sub {
    /// The request; `request.out` is the head of the response.
    pub request: Box<Request>,
    /// The body of the response, where it was wanted.
    pub body: Vec<u8>,
    /// Whether the response ended before its end.
    pub aborted: bool,
}

impl Sub {
    /// The status of the response; 0 where there was none.
    pub fn status(&self) -> u16 {
        self.request.out.status
    }

    /// Calls `f` with the subrequest while it has the variables of its parent, which both share.
    pub fn with<T>(&mut self, parent: &mut Request, f: impl FnOnce(&mut Request) -> T) -> T {
        parent.lend(&mut self.request);
        let value = f(&mut self.request);
        parent.lend(&mut self.request);
        value
    }
}

/// Makes a request of the parent's server and waits for its response.
///
/// It passes the server's rewrite phase and those of its location, but not the access phase, and sees the parent's
/// variables; its body is empty.
///
/// # Errors
/// Too many subrequests inside each other; the status is 500.
pub async fn run(r: &mut Request, ask: Ask<'_>) -> Result<Sub, u16> {
    if r.depth >= DEPTH {
        r.error(Level::Error, format_args!("subrequests cycle while processing \"{}\"", String::from_utf8_lossy(ask.uri)));
        return Err(500);
    }
    let memory = Arc::new(Memory { parent: r.down.clone(), state: Mutex::new(State { keep: ask.body, ..State::default() }) });
    let mut child = Box::new(Request::new(r.site.clone(), memory.clone()));
    child.server = r.server;
    child.location = r.server().default_location;
    child.head = r.head.clone();
    // the body belongs to the parent
    child.head.header_in_bytes = 0;
    child.head.content_length = None;
    child.head.chunked = false;
    child.head.expect_continue = false;
    child.method = ask.method;
    child.uri.extend_from_slice(ask.uri);
    child.args.extend_from_slice(ask.args);
    child.valid_unparsed_uri = false;
    child.internal = true;
    child.uri_changes = 11;
    child.remote = r.remote.clone();
    (child.start_msec, child.body.continued) = (r.start_msec + r.elapsed(), true);
    child.out.http11 = r.out.http11;
    child.out.header_only = !ask.body;
    // what is included must be in the charset of what includes it
    child.out.override_charset = r.out.charset_name().to_vec();
    child.subrequest = true;
    child.depth = r.depth + 1;
    r.lend(&mut child);
    phases::subrequest(&mut child).await;
    r.lend(&mut child);
    let state = std::mem::take(&mut *memory.state.lock());
    let aborted = state.aborted || child.aborted;
    Ok(Sub { request: child, body: state.body, aborted })
}

/// Receives the response of a subrequest.
struct Memory {
    parent: Arc<dyn Downstream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keep: bool,
    body: Vec<u8>,
    sent: u64,
    aborted: bool,
}

impl Downstream for Memory {
    fn info(&self) -> &ConnInfo {
        self.parent.info()
    }

    fn head(&self, _head: &ResponseHead, _framing: Framing) {}

    fn write(&self, data: &[u8]) {
        let mut state = self.state.lock();
        state.sent += data.len() as u64;
        if state.keep {
            state.body.extend_from_slice(data);
        }
    }

    fn finish(&self, _trailers: Option<&Headers>) {}

    fn poll_ready(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_file(&self, _cx: &mut Context<'_>, file: &std::fs::File, offset: u64, len: u64) -> Poll<io::Result<u64>> {
        use std::os::unix::fs::FileExt;
        let mut buf = [0; 16 * 1024];
        let n = match file.read_at(&mut buf, offset) {
            Ok(0) if len > 0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => (n as u64).min(len),
            Err(e) => return Poll::Ready(Err(e)),
        };
        self.write(buf.get(..n as usize).unwrap_or_default());
        Poll::Ready(Ok(n))
    }

    fn poll_body(&self, _cx: &mut Context<'_>, _out: &mut BytesMut, _max: usize) -> Poll<io::Result<BodyRead>> {
        Poll::Ready(Ok(BodyRead::End))
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.parent.poll_closed(cx)
    }

    fn queued(&self) -> usize {
        0
    }

    fn sent(&self) -> u64 {
        self.state.lock().sent
    }

    fn abort(&self) {
        self.state.lock().aborted = true;
    }

    fn close_after(&self) {}
}
