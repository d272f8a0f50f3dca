//! A body filter: `stamp TEXT;` appends a text to bodies, before they are compressed.

use std::sync::Arc;

use couloir::prelude::*;

pub struct Stamp;

#[derive(Clone, Default)]
pub struct StampConf {
    text: Option<Arc<Template>>,
}

impl Conf for StampConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; text);
    }
}

impl Module for Stamp {
    const NAME: &'static str = "stamp";
    type Conf = StampConf;
    // an added module runs in front of what compresses anyway; a filter that depends on it says so
    const ORDER: &'static [Order] = &[Order::Before("http_gzip_filter")];
    const DIRECTIVES: &'static [Directive<StampConf>] = &[Directive::own(
        "stamp",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`stamp text;` Appends a text, which may have variables, to the bodies of responses.",
        |c, s, b| {
            let text = b.template(s, 0)?;
            once(&mut c.text, s, Arc::new(text))
        },
    )];

    fn attach(conf: &Arc<StampConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(text) = &conf.text {
            on.response(Begin(text.clone()));
        }
        Ok(())
    }
}

/// Decides for each response whether its body is changed.
struct Begin(Arc<Template>);

impl HeadFilter for Begin {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        if r.out.status != 200 || r.out.header_only {
            return None;
        }
        // the body gets longer, and is no longer byte for byte what its validator stands for
        r.out.clear_length();
        r.out.weaken_etag();
        Some(Box::new(Append(self.0.eval(r).into_owned())))
    }
}

/// State of one response.
struct Append(Vec<u8>);

impl BodyFilter for Append {
    fn chunk(
        &mut self,
        _: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        out.extend_from_slice(data);
        if last {
            out.append(&mut self.0);
        }
        Ok(())
    }
}
