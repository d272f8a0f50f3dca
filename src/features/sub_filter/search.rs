//! Finds the first of several texts, in any case, in data that comes piece by piece.

/// Texts to be found (Horspool's method, for several texts by their common length).
#[derive(Debug)]
pub struct Search {
    /// In lower case, sorted by the byte at `min - 1`; those with the same byte in the order of the configuration.
    patterns: Box<[Pattern]>,
    /// Length of the shortest.
    min: usize,
    /// How far to go where a byte stands at the end of the window.
    shift: [u8; 256],
    /// Where the patterns with a byte at `min - 1` begin.
    starts: [u16; 257],
}

#[derive(Debug)]
struct Pattern {
    text: Box<[u8]>,
    /// Its place in the configuration.
    number: usize,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing, and no text can begin here and end in what comes next.
    Nothing,
    /// A text's number, and where it begins and ends.
    Match(usize, usize, usize),
    /// A text may begin here: more data decides.
    Partial(usize),
}

impl Search {
    /// Texts with their numbers; empty ones are left out. None where there is nothing to look for.
    pub fn new(texts: impl IntoIterator<Item = (usize, Vec<u8>)>) -> Option<Search> {
        let texts = texts.into_iter().filter(|(_, t)| !t.is_empty());
        let mut patterns: Vec<Pattern> = texts
            .map(|(number, t)| Pattern {
                text: t.to_ascii_lowercase().into(),
                number,
            })
            .collect();
        let min = patterns.iter().map(|p| p.text.len()).min()?;
        patterns.sort_by_key(|p| p.text.get(min - 1).copied());
        let far = min.min(255);
        let mut shift = [far as u8; 256];
        let mut starts = [0u16; 257];
        for p in &patterns {
            for back in 0..far {
                if let Some(c) = p.text.get(min - 1 - back)
                    && let Some(s) = shift.get_mut(usize::from(*c))
                {
                    *s = (*s).min(back as u8);
                }
            }
            let c = p.text.get(min - 1).copied().unwrap_or_default();
            for s in starts.iter_mut().skip(usize::from(c) + 1) {
                *s += 1;
            }
        }
        Some(Search {
            patterns: patterns.into(),
            min,
            shift,
            starts,
        })
    }

    /// Looks from `from` on: the first place counts, and there the first text of the configuration.
    pub fn find(&self, data: &[u8], from: usize, wanted: impl Fn(usize) -> bool) -> Found {
        let mut at = from + self.min - 1;
        while let Some(c) = data.get(at) {
            let c = usize::from(c.to_ascii_lowercase());
            let shift = usize::from(self.shift[c]);
            if shift > 0 {
                at += shift;
                continue;
            }
            let start = at + 1 - self.min;
            let (a, b) = (usize::from(self.starts[c]), usize::from(self.starts[c + 1]));
            for p in self
                .patterns
                .get(a..b)
                .unwrap_or_default()
                .iter()
                .filter(|p| wanted(p.number))
            {
                match p.compare(data, start) {
                    Some(true) => return Found::Match(p.number, start, start + p.text.len()),
                    Some(false) => return Found::Partial(start),
                    None => {}
                }
            }
            at += 1;
        }
        // the rest is shorter than any text
        for start in at + 1 - self.min..data.len() {
            if self
                .patterns
                .iter()
                .any(|p| wanted(p.number) && p.compare(data, start).is_some())
            {
                return Found::Partial(start);
            }
        }
        Found::Nothing
    }
}

impl Pattern {
    /// Whether the text stands at `start`: completely, or as far as the data goes.
    fn compare(&self, data: &[u8], start: usize) -> Option<bool> {
        let there = data.get(start..).unwrap_or_default();
        let n = there.len().min(self.text.len());
        let same = there
            .iter()
            .zip(&self.text)
            .all(|(a, b)| a.to_ascii_lowercase() == *b);
        same.then_some(n == self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn search(texts: &[&str]) -> Search {
        Search::new(
            texts
                .iter()
                .enumerate()
                .map(|(i, t)| (i, t.as_bytes().to_vec())),
        )
        .expect("a text")
    }

    #[test]
    fn the_first_place_and_the_first_text_win() {
        let s = search(&["aab", "AABB", "yyz"]);
        assert_eq!(s.find(b"xaAbb", 0, |_| true), Found::Match(0, 1, 4));
        assert_eq!(s.find(b"xaabb", 0, |i| i != 0), Found::Match(1, 1, 5));
        assert_eq!(s.find(b"xaabbyyz", 2, |_| true), Found::Match(2, 5, 8));
        assert_eq!(s.find(b"xxyy", 0, |_| true), Found::Partial(2));
        assert_eq!(s.find(b"xxyyx", 0, |_| true), Found::Nothing);
        assert_eq!(s.find(b"", 0, |_| true), Found::Nothing);
        assert_eq!(s.find(b"aab", 3, |_| true), Found::Nothing);
        assert!(Search::new([(0, Vec::new())]).is_none());
    }

    #[test]
    fn a_longer_text_that_may_come_holds_a_shorter_one_back() {
        let s = search(&["abcd", "b"]);
        assert_eq!(s.find(b"abc", 0, |_| true), Found::Partial(0));
        assert_eq!(s.find(b"abd", 0, |_| true), Found::Match(1, 1, 2));
    }

    fn naive(texts: &[String], data: &[u8]) -> Found {
        for start in 0..data.len() {
            // nginx looks where the byte at the shortest text's end is there; before that nothing can match as a whole
            let mut partial = false;
            for (i, t) in texts.iter().enumerate() {
                let rest = &data[start..];
                let n = rest.len().min(t.len());
                if rest[..n].eq_ignore_ascii_case(&t.as_bytes()[..n]) {
                    if n == t.len() {
                        return if partial {
                            Found::Partial(start)
                        } else {
                            Found::Match(i, start, start + n)
                        };
                    }
                    partial = true;
                }
            }
            if partial {
                return Found::Partial(start);
            }
        }
        Found::Nothing
    }

    proptest! {
        #[test]
        fn agrees_with_looking_everywhere(texts in prop::collection::vec("[abA]{1,5}", 1..5), data in "[abAB]{0,24}") {
            let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
            prop_assert_eq!(search(&refs).find(data.as_bytes(), 0, |_| true), naive(&texts, data.as_bytes()));
        }
    }
}
