//! The condition of `if`.

use super::program::{FileTest, Test};
use crate::contract::*;

/// Reads the words between `(` and `)`.
pub fn parse(s: &Statement, b: &mut Build) -> ConfResult<Test> {
    let mut words: Vec<&[u8]> = s.args.iter().map(|w| &*w.text).collect();
    let invalid = |word: Option<&&[u8]>| {
        let word = word.copied().unwrap_or_default();
        s.error(format!(
            "invalid condition \"{}\"",
            String::from_utf8_lossy(word)
        ))
    };
    let Some(rest) = words.first().and_then(|w| w.strip_prefix(b"(")) else {
        return Err(invalid(words.first()));
    };
    if rest.is_empty() {
        words.remove(0);
    } else if let Some(first) = words.first_mut() {
        *first = rest;
    }
    let Some(rest) = words.last().and_then(|w| w.strip_suffix(b")")) else {
        return Err(invalid(words.last()));
    };
    if rest.is_empty() {
        // what remains of "()" is still called by its name
        if words.len() == 1 {
            return Err(invalid(words.last()));
        }
        words.pop();
    } else if let Some(last) = words.last_mut() {
        *last = rest;
    }
    match &*words {
        [[b'$', name @ ..], rest @ ..] if !name.is_empty() => {
            if !matches!(rest.len(), 0 | 2) {
                return Err(invalid(words.first()));
            }
            let var = b.var(s, &String::from_utf8_lossy(name));
            let [operator, value] = rest else {
                return Ok(Test::True(var));
            };
            match *operator {
                b"=" | b"!=" => Ok(Test::Equal {
                    var,
                    value: b.template_of(s, value)?,
                    not: operator.len() == 2,
                }),
                b"~" | b"~*" | b"!~" | b"!~*" => {
                    let pattern = b.pattern(s, value, operator.ends_with(b"*"))?;
                    Ok(Test::Matches {
                        var,
                        pattern,
                        not: operator.starts_with(b"!"),
                    })
                }
                _ => Err(s.error(format!(
                    "unexpected \"{}\" in condition",
                    String::from_utf8_lossy(operator)
                ))),
            }
        }
        [operator @ ([b'-', kind] | [b'!', b'-', kind]), path] => {
            let path = b.template_of(s, path)?;
            let kind = match kind {
                b'f' => FileTest::Plain,
                b'd' => FileTest::Dir,
                b'e' => FileTest::Exists,
                b'x' => FileTest::Exec,
                _ => return Err(invalid(Some(operator))),
            };
            Ok(Test::File {
                kind,
                path,
                not: operator.len() == 3,
            })
        }
        _ => Err(invalid(words.first())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_text;
    use std::path::Path;
    use std::sync::Arc;

    fn read(condition: &str) -> Result<Test, String> {
        let mut block = parse_text(format!("if {condition} {{}}").as_bytes(), "f").root;
        let mut b = Build::new(
            Arc::new(ModuleRegistry::new()),
            Path::new("/"),
            Path::new("/"),
        );
        parse(&block.items.remove(0), &mut b).map_err(|e| e.message)
    }

    #[test]
    fn every_operator() {
        assert!(matches!(read("($a)"), Ok(Test::True(_))));
        assert!(matches!(read("( $a )"), Ok(Test::True(_))));
        assert!(matches!(
            read("($a = b)"),
            Ok(Test::Equal { not: false, .. })
        ));
        assert!(matches!(
            read("($a != \"\")"),
            Ok(Test::Equal { not: true, .. })
        ));
        assert!(matches!(
            read("($a ~ b)"),
            Ok(Test::Matches { not: false, .. })
        ));
        assert!(matches!(
            read("($a ~* b)"),
            Ok(Test::Matches { not: false, .. })
        ));
        assert!(matches!(
            read("($a !~ b)"),
            Ok(Test::Matches { not: true, .. })
        ));
        assert!(matches!(
            read("( $a !~* \"b c\" )"),
            Ok(Test::Matches { not: true, .. })
        ));
        assert!(matches!(
            read("(-f $a)"),
            Ok(Test::File {
                kind: FileTest::Plain,
                not: false,
                ..
            })
        ));
        assert!(matches!(
            read("(!-d $a)"),
            Ok(Test::File {
                kind: FileTest::Dir,
                not: true,
                ..
            })
        ));
        assert!(matches!(
            read("( -e /x )"),
            Ok(Test::File {
                kind: FileTest::Exists,
                not: false,
                ..
            })
        ));
        assert!(matches!(
            read("(!-x /x)"),
            Ok(Test::File {
                kind: FileTest::Exec,
                not: true,
                ..
            })
        ));
    }

    #[test]
    fn what_is_refused() {
        for (condition, message) in [
            ("$a", "invalid condition \"$a\""),
            ("($a", "invalid condition \"$a\""),
            ("($a = b", "invalid condition \"b\""),
            ("()", "invalid condition \")\""),
            ("( )", "invalid condition \")\""),
            ("($)", "invalid condition \"$\""),
            ("(a)", "invalid condition \"a\""),
            ("($a b)", "invalid condition \"$a\""),
            ("($a = b c)", "invalid condition \"$a\""),
            ("($a == b)", "unexpected \"==\" in condition"),
            ("(-z $a)", "invalid condition \"-z\""),
            ("(!-z $a)", "invalid condition \"!-z\""),
            ("(-f)", "invalid condition \"-f\""),
            ("(-f a b)", "invalid condition \"-f\""),
        ] {
            assert_eq!(
                read(condition).err().as_deref(),
                Some(message),
                "{condition}"
            );
        }
    }
}
