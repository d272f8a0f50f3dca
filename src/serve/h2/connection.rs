//! A connection: reads frames, serves the requests that they open, sends what the streams have put into frames.

use super::flood::Flood;
use super::frames::LARGEST_FRAME;
use super::link::{HIGH_WATER, Link};
use super::listener;
use super::open::{Opened, Served};
use super::stream::Stream;
use crate::http::h2::hpack::{DEFAULT_TABLE, Decoder, Fields};
use crate::http::h2::{Code, DEFAULT_WINDOW, MAX_WINDOW, frame};
use crate::log::Level;
use crate::module::{Lingering, ListenAddr};
use crate::runtime::buffers;
use crate::serve::conn::Conn;
use crate::serve::reusable::Reusable;
use crate::serve::thread::Thread;
use bytes::BytesMut;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until, timeout};

/// The task's side of a connection.
pub(super) struct Connection {
    pub(super) thread: &'static Thread,
    pub(super) conn: Arc<Conn>,
    pub(super) addr: ListenAddr,
    pub(super) link: Arc<Link>,
    pub(super) conf: Conf,

    /// Read and not yet parsed.
    pub(super) input: BytesMut,
    /// Bytes of the preface that are still to come.
    pub(super) preface: usize,
    pub(super) decoder: Decoder,
    /// The header block that is coming in.
    pub(super) block: Option<Block>,
    /// A HEADERS frame that has come in part, and when the rest must have come.
    pub(super) partial: Option<(u32, Instant)>,
    /// The fields of the last one.
    pub(super) fields: Fields,
    /// What all streams together may still receive.
    pub(super) recv_window: i64,
    pub(super) settings_acked: bool,

    pub(super) streams: HashMap<u32, Arc<Stream>, foldhash::fast::FixedState>,
    /// Requests whose head has come; they are served as soon as the frames that came with them have been looked at.
    pub(super) opened: Vec<Opened>,
    /// Requests that are being served.
    pub(super) processing: usize,
    /// The highest stream that was looked at, which GOAWAY names, and the highest that the client opened.
    pub(super) last: u32,
    pub(super) seen: u32,
    pub(super) closed: Closed,
    /// Streams that were refused.
    pub(super) refused: usize,
    /// Streams opened by what was read last.
    pub(super) new_streams: usize,
    pub(super) priorities: u64,
    pub(super) flood: Flood,
    /// GOAWAY has been sent: no more streams are taken.
    pub(super) going: bool,
    ended: bool,

    state: Option<Reusable>,
    timer: Option<Pin<Box<Sleep>>>,
    idle_until: Option<Instant>,
    write_until: Option<Instant>,
    /// A request has been served: from now on the connection is one that is kept.
    pub(super) kept: bool,
}

/// Settings of the address's default server that hold for the connection.
#[derive(Clone)]
pub(super) struct Conf {
    pub max_concurrent_streams: u32,
    pub preread: u32,
    /// The largest read.
    read: usize,
    /// `large_client_header_buffers`: bytes of a field, and of all.
    pub field: usize,
    pub list: usize,
    pub header_timeout: Duration,
    keepalive_timeout: Duration,
    send_timeout: Duration,
    lingering: Lingering,
    lingering_time: Duration,
    lingering_timeout: Duration,
}

/// A header block that is coming in.
pub(super) struct Block {
    pub stream: u32,
    pub bytes: BytesMut,
    pub end_stream: bool,
    /// CONTINUATION frames so far.
    pub frames: usize,
    /// When the rest must have come; `None` once it has been given up.
    pub until: Option<Instant>,
}

/// Streams that ended not long ago, and whether frames for them may still be on their way.
#[derive(Default)]
pub(super) struct Closed(VecDeque<Ended>);

struct Ended {
    stream: u32,
    /// Frames may still be on their way: we ended the stream, and the client did not know.
    reset: bool,
    /// Bytes of the body that have not come, where the head said how many there are.
    rest: Option<u64>,
}

/// Ended streams that are remembered.
const REMEMBERED: usize = 128;

