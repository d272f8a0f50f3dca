//! A filter of one's own, and a program with it: `hello text;` adds a header to every response, and `$visitor` is a
//! variable that the text, and every other directive, may use.
//!
//! `cargo run --example hello_filter -- -c nginx.conf -g 'daemon off;'`

use std::process::ExitCode;
use std::sync::Arc;

use couloir::prelude::*;

struct Hello;

#[derive(Clone, Default)]
struct HelloConf {
    text: Option<Arc<Template>>,
}

impl Conf for HelloConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; text);
    }
}

impl Module for Hello {
    const NAME: &'static str = "hello";
    type Conf = HelloConf;
    const DIRECTIVES: &'static [Directive<HelloConf>] = &[Directive::own(
        "hello",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`hello text;` Adds the header `X-Hello` to responses. The text may have variables.",
        |conf, s, b| {
            conf.text = Some(Arc::new(b.template(s, 0)?));
            Ok(())
        },
    )];
    const VARIABLES: &'static [Variable] = &[Variable::new("visitor", |r, _| {
        r.headers()
            .get(b"x-name")
            .map_or(Val::Bytes(b"stranger"), Val::Bytes)
    })];

    fn attach(conf: &Arc<HelloConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(text) = &conf.text {
            on.response(Greeting(text.clone()));
        }
        Ok(())
    }
}

struct Greeting(Arc<Template>);

impl HeadFilter for Greeting {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let value = self.0.eval(r);
        r.out.append(b"X-Hello", &value);
        None
    }
}

fn main() -> ExitCode {
    couloir::main_with(|modules| modules.add::<Hello>())
}
