//! What a whole request remembers for its pages, and values with variables in them.

use crate::contract::Request;
use crate::log::Level;
use parking_lot::Mutex;
use std::fmt::Arguments;

/// Variables, captures and blocks: of a request and all its subrequests.
#[derive(Default)]
pub struct Memory(Mutex<Held>);

#[derive(Default)]
struct Held {
    vars: Vec<(Box<[u8]>, Vec<u8>)>,
    captures: Vec<Vec<u8>>,
    /// Names and texts.
    blocks: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Memory {
    /// Makes one for the request if it has none.
    pub fn ensure(r: &mut Request) {
        if r.shared::<Memory>().is_none() {
            r.set_shared(Memory::default());
        }
    }

    /// That of a request.
    pub fn of(r: &Request) -> Option<&Memory> {
        r.shared()
    }

    /// A capture of the last match, or a variable that was set; `name` is in lower case.
    pub fn get(&self, name: &[u8]) -> Option<Vec<u8>> {
        let held = self.0.lock();
        if let [d @ b'0'..=b'9'] = name
            && let Some(value) = held.captures.get(usize::from(d - b'0'))
        {
            return Some(value.clone());
        }
        held.vars
            .iter()
            .find(|(n, _)| **n == *name)
            .map(|(_, v)| v.clone())
    }

    /// Sets a variable; `name` is in lower case.
    pub fn set(&self, name: &[u8], value: Vec<u8>) {
        let vars = &mut self.0.lock().vars;
        match vars.iter_mut().find(|(n, _)| **n == *name) {
            Some((_, v)) => *v = value,
            None => vars.push((name.into(), value)),
        }
    }

    /// Makes a variable empty unless it has been set.
    pub fn declare(&self, name: &[u8]) {
        let vars = &mut self.0.lock().vars;
        if !vars.iter().any(|(n, _)| **n == *name) {
            vars.push((name.into(), Vec::new()));
        }
    }

    fn captured(&self, values: Vec<Vec<u8>>) {
        self.0.lock().captures = values;
    }

    /// Begins a block.
    pub fn begin_block(&self, name: &[u8]) {
        self.0.lock().blocks.push((name.to_vec(), Vec::new()));
    }

    /// Adds to the last block.
    pub fn extend_block(&self, text: &[u8]) {
        if let Some((_, block)) = self.0.lock().blocks.last_mut() {
            block.extend_from_slice(text);
        }
    }

    /// The text of a block.
    pub fn block(&self, name: &[u8]) -> Option<Vec<u8>> {
        self.0
            .lock()
            .blocks
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, text)| text.clone())
    }
}

/// A command cannot be carried out; why has been logged.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed;

/// Logs why a command cannot be carried out.
pub fn failed(r: &Request, why: Arguments<'_>) -> Failed {
    complain(r, why);
    Failed
}

/// Logs what is wrong with a page.
pub fn complain(r: &Request, why: Arguments<'_>) {
    r.error(
        Level::Error,
        format_args!("{why} while sending response to client"),
    );
}

/// The value of a variable of the page or of the request; `None` if there is none.
pub fn variable(r: &Request, name: &[u8]) -> Option<Vec<u8>> {
    let name = name.to_ascii_lowercase();
    if let Some(value) = Memory::of(r).and_then(|m| m.get(&name)) {
        return Some(value);
    }
    let name = std::str::from_utf8(&name).ok()?;
    let value = r.var_named(name);
    (!value.is_none()).then(|| value.as_bytes().to_vec())
}

/// Puts the values of variables in place of `$name` and `${name}` and takes `\` away.
///
/// With `relative`, what does not begin with `/` follows the folder of the request's URI.
///
/// # Errors
/// A name that is none, or a bracket that is not closed.
pub fn expand(r: &Request, text: &[u8], relative: bool) -> Result<Vec<u8>, Failed> {
    let mut out = Vec::with_capacity(text.len() + 16);
    let mut rest = text;
    while !rest.is_empty() {
        rest = match rest.strip_prefix(b"$") {
            None => literal(rest, &mut out),
            Some(after) => {
                let invalid = || {
                    failed(
                        r,
                        format_args!(
                            "invalid variable name in \"{}\"",
                            String::from_utf8_lossy(text)
                        ),
                    )
                };
                if after.is_empty() || after == b"{" {
                    return Err(invalid());
                }
                let (name, after) = match after.strip_prefix(b"{") {
                    None => split_name(after),
                    Some(inner) => match split_name(inner) {
                        (name, [b'}', after @ ..]) => (name, after),
                        (name, _) => {
                            let name = String::from_utf8_lossy(name);
                            return Err(failed(
                                r,
                                format_args!(
                                    "the closing bracket in \"{name}\" variable is missing"
                                ),
                            ));
                        }
                    },
                };
                if name.is_empty() {
                    return Err(invalid());
                }
                out.extend_from_slice(&variable(r, name).unwrap_or_default());
                after
            }
        };
    }
    if relative && out.first() != Some(&b'/') {
        let folder = r.uri.iter().rposition(|c| *c == b'/').map_or(0, |i| i + 1);
        out.splice(
            0..0,
            r.uri.get(..folder).unwrap_or_default().iter().copied(),
        );
    }
    Ok(out)
}

