//! HTTP dates (RFC 9110, section 5.6.7) and each thread's clock with its ready-made texts.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The time and its texts; local time follows `TZ` or `/etc/localtime`, as found when first asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since the epoch.
    pub sec: i64,
    /// Milliseconds of the second, 0 to 999.
    pub msec: u16,
    /// `Sun, 22 Nov 2026 10:00:00 GMT`, for `Date`.
    pub http_date: [u8; 29],
    /// `22/Nov/2026:10:00:00 +0000`, `$time_local`.
    pub time_local: [u8; 26],
    /// `2026-11-22T10:00:00+00:00`, `$time_iso8601`.
    pub time_iso8601: [u8; 25],
    /// `2026/11/22 10:00:00`, local, for the error log.
    pub error_log: [u8; 19],
    /// `Nov 22 10:00:00`, local, for syslog (RFC 3164).
    pub syslog: [u8; 15],
}

impl Clock {
    /// The texts of a moment, `offset` seconds east of Greenwich.
    fn at(sec: i64, msec: u16, offset: i32) -> Self {
        let local = Civil::of(sec.saturating_add(i64::from(offset)));
        let (year, month, day) = (
            u32::from(local.year),
            u32::from(local.month),
            u32::from(local.day),
        );
        let minutes = offset.unsigned_abs() / 60;
        let sign: &[u8] = if offset < 0 { b"-" } else { b"+" };

        let mut time_local = Text::<26>::default();
        time_local
            .number(day, 2)
            .put(b"/")
            .put(local.month_name())
            .put(b"/")
            .number(year, 4)
            .put(b":");
        time_local
            .time(&local)
            .put(b" ")
            .put(sign)
            .number(minutes / 60, 2)
            .number(minutes % 60, 2);

        let mut iso8601 = Text::<25>::default();
        iso8601
            .number(year, 4)
            .put(b"-")
            .number(month, 2)
            .put(b"-")
            .number(day, 2)
            .put(b"T");
        iso8601
            .time(&local)
            .put(sign)
            .number(minutes / 60, 2)
            .put(b":")
            .number(minutes % 60, 2);

        let mut error_log = Text::<19>::default();
        error_log
            .number(year, 4)
            .put(b"/")
            .number(month, 2)
            .put(b"/")
            .number(day, 2)
            .put(b" ")
            .time(&local);

        let mut syslog = Text::<15>::default();
        syslog.put(local.month_name()).put(b" ");
        if day < 10 {
            syslog.put(b" ").number(day, 1);
        } else {
            syslog.number(day, 2);
        }
        syslog.put(b" ").time(&local);

        Self {
            sec,
            msec,
            http_date: format(sec),
            time_local: time_local.bytes,
            time_iso8601: iso8601.bytes,
            error_log: error_log.bytes,
            syslog: syslog.bytes,
        }
    }
}

/// The time now; the texts are rebuilt only when the second has changed.
pub fn now() -> Clock {
    let (sec, msec) = coarse();
    let cached = CLOCK.try_with(Cell::get).ok().flatten();
    match cached {
        Some(clock) if clock.sec == sec => Clock { msec, ..clock },
        _ => {
            let clock = Clock::at(sec, msec, local_offset(sec));
            // A thread that is ending has no cache any more.
            let _ = CLOCK.try_with(|cell| cell.set(Some(clock)));
            clock
        }
    }
}

/// The time as of the kernel's last tick: a few milliseconds old, and cheaper.
fn coarse() -> (i64, u16) {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE) {
        Ok(t) => (
            t.tv_sec(),
            u16::try_from(t.tv_nsec() / 1_000_000).unwrap_or(0),
        ),
        Err(_) => time(),
    }
}

/// Seconds since the epoch and milliseconds of the second, without the texts.
pub fn time() -> (i64, u16) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        u16::try_from(since.subsec_millis()).unwrap_or(0),
    )
}

