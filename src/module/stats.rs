//! Counters of connections and requests: what `stub_status` shows.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stat {
    /// Connections accepted.
    Accepted,
    /// Connections served, which are all that were accepted unless a limit was met.
    Handled,
    /// Requests.
    Requests,
    /// Open connections.
    Active,
    /// Connections on which a request head is being read.
    Reading,
    /// Connections on which a response is being written, the request's body and the origin waited for included.
    Writing,
    /// Idle keepalive connections.
    Waiting,
}

impl Stat {
    const COUNT: usize = Stat::Waiting as usize + 1;

    /// One more.
    pub fn up(self) {
        self.add(1);
    }

    /// One less.
    pub fn down(self) {
        self.add(-1);
    }

    /// The sum over all threads.
    pub fn get(self) -> u64 {
        let sum: i64 = SHARDS.iter().filter_map(|s| s.0.get(self as usize)).map(|c| c.load(Ordering::Relaxed)).sum();
        // a connection may be closed by another thread between two reads
        sum.max(0) as u64
    }

    fn add(self, n: i64) {
        if let Some(c) = SHARDS.get(shard()).and_then(|s| s.0.get(self as usize)) {
            c.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// The counters of some of the threads, on cache lines of their own.
#[repr(align(128))]
struct Shard([AtomicI64; Stat::COUNT]);

static SHARDS: [Shard; 32] = [const { Shard([const { AtomicI64::new(0) }; Stat::COUNT]) }; 32];

fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS.len());
    }
    MINE.try_with(Cell::get).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_threads() {
        let before = Stat::Waiting.get();
        Stat::Waiting.up();
        Stat::Waiting.up();
        std::thread::spawn(|| Stat::Waiting.down()).join().unwrap();
        assert_eq!(Stat::Waiting.get(), before + 1);
        Stat::Waiting.down();
    }
}
