//! `client_body_early_read`: bodies read before anything looks at the request.

use crate::config::Result;
use crate::contract::*;
use crate::log::Level as LogLevel;
use std::sync::Arc;

/// `client_body_early_read`.
pub struct EarlyRead;

/// The conditions of a server, of which one must hold.
#[derive(Clone, Default)]
pub struct EarlyReadConf {
    conditions: Option<Vec<Template>>,
}

impl Conf for EarlyReadConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; conditions);
    }
}

impl Module for EarlyRead {
    const NAME: &'static str = "client_body_early_read";
    type Conf = EarlyReadConf;
    const DIRECTIVES: &'static [Directive<EarlyReadConf>] = &[Directive::new(
        "client_body_early_read",
        Place::HTTP.or(Place::SERVER),
        Args::AtLeast(1),
        "`client_body_early_read string …;` Reads the body of a request before all else where one of the strings is neither empty nor 0. Default: none.",
        |c, s, b| {
            for i in 0..s.len() {
                let condition = b.template(s, i)?;
                c.conditions.get_or_insert_default().push(condition);
            }
            Ok(())
        },
    )];

    fn attach(conf: &Arc<EarlyReadConf>, on: &mut Hooks) -> Result<()> {
        if let Some(conditions) = conf.conditions.as_deref()
            && on.level() == Level::Server
        {
            on.on(Phase::PostRead, Reader(conditions.into()));
        }
        Ok(())
    }
}

struct Reader(Box<[Template]>);

impl Handler for Reader {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        let mut values = self.0.iter().map(|t| t.eval(r));
        if r.subrequest || !values.any(|v| !v.is_empty() && *v != *b"0") {
            return Next::Continue;
        }
        let limit = r.core().client_max_body_size;
        if let Some(length) = r.head.content_length.filter(|n| limit != 0 && *n > limit) {
            r.error(
                LogLevel::Error,
                format_args!("client intended to send too large body: {length} bytes"),
            );
            return Next::Status(413);
        }
        Next::Wait(Box::pin(async move {
            match r.read_body().await {
                Ok(()) => Next::Continue,
                Err(status) => Next::Status(status),
            }
        }))
    }
}
