//! How much a peer may cost that carries nothing, relative to the work that is done with it.

use std::time::Instant;

/// An amount that costs take from, and that work and time fill again.
///
/// Work fills it up to `most`, time only up to what it began with: a peer that sends little needs no more than a rate,
/// and one that has been sent much may acknowledge all of it afterwards. The clock is read only where the amount is used
/// up.
#[derive(Debug, Clone)]
pub struct Allowance {
    left: i64,
    burst: i64,
    most: i64,
    per_second: i64,
    /// When time last filled it; `None` while nothing was spent.
    since: Option<Instant>,
}

/// What one frame costs. Amounts of [`Allowance::frames`] are eighths of a frame.
pub const FRAME: i64 = 8;
/// Frames that may come at any time.
const BURST: i64 = 2000;
/// Frames that a second allows: keep-alive pings each 10 ms.
const PER_SECOND: i64 = 100;
/// The most frames that work allows for later. One byte of a message allows one frame, and no more bytes than the
/// window are on their way: this is for a window of the default size.
const MOST: i64 = 65_536;
/// What a DATA frame allows whatever its size: two WINDOW_UPDATE frames, a PING, and one to spare.
const MESSAGE: i64 = 4 * FRAME;

impl Allowance {
    /// An amount of `burst`, to which time adds `per_second`.
    pub fn new(burst: i64, most: i64, per_second: i64) -> Allowance {
        Allowance {
            left: burst,
            burst,
            most,
            per_second,
            since: None,
        }
    }

    /// For frames that carry nothing, in eighths of a frame.
    pub fn frames() -> Allowance {
        Allowance::new(BURST * FRAME, MOST * FRAME, PER_SECOND * FRAME)
    }

    /// Takes a cost.
    pub fn spend(&mut self, cost: i64) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
        self.left = self.left.saturating_sub(cost);
    }

    /// Adds what work is worth.
    pub fn earn(&mut self, worth: i64) {
        self.left = self.left.saturating_add(worth).min(self.most);
    }

    /// Whether more was spent than was allowed.
    pub fn is_spent(&mut self) -> bool {
        self.left < 0 && self.is_spent_at(Instant::now())
    }

    fn is_spent_at(&mut self, now: Instant) -> bool {
        let since = self.since.replace(now).unwrap_or(now);
        let micros = now.saturating_duration_since(since).as_micros();
        let gain = micros.saturating_mul(self.per_second.unsigned_abs().into()) / 1_000_000;
        let gain = i64::try_from(gain).unwrap_or(i64::MAX);
        let filled = self.left.saturating_add(gain).min(self.burst);
        self.left = self.left.max(filled);
        self.left < 0
    }
}

/// What a DATA frame with `length` bytes of data is worth to [`Allowance::frames`].
///
/// A frame that ends because `window` is used up is worth its bytes only, an eighth of a frame each: the peer decides how
/// many of those there are, by how little it lets through at a time. Any other is as long as what there was to be sent.
/// It may hold many messages, each of which may be acknowledged and be followed by a PING, so that each byte is worth a
/// frame: five for the empty message of gRPC.
pub fn worth_of_data(length: usize, window: i64) -> i64 {
    let length = i64::try_from(length).unwrap_or(i64::MAX / FRAME - MESSAGE);
    if length == 0 {
        0
    } else if window <= 0 {
        length
    } else {
        MESSAGE + length * FRAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_fills_up_to_the_beginning() {
        let mut a = Allowance::new(100, 1000, 10);
        let start = Instant::now();
        a.spend(100);
        assert!(!a.is_spent());
        a.since = Some(start);
        a.spend(21);
        assert!(a.is_spent_at(start) && a.is_spent_at(start + Duration::from_secs(1)));
        assert!(a.is_spent_at(start + Duration::from_secs(2)));
        assert!(!a.is_spent_at(start + Duration::from_millis(2100)));
        assert!(!a.is_spent_at(start + Duration::from_secs(3600)));
        assert_eq!(a.left, 100);
    }

    #[test]
    fn work_fills_beyond_it() {
        let mut a = Allowance::new(100, 1000, 10);
        a.earn(500);
        a.earn(5000);
        assert_eq!(a.left, 1000);
        // which time does not take away
        a.is_spent_at(Instant::now());
        assert_eq!(a.left, 1000);
        a.spend(1000);
        assert!(!a.is_spent());
        a.earn(i64::MAX);
        a.spend(i64::MAX);
        a.spend(i64::MAX);
        assert!(a.is_spent());
    }

    #[test]
    fn messages_are_worth_their_acknowledgements() {
        // on its own, and among others in one frame
        assert!(worth_of_data(5, 1) >= 5 * FRAME);
        assert!(worth_of_data(5000, 1) >= 1000 * 5 * FRAME);
        // windows of seven bytes and less are not worth the frames that open them
        assert!(worth_of_data(8, 0) == FRAME && worth_of_data(7, 0) < FRAME);
        assert_eq!(worth_of_data(0, 1), 0);
        assert!(worth_of_data(usize::MAX, 1) > 0);
    }
}
