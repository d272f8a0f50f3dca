//! One directive as written, with readers for its arguments that refuse in nginx's words.

use std::sync::Arc;

use super::diag::{Diag, Level};
use super::source::{FileId, Source, Span};
use super::{Result, value};

/// A directive or a block's parameter: a name, arguments, and perhaps a block.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The first word.
    pub name: Word,
    /// The words behind the name.
    pub args: Box<[Word]>,
    /// What stands in braces.
    pub block: Option<Block>,
    /// The text that it stands in.
    pub file: FileId,
    /// The line that nginx names in messages: where the `;` or `{` stands.
    pub line: u32,
    /// The text that it stands in.
    pub source: Arc<Source>,
    /// The name in readable form where it is not UTF-8.
    pub(super) lossy_name: Option<Box<str>>,
}

impl Statement {
    /// The directive's name; bytes that are not UTF-8 are replaced, so that it equals no known name.
    pub fn name(&self) -> &str {
        match &self.lossy_name {
            Some(name) => name,
            None => std::str::from_utf8(&self.name.text).unwrap_or_default(),
        }
    }

    /// The number of arguments.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether there are no arguments.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// Argument `i`, counted from 0; empty where there is none.
    pub fn arg(&self, i: usize) -> &[u8] {
        self.args.get(i).map_or(&[], |word| &word.text)
    }

    /// Argument `i` as text.
    pub fn str(&self, i: usize) -> Result<&str> {
        std::str::from_utf8(self.arg(i)).map_err(|_| {
            self.error_at(i, format!("invalid UTF-8 in \"{}\" directive", self.name()))
        })
    }

    /// `on` or `off`, in any case (`ngx_conf_set_flag_slot`).
    pub fn flag(&self, i: usize) -> Result<bool> {
        let arg = self.arg(i);
        if arg.eq_ignore_ascii_case(b"on") {
            Ok(true)
        } else if arg.eq_ignore_ascii_case(b"off") {
            Ok(false)
        } else {
            let (arg, name) = (self.shown(i), self.name());
            Err(self.error_at(
                i,
                format!(
                    "invalid value \"{arg}\" in \"{name}\" directive, it must be \"on\" or \"off\""
                ),
            ))
        }
    }

    /// A size in bytes: `8k`, `1M` (`ngx_conf_set_size_slot`).
    pub fn size(&self, i: usize) -> Result<u64> {
        value::parse_size(self.arg(i)).ok_or_else(|| self.directive_error(i, "invalid value"))
    }

    /// An offset in bytes: `8k`, `1M`, `2g` (`ngx_conf_set_off_slot`).
    pub fn offset(&self, i: usize) -> Result<u64> {
        value::parse_offset(self.arg(i)).ok_or_else(|| self.directive_error(i, "invalid value"))
    }

    /// A time in milliseconds: `60`, `1m30s`, `500ms` (`ngx_conf_set_msec_slot`).
    pub fn msec(&self, i: usize) -> Result<u64> {
        value::parse_time_ms(self.arg(i)).ok_or_else(|| self.directive_error(i, "invalid value"))
    }

    /// A time in seconds: `60`, `1h30m`, `2y` (`ngx_conf_set_sec_slot`).
    pub fn sec(&self, i: usize) -> Result<u64> {
        value::parse_time_sec(self.arg(i)).ok_or_else(|| self.directive_error(i, "invalid value"))
    }

    /// A number without a sign (`ngx_conf_set_num_slot`).
    pub fn number(&self, i: usize) -> Result<u64> {
        value::parse_number(self.arg(i)).ok_or_else(|| self.directive_error(i, "invalid number"))
    }

    /// One of a few words, in any case (`ngx_conf_set_enum_slot`).
    pub fn one_of<T: Copy>(&self, i: usize, choices: &[(&str, T)]) -> Result<T> {
        let arg = self.arg(i);
        match choices
            .iter()
            .find(|(word, _)| arg.eq_ignore_ascii_case(word.as_bytes()))
        {
            Some((_, value)) => Ok(*value),
            None => Err(self
                .invalid_value(i)
                .with_nearest(&self.shown(i), choices.iter().map(|(word, _)| *word))),
        }
    }

    /// Refuses the statement; the mark is under its name.
    pub fn error(&self, message: impl Into<String>) -> Box<Diag> {
        self.diag(Level::Emerg, message.into(), self.name.span)
    }

