//! Numbers, sizes and times as nginx writes them (`ngx_parse.c`). None stands for nginx's `invalid value`.

/// The largest value: nginx keeps all of them in signed 64 bits.
const MAX: u64 = i64::MAX as u64;

/// Digits, and nothing else.
pub fn parse_number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter()
        .try_fold(0, |number, byte| push_digit(number, *byte))
}

/// A size in bytes: digits, then perhaps `k` or `m` in either case.
pub fn parse_size(text: &[u8]) -> Option<u64> {
    match text.split_last()? {
        (b'k' | b'K', digits) => scaled(digits, 1 << 10),
        (b'm' | b'M', digits) => scaled(digits, 1 << 20),
        _ => parse_number(text),
    }
}

/// An offset in bytes: as a size, and also `g`.
pub fn parse_offset(text: &[u8]) -> Option<u64> {
    match text.split_last()? {
        (b'g' | b'G', digits) => scaled(digits, 1 << 30),
        _ => parse_size(text),
    }
}

/// A time in milliseconds: `1w2d 3h 4m5s 6ms`; a number without a unit is seconds.
pub fn parse_time_ms(text: &[u8]) -> Option<u64> {
    parse_time(text, Resolution::Milliseconds)
}

/// A time in seconds: `1y2M3w4d 5h 6m7s`; a number without a unit is seconds.
pub fn parse_time_sec(text: &[u8]) -> Option<u64> {
    parse_time(text, Resolution::Seconds)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolution {
    Seconds,
    Milliseconds,
}

/// nginx's units from coarse to fine, which is the order that they must be written in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Millisecond,
}

impl Unit {
    fn seconds(self) -> u64 {
        match self {
            Self::Year => 365 * 86_400,
            Self::Month => 30 * 86_400,
            Self::Week => 7 * 86_400,
            Self::Day => 86_400,
            Self::Hour => 3_600,
            Self::Minute => 60,
            Self::Second | Self::Millisecond => 1,
        }
    }
}

fn parse_time(text: &[u8], resolution: Resolution) -> Option<u64> {
    let per_second = if resolution == Resolution::Seconds {
        1
    } else {
        1000
    };
    let (mut total, mut number, mut digits_seen) = (0u64, 0u64, false);
    let mut finest = None;
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte.is_ascii_digit() {
            number = push_digit(number, byte)?;
            digits_seen = true;
            continue;
        }
        let unit = match byte {
            b'y' if resolution == Resolution::Seconds => Unit::Year,
            b'M' if resolution == Resolution::Seconds => Unit::Month,
            b'w' => Unit::Week,
            b'd' => Unit::Day,
            b'h' => Unit::Hour,
            b'm' if rest.first() == Some(&b's') => {
                rest = rest.get(1..).unwrap_or_default();
                if resolution == Resolution::Seconds {
                    return None;
                }
                Unit::Millisecond
            }
            b'm' => Unit::Minute,
            b's' | b' ' => Unit::Second,
            _ => return None,
        };
        if finest.is_some_and(|finest| finest >= unit) {
            return None;
        }
        // A blank in the place of a unit ends the units; only seconds without a unit may follow.
        finest = Some(if byte == b' ' {
            Unit::Millisecond
        } else {
            unit
        });
        let scale = if unit == Unit::Millisecond {
            1
        } else {
            unit.seconds() * per_second
        };
        total = add(total, number, scale)?;
        number = 0;
        rest = rest.trim_ascii_start_spaces();
    }
    if !digits_seen {
        return None;
    }
    add(total, number, per_second)
}

fn add(total: u64, number: u64, scale: u64) -> Option<u64> {
    total
        .checked_add(number.checked_mul(scale)?)
        .filter(|sum| *sum <= MAX)
}

fn scaled(digits: &[u8], scale: u64) -> Option<u64> {
    add(0, parse_number(digits)?, scale)
}

fn push_digit(number: u64, byte: u8) -> Option<u64> {
    let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
    number
        .checked_mul(10)?
        .checked_add(digit)
        .filter(|number| *number <= MAX)
}

trait Spaces {
    fn trim_ascii_start_spaces(&self) -> &Self;
}

