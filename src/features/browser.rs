//! nginx's ngx_http_browser_module: old and new browsers told apart by `User-Agent`.

use crate::config::Result;
use crate::contract::*;
use crate::http::headers::Known;
use std::sync::Arc;

/// `modern_browser`, `ancient_browser` and their values.
pub struct Browser;

/// What a block says of browsers.
#[derive(Clone, Default)]
pub struct BrowserConf {
    modern: Option<Vec<Modern>>,
    /// `modern_browser unlisted`.
    unlisted: bool,
    ancient: Option<Vec<Box<[u8]>>>,
    /// `ancient_browser netscape4`.
    netscape4: bool,
    modern_value: Option<Box<[u8]>>,
    ancient_value: Option<Box<[u8]>>,
}

/// A browser that is modern from a version on.
#[derive(Clone, Copy, Debug)]
struct Modern {
    kind: usize,
    version: u64,
}

/// How a browser names itself: its name in the configuration, how much of the line is passed over, the mark, and how
/// far behind the beginning of the mark the version stands. The order is that of looking.
const KINDS: [(&str, usize, &[u8], usize); 5] = [
    ("opera", 0, b"Opera", 6),
    ("msie", 25, b"MSIE ", 5),
    ("gecko", 13, b"rv:", 3),
    ("safari", 13, b"Safari/", 7),
    ("konqueror", 25, b"Konqueror/", 10),
];

/// Where the list does not name Opera, which may say that it is MSIE: no version is modern.
const NEVER: Modern = Modern {
    kind: 0,
    version: u64::MAX,
};

impl Conf for BrowserConf {
    fn inherit(&mut self, outer: &Self) {
        if self.modern.is_none() && !self.unlisted {
            self.modern.clone_from(&outer.modern);
            self.unlisted = outer.unlisted;
        } else if let Some(list) = &mut self.modern {
            if !list.iter().any(|m| m.kind == 0) {
                list.push(NEVER);
            }
            list.sort_by_key(|m| m.kind);
        }
        if self.ancient.is_none() && !self.netscape4 {
            self.ancient.clone_from(&outer.ancient);
            self.netscape4 = outer.netscape4;
        }
        crate::inherit!(self, outer; modern_value, ancient_value);
    }
}

impl Module for Browser {
    const NAME: &'static str = "http_browser";
    type Conf = BrowserConf;
    const DIRECTIVES: &'static [Directive<BrowserConf>] = &[
        Directive::new(
            "modern_browser",
            Place::ANY_HTTP,
            Args::Between(1, 2),
            "`modern_browser browser version;`, `modern_browser unlisted;` From which version on msie, gecko, opera, safari or konqueror is modern; `unlisted` makes modern what no directive names.",
            modern,
        ),
        Directive::new(
            "ancient_browser",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`ancient_browser string …;` What is in `User-Agent` of old browsers; `netscape4` is Netscape up to 4.",
            |c, s, _| {
                for i in 0..s.len() {
                    match s.arg(i) {
                        b"netscape4" => c.netscape4 = true,
                        text => c.ancient.get_or_insert_default().push(text.into()),
                    }
                }
                Ok(())
            },
        ),
        Directive::new(
            "modern_browser_value",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`modern_browser_value string;` The value of $modern_browser. Default: 1.",
            |c, s, _| {
                c.modern_value = Some(s.arg(0).into());
                Ok(())
            },
        ),
        Directive::new(
            "ancient_browser_value",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`ancient_browser_value string;` The value of $ancient_browser. Default: 1.",
            |c, s, _| {
                c.ancient_value = Some(s.arg(0).into());
                Ok(())
            },
        ),
    ];
    const VARIABLES: &'static [Variable] = &[
        Variable::new("msie", |r, _| match user_agent(r) {
            Some(agent) if is_msie(agent) => Val::Bytes(b"1"),
            _ => Val::EMPTY,
        }),
        Variable::new("modern_browser", |r, _| value(r, true)),
        Variable::new("ancient_browser", |r, _| value(r, false)),
    ];

    fn attach(conf: &Arc<BrowserConf>, on: &mut Hooks) -> Result<()> {
        on.keep(conf.clone());
        Ok(())
    }
}

fn modern(c: &mut BrowserConf, s: &Statement, _b: &mut Build) -> Result<()> {
    if s.len() == 1 {
        if s.arg(0) == b"unlisted" {
            c.unlisted = true;
            return Ok(());
        }
        return Err(s.invalid_number_of_arguments());
    }
    let mut names = KINDS.iter().map(|k| k.0.as_bytes());
    let Some(kind) = names.position(|n| n.eq_ignore_ascii_case(s.arg(0))) else {
        let shown = String::from_utf8_lossy(s.arg(0));
        return Err(s.error_at(0, format!("unknown browser name \"{shown}\"")));
    };
    let mut reading = Version::default();
    if !s.arg(1).iter().all(|c| reading.take(*c)) {
        let shown = String::from_utf8_lossy(s.arg(1));
        return Err(s.error_at(1, format!("invalid browser version \"{shown}\"")));
    }
    c.modern.get_or_insert_default().push(Modern {
        kind,
        version: reading.value(),
    });
    Ok(())
}

/// `X`, `X.X` up to `X.X.X.X`, as one number to compare.
struct Version {
    whole: u64,
    part: u64,
    scale: u64,
}

impl Default for Version {
    fn default() -> Self {
        Version {
            whole: 0,
            part: 0,
            scale: 1_000_000,
        }
    }
}

