//! Requests that a request makes of its own site: for `auth_request`, mirrors and included parts.

use super::{
    BodyRead, ConnInfo, Downstream, Framing, Include, MainRequest, Pass, Request, ResponseHead,
};
use crate::http::headers::Headers;
use crate::http::method::Method;
use crate::log::Level;
use bytes::BytesMut;
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use tokio::task::JoinHandle;

/// How deep subrequests may be inside each other.
pub const DEPTH: u8 = 51;

/// How many subrequests may be begun inside of one that the client's request begins.
const NESTED: u32 = 10_000;

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
}

/// Makes a request of the parent's server and waits for its response.
///
/// It passes the server's rewrite phase and those of its location, but not the access phase, and sees the parent's
/// variables; its body is empty.
///
/// # Errors
/// Too many subrequests inside each other; the status is 500.
pub async fn run(r: &mut Request, ask: Ask<'_>) -> Result<Sub, u16> {
    let memory = Arc::new(Memory::new(
        r,
        if ask.body { Keeps::All } else { Keeps::Nothing },
    ));
    let mut child = child(r, &ask, memory.clone())?;
    child.out.header_only = !ask.body;
    let dispatch = r.site.dispatch;
    dispatch.subrequest(&mut child).await;
    r.take_shared(&child);
    let state = std::mem::take(&mut *memory.state.lock());
    let aborted = state.aborted || child.aborted;
    Ok(Sub {
        request: child,
        body: state.body,
        aborted,
    })
}

/// Makes a request of the parent's server that goes its own way: the parent neither waits for it nor learns its answer.
///
/// With `body` it repeats the parent's body, which must have been read.
///
/// # Errors
/// As [`run`].
pub fn detach(r: &mut Request, ask: Ask<'_>, body: bool) -> Result<(), u16> {
    let memory = Arc::new(Memory {
        background: true,
        ..Memory::new(r, Keeps::Nothing)
    });
    let mut child = child(r, &ask, memory)?;
    child.out.header_only = true;
    if body {
        repeat_body(r, &mut child);
    }
    let dispatch = r.site.dispatch;
    crate::runtime::detach(async move { dispatch.subrequest(&mut child).await });
    Ok(())
}

/// Asks the origin anew for an object of the cache that is being served although its time is over.
///
/// The request is the parent's, repeated in its location; nobody waits for it. `update` ends with it.
pub(crate) fn refresh(r: &mut Request, pass: &Arc<Pass>, update: crate::cache::Update) {
    let memory = Arc::new(Memory {
        background: true,
        ..Memory::new(r, Keeps::Nothing)
    });
    let (uri, args) = (r.uri.clone(), r.args.clone());
    let ask = Ask {
        uri: &uri,
        args: &args,
        method: r.method,
        body: false,
    };
    let Ok(mut child) = child(r, &ask, memory) else {
        return;
    };
    child.out.header_only = true;
    repeats(r, &mut child);
    child.upstream.background = Some(update);
    repeat_body(r, &mut child);
    let pass = pass.clone();
    let dispatch = r.site.dispatch;
    crate::runtime::detach(async move { dispatch.refresh(&mut child, &pass).await });
}

/// Begins a subrequest whose response comes in pieces.
///
/// It runs as a task of its own, so that responses may be included in each other without growing the stack.
pub(crate) fn start(r: &Request, include: &mut Include) -> Result<Running, u16> {
    let memory = Arc::new(Memory::new(r, Keeps::Piece));
    let ask = Ask {
        uri: &include.uri,
        args: &include.args,
        method: Method::Get,
        body: true,
    };
    let mut child = child(r, &ask, memory.clone())?;
    child.stub = include
        .stub
        .take()
        .map(|text| (r.out.content_type.clone(), text));
    repeat_body(r, &mut child);
    let repeat = include.repeat.take();
    let again = repeat.is_some();
    if let Some(prepare) = repeat {
        repeats(r, &mut child);
        prepare(r, &mut child);
    }
    let dispatch = r.site.dispatch;
    let task = tokio::spawn(async move {
        match again {
            true => dispatch.repeat(&mut child).await,
            false => dispatch.subrequest(&mut child).await,
        }
        child
    });
    Ok(Running { memory, task })
}

/// How far a subrequest is.
pub(crate) enum Progress {
    /// More is to come.
    Going,
    /// It has ended; there is no request where its task broke down.
    Ended(Option<Box<Request>>),
}

/// A subrequest whose response is being read.
pub(crate) struct Running {
    memory: Arc<Memory>,
    task: JoinHandle<Box<Request>>,
}

