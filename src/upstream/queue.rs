//! `queue`: requests that no peer can take at once wait for one, as in NGINX Plus.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// The waiting requests of a group, in the order in which they came.
#[derive(Debug)]
pub struct Queue {
    size: u32,
    timeout: Duration,
    waiting: AtomicU32,
    freed: Notify,
}

/// A peer may also become free without a word: by the end of its `fail_timeout`, or by a health check.
const LOOK: Duration = Duration::from_millis(500);

impl Queue {
    /// At most `size` requests wait, each for at most `timeout`.
    pub fn new(size: u32, timeout: Duration) -> Self {
        Self {
            size,
            timeout,
            waiting: AtomicU32::new(0),
            freed: Notify::new(),
        }
    }

    /// Whether requests wait: those that come now must not pass them.
    pub fn is_used(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// A place on a peer became free.
    pub fn wake(&self) {
        if self.is_used() {
            self.freed.notify_one();
        }
    }

    /// Waits until `try_pick` finds a peer; `None` if the queue is full or the time is over.
    pub async fn wait<T>(&self, mut try_pick: impl FnMut() -> Option<T>) -> Option<T> {
        let enter = |n: u32| (n < self.size).then_some(n + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, enter).ok()?;
        let _place = Place(&self.waiting);
        let end = Instant::now() + self.timeout;
        loop {
            let now = Instant::now();
            if now >= end {
                return None;
            }
            let _ = timeout_at(end.min(now + LOOK), self.freed.notified()).await;
            if let Some(found) = try_pick() {
                return Some(found);
            }
        }
    }
}

/// A place in the queue; leaves it when the request does.
struct Place<'q>(&'q AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn those_that_wait_are_served_in_order() {
        let queue = Queue::new(2, Duration::from_secs(60));
        let free = Cell::new(0);
        let order = std::cell::RefCell::new(Vec::new());
        let one = |name| {
            let (queue, free, order) = (&queue, &free, &order);
            async move {
                let got = queue
                    .wait(|| (free.get() > 0).then(|| free.set(free.get() - 1)))
                    .await;
                order.borrow_mut().push((name, got.is_some()));
            }
        };
        let give = async {
            assert!(queue.is_used());
            assert!(queue.wait(|| Some(())).await.is_none(), "full");
            for n in 1..=2 {
                free.set(1);
                queue.wake();
                while order.borrow().len() < n {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::join!(one('a'), one('b'), give);
        assert_eq!(*order.borrow(), [('a', true), ('b', true)]);
        assert!(!queue.is_used());
    }

    #[tokio::test]
    async fn the_time_is_limited() {
        let queue = Queue::new(1, Duration::from_millis(20));
        assert_eq!(queue.wait(|| None::<()>).await, None);
        assert!(!queue.is_used());
    }
}
