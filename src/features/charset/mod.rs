//! `charset`: the charset named in Content-Type, and responses recoded from one to another.

mod recode;
mod tables;

use super::media_types::MediaTypes;
use crate::config::{Diag, Result, Statement};
use crate::contract::*;
use crate::http::headers::Known;
use crate::inherit;
use crate::log::Level;
use recode::Recoder;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use tables::{Charsets, Id};

/// nginx's ngx_http_charset_filter_module.
pub struct Charset;

/// What a block says.
#[derive(Clone, Default)]
pub struct CharsetConf {
    charset: Option<Named>,
    source: Option<Named>,
    override_charset: Option<bool>,
    types: Option<MediaTypes>,
    /// Every charset of the configuration; set in `http` once all are known.
    charsets: Option<Arc<Charsets>>,
}

/// A charset as a directive names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Off,
    Charset(Id),
    Variable(VarId),
}

impl Conf for CharsetConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; charset, source, override_charset, types, charsets);
    }
}

const TYPES: [&str; 6] = [
    "text/html",
    "text/xml",
    "text/plain",
    "text/vnd.wap.wml",
    "application/javascript",
    "application/rss+xml",
];

impl Module for Charset {
    const NAME: &'static str = "http_charset_filter";
    type Conf = CharsetConf;
    const DIRECTIVES: &'static [Directive<CharsetConf>] = &[
        Directive::new(
            "charset",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`charset charset|off;` The charset of responses, named in Content-Type; may be a variable. Default: off.",
            |c, s, b| {
                if c.charset.is_some() {
                    return Err(s.duplicate());
                }
                c.charset = Some(if s.arg(0) == b"off" {
                    Named::Off
                } else {
                    named(s, b)
                });
                Ok(())
            },
        ),
        Directive::new(
            "source_charset",
            Place::ANY_HTTP_IF,
            Args::Exactly(1),
            "`source_charset charset;` The charset that responses come in; they are recoded where `charset` is another.",
            |c, s, b| {
                if c.source.is_some() {
                    return Err(s.duplicate());
                }
                c.source = Some(named(s, b));
                Ok(())
            },
        ),
        Directive::new(
            "override_charset",
            Place::ANY_HTTP_IF,
            Args::Flag,
            "`override_charset on|off;` Whether responses of origins that name a charset are recoded too. Default: off.",
            |c, s, _| once(&mut c.override_charset, s, s.flag(0)?),
        ),
        Directive::new(
            "charset_types",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`charset_types type …;` Media types that the charset is named for; `*` is any. Default: text/html text/xml text/plain text/vnd.wap.wml application/javascript application/rss+xml.",
            |c, s, b| MediaTypes::read(&mut c.types, "text/html", s, b),
        ),
        Directive::new(
            "charset_map",
            Place::HTTP,
            Args::Block(2, 2),
            "`charset_map charset1 charset2 { hex hex; … }` A table between two charsets; `utf-8` is the second.",
            |_, s, b| b.shared::<Charsets>().map(s),
        ),
    ];

    fn configured(b: &mut Build) -> Result<()> {
        let charsets = b.shared::<Charsets>().clone();
        let http = b.blocks_of(Place::HTTP).next();
        if !charsets.is_empty()
            && let Some(conf) = http.and_then(|id| b.conf_of::<Charset>(id))
        {
            conf.charsets = Some(Arc::new(charsets));
        }
        Ok(())
    }

    fn attach(conf: &Arc<CharsetConf>, on: &mut Hooks) -> Result<()> {
        let Some(charsets) = &conf.charsets else {
            return Ok(());
        };
        if let (Some(Named::Charset(to)), Some(Named::Charset(from))) = (conf.charset, conf.source)
            && from != to
            && charsets.table(from, to).is_none()
        {
            return Err(Diag::plain(no_map(charsets.name(from), charsets.name(to))));
        }
        on.response(Filter {
            conf: conf.clone(),
            charsets: charsets.clone(),
        });
        Ok(())
    }
}

fn named(s: &Statement, b: &mut Build) -> Named {
    match s.arg(0).strip_prefix(b"$") {
        Some(name) => Named::Variable(b.var(s, &String::from_utf8_lossy(name))),
        None => Named::Charset(b.shared::<Charsets>().add(s.arg(0))),
    }
}

fn no_map(from: &[u8], to: &[u8]) -> String {
    let text = String::from_utf8_lossy;
    format!(
        "no \"charset_map\" between the charsets \"{}\" and \"{}\"",
        text(from),
        text(to)
    )
}

