//! Counters of connections and requests: what `stub_status` shows.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

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
        let shards = SHARDS.lock();
        let sum: i64 = shards
            .iter()
            .filter_map(|s| s.0.get(self as usize))
            .map(|c| c.load(Ordering::Relaxed))
            .sum();
        // what one thread counts up another may count down
        sum.max(0) as u64
    }

    fn add(self, n: i64) {
        let _ = MINE.try_with(|shard| {
            // no other thread writes here
            if let Some(c) = shard.0.get(self as usize) {
                c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
            }
        });
    }
}

/// Counts itself under one name at a time, for as long as it lives.
pub struct Gauge(Stat);

impl Gauge {
    /// Counts under `stat`.
    pub fn new(stat: Stat) -> Gauge {
        stat.up();
        Gauge(stat)
    }

    /// Counts under another name from now on.
    pub fn set(&mut self, stat: Stat) {
        if self.0 != stat {
            self.0.down();
            stat.up();
            self.0 = stat;
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.down();
    }
}

/// The counters of one thread, on cache lines of their own; they outlive it.
#[derive(Default)]
#[repr(align(128))]
struct Shard([AtomicI64; Stat::COUNT]);

static SHARDS: Mutex<Vec<&'static Shard>> = Mutex::new(Vec::new());

thread_local! {
    static MINE: &'static Shard = {
        let shard: &'static Shard = Box::leak(Box::default());
        SHARDS.lock().push(shard);
        shard
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_threads() {
        // no other test counts these
        Stat::Accepted.up();
        Stat::Accepted.up();
        std::thread::spawn(|| Stat::Accepted.down()).join().unwrap();
        let mut gauge = Gauge::new(Stat::Accepted);
        assert_eq!(Stat::Accepted.get(), 2);
        gauge.set(Stat::Handled);
        assert_eq!((Stat::Accepted.get(), Stat::Handled.get()), (1, 1));
        drop(gauge);
        assert_eq!(Stat::Handled.get(), 0);
        Stat::Handled.down();
        assert_eq!(Stat::Handled.get(), 0);
    }
}