impl Closed {
    fn add(&mut self, stream: u32, reset: bool, rest: Option<u64>) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Ended {
            stream,
            reset,
            rest,
        });
    }

    /// The client reset the stream, too: nothing more may come.
    pub fn taken_back(&mut self, stream: u32) {
        if let Some(e) = self.0.iter_mut().find(|e| e.stream == stream) {
            e.reset = false;
        }
    }

    /// Counts what comes after all; true where that is not what the head said, once.
    pub fn late_data(&mut self, stream: u32, n: u64, end: bool) -> bool {
        let Some(e) = self.0.iter_mut().find(|e| e.stream == stream && e.reset) else {
            return false;
        };
        let Some(rest) = e.rest else { return false };
        e.rest = rest.checked_sub(n).filter(|left| !end || *left == 0);
        e.rest.is_none()
    }

    /// Whether an ended stream was reset; `None` where it is not remembered.
    pub fn was_reset(&self, stream: u32) -> Option<bool> {
        self.0.iter().find(|e| e.stream == stream).map(|e| e.reset)
    }
}

/// Why a connection ends.
pub(super) enum End {
    /// The client closed it, or nothing can be sent any more.
    Lost,
    /// GOAWAY has been sent.
    Closed,
}

/// An error of the connection: GOAWAY is sent with this code.
pub(super) struct Fault(pub Code);

impl Connection {
    pub fn new(thread: &'static Thread, conn: &Arc<Conn>, addr: &ListenAddr) -> Option<Connection> {
        let site = thread.site();
        let (_, _, server) = listener(&site, addr)?;
        let core = &site.locations.get(server.default_location as usize)?.core;
        let (number, size) = server.conf.large_client_header_buffers;
        let millis = Duration::from_millis;
        let h2 = server.conf.http2;
        Some(Connection {
            conf: Conf {
                max_concurrent_streams: h2.max_concurrent_streams,
                preread: h2.preread_size,
                read: h2.recv_buffer.clamp(1024, READ),
                field: size,
                list: number.saturating_mul(size),
                header_timeout: millis(server.conf.client_header_timeout),
                keepalive_timeout: millis(core.keepalive_timeout),
                send_timeout: millis(core.send_timeout),
                lingering: core.lingering_close,
                lingering_time: millis(core.lingering_time),
                lingering_timeout: millis(core.lingering_timeout),
            },
            thread,
            conn: conn.clone(),
            addr: addr.clone(),
            link: Arc::new(Link::new(conn.clone(), thread)),
            input: BytesMut::new(),
            preface: crate::http::h2::PREFACE.len(),
            decoder: Decoder::new(DEFAULT_TABLE),
            block: None,
            partial: None,
            fields: Fields::default(),
            recv_window: i64::from(MAX_WINDOW),
            settings_acked: false,
            streams: HashMap::default(),
            opened: Vec::new(),
            processing: 0,
            last: 0,
            seen: 0,
            closed: Closed::default(),
            refused: 0,
            new_streams: 0,
            priorities: u64::from(h2.max_concurrent_streams.max(100)),
            flood: Flood::new(h2.max_concurrent_streams),
            going: false,
            ended: false,
            state: None,
            timer: None,
            idle_until: None,
            write_until: None,
            kept: false,
        })
    }

    /// Serves the connection until it ends.
    pub async fn serve(mut self) {
        self.greet();
        let mut draining = self.thread.shared.draining.subscribe();
        let mut renewed = self.thread.shared.renewed.subscribe();
        let mut drained = Box::pin(async move {
            // an error means that the process is gone
            tokio::select! {
                _ = draining.wait_for(|d| *d) => {}
                // what was settled with the client is of the site that there was
                _ = renewed.changed() => {}
            }
        });
        let mut work = FuturesUnordered::new();
        let mut drain = false;
        let begin = Opened::serve;
        let end = poll_fn(|cx| {
            if !drain && drained.as_mut().poll(cx).is_ready() {
                drain = true;
                self.go_away(Code::NO_ERROR);
            }
            self.link.lock().begin(cx);
            let turn = self.turn(cx, &mut |c, cx| run(c, cx, &mut work, &begin));
            self.link.lock().end();
            turn
        })
        .await;
        drop(self.state.take());
        self.close_streams();
        let rest = std::mem::take(&mut self.link.lock().buf);
        let polite = matches!(end, End::Closed);
        let (conn, conf) = (self.conn.clone(), self.conf.clone());
        let goodbye = Box::pin(async move {
            if polite {
                goodbye(&conn, &conf, rest).await;
            }
            conn.cut();
        });
        // what is still being served belongs to this connection's count
        let served = poll_fn(|cx| run(&mut self, cx, &mut work, &begin).0);
        tokio::join!(goodbye, served);
    }