/// Copies up to the next variable; a `\` goes where it stands before itself, a quote or `$`.
fn literal<'t>(text: &'t [u8], out: &mut Vec<u8>) -> &'t [u8] {
    let mut quoted = false;
    for (i, &c) in text.iter().enumerate() {
        match (quoted, c) {
            (false, b'\\') => {
                quoted = true;
                continue;
            }
            (false, b'$') => return text.get(i..).unwrap_or_default(),
            (true, b'\\' | b'\'' | b'"' | b'$') | (false, _) => {}
            (true, _) => out.push(b'\\'),
        }
        quoted = false;
        out.push(c);
    }
    b""
}

fn split_name(text: &[u8]) -> (&[u8], &[u8]) {
    let n = text
        .iter()
        .position(|c| !c.is_ascii_alphanumeric() && *c != b'_')
        .unwrap_or(text.len());
    text.split_at_checked(n).unwrap_or((text, b""))
}

/// Whether an `expr` holds: `text`, `text = text`, `text != text`, `text = /regex/`, `text != /regex/`.
///
/// # Errors
/// An expression that is none.
pub fn holds(r: &Request, expr: &[u8]) -> Result<bool, Failed> {
    let of_left =
        |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'$' | b'{' | b'}' | b'_' | b'"' | b'\'');
    let n = expr.iter().position(|c| !of_left(c)).unwrap_or(expr.len());
    let (left, rest) = expr.split_at_checked(n).unwrap_or((expr, b""));
    let left = expand(r, &left.to_ascii_lowercase(), false)?;
    let rest = skip_spaces(rest);
    if rest.is_empty() {
        return Ok(!left.is_empty());
    }
    let invalid = |r: &Request| {
        Err(failed(
            r,
            format_args!(
                "invalid expression in \"{}\"",
                String::from_utf8_lossy(expr)
            ),
        ))
    };
    let (equal, right) = match rest {
        [b'=', right @ ..] => (true, skip_spaces(right)),
        [b'!', b'=', right @ ..] => (false, skip_spaces(right)),
        _ => return invalid(r),
    };
    let same = match right {
        [b'/', pattern @ .., b'/'] => {
            let pattern = expand(r, pattern, false)?;
            matches(r, &pattern, &left)?
        }
        [b'/', _, ..] => return invalid(r),
        [b'\\', text @ ..] if text.first() == Some(&b'/') => left == expand(r, text, false)?,
        text => left == expand(r, text, false)?,
    };
    Ok(same == equal)
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let n = text.iter().position(|c| *c != b' ').unwrap_or(text.len());
    text.get(n..).unwrap_or_default()
}

/// Matches a pattern that stands in a page; where it does, its groups are the captures.
fn matches(r: &Request, pattern: &[u8], subject: &[u8]) -> Result<bool, Failed> {
    let text = String::from_utf8_lossy(pattern);
    let regex = pcre2::bytes::Regex::new(&text).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.rsplit(": ").next().unwrap_or(&reason);
        let at = e.offset().and_then(|o| text.get(o..)).unwrap_or_default();
        match at {
            "" => failed(
                r,
                format_args!("pcre2_compile() failed: {reason} in \"{text}\""),
            ),
            at => failed(
                r,
                format_args!("pcre2_compile() failed: {reason} in \"{text}\" at \"{at}\""),
            ),
        }
    })?;
    let groups = match regex.captures(subject) {
        Ok(Some(groups)) => groups,
        Ok(None) => return Ok(false),
        Err(e) => {
            let (code, subject) = (e.code(), String::from_utf8_lossy(subject));
            r.error(
                Level::Alert,
                format_args!("pcre2_match() failed: {code} on \"{subject}\" using \"{text}\""),
            );
            return Err(Failed);
        }
    };
    let value = |i: usize| {
        groups
            .get(i)
            .map(|m| m.as_bytes().to_vec())
            .unwrap_or_default()
    };
    if let Some(memory) = Memory::of(r) {
        memory.captured((0..groups.len()).map(value).collect());
        for (i, name) in regex.capture_names().iter().enumerate() {
            if let Some(name) = name {
                memory.set(name.to_ascii_lowercase().as_bytes(), value(i));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_go_before_what_they_protect() {
        let unescaped = |t: &str| {
            let mut out = Vec::new();
            let rest = literal(t.as_bytes(), &mut out);
            (
                String::from_utf8_lossy(&out).into_owned(),
                String::from_utf8_lossy(rest).into_owned(),
            )
        };
        assert_eq!(
            unescaped(r#"a\"b\'c\\d\$e\f"#),
            (r#"a"b'c\d$e\f"#.into(), String::new())
        );
        assert_eq!(unescaped("a$b"), ("a".into(), "$b".into()));
    }

    #[test]
    fn names_end_where_they_must() {
        assert_eq!(split_name(b"ab_1-c"), (&b"ab_1"[..], &b"-c"[..]));
        assert_eq!(split_name(b""), (&b""[..], &b""[..]));
    }

    #[test]
    fn captures_come_before_variables() {
        let m = Memory::default();
        m.set(b"1", b"var".to_vec());
        assert_eq!(m.get(b"1").as_deref(), Some(&b"var"[..]));
        m.captured(vec![b"all".to_vec(), b"one".to_vec()]);
        assert_eq!(
            (m.get(b"1").as_deref(), m.get(b"2")),
            (Some(&b"one"[..]), None)
        );
    }
}
