//! Values that go into a head: no CR, LF or NUL is ever written into a header, a status line or a request line.
//!
//! What a client or an origin sent has been checked by its parser; what comes from variables is checked where it is put
//! into a head, by [`Template::write_value`] or [`Request::check_value`], which name the directive and the variable.
//! Response heads are looked at once more before they are written (`delivery/output`), so that nothing is missed.

use super::template::Part;
use super::{ConfResult, Request, Statement, Template};
use crate::log::Level;

/// Whether a value would break a head: it holds CR, LF or NUL.
pub fn has_break(value: &[u8]) -> bool {
    memchr::memchr3(b'\r', b'\n', 0, value).is_some()
}

/// Text of the configuration as it is written into a head: each CR, LF or NUL, with the blanks around it, becomes a
/// space, as a recipient of a folded line does it (RFC 9112, section 5.2).
pub fn unfold(text: &[u8]) -> Vec<u8> {
    let is_break = |b: u8| matches!(b, b'\r' | b'\n' | 0);
    let mut out = Vec::with_capacity(text.len());
    let mut folded = false;
    for &b in text {
        if is_break(b) {
            while matches!(out.last(), Some(b' ' | b'\t')) {
                out.pop();
            }
            folded = true;
        } else if !(folded && matches!(b, b' ' | b'\t')) {
            if folded && !out.is_empty() {
                out.push(b' ');
            }
            folded = false;
            out.push(b);
        }
    }
    out
}

/// Whether every line break in `text` is followed by a blank: a folded line, as nginx writes it.
fn is_folded(text: &[u8]) -> bool {
    memchr::memchr3_iter(b'\r', b'\n', 0, text).all(|at| {
        let rest = text.get(at..).unwrap_or_default();
        matches!(rest, [b'\r', b'\n', ..] | [b'\n', b' ' | b'\t', ..])
    })
}

/// What has become of a request one of whose values cannot be written into a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadValue {
    /// There is none.
    #[default]
    None,
    /// The request is to end with this status.
    Found(u16),
    /// It ends with it: what cannot be written is left out of that response.
    Answered,
}

/// Checks the name of a header in the configuration: no CR, LF or NUL may stand in it.
///
/// # Errors
/// The statement's, at that parameter.
pub fn check_header_name(s: &Statement, i: usize) -> ConfResult<()> {
    match has_break(s.arg(i)) {
        true => Err(s.error_at(i, "line break in the name of a header")),
        false => Ok(()),
    }
}

impl Template {
    /// The template for a value of a head: line breaks in its text become spaces.
    pub(crate) fn unfolded(mut self) -> Template {
        for part in &mut self.parts {
            if let Part::Literal(text) = part
                && has_break(text)
            {
                let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t' | b'\r' | b'\n'));
                let (lead, tail) = (blank(text.first()), blank(text.last()));
                let mut new = unfold(text);
                // beside a variable the blank counts
                if lead && new.first() != Some(&b' ') {
                    new.insert(0, b' ');
                }
                if tail && new.last() != Some(&b' ') {
                    new.push(b' ');
                }
                *text = new.into();
            }
        }
        if let [Part::Literal(text)] = &mut *self.parts {
            *text = text.trim_ascii().into();
        }
        self
    }

    /// Whether CR, LF or NUL stands in its text.
    pub(crate) fn has_break(&self) -> bool {
        self.parts
            .iter()
            .any(|p| matches!(p, Part::Literal(l) if has_break(l)))
    }

    /// Appends the value to `out`, to be written into a head by `directive`.
    ///
    /// # Errors
    /// As [`Request::check_value`]; `out` is then as it was.
    pub fn write_value(&self, r: &Request, directive: &str, out: &mut Vec<u8>) -> Result<(), u16> {
        let begin = out.len();
        self.write(r, out);
        if self.as_literal().is_none() && out.get(begin..).is_some_and(has_break) {
            return self.repair(r, directive, out, begin);
        }
        Ok(())
    }

    /// As [`Template::write_value`], for hooks that cannot end the request: it ends when its head is to be written.
    /// False where there is no value then.
    pub fn put_value(&self, r: &mut Request, directive: &str, out: &mut Vec<u8>) -> bool {
        let written = self.write_value(r, directive, out);
        written.map_err(|status| r.end_for_value(status)).is_ok()
    }

