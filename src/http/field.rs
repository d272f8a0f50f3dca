//! The field-line scanner that request heads, response heads and trailers share (RFC 9112, section 5).

use std::ops::Range;

use memchr::memchr3;

/// Scans field lines one by one over a buffer that may still grow at its end.
///
/// Accepts what nginx accepts: a bare LF ends a line, a line without a colon is a field with an empty value, and only
/// spaces around the value are cut. Space, control bytes and DEL in a name, NUL in a value and a CR that no LF
/// follows are errors; so is a folded line, because it begins with a space.
#[derive(Debug, Default, Clone)]
pub struct FieldScanner {
    state: State,
    pos: usize,
    name: usize,
    name_end: usize,
    value: usize,
    end: usize,
    unusual: bool,
}

/// What [`FieldScanner::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Field {
    /// The buffer ends inside a line.
    More,
    /// A whole field line. `unusual`: the name holds bytes other than letters, digits and `-` (and `_` where allowed),
    /// which `ignore_invalid_headers` drops.
    Line {
        /// The name, as offsets into the buffer.
        name: Range<usize>,
        /// The value without the spaces around it.
        value: Range<usize>,
        /// See above.
        unusual: bool,
    },
    /// The empty line after the last field; [`FieldScanner::pos`] is behind it.
    End,
    /// A malformed line: from its first byte to the offending one (exclusive), which [`describe`] shows.
    Invalid(Range<usize>),
}

/// How a scanner treats names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// `underscores_in_headers`: whether `_` is a usual byte in a name.
    pub underscores: bool,
    /// Skip lines that begin with `HTTP/`: some IIS send their status line twice.
    pub skip_status_lines: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Name,
    BeforeValue,
    Value,
    LineCr,
    EndCr,
    Skip,
}

impl FieldScanner {
    /// A scanner that begins at offset `pos` of the buffer.
    pub fn at(pos: usize) -> Self {
        Self {
            pos,
            name: pos,
            ..Self::default()
        }
    }

    /// Offset of the next byte to look at.
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Where the unfinished line begins: equal to [`FieldScanner::pos`] between two lines.
    pub fn line_start(&self) -> usize {
        if self.state == State::Start {
            self.pos
        } else {
            self.name
        }
    }

    /// Where the line begun last begins, finished or not.
    pub fn last_line_start(&self) -> usize {
        self.name
    }

    /// The next line. `buf` must begin where it began in the calls before; nothing is scanned twice.
    pub fn next(&mut self, buf: &[u8], names: Names) -> Field {
        while let Some(&byte) = buf.get(self.pos) {
            match self.state {
                State::Start => {
                    self.name = self.pos;
                    self.unusual = false;
                    match byte {
                        b'\r' => {
                            self.end = self.pos;
                            self.state = State::EndCr;
                            self.pos += 1;
                        }
                        b'\n' => return self.finish(),
                        b':' => return Field::Invalid(self.pos..self.pos),
                        _ => self.state = State::Name,
                    }
                }
                State::Name => {
                    if let Some(field) = self.name(buf, names) {
                        return field;
                    }
                }
                State::BeforeValue => match byte {
                    b' ' => self.pos += 1,
                    _ => {
                        self.value = self.pos;
                        self.state = State::Value;
                    }
                },
                State::Value => {
                    let rest = buf.get(self.pos..).unwrap_or_default();
                    let Some(found) = memchr3(b'\r', b'\n', 0, rest) else {
                        self.pos = buf.len();
                        return Field::More;
                    };
                    self.pos += found;
                    let value = buf.get(self.value..self.pos).unwrap_or_default();
                    let spaces = value.iter().rev().take_while(|&&b| b == b' ').count();
                    self.end = self.pos - spaces;
                    match rest.get(found) {
                        Some(b'\r') => {
                            self.state = State::LineCr;
                            self.pos += 1;
                        }
                        Some(b'\n') => return self.line(),
                        _ => return Field::Invalid(self.name..self.pos),
                    }
                }
                State::LineCr => match byte {
                    b'\n' => return self.line(),
                    b'\r' => self.pos += 1,
                    _ => return Field::Invalid(self.name..self.end),
                },
                State::EndCr => match byte {
                    b'\n' => return self.finish(),
                    _ => return Field::Invalid(self.name..self.end),
                },
                State::Skip => {
                    if byte == b'\n' {
                        self.state = State::Start;
                    }
                    self.pos += 1;
                }
            }
        }
        Field::More
    }

    /// Scans a name up to its colon; `Some` when the line ends or fails here.
    fn name(&mut self, buf: &[u8], names: Names) -> Option<Field> {
        loop {
            let rest = buf.get(self.pos..).unwrap_or_default();
            let usual = rest
                .iter()
                .take_while(|&&b| matches!(CLASS[b as usize], Class::Usual))
                .count();
            self.pos += usual;
            let Some(&byte) = rest.get(usual) else {
                return Some(Field::More);
            };
            match CLASS[byte as usize] {
                Class::Usual => {}
                Class::Colon => {
                    self.name_end = self.pos;
                    self.state = State::BeforeValue;
                    self.pos += 1;
                    return None;
                }
                Class::Underscore => self.unusual |= !names.underscores,
                Class::Unusual => {
                    let is_status = byte == b'/'
                        && names.skip_status_lines
                        && buf
                            .get(self.name..self.pos)
                            .is_some_and(|name| name == b"HTTP");
                    if is_status {
                        self.state = State::Skip;
                        return None;
                    }
                    self.unusual = true;
                }
                Class::LineEnd if self.pos > self.name => {
                    (self.name_end, self.value, self.end) = (self.pos, self.pos, self.pos);
                    if byte == b'\n' {
                        return Some(self.line());
                    }
                    self.state = State::LineCr;
                    self.pos += 1;
                    return None;
                }
                Class::LineEnd | Class::Never => return Some(Field::Invalid(self.name..self.pos)),
            }
            self.pos += 1;
        }
    }

