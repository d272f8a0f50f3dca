//! `proxy_cookie_domain`, `proxy_cookie_path` and `proxy_cookie_flags`.

use super::redirect::{Match, Rule, first};
use crate::contract::*;
use std::borrow::Cow;

/// One `proxy_cookie_flags`.
#[derive(Clone)]
pub struct FlagsRule {
    /// The cookie's name.
    pub cookie: Match,
    /// `secure`, `nohttponly`, `samesite=lax` …
    pub flags: Vec<Template>,
}

/// Rewrites a `Set-Cookie` value into `out`; false where nothing changes.
pub fn rewrite(
    domains: &[Rule],
    paths: &[Rule],
    flags: &[FlagsRule],
    r: &mut Request,
    value: &[u8],
    out: &mut Vec<u8>,
) -> bool {
    let mut attributes = parse(value);
    let Some(Attribute {
        name: cookie,
        value: Some(_),
    }) = attributes.first().cloned()
    else {
        return false;
    };
    let mut changed = false;
    for a in attributes.iter_mut().skip(1) {
        let Some(old) = &a.value else { continue };
        let rules = match &*a.name {
            n if n.eq_ignore_ascii_case(b"domain") => domains,
            n if n.eq_ignore_ascii_case(b"path") => paths,
            _ => continue,
        };
        let mut new = Vec::new();
        if first(rules, r, old, 0, &mut new) {
            a.value = Some(Cow::Owned(new));
            changed = true;
        }
    }
    if let Some(wanted) = wanted_flags(flags, r, &cookie) {
        apply_flags(&mut attributes, wanted);
        changed = true;
    }
    if changed {
        out.clear();
        write(&attributes, out);
    }
    changed
}

/// One part of `Set-Cookie` between semicolons.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attribute<'a> {
    name: Cow<'a, [u8]>,
    value: Option<Cow<'a, [u8]>>,
}

/// What `proxy_cookie_flags` asks for; `None` leaves an attribute as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags {
    secure: Option<bool>,
    http_only: Option<bool>,
    same_site: Option<SameSite>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SameSite {
    Strict,
    Lax,
    None,
    Off,
}

impl SameSite {
    fn text(self) -> Option<&'static [u8]> {
        match self {
            SameSite::Strict => Some(b"Strict"),
            SameSite::Lax => Some(b"Lax"),
            SameSite::None => Some(b"None"),
            SameSite::Off => None,
        }
    }
}

impl Flags {
    fn add(&mut self, word: &[u8]) {
        let word = word.to_ascii_lowercase();
        match &*word {
            b"secure" => self.secure = Some(true),
            // as in nginx, what sets a flag wins over what drops it
            b"nosecure" => self.secure = self.secure.or(Some(false)),
            b"httponly" => self.http_only = Some(true),
            b"nohttponly" => self.http_only = self.http_only.or(Some(false)),
            b"samesite=strict" => self.same_site = Some(SameSite::Strict),
            b"samesite=lax" if self.same_site != Some(SameSite::Strict) => {
                self.same_site = Some(SameSite::Lax)
            }
            b"samesite=none" if matches!(self.same_site, None | Some(SameSite::Off)) => {
                self.same_site = Some(SameSite::None)
            }
            b"nosamesite" => self.same_site = self.same_site.or(Some(SameSite::Off)),
            _ => {}
        }
    }
}

fn wanted_flags(rules: &[FlagsRule], r: &mut Request, cookie: &[u8]) -> Option<Flags> {
    let rule = rules.iter().find(|rule| match &rule.cookie {
        Match::Pattern(p) => p.exec(cookie, r),
        Match::Prefix(t) | Match::Domain(t) => cookie.eq_ignore_ascii_case(&t.eval(r)),
    })?;
    let mut flags = Flags::default();
    for f in &rule.flags {
        flags.add(&f.eval(r));
    }
    (flags != Flags::default()).then_some(flags)
}

fn parse(value: &[u8]) -> Vec<Attribute<'_>> {
    let part = |part| match memchr::memchr(b'=', part) {
        Some(at) => {
            let (name, value) = part.split_at(at);
            let value = trim(value.get(1..).unwrap_or_default());
            Attribute {
                name: trim(name).into(),
                value: Some(value.into()),
            }
        }
        None => Attribute {
            name: trim(part).into(),
            value: None,
        },
    };
    value.split(|b| *b == b';').map(part).collect()
}