    /// Unfolds what has line breaks by itself; finds the variable that must not have any.
    #[cold]
    fn repair(
        &self,
        r: &Request,
        directive: &str,
        out: &mut Vec<u8>,
        begin: usize,
    ) -> Result<(), u16> {
        out.truncate(begin);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text),
                Part::Capture(n) => {
                    let value = r.captures.get(usize::from(*n));
                    r.check_value(directive, &format!("${n}"), value)
                        .inspect_err(|_| out.truncate(begin))?;
                    out.extend_from_slice(value);
                }
                Part::Var(id) => {
                    let name = r.site.vars.get(id.0 as usize).map_or("", |v| &v.name);
                    let (source, value) = (format!("${name}"), r.var(*id));
                    let value = value.as_bytes();
                    // a certificate has lines; so has what `set` and `map` fold in the configuration
                    let own = name == "ssl_client_raw_cert"
                        || (is_folded(value) && !r.is_to_blame(&source));
                    if own {
                        out.extend_from_slice(&unfold(value));
                        continue;
                    }
                    r.check_value(directive, &source, value)
                        .inspect_err(|_| out.truncate(begin))?;
                    out.extend_from_slice(value);
                }
            }
        }
        Ok(())
    }
}

impl Request {
    /// Checks a value that `directive` puts into a head; `source` is what it comes from, for the log.
    ///
    /// # Errors
    /// The status with which the request ends, logged: 400 where the client sent the bytes, else 500.
    pub fn check_value(&self, directive: &str, source: &str, value: &[u8]) -> Result<(), u16> {
        if has_break(value) {
            return Err(self.refuse_value(directive, source, "a CR, LF or NUL"));
        }
        Ok(())
    }

    /// Logs that a value cannot be written into a head, and tells the status with which the request ends.
    #[cold]
    pub fn refuse_value(&self, directive: &str, source: &str, what: &str) -> u16 {
        // once for each request
        if self.bad_value == BadValue::None {
            self.error(
                Level::Error,
                format_args!("\"{directive}\" would write {what} from \"{source}\" into a head"),
            );
        }
        if self.is_to_blame(source) { 400 } else { 500 }
    }

    /// Whether the client sent the bytes that cannot be written into a head.
    fn is_to_blame(&self, source: &str) -> bool {
        matches!(source, "$remote_user" | "$request_body") || escapes_control(self.unparsed_uri())
    }

    /// Has the request end with `status` instead of the response that is being made.
    pub fn end_for_value(&mut self, status: u16) {
        if self.bad_value == BadValue::None {
            self.bad_value = BadValue::Found(status);
        }
    }
}

/// Whether an escaped control character stands in what the client asked for.
fn escapes_control(target: &[u8]) -> bool {
    memchr::memchr_iter(b'%', target).any(|at| {
        matches!(
            target.get(at + 1..at + 3),
            Some([b'0' | b'1', b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F']) | Some([b'7', b'f' | b'F'])
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_text_becomes_one_line() {
        for (text, expected) in [
            ("a", "a"),
            ("a\nb", "a b"),
            ("a; \r\n\t  b;\n\nc", "a; b; c"),
            ("\n a \n", "a"),
            ("a\0b", "a b"),
            ("\r\n", ""),
        ] {
            assert_eq!(unfold(text.as_bytes()), expected.as_bytes(), "{text:?}");
            let template = Template::literal(text.as_bytes()).unfolded();
            assert_eq!(template.as_literal(), Some(expected.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn folded_lines() {
        for (text, folded) in [
            ("a\n b\r\n\tc", true),
            ("a\nb", false),
            ("a\r b", false),
            ("a\n", false),
            ("a\0 b", false),
        ] {
            assert_eq!(is_folded(text.as_bytes()), folded, "{text:?}");
        }
    }

    #[test]
    fn escaped_control_characters_are_the_clients() {
        for (target, found) in [
            ("/a%0d%0ab", true),
            ("/%7F", true),
            ("/?%0A", true),
            ("/%20%41", false),
            ("/%0", false),
            ("/a", false),
        ] {
            assert_eq!(escapes_control(target.as_bytes()), found, "{target}");
        }
    }
}