    /// Refuses the statement; the mark is under argument `i`, or under the name where there is no such argument.
    pub fn error_at(&self, i: usize, message: impl Into<String>) -> Box<Diag> {
        self.diag(Level::Emerg, message.into(), self.span(i))
    }

    /// Warns of argument `i`, or of the statement where there is no such argument.
    pub fn warn_at(&self, i: usize, message: impl Into<String>) -> Box<Diag> {
        self.diag(Level::Warn, message.into(), self.span(i))
    }

    /// `invalid value "X"`
    pub fn invalid_value(&self, i: usize) -> Box<Diag> {
        self.error_at(i, format!("invalid value \"{}\"", self.shown(i)))
    }

    /// `invalid parameter "X"`
    pub fn invalid_parameter(&self, i: usize) -> Box<Diag> {
        self.error_at(i, format!("invalid parameter \"{}\"", self.shown(i)))
    }

    /// `"NAME" directive is duplicate`
    pub fn duplicate(&self) -> Box<Diag> {
        self.error(format!("\"{}\" directive is duplicate", self.name()))
    }

    /// `invalid number of arguments in "NAME" directive`
    pub fn invalid_number_of_arguments(&self) -> Box<Diag> {
        self.error(format!(
            "invalid number of arguments in \"{}\" directive",
            self.name()
        ))
    }

    /// `unknown directive "NAME"`, with the nearest of the names that are known here.
    pub fn unknown_directive<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Box<Diag> {
        let diag = self.error(format!("unknown directive \"{}\"", self.name()));
        match self.name().strip_prefix('\u{feff}') {
            Some(_) => diag.with_help("the file begins with a UTF-8 byte order mark, which nginx takes as part of the name"),
            None => diag.with_nearest(self.name(), known),
        }
    }

    /// `"NAME" directive is not allowed here`
    pub fn not_allowed_here(&self) -> Box<Diag> {
        self.error(format!("\"{}\" directive is not allowed here", self.name()))
    }

    /// `directive "NAME" is not terminated by ";"`: it has a block and may not.
    pub fn not_terminated(&self) -> Box<Diag> {
        self.error(format!(
            "directive \"{}\" is not terminated by \";\"",
            self.name()
        ))
    }

    /// `directive "NAME" has no opening "{"`: it has no block and must.
    pub fn no_opening(&self) -> Box<Diag> {
        self.error(format!(
            "directive \"{}\" has no opening \"{{\"",
            self.name()
        ))
    }

    /// `unexpected "{"`: a block where parameters stand, as in `types` and `map`.
    pub fn unexpected_block(&self) -> Box<Diag> {
        self.error("unexpected \"{\"")
    }

    /// `"NAME" directive COMPLAINT`, which is what nginx makes of a setter's return value.
    pub fn directive_error(&self, i: usize, complaint: &str) -> Box<Diag> {
        self.error_at(i, format!("\"{}\" directive {complaint}", self.name()))
    }

    /// The statements of its block, in order; none where there is no block.
    pub fn items(&self) -> &[Statement] {
        self.block.as_ref().map_or(&[], |b| &b.items)
    }

    /// The fault of syntax in its block, to be reported after the block's statements.
    pub fn syntax_error(&self) -> Option<Box<Diag>> {
        self.block.as_ref().and_then(|b| b.error.clone())
    }

    /// Warns of the statement.
    pub fn warn(&self, message: impl Into<String>) -> Box<Diag> {
        self.diag(Level::Warn, message.into(), self.name.span)
    }

    /// Where it stands: `FILE:LINE`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.source.name, self.line)
    }

    fn shown(&self, i: usize) -> String {
        String::from_utf8_lossy(self.arg(i)).into_owned()
    }

    fn span(&self, i: usize) -> Span {
        self.args.get(i).unwrap_or(&self.name).span
    }

    fn diag(&self, level: Level, message: String, span: Span) -> Box<Diag> {
        Diag::at(level, message, &self.source, self.line, span)
    }
}

/// What stands between two braces, or in a whole file; what is included stands in it as if written there.
#[derive(Clone, Debug)]
pub struct Block {
    /// The statements in their order.
    pub items: Vec<Statement>,
    /// The line of the closing brace, or of the file's end.
    pub end_line: u32,
    /// The fault of syntax that ended the block. nginx meets it after it has acted on all of `items`. Where a block
    /// within the last of `items` has the fault, this is none.
    pub error: Option<Box<Diag>>,
}

