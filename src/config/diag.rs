//! What is wrong, and where: nginx's one line, then the place in the text.

use std::fmt;

use super::source::{Source, SourceKind, Span};

/// A fault in a configuration, or a warning about it.
#[derive(Clone, Debug)]
pub struct Diag {
    /// How grave it is.
    pub level: Level,
    /// nginx's message, without the place.
    pub message: String,
    /// The name of the text; none where nginx names none.
    pub file: Option<String>,
    /// The line that nginx names; 0 on the command line, which has no lines.
    pub line: u32,
    /// Where the directive stands, where nginx names another line or none: shown below nginx's line.
    pub written_at: Option<String>,
    /// The place in the text.
    pub snippet: Option<Snippet>,
    /// What may be meant.
    pub help: Option<String>,
}

impl Diag {
    /// A fault without a place.
    pub fn new(level: Level, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            level,
            message: message.into(),
            file: None,
            line: 0,
            written_at: None,
            snippet: None,
            help: None,
        })
    }

    /// An `[emerg]` without a place.
    pub fn plain(message: impl Into<String>) -> Box<Self> {
        Self::new(Level::Emerg, message)
    }

    /// A fault in `source` at nginx's `line`, showing `span`.
    pub(super) fn at(
        level: Level,
        message: impl Into<String>,
        source: &Source,
        line: u32,
        span: Span,
    ) -> Box<Self> {
        let mut diag = Self::new(level, message);
        diag.file = Some(source.name.to_string());
        diag.line = if source.kind == SourceKind::CommandLine {
            0
        } else {
            line
        };
        diag.snippet = Snippet::new(source, span);
        diag
    }

    /// Takes the place out of nginx's line, for what nginx says without one; it is shown below.
    #[must_use]
    pub fn unplaced(mut self: Box<Self>) -> Box<Self> {
        if let Some(file) = self.file.take() {
            self.written_at = Some(match self.line {
                0 => file,
                line => format!("{file}:{line}"),
            });
        }
        self
    }

    /// Names another place in nginx's line, such as the end of a block; the directive's own is shown below.
    #[must_use]
    pub fn placed(self: Box<Self>, file: &str, line: u32) -> Box<Self> {
        let mut diag = self.unplaced();
        (diag.file, diag.line) = (Some(file.to_owned()), line);
        diag
    }

    /// Adds what may be meant.
    #[must_use]
    pub fn with_help(mut self: Box<Self>, help: impl Into<String>) -> Box<Self> {
        self.help = Some(help.into());
        self
    }

    /// Says what is meant if there is a name that is near: `did you mean "listen"?`.
    #[must_use]
    pub fn with_nearest<'a>(
        self: Box<Self>,
        name: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Box<Self> {
        match super::nearest(name, candidates) {
            Some(near) => self.with_help(format!("did you mean \"{near}\"?")),
            None => self,
        }
    }

    /// nginx's own line, for the error log: `MESSAGE in FILE:LINE`.
    pub fn first_line(&self) -> String {
        match (&self.file, self.line) {
            (None, _) => self.message.clone(),
            (Some(file), 0) => format!("{} in {file}", self.message),
            (Some(file), line) => format!("{} in {file}:{line}", self.message),
        }
    }

    /// Everything there is to say, behind a prefix such as `nginx: [emerg] `.
    pub fn render(&self, prefix: &str) -> String {
        format!("{prefix}{self}")
    }
}

impl fmt::Display for Diag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first_line())?;
        if let Some(place) = &self.written_at {
            write!(f, "\n  --> {place}")?;
        }
        if let Some(snippet) = &self.snippet {
            write!(f, "\n{snippet}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diag {}

/// nginx's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The configuration is refused.
    Emerg,
    /// Something must be done now.
    Alert,
    /// Critical.
    Crit,
    /// An error.
    Error,
    /// The configuration is accepted, but is hardly meant so.
    Warn,
    /// Worth a notice.
    Notice,
    /// Information.
    Info,
    /// For finding faults.
    Debug,
}

impl Level {
    /// nginx's name of the level, as it stands in brackets in a log.
    pub fn name(self) -> &'static str {
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
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A line of a configuration text with a part of it marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// Its 1-based number.
    pub line: u32,
    /// What stands before the mark.
    pub before: String,
    /// What is marked.
    pub marked: String,
    /// What stands behind the mark.
    pub after: String,
}

/// How many characters of a long line are shown on each side of the mark, and within it.
const WINDOW: usize = 60;

impl Snippet {
    fn new(source: &Source, span: Span) -> Option<Self> {
        let text = &source.bytes;
        let start = (span.start as usize).min(text.len());
        let (head, tail) = text.split_at_checked(start)?;
        let before = head.rsplit(|b| *b == b'\n').next().unwrap_or_default();
        let tail = tail.split(|b| *b == b'\n').next().unwrap_or_default();
        if before.is_empty() && tail.is_empty() {
            return None;
        }
        let width = (span.end.saturating_sub(span.start) as usize).min(tail.len());
        let (marked, after) = tail.split_at_checked(width)?;
        Some(Self {
            line: span.line,
            before: last(before),
            marked: first(marked),
            after: first(after.trim_ascii_end()),
        })
    }
}

impl fmt::Display for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line;
        let pad: String = self
            .before
            .chars()
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let carets = "^".repeat(self.marked.chars().count().max(1));
        let gutter = line.max(1).ilog10() as usize + 1;
        writeln!(f, "  {line} | {}{}{}", self.before, self.marked, self.after)?;
        write!(f, "  {:gutter$} | {pad}{carets}", "")
    }
}