    /// What a server says first.
    fn greet(&self) {
        use frame::setting::{
            ENABLE_CONNECT_PROTOCOL, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE,
        };
        let out = &mut *self.link.lock();
        frame::settings(
            &mut out.buf,
            &[
                (MAX_CONCURRENT_STREAMS, self.conf.max_concurrent_streams),
                (INITIAL_WINDOW_SIZE, self.conf.preread),
                (MAX_FRAME_SIZE, LARGEST_FRAME),
                (ENABLE_CONNECT_PROTOCOL, 1),
            ],
        );
        frame::window_update(&mut out.buf, 0, MAX_WINDOW - DEFAULT_WINDOW);
    }

    /// Moves all that can be moved now.
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        run: &mut impl FnMut(&mut Connection, &mut Context<'_>) -> (Poll<()>, bool),
    ) -> Poll<End> {
        loop {
            let mut moved = false;
            // what a client makes us send without reading it is bounded
            let full = self.is_full();
            if !full {
                match self.read(cx) {
                    Poll::Ready(Ok(true)) => moved = true,
                    Poll::Ready(Ok(false)) => return Poll::Ready(End::Lost),
                    Poll::Ready(Err(Fault(code))) => {
                        self.go_away(code);
                        self.ended = true;
                    }
                    Poll::Pending => {}
                }
            }
            let (_, ran) = run(self, cx);
            moved |= ran;
            match self.write(cx) {
                Ok(woken) => moved |= woken,
                Err(_) => return Poll::Ready(End::Lost),
            }
            moved |= full && !self.is_full();
            // frames that were held back until the requests before them had their turn
            if !self.ended && self.has_frame() {
                moved = true;
                if let Err(Fault(code)) = self.parse() {
                    self.go_away(code);
                    self.ended = true;
                }
            }
            if self.ended || (self.going && self.processing == 0 && self.write_until.is_none()) {
                return Poll::Ready(End::Closed);
            }
            if !moved {
                return self.wait(cx);
            }
        }
    }