impl Block {
    /// The fault of syntax that ended the reading, here or in a block within.
    pub fn syntax_error(&self) -> Option<&Diag> {
        match &self.error {
            Some(diag) => Some(diag),
            None => self.items.last()?.block.as_ref()?.syntax_error(),
        }
    }
}

/// A word of a statement.
#[derive(Clone, Debug)]
pub struct Word {
    /// The text without its quotes and escapes; `${name}` stays as written.
    pub text: Box<[u8]>,
    /// Its place, with the quotes.
    pub span: Span,
    /// Whether it stood in quotes.
    pub quoted: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_text;

    fn statement(text: &str) -> Statement {
        parse_text(text.as_bytes(), "f").root.items.remove(0)
    }

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().first_line()
    }

    #[test]
    fn arguments() {
        let s = statement("a b \"c d\";");
        assert_eq!(
            (s.name(), s.len(), s.arg(0), s.arg(1), s.arg(2)),
            ("a", 2, &b"b"[..], &b"c d"[..], &b""[..])
        );
        assert_eq!(s.str(1).unwrap(), "c d");
        assert!(!s.is_empty());
    }

    #[test]
    fn bytes_that_are_not_utf_8() {
        let s = parse_text(b"a\xff b\xff;", "f").root.items.remove(0);
        assert_eq!(s.name(), "a\u{fffd}");
        assert_eq!(
            fault(s.str(0)),
            "invalid UTF-8 in \"a\u{fffd}\" directive in f:1"
        );
    }

    #[test]
    fn values_are_read_or_refused_as_nginx_does() {
        let s = statement("d On oFF 8k 2G 1m 1y 7 x\n;");
        assert!(s.flag(0).unwrap() && !s.flag(1).unwrap());
        assert_eq!(s.size(2).unwrap(), 8192);
        assert_eq!(s.offset(3).unwrap(), 2 << 30);
        assert_eq!(s.msec(4).unwrap(), 60_000);
        assert_eq!(s.sec(5).unwrap(), 31_536_000);
        assert_eq!(s.number(6).unwrap(), 7);
        assert_eq!(s.one_of(0, &[("off", 0), ("on", 1)]).unwrap(), 1);
        assert_eq!(
            fault(s.flag(7)),
            "invalid value \"x\" in \"d\" directive, it must be \"on\" or \"off\" in f:2"
        );
        assert_eq!(fault(s.size(3)), "\"d\" directive invalid value in f:2");
        assert_eq!(fault(s.offset(7)), "\"d\" directive invalid value in f:2");
        assert_eq!(fault(s.msec(5)), "\"d\" directive invalid value in f:2");
        assert_eq!(fault(s.sec(9)), "\"d\" directive invalid value in f:2");
        assert_eq!(fault(s.number(2)), "\"d\" directive invalid number in f:2");
        assert_eq!(
            fault(s.one_of(7, &[("off", 0)])),
            "invalid value \"x\" in f:2"
        );
    }

    #[test]
    fn what_nginx_says_of_a_statement() {
        let s = statement("d x { }");
        for (diag, text) in [
            (s.duplicate(), "\"d\" directive is duplicate"),
            (
                s.invalid_number_of_arguments(),
                "invalid number of arguments in \"d\" directive",
            ),
            (s.unknown_directive([]), "unknown directive \"d\""),
            (s.not_allowed_here(), "\"d\" directive is not allowed here"),
            (
                s.not_terminated(),
                "directive \"d\" is not terminated by \";\"",
            ),
            (s.no_opening(), "directive \"d\" has no opening \"{\""),
            (s.unexpected_block(), "unexpected \"{\""),
            (s.invalid_parameter(0), "invalid parameter \"x\""),
        ] {
            assert_eq!(
                (diag.level, diag.first_line()),
                (Level::Emerg, format!("{text} in f:1"))
            );
        }
        assert_eq!(s.warn_at(0, "m").level, Level::Warn);
    }

    #[test]
    fn help_names_what_is_near() {
        let s = statement("gzip_type off;");
        assert_eq!(
            s.unknown_directive(["gzip", "gzip_types"]).help.unwrap(),
            "did you mean \"gzip_types\"?"
        );
        assert_eq!(
            s.one_of(0, &[("of", 1)]).unwrap_err().help.unwrap(),
            "did you mean \"of\"?"
        );
        assert!(
            statement("\u{feff}events {}")
                .unknown_directive(["events"])
                .help
                .unwrap()
                .contains("byte order mark")
        );
    }
}
