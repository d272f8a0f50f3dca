//! The Huffman code of HPACK (RFC 7541, appendix B): canonical, so the lengths of the codes say it all.

/// Bits of the code of each byte; the end of the string has thirty, all of them set.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const SHORTEST: usize = 5;
const LONGEST: usize = 30;

struct Tables {
    /// Codes by byte.
    codes: [u32; 256],
    /// Bytes in the order of their codes.
    symbols: [u8; 256],
    /// Where the codes of each length begin among `symbols`.
    first_symbol: [u32; LONGEST + 1],
    first_code: [u32; LONGEST + 1],
    /// The first word of 32 bits that no longer begins with a code of this length or a shorter one.
    limit: [u64; LONGEST + 1],
    /// Byte and length of the code that eight bits begin with; length 0 where the code is longer.
    short: [(u8, u8); 256],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut t = Tables {
        codes: [0; 256],
        symbols: [0; 256],
        first_symbol: [0; LONGEST + 1],
        first_code: [0; LONGEST + 1],
        limit: [0; LONGEST + 1],
        short: [(0, 0); 256],
    };
    let (mut code, mut n, mut length) = (0u32, 0, SHORTEST);
    while length <= LONGEST {
        t.first_symbol[length] = n;
        t.first_code[length] = code;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                t.codes[symbol] = code;
                t.symbols[n as usize] = symbol as u8;
                if length <= 8 {
                    let mut i = (code as usize) << (8 - length);
                    let end = (code as usize + 1) << (8 - length);
                    while i < end {
                        t.short[i] = (symbol as u8, length as u8);
                        i += 1;
                    }
                }
                code += 1;
                n += 1;
            }
            symbol += 1;
        }
        t.limit[length] = (code as u64) << (32 - length);
        code <<= 1;
        length += 1;
    }
    t
}

/// What is no Huffman code: the end of the string inside of it, or padding that is too long or not of ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Appends the decoded string.
///
/// # Errors
/// [`Invalid`].
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    out.reserve(input.len() * 8 / SHORTEST);
    let (mut word, mut bits) = (0u64, 0u32);
    let mut bytes = input.iter();
    loop {
        while bits <= 56
            && let Some(b) = bytes.next()
        {
            word |= u64::from(*b) << (56 - bits);
            bits += 8;
        }
        let (symbol, length) = match TABLES.short.get((word >> 56) as usize) {
            Some(&(symbol, length)) if length > 0 => (symbol, u32::from(length)),
            _ => long((word >> 32) as u32).ok_or(Invalid)?,
        };
        if length > bits {
            // the end of the input: what is left are the first bits of a code, all of them ones
            let padding = !(u64::MAX.checked_shr(bits).unwrap_or(0));
            // a whole byte of padding is one bit too much, but what nginx takes
            return if bits <= 8 && word == padding {
                Ok(())
            } else {
                Err(Invalid)
            };
        }
        out.push(symbol);
        word <<= length;
        bits -= length;
    }
}

/// The byte whose code a word begins with, and the length of the code; `None` for the end of the string.
fn long(word: u32) -> Option<(u8, u32)> {
    let length = (9..=LONGEST).find(|l| {
        TABLES
            .limit
            .get(*l)
            .is_some_and(|end| u64::from(word) < *end)
    })?;
    let offset = (word >> (32 - length)) - TABLES.first_code.get(length)?;
    let symbol = TABLES
        .symbols
        .get((TABLES.first_symbol.get(length)? + offset) as usize)?;
    Some((*symbol, length as u32))
}

/// Bytes that the code of a string takes.
pub fn encoded_len(input: &[u8]) -> usize {
    let bits: usize = input
        .iter()
        .map(|b| usize::from(LENGTHS.get(usize::from(*b)).copied().unwrap_or(0)))
        .sum();
    bits.div_ceil(8)
}

/// Appends the code of a string.
pub fn encode(input: &[u8], out: &mut impl bytes::BufMut) {
    let (mut word, mut bits) = (0u64, 0u32);
    for b in input {
        let at = usize::from(*b);
        let length = u32::from(LENGTHS.get(at).copied().unwrap_or(0));
        word = word << length | u64::from(TABLES.codes.get(at).copied().unwrap_or(0));
        bits += length;
        while bits >= 8 {
            bits -= 8;
            out.put_u8((word >> bits) as u8);
        }
    }
    if bits > 0 {
        let padding = 8 - bits;
        out.put_u8((word << padding) as u8 | ((1u16 << padding) - 1) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Invalid> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn as_in_the_rfc() {
        // RFC 7541, appendix C.4.1
        let code = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(decoded(&code).unwrap(), b"www.example.com");
        let mut out = Vec::new();
        encode(b"www.example.com", &mut out);
        assert_eq!(out, code);
        assert_eq!(TABLES.codes[22], 0x3fff_fffe);
    }

    #[test]
    fn padding() {
        assert_eq!(decoded(b"").unwrap(), b"");
        assert_eq!(decoded(&[0x07]).unwrap(), b"0");
        // zeros, more than a byte, the end of the string
        assert_eq!(decoded(&[0x18]).unwrap_err(), Invalid);
        assert_eq!(decoded(&[0x07, 0xff]).unwrap_err(), Invalid);
        assert_eq!(decoded(&[0xff, 0xff]).unwrap_err(), Invalid);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]).unwrap_err(), Invalid);
    }

    proptest! {
        #[test]
        fn round_trip(text: Vec<u8>) {
            let mut out = Vec::new();
            encode(&text, &mut out);
            prop_assert_eq!(out.len(), encoded_len(&text));
            prop_assert_eq!(decoded(&out), Ok(text));
        }

        #[test]
        fn what_decodes_is_its_own_code(code: Vec<u8>) {
            if let Ok(text) = decoded(&code) {
                let mut again = Vec::new();
                encode(&text, &mut again);
                prop_assert_eq!(code.strip_prefix(&again[..]).map(|rest| rest == [0xff] || rest.is_empty()), Some(true));
            }
        }
    }
}
