//! `split_clients`: a variable that divides clients into parts of given sizes.

use crate::contract::*;
use std::sync::Arc;

/// nginx's ngx_http_split_clients_module.
pub struct SplitClients;

impl Module for SplitClients {
    const NAME: &'static str = "http_split_clients";
    type Conf = ();
    const DIRECTIVES: &'static [Directive<()>] = &[Directive::new(
        "split_clients",
        Place::HTTP,
        Args::Block(2, 2),
        "`split_clients string $variable { percent% value; … * value; }` A variable whose value depends on a hash of the string.",
        |_, s, b| read(s, b),
    )];

    fn attach(_conf: &Arc<()>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

/// A `split_clients` block.
struct Split {
    source: Template,
    /// Hashes below the bound get the value; `None` is "all others".
    parts: Vec<(Option<u32>, Box<[u8]>)>,
}

impl Evaluate for Split {
    fn evaluate<'r>(&'r self, r: &'r Request) -> Val<'r> {
        let hash = match self.source.as_variable() {
            Some(id) => murmur_hash2(r.var(id).as_bytes()),
            None => murmur_hash2(&self.source.eval(r)),
        };
        let part = self
            .parts
            .iter()
            .find(|(bound, _)| bound.is_none_or(|b| hash < b));
        part.map_or(Val::EMPTY, |(_, value)| Val::Bytes(value))
    }
}

fn read(s: &Statement, b: &mut Build) -> ConfResult<()> {
    let source = b.template(s, 0)?;
    let name = b.var_name(s, 1)?;
    let mut shares = Vec::new();
    for item in s.items() {
        if item.block.is_some() {
            return Err(item.unexpected_block());
        }
        if item.len() != 1 {
            return Err(item.invalid_number_of_arguments());
        }
        let key = &*item.name.text;
        let share = match key {
            b"*" => None,
            _ => match key.strip_suffix(b"%").and_then(hundredths) {
                Some(n) if n > 0 => Some(n),
                _ => {
                    return Err(item.error(format!(
                        "invalid percent value \"{}\"",
                        String::from_utf8_lossy(key)
                    )));
                }
            },
        };
        shares.push((share, item.arg(0).into()));
    }
    let Some(parts) = bounds(shares) else {
        return Err(s.error("percent total is greater than 100%"));
    };
    b.define_var(s, &name, Arc::new(Split { source, parts }), true)
        .map(drop)
}

/// Hundredths of a percent: at most two digits behind the point.
fn hundredths(text: &[u8]) -> Option<u32> {
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &b""[..]),
    };
    if text.is_empty() || fraction.len() > 2 {
        return None;
    }
    let digits = whole
        .iter()
        .chain(fraction)
        .chain(std::iter::repeat_n(&b'0', 2 - fraction.len()));
    digits.into_iter().try_fold(0u32, |n, d| {
        let digit = d.is_ascii_digit().then(|| u32::from(d - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// From shares in hundredths of a percent to bounds of the hash; `None` if there are more than 100%.
fn bounds<T>(shares: Vec<(Option<u32>, T)>) -> Option<Vec<(Option<u32>, T)>> {
    const ALL: u32 = 10_000;
    let (mut sum, mut last) = (0u32, 0u32);
    let mut parts = Vec::with_capacity(shares.len());
    for (share, value) in shares {
        sum = match share {
            Some(n) => sum.saturating_add(n),
            None => ALL,
        };
        if sum > ALL {
            return None;
        }
        let bound = match share {
            Some(n) if sum < ALL => {
                last += (u64::from(n) * u64::from(u32::MAX) / u64::from(ALL)) as u32;
                Some(last)
            }
            _ => None,
        };
        parts.push((bound, value));
    }
    Some(parts)
}

/// MurmurHash2 with the seed 0.
fn murmur_hash2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percents() {
        for (text, n) in [
            ("50", Some(5000)),
            ("0.5", Some(50)),
            ("0.05", Some(5)),
            (".5", Some(50)),
            ("5.", Some(500)),
            ("33.33", Some(3333)),
        ] {
            assert_eq!(hundredths(text.as_bytes()), n, "{text}");
        }
        for text in ["", "1.234", "-1", "1.2.3", "x", "99999999999"] {
            assert_eq!(hundredths(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn bounds_as_nginx_has_them() {
        let of = |list: &[Option<u32>]| {
            bounds(list.iter().map(|s| (*s, ())).collect())
                .map(|v| v.into_iter().map(|(b, ())| b).collect::<Vec<_>>())
        };
        assert_eq!(
            of(&[Some(5000), None]),
            Some(vec![Some(2_147_483_647), None])
        );
        assert_eq!(
            of(&[Some(5000), Some(5000)]),
            Some(vec![Some(2_147_483_647), None])
        );
        assert_eq!(of(&[Some(5000), Some(5001)]), None);
        assert_eq!(of(&[None, Some(1)]), None);
    }

    #[test]
    fn hashes() {
        // values of the reference implementation
        for (text, hash) in [
            ("", 0),
            ("a", 0x9268_5f5e),
            ("ab", 0x1aa1_4063),
            ("abc", 0x1357_7c9b),
            ("abcd", 0x2687_3021),
            ("hello", 0xe561_29cb),
            ("127.0.0.1xyz", 0x980f_813f),
        ] {
            assert_eq!(murmur_hash2(text.as_bytes()), hash, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = (hundredths(&text), murmur_hash2(&text));
        }
    }
}