impl Running {
    /// The next piece of the response, and whether it was the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(Vec<u8>, Progress)> {
        let ended = Pin::new(&mut self.task).poll(cx);
        let mut state = self.memory.state.lock();
        if ended.is_pending() && state.body.is_empty() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let data = std::mem::take(&mut state.body);
        if let Some(w) = state.writer.take() {
            w.wake();
        }
        Poll::Ready(match ended {
            Poll::Ready(child) => (data, Progress::Ended(child.ok())),
            Poll::Pending => (data, Progress::Going),
        })
    }

    /// What is still to come is not wanted any more.
    pub fn give_up(&self) {
        let mut state = self.memory.state.lock();
        state.refused = true;
        if let Some(w) = state.writer.take() {
            w.wake();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes a subrequest the same as its parent, in its location.
fn repeats(r: &Request, child: &mut Request) {
    child.location = r.location;
    child.content_from = r.content_from;
    child.method = r.method;
    child.uri.clone_from(&r.uri);
    child.args.clone_from(&r.args);
    child.valid_unparsed_uri = r.valid_unparsed_uri;
    child.valid_location = r.valid_location;
    child.internal = r.internal;
    child.captures.clone_from(&r.captures);
}

/// Takes a response that nobody wants.
pub(crate) fn nobody(r: &Request) -> Arc<dyn Downstream> {
    Arc::new(Memory {
        background: true,
        ..Memory::new(r, Keeps::Nothing)
    })
}

/// Lets a subrequest read the body that its parent has read.
fn repeat_body(r: &Request, child: &mut Request) {
    if r.body.read && !r.body.discarded && r.has_body() {
        child.head.content_length = Some(r.body.spool.len());
        child.body.spool = r.body.spool.share();
        child.body.read = true;
    }
}

fn child(r: &Request, ask: &Ask<'_>, memory: Arc<Memory>) -> Result<Box<Request>, u16> {
    if r.depth >= DEPTH {
        r.error(
            Level::Error,
            format_args!(
                "subrequests cycle while processing \"{}\"",
                crate::http::text::shown(ask.uri)
            ),
        );
        return Err(500);
    }
    let nested = r.nested.clone();
    // each may begin two more: depth alone bounds too little
    if let Some(n) = &nested
        && n.fetch_add(1, Ordering::Relaxed) >= NESTED
    {
        r.error(
            Level::Crit,
            format_args!(
                "request reference counter overflow while processing \"{}\"",
                crate::http::text::shown(ask.uri)
            ),
        );
        return Err(500);
    }
    let mut child = Box::new(Request::new(r.site.clone(), memory));
    child.nested = Some(nested.unwrap_or_default());
    child.server = r.server;
    child.location = r.server().default_location;
    child.head = r.head.clone();
    // the body belongs to the parent
    child.head.header_in_bytes = 0;
    child.head.content_length = match r.head.content_length {
        // thrown away: none of it is left to be sent
        Some(_) if r.body.discarded => Some(0),
        Some(0) => Some(0),
        _ => None,
    };
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
    // what is included must be in the charset of what includes it
    child.out.override_charset = r.out.charset_name().to_vec();
    child.subrequest = true;
    child.main = Some(r.main.unwrap_or(MainRequest {
        method: r.method,
        location: r.location,
    }));
    child.depth = r.depth + 1;
    child.trace = r.trace.clone();
    r.share(&mut child);
    Ok(child)
}

/// What becomes of the body of a subrequest's response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// It is thrown away.
    Nothing,
    /// It is kept whole.
    All,
    /// Some of it is kept until it is taken.
    Piece,
}

/// How much of a response waits to be taken.
const PIECE: usize = 64 * 1024;

/// Receives the response of a subrequest.
struct Memory {
    parent: Arc<dyn Downstream>,
    keeps: Keeps,
    /// Whether the client's connection has no say.
    background: bool,
    state: Mutex<State>,
}

impl Memory {
    fn new(r: &Request, keeps: Keeps) -> Memory {
        Memory {
            parent: r.down.clone(),
            keeps,
            background: false,
            state: Mutex::default(),
        }
    }

    /// Ready while less than so many bytes wait to be taken.
    fn below(&self, limit: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.lock();
        if state.refused {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.keeps != Keeps::Piece || state.body.len() < limit {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[derive(Default)]
struct State {
    /// Who takes the body, and who fills it.
    reader: Option<Waker>,
    writer: Option<Waker>,
    refused: bool,
    body: Vec<u8>,
    aborted: bool,
}

impl Downstream for Memory {
    fn info(&self) -> &ConnInfo {
        self.parent.info()
    }

    fn head(&self, _head: &ResponseHead, _framing: Framing) {}

    fn write(&self, data: &[u8]) {
        let mut state = self.state.lock();
        if self.keeps != Keeps::Nothing && !state.refused {
            state.body.extend_from_slice(data);
            if let Some(w) = state.reader.take() {
                w.wake();
            }
        }
    }

    fn finish(&self, _trailers: Option<&Headers>) {}

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.below(PIECE, cx)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.below(1, cx)
    }

    fn poll_file(
        &self,
        cx: &mut Context<'_>,
        file: &std::fs::File,
        offset: u64,
        len: u64,
    ) -> Poll<io::Result<u64>> {
        use std::os::unix::fs::FileExt;
        match self.below(PIECE, cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => return Poll::Pending,
        }
        let mut buf = [0; 16 * 1024];
        let n = match file.read_at(&mut buf, offset) {
            Ok(0) if len > 0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => (n as u64).min(len),
            Err(e) => return Poll::Ready(Err(e)),
        };
        self.write(buf.get(..n as usize).unwrap_or_default());
        Poll::Ready(Ok(n))
    }

    fn poll_body(
        &self,
        _cx: &mut Context<'_>,
        _out: &mut BytesMut,
        _max: usize,
    ) -> Poll<io::Result<BodyRead>> {
        Poll::Ready(Ok(BodyRead::End))
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.background {
            Poll::Pending
        } else {
            self.parent.poll_closed(cx)
        }
    }

    fn queued(&self) -> usize {
        if self.keeps == Keeps::Piece {
            self.state.lock().body.len()
        } else {
            0
        }
    }

    /// What has been sent on the client's connection.
    fn sent(&self) -> u64 {
        let parent = &self.parent;
        parent.sent().saturating_sub(parent.queued() as u64)
    }

    fn abort(&self) {
        self.state.lock().aborted = true;
    }

    fn close_after(&self) {}
}
