//! Which of many patterns can match a subject at all.
//!
//! Most patterns of a configuration contain a text that every match of theirs contains (`/item7/` in
//! `^/[a-z]+/item7/`). One pass over the subject finds which of these texts are in it; patterns whose text is not need
//! not be run.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use smallvec::SmallVec;

/// A set of numbers of patterns.
type Bits = SmallVec<[u64; 8]>;

/// Finds the patterns that a subject may match.
pub(super) struct Sieve {
    texts: AhoCorasick,
    /// The pattern of each text.
    owners: Box<[u32]>,
    /// The patterns without such a text, which are always run.
    always: Bits,
}

impl Sieve {
    /// Fewer patterns are sooner run than sorted out.
    const LEAST: usize = 8;

    /// A sieve for patterns in their order; `None` where it would not pay.
    pub fn new<'a>(patterns: impl ExactSizeIterator<Item = &'a str>) -> Option<Sieve> {
        let count = patterns.len();
        if count < Self::LEAST {
            return None;
        }
        let mut always: Bits = smallvec::smallvec![0; count.div_ceil(64)];
        let (mut texts, mut owners) = (Vec::new(), Vec::new());
        for (n, pattern) in patterns.enumerate() {
            match required(pattern) {
                Some(text) => {
                    texts.push(text);
                    owners.push(n as u32);
                }
                None => set(&mut always, n),
            }
        }
        if texts.len() < Self::LEAST {
            return None;
        }
        // letters of either case: what `~*` matches, and for the others no more than a pattern run in vain
        let texts = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            .build(&texts)
            .ok()?;
        Some(Sieve {
            texts,
            owners: owners.into(),
            always,
        })
    }

    /// The numbers of the patterns that may match, in order.
    pub fn candidates(&self, subject: &[u8]) -> Candidates {
        let mut bits = self.always.clone();
        for found in self.texts.find_overlapping_iter(subject) {
            if let Some(n) = self.owners.get(found.pattern().as_usize()) {
                set(&mut bits, *n as usize);
            }
        }
        Candidates { bits, word: 0 }
    }
}

fn set(bits: &mut Bits, n: usize) {
    if let Some(word) = bits.get_mut(n / 64) {
        *word |= 1 << (n % 64);
    }
}

/// Numbers of patterns, in order.
pub(super) struct Candidates {
    bits: Bits,
    word: usize,
}

impl Iterator for Candidates {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            let word = self.bits.get_mut(self.word)?;
            if *word != 0 {
                let n = word.trailing_zeros() as usize;
                *word &= *word - 1;
                return Some(self.word * 64 + n);
            }
            self.word += 1;
        }
    }
}

/// A text that every match of a pattern contains, letters in either case: the longest one that is plain to see.
///
/// Knows the common part of PCRE's syntax; `None` for everything else.
fn required(pattern: &str) -> Option<Vec<u8>> {
    let mut reader = Reader {
        text: pattern.as_bytes(),
        at: 0,
    };
    let found = reader.alternatives(0).ok()?;
    // a `)` too much
    if reader.at < reader.text.len() {
        return None;
    }
    found.filter(|text| !text.is_empty())
}

/// What is not understood.
struct Unknown;

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

/// The text being collected, and the longest one so far.
#[derive(Default)]
struct Best {
    run: Vec<u8>,
    best: Vec<u8>,
}

impl Best {
    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        self.offer(run);
    }

    fn offer(&mut self, text: Vec<u8>) {
        if text.len() > self.best.len() {
            self.best = text;
        }
    }
}

/// How often what stands before it is wanted.
enum Times {
    Once,
    /// At least once.
    More,
    /// Perhaps not at all.
    Perhaps,
}

