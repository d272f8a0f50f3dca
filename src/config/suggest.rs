//! The nearest known name.

/// The candidate that the fewest slips of the pen turn into `name`: a letter more, less, wrong, or swapped with its
/// neighbour. None if all are too far; the first of equals wins.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name: Vec<char> = name
        .chars()
        .take(LONGEST + 1)
        .flat_map(char::to_lowercase)
        .collect();
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    // About one slip in three letters still looks like the same word.
    let limit = name.len().div_ceil(3).min(3);
    let mut best = None;
    for candidate in candidates {
        let letters: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
        if letters.len().abs_diff(name.len()) > limit {
            continue;
        }
        let slips = distance(&name, &letters);
        // A word of which every letter changes is another word.
        if slips <= limit
            && slips < letters.len().max(name.len())
            && best.is_none_or(|(fewest, _)| slips < fewest)
        {
            best = Some((slips, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// No directive has a longer name.
const LONGEST: usize = 64;

/// The Damerau-Levenshtein distance, in its "optimal string alignment" form.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut slips = (at(&above, j) + usize::from(x != y))
                .min(at(&above, j + 1) + 1)
                .min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                slips = slips.min(at(&before, j - 1) + 1);
            }
            row.push(slips);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 7] = [
        "listen",
        "location",
        "proxy_pass",
        "proxy_pass_header",
        "root",
        "server",
        "server_name",
    ];

    #[test]
    fn slips_are_found() {
        for (name, near) in [
            ("lisen", "listen"),
            ("Listen", "listen"),
            ("listne", "listen"),
            ("proxypass", "proxy_pass"),
            ("proxy_pas", "proxy_pass"),
            ("sever", "server"),
            ("server_nmae", "server_name"),
            ("rot", "root"),
        ] {
            assert_eq!(nearest(name, NAMES), Some(near), "{name}");
        }
    }

    #[test]
    fn other_words_are_not() {
        for name in ["", "x", "gzip", "map", "completely_else", &"a".repeat(1000)] {
            assert_eq!(nearest(name, NAMES), None, "{name}");
        }
        assert_eq!(nearest("a", ["b"]), None);
        assert_eq!(nearest("a", []), None);
    }

    #[test]
    fn distances() {
        let of = |a: &str, b: &str| {
            distance(
                &a.chars().collect::<Vec<_>>(),
                &b.chars().collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            (
                of("", ""),
                of("", "abc"),
                of("abc", ""),
                of("kitten", "sitting")
            ),
            (0, 3, 3, 3)
        );
        assert_eq!(
            (of("ab", "ba"), of("abcd", "acbd"), of("ca", "abc")),
            (1, 1, 3)
        );
    }

    proptest! {
        #[test]
        fn a_distance_has_no_direction(a in "[abc]{0,8}", b in "[abc]{0,8}") {
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
