//! The charsets of a configuration and the tables of `charset_map`.

use super::recode::{Encoded, Pages, Recoding, decode};
use crate::config::{Result, Statement};
use std::collections::HashMap;
use std::sync::Arc;

/// A charset's number in the configuration.
pub type Id = u16;

/// Every charset that a configuration names, and the tables between them.
#[derive(Clone, Debug, Default)]
pub struct Charsets {
    names: Vec<Box<[u8]>>,
    tables: HashMap<(Id, Id), Arc<Recoding>>,
}

impl Charsets {
    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The number of a charset, new if need be.
    pub fn add(&mut self, name: &[u8]) -> Id {
        self.find(name).unwrap_or_else(|| {
            self.names.push(name.into());
            (self.names.len() - 1).min(usize::from(Id::MAX)) as Id
        })
    }

    /// The number of a charset, by its name in any case.
    pub fn find(&self, name: &[u8]) -> Option<Id> {
        self.names
            .iter()
            .position(|n| n.eq_ignore_ascii_case(name))
            .map(|i| i as Id)
    }

    /// A charset's name as first written.
    pub fn name(&self, id: Id) -> &[u8] {
        self.names
            .get(usize::from(id))
            .map(|n| &**n)
            .unwrap_or_default()
    }

    /// How a charset is recoded to another.
    pub fn table(&self, from: Id, to: Id) -> Option<&Arc<Recoding>> {
        self.tables.get(&(from, to))
    }

    /// Reads a `charset_map` block.
    pub fn map(&mut self, s: &Statement) -> Result<()> {
        let text = String::from_utf8_lossy;
        let (from, to) = (self.add(s.arg(0)), self.add(s.arg(1)));
        let (a, b) = (text(s.arg(0)), text(s.arg(1)));
        if from == to {
            return Err(s.error(format!(
                "\"charset_map\" between the same charsets \"{a}\" and \"{b}\""
            )));
        }
        if is_utf8(s.arg(0)) {
            return Err(s.error(
                "\"charset_map\" with \"utf-8\" charset should be given in the second column",
            ));
        }
        if self.tables.contains_key(&(from, to)) {
            return Err(s.error(format!(
                "duplicate \"charset_map\" between \"{a}\" and \"{b}\""
            )));
        }
        let (there, back) = if is_utf8(s.arg(1)) {
            utf8_map(s)?
        } else {
            byte_map(s)?
        };
        self.tables.insert((from, to), Arc::new(there));
        self.tables.insert((to, from), Arc::new(back));
        Ok(())
    }
}

fn is_utf8(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"utf-8")
}

/// Each line's byte and its value's word.
fn lines(s: &Statement) -> impl Iterator<Item = Result<(u8, &Statement)>> {
    s.items().iter().map(|item| {
        if item.block.is_some() {
            return Err(item.unexpected_block());
        }
        if item.len() != 1 {
            return Err(item.error("invalid parameters number"));
        }
        match byte(&item.name.text) {
            Some(b) => Ok((b, item)),
            None => Err(item.error(format!(
                "invalid value \"{}\"",
                String::from_utf8_lossy(&item.name.text)
            ))),
        }
    })
}

fn byte_map(s: &Statement) -> Result<(Recoding, Recoding)> {
    let mut there = Box::new([b'?'; 256]);
    for (i, b) in there.iter_mut().enumerate().take(128) {
        *b = i as u8;
    }
    let mut back = there.clone();
    for line in lines(s) {
        let (from, item) = line?;
        let to = byte(item.arg(0)).ok_or_else(|| item.invalid_value(0))?;
        there[usize::from(from)] = to;
        back[usize::from(to)] = from;
    }
    Ok((Recoding::Bytes(there), Recoding::Bytes(back)))
}

