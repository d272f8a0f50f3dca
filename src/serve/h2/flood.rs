//! What a client costs that carries nothing, and when that is too much.
//!
//! A client that makes us work is what a server is for; a flood is what costs us and carries nothing, *relative to the
//! useful work* on the same connection. Two things are reckoned up, each with an [`Allowance`]: a costly frame takes
//! from it, work and time give back, and the connection ends with ENHANCE_YOUR_CALM once more was taken than there was.
//!
//! **Frames.** Each one that carries nothing costs one frame: PING, acknowledged or not, WINDOW_UPDATE, SETTINGS (and an
//! eighth for each entry and for each stream whose window it changes), empty DATA without END_STREAM, CONTINUATION,
//! GOAWAY, unknown types, and anything for a stream that has ended. PRIORITY has nginx's own limit (`frames`).
//!
//! Work is what the clients of HTTP/2 answer with such frames:
//! * DATA in either direction. What counts is the message and not its size: Go, Java and C++ send up to two
//!   WINDOW_UPDATE frames and a PING (to measure the bandwidth) for whatever they receive, so a frame of DATA is worth
//!   four, and each byte in it one, since it may hold several messages (`allowance::worth_of_data`). A frame that the
//!   client's own window has cut is worth an eighth of a frame for each byte: windows of 8 bytes last for ever, those of
//!   one byte do not;
//! * an answered request, whatever its size: 16 frames;
//! * time: 100 frames a second, for the keep-alive pings of a connection that is idle.
//!
//! What was not used is kept: a client may acknowledge late what it has been sent, up to the bytes of a default window.
//!
//! **Resets.** A request is bounded by its place, of which there are `http2_max_concurrent_streams`: while it is served
//! no other takes it. Rapid reset (CVE-2023-44487) gets around that, because a place is free at once after RST_STREAM. So
//! a stream that is reset is taken to have held its place for 25 ms at least, and what is missing to that is charged.
//! All places together give back as much time as passes: 128 of them are worth 5,120 streams a second that are reset
//! before anything has happened, and as many as one likes that have lived longer, such as calls with a deadline of 50 ms.
//! Each answered request gives back one place, for clients that ask twice and take the first answer. 2,000 resets may
//! come at once, as when a browser leaves a page or a client gives up its calls as fast as it can.
//!
//! It makes no difference who sends RST_STREAM: streams that the client makes us reset, by a window that is too large or
//! frames for what it has ended itself (CVE-2025-8671), cost the same. A place is not free before the request that held
//! it has come to its end, so that neither can have more requests served at once than there are places.
//!
//! nginx reckons with bytes of frames and payload (one to eight beyond a mebibyte) and 256 streams in one read; streams
//! that are reset are bounded by `keepalive_requests`.

use crate::http::h2::allowance::{Allowance, FRAME, worth_of_data};
use std::time::{Duration, Instant};

/// What a client may still cost.
pub(super) struct Flood {
    /// Eighths of a frame.
    frames: Allowance,
    /// Microseconds of places.
    places: Allowance,
}

/// Frames that an answered request is worth.
const ANSWERED: i64 = 16 * FRAME;
/// Entries of SETTINGS, or windows that it changes, that cost as much as a frame.
const ENTRIES: usize = 8;
/// For how long a stream that is reset is taken to have held its place.
const PLACE: Duration = Duration::from_millis(25);
/// The same, microseconds.
const PLACE_MICROS: i64 = PLACE.as_micros() as i64;
/// Streams that may be reset at once.
const RESETS: i64 = 2000;

impl Flood {
    pub fn new(max_concurrent_streams: u32) -> Flood {
        let places = i64::from(max_concurrent_streams.max(1));
        let burst = RESETS * PLACE_MICROS;
        Flood {
            frames: Allowance::frames(),
            places: Allowance::new(burst, burst, places * 1_000_000),
        }
    }