/// The end of a text, fit for a terminal.
fn last(text: &[u8]) -> String {
    let text = printable(text);
    match text.char_indices().rev().nth(WINDOW) {
        Some((at, c)) => format!("…{}", text.get(at + c.len_utf8()..).unwrap_or_default()),
        None => text,
    }
}

/// The beginning of a text, fit for a terminal.
fn first(text: &[u8]) -> String {
    let text = printable(text);
    match text.char_indices().nth(WINDOW) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// Keeps control characters of a file from reaching the operator's terminal.
fn printable(text: &[u8]) -> String {
    let shown = |c: char| {
        if c.is_control() && c != '\t' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    String::from_utf8_lossy(text).chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_text;

    #[test]
    fn the_whole_message() {
        let tree = parse_text(
            b"events {}\nhttp {\n\tlisen  80; # x\n}\n",
            "/etc/nginx/nginx.conf",
        );
        let http = tree.root.items[1].block.as_ref().unwrap();
        let diag = http.items[0].unknown_directive(["include", "listen", "server"]);
        let text = "nginx: [emerg] unknown directive \"lisen\" in /etc/nginx/nginx.conf:3\n  \
                    3 | \tlisen  80; # x\n    | \t^^^^^\nhelp: did you mean \"listen\"?";
        assert_eq!(diag.render(&format!("nginx: [{}] ", diag.level)), text);
        assert_eq!(
            diag.first_line(),
            "unknown directive \"lisen\" in /etc/nginx/nginx.conf:3"
        );
    }

    #[test]
    fn a_mark_may_be_an_argument_on_another_line() {
        let tree = parse_text(b"a b\n  \xc3\xa9 c\n;", "f");
        let diag = tree.root.items[0].error_at(1, "m");
        assert_eq!(diag.to_string(), "m in f:3\n  2 |   é c\n    |   ^");
        assert_eq!(
            tree.root.items[0].error_at(7, "m").to_string(),
            "m in f:3\n  1 | a b\n    | ^"
        );
    }

    #[test]
    fn the_command_line_has_no_lines() {
        let tree = parse_text(b"daemon x;", "command line");
        assert_eq!(
            tree.root.items[0].error("m").first_line(),
            "m in command line"
        );
    }

    #[test]
    fn the_first_line_names_the_place_that_nginx_names() {
        let tree = parse_text(b"a b;\n", "f");
        let diag = || tree.root.items[0].error("m");
        let unplaced = diag().unplaced();
        assert_eq!(unplaced.first_line(), "m");
        assert_eq!(unplaced.to_string(), "m\n  --> f:1\n  1 | a b;\n    | ^");
        let placed = diag().placed("g", 7);
        assert_eq!(placed.first_line(), "m in g:7");
        assert_eq!(
            placed.to_string(),
            "m in g:7\n  --> f:1\n  1 | a b;\n    | ^"
        );
    }

    #[test]
    fn no_place_no_file() {
        assert_eq!(Diag::new(Level::Warn, "m").to_string(), "m");
    }

    #[test]
    fn long_lines_are_cut_and_control_characters_replaced() {
        let text = format!("{} \u{1b}[2J x;", "b".repeat(200));
        let tree = parse_text(text.as_bytes(), "f");
        let snippet = tree.root.items[0].error_at(1, "m").snippet.unwrap();
        assert_eq!(snippet.before.chars().count(), WINDOW + 1);
        assert!(snippet.before.ends_with("\u{fffd}[2J "), "{snippet:?}");
        assert!(
            tree.root.items[0]
                .error("m")
                .snippet
                .unwrap()
                .marked
                .ends_with('…')
        );
    }
}
