//! Logs: the error log, access-log files (buffered, gzipped, reopened) and syslog, in nginx's formats.
//!
//! Nothing here ever fails a request: a full disk or a dead syslog server costs lines, never an answer.
//! A function that could not write returns what is worth reporting (already limited in rate), so that the
//! caller can log it with the context of its request.

mod cache;
mod error;
mod file;
mod level;
mod line;
mod syslog;
mod writer;

use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::time::{ClockId, clock_gettime};

pub use cache::{CacheLimits, FileCache};
pub use error::{
    ErrorLog, Sink, Target, console, install_bridge, process_log, set_process_log, use_stderr,
};
pub use file::{LogFile, LogFiles, OpenError, WriteError};
pub use level::{DebugMask, Level, Threshold};
pub use line::{Context, Line, MAX_ERROR_STR, Record, RequestContext};
pub use syslog::{SendError, SyslogConfig, SyslogPeer};
pub use writer::{AccessLogError, AccessLogs, AccessWriter, Buffering};

/// Access log when the configuration names none (`--http-log-path`).
pub const HTTP_LOG_PATH: &str = "/var/log/nginx/access.log";

/// Writes one line to an [`ErrorLog`]; the message is only formatted when the log wants the level.
///
/// `error_log!(log, Level::Error, conn, "open() \"{path}\" failed")`, where `conn` is the `Option<u64>` number
/// of the connection, shown as `*17`.
#[macro_export]
macro_rules! error_log {
    ($log:expr, $level:expr, $conn:expr, $($message:tt)+) => {{
        let (log, level) = (&$log, $level);
        if log.enabled(level) {
            log.write(level, $conn, ::core::format_args!($($message)+));
        }
    }};
}

/// ` (28: No space left on device)`: how nginx ends a message about a failed system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number behind `error`; 0, which prints nothing, if the system did not set one.
    pub fn of(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return Ok(());
        }
        // std asks the C library for the text and adds a suffix of its own.
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        write!(f, " ({}: {text})", self.0)
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(errno: nix::errno::Errno) -> Self {
        Self(errno as i32)
    }
}

/// Local time to the second, in the forms of the error log and of syslog (RFC 3164 section 4.1.2).
#[derive(Clone, Copy)]
struct Stamp {
    second: i64,
    /// `2026/11/22 10:00:00`
    error: [u8; 19],
    /// `Nov 22 10:00:00`
    syslog: [u8; 15],
}

/// The present second, formatted at most once per thread and second.
fn stamp() -> Stamp {
    const NEVER: Stamp = Stamp {
        second: i64::MIN,
        error: [b' '; 19],
        syslog: [b' '; 15],
    };
    thread_local! {
        static LAST: Cell<Stamp> = const { Cell::new(NEVER) };
    }
    let second = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(0, |now| now.tv_sec());
    let last = LAST.get();
    if last.second == second {
        return last;
    }
    let fresh = Stamp::new(second, TimeZone::system());
    LAST.set(fresh);
    fresh
}

impl Stamp {
    fn new(second: i64, zone: TimeZone) -> Self {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let at = Timestamp::from_second(second)
            .unwrap_or_default()
            .to_zoned(zone);
        let (month, day) = (at.month(), at.day());
        let (hour, minute, sec) = (at.hour(), at.minute(), at.second());
        let name = MONTHS
            .get(usize::try_from(month - 1).unwrap_or(0))
            .unwrap_or(&"Jan");

        let mut stamp = Self {
            second,
            error: [b' '; 19],
            syslog: [b' '; 15],
        };
        // A slice is a writer that stops at its end, so an odd year cannot overrun.
        let _ = write!(
            &mut stamp.error[..],
            "{:4}/{month:02}/{day:02} {hour:02}:{minute:02}:{sec:02}",
            at.year()
        );
        let _ = write!(
            &mut stamp.syslog[..],
            "{name} {day:2} {hour:02}:{minute:02}:{sec:02}"
        );
        stamp
    }
}

/// Seconds of the monotonic clock, never 0.
fn monotonic_second() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(1, |now| now.tv_sec() + 1)
}

/// Lets one event through per period.
struct RateLimit {
    period: i64,
    last: AtomicI64,
}

impl RateLimit {
    /// `period` is in seconds.
    const fn new(period: i64) -> Self {
        Self {
            period,
            last: AtomicI64::new(0),
        }
    }

    fn pass(&self) -> bool {
        let now = monotonic_second();
        let last = self.last.load(Ordering::Relaxed);
        (last == 0 || now - last >= self.period)
            && self
                .last
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_padded_as_in_nginx() {
        let stamp = Stamp::new(0, TimeZone::UTC);
        assert_eq!(&stamp.error, b"1970/01/01 00:00:00");
        assert_eq!(&stamp.syslog, b"Jan  1 00:00:00");
        let stamp = Stamp::new(1_795_341_600, TimeZone::UTC);
        assert_eq!(&stamp.error, b"2026/11/22 10:00:00");
        assert_eq!(&stamp.syslog, b"Nov 22 10:00:00");
    }

    #[test]
    fn errno_has_the_text_of_the_c_library() {
        assert_eq!(Errno(28).to_string(), " (28: No space left on device)");
        assert_eq!(
            Errno(11).to_string(),
            " (11: Resource temporarily unavailable)"
        );
        assert_eq!(Errno(0).to_string(), "");
    }

    #[test]
    fn rate_limit_lets_one_through() {
        let limit = RateLimit::new(3600);
        assert!(limit.pass());
        assert!(!limit.pass());
    }
}