fn utf8_map(s: &Statement) -> Result<(Recoding, Recoding)> {
    let mut there: Box<[Encoded; 256]> = Box::new([(1, *b"?\0\0"); 256]);
    let mut back: Box<Pages> = Box::new([const { None }; 256]);
    let mut page = Box::new([0; 256]);
    for i in 0..128u8 {
        there[usize::from(i)] = (1, [i, 0, 0]);
        page[usize::from(i)] = i;
    }
    back[0] = Some(page);
    for line in lines(s) {
        let (from, item) = line?;
        let (n, bytes) = encoded(item.arg(0)).ok_or_else(|| item.invalid_value(0))?;
        let character = match decode(bytes.get(..usize::from(n)).unwrap_or_default()) {
            // nginx's tables have no single bytes on this side
            Some((Some(c @ 0x80..=0xffff), _)) => c,
            _ => return Err(item.invalid_value(0)),
        };
        there[usize::from(from)] = (n, bytes);
        let page = back[(character >> 8) as usize].get_or_insert_with(|| Box::new([0; 256]));
        page[(character & 0xff) as usize] = from;
    }
    Ok((Recoding::ToUtf8(there), Recoding::FromUtf8(back)))
}

/// Hexadecimal digits of at most three bytes.
fn encoded(hex: &[u8]) -> Option<Encoded> {
    let mut bytes = [0; 3];
    for (i, pair) in hex.chunks(2).enumerate() {
        *bytes.get_mut(i)? = if pair.len() == 2 {
            byte(pair)?
        } else {
            return None;
        };
    }
    Some(((hex.len() / 2) as u8, bytes))
}

/// A number up to 255 in hexadecimal digits.
fn byte(hex: &[u8]) -> Option<u8> {
    if hex.is_empty() {
        return None;
    }
    hex.iter().try_fold(0u8, |n, c| {
        n.checked_mul(16)?
            .checked_add((*c as char).to_digit(16)? as u8)
    })
}

#[cfg(test)]
mod tests {
    use super::super::recode::Recoder;
    use super::*;
    use crate::config::parse_text;

    fn read(text: &str) -> std::result::Result<Charsets, String> {
        let root = parse_text(text.as_bytes(), "f").root;
        let mut c = Charsets::default();
        for s in &root.items {
            c.map(s).map_err(|e| e.first_line())?;
        }
        Ok(c)
    }

    fn recoded(c: &Charsets, from: &[u8], to: &[u8], text: &[u8]) -> Vec<u8> {
        let table = c.table(c.find(from).unwrap(), c.find(to).unwrap()).unwrap();
        let mut out = Vec::new();
        Recoder::new(table.clone()).recode(text, &mut out);
        out
    }

    #[test]
    fn maps_work_both_ways() {
        let c = read("charset_map B A { 58 59; f0 9F; }").unwrap();
        assert_eq!(recoded(&c, b"b", b"a", b"aX\xf0\xf1"), b"aY\x9f?");
        assert_eq!(recoded(&c, b"A", b"B", b"aY\x9f"), b"aX\xf0");
        let c = read("charset_map koi8-r utf-8 { F6 D096; 88 e282ac; }").unwrap();
        assert_eq!(
            recoded(&c, b"KOI8-R", b"UTF-8", b"a\xf6\x88\xff"),
            "aЖ€?".as_bytes()
        );
        assert_eq!(
            recoded(&c, b"utf-8", b"koi8-r", "aЖ€Я".as_bytes()),
            b"a\xf6\x88&#1071;"
        );
    }

    #[test]
    fn faults_are_told_in_nginxs_words() {
        for (text, want) in [
            (
                "charset_map a A { }",
                "\"charset_map\" between the same charsets \"a\" and \"A\" in f:1",
            ),
            (
                "charset_map utf-8 A { }",
                "\"charset_map\" with \"utf-8\" charset should be given in the second column in f:1",
            ),
            (
                "charset_map a b { } charset_map b a { }",
                "duplicate \"charset_map\" between \"b\" and \"a\" in f:1",
            ),
            (
                "charset_map a b { 1 2 3; }",
                "invalid parameters number in f:1",
            ),
            ("charset_map a b { 1x 2; }", "invalid value \"1x\" in f:1"),
            ("charset_map a b { 100 2; }", "invalid value \"100\" in f:1"),
            ("charset_map a b { 1 2f0; }", "invalid value \"2f0\" in f:1"),
            (
                "charset_map a utf-8 { 80 41; }",
                "invalid value \"41\" in f:1",
            ),
            (
                "charset_map a utf-8 { 80 e282a; }",
                "invalid value \"e282a\" in f:1",
            ),
            (
                "charset_map a utf-8 { 80 e282; }",
                "invalid value \"e282\" in f:1",
            ),
            (
                "charset_map a utf-8 { 80 f09d849e; }",
                "invalid value \"f09d849e\" in f:1",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), want, "{text}");
        }
    }
}