impl Spaces for [u8] {
    /// Without the leading blanks; unlike `trim_ascii_start`, tabs and line feeds stay.
    fn trim_ascii_start_spaces(&self) -> &Self {
        let blanks = self.iter().take_while(|byte| **byte == b' ').count();
        self.get(blanks..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse_number(b"0"), Some(0));
        assert_eq!(parse_number(b"007"), Some(7));
        assert_eq!(parse_number(b"9223372036854775807"), Some(MAX));
        for bad in [
            "",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1k",
            "9223372036854775808",
            "99999999999999999999",
            "0x1",
        ] {
            assert_eq!(parse_number(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in [
            ("0", 0),
            ("1024", 1024),
            ("8k", 8192),
            ("8K", 8192),
            ("2m", 2 << 20),
            ("2M", 2 << 20),
        ] {
            assert_eq!(
                (parse_size(text.as_bytes()), parse_offset(text.as_bytes())),
                (Some(size), Some(size)),
                "{text}"
            );
        }
        assert_eq!(
            (parse_size(b"1g"), parse_offset(b"1g"), parse_offset(b"3G")),
            (None, Some(1 << 30), Some(3 << 30))
        );
        assert_eq!(
            parse_size(b"9007199254740991k"),
            Some(9_007_199_254_740_991 << 10)
        );
        for bad in [
            "",
            "k",
            "M",
            "1kk",
            "1kb",
            "k1",
            "-1k",
            "9007199254740992k",
            "8796093022208m",
        ] {
            assert_eq!(
                (parse_size(bad.as_bytes()), parse_offset(bad.as_bytes())),
                (None, None),
                "{bad}"
            );
        }
        assert_eq!(parse_offset(b"8589934592g"), None);
    }

    #[test]
    fn times() {
        for (text, sec) in [
            ("0", 0),
            ("60", 60),
            ("60s", 60),
            ("1h", 3600),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("1h   30m", 5400),
            ("1w2d", 777_600),
            ("1h5", 3605),
            ("1 5", 6),
            ("1h5 ", 3605),
            ("1hm", 3600),
        ] {
            assert_eq!(
                (
                    parse_time_sec(text.as_bytes()),
                    parse_time_ms(text.as_bytes())
                ),
                (Some(sec), Some(sec * 1000)),
                "{text}"
            );
        }
        assert_eq!(
            (parse_time_sec(b"1y"), parse_time_ms(b"1y")),
            (Some(31_536_000), None)
        );
        assert_eq!(
            (parse_time_sec(b"2M"), parse_time_ms(b"2M")),
            (Some(5_184_000), None)
        );
        assert_eq!(
            (parse_time_sec(b"1y6M"), parse_time_sec(b"6M1y")),
            (Some(47_088_000), None)
        );
        assert_eq!(
            (parse_time_sec(b"5ms"), parse_time_ms(b"5ms")),
            (None, Some(5))
        );
        assert_eq!(
            (parse_time_sec(b"1s ms1"), parse_time_ms(b"1s ms1")),
            (None, Some(2000))
        );
        assert_eq!(
            (parse_time_ms(b"1s500ms"), parse_time_ms(b"1ms5")),
            (Some(1500), Some(5001))
        );
        for bad in [
            "", " ", "s", "x", "1x", "1s1s", "1m1h", "1 5s", "1 5ms", "1s 5 ", "-1", "1.5s",
            "1h\t5m",
        ] {
            assert_eq!(
                (
                    parse_time_sec(bad.as_bytes()),
                    parse_time_ms(bad.as_bytes())
                ),
                (None, None),
                "{bad}"
            );
        }
        assert_eq!(parse_time_sec(b"9223372036854775807"), Some(MAX));
        assert_eq!(parse_time_sec(b"9223372036854775807s 1"), None);
        assert_eq!(
            parse_time_ms(b"9223372036854775"),
            Some(9_223_372_036_854_775_000)
        );
        assert_eq!(parse_time_ms(b"9223372036854776"), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[0-9yMwdhms kKgG]{0,24}") {
            let text = text.as_bytes();
            let _ = (parse_number(text), parse_size(text), parse_offset(text), parse_time_ms(text), parse_time_sec(text));
        }

        #[test]
        fn numbers_read_back(n in 0..=MAX) {
            prop_assert_eq!(parse_number(n.to_string().as_bytes()), Some(n));
            prop_assert_eq!(parse_time_sec(format!("{n}s").as_bytes()), Some(n));
        }
    }
}
