//! Finds `<!--#command name="value" … -->` in a body that comes in pieces.

const TAG: &[u8] = b"<!--#";
/// How long the name of a command may be.
const COMMAND_LEN: usize = 32;
/// How long the name of a parameter may be.
const PARAM_LEN: usize = 32;
/// How many parameters a command may have.
pub const MAX_PARAMS: usize = 16;

/// A parser between two pieces of a body.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// The command that is being read, and the last one that was.
    pub command: Command,
    /// `ssi_value_length`.
    value_len: usize,
    quote: u8,
}

/// A command with its parameters as written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its name.
    pub name: Vec<u8>,
    /// Names and values; one more than [`MAX_PARAMS`] are kept.
    pub params: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing but text up to the end of the piece.
    Text,
    /// A whole command.
    Command,
    /// What cannot be a command: what is wrong with it. [`Found::Broken`] follows where it ends.
    Fault(String),
    /// The end of what cannot be a command.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// So many bytes of `<!--#` have been seen.
    Tag(usize),
    BeforeCommand,
    Command,
    BeforeParam,
    Param,
    BeforeEqual,
    BeforeValue,
    Value,
    Escaped,
    AfterValue,
    /// So many dashes of `-->` have been seen.
    End(usize),
    /// The same in what is skipped.
    Skip(usize),
}

impl Parser {
    /// Values longer than `value_len` are faults.
    pub fn new(value_len: usize) -> Parser {
        Parser {
            state: State::Text,
            command: Command::default(),
            value_len,
            quote: 0,
        }
    }

    /// Reads `data` from `at` on, up to the end of a command or of the piece; text is appended to `out`.
    pub fn next(&mut self, data: &[u8], at: &mut usize, out: &mut Vec<u8>) -> Found {
        while let Some(&c) = data.get(*at) {
            *at += 1;
            match self.state {
                State::Text => {
                    let rest = data.get(*at - 1..).unwrap_or_default();
                    let n = memchr::memchr(b'<', rest).unwrap_or(rest.len());
                    out.extend_from_slice(rest.get(..n).unwrap_or_default());
                    *at += n;
                    if n < rest.len() {
                        self.state = State::Tag(1);
                    } else {
                        *at -= 1;
                    }
                }
                State::Tag(n) if TAG.get(n) == Some(&c) => {
                    self.state = if n + 1 == TAG.len() {
                        State::BeforeCommand
                    } else {
                        State::Tag(n + 1)
                    };
                }
                State::Tag(n) => {
                    out.extend_from_slice(TAG.get(..n).unwrap_or_default());
                    if c == b'<' {
                        self.state = State::Tag(1);
                    } else {
                        self.state = State::Text;
                        *at -= 1;
                    }
                }
                State::End(1) if c == b'-' => self.state = State::End(2),
                State::End(2) if c == b'>' => {
                    self.state = State::Text;
                    return Found::Command;
                }
                State::Skip(2) if c == b'>' => {
                    self.state = State::Text;
                    return Found::Broken;
                }
                State::Skip(n) => {
                    self.state = State::Skip(if c == b'-' && n < 2 { n + 1 } else { 0 })
                }
                _ => {
                    if let Some(fault) = self.inside(c) {
                        return Found::Fault(fault);
                    }
                }
            }
        }
        Found::Text
    }

    /// What was held back as the beginning of a command and is the end of the body.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if let State::Tag(n) = self.state {
            out.extend_from_slice(TAG.get(..n).unwrap_or_default());
            self.state = State::Text;
        }
    }

    /// A byte between `<!--#` and `-->`; the text of the fault where there is one.
    fn inside(&mut self, c: u8) -> Option<String> {
        let blank = matches!(c, b' ' | b'\r' | b'\n' | b'\t');
        let shown = char::from(c);
        let command = String::from_utf8_lossy(&self.command.name);
        let (key, value) = self
            .command
            .params
            .last()
            .map(|(k, v)| (k.as_slice(), v.as_slice()))
            .unwrap_or_default();
        let (key_text, value_text) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        let fault = match self.state {
            State::BeforeCommand if blank => return None,
            State::BeforeCommand => {
                self.command.name.clear();
                self.command.name.push(c);
                self.command.params.clear();
                self.state = State::Command;
                return None;
            }
            State::Command | State::BeforeParam if c == b'-' => {
                self.state = State::End(1);
                return None;
            }
            State::Command if blank => {
                self.state = State::BeforeParam;
                return None;
            }
            State::Command if self.command.name.len() == COMMAND_LEN => {
                format!("the \"{command}{shown}...\" SSI command is too long")
            }
            State::Command => {
                self.command.name.push(c);
                return None;
            }
            State::BeforeParam if blank => return None,
            State::BeforeParam => {
                if self.command.params.len() > MAX_PARAMS {
                    self.command.params.pop();
                }
                self.command.params.push((vec![c], Vec::new()));
                self.state = State::Param;
                return None;
            }
            State::Param if blank => {
                self.state = State::BeforeEqual;
                return None;
            }
            State::Param | State::BeforeEqual if c == b'=' => {
                self.state = State::BeforeValue;
                return None;
            }
            State::Param if c != b'-' => {
                if key.len() < PARAM_LEN {
                    if let Some((key, _)) = self.command.params.last_mut() {
                        key.push(c);
                    }
                    return None;
                }
                format!("too long \"{key_text}{shown}...\" parameter in \"{command}\" SSI command")
            }
            State::BeforeEqual | State::BeforeValue if blank => return None,
            State::Param | State::BeforeEqual => {
                format!(
                    "unexpected \"{shown}\" symbol after \"{key_text}\" parameter in \"{command}\" SSI command"
                )
            }
            State::BeforeValue if matches!(c, b'"' | b'\'') => {
                self.quote = c;
                self.state = State::Value;
                return None;
            }
            State::BeforeValue => format!(
                "unexpected \"{shown}\" symbol before value of \"{key_text}\" parameter in \"{command}\" SSI command"
            ),
            State::Value if c == self.quote => {
                self.state = State::AfterValue;
                return None;
            }
            State::Value | State::Escaped => {
                if value.len() < self.value_len {
                    self.state = if c == b'\\' && self.state == State::Value {
                        State::Escaped
                    } else {
                        State::Value
                    };
                    if let Some((_, value)) = self.command.params.last_mut() {
                        value.push(c);
                    }
                    return None;
                }
                format!(
                    "too long \"{value_text}{shown}...\" value of \"{key_text}\" parameter in \"{command}\" SSI command"
                )
            }
            State::AfterValue if blank => {
                self.state = State::BeforeParam;
                return None;
            }
            State::AfterValue if c == b'-' => {
                self.state = State::End(1);
                return None;
            }
            State::AfterValue => format!(
                "unexpected \"{shown}\" symbol after \"{value_text}\" value of \"{key_text}\" parameter in \"{command}\" SSI command"
            ),
            _ => format!("unexpected \"{shown}\" symbol in \"{command}\" SSI command"),
        };
        let dash = c == b'-'
            && matches!(
                self.state,
                State::Param | State::BeforeEqual | State::BeforeValue
            );
        self.state = State::Skip(usize::from(dash));
        Some(fault)
    }
}

