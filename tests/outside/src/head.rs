//! A head filter: `mark TEXT;` adds the header `X-Mark`, whose text may have variables.

use std::sync::Arc;

use couloir::prelude::*;

pub struct Mark;

#[derive(Clone, Default)]
pub struct MarkConf {
    text: Option<Arc<Template>>,
}

impl Conf for MarkConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; text);
    }
}

impl Module for Mark {
    const NAME: &'static str = "mark";
    type Conf = MarkConf;
    const DIRECTIVES: &'static [Directive<MarkConf>] = &[Directive::own(
        "mark",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`mark text;` Adds the header `X-Mark` to responses.",
        |c, s, b| {
            let text = b.template(s, 0)?;
            once(&mut c.text, s, Arc::new(text))
        },
    )];

    fn attach(conf: &Arc<MarkConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(text) = &conf.text {
            on.response(Filter(text.clone()));
        }
        Ok(())
    }
}

struct Filter(Arc<Template>);

impl HeadFilter for Filter {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let value = self.0.eval(r);
        r.out.append(b"X-Mark", &value);
        None
    }
}
