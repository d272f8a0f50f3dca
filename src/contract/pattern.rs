//! Regular expressions of the configuration: PCRE, with named captures that become variables.

use super::{Request, VarId};
use pcre2::bytes::CaptureLocations;
use std::cell::RefCell;
use std::sync::OnceLock;

/// A compiled pattern of `location ~`, `server_name ~`, `if`, `rewrite`, `map` and the like.
#[derive(Debug)]
pub struct Pattern {
    regex: pcre2::bytes::Regex,
    source: Box<str>,
    groups: usize,
    /// Named groups, with the variable that each sets.
    pub(crate) names: Box<[(VarId, usize)]>,
}

impl Pattern {
    /// Compiles a pattern; the error is the text that PCRE gives.
    pub(crate) fn compile(text: &str, caseless: bool) -> Result<pcre2::bytes::Regex, pcre2::Error> {
        pcre2::bytes::RegexBuilder::new()
            .caseless(caseless)
            .jit_if_available(true)
            .build(text)
    }

    pub(crate) fn new(
        regex: pcre2::bytes::Regex,
        source: &str,
        names: Vec<(VarId, usize)>,
    ) -> Pattern {
        Pattern {
            groups: regex.captures_len().saturating_sub(1),
            regex,
            source: source.into(),
            names: names.into(),
        }
    }

    /// The pattern as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How many groups there are, the whole match not counted.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Whether `subject` matches; leaves the captures of earlier matches alone.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.with_locations(|l| matches!(self.regex.captures_read(l, subject), Ok(Some(_))))
    }

    /// Matches `subject` and, where it does, stores `$1`… and the named captures in the request.
    pub fn exec(&self, subject: &[u8], r: &mut Request) -> bool {
        self.try_exec(subject, r).unwrap_or(false)
    }

    /// The same; tells a failed match (a limit of PCRE) from one that found nothing.
    ///
    /// # Errors
    /// What PCRE says; nginx answers 500.
    pub fn try_exec(&self, subject: &[u8], r: &mut Request) -> Result<bool, pcre2::Error> {
        let matched = self.with_locations(|l| {
            let found = self.regex.captures_read(l, subject)?.is_some();
            if found {
                r.captures.store(subject, l);
            }
            Ok(found)
        })?;
        if matched {
            for (id, group) in &self.names {
                let value = r
                    .captures
                    .range(*group)
                    .map(|(a, b)| subject[a..b].to_vec());
                r.set_var(*id, value.unwrap_or_default());
            }
        }
        Ok(matched)
    }

    /// As [`Pattern::exec`] where the request can only be read: a pattern of `map`.
    pub fn exec_shared(&self, subject: &[u8], r: &Request) -> bool {
        let matched = self.with_locations(|l| {
            if !matches!(self.regex.captures_read(l, subject), Ok(Some(_))) {
                return false;
            }
            r.captures.add(subject, l);
            true
        });
        if matched {
            for (id, group) in &self.names {
                r.note_var(*id, r.captures.get(*group));
            }
        }
        matched
    }

    /// Matches `subject` and gives the ranges of the groups to `f` (index 0 is the whole match).
    pub fn find(&self, subject: &[u8], captures: &mut Captures) -> bool {
        self.with_locations(|l| {
            if !matches!(self.regex.captures_read(l, subject), Ok(Some(_))) {
                return false;
            }
            captures.store(subject, l);
            true
        })
    }

    /// Runs `f` with match data that is kept per thread: no allocation after the first match.
    fn with_locations<T>(&self, f: impl FnOnce(&mut CaptureLocations) -> T) -> T {
        thread_local! {
            // patterns with as many groups share what PCRE writes into
            static LOCATIONS: RefCell<Vec<Option<CaptureLocations>>> = RefCell::default();
        }
        LOCATIONS.with(|m| match m.try_borrow_mut() {
            Ok(mut m) if self.groups() < 64 => {
                let n = self.groups();
                if m.len() <= n {
                    m.resize_with(n + 1, || None);
                }
                match m.get_mut(n) {
                    Some(slot) => f(slot.get_or_insert_with(|| self.regex.capture_locations())),
                    None => f(&mut self.regex.capture_locations()),
                }
            }
            _ => f(&mut self.regex.capture_locations()),
        })
    }
}

/// The groups of the last match of a request: what `$1` … `$9` read.
#[derive(Default, Debug, Clone)]
pub struct Captures {
    subject: Vec<u8>,
    ranges: Vec<(u32, u32)>,
    /// A later match, found while this one could only be read.
    newer: OnceLock<Box<Captures>>,
}

impl Captures {
    const UNSET: (u32, u32) = (u32::MAX, u32::MAX);

    fn store(&mut self, subject: &[u8], l: &CaptureLocations) {
        self.clear();
        self.subject.extend_from_slice(subject);
        for i in 0..l.len() {
            self.ranges
                .push(l.get(i).map_or(Self::UNSET, |(a, b)| (a as u32, b as u32)));
        }
    }

    fn add(&self, subject: &[u8], l: &CaptureLocations) {
        let newest = self.newest();
        // without groups there is nothing to read
        if l.len() <= 1 && newest.ranges.len() <= 1 {
            return;
        }
        let mut next = Captures::default();
        next.store(subject, l);
        if next.subject != newest.subject || next.ranges != newest.ranges {
            let _ = newest.newer.set(Box::new(next));
        }
    }

    fn newest(&self) -> &Captures {
        let mut c = self;
        while let Some(n) = c.newer.get() {
            c = n;
        }
        c
    }

    /// Group `n` of the last match; nothing where it did not take part.
    pub fn get(&self, n: usize) -> &[u8] {
        self.range(n)
            .and_then(|(a, b)| self.newest().subject.get(a..b))
            .unwrap_or_default()
    }

    /// Where group `n` stood in the subject.
    pub fn range(&self, n: usize) -> Option<(usize, usize)> {
        self.newest()
            .ranges
            .get(n)
            .filter(|r| **r != Self::UNSET)
            .map(|(a, b)| (*a as usize, *b as usize))
    }

    /// Forgets the match.
    pub fn clear(&mut self) {
        self.subject.clear();
        self.ranges.clear();
        self.newer.take();
    }
}
