//! Access by what a subrequest answers: `auth_request`, `auth_request_set`.

use crate::config::{Result, Statement};
use crate::contract::*;
use crate::http::method::Method;
use crate::log::Level as LogLevel;
use std::sync::Arc;

/// Access by a subrequest.
pub struct AuthRequest;

/// Where a block asks, and what it learns.
#[derive(Default, Clone)]
pub struct AuthRequestConf {
    /// The URI; empty for `off`.
    uri: Option<Box<[u8]>>,
    vars: Option<Vec<(VarId, Template)>>,
}

impl Conf for AuthRequestConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; uri, vars);
    }
}

impl Module for AuthRequest {
    const NAME: &'static str = "http_auth_request";
    type Conf = AuthRequestConf;
    const DIRECTIVES: &'static [Directive<AuthRequestConf>] = &[
        Directive::new(
            "auth_request",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`auth_request uri|off;` Lets a request through if a subrequest is answered 2xx, refuses it on 401 and 403. Default: off.",
            |c, s, _| {
                let uri: &[u8] = if s.arg(0) == b"off" { b"" } else { s.arg(0) };
                once(&mut c.uri, s, uri.into())
            },
        ),
        Directive::new(
            "auth_request_set",
            Place::ANY_HTTP,
            Args::Exactly(2),
            "`auth_request_set $variable value;` Sets a variable from the answer of the subrequest.",
            set,
        ),
    ];

    fn attach(conf: &Arc<AuthRequestConf>, on: &mut Hooks) -> Result<()> {
        if conf.uri.as_ref().is_some_and(|u| !u.is_empty()) {
            on.on(Phase::Access, Check(conf.clone()));
        }
        Ok(())
    }
}

struct Check(Arc<AuthRequestConf>);

impl Handler for Check {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        Next::Wait(Box::pin(async move {
            let ask = subrequest::Ask {
                uri: self.0.uri.as_deref().unwrap_or_default(),
                args: b"",
                method: Method::Get,
                body: false,
            };
            let sub = match subrequest::run(r, ask).await {
                Ok(sub) => sub,
                Err(status) => return Next::Status(status),
            };
            // at once, so that the values are there after internal redirects, too
            for (id, template) in self.0.vars.iter().flatten() {
                let value = template.eval(&sub.request).into_owned();
                r.set_var(*id, value);
            }
            match sub.status() {
                403 => Next::Status(403),
                401 => {
                    let own = &sub.request.out.headers;
                    let origin = &sub.request.upstream.head.headers;
                    let from =
                        if own.contains(b"WWW-Authenticate") || !sub.request.upstream.has_head {
                            own
                        } else {
                            origin
                        };
                    for challenge in from.get_all(b"WWW-Authenticate") {
                        r.out.headers.append(b"WWW-Authenticate", challenge);
                    }
                    Next::Status(401)
                }
                200..=299 => Next::Allow,
                status => {
                    // what nginx was doing last, where an origin was asked
                    let doing = match sub.request.upstream.states.is_empty() {
                        true => "",
                        false => " while sending to client",
                    };
                    r.error(
                        LogLevel::Error,
                        format_args!("auth request unexpected status: {status}{doing}"),
                    );
                    Next::Status(500)
                }
            }
        }))
    }
}

fn set(c: &mut AuthRequestConf, s: &Statement, b: &mut Build) -> Result<()> {
    let name = b.var_name(s, 0)?;
    let id = b.assigned_var(s, &name)?;
    let value = b.template(s, 1)?;
    c.vars.get_or_insert_default().push((id, value));
    Ok(())
}