/// What nginx is doing meanwhile, for the log.
fn doing(r: &Request) -> &'static str {
    if r.upstream.states.is_empty() {
        ""
    } else {
        " while reading response header from upstream"
    }
}

struct Filter {
    conf: Arc<CharsetConf>,
    charsets: Arc<Charsets>,
}

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let (to, to_name) = self.destination(r)?;
        let (from, from_name) = match self.source(r) {
            Source::Off => {
                name_it(r, &to_name);
                return None;
            }
            Source::Charset(id, name) => (id, name),
        };
        let (Some(from_id), Some(to_id)) = (from, to) else {
            let same = from == to
                && from_name
                    .get(..to_name.len())
                    .is_some_and(|n| n.eq_ignore_ascii_case(&to_name));
            if !same {
                r.error(
                    Level::Error,
                    format_args!("{}{}", no_map(&from_name, &to_name), doing(r)),
                );
            } else if r.out.charset_name().is_empty() || !r.out.charset.is_empty() {
                name_it(r, &to_name);
            }
            return None;
        };
        if from_id == to_id {
            r.out.cut_charset();
            name_it(r, &to_name);
            return None;
        }
        if r.out
            .headers
            .get_id(Known::ContentEncoding)
            .is_some_and(|v| !v.is_empty())
        {
            return None;
        }
        let Some(table) = self.charsets.table(from_id, to_id) else {
            r.error(
                Level::Error,
                format_args!("{}{}", no_map(&from_name, &to_name), doing(r)),
            );
            return None;
        };
        r.out.cut_charset();
        name_it(r, &to_name);
        if table.changes_length() && !r.subrequest {
            r.out.content_length = None;
        }
        Some(Box::new(Recode(Recoder::new(table.clone()))))
    }

    fn charset(&self, r: &Request) -> Option<Vec<u8>> {
        self.destination(r).map(|(_, name)| name.into_owned())
    }
}

/// What a response's charset is before it is recoded.
enum Source<'c> {
    /// Not known, and nothing is to be recoded.
    Off,
    /// A charset; one that the configuration does not name has no number.
    Charset(Option<Id>, Cow<'c, [u8]>),
}

impl Filter {
    /// The charset that a response is to have; `None` where it is left alone.
    fn destination(&self, r: &Request) -> Option<(Option<Id>, Cow<'_, [u8]>)> {
        if r.out.content_type.is_empty() {
            return None;
        }
        if !r.out.override_charset.is_empty() {
            let name = r.out.override_charset.clone();
            let id = self.charsets.find(&name);
            if id.is_none() && !r.subrequest {
                r.error(
                    Level::Error,
                    format_args!(
                        "unknown charset \"{}\" to override{}",
                        String::from_utf8_lossy(&name),
                        doing(r)
                    ),
                );
                return None;
            }
            return Some((id, name.into()));
        }
        let charset = self
            .conf
            .charset
            .filter(|c| *c != Named::Off && !r.subrequest)?;
        let wanted = if r.out.charset_name().is_empty() {
            MediaTypes::or_defaults(&self.conf.types, &TYPES, &r.out)
        } else {
            self.conf.override_charset == Some(true)
        };
        match self.evaluate(r, charset) {
            _ if !wanted => None,
            Source::Charset(id, name) => Some((id, name)),
            Source::Off => None,
        }
    }

    fn source(&self, r: &Request) -> Source<'_> {
        let own = r.out.charset_name();
        if !own.is_empty() {
            return Source::Charset(self.charsets.find(own), own.to_vec().into());
        }
        self.evaluate(r, self.conf.source.unwrap_or(Named::Off))
    }

    fn evaluate(&self, r: &Request, charset: Named) -> Source<'_> {
        match charset {
            Named::Off => Source::Off,
            Named::Charset(id) => Source::Charset(Some(id), self.charsets.name(id).into()),
            Named::Variable(v) => match r.var(v) {
                Val::None => Source::Off,
                v => Source::Charset(
                    self.charsets.find(v.as_bytes()),
                    v.as_bytes().to_vec().into(),
                ),
            },
        }
    }
}

/// Names the charset in Content-Type; not in redirects, whose next page old browsers would take to be in it.
fn name_it(r: &mut Request, name: &[u8]) {
    if r.subrequest {
        return;
    }
    r.out.charset.clear();
    if !matches!(r.out.status, 301 | 302) {
        r.out.charset.extend_from_slice(name);
    }
}

struct Recode(Recoder);

impl BodyFilter for Recode {
    fn chunk(
        &mut self,
        _r: &mut Request,
        data: &[u8],
        _last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.0.recode(data, out);
        Ok(())
    }
}
