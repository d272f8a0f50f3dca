//! `add_before_body`, `add_after_body`: responses of subrequests around a body.

use super::media_types::MediaTypes;
use crate::config::Result;
use crate::contract::*;
use crate::inherit;
use std::sync::Arc;

/// nginx's ngx_http_addition_filter_module.
pub struct Addition;

/// What a block says.
#[derive(Clone, Default)]
pub struct AdditionConf {
    before: Option<Box<[u8]>>,
    after: Option<Box<[u8]>>,
    types: Option<MediaTypes>,
}

impl Conf for AdditionConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; before, after, types);
    }
}

impl Module for Addition {
    const NAME: &'static str = "http_addition_filter";
    type Conf = AdditionConf;
    const DIRECTIVES: &'static [Directive<AdditionConf>] = &[
        Directive::new(
            "add_before_body",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`add_before_body uri;` Puts the response of a subrequest before the body; an empty URI puts none. Default: none.",
            |c, s, _| once(&mut c.before, s, s.arg(0).into()),
        ),
        Directive::new(
            "add_after_body",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`add_after_body uri;` Puts the response of a subrequest after the body; an empty URI puts none. Default: none.",
            |c, s, _| once(&mut c.after, s, s.arg(0).into()),
        ),
        Directive::new(
            "addition_types",
            Place::ANY_HTTP,
            Args::AtLeast(1),
            "`addition_types type …;` Media types of bodies that are added to besides text/html; `*` is any. Default: text/html.",
            |c, s, b| MediaTypes::read(&mut c.types, "text/html", s, b),
        ),
    ];

    fn attach(conf: &Arc<AdditionConf>, on: &mut Hooks) -> Result<()> {
        let named = |uri: &Option<Box<[u8]>>| uri.as_ref().is_some_and(|u| !u.is_empty());
        if named(&conf.before) || named(&conf.after) {
            on.response(Around(conf.clone()));
        }
        Ok(())
    }
}

struct Around(Arc<AdditionConf>);

impl HeadFilter for Around {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let conf = &self.0;
        if r.out.status != 200
            || r.subrequest
            || !MediaTypes::or_defaults(&conf.types, &["text/html"], &r.out)
        {
            return None;
        }
        r.out.clear_length();
        r.out.weaken_etag();
        let named = |uri: &'_ Option<Box<[u8]>>| uri.clone().filter(|u| !u.is_empty());
        r.output.surround(named(&conf.before), named(&conf.after));
        None
    }
}
