//! A log sink: `audit_log PATH;` writes a line of its own for each request.

use std::sync::Arc;

use couloir::prelude::*;

pub struct Audit;

#[derive(Clone, Default)]
pub struct AuditConf {
    sink: Option<LogSink>,
}

impl Conf for AuditConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; sink);
    }
}

impl Module for Audit {
    const NAME: &'static str = "audit_log";
    type Conf = AuditConf;
    const DIRECTIVES: &'static [Directive<AuditConf>] = &[Directive::own(
        "audit_log",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`audit_log path;` Writes a line for each request: method, URI and status.",
        |c, s, b| {
            let sink = b.log_file(s.str(0)?);
            once(&mut c.sink, s, sink)
        },
    )];

    fn attach(conf: &Arc<AuditConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(sink) = &conf.sink {
            on.log(Line(sink.clone()));
        }
        Ok(())
    }
}

struct Line(LogSink);

impl Logger for Line {
    fn log(&self, r: &mut Request) {
        let mut line = r.method_text().to_vec();
        line.push(b' ');
        line.extend_from_slice(&r.uri);
        line.extend_from_slice(format!(" {}\n", r.out.status).as_bytes());
        if let Err(e) = self.0.append(&line) {
            r.error(LogLevel::Alert, format_args!("{e}"));
        }
    }
}