impl Reader<'_> {
    /// Groups in groups.
    const DEEPEST: usize = 50;

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Up to the end or to the `)` of the group; `None` where there is a choice.
    fn alternatives(&mut self, depth: usize) -> Result<Option<Vec<u8>>, Unknown> {
        if depth > Self::DEEPEST {
            return Err(Unknown);
        }
        let mut seen = Best::default();
        let mut choice = false;
        while let Some(c) = self.peek() {
            if c == b')' {
                break;
            }
            self.at += 1;
            let literal = match c {
                b'|' => {
                    choice = true;
                    continue;
                }
                b'\\' => self.escape()?,
                b'[' => {
                    self.class()?;
                    None
                }
                b'(' => {
                    let counts = self.group_begins()?;
                    let inner = self.alternatives(depth + 1)?;
                    if self.next() != Some(b')') {
                        return Err(Unknown);
                    }
                    seen.end_run();
                    match self.times() {
                        Times::Once | Times::More if counts => {
                            seen.offer(inner.unwrap_or_default());
                        }
                        _ => {}
                    }
                    continue;
                }
                b'^' | b'$' | b'.' | b'*' | b'+' | b'?' | b'{' => None,
                c => c.is_ascii().then_some(c),
            };
            match (literal, self.times()) {
                (Some(c), Times::Once) => seen.run.push(c),
                (Some(c), Times::More) => {
                    seen.run.push(c);
                    seen.end_run();
                }
                _ => seen.end_run(),
            }
        }
        seen.end_run();
        Ok((!choice).then_some(seen.best))
    }

    /// After a backslash: the character that stands for itself, or `None` for a class or an assertion.
    fn escape(&mut self) -> Result<Option<u8>, Unknown> {
        match self.next() {
            Some(
                b'd' | b'D' | b'w' | b'W' | b's' | b'S' | b'h' | b'H' | b'v' | b'V' | b'b' | b'B'
                | b'A' | b'Z' | b'z' | b't' | b'n' | b'r' | b'f' | b'R',
            ) => Ok(None),
            Some(c) if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(Some(c)),
            _ => Err(Unknown),
        }
    }

    /// After `[`, up to the `]` that ends the class.
    fn class(&mut self) -> Result<(), Unknown> {
        if self.peek() == Some(b'^') {
            self.at += 1;
        }
        // a first `]` is a member
        if self.peek() == Some(b']') {
            self.at += 1;
        }
        loop {
            match self.next().ok_or(Unknown)? {
                b']' => return Ok(()),
                b'[' if matches!(self.peek(), Some(b':' | b'.' | b'=')) => return Err(Unknown),
                b'\\' => match self.next() {
                    Some(b'Q' | b'E') | None => return Err(Unknown),
                    _ => {}
                },
                _ => {}
            }
        }
    }

    /// After `(`; whether what is in the group is part of the match.
    fn group_begins(&mut self) -> Result<bool, Unknown> {
        let (length, counts) = match self.rest() {
            [b'*', ..] => return Err(Unknown),
            [b'?', b':' | b'>', ..] => (2, true),
            [b'?', b'=' | b'!', ..] => (2, false),
            [b'?', b'<', b'=' | b'!', ..] => (3, false),
            [b'?', b'<', name @ ..] => (3 + name_length(name)?, true),
            [b'?', b'P', b'<', name @ ..] => (4 + name_length(name)?, true),
            [b'?', ..] => return Err(Unknown),
            _ => (0, true),
        };
        self.at += length;
        Ok(counts)
    }

    /// The quantifiers that stand here.
    fn times(&mut self) -> Times {
        let mut times = Times::Once;
        loop {
            match self.peek() {
                Some(b'*' | b'?') => {
                    // `+?` is wanted once too; which of them it is does not matter for the others
                    times = match times {
                        Times::More => Times::More,
                        _ => Times::Perhaps,
                    };
                    self.at += 1;
                }
                Some(b'+') => {
                    if matches!(times, Times::Once) {
                        times = Times::More;
                    }
                    self.at += 1;
                }
                Some(b'{') => {
                    times = Times::Perhaps;
                    let end = self.rest().iter().position(|c| *c == b'}');
                    let within = |n: &usize| {
                        let inside = self.rest().get(1..*n).unwrap_or_default();
                        inside
                            .iter()
                            .all(|c| matches!(c, b'0'..=b'9' | b',' | b' ' | b'\t'))
                    };
                    match end.filter(within) {
                        Some(n) => self.at += n + 1,
                        // a brace that stands for itself
                        None => return times,
                    }
                }
                _ => return times,
            }
        }
    }
}