    /// Reads and parses; false at the end of the connection.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Fault>> {
        self.new_streams = 0;
        let n = match self.conn.poll_into(cx, &mut self.input, self.conf.read) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(_) if self.conn.is_retired() => {
                self.go_away(Code::NO_ERROR);
                self.ended = true;
                return Poll::Ready(Ok(true));
            }
            Poll::Ready(Ok(n)) if n > 0 => n,
            Poll::Ready(_) => {
                if self.processing > 0 || !self.input.is_empty() || self.block.is_some() {
                    self.link.log(
                        Level::Info,
                        format_args!("client prematurely closed connection"),
                    );
                }
                return Poll::Ready(Ok(false));
            }
        };
        let total = {
            let out = &mut *self.link.lock();
            out.total += n as u64;
            (out.total, out.payload)
        };
        self.parse()?;
        if self.flood.detected(total.0, total.1) {
            self.link
                .log(Level::Info, format_args!("http2 flood detected"));
            return Poll::Ready(Err(Fault(Code::ENHANCE_YOUR_CALM)));
        }
        if self.input.is_empty() {
            buffers::give(std::mem::take(&mut self.input));
        }
        Poll::Ready(Ok(true))
    }

    fn is_full(&self) -> bool {
        self.link.lock().buf.len() >= 2 * HIGH_WATER
    }

    /// Sends what is there; true if streams wait for the room that came of it.
    fn write(&mut self, cx: &mut Context<'_>) -> std::io::Result<bool> {
        let out = &mut *self.link.lock();
        let before = out.buf.len();
        if before == 0 {
            self.write_until = None;
            return Ok(out.window > 0 && out.wake_waiting());
        }
        let sent = self.conn.poll_out(cx, &mut out.buf);
        if out.buf.len() < before {
            self.write_until = None;
        }
        match sent {
            Poll::Ready(Ok(())) => self.write_until = None,
            Poll::Ready(Err(e)) => return Err(e),
            Poll::Pending => {
                let limit = self.conf.send_timeout;
                self.write_until
                    .get_or_insert_with(|| Instant::now() + limit);
            }
        }
        Ok(out.buf.len() < HIGH_WATER && out.window > 0 && out.wake_waiting())
    }

    /// Nothing can be moved now: for how long that may be so.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let heading = self.heading();
        let idle = self.processing == 0 && self.write_until.is_none() && heading.is_none();
        if idle {
            if self.idle_until.is_none() {
                let limit = if self.kept {
                    self.conf.keepalive_timeout
                } else {
                    self.conf.header_timeout
                };
                self.idle_until = Some(Instant::now() + limit);
                self.fields.shrink();
            }
            buffers::give(std::mem::take(&mut self.link.lock().buf));
            if self.state.is_none() {
                self.state = self.conn.reusable();
            }
        } else {
            self.idle_until = None;
            self.state = None;
        }
        loop {
            let first = [self.idle_until, self.write_until, heading]
                .into_iter()
                .flatten()
                .min();
            let Some(first) = first else {
                return Poll::Pending;
            };
            let until = tokio::time::Instant::from_std(first);
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(until)));
            // one that is too early costs less than one that is set for every request
            if timer.deadline() > until {
                timer.as_mut().reset(until);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now < first {
                timer.as_mut().reset(until);
                continue;
            }
            self.timer = None;
            let passed = |t: Option<Instant>| t.is_some_and(|t| t <= now);
            if passed(self.write_until) {
                return Poll::Ready(End::Lost);
            }
            let late = || {
                self.link.log(
                    Level::Info,
                    format_args!("client timed out (110: Connection timed out)"),
                );
            };
            if passed(heading) {
                late();
                self.give_up_heading();
                // what that made us send
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let code = if self.kept {
                Code::NO_ERROR
            } else {
                late();
                Code::PROTOCOL_ERROR
            };
            self.go_away(code);
            return Poll::Ready(End::Closed);
        }
    }

    /// When the head that is coming in must be whole.
    fn heading(&self) -> Option<Instant> {
        self.block
            .as_ref()
            .and_then(|b| b.until)
            .or(self.partial.map(|p| p.1))
            .filter(|_| self.block.is_some() || self.partial.is_some_and(|p| p.0 > self.seen))
    }

    /// The head that is coming in is too late: its stream ends, the rest is read for the sake of the table.
    fn give_up_heading(&mut self) {
        let stream = match &mut self.block {
            Some(b) => {
                b.until = None;
                b.stream
            }
            None => self.partial.map_or(0, |p| p.0),
        };
        if self.streams.contains_key(&stream) {
            return;
        }
        self.last = self.last.max(stream);
        self.seen = self.seen.max(stream);
        self.kept = true;
        self.closed.add(stream, true, None);
        self.link.lock().reset(stream, Code::PROTOCOL_ERROR);
    }

    /// Takes no more streams, and says so once.
    pub(super) fn go_away(&mut self, code: Code) {
        let again = std::mem::replace(&mut self.going, true);
        if !again || code != Code::NO_ERROR {
            let out = &mut *self.link.lock();
            frame::go_away(&mut out.buf, self.last, code);
        }
    }

    /// A request has been served.
    fn served(&mut self, s: &Served) {
        self.processing -= 1;
        self.streams.remove(&s.stream);
        self.closed.add(s.stream, s.reset, s.rest);
        if s.answered {
            self.flood.answered();
        }
    }

    /// Tells the streams that there is no client any more.
    fn close_streams(&mut self) {
        self.link.lock().dead = true;
        for s in self.streams.values() {
            s.close(None);
        }
    }
}

/// Sends what is left, then reads and forgets until the client closes too, so that no reset destroys what it has not
/// read yet.
async fn goodbye(conn: &Conn, c: &Conf, mut rest: BytesMut) {
    let sent = timeout(
        c.lingering_timeout,
        poll_fn(|cx| conn.poll_out(cx, &mut rest)),
    );
    if !matches!(sent.await, Ok(Ok(()))) || c.lingering == Lingering::Off {
        return;
    }
    conn.goodbye().await;
    conn.shutdown_write();
    let _reusable = conn.reusable();
    let end = Instant::now() + c.lingering_time;
    while Instant::now() < end {
        match timeout(c.lingering_timeout, poll_fn(|cx| conn.poll_drain(cx))).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
    }
}

/// The largest read, bytes.
const READ: usize = 64 * 1024;

/// Goes on with the requests that can go on; ready when there is none. Also whether one came to its end.
fn run<F: Future<Output = Served>>(
    c: &mut Connection,
    cx: &mut Context<'_>,
    work: &mut FuturesUnordered<F>,
    begin: &impl Fn(Opened) -> F,
) -> (Poll<()>, bool) {
    let mut moved = false;
    for opened in c.opened.drain(..) {
        work.push(begin(opened));
    }
    loop {
        match work.poll_next_unpin(cx) {
            Poll::Ready(Some(served)) => {
                c.served(&served);
                moved = true;
            }
            Poll::Ready(None) => return (Poll::Ready(()), moved),
            Poll::Pending => return (Poll::Pending, moved),
        }
    }
}
