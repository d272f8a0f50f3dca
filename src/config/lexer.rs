//! Words and the signs between them: quotes, escapes, comments, and where a statement ends.

use std::sync::Arc;

use super::Result;
use super::diag::{Diag, Level};
use super::source::{Source, SourceKind, Span};
use super::statement::Word;

/// Cuts one text into statements.
pub(super) struct Lexer {
    source: Arc<Source>,
    /// The next byte.
    pos: usize,
    /// The line of the next byte.
    line: u32,
    /// Where the present word, blank or comment began, and on which line: what nginx must hold in its buffer.
    start: usize,
    start_line: u32,
    /// The quote that is open.
    quote: Option<u8>,
}

/// One statement's words, and how it ended.
pub(super) struct Sentence {
    pub words: Vec<Word>,
    pub end: End,
}

/// What ended a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// `;`
    Semicolon,
    /// `{`
    Open,
    /// `}`, with no words before it
    Close,
    /// The end of the text, with no words before it
    Text,
}

/// nginx reads through a buffer of this many bytes (`NGX_CONF_BUFFER`), which a word has to fit.
const BUFFER: usize = 4096;

impl Lexer {
    pub fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            pos: 0,
            line: 1,
            start: 0,
            start_line: 1,
            quote: None,
        }
    }

    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The line of the last byte read, as nginx counts: a line feed belongs to the line that it begins.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The next statement.
    pub fn sentence(&mut self) -> Result<Sentence> {
        let mut words = Vec::new();
        self.mark(self.pos);
        loop {
            let Some(byte) = self.bump()? else {
                return if words.is_empty() {
                    Ok(Sentence {
                        words,
                        end: End::Text,
                    })
                } else {
                    Err(self.cut_off(None))
                };
            };
            self.mark(self.pos - 1);
            let mut next = match byte {
                b'#' => {
                    while !matches!(self.bump()?, None | Some(b'\n')) {}
                    self.mark(self.pos - 1);
                    continue;
                }
                b'"' | b'\'' => {
                    self.start = self.pos;
                    words.push(self.quoted(byte)?);
                    self.bump()?.ok_or_else(|| self.cut_off(None))?
                }
                byte if is_blank(byte) => continue,
                b';' | b'{' | b'}' => byte,
                byte => self.bare(byte, &mut words)?,
            };
            // Right behind a closing quote only a parenthesis may follow, for `if ($a = "b")`.
            if next == b')' {
                self.mark(self.pos - 1);
                next = self.bare(next, &mut words)?;
            }
            let end = match next {
                b';' if !words.is_empty() => End::Semicolon,
                b'{' if !words.is_empty() => End::Open,
                b'}' if words.is_empty() => End::Close,
                blank if is_blank(blank) => continue,
                b'}' => {
                    let line = words.last().map_or(self.line, |word| word.span.line);
                    let help = format!("the statement before it, on line {line}, lacks its \";\"");
                    return Err(self.unexpected().with_help(help));
                }
                _ => return Err(self.unexpected()),
            };
            return Ok(Sentence { words, end });
        }
    }

    /// The fault of meeting the byte just read.
    pub fn unexpected(&self) -> Box<Diag> {
        let at = self.pos.saturating_sub(1);
        let rest = self.source.bytes.get(at..).unwrap_or_default();
        let rest = rest.get(..4).unwrap_or(rest);
        let shown = String::from_utf8_lossy(rest)
            .chars()
            .next()
            .unwrap_or_default();
        let width = if shown == char::REPLACEMENT_CHARACTER {
            1
        } else {
            shown.len_utf8()
        };
        self.error(
            format!("unexpected \"{shown}\""),
            self.span(at, at + width, self.line),
        )
    }

    /// A fault on the present line that shows `span`.
    pub fn error(&self, message: impl Into<String>, span: Span) -> Box<Diag> {
        Diag::at(Level::Emerg, message, &self.source, self.line, span)
    }

    /// The rest of a quoted word; the opening quote has been read.
    fn quoted(&mut self, quote: u8) -> Result<Word> {
        let (open, line) = (self.start - 1, self.start_line);
        self.quote = Some(quote);
        loop {
            match self.bump()? {
                Some(b'\\') => {
                    self.bump()?;
                }
                Some(byte) if byte == quote => break,
                Some(_) => {}
                None => {
                    let help = format!(
                        "the {} opened on line {line} is never closed",
                        char::from(quote)
                    );
                    return Err(self
                        .cut_off(Some(self.span(open, self.pos, line)))
                        .with_help(help));
                }
            }
        }
        self.quote = None;
        let text = unescape(
            self.source
                .bytes
                .get(open + 1..self.pos - 1)
                .unwrap_or_default(),
        );
        Ok(Word {
            text,
            span: self.span(open, self.pos, line),
            quoted: true,
        })
    }

    /// The rest of a word without quotes, whose first byte has been read. Returns the byte that ended it.
    fn bare(&mut self, first: u8, words: &mut Vec<Word>) -> Result<u8> {
        let (start, line) = (self.start, self.start_line);
        let mut escaped = first == b'\\';
        // `{` behind a `$` belongs to the word: `${name}`.
        let mut variable = first == b'$';
        loop {
            let Some(byte) = self.bump()? else {
                return Err(self.cut_off(Some(self.span(start, self.pos, line))));
            };
            if escaped {
                escaped = false;
                continue;
            }
            if variable && byte == b'{' {
                continue;
            }
            variable = byte == b'$';
            escaped = byte == b'\\';
            if is_blank(byte) || byte == b';' || byte == b'{' {
                let text = unescape(
                    self.source
                        .bytes
                        .get(start..self.pos - 1)
                        .unwrap_or_default(),
                );
                words.push(Word {
                    text,
                    span: self.span(start, self.pos - 1, line),
                    quoted: false,
                });
                return Ok(byte);
            }
        }
    }

    /// The next byte, or none at the end.
    fn bump(&mut self) -> Result<Option<u8>> {
        let Some(&byte) = self.source.bytes.get(self.pos) else {
            return Ok(None);
        };
        if self.pos - self.start >= BUFFER && self.source.kind == SourceKind::File {
            return Err(self.too_long());
        }
        self.pos += 1;
        if byte == b'\n' {
            self.line += 1;
        }
        Ok(Some(byte))
    }

    fn mark(&mut self, start: usize) {
        self.start = start;
        self.start_line = self.line;
    }

    fn too_long(&mut self) -> Box<Diag> {
        self.line = self.start_line;
        let span = self.span(self.start, self.pos, self.line);
        let message = match self.quote {
            Some(quote) => {
                format!(
                    "too long parameter, probably missing terminating \"{}\" character",
                    char::from(quote)
                )
            }
            None => {
                let begun = self
                    .source
                    .bytes
                    .get(self.start..self.start + 10)
                    .unwrap_or_default();
                format!(
                    "too long parameter \"{}...\" started",
                    String::from_utf8_lossy(begun)
                )
            }
        };
        self.error(message, span)
    }

    fn cut_off(&self, word: Option<Span>) -> Box<Diag> {
        let message = match self.source.kind {
            SourceKind::File => "unexpected end of file, expecting \";\" or \"}\"",
            SourceKind::CommandLine => "unexpected end of parameter, expecting \";\"",
        };
        self.error(
            message,
            word.unwrap_or_else(|| self.span(self.pos, self.pos, self.line)),
        )
    }

    fn span(&self, start: usize, end: usize, line: u32) -> Span {
        // Offsets past 4 GiB only blur the place that a message shows.
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Span {
            file: self.source.id,
            line,
            start: clamp(start),
            end: clamp(end),
        }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Undoes nginx's escapes; a backslash before anything else stays.
fn unescape(raw: &[u8]) -> Box<[u8]> {
    let mut text = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let plain = match (byte, bytes.peek()) {
            (b'\\', Some(&next @ (b'"' | b'\'' | b'\\'))) => Some(next),
            (b'\\', Some(b't')) => Some(b'\t'),
            (b'\\', Some(b'r')) => Some(b'\r'),
            (b'\\', Some(b'n')) => Some(b'\n'),
            _ => None,
        };
        if plain.is_some() {
            bytes.next();
        }
        text.push(plain.unwrap_or(byte));
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Sources;

    fn lex(text: &[u8]) -> Result<Vec<(Vec<String>, End, u32)>> {
        lex_as(text, SourceKind::File)
    }

    fn lex_as(text: &[u8], kind: SourceKind) -> Result<Vec<(Vec<String>, End, u32)>> {
        let mut lexer = Lexer::new(Sources::default().add("f", text.to_vec(), kind));
        let mut all = Vec::new();
        loop {
            let sentence = lexer.sentence()?;
            if sentence.end == End::Text {
                return Ok(all);
            }
            let words = sentence
                .words
                .iter()
                .map(|w| String::from_utf8_lossy(&w.text).into_owned())
                .collect();
            all.push((words, sentence.end, lexer.line()));
        }
    }

    fn words(text: &str) -> Vec<String> {
        lex(text.as_bytes()).unwrap().remove(0).0
    }

    fn fault(text: &[u8]) -> String {
        lex(text).unwrap_err().first_line()
    }

    #[test]
    fn statements_end_where_their_sign_stands() {
        let all = lex(b"# c ;\na b\n c;\r\nd {\n}\n").unwrap();
        assert_eq!(
            all[0],
            (vec!["a".into(), "b".into(), "c".into()], End::Semicolon, 3)
        );
        assert_eq!(all[1], (vec!["d".into()], End::Open, 4));
        assert_eq!(all[2], (vec![], End::Close, 5));
    }

    #[test]
    fn words_are_unquoted_and_unescaped() {
        assert_eq!(
            words(r#"a "b c" 'd"e' "f\"g" 'h\'i' "";"#),
            ["a", "b c", "d\"e", "f\"g", "h'i", ""]
        );
        assert_eq!(
            words(r"a \t\r\n\\ \d\. b\ c \;x;"),
            ["a", "\t\r\n\\", r"\d\.", r"b\ c", r"\;x"]
        );
        assert_eq!(
            words("a b#c d}e f\"g h'i;"),
            ["a", "b#c", "d}e", "f\"g", "h'i"]
        );
        assert_eq!(
            words("a ${b}c $d${e}f ${{g;"),
            ["a", "${b}c", "$d${e}f", "${{g"]
        );
        assert_eq!(words("a \"b\nc;{}#\" # x\n d;"), ["a", "b\nc;{}#", "d"]);
        assert_eq!(words("if ($a = \"b\") {"), ["if", "($a", "=", "b", ")"]);
        assert_eq!(words("a \"b\")c;"), ["a", "b", ")c"]);
        assert_eq!(words("\u{feff}a;"), ["\u{feff}a"]);
        assert_eq!(words("a\0b;"), ["a\0b"]);
        assert_eq!(lex(b"a$ b;").unwrap()[0].0, ["a$", "b"]);
    }

    #[test]
    fn a_block_opens_right_behind_a_word() {
        assert_eq!(
            lex(b"a{b;}")
                .unwrap()
                .iter()
                .map(|s| s.1)
                .collect::<Vec<_>>(),
            [End::Open, End::Semicolon, End::Close]
        );
        assert_eq!(lex(b"a \"b\"{").unwrap()[0].1, End::Open);
    }

    #[test]
    fn spans_cover_the_words_as_written() {
        let text = b"a\n \"b c\" d;";
        let mut lexer = Lexer::new(Sources::default().add("f", text.to_vec(), SourceKind::File));
        let places: Vec<_> = lexer
            .sentence()
            .unwrap()
            .words
            .iter()
            .map(|w| (w.span.line, w.span.start, w.span.end, w.quoted))
            .collect();
        assert_eq!(
            places,
            [(1, 0, 1, false), (2, 3, 8, true), (2, 9, 10, false)]
        );
    }

    #[test]
    fn unexpected_signs() {
        assert_eq!(fault(b"a \"b\"c;"), "unexpected \"c\" in f:1");
        assert_eq!(fault(b"a;\n;"), "unexpected \";\" in f:2");
        assert_eq!(fault(b"\n{"), "unexpected \"{\" in f:2");
        assert_eq!(fault(b"a\n}"), "unexpected \"}\" in f:2");
        assert_eq!(fault(b"\"a\"\xc3\xa9;"), "unexpected \"\u{e9}\" in f:1");
        assert_eq!(fault(b"\"a\"\xff\xfe;"), "unexpected \"\u{fffd}\" in f:1");
        assert_eq!(fault(b"\"a\"#;"), "unexpected \"#\" in f:1");
        let diag = lex(b"a;\nb c\n}").unwrap_err();
        assert_eq!(
            diag.help.unwrap(),
            "the statement before it, on line 2, lacks its \";\""
        );
        assert_eq!(fault(b"\"a\"}"), "unexpected \"}\" in f:1");
    }

    #[test]
    fn a_text_must_not_end_within_a_statement() {
        let message = "unexpected end of file, expecting \";\" or \"}\" in f:";
        for (text, line) in [
            ("a", 1),
            ("a\n\n", 3),
            ("\"a", 1),
            ("\"a\"", 1),
            ("a b # c", 1),
            ("a\\", 1),
            ("'\\", 1),
            ("a;\n$", 2),
        ] {
            assert_eq!(
                fault(text.as_bytes()),
                format!("{message}{line}"),
                "{text:?}"
            );
        }
        let diag = lex(b"a;\nb \"c;\nd;\n").unwrap_err();
        assert_eq!(diag.line, 4);
        assert_eq!(diag.snippet.unwrap().line, 2);
        assert_eq!(
            diag.help.unwrap(),
            "the \" opened on line 2 is never closed"
        );
        let diag = lex_as(b"a", SourceKind::CommandLine).unwrap_err();
        assert_eq!(
            diag.first_line(),
            "unexpected end of parameter, expecting \";\" in f"
        );
    }

    #[test]
    fn words_fit_the_buffer_that_nginx_has() {
        let long = |n: usize| "a".repeat(n);
        let started = "too long parameter \"aaaaaaaaaa...\" started in f:2";
        assert!(lex(format!("\nx {};", long(4095)).as_bytes()).is_ok());
        assert_eq!(fault(format!("\nx {};", long(4096)).as_bytes()), started);
        assert_eq!(fault(format!("\nx {} ;", long(4095)).as_bytes()), started);
        assert!(lex(format!("\nx \"\n{}\";", long(4093)).as_bytes()).is_ok());
        assert_eq!(
            fault(format!("\nx \"{}\";", long(4095)).as_bytes()),
            started
        );
        let quote = "too long parameter, probably missing terminating \"'\" character in f:2";
        assert_eq!(fault(format!("\nx '\n{}';", long(4095)).as_bytes()), quote);
        assert!(lex(format!("#{}\na;", long(4094)).as_bytes()).is_ok());
        assert_eq!(
            fault(format!("#{}\na;", long(5000)).as_bytes()),
            "too long parameter \"#aaaaaaaaa...\" started in f:1"
        );
        // nginx looks for the end of the file first.
        assert!(fault(long(4096).as_bytes()).starts_with("unexpected end of file"));
        assert!(
            lex_as(
                format!("x {};", long(9999)).as_bytes(),
                SourceKind::CommandLine
            )
            .is_ok()
        );
    }
}