impl Version {
    /// Takes a digit or a dot; false for anything else.
    fn take(&mut self, c: u8) -> bool {
        match c {
            b'0'..=b'9' => {
                let digit = u64::from(c - b'0');
                self.part = self.part.saturating_mul(10).saturating_add(digit);
            }
            b'.' => {
                self.whole = self.value();
                self.part = 0;
                self.scale /= 100;
            }
            _ => return false,
        }
        true
    }

    fn value(&self) -> u64 {
        let part = self.part.saturating_mul(self.scale);
        self.whole.saturating_add(part)
    }
}

fn user_agent(r: &Request) -> Option<&[u8]> {
    r.headers().get_id(Known::UserAgent)
}

fn value(r: &Request, of_modern: bool) -> Val<'_> {
    let conf = r.kept::<BrowserConf>();
    let is_modern = conf.is_some_and(|c| c.is_modern(user_agent(r)));
    if is_modern != of_modern {
        return Val::EMPTY;
    }
    let text = conf.and_then(|c| match of_modern {
        true => c.modern_value.as_deref(),
        false => c.ancient_value.as_deref(),
    });
    Val::Bytes(text.unwrap_or(b"1"))
}

impl BrowserConf {
    fn is_modern(&self, agent: Option<&[u8]>) -> bool {
        let Some(agent) = agent else {
            return self.unlisted;
        };
        if let Some(list) = &self.modern {
            if let Some(modern) = list.iter().find_map(|m| m.judges(agent)) {
                return modern;
            }
            if !self.unlisted {
                return false;
            }
        }
        let netscape = agent.len() > 13
            && agent.starts_with(b"Mozilla/")
            && matches!(agent.get(8), Some(b'1'..=b'4'));
        if self.netscape4 && netscape {
            return false;
        }
        let mut ancient = self.ancient.iter().flatten();
        if ancient.any(|text| memchr::memmem::find(agent, text).is_some()) {
            return false;
        }
        self.unlisted
    }
}

impl Modern {
    /// Whether the browser is modern, if it is of this kind.
    fn judges(&self, agent: &[u8]) -> Option<bool> {
        let (_, skip, mark, version_at) = KINDS.get(self.kind)?;
        let rest = agent.get(*skip..)?;
        let at = memchr::memmem::find(rest, mark)?;
        let version = rest.get(at + version_at..).filter(|v| !v.is_empty())?;
        let mut reading = Version::default();
        for c in version {
            if !reading.take(*c) || reading.scale == 0 {
                break;
            }
        }
        Some(reading.value() >= self.version)
    }
}

/// Whether it is Microsoft's browser, and no other that says so.
fn is_msie(agent: &[u8]) -> bool {
    memchr::memmem::find(agent, b"MSIE ").is_some_and(|at| at + 7 < agent.len())
        && memchr::memmem::find(agent, b"Opera ").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> u64 {
        let mut v = Version::default();
        assert!(text.bytes().all(|c| v.take(c)), "{text}");
        v.value()
    }

    fn conf(modern: &[(usize, &str)]) -> BrowserConf {
        let list = modern.iter().map(|(kind, text)| Modern {
            kind: *kind,
            version: version(text),
        });
        let mut c = BrowserConf {
            modern: Some(list.collect()),
            ..BrowserConf::default()
        };
        c.inherit(&BrowserConf::default());
        c
    }

    #[test]
    fn versions_compare() {
        assert_eq!(version("5"), 5_000_000);
        assert_eq!(version("1.0.2.3"), 1_000_203);
        assert!(version("1.10") > version("1.9"));
        assert!(!Version::default().take(b'x'));
    }

    #[test]
    fn browsers_are_told_apart() {
        let c = conf(&[(1, "6.0"), (2, "1.5"), (3, "413"), (4, "3.4")]);
        for (agent, modern) in [
            ("Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1)", true),
            ("Mozilla/4.0 (compatible; MSIE 5.5; Windows NT 5.1)", false),
            ("Mozilla/4.0 (compatible; MSIE 6.0; X) Opera 9.0", false),
            (
                "Mozilla/5.0 (X11; U; rv:1.8.0.5) Gecko/20060729 Firefox/1.5",
                true,
            ),
            ("Mozilla/5.0 (X11; U; rv:1.0.0) Gecko/20020610", false),
            (
                "Mozilla/5.0 (Macintosh; U) AppleWebKit/418 Safari/417.9.3",
                true,
            ),
            ("Mozilla/5.0 (compatible; Konqueror/3.1; Linux)", false),
            ("curl/8", false),
        ] {
            assert_eq!(c.is_modern(Some(agent.as_bytes())), modern, "{agent}");
        }
        assert!(!c.is_modern(None));
        let unlisted = BrowserConf {
            unlisted: true,
            netscape4: true,
            ancient: Some(vec![b"Lynx"[..].into()]),
            ..BrowserConf::default()
        };
        assert!(unlisted.is_modern(None));
        assert!(unlisted.is_modern(Some(b"curl/8")));
        assert!(!unlisted.is_modern(Some(b"Lynx/2")));
        assert!(!unlisted.is_modern(Some(b"Mozilla/4.72 [en]")));
    }

    #[test]
    fn msie() {
        assert!(is_msie(b"Mozilla/4.0 (compatible; MSIE 6.0; X)"));
        assert!(!is_msie(b"Mozilla/4.0 (compatible; MSIE 6.0; X) Opera 9"));
        assert!(!is_msie(b"MSIE 6"));
    }

    proptest::proptest! {
        #[test]
        fn no_agent_is_too_strange(agent: Vec<u8>) {
            conf(&[(1, "6.0"), (4, "4000.99.99.99")]).is_modern(Some(&agent));
            is_msie(&agent);
        }
    }
}
