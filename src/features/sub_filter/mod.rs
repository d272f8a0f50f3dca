//! `sub_filter`: texts replaced in responses as they pass.

mod search;

use super::media_types::MediaTypes;
use crate::config::{Result, Statement};
use crate::contract::*;
use crate::http::headers::Known;
use crate::inherit;
use search::{Found, Search};
use std::io;
use std::sync::Arc;

/// nginx's ngx_http_sub_filter_module.
pub struct SubFilter;

/// What a block says.
#[derive(Clone, Default)]
pub struct SubConf {
    pairs: Option<Arc<Vec<Pair>>>,
    types: Option<MediaTypes>,
    once: Option<bool>,
    last_modified: Option<bool>,
}

/// One `sub_filter`.
#[derive(Clone)]
struct Pair {
    text: Template,
    replacement: Template,
}

impl Conf for SubConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; pairs, types, once, last_modified);
    }
}

const MOST_PAIRS: usize = 255;

impl Module for SubFilter {
    const NAME: &'static str = "http_sub_filter";
    type Conf = SubConf;
    const DIRECTIVES: &'static [Directive<SubConf>] = &[
        Directive::new(
            "sub_filter",
            Place::ANY_HTTP,
            Args::Exactly(2),
            "`sub_filter string replacement;` Replaces a text, in any case; both may have variables.",
            pair,
        ),
        Directive::new(
            "sub_filter_types",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`sub_filter_types type …;` Media types in which texts are replaced besides text/html; `*` is any. Default: text/html.",
            |c, s, b| MediaTypes::read(&mut c.types, "text/html", s, b),
        ),
        Directive::new(
            "sub_filter_once",
            Place::ANY_HTTP,
            Args::Flag,
            "`sub_filter_once on|off;` Whether each text is replaced only once. Default: on.",
            |c, s, _| once(&mut c.once, s, s.flag(0)?),
        ),
        Directive::new(
            "sub_filter_last_modified",
            Place::ANY_HTTP,
            Args::Flag,
            "`sub_filter_last_modified on|off;` Whether Last-Modified and a weak ETag stay. Default: off.",
            |c, s, _| once(&mut c.last_modified, s, s.flag(0)?),
        ),
    ];

    fn attach(conf: &Arc<SubConf>, on: &mut Hooks) -> Result<()> {
        if let Some(pairs) = &conf.pairs {
            let texts: Option<Vec<Vec<u8>>> = pairs
                .iter()
                .map(|p| p.text.as_literal().map(<[u8]>::to_vec))
                .collect();
            let search = texts
                .and_then(|t| Search::new(t.into_iter().enumerate()))
                .map(Arc::new);
            on.response(Filter {
                conf: conf.clone(),
                pairs: pairs.clone(),
                search,
            });
        }
        Ok(())
    }
}

fn pair(c: &mut SubConf, s: &Statement, b: &mut Build) -> Result<()> {
    if s.arg(0).is_empty() {
        return Err(s.error_at(0, "empty search pattern"));
    }
    let pairs = Arc::make_mut(c.pairs.get_or_insert_default());
    if pairs.len() == MOST_PAIRS {
        return Err(s.error("number of search patterns exceeds 255"));
    }
    let text = b.template_of(s, &s.arg(0).to_ascii_lowercase())?;
    pairs.push(Pair {
        text,
        replacement: b.template(s, 1)?,
    });
    Ok(())
}

struct Filter {
    conf: Arc<SubConf>,
    pairs: Arc<Vec<Pair>>,
    /// The texts, where none has variables.
    search: Option<Arc<Search>>,
}

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        if r.out.content_length == Some(0)
            || !MediaTypes::or_defaults(&self.conf.types, &["text/html"], &r.out)
        {
            return None;
        }
        let (search, texts) = match &self.search {
            Some(s) => (s.clone(), self.pairs.len()),
            None => {
                let texts: Vec<Vec<u8>> = self
                    .pairs
                    .iter()
                    .map(|p| p.text.eval(r).into_owned())
                    .collect();
                let n = texts.iter().filter(|t| !t.is_empty()).count();
                (Arc::new(Search::new(texts.into_iter().enumerate())?), n)
            }
        };
        if !r.subrequest {
            r.out.content_length = None;
            if self.conf.last_modified == Some(true) {
                r.out.weaken_etag();
            } else {
                r.out.clear_last_modified();
                r.out.headers.remove_id(Known::ETag);
            }
        }
        let once = self.conf.once.unwrap_or(true);
        Some(Box::new(Replacer {
            pairs: self.pairs.clone(),
            search,
            left: if once { texts } else { usize::MAX },
            once,
            replacements: Vec::new(),
            held: Vec::new(),
            from: 0,
            pending: false,
        }))
    }
}

/// Replaces texts in one response.
struct Replacer {
    pairs: Arc<Vec<Pair>>,
    search: Arc<Search>,
    once: bool,
    /// How many texts may still be replaced.
    left: usize,
    /// Evaluated when first needed.
    replacements: Vec<Option<Vec<u8>>>,
    /// The beginning of a text that may be completed by what comes next, or what is not looked through yet.
    held: Vec<u8>,
    /// Where in it that begins.
    from: usize,
    pending: bool,
}

/// How much one call gives at most, a replacement more or less: what is long may take the place of a letter.
const PIECE: usize = 64 * 1024;