/// The length of a name before its `>`.
fn name_length(text: &[u8]) -> Result<usize, Unknown> {
    let end = text.iter().position(|c| *c == b'>').ok_or(Unknown)?;
    let name = text.get(..end).unwrap_or_default();
    match name.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_') {
        true => Ok(end),
        false => Err(Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(pattern: &str) -> String {
        required(pattern).map_or("-".into(), |t| String::from_utf8(t).unwrap())
    }

    #[test]
    fn what_every_match_contains() {
        for (pattern, want) in [
            ("^/[a-z]+/item7/[0-9]+$", "/item7/"),
            (r"\.php$", ".php"),
            (r"\.(gif|jpe?g|png)$", "."),
            ("^/(api/v1)/", "api/v1"),
            ("^/(?:api/v1)?/x", "/x"),
            ("(?<name>abc)+d", "abc"),
            ("(?!forbidden)x", "x"),
            ("(?=forbidden)x", "x"),
            ("(?<!forbidden)x", "x"),
            ("ab+cd", "ab"),
            ("ab?cd", "cd"),
            ("ab*", "a"),
            ("ab{2,3}cde", "cde"),
            ("ab{0}c", "a"),
            ("ab{x}", "x}"),
            ("ab+?cde", "cde"),
            ("a|b", "-"),
            ("^/(a|b)$", "/"),
            ("(a|b)(c|d)", "-"),
            ("[]abc]x", "x"),
            ("[^]abc]x", "x"),
            (r"[\]abc]x", "x"),
            ("[[:alpha:]abc]x", "-"),
            (r"\Qa.b\E", "-"),
            (r"\x41bc", "-"),
            (r"(a)\1", "-"),
            ("(?i)abc", "-"),
            ("a(?i:b)c", "-"),
            ("(*UTF8)abc", "-"),
            ("a(?#b)c", "-"),
            ("é?ab", "ab"),
            ("ab)cd", "-"),
            ("(ab", "-"),
            ("", "-"),
            (".*", "-"),
        ] {
            assert_eq!(text(pattern), want, "{pattern}");
        }
    }

    fn sieve(patterns: &[&str]) -> Sieve {
        Sieve::new(patterns.iter().copied()).unwrap()
    }

    #[test]
    fn sorts_out_in_order() {
        let mut patterns = vec!["nine", ".*", "item1", "item19", "/item1"];
        let more: Vec<String> = (0..200).map(|n| format!("^/more{n}/")).collect();
        patterns.extend(more.iter().map(String::as_str));
        let s = sieve(&patterns);
        let found = |subject: &str| s.candidates(subject.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("/ITEM19"), [1, 2, 3, 4]);
        assert_eq!(found("/more199/x"), [1, 204]);
        assert_eq!(found(""), [1]);
        assert!(Sieve::new(["a"].into_iter()).is_none());
        assert!(Sieve::new([".*"; 20].into_iter()).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        // never sorts out what PCRE would match
        #[test]
        fn agrees_with_pcre(
            pattern in r"([ab/.^$|+*?]|\[\^?[\]ab/]?[ab\]]|[(](\?[:=!]|\?<n>)?|[)]|\{[12]?,?2?\}|\\[.dwbQE1x/]){0,10}",
            subject in "[abAB/.]{0,8}",
            caseless: bool,
        ) {
            if let Ok(regex) = crate::contract::Pattern::compile(&pattern, caseless)
                && let Some(text) = required(&pattern)
                && matches!(regex.is_match(subject.as_bytes()), Ok(true))
            {
                let low = subject.to_ascii_lowercase();
                let text = text.to_ascii_lowercase();
                prop_assert!(memchr::memmem::find(low.as_bytes(), &text).is_some(), "{pattern} {subject}");
            }
        }

        #[test]
        fn never_panics(pattern in ".{0,40}") {
            let _ = required(&pattern);
        }
    }
}
