//! An object that is still being written, for requests that read it meanwhile (`proxy_cache_lock`).

use super::file::Meta;
use crate::http::h1::response::UpstreamHead;
use bytes::Bytes;
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The largest piece that is read at once, bytes.
const PIECE: u64 = 64 * 1024;

/// What has come of an object. Who writes it never waits for those who read.
pub struct Live {
    /// What is known of it.
    pub meta: Meta,
    /// Its head as the origin sent it.
    pub head: UpstreamHead,
    state: Mutex<State>,
    progress: Notify,
}

struct State {
    kept: Kept,
    len: u64,
    end: End,
    /// When the last piece came.
    grown: Instant,
}

/// Where the body is.
enum Kept {
    Memory(Vec<u8>),
    /// In a file, from this offset on.
    File(Arc<File>, u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Growing,
    Whole,
    Broken,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Piece {
    /// Bytes.
    Memory(Bytes),
    /// Bytes of a file: where they begin and how many there are.
    File(Arc<File>, u64, u64),
    /// Nothing yet.
    Pending,
    /// The end of the body.
    End,
    /// There will be no more, and this was not all.
    Broken,
}

impl Piece {
    /// Reads the bytes of a file into memory, for those who cannot send from it.
    ///
    /// # Errors
    /// What the file gives.
    pub fn into_memory(self) -> io::Result<Piece> {
        let Piece::File(file, at, len) = self else {
            return Ok(self);
        };
        let mut bytes = vec![0; len.min(PIECE) as usize];
        file.read_exact_at(&mut bytes, at)?;
        Ok(Piece::Memory(bytes.into()))
    }
}

impl Live {
    pub(super) fn new(meta: Meta, head: UpstreamHead) -> Live {
        Live {
            meta,
            head,
            state: Mutex::new(State {
                kept: Kept::Memory(Vec::new()),
                len: 0,
                end: End::Growing,
                grown: Instant::now(),
            }),
            progress: Notify::new(),
        }
    }

    /// Takes the next piece into memory.
    pub(super) fn append(&self, data: &[u8]) {
        self.change(|s| {
            if let Kept::Memory(bytes) = &mut s.kept {
                bytes.extend_from_slice(data);
            }
            s.len += data.len() as u64;
        });
    }

    /// Notes that the body is in a file from now on, and how long it is.
    pub(super) fn spilled(&self, file: &Arc<File>, start: u64, len: u64) {
        self.change(|s| {
            if let Kept::Memory(_) = s.kept {
                s.kept = Kept::File(file.clone(), start);
            }
            s.len = len;
        });
    }

    /// Ends the body, once.
    pub(super) fn end(&self, whole: bool) {
        self.change(|s| {
            if s.end == End::Growing {
                s.end = if whole { End::Whole } else { End::Broken };
            }
        });
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        f(&mut state);
        state.grown = Instant::now();
        drop(state);
        self.progress.notify_waiters();
    }

    /// Whether another request may begin to read: it is whole, or has grown within `age`.
    pub fn is_lively(&self, age: Duration) -> bool {
        let state = self.state.lock();
        match state.end {
            End::Growing => state.grown.elapsed() <= age,
            End::Whole => true,
            End::Broken => false,
        }
    }

    /// What there is from `at` on, `max` bytes at most.
    pub fn read(&self, at: u64, max: u64) -> Piece {
        let state = self.state.lock();
        let n = state.len.saturating_sub(at).min(max);
        if n == 0 {
            return match state.end {
                End::Growing => Piece::Pending,
                End::Whole => Piece::End,
                End::Broken => Piece::Broken,
            };
        }
        match &state.kept {
            Kept::Memory(bytes) => {
                let n = n.min(PIECE);
                let piece = bytes.get(at as usize..(at + n) as usize);
                Piece::Memory(Bytes::copy_from_slice(piece.unwrap_or_default()))
            }
            Kept::File(file, start) => Piece::File(file.clone(), start + at, n),
        }
    }

    fn has(&self, at: u64) -> bool {
        let state = self.state.lock();
        state.len > at || state.end != End::Growing
    }

    /// Waits until there is something behind `at`, or will not be.
    pub async fn wait(&self, at: u64) {
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            // what comes from now on wakes
            progress.as_mut().enable();
            if self.has(at) {
                return;
            }
            progress.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(piece: Piece) -> Vec<u8> {
        match piece.into_memory().unwrap() {
            Piece::Memory(b) => b.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn readers_see_what_has_come() {
        let live = Live::new(Meta::default(), UpstreamHead::default());
        assert!(matches!(live.read(0, 9), Piece::Pending));
        live.append(b"hello");
        assert_eq!(text(live.read(0, 2)), b"he");
        assert_eq!(text(live.read(2, 99)), b"llo");
        assert!(matches!(live.read(5, 9), Piece::Pending));
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"headhello world").unwrap();
        let file = Arc::new(file);
        live.spilled(&file, 4, 11);
        assert_eq!(text(live.read(5, 99)), b" world");
        assert!(live.is_lively(Duration::from_secs(60)));
        live.end(true);
        assert_eq!(text(live.read(0, 99)), b"hello world");
        assert!(matches!(live.read(11, 9), Piece::End));
        live.end(false);
        assert!(live.is_lively(Duration::ZERO), "it has ended already");
    }

    #[tokio::test]
    async fn readers_on_other_threads_are_woken() {
        let live = Arc::new(Live::new(Meta::default(), UpstreamHead::default()));
        let writer = live.clone();
        let thread = std::thread::spawn(move || {
            for _ in 0..1000 {
                writer.append(b"x");
            }
            writer.end(false);
        });
        let mut at = 0;
        loop {
            match live.read(at, 7) {
                Piece::Memory(b) => at += b.len() as u64,
                Piece::Pending => live.wait(at).await,
                Piece::Broken => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(at, 1000);
        assert!(!live.is_lively(Duration::from_secs(60)));
        thread.join().unwrap();
    }
}