impl Command {
    /// The command as text, as a block keeps it.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(TAG);
        out.extend_from_slice(&self.name);
        for (key, value) in &self.params {
            out.push(b' ');
            out.extend_from_slice(key);
            out.extend_from_slice(b"=\"");
            out.extend_from_slice(value);
            out.push(b'"');
        }
        out.extend_from_slice(b" -->");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Text, with commands as `[name k=v]` and faults as `!`.
    fn read(pieces: &[&[u8]]) -> (String, Vec<String>) {
        let (mut p, mut out, mut faults) = (Parser::new(8), Vec::new(), Vec::new());
        for piece in pieces {
            let mut at = 0;
            loop {
                match p.next(piece, &mut at, &mut out) {
                    Found::Text => break,
                    Found::Command => {
                        out.push(b'[');
                        out.extend_from_slice(&p.command.name);
                        for (k, v) in &p.command.params {
                            out.push(b' ');
                            out.extend_from_slice(k);
                            out.push(b'=');
                            out.extend_from_slice(v);
                        }
                        out.push(b']');
                    }
                    Found::Fault(f) => faults.push(f),
                    Found::Broken => out.push(b'!'),
                }
            }
            assert_eq!(at, piece.len());
        }
        p.end(&mut out);
        (String::from_utf8_lossy(&out).into_owned(), faults)
    }

    #[test]
    fn commands_are_found() {
        for (text, want) in [
            (
                "plain < text <!- <!-- x --> <",
                "plain < text <!- <!-- x --> <",
            ),
            ("a<!--#echo var=\"x\" -->b", "a[echo var=x]b"),
            (
                "<<!--# set var='x'  value = \"y\\\"z\"--><!--#endif-->",
                "<[set var=x value=y\\\"z][endif]",
            ),
            ("<!--<!--#a --><!--", "<!--[a]<!--"),
            ("<!--#a b=\"-->\" -->", "[a b=-->]"),
        ] {
            assert_eq!(
                read(&[text.as_bytes()]),
                (want.to_owned(), vec![]),
                "{text}"
            );
        }
    }

    #[test]
    fn faults_have_nginxs_words() {
        for (text, want) in [
            (
                "x<!--#a b-->y",
                "unexpected \"-\" symbol after \"b\" parameter in \"a\" SSI command",
            ),
            (
                "x<!--#a b c-->y",
                "unexpected \"c\" symbol after \"b\" parameter in \"a\" SSI command",
            ),
            (
                "x<!--#a b=c-->y",
                "unexpected \"c\" symbol before value of \"b\" parameter in \"a\" SSI command",
            ),
            (
                "x<!--#a b=\"c\"d-->y",
                "unexpected \"d\" symbol after \"c\" value of \"b\" parameter in \"a\" SSI command",
            ),
            (
                "x<!--#a -x-->y",
                "unexpected \"x\" symbol in \"a\" SSI command",
            ),
            (
                "x<!--#a b=\"123456789\" -->y",
                "too long \"123456789...\" value of \"b\" parameter in \"a\" SSI command",
            ),
        ] {
            assert_eq!(
                read(&[text.as_bytes()]),
                ("x!y".to_owned(), vec![want.to_owned()]),
                "{text}"
            );
        }
        let long = format!("<!--#{}-->", "a".repeat(33));
        assert_eq!(
            read(&[long.as_bytes()]).1,
            [format!(
                "the \"{}...\" SSI command is too long",
                "a".repeat(33)
            )]
        );
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "(<|<!--#|-->|[ab =\"'\\\\-]){0,40}", cut in 1usize..5) {
            let whole = read(&[text.as_bytes()]);
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            prop_assert_eq!(read(&pieces), whole);
        }

        #[test]
        fn text_without_commands_stays(text in "[a<!-]{0,60}") {
            prop_assert_eq!(read(&[text.as_bytes()]).0, text);
        }
    }
}
