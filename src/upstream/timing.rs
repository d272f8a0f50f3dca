//! How long a peer takes to answer: the averages that `least_time` and `ewma` choose by.

use std::time::Duration;

/// What is known of a peer's times.
#[derive(Debug, Clone, Default)]
pub struct Timing {
    /// Moving average up to the response's head, milliseconds; 0 is "not known yet".
    pub header: u64,
    /// Moving average of whole responses, milliseconds; 0 is "not known yet".
    pub response: u64,
    /// Requests under way, for `least_time … inflight`.
    pub inflight: Inflight,
    /// For `ewma`.
    pub peak: PeakEwma,
}

/// nginx's moving average: a new value counts for a twentieth; the first one is taken as it is.
pub fn average(old: u64, value: u64) -> u64 {
    if old == 0 {
        value
    } else {
        // nginx rounds the half up in floating point
        (0.5 + value as f64 * 0.05 + old as f64 * 0.95) as u64
    }
}

/// How long the requests that a peer has not answered yet have waited.
#[derive(Debug, Clone, Default)]
pub struct Inflight {
    /// How many there are.
    pub requests: u64,
    /// What they had waited together when that number changed last, milliseconds.
    waited: u64,
    /// When it changed last, milliseconds.
    changed: u64,
    /// Moving average of what one of them waits, milliseconds.
    pub time: u64,
}

impl Inflight {
    /// Takes the present waiting time into the average.
    pub fn sample(&mut self, now: u64) {
        if let Some(each) = self.waited.checked_div(self.requests) {
            self.time = average(
                self.time,
                each.saturating_add(now.saturating_sub(self.changed)),
            );
        }
    }

    /// One request more.
    pub fn begin(&mut self, now: u64) {
        self.account(now);
        self.changed = now;
        self.requests += 1;
    }

    /// One request, which waited for `took` milliseconds, is answered or given up.
    pub fn end(&mut self, took: u64, now: u64) {
        if self.requests <= 1 {
            self.waited = 0;
        } else {
            self.account(now);
            self.waited = self.waited.saturating_sub(took);
            self.changed = now;
        }
        self.requests = self.requests.saturating_sub(1);
    }

    fn account(&mut self, now: u64) {
        let each = now.saturating_sub(self.changed);
        if self.requests > 0 {
            self.waited = self
                .waited
                .saturating_add(each.saturating_mul(self.requests));
        }
    }
}

/// A moving average that follows a rise at once and forgets it slowly (Finagle's peak EWMA).
#[derive(Debug, Clone, Default)]
pub struct PeakEwma {
    /// Microseconds; 0 is "not known yet".
    cost: f64,
    /// When it was touched last, milliseconds.
    stamp: u64,
}

/// How long a peak is remembered: after so many milliseconds a third of it is left.
const DECAY: f64 = 10_000.0;

impl PeakEwma {
    /// Takes a response time into account.
    pub fn observe(&mut self, took: Duration, now: u64) {
        let took = took.as_micros() as f64;
        if took > self.cost {
            self.cost = took;
        } else {
            let weight = self.weight(now);
            self.cost = self.cost * weight + took * (1.0 - weight);
        }
        self.stamp = now;
    }

    /// The average at `now`, microseconds: without new answers it sinks, so that a slow peer is asked again.
    pub fn cost(&self, now: u64) -> f64 {
        self.cost * self.weight(now)
    }

    fn weight(&self, now: u64) -> f64 {
        let age = now.saturating_sub(self.stamp) as f64;
        (-age / DECAY).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_nginx_s() {
        assert_eq!(average(0, 100), 100);
        assert_eq!(average(100, 200), 105);
        assert_eq!(average(100, 0), 95);
        assert_eq!(average(10, 11), 10);
        assert_eq!(average(10, 20), 11);
    }

    #[test]
    fn waiting_requests_are_counted_together() {
        let mut inflight = Inflight::default();
        inflight.begin(1000);
        inflight.begin(1100);
        // 100 ms of the first one, then 50 ms of both
        inflight.sample(1150);
        assert_eq!(inflight.time, 100);
        inflight.end(150, 1150);
        assert_eq!((inflight.requests, inflight.waited), (1, 50));
        inflight.end(200, 1300);
        assert_eq!((inflight.requests, inflight.waited), (0, 0));
        inflight.end(1, 1300);
        assert_eq!(inflight.requests, 0);
    }

    #[test]
    fn a_peak_is_followed_at_once_and_forgotten_slowly() {
        let mut ewma = PeakEwma::default();
        ewma.observe(Duration::from_millis(10), 1000);
        ewma.observe(Duration::from_millis(100), 1001);
        assert_eq!(ewma.cost(1001), 100_000.0);
        ewma.observe(Duration::from_millis(10), 2001);
        assert!((91_000.0..92_000.0).contains(&ewma.cost(2001)));
        assert!(ewma.cost(30_000) < 6000.0);
    }
}
