//! Frames that cost us something and carry nothing: how many are too many.

use std::time::Instant;

/// What a client has spent, and what it has earned.
pub(super) struct Flood {
    start: Instant,
    /// Frames without a head or a body in them.
    frames: u64,
    /// Streams that the client took back before they were answered.
    resets: u64,
    /// Streams that were answered.
    answered: u64,
    streams: u64,
}

/// Frames that may come at any time.
const FRAMES: u64 = 1000;
/// Bytes of heads and bodies that earn another frame.
const EARNING: u64 = 64;
/// What a second earns.
const FRAMES_A_SECOND: u64 = 20;
const RESETS_A_SECOND: u64 = 10;
/// Bytes of frames beyond eight times what they carry: nginx's own limit.
const OVERHEAD: u64 = 1 << 20;

impl Flood {
    pub fn new(max_concurrent_streams: u32) -> Flood {
        Flood {
            start: Instant::now(),
            frames: 0,
            resets: 0,
            answered: 0,
            streams: 2 * u64::from(max_concurrent_streams.max(100)),
        }
    }

    pub fn frame(&mut self) {
        self.frames += 1;
    }

    pub fn reset(&mut self) {
        self.resets += 1;
    }

    pub fn answered(&mut self) {
        self.answered += 1;
    }

    /// Whether this is a flood, where `payload` of `total` bytes were of use.
    pub fn detected(&self, total: u64, payload: u64) -> bool {
        if total / 8 > payload + OVERHEAD {
            return true;
        }
        let frames = FRAMES + payload / EARNING;
        let resets = self.streams + self.answered;
        if self.frames <= frames && self.resets <= resets {
            return false;
        }
        let seconds = self.start.elapsed().as_secs();
        self.frames > frames + seconds * FRAMES_A_SECOND
            || self.resets > resets + seconds * RESETS_A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much() {
        let mut f = Flood::new(128);
        for _ in 0..FRAMES {
            f.frame();
        }
        assert!(!f.detected(0, 0));
        f.frame();
        assert!(f.detected(0, 0) && !f.detected(0, EARNING));
        let mut f = Flood::new(128);
        for _ in 0..=2 * 128 {
            f.reset();
        }
        assert!(f.detected(0, 0));
        f.answered();
        assert!(!f.detected(0, 0));
        assert!(f.detected(9 << 20, 1 << 10));
    }
}
