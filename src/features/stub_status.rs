//! `stub_status`: how many connections and requests there are.

use crate::config::Result;
use crate::contract::*;
use crate::http::method::Method;
use bytes::Bytes;
use std::sync::Arc;

/// nginx's ngx_http_stub_status_module.
pub struct StubStatus;

/// Whether the location answers with the counters.
#[derive(Clone, Default)]
pub struct StubStatusConf {
    on: bool,
}

impl Conf for StubStatusConf {
    const INHERITED: bool = false;

    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for StubStatus {
    const NAME: &'static str = "http_stub_status";
    type Conf = StubStatusConf;
    const DIRECTIVES: &'static [Directive<StubStatusConf>] = &[Directive::content(Directive::new(
        "stub_status",
        Place::SERVER.or(Place::LOCATION),
        Args::Between(0, 1),
        "`stub_status;` Answers with the numbers of connections and requests.",
        |c, _, _| {
            c.on = true;
            Ok(())
        },
    ))];
    const VARIABLES: &'static [Variable] = &[
        Variable::new("connections_active", |_, _| Val::number(Stat::Active.get())),
        Variable::new("connections_reading", |_, _| {
            Val::number(Stat::Reading.get())
        }),
        Variable::new("connections_writing", |_, _| {
            Val::number(Stat::Writing.get())
        }),
        Variable::new("connections_waiting", |_, _| {
            Val::number(Stat::Waiting.get())
        }),
    ];

    fn attach(conf: &Arc<StubStatusConf>, on: &mut Hooks) -> Result<()> {
        if conf.on {
            on.content(Status);
        }
        Ok(())
    }
}

struct Status;

impl Handler for Status {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) {
            return Next::Status(405);
        }
        let text = format!(
            "Active connections: {} \nserver accepts handled requests\n {} {} {} \nReading: {} Writing: {} Waiting: {} \n",
            Stat::Active.get(),
            Stat::Accepted.get(),
            Stat::Handled.get(),
            Stat::Requests.get(),
            Stat::Reading.get(),
            Stat::Writing.get(),
            Stat::Waiting.get(),
        );
        r.out.status = 200;
        r.out.set_content_type(b"text/plain");
        r.out.content_length = Some(text.len() as u64);
        Next::Respond(Body::Bytes(Bytes::from(text)))
    }
}