    fn line(&mut self) -> Field {
        self.state = State::Start;
        self.pos += 1;
        Field::Line {
            name: self.name..self.name_end,
            value: self.value..self.end,
            unusual: self.unusual,
        }
    }

    fn finish(&mut self) -> Field {
        self.state = State::Start;
        self.pos += 1;
        Field::End
    }
}

/// The text nginx logs for a malformed line: what came before the offending byte, and that byte in hex.
pub fn describe(buf: &[u8], line: &Range<usize>) -> String {
    let before = crate::http::text::shown(buf.get(line.clone()).unwrap_or_default());
    format!(
        "\"{before}\\x{:02x}...\"",
        buf.get(line.end).copied().unwrap_or_default()
    )
}

#[derive(Clone, Copy)]
enum Class {
    Usual,
    Unusual,
    Underscore,
    Colon,
    LineEnd,
    Never,
}

static CLASS: [Class; 256] = {
    let mut class = [Class::Unusual; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => Class::Usual,
            b'_' => Class::Underscore,
            b':' => Class::Colon,
            b'\r' | b'\n' => Class::LineEnd,
            0..=b' ' | 0x7f => Class::Never,
            _ => Class::Unusual,
        };
        byte += 1;
    }
    class
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Names = Names {
        underscores: false,
        skip_status_lines: false,
    };
    const ORIGIN: Names = Names {
        underscores: true,
        skip_status_lines: true,
    };

    /// Every field of `input` as text, a `!` before unusual names, ending in `.`, `+` (more) or an error.
    fn scan(input: &[u8], names: Names, step: usize) -> String {
        let (mut scanner, mut out, mut upto) =
            (FieldScanner::at(0), String::new(), step.min(input.len()));
        loop {
            let buf = &input[..upto];
            match scanner.next(buf, names) {
                Field::More if upto == input.len() => return out + "+",
                Field::More => upto = (upto + step).min(input.len()),
                Field::Line {
                    name,
                    value,
                    unusual,
                } => {
                    let text = |r: Range<usize>| String::from_utf8_lossy(&buf[r]).into_owned();
                    out += &format!(
                        "{}{}={}|",
                        if unusual { "!" } else { "" },
                        text(name),
                        text(value)
                    );
                }
                Field::End => return format!("{out}.{}", scanner.pos()),
                Field::Invalid(line) => return out + &describe(buf, &line),
            }
        }
    }

    #[test]
    fn lines_as_nginx_reads_them() {
        for (input, names, expected) in [
            (&b"A: b\r\n\r\n"[..], CLIENT, "A=b|.8"),
            (b"A:b\n\nrest", CLIENT, "A=b|.5"),
            (b"A:   b c  \r\n\r\n", CLIENT, "A=b c|.14"),
            (b"A:\r\nB: \n\r\n", CLIENT, "A=|B=|.10"),
            (b"A: \tb\t\r\n", CLIENT, "A=\tb\t|+"),
            (b"A: b\r\r\n", CLIENT, "A=b|+"),
            (b"NoColon\r\n\n", CLIENT, "NoColon=|.10"),
            (b"a_b: c\r\n", CLIENT, "!a_b=c|+"),
            (b"a_b: c\r\n", ORIGIN, "a_b=c|+"),
            (b"a@b: c\r\n", ORIGIN, "!a@b=c|+"),
            (b"\xc3\xa4: c\r\n", CLIENT, "!\u{e4}=c|+"),
            (b"A : b\r\n", CLIENT, "\"A\\x20...\""),
            (b"A\t: b\r\n", CLIENT, "\"A\\x09...\""),
            (b" fold\r\n", CLIENT, "\"\\x20...\""),
            (b": x\r\n", CLIENT, "\"\\x3a...\""),
            (b"A: b\0c\r\n", CLIENT, "\"A: b\\x00...\""),
            (b"A: \0c\r\n", CLIENT, "\"A: \\x00...\""),
            (b"A: b  \0c\r\n", CLIENT, "\"A: b  \\x00...\""),
            (b"A: b\rc\r\n", CLIENT, "\"A: b\\x0d...\""),
            (b"A: b \rc\r\n", CLIENT, "\"A: b\\x20...\""),
            (b"A\rc: d\r\n", CLIENT, "\"A\\x0d...\""),
            (b"\rA: b", CLIENT, "\"\\x0d...\""),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", ORIGIN, "A=b|.25"),
            (b"HTTP/1.1 200 OK\r\n\r\n", CLIENT, "\"HTTP/1.1\\x20...\""),
            (b"", CLIENT, "+"),
            (b"A", CLIENT, "+"),
        ] {
            for step in [input.len().max(1), 1, 2, 3] {
                assert_eq!(
                    scan(input, names, step),
                    expected,
                    "{:?} by {step}",
                    input.escape_ascii().to_string()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn split_anywhere_reads_the_same(
            input in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'a'), Just(b'_'), any::<u8>()], 0..60),
            step in 1usize..9,
        ) {
            prop_assert_eq!(scan(&input, CLIENT, step), scan(&input, CLIENT, input.len().max(1)));
        }
    }
}
