//! `mirror`: a request repeated elsewhere, whose answers nobody waits for.

use crate::config::{Result, Statement};
use crate::contract::*;
use crate::inherit;
use std::sync::Arc;

/// nginx's ngx_http_mirror_module.
pub struct Mirror;

/// What a block says.
#[derive(Clone, Default)]
pub struct MirrorConf {
    /// None for `off`.
    uris: Option<Option<Vec<Box<[u8]>>>>,
    request_body: Option<bool>,
}

impl Conf for MirrorConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; uris, request_body);
    }
}

impl Module for Mirror {
    const NAME: &'static str = "http_mirror";
    type Conf = MirrorConf;
    const DIRECTIVES: &'static [Directive<MirrorConf>] = &[
        Directive::new(
            "mirror",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`mirror uri|off;` Repeats requests at a URI and ignores the answers; may be given several times. Default: off.",
            mirror,
        ),
        Directive::new(
            "mirror_request_body",
            Place::ANY_HTTP,
            Args::Flag,
            "`mirror_request_body on|off;` Whether the body is repeated, too; it is then read as a whole first. Default: on.",
            |c, s, _| once(&mut c.request_body, s, s.flag(0)?),
        ),
    ];

    fn attach(conf: &Arc<MirrorConf>, on: &mut Hooks) -> Result<()> {
        if let Some(Some(uris)) = &conf.uris {
            on.on(
                Phase::PreContent,
                Repeat {
                    uris: uris.clone(),
                    body: conf.request_body.unwrap_or(true),
                },
            );
        }
        Ok(())
    }
}

fn mirror(c: &mut MirrorConf, s: &Statement, _b: &mut Build) -> Result<()> {
    if s.arg(0) == b"off" {
        return once(&mut c.uris, s, None);
    }
    match c.uris.get_or_insert(Some(Vec::new())) {
        Some(uris) => uris.push(s.arg(0).into()),
        None => return Err(s.duplicate()),
    }
    Ok(())
}

struct Repeat {
    uris: Vec<Box<[u8]>>,
    body: bool,
}

impl Repeat {
    fn start(&self, r: &mut Request) -> Next<'static> {
        let args = r.args.clone();
        for uri in &self.uris {
            let ask = subrequest::Ask {
                uri,
                args: &args,
                method: r.method,
                body: false,
            };
            if let Err(status) = subrequest::detach(r, ask, self.body) {
                return Next::Status(status);
            }
        }
        Next::Continue
    }
}

impl Handler for Repeat {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if r.subrequest {
            return Next::Continue;
        }
        if !self.body || !r.has_body() || r.body.read {
            return self.start(r);
        }
        Next::Wait(Box::pin(async move {
            match r.read_body().await {
                Ok(()) => self.start(r),
                Err(status) => Next::Status(status),
            }
        }))
    }
}