/// Cuts spaces off, and nothing else: tabs stay, as in nginx.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

fn apply_flags<'a>(attributes: &mut Vec<Attribute<'a>>, mut flags: Flags) {
    let mut index = 0;
    attributes.retain_mut(|a| {
        index += 1;
        if index == 1 {
            return true;
        }
        let flag = match &*a.name {
            n if n.eq_ignore_ascii_case(b"secure") => &mut flags.secure,
            n if n.eq_ignore_ascii_case(b"httponly") => &mut flags.http_only,
            n if n.eq_ignore_ascii_case(b"samesite") => {
                return match flags.same_site.map(SameSite::text) {
                    None => true,
                    Some(None) => false,
                    Some(Some(text)) => {
                        if !a
                            .value
                            .as_ref()
                            .is_some_and(|v| v.eq_ignore_ascii_case(text))
                        {
                            *a = Attribute {
                                name: (&b"SameSite"[..]).into(),
                                value: Some(text.into()),
                            };
                        }
                        flags.same_site = None;
                        true
                    }
                };
            }
            _ => return true,
        };
        match *flag {
            Some(true) => {
                *flag = None;
                true
            }
            Some(false) => false,
            None => true,
        }
    });
    let mut add = |name: &'static [u8], value: Option<&'static [u8]>| {
        attributes.push(Attribute {
            name: name.into(),
            value: value.map(Cow::Borrowed),
        });
    };
    if flags.secure == Some(true) {
        add(b"Secure", None);
    }
    if flags.http_only == Some(true) {
        add(b"HttpOnly", None);
    }
    if let Some(text) = flags.same_site.and_then(SameSite::text) {
        add(b"SameSite", Some(text));
    }
}

fn write(attributes: &[Attribute<'_>], out: &mut Vec<u8>) {
    for (i, a) in attributes.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(&a.name);
        if let Some(v) = &a.value {
            out.push(b'=');
            out.extend_from_slice(v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flagged(cookie: &str, words: &str) -> String {
        let mut flags = Flags::default();
        words.split(' ').for_each(|w| flags.add(w.as_bytes()));
        let mut attributes = parse(cookie.as_bytes());
        apply_flags(&mut attributes, flags);
        let mut out = Vec::new();
        write(&attributes, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn flags_are_added_replaced_and_dropped() {
        for (cookie, words, expected) in [
            ("a=b", "secure", "a=b; Secure"),
            ("a=b; SECURE", "secure httponly", "a=b; SECURE; HttpOnly"),
            ("a=b; secure; path=/", "nosecure", "a=b; path=/"),
            (
                "a=b; samesite=lax",
                "samesite=strict",
                "a=b; SameSite=Strict",
            ),
            (
                "a=b; samesite=STRICT",
                "samesite=strict",
                "a=b; samesite=STRICT",
            ),
            (
                "a=b; samesite=lax; HttpOnly",
                "nosamesite nohttponly",
                "a=b",
            ),
            ("a=b", "samesite=none samesite=lax", "a=b; SameSite=Lax"),
            ("a=b", "Samesite=None", "a=b; SameSite=None"),
            ("a=b", "what", "a=b"),
        ] {
            assert_eq!(flagged(cookie, words), expected);
        }
    }

    #[test]
    fn parts_lose_spaces_only_around() {
        let parts = parse(b"a = b c ;x;  path=/ ;");
        let shown: Vec<_> = parts
            .iter()
            .map(|a| (a.name.to_vec(), a.value.as_ref().map(|v| v.to_vec())))
            .collect();
        assert_eq!(
            shown,
            [
                (b"a".to_vec(), Some(b"b c".to_vec())),
                (b"x".to_vec(), None),
                (b"path".to_vec(), Some(b"/".to_vec())),
                (b"".to_vec(), None),
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let parts = parse(&value);
            let mut out = Vec::new();
            write(&parts, &mut out);
            prop_assert_eq!(parse(&out), parts);
        }
    }
}
