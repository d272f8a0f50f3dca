//! A content handler: `greet NAME;` answers the requests of a location.

use std::sync::Arc;

use couloir::prelude::*;

pub struct Greet;

#[derive(Clone, Default)]
pub struct GreetConf {
    name: Option<Arc<Template>>,
}

impl Conf for GreetConf {
    // content belongs to its own location
    const INHERITED: bool = false;

    fn inherit(&mut self, _: &Self) {}
}

impl Module for Greet {
    const NAME: &'static str = "greet";
    type Conf = GreetConf;
    const DIRECTIVES: &'static [Directive<GreetConf>] = &[Directive::content(Directive::own(
        "greet",
        Place::LOCATION,
        Args::Exactly(1),
        "`greet name;` Answers with a greeting.",
        |c, s, b| {
            let name = b.template(s, 0)?;
            once(&mut c.name, s, Arc::new(name))
        },
    ))];

    fn attach(conf: &Arc<GreetConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(name) = &conf.name {
            on.content(Answer(name.clone()));
        }
        Ok(())
    }
}

struct Answer(Arc<Template>);

impl Handler for Answer {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) {
            return Next::Status(405);
        }
        let text = [b"Hello, ", &*self.0.eval(r), b"!\n"].concat();
        r.out.status = 200;
        r.out.set_content_type(b"text/plain");
        r.out.content_length = Some(text.len() as u64);
        Next::Respond(Body::Bytes(Bytes::from(text)))
    }
}
