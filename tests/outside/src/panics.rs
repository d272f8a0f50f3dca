//! Hooks that panic, for the tests: `panic_in HOOK;`.

use std::sync::Arc;

use couloir::prelude::*;

pub struct Panics;

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Nothing,
    Handler,
    Future,
    Content,
    HeadFilter,
    EarlyFilter,
    BodyFilter,
    RequestBody,
    Logger,
}

#[derive(Clone, Default)]
pub struct PanicsConf {
    at: Option<At>,
}

impl Conf for PanicsConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; at);
    }
}

impl Module for Panics {
    const NAME: &'static str = "panics";
    type Conf = PanicsConf;
    const DIRECTIVES: &'static [Directive<PanicsConf>] = &[
        Directive::own(
            "panic_in",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`panic_in hook;` Panics in this hook.",
            |c, s, _| {
                let choices = [
                    ("off", At::Nothing),
                    ("handler", At::Handler),
                    ("future", At::Future),
                    ("content", At::Content),
                    ("head_filter", At::HeadFilter),
                    ("early_filter", At::EarlyFilter),
                    ("body_filter", At::BodyFilter),
                    ("request_body", At::RequestBody),
                    ("logger", At::Logger),
                ];
                once(&mut c.at, s, s.one_of(0, &choices)?)
            },
        ),
        Directive::own(
            "panic_balance",
            Place::UPSTREAM,
            Args::None,
            "`panic_balance;` Panics when a server is chosen.",
            |_, s, b| {
                b.balance_by(s, BalanceMethod::new(Panic));
                Ok(())
            },
        ),
    ];
    const VARIABLES: &'static [Variable] =
        &[Variable::new("panic", |_, _| panic!("a variable gave up"))];

    fn attach(conf: &Arc<PanicsConf>, on: &mut Hooks) -> ConfResult<()> {
        match conf.at {
            None | Some(At::Nothing) => {}
            Some(At::Handler | At::RequestBody) => on.on(Phase::PreContent, Step(conf.at)),
            Some(At::Future) => on.on(Phase::Access, Step(conf.at)),
            Some(At::Content) => on.content(Step(Some(At::Handler))),
            Some(At::HeadFilter | At::BodyFilter) => on.response(Step(conf.at)),
            Some(At::EarlyFilter) => on.before_response(Step(conf.at)),
            Some(At::Logger) => on.log(Step(conf.at)),
        }
        Ok(())
    }
}

struct Step(Option<At>);

impl Handler for Step {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        match self.0 {
            Some(At::Future) => Next::Wait(Box::pin(async move {
                tokio::task::yield_now().await;
                panic!("a future gave up")
            })),
            Some(At::RequestBody) => match r.filter_body(Box::new(Panic)) {
                Ok(()) => Next::Continue,
                Err(status) => Next::Status(status),
            },
            at => panic!("gave up:\n{at:?}"),
        }
    }
}

impl HeadFilter for Step {
    fn head(&self, _: &mut Request) -> Option<Box<dyn BodyFilter>> {
        match self.0 {
            Some(At::BodyFilter) => Some(Box::new(Panic)),
            _ => panic!("a head filter gave up"),
        }
    }
}

impl EarlyFilter for Step {
    fn head(&self, _: &mut Request) -> Result<(), u16> {
        panic!("an early filter gave up")
    }
}

impl Logger for Step {
    fn log(&self, _: &mut Request) {
        panic!("a logger gave up")
    }
}

struct Panic;

impl BodyFilter for Panic {
    fn chunk(
        &mut self,
        _: &mut Request,
        _: &[u8],
        _: bool,
        _: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        panic!("a body filter gave up")
    }
}

impl RequestBodyFilter for Panic {
    fn chunk(&mut self, _: &[u8], _: bool, _: &mut Vec<u8>) -> Result<(), u16> {
        panic!("a request body filter gave up")
    }
}

impl Balance for Panic {
    fn pick(&self, _: &PeerSet, _: &mut PickState, _: u64) -> Option<usize> {
        panic!("a balancing method gave up")
    }
}
