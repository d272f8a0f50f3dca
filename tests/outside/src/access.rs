//! An access handler: `api_key KEY;` and `api_key_check URI;`.

use std::sync::Arc;

use couloir::prelude::*;

pub struct ApiKey;

#[derive(Clone, Default)]
pub struct ApiKeyConf {
    key: Option<Arc<[u8]>>,
    check: Option<Arc<[u8]>>,
}

impl Conf for ApiKeyConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; key, check);
    }
}

impl Module for ApiKey {
    const NAME: &'static str = "api_key";
    type Conf = ApiKeyConf;
    const DIRECTIVES: &'static [Directive<ApiKeyConf>] = &[
        Directive::own(
            "api_key",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`api_key key;` Refuses requests whose header `X-Api-Key` is not the key.",
            |c, s, _| once(&mut c.key, s, s.arg(0).into()),
        ),
        Directive::own(
            "api_key_check",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`api_key_check uri;` Lets a subrequest decide: a status of 200 to 299 grants access.",
            |c, s, _| once(&mut c.check, s, s.arg(0).into()),
        ),
    ];

    fn attach(conf: &Arc<ApiKeyConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(key) = &conf.key {
            on.on(Phase::Access, Check(key.clone()));
        }
        if let Some(uri) = &conf.check {
            on.on(Phase::Access, Ask(uri.clone()));
        }
        Ok(())
    }
}

/// Decides at once.
struct Check(Arc<[u8]>);

impl Handler for Check {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        match r.headers().get(b"x-api-key") {
            Some(key) if *key == *self.0 => Next::Allow,
            Some(_) => Next::Status(403),
            None => {
                r.error(LogLevel::Info, format_args!("request without an API key"));
                Next::Status(401)
            }
        }
    }
}

/// Decides later: the future may borrow the request.
struct Ask(Arc<[u8]>);

impl Handler for Ask {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        Next::Wait(Box::pin(async move {
            let ask = subrequest::Ask {
                uri: &self.0,
                args: b"",
                method: Method::Get,
                body: false,
            };
            match subrequest::run(r, ask).await {
                Ok(answer) if (200..300).contains(&answer.status()) => Next::Allow,
                Ok(_) => Next::Status(403),
                Err(status) => Next::Status(status),
            }
        }))
    }
}
