//! Patterns of which the first that matches counts.

use super::Pattern;
use super::literal_prefilter::{Candidates, Sieve};
use std::sync::Arc;

/// Patterns in their order, each with what it leads to; of many, only those that can match are run.
#[derive(Clone)]
pub struct PatternList<T> {
    list: Box<[(Arc<Pattern>, T)]>,
    sieve: Option<Arc<Sieve>>,
}

impl<T> Default for PatternList<T> {
    fn default() -> Self {
        PatternList::new(Vec::new())
    }
}

impl<T> PatternList<T> {
    /// The patterns in the order in which they are tried.
    pub fn new(list: Vec<(Arc<Pattern>, T)>) -> Self {
        let sieve = Sieve::new(list.iter().map(|(p, _)| p.source())).map(Arc::new);
        PatternList {
            list: list.into(),
            sieve,
        }
    }

    /// Those that may match `subject`, in order.
    pub fn candidates(&self, subject: &[u8]) -> impl Iterator<Item = &(Arc<Pattern>, T)> {
        match &self.sieve {
            None => Tried::All(self.list.iter()),
            Some(sieve) => Tried::Few(&self.list, sieve.candidates(subject)),
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, (Arc<Pattern>, T)> {
        self.list.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl<'a, T> IntoIterator for &'a PatternList<T> {
    type Item = &'a (Arc<Pattern>, T);
    type IntoIter = std::slice::Iter<'a, (Arc<Pattern>, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// All patterns, or those with the numbers.
enum Tried<'a, T> {
    All(std::slice::Iter<'a, (Arc<Pattern>, T)>),
    Few(&'a [(Arc<Pattern>, T)], Candidates),
}

impl<'a, T> Iterator for Tried<'a, T> {
    type Item = &'a (Arc<Pattern>, T);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Tried::All(all) => all.next(),
            Tried::Few(list, numbers) => list.get(numbers.next()?),
        }
    }
}
