//! A connection: reads frames, serves the requests that they open, sends what the streams have put into frames.

use super::flood::Flood;
use super::open::{Opened, Served};
use super::parting::{Going, Settled};
use super::stream::Stream;
use super::stream_io::{HIGH_WATER, Link};
use crate::contract::{CoreConf, Downstream, Lingering, ListenAddr, ServerConf, SiteRef};
use crate::http::h2::hpack::{DEFAULT_TABLE, Decoder, Fields};
use crate::http::h2::{Code, DEFAULT_FRAME, DEFAULT_WINDOW, MAX_FRAME, MAX_WINDOW, frame};
use crate::log::Level;
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
use std::sync::atomic::Ordering;
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
    /// The site in force, while the connection is at work; it holds none while it waits.
    pub(super) site: Option<SiteRef>,
    /// The last site that had the connection's address, where the one in force does not.
    pub(super) former: Option<SiteRef>,

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
    /// SETTINGS_MAX_FRAME_SIZE that the client has been told.
    pub(super) max_frame: u32,

    pub(super) streams: HashMap<u32, Arc<Stream>, foldhash::fast::FixedState>,
    /// Requests whose head has come; they are served as soon as the frames that came with them have been looked at.
    pub(super) opened: Vec<Opened>,
    /// Requests that are being served.
    pub(super) processing: usize,
    /// The highest stream that was looked at, which GOAWAY names, and the highest that the client opened.
    pub(super) last: u32,
    pub(super) seen: u32,
    pub(super) closed: Closed,
    /// Streams that were refused, less those that were answered since.
    pub(super) refused: usize,
    /// Requests whose streams have been reset may be at their end, which shows when they have had their turn.
    pub(super) leaving: bool,
    /// Streams opened by what was read last.
    pub(super) new_streams: usize,
    pub(super) priorities: u64,
    pub(super) flood: Flood,
    pub(super) going: Going,
    ended: bool,

    state: Option<Reusable>,
    timer: Option<Pin<Box<Sleep>>>,
    idle_until: Option<Instant>,
    /// When memory is given back that a connection that goes on waiting does not need.
    rest_at: Option<Instant>,
    rested: bool,
    write_until: Option<Instant>,
    /// A request has been served: from now on the connection is one that is kept.
    pub(super) kept: bool,
}

/// Settings of the address's default server that hold for the connection.
#[derive(Clone)]
pub(super) struct Conf {
    /// The site that these are of.
    pub site: u64,
    pub settled: Settled,
    pub max_concurrent_streams: u32,
    pub preread: u32,
    /// The largest read.
    pub read: usize,
    /// `large_client_header_buffers`: bytes of a field, and of all.
    pub field: usize,
    pub list: usize,
    pub header_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub send_timeout: Duration,
    pub lingering: Lingering,
    pub lingering_time: Duration,
    pub lingering_timeout: Duration,
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

