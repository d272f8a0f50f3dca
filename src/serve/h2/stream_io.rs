//! What the streams of a connection share: what is to be sent, and how much of it may be.

use crate::contract::Downstream;
use crate::http::h2::hpack::Encoder;
use crate::http::h2::{Code, DEFAULT_FRAME, DEFAULT_WINDOW, frame};
use crate::log::Level;
use crate::runtime::buffers;
use crate::serve::conn::Conn;
use crate::serve::opening::Log;
use crate::serve::thread::Thread;
use bytes::BytesMut;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

/// The sending side of a connection, shared with its streams.
pub(super) struct Link {
    pub conn: Arc<Conn>,
    thread: &'static Thread,
    out: Mutex<Output>,
}

/// Frames on their way to the client, and the state that they depend on.
pub(super) struct Output {
    /// Frames as they are sent.
    pub buf: BytesMut,
    /// In the order in which blocks are put into `buf`.
    pub encoder: Encoder,
    /// What may be sent on all streams together.
    pub window: i64,
    /// The window that a new stream begins with.
    pub initial_window: i64,
    /// The largest frame that the client takes.
    pub max_frame: usize,
    /// Bytes by which the windows of streams may still grow.
    pub growth: usize,
    /// What the data put into frames is worth to the client's allowance, since that was last reckoned.
    pub worth: i64,
    /// Nothing more is sent for streams.
    pub dead: bool,
    /// Memory to put a value together in.
    pub scratch: Vec<u8>,
    waiting: Vec<Waker>,
    /// Which turn of `waiting` is the present one.
    turn: u64,
    /// The connection's task, and whether it is at work just now.
    task: Option<Waker>,
    polling: bool,
}

/// Above this much unsent, streams wait.
pub(super) const HIGH_WATER: usize = 64 * 1024;
/// Request bodies of all streams that nobody reads take no more memory than this beyond their first windows.
const GROWTH: usize = 8 << 20;

impl Link {
    pub fn new(conn: Arc<Conn>, thread: &'static Thread) -> Link {
        Link {
            conn,
            thread,
            out: Mutex::new(Output {
                buf: BytesMut::new(),
                encoder: Encoder::default(),
                window: i64::from(DEFAULT_WINDOW),
                initial_window: i64::from(DEFAULT_WINDOW),
                max_frame: DEFAULT_FRAME as usize,
                growth: GROWTH,
                worth: 0,
                dead: false,
                scratch: Vec::new(),
                waiting: Vec::new(),
                turn: 1,
                task: None,
                polling: false,
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Output> {
        self.out.lock()
    }

    /// Writes to the error log of the listener's default server.
    pub fn log(&self, level: Level, text: std::fmt::Arguments<'_>) {
        let site = self.thread.site();
        let info = self.conn.info();
        let index = info.listener.load(Ordering::Relaxed);
        Log::new(&site, index, info, "processing HTTP/2 connection").write(level, text);
    }
}

impl Output {
    /// The connection's task is at work: it sends what is put here when it is done.
    pub fn begin(&mut self, cx: &Context<'_>) {
        self.polling = true;
        if self.buf.capacity() == 0 {
            self.buf = buffers::take();
        }
        if !self.task.as_ref().is_some_and(|t| t.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    pub fn end(&mut self) {
        self.polling = false;
    }

    /// Gives back memory that a connection which waits does not need.
    pub fn rest(&mut self) {
        self.encoder.rest();
        self.scratch = Vec::new();
        self.waiting = Vec::new();
    }

    /// Something was put into `buf`: whoever sends it must know.
    pub fn touched(&mut self) {
        if !self.polling
            && let Some(task) = self.task.take()
        {
            task.wake();
        }
    }

    /// Wakes the task when there is room again, or a larger window; `turn` is the caller's memory of having asked.
    pub fn wait(&mut self, turn: &mut u64, cx: &Context<'_>) {
        if *turn != self.turn {
            *turn = self.turn;
            self.waiting.push(cx.waker().clone());
        }
    }

    /// Wakes those that wait; tells whether there were any.
    pub fn wake_waiting(&mut self) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        self.turn += 1;
        self.waiting.drain(..).for_each(Waker::wake);
        true
    }

    /// Ends a stream.
    pub fn reset(&mut self, stream: u32, code: Code) {
        if !self.dead {
            frame::reset(&mut self.buf, stream, code);
            self.touched();
        }
    }

    /// Lets a client send more on a stream.
    pub fn window_update(&mut self, stream: u32, more: u32) {
        if !self.dead {
            frame::window_update(&mut self.buf, stream, more);
            self.touched();
        }
    }
}
