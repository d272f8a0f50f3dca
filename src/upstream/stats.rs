//! What the runtime API shows of a peer's work; counted in groups with a `zone`.

use super::UpstreamState;
use super::health::millis;
use super::timing::average;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counters of one peer.
#[derive(Debug, Default)]
pub struct Stats {
    /// Attempts that failed.
    pub fails: AtomicU64,
    /// How often `max_fails` took it out of use.
    pub unavail: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// When it was last chosen, milliseconds since the epoch.
    selected: AtomicU64,
    answers: Mutex<Answers>,
}

/// The responses of one peer.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// How many there were of each status, by status.
    pub codes: Vec<(u16, u64)>,
    /// Moving average up to the head, milliseconds.
    pub header_time: u64,
    /// Moving average of whole responses, milliseconds.
    pub response_time: u64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Attempts that failed.
    pub fails: u64,
    /// How often `max_fails` took it out of use.
    pub unavail: u64,
    /// When it was last chosen, milliseconds since the epoch; 0 is never.
    pub selected: u64,
    /// The responses.
    pub answers: Answers,
}

impl Stats {
    /// Takes an attempt that has ended into account.
    pub fn add(&self, state: &UpstreamState) {
        self.selected.store(millis(), Relaxed);
        self.sent.fetch_add(state.bytes_sent, Relaxed);
        self.received.fetch_add(state.bytes_received, Relaxed);
        // without a head there was no response
        let Some(head) = state.header_time else {
            return;
        };
        let mut answers = self.answers.lock();
        match answers
            .codes
            .binary_search_by_key(&state.status, |(code, _)| *code)
        {
            Ok(at) => {
                if let Some((_, count)) = answers.codes.get_mut(at) {
                    *count += 1;
                }
            }
            Err(at) => answers.codes.insert(at, (state.status, 1)),
        }
        // as for least_time, where 0 is "not known yet"
        answers.header_time = average(answers.header_time, head.max(1));
        let whole = state.response_time.unwrap_or(head);
        answers.response_time = average(answers.response_time, whole.max(1));
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            fails: self.fails.load(Relaxed),
            unavail: self.unavail.load(Relaxed),
            selected: self.selected.load(Relaxed),
            answers: self.answers.lock().clone(),
        }
    }

    /// Begins anew.
    pub fn reset(&self) {
        for counter in [
            &self.sent,
            &self.received,
            &self.fails,
            &self.unavail,
            &self.selected,
        ] {
            counter.store(0, Relaxed);
        }
        *self.answers.lock() = Answers::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_add_up() {
        let stats = Stats::default();
        let answer = |status| UpstreamState {
            status,
            header_time: Some(10),
            response_time: Some(20),
            bytes_sent: 5,
            bytes_received: 7,
            ..UpstreamState::default()
        };
        for status in [200, 404, 200] {
            stats.add(&answer(status));
        }
        stats.add(&UpstreamState {
            status: 502,
            bytes_sent: 1,
            ..UpstreamState::default()
        });
        let seen = stats.snapshot();
        assert_eq!((seen.sent, seen.received), (16, 21));
        assert_eq!(seen.answers.codes, [(200, 2), (404, 1)]);
        assert_eq!(
            (seen.answers.header_time, seen.answers.response_time),
            (10, 20)
        );
        stats.reset();
        assert!(stats.snapshot().answers.codes.is_empty());
    }
}
