//! Severities of the error log and what a log lets through.

use std::fmt;
use std::ops::BitOr;

/// A severity; the greater, the less severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Level {
    Emerg = 1,
    Alert,
    Crit,
    Error,
    Warn,
    Notice,
    Info,
    Debug,
}

impl Level {
    const ALL: [Self; 8] = [
        Self::Emerg,
        Self::Alert,
        Self::Crit,
        Self::Error,
        Self::Warn,
        Self::Notice,
        Self::Info,
        Self::Debug,
    ];

    /// The word of the `error_log` directive.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Emerg => "emerg",
            Self::Alert => "alert",
            Self::Crit => "crit",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The level named `word`, exactly as the `error_log` directive writes it.
    pub fn from_name(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str().as_bytes() == word)
    }

    /// The severity of RFC 3164: 0 for emerg to 7 for debug.
    pub fn severity(self) -> u8 {
        self as u8 - 1
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warn,
            log::Level::Info => Self::Info,
            log::Level::Debug | log::Level::Trace => Self::Debug,
        }
    }
}

/// The parts of the server whose debug lines are wanted (`debug_core` … `debug_stream`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DebugMask(u8);

#[allow(missing_docs)]
impl DebugMask {
    pub const NONE: Self = Self(0);
    pub const CORE: Self = Self(1);
    pub const ALLOC: Self = Self(1 << 1);
    pub const MUTEX: Self = Self(1 << 2);
    pub const EVENT: Self = Self(1 << 3);
    pub const HTTP: Self = Self(1 << 4);
    pub const MAIL: Self = Self(1 << 5);
    pub const STREAM: Self = Self(1 << 6);
    pub const ALL: Self = Self(0x7f);

    const NAMES: [(&'static str, Self); 7] = [
        ("debug_core", Self::CORE),
        ("debug_alloc", Self::ALLOC),
        ("debug_mutex", Self::MUTEX),
        ("debug_event", Self::EVENT),
        ("debug_http", Self::HTTP),
        ("debug_mail", Self::MAIL),
        ("debug_stream", Self::STREAM),
    ];

    /// Whether the two have a part in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn from_name(word: &[u8]) -> Option<Self> {
        Self::NAMES
            .into_iter()
            .find(|(name, _)| name.as_bytes() == word)
            .map(|(_, mask)| mask)
    }
}

impl BitOr for DebugMask {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a sink lets through: everything at least as severe as `level`, and the debug lines of `debug`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// The least severe level that is written.
    pub level: Level,
    /// The parts whose lines are written when `level` is [`Level::Debug`].
    pub debug: DebugMask,
}

impl Threshold {
    /// Everything at least as severe as `level`; with [`Level::Debug`], every part.
    pub const fn new(level: Level) -> Self {
        let debug = if matches!(level, Level::Debug) {
            DebugMask::ALL
        } else {
            DebugMask::NONE
        };
        Self { level, debug }
    }

    /// The words after the file of `error_log`; none mean `error`.
    ///
    /// # Errors
    /// nginx's own message about a word that is unknown, repeated, or does not go with those before it.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, String> {
        let mut level = None;
        let mut masks = DebugMask::NONE;
        for word in words {
            let shown = || String::from_utf8_lossy(word);
            if let Some(named) = Level::from_name(word) {
                if level.is_some() || masks != DebugMask::NONE {
                    return Err(format!("duplicate log level \"{}\"", shown()));
                }
                level = Some(named);
            } else if let Some(mask) = DebugMask::from_name(word)
                && level.is_none()
            {
                masks = masks | mask;
            } else {
                return Err(format!("invalid log level \"{}\"", shown()));
            }
        }
        Ok(match level {
            Some(level) => Self::new(level),
            None if masks == DebugMask::NONE => Self::new(Level::Error),
            // A part alone asks for all the levels above it, too.
            None => Self {
                level: Level::Debug,
                debug: masks,
            },
        })
    }

    /// Whether a line of `level` passes; `part` only counts for debug lines.
    pub fn admits(self, level: Level, part: DebugMask) -> bool {
        level <= self.level && (level != Level::Debug || self.debug.intersects(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Threshold, String> {
        Threshold::parse(words.split_whitespace().map(str::as_bytes))
    }

    #[test]
    fn levels_as_the_directive_takes_them() {
        assert_eq!(parse("").unwrap(), Threshold::new(Level::Error));
        assert_eq!(parse("warn").unwrap(), Threshold::new(Level::Warn));
        assert_eq!(parse("debug").unwrap().debug, DebugMask::ALL);
        let parts = parse("debug_http debug_core").unwrap();
        assert_eq!(
            parts,
            Threshold {
                level: Level::Debug,
                debug: DebugMask::HTTP | DebugMask::CORE
            }
        );
        assert!(parts.admits(Level::Info, DebugMask::NONE));
        assert!(parts.admits(Level::Debug, DebugMask::HTTP));
        assert!(!parts.admits(Level::Debug, DebugMask::EVENT));
    }

    #[test]
    fn refusals_as_in_nginx() {
        assert_eq!(
            parse("warn error").unwrap_err(),
            "duplicate log level \"error\""
        );
        assert_eq!(
            parse("debug_http warn").unwrap_err(),
            "duplicate log level \"warn\""
        );
        assert_eq!(
            parse("warn debug_http").unwrap_err(),
            "invalid log level \"debug_http\""
        );
        assert_eq!(parse("Warn").unwrap_err(), "invalid log level \"Warn\"");
    }

    #[test]
    fn every_name_round_trips() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.as_str().as_bytes()), Some(level));
        }
        assert_eq!(Level::Error.severity(), 3);
    }
}