    /// A frame that carries nothing.
    pub fn frame(&mut self) {
        self.frames.spend(FRAME);
    }

    /// SETTINGS with so many entries, which changed the windows of so many streams.
    pub fn settings(&mut self, entries: usize, changed: usize) {
        let frames = 1 + (entries + changed) / ENTRIES;
        self.frames.spend(frames as i64 * FRAME);
    }

    /// So many bytes of a request's body have come.
    pub fn data(&mut self, length: usize) {
        self.frames.earn(worth_of_data(length, 1));
    }

    /// A stream was reset before it was answered.
    pub fn reset(&mut self, opened: Instant) {
        self.reset_after(opened.elapsed());
    }

    fn reset_after(&mut self, lived: Duration) {
        let missing = PLACE.saturating_sub(lived);
        self.places.spend(missing.as_micros() as i64);
    }

    /// A request was answered.
    pub fn answered(&mut self) {
        self.frames.earn(ANSWERED);
        self.places.earn(PLACE_MICROS);
    }

    /// Whether this is a flood, once the data that was sent is reckoned, too.
    pub fn is_one(&mut self, worth_of_sent: i64) -> bool {
        self.frames.earn(worth_of_sent);
        self.frames.is_spent() || self.places.is_spent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many times `one` may happen, up to a million.
    fn times(f: &mut Flood, mut one: impl FnMut(&mut Flood) -> i64) -> usize {
        (0..1_000_000)
            .find(|_| {
                let worth = one(f);
                f.is_one(worth)
            })
            .unwrap_or(usize::MAX)
    }

    #[test]
    fn frames_without_work_are_a_flood() {
        let frames = times(&mut Flood::new(128), |f| {
            f.frame();
            0
        });
        // time gives some back meanwhile
        assert!((2000..20_000).contains(&frames), "{frames}");
        let settings = times(&mut Flood::new(128), |f| {
            f.settings(100, 100);
            0
        });
        assert!(settings < 200, "{settings}");
        let trickled = times(&mut Flood::new(128), |f| {
            f.frame();
            worth_of_data(1, 0)
        });
        assert!(trickled < 20_000, "{trickled}");
    }

    #[test]
    fn frames_that_answer_work_are_none() {
        let acknowledged = |received, sent: i64| {
            times(&mut Flood::new(128), |f| {
                f.data(received);
                (0..4).for_each(|_| f.frame());
                sent
            })
        };
        assert_eq!(acknowledged(5, 0), usize::MAX);
        assert_eq!(acknowledged(0, worth_of_data(5, 1)), usize::MAX);
        // small windows
        let small = times(&mut Flood::new(128), |f| {
            f.frame();
            worth_of_data(8, 0)
        });
        assert_eq!(small, usize::MAX);
        // answers without a body
        let answered = times(&mut Flood::new(128), |f| {
            (0..10).for_each(|_| f.frame());
            f.answered();
            0
        });
        assert_eq!(answered, usize::MAX);
        // much is sent in one frame, and acknowledged message by message
        let mut f = Flood::new(128);
        assert!(!f.is_one(worth_of_data(16_384, 1)));
        for _ in 0..16_384 / 5 * 3 {
            f.frame();
        }
        assert!(!f.is_one(0));
    }

    #[test]
    fn only_rapid_resets_are_a_flood() {
        let after = |millis, answered| {
            times(&mut Flood::new(1), |f| {
                f.reset_after(Duration::from_millis(millis));
                if answered {
                    f.answered();
                }
                0
            })
        };
        let rapid = after(0, false);
        assert!((2000..3000).contains(&rapid), "{rapid}");
        let half = after(13, false);
        assert!((3900..6000).contains(&half), "{half}");
        assert_eq!(after(25, false), usize::MAX);
        assert_eq!(after(50, false), usize::MAX);
        // two requests of which the first answer is taken
        assert_eq!(after(0, true), usize::MAX);
    }
}
