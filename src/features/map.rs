//! `map`: a variable whose value depends on another value.

use crate::contract::*;
use std::collections::HashMap;
use std::sync::Arc;

/// nginx's ngx_http_map_module.
pub struct Map;

impl Module for Map {
    const NAME: &'static str = "http_map";
    type Conf = ();
    const DIRECTIVES: &'static [Directive<()>] = &[Directive::new(
        "map",
        Place::HTTP,
        Args::Block(2, 2),
        "`map source $variable { value result; … }` A variable whose value depends on the source. Inside: `default`, `hostnames`, `volatile`, `include`, `~pattern`, `~*pattern`.",
        |_, s, b| read(s, b),
    )];

    fn attach(_conf: &Arc<()>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

/// A `map` block.
struct Table {
    source: Template,
    hostnames: bool,
    keys: Keys,
    patterns: PatternList<Template>,
    default: Template,
}

impl Evaluate for Table {
    fn evaluate<'r>(&'r self, r: &'r Request) -> Val<'r> {
        let subject = match self.source.as_variable() {
            Some(id) => r.var(id),
            None => match self.source.eval(r) {
                std::borrow::Cow::Borrowed(b) => Val::Bytes(b),
                std::borrow::Cow::Owned(v) => Val::Owned(v),
            },
        };
        let mut subject = subject.as_bytes();
        if self.hostnames {
            subject = subject.strip_suffix(b".").unwrap_or(subject);
        }
        let result = match self.keys.find(subject) {
            Some(t) => t,
            None => {
                // as in nginx, nothing is no subject
                let hit = (!subject.is_empty())
                    .then(|| self.patterns.candidates(subject))
                    .into_iter()
                    .flatten()
                    .find(|(p, _)| p.exec_shared(subject, r));
                hit.map_or(&self.default, |(_, t)| t)
            }
        };
        match result.as_literal() {
            Some(text) => Val::Bytes(text),
            None => Val::Owned(result.eval(r).into_owned()),
        }
    }
}

type Hashed = HashMap<Box<[u8]>, Template, foldhash::fast::FixedState>;

/// The values that are no patterns, in lower case.
#[derive(Default)]
struct Keys {
    exact: Hashed,
    /// `*.example.com` and `.example.com`, without what stands before `example`.
    leading: Hashed,
    /// `www.example.*`, without `.*`.
    trailing: Hashed,
}

impl Keys {
    fn find(&self, subject: &[u8]) -> Option<&Template> {
        if self.exact.is_empty() && self.leading.is_empty() && self.trailing.is_empty() {
            return None;
        }
        let mut small = [0u8; 128];
        let large;
        let low = match small.get_mut(..subject.len()) {
            Some(low) => {
                low.copy_from_slice(subject);
                low.make_ascii_lowercase();
                &*low
            }
            None => {
                large = subject.to_ascii_lowercase();
                &*large
            }
        };
        if let Some(t) = self.exact.get(low) {
            return Some(t);
        }
        // the longest name wins on either side
        if !self.leading.is_empty()
            && let Some(t) =
                memchr::memchr_iter(b'.', low).find_map(|at| self.leading.get(low.get(at + 1..)?))
        {
            return Some(t);
        }
        if self.trailing.is_empty() {
            return None;
        }
        memchr::memrchr_iter(b'.', low).find_map(|at| self.trailing.get(low.get(..at)?))
    }

    /// Adds a value; the error is what nginx says of it.
    fn add(&mut self, key: &[u8], hostnames: bool, result: Template) -> Result<(), String> {
        let low = key.to_ascii_lowercase();
        let conflict = || {
            Err(format!(
                "conflicting parameter \"{}\"",
                String::from_utf8_lossy(&low)
            ))
        };
        if hostnames {
            let stars = low.iter().filter(|c| **c == b'*').count();
            let invalid = || {
                Err(format!(
                    "invalid hostname or wildcard \"{}\"",
                    String::from_utf8_lossy(key)
                ))
            };
            if stars > 1 || low.contains(&0) || low.windows(2).any(|w| w == b"..") {
                return invalid();
            }
            let (table, name) = match &*low {
                [b'.', name @ ..] if !name.is_empty() => {
                    if self.exact.contains_key(name) || self.leading.contains_key(name) {
                        return conflict();
                    }
                    self.exact.insert(name.into(), result.clone());
                    (&mut self.leading, name)
                }
                [b'*', b'.', name @ ..] if !name.is_empty() => (&mut self.leading, name),
                [name @ .., b'.', b'*'] if !name.is_empty() => (&mut self.trailing, name),
                _ if stars > 0 => return invalid(),
                name => (&mut self.exact, name),
            };
            if table.contains_key(name) {
                return conflict();
            }
            table.insert(name.into(), result);
            return Ok(());
        }
        if self.exact.contains_key(&*low) {
            return conflict();
        }
        self.exact.insert(low.into(), result);
        Ok(())
    }
}

fn read(s: &Statement, b: &mut Build) -> ConfResult<()> {
    let source = b.template(s, 0)?;
    let name = b.var_name(s, 1)?;
    let mut table = Table {
        source,
        hostnames: false,
        keys: Keys::default(),
        patterns: PatternList::default(),
        default: Template::default(),
    };
    let mut patterns = Vec::new();
    let (mut volatile, mut has_default) = (false, false);
    for item in s.items() {
        if item.block.is_some() {
            return Err(item.unexpected_block());
        }
        let key = &*item.name.text;
        match (key, item.len()) {
            (b"hostnames", 0) => {
                table.hostnames = true;
                continue;
            }
            (b"volatile", 0) => {
                volatile = true;
                continue;
            }
            (_, 1) => {}
            _ => return Err(item.error("invalid number of the map parameters")),
        }
        let result = b.template(item, 0)?;
        match key {
            b"default" => {
                if has_default {
                    return Err(item.error("duplicate default map parameter"));
                }
                has_default = true;
                table.default = result;
            }
            [b'~', pattern @ ..] => {
                let (pattern, caseless) = match pattern.strip_prefix(b"*") {
                    Some(p) => (p, true),
                    None => (pattern, false),
                };
                patterns.push((b.pattern(item, pattern, caseless)?, result));
            }
            _ => {
                let key = key.strip_prefix(b"\\").unwrap_or(key);
                table
                    .keys
                    .add(key, table.hostnames, result)
                    .map_err(|e| item.error(e))?;
            }
        }
    }
    table.patterns = PatternList::new(patterns);
    b.define_var(s, &name, Arc::new(table), !volatile).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(hostnames: bool, list: &[&str]) -> Keys {
        let mut k = Keys::default();
        for key in list {
            k.add(key.as_bytes(), hostnames, Template::literal(key.as_bytes()))
                .unwrap();
        }
        k
    }

    fn found(k: &Keys, subject: &str) -> String {
        let t = k
            .find(subject.as_bytes())
            .and_then(Template::as_literal)
            .unwrap_or(b"-");
        String::from_utf8_lossy(t).into_owned()
    }

    #[test]
    fn exact_values_are_caseless() {
        let k = keys(false, &["FOO", "*.x", ".y"]);
        assert_eq!(
            [found(&k, "foo"), found(&k, "Foo"), found(&k, "fo")],
            ["FOO", "FOO", "-"]
        );
        assert_eq!(
            [found(&k, "a.x"), found(&k, "*.x"), found(&k, "y")],
            ["-", "*.x", "-"]
        );
        assert_eq!(found(&k, &"x".repeat(1000)), "-");
    }

    #[test]
    fn wildcards_prefer_the_longest_name() {
        let k = keys(
            true,
            &[
                "*.example.com",
                "*.b.example.com",
                ".other.org",
                "www.example.*",
                "www.*",
                "exact.example.com",
            ],
        );
        for (subject, key) in [
            ("a.example.com", "*.example.com"),
            ("A.B.Example.com", "*.b.example.com"),
            ("b.example.com", "*.example.com"),
            ("exact.example.com", "exact.example.com"),
            ("example.com", "-"),
            ("other.org", ".other.org"),
            ("x.other.org", ".other.org"),
            ("www.example.net", "www.example.*"),
            ("www.example.co.uk", "www.example.*"),
            ("www.net", "www.*"),
            ("www", "-"),
            ("", "-"),
        ] {
            assert_eq!(found(&k, subject), key, "{subject}");
        }
    }

    #[test]
    fn conflicts_and_bad_names() {
        let mut k = keys(true, &["a.com", ".b.com", "*.c.com"]);
        for (key, message) in [
            ("A.com", "conflicting parameter \"a.com\""),
            (".a.com", "conflicting parameter \".a.com\""),
            ("b.com", "conflicting parameter \"b.com\""),
            ("*.b.com", "conflicting parameter \"*.b.com\""),
            (".c.com", "conflicting parameter \".c.com\""),
            ("a*", "invalid hostname or wildcard \"a*\""),
            ("*", "invalid hostname or wildcard \"*\""),
            ("*.*", "invalid hostname or wildcard \"*.*\""),
            ("a..b", "invalid hostname or wildcard \"a..b\""),
        ] {
            assert_eq!(
                k.add(key.as_bytes(), true, Template::default()),
                Err(message.to_owned()),
                "{key}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_panics(list in proptest::collection::vec("[.*a-c]{0,6}", 0..6), subject in "[.a-c]{0,9}") {
            let mut k = Keys::default();
            for key in &list {
                let _ = k.add(key.as_bytes(), true, Template::default());
            }
            let _ = k.find(subject.as_bytes());
        }
    }
}