    /// Forgets the streams for which nothing can be on its way any more.
    fn shrink(&mut self) {
        self.0.retain(|e| e.reset);
        self.0.shrink_to_fit();
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

impl Conf {
    pub fn new(site: u64, server: &ServerConf, core: &CoreConf, settled: Settled) -> Conf {
        let (number, size) = server.large_client_header_buffers;
        let millis = Duration::from_millis;
        Conf {
            site,
            settled,
            max_concurrent_streams: server.http2.max_concurrent_streams,
            preread: server.http2.preread_size,
            read: server.http2.recv_buffer.clamp(1024, READ),
            field: size,
            list: number.saturating_mul(size),
            header_timeout: millis(server.client_header_timeout),
            keepalive_timeout: millis(core.keepalive_timeout),
            send_timeout: millis(core.send_timeout),
            lingering: core.lingering_close,
            lingering_time: millis(core.lingering_time),
            lingering_timeout: millis(core.lingering_timeout),
        }
    }
}

impl Connection {
    pub fn new(thread: &'static Thread, conn: &Arc<Conn>, addr: &ListenAddr) -> Option<Connection> {
        let conf = Conf::of(&thread.site(), addr, conn.info())?;
        let most = conf.max_concurrent_streams;
        Some(Connection {
            conf,
            site: None,
            former: None,
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
            max_frame: DEFAULT_FRAME,
            streams: HashMap::default(),
            opened: Vec::new(),
            processing: 0,
            last: 0,
            seen: 0,
            closed: Closed::default(),
            refused: 0,
            leaving: false,
            new_streams: 0,
            priorities: u64::from(most.max(100)),
            flood: Flood::new(most),
            going: Going::No,
            ended: false,
            state: None,
            timer: None,
            idle_until: None,
            rest_at: None,
            rested: false,
            write_until: None,
            kept: false,
        })
    }

    /// Serves the connection until it ends.
    ///
    /// Not an `async fn`: that would hold the connection twice.
    pub fn serve(mut self) -> impl Future<Output = ()> + Send {
        self.greet();
        async move {
            let _counted = Counted::new(self.thread);
            let mut news = self.news();
            let mut work = None;
            let begin = Opened::serve;
            let end = poll_fn(|cx| {
                while news.as_mut().poll(cx).is_ready() {
                    news = self.news();
                }
                self.link.lock().begin(cx);
                self.renew();
                let turn = self.turn(cx, &mut |c, cx| run(c, cx, &mut work, &begin));
                self.link.lock().end();
                self.site = None;
                if self.rested {
                    work = None;
                }
                turn
            })
            .await;
            drop(news);
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
    }

    /// Ready when there is another site, or the process begins to drain.
    fn news(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut renewed = self.thread.shared.renewed.subscribe();
        Box::pin(async move {
            // an error means that the process is gone
            let _ = renewed.changed().await;
        })
    }

    /// What a server says first.
    fn greet(&mut self) {
        use frame::setting::{
            ENABLE_CONNECT_PROTOCOL, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE,
        };
        // a field as large as allowed fits into one frame
        let field = u32::try_from(self.conf.field).unwrap_or(MAX_FRAME);
        self.max_frame = field.clamp(DEFAULT_FRAME, MAX_FRAME);
        let out = &mut *self.link.lock();
        frame::settings(
            &mut out.buf,
            &[
                (MAX_CONCURRENT_STREAMS, self.conf.max_concurrent_streams),
                (INITIAL_WINDOW_SIZE, self.conf.preread),
                (ENABLE_CONNECT_PROTOCOL, 1),
            ],
        );
        if self.max_frame > DEFAULT_FRAME {
            frame::settings(&mut out.buf, &[(MAX_FRAME_SIZE, self.max_frame)]);
        }
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
            if self.ended
                || (self.going == Going::Gone && self.processing == 0 && self.write_until.is_none())
            {
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
        match self.conn.poll_into(cx, &mut self.input, self.conf.read) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(_) if self.conn.is_retired() => {
                self.go_away(Code::NO_ERROR);
                self.ended = true;
                return Poll::Ready(Ok(true));
            }
            Poll::Ready(Ok(n)) if n > 0 => {}
            Poll::Ready(_) => {
                if self.processing > 0 || !self.input.is_empty() || self.block.is_some() {
                    self.link.log(
                        Level::Info,
                        format_args!("client prematurely closed connection"),
                    );
                }
                return Poll::Ready(Ok(false));
            }
        }
        self.parse()?;
        let worth = std::mem::take(&mut self.link.lock().worth);
        if self.flood.is_one(worth) {
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
                let now = Instant::now();
                self.idle_until = Some(now + limit);
                self.rest_at = (!self.rested).then(|| now + REST);
            }
            buffers::give(std::mem::take(&mut self.link.lock().buf));
            if self.state.is_none() {
                self.state = self.conn.reusable();
            }
        } else {
            self.idle_until = None;
            self.rest_at = None;
            self.rested = false;
            self.state = None;
        }
        let told = self.told_until();
        loop {
            // a connection that is ending is not idle for longer than that takes
            let idle = self.idle_until.filter(|_| told.is_none());
            let first = [idle, self.rest_at, self.write_until, heading, told]
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
            if passed(told) {
                self.go_away(Code::NO_ERROR);
            } else if passed(idle) {
                if !self.kept {
                    late();
                    self.go_away(Code::PROTOCOL_ERROR);
                    return Poll::Ready(End::Closed);
                }
                // the client may be sending a request just now
                self.part();
            } else {
                self.rest();
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
    }

    /// Gives back memory that a connection which waits does not need.
    fn rest(&mut self) {
        self.rest_at = None;
        self.rested = true;
        self.fields = Fields::default();
        self.opened = Vec::new();
        self.streams.shrink_to_fit();
        self.closed.shrink();
        self.decoder.rest();
        self.link.lock().rest();
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

    /// A request has been served.
    fn served(&mut self, s: &Served) {
        self.processing -= 1;
        self.streams.remove(&s.stream);
        self.closed.add(s.stream, s.reset, s.rest);
        if s.answered {
            self.flood.answered();
            self.refused = self.refused.saturating_sub(1);
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

/// Counts the connections of HTTP/2 on a thread.
struct Counted(&'static Thread);

impl Counted {
    fn new(thread: &'static Thread) -> Counted {
        thread.http2.fetch_add(1, Ordering::Relaxed);
        Counted(thread)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.http2.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection on which nothing has been said for so long holds little memory.
const REST: Duration = Duration::from_secs(1);
/// The largest read, bytes.
const READ: usize = 64 * 1024;

/// Goes on with the requests that can go on; ready when there is none. Also whether one came to its end.
fn run<F: Future<Output = Served>>(
    c: &mut Connection,
    cx: &mut Context<'_>,
    work: &mut Option<FuturesUnordered<F>>,
    begin: &impl Fn(Opened) -> F,
) -> (Poll<()>, bool) {
    let mut moved = false;
    c.leaving = false;
    if !c.opened.is_empty() {
        let work = work.get_or_insert_with(FuturesUnordered::new);
        work.extend(c.opened.drain(..).map(begin));
    }
    let Some(work) = work else {
        return (Poll::Ready(()), false);
    };
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