/// Seconds east of Greenwich that the local zone has at `sec`.
pub fn local_offset(sec: i64) -> i32 {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    let zone = ZONE.get_or_init(TimeZone::system);
    Timestamp::from_second(sec).map_or(0, |moment| zone.to_offset(moment).seconds())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`; times outside of the years 1970 to 9999 become the nearest one inside.
pub fn format(sec: i64) -> [u8; 29] {
    let date = Civil::of(sec);
    let mut text = Text::<29>::default();
    text.put(date.weekday_name())
        .put(b", ")
        .number(u32::from(date.day), 2)
        .put(b" ")
        .put(date.month_name());
    text.put(b" ")
        .number(u32::from(date.year), 4)
        .put(b" ")
        .time(&date)
        .put(b" GMT");
    text.bytes
}

/// Appends a cookie's `expires`: `Thu, 31-Dec-37 23:55:55 GMT`, with four digits of the year from 2038 on.
pub fn cookie_date(sec: i64, out: &mut Vec<u8>) {
    let date = Civil::of(sec);
    let mut text = Text::<29>::default();
    text.put(date.weekday_name())
        .put(b", ")
        .number(u32::from(date.day), 2)
        .put(b"-")
        .put(date.month_name())
        .put(b"-");
    if date.year > 2037 {
        text.number(u32::from(date.year), 4);
    } else {
        text.number(u32::from(date.year % 100), 2);
    }
    text.put(b" ").time(&date).put(b" GMT");
    out.extend_from_slice(text.bytes.get(..text.len).unwrap_or_default());
}

/// Reads any of the three formats, seconds since the epoch; the name of the day and what follows the date are ignored.
pub fn parse(value: &[u8]) -> Option<i64> {
    let comma_or_space = value.iter().position(|b| matches!(b, b',' | b' '))?;
    let asctime = value.get(comma_or_space) == Some(&b' ');
    let mut rest = Cursor(value.get(comma_or_space + 1..)?);
    rest.skip_spaces();

    let (year, month, day, seconds);
    if asctime {
        month = rest.month()?;
        rest.take(1)?;
        if rest.0.first() == Some(&b' ') {
            rest.take(1)?;
        }
        let tens = rest.digits(1)?;
        day = if rest.0.first() == Some(&b' ') {
            tens
        } else {
            tens * 10 + rest.digits(1)?
        };
        seconds = rest.time()?;
        rest.expect(b' ')?;
        year = rest.digits(4)?;
    } else {
        day = rest.digits(2)?;
        let separator = *rest.take(1)?.first()?;
        if separator != b' ' && separator != b'-' {
            return None;
        }
        month = rest.month()?;
        rest.expect(separator)?;
        year = if separator == b' ' {
            rest.digits(4)?
        } else {
            let year = rest.digits(2)?;
            year + if year < 70 { 2000 } else { 1900 }
        };
        seconds = rest.time()?;
    }
    (day <= days_in(month, year)).then(|| days_since_epoch(year, month, day) * DAY + seconds)
}

const DAY: i64 = 86400;

/// The last second of the year 9999.
const LAST: i64 = 253_402_300_799;

thread_local! {
    static CLOCK: Cell<Option<Clock>> = const { Cell::new(None) };
}

/// A moment of the Gregorian calendar.
struct Civil {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    weekday: u8,
}

impl Civil {
    fn of(sec: i64) -> Self {
        let sec = sec.clamp(0, LAST);
        let (days, second) = (sec / DAY, sec % DAY);
        // Years that begin in March put the leap day last; an era is 400 of them.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Self {
            year: (era * 400 + year_of_era + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * from_march + 2) / 5 + 1) as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
            // The epoch was a Thursday.
            weekday: ((days + 4) % 7) as u8,
        }
    }

    fn month_name(&self) -> &'static [u8] {
        name(b"JanFebMarAprMayJunJulAugSepOctNovDec", self.month - 1)
    }

    fn weekday_name(&self) -> &'static [u8] {
        name(b"SunMonTueWedThuFriSat", self.weekday)
    }
}

fn name(names: &'static [u8], index: u8) -> &'static [u8] {
    names
        .get(usize::from(index) * 3..)
        .and_then(|rest| rest.get(..3))
        .unwrap_or_default()
}

fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn days_in(month: i64, year: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A text of a known length in the making; what does not fit is dropped.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }
}

impl<const N: usize> Text<N> {
    fn put(&mut self, text: &[u8]) -> &mut Self {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + text.len()) {
            place.copy_from_slice(text);
            self.len += text.len();
        }
        self
    }

    /// The last `width` (at most four) digits of a number.
    fn number(&mut self, value: u32, width: usize) -> &mut Self {
        let digit = |unit: u32| b'0' + (value / unit % 10) as u8;
        let digits = [digit(1000), digit(100), digit(10), digit(1)];
        self.put(digits.get(4 - width..).unwrap_or_default())
    }

    fn time(&mut self, moment: &Civil) -> &mut Self {
        self.number(u32::from(moment.hour), 2).put(b":");
        self.number(u32::from(moment.minute), 2)
            .put(b":")
            .number(u32::from(moment.second), 2)
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.take(1)? == [byte]).then_some(())
    }

    fn skip_spaces(&mut self) {
        while let Some(rest) = self.0.strip_prefix(b" ") {
            self.0 = rest;
        }
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        self.take(count)?.iter().try_fold(0, |value, digit| {
            digit
                .is_ascii_digit()
                .then(|| value * 10 + i64::from(digit - b'0'))
        })
    }

    /// Number of a month, told by as few letters as nginx looks at.
    fn month(&mut self) -> Option<i64> {
        Some(match self.take(3)? {
            [b'J', b'a', _] => 1,
            [b'F', ..] => 2,
            [b'M', _, b'r'] => 3,
            [b'A', b'p', _] => 4,
            [b'M', ..] => 5,
            [b'J', _, b'n'] => 6,
            [b'J', ..] => 7,
            [b'A', ..] => 8,
            [b'S', ..] => 9,
            [b'O', ..] => 10,
            [b'N', ..] => 11,
            [b'D', ..] => 12,
            _ => return None,
        })
    }

    /// A space and `hh:mm:ss`, in seconds of the day.
    fn time(&mut self) -> Option<i64> {
        self.expect(b' ')?;
        let hour = self.digits(2)?;
        self.expect(b':')?;
        let minute = self.digits(2)?;
        self.expect(b':')?;
        let second = self.digits(2)?;
        (hour <= 23 && minute <= 59 && second <= 59).then_some(hour * 3600 + minute * 60 + second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn parses_three_formats() {
        for (value, want) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Sun Nov 6 08:49:37 1994", Some(784_111_777)),
            ("Wed Nov 16 08:49:37 1994", Some(784_975_777)),
            ("x,06 Nov 1994 08:49:37", Some(784_111_777)),
            ("Sun, 06 Nov 1994 08:49:37 rubbish", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Wed, 31 Dec 1969 23:59:58 GMT", Some(-2)),
            ("Sat, 29 Feb 2020 00:00:00 GMT", Some(1_582_934_400)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400)),
            ("Fri, 29 Feb 2100 00:00:00 GMT", None),
            ("Fri, 29 Feb 2019 00:00:00 GMT", None),
            ("Fri, 31 Apr 2019 00:00:00 GMT", None),
            ("Fri, 32 Jan 2019 00:00:00 GMT", None),
            ("Thursday, 01-Jan-70 00:00:00 GMT", Some(0)),
            ("Monday, 01-Jan-69 00:00:00 GMT", Some(3_124_224_000)),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:60:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:60 GMT", None),
            ("Sun, 06 Nov 1994 08:49:3", None),
            ("Sun, 06-Nov 1994 08:49:37 GMT", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Xov 1994 08:49:37 GMT", None),
            ("Sun Nov  6 08:49:37 199", None),
            ("Sunday", None),
            ("", None),
        ] {
            assert_eq!(parse(value.as_bytes()), want, "{value}");
        }
    }

    #[test]
    fn formats() {
        assert_eq!(text(&format(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(text(&format(951_782_399)), "Mon, 28 Feb 2000 23:59:59 GMT");
        assert_eq!(text(&format(951_782_400)), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(text(&format(951_868_800)), "Wed, 01 Mar 2000 00:00:00 GMT");
        assert_eq!(text(&format(-5)), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(text(&format(i64::MAX)), "Fri, 31 Dec 9999 23:59:59 GMT");
        let cookie = |sec| {
            let mut out = Vec::new();
            cookie_date(sec, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(cookie(2_145_916_555), "Thu, 31-Dec-37 23:55:55 GMT");
        assert_eq!(cookie(2_145_916_800), "Fri, 01-Jan-2038 00:00:00 GMT");
        assert_eq!(cookie(0), "Thu, 01-Jan-70 00:00:00 GMT");
    }

    #[test]
    fn clock_texts() {
        let clock = Clock::at(1_795_341_600, 7, 0);
        assert_eq!(text(&clock.http_date), "Sun, 22 Nov 2026 10:00:00 GMT");
        assert_eq!(text(&clock.time_local), "22/Nov/2026:10:00:00 +0000");
        assert_eq!(text(&clock.time_iso8601), "2026-11-22T10:00:00+00:00");
        assert_eq!(text(&clock.error_log), "2026/11/22 10:00:00");
        assert_eq!(text(&clock.syslog), "Nov 22 10:00:00");
        let west = Clock::at(784_111_777, 0, -(3 * 3600 + 1800));
        assert_eq!(text(&west.http_date), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(text(&west.time_local), "06/Nov/1994:05:19:37 -0330");
        assert_eq!(text(&west.time_iso8601), "1994-11-06T05:19:37-03:30");
        assert_eq!(text(&west.syslog), "Nov  6 05:19:37");
        let east = Clock::at(784_111_777, 0, 5 * 3600 + 2700);
        assert_eq!(text(&east.time_local), "06/Nov/1994:14:34:37 +0545");
    }

    #[test]
    fn now_is_consistent() {
        let (before, _) = time();
        let first = now();
        let second = now();
        let (after, _) = time();
        assert!(before <= first.sec && first.sec <= second.sec && second.sec <= after);
        for clock in [first, second] {
            assert!(clock.msec < 1000);
            assert_eq!(
                clock,
                Clock::at(clock.sec, clock.msec, local_offset(clock.sec))
            );
        }
    }

    proptest! {
        #[test]
        fn round_trips(sec in 0..=LAST) {
            prop_assert_eq!(parse(&format(sec)), Some(sec));
            let moment = Timestamp::from_second(sec).unwrap();
            let other = moment.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let ours = format(sec);
            prop_assert_eq!(text(&ours), other);
        }

        #[test]
        fn never_panics(value in proptest::collection::vec(any::<u8>(), 0..40), near in "[SunNov, 0-9:-]{0,32}", sec: i64, offset in -86400i32..86400) {
            let _ = parse(&value);
            let _ = parse(near.as_bytes());
            let clock = Clock::at(sec, 0, offset);
            prop_assert!(clock.time_local.iter().all(u8::is_ascii));
            let _ = local_offset(sec);
        }
    }
}