impl BodyFilter for Replacer {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let pairs = self.pairs.clone();
        self.replace(data, last, out, |i| {
            pairs
                .get(i)
                .map(|p| p.replacement.eval(r).into_owned())
                .unwrap_or_default()
        });
        Ok(())
    }

    fn pending(&self) -> bool {
        self.pending
    }
}

impl Replacer {
    fn replace(
        &mut self,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
        value: impl Fn(usize) -> Vec<u8>,
    ) {
        let mut held = std::mem::take(&mut self.held);
        let mut at = std::mem::take(&mut self.from);
        let end = out.len() + PIECE;
        self.pending = false;
        let data = if held.is_empty() {
            data
        } else {
            held.extend_from_slice(data);
            &held[..]
        };
        let rest = loop {
            if out.len() >= end {
                self.pending = true;
                break at;
            }
            let used =
                |i: usize| self.once && self.replacements.get(i).is_some_and(Option::is_some);
            let found = if self.left == 0 {
                Found::Nothing
            } else {
                self.search.find(data, at, |i| !used(i))
            };
            match found {
                Found::Nothing => break data.len(),
                // what is not completed by the end stays as it is
                Found::Partial(_) if last => break data.len(),
                Found::Partial(start) => break start,
                Found::Match(i, start, end) => {
                    out.extend_from_slice(data.get(at..start).unwrap_or_default());
                    if self.replacements.len() <= i {
                        self.replacements.resize_with(i + 1, || None);
                    }
                    if let Some(slot) = self.replacements.get_mut(i) {
                        out.extend_from_slice(slot.get_or_insert_with(|| value(i)));
                    }
                    if self.once {
                        self.left -= 1;
                    }
                    at = end;
                }
            }
        };
        out.extend_from_slice(data.get(at..rest).unwrap_or_default());
        if self.pending && !held.is_empty() {
            (self.held, self.from) = (held, rest);
        } else {
            self.held = data.get(rest..).unwrap_or_default().to_vec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pairs: &[(&str, &str)], once: bool, pieces: &[&str]) -> String {
        let search = Search::new(
            pairs
                .iter()
                .enumerate()
                .map(|(i, (t, _))| (i, t.as_bytes().to_vec())),
        )
        .expect("texts");
        let mut f = Replacer {
            pairs: Arc::default(),
            search: Arc::new(search),
            once,
            left: if once { pairs.len() } else { usize::MAX },
            replacements: Vec::new(),
            held: Vec::new(),
            from: 0,
            pending: false,
        };
        let longest = pairs.iter().map(|(_, t)| t.len()).max().unwrap();
        let mut all = Vec::new();
        for (n, p) in pieces.iter().enumerate() {
            let mut data = p.as_bytes();
            loop {
                let mut out = Vec::new();
                f.replace(data, n + 1 == pieces.len(), &mut out, |i| {
                    pairs[i].1.as_bytes().to_vec()
                });
                assert!(out.len() < PIECE + longest + p.len());
                all.extend_from_slice(&out);
                data = b"";
                if !f.pending() {
                    break;
                }
            }
            assert!(f.held.len() < pairs.iter().map(|(t, _)| t.len()).max().unwrap());
        }
        String::from_utf8(all).expect("text")
    }

    #[test]
    fn texts_are_replaced() {
        let two = [("aab", "+"), ("yyz", "-")];
        assert_eq!(run(&two, false, &["aaabyyzAAB"]), "a+-+");
        assert_eq!(run(&two, true, &["aabaabyyzyyz"]), "+aab-yyz");
        assert_eq!(run(&[("foo", "bar")], true, &["foo", "foo"]), "barfoo");
        assert_eq!(run(&[("foo", "bar")], false, &["fo"]), "fo");
        assert_eq!(run(&[("foo", "")], false, &["xf", "", "o", "ox", ""]), "xx");
        assert_eq!(run(&[("abacabx", "+")], false, &["abacabacabx"]), "abac+");
        assert_eq!(run(&[("abcd", "+"), ("bc", "-")], false, &["xabc"]), "xabc");
        assert_eq!(
            run(&[("abcd", "+"), ("bc", "-")], false, &["xabc", "e"]),
            "xa-e"
        );
    }

    #[test]
    fn what_grows_comes_in_pieces() {
        let long = "y".repeat(3000);
        let text = "ax".repeat(500);
        let want = format!("a{long}").repeat(500);
        assert_eq!(run(&[("x", &long)], false, &[&text]), want);
        assert_eq!(run(&[("x", &long)], false, &[&text, "", ""]), want);
        assert_eq!(
            run(&[("xa", &long), ("q", "")], false, &[&text[1..], "a"]),
            long.repeat(500)
        );
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(data in "[abc]{0,60}", cut in 1usize..7, once in any::<bool>(), texts in prop::collection::vec("[abc]{1,4}", 1..4)) {
            let pairs: Vec<(&str, &str)> = texts.iter().map(|t| (t.as_str(), "_")).collect();
            let whole = run(&pairs, once, &[&data]);
            let pieces: Vec<&str> = data.as_bytes().chunks(cut).map(|c| std::str::from_utf8(c).unwrap()).chain([""]).collect();
            prop_assert_eq!(run(&pairs, once, &pieces), whole);
        }
    }
}
