//! `health_check` and `match`: whether the servers of a group answer as they should, asked all the time.

mod matching;
mod service;

use crate::config::value::{parse_number, parse_time_ms, parse_time_sec};
use crate::contract::*;
pub use matching::HealthMatch;
use matching::MatchRef;
use service::{Check, Kind};
use std::sync::Arc;
use std::time::Duration;

/// NGINX Plus's ngx_http_upstream_hc_module.
pub struct HealthCheck;

/// The checks of one location.
#[derive(Default, Clone)]
pub struct HealthConf {
    checks: Vec<Written>,
}

impl Conf for HealthConf {
    const INHERITED: bool = false;

    fn inherit(&mut self, _outer: &Self) {}
}

/// One `health_check`.
#[derive(Clone)]
struct Written {
    settings: Settings,
    at: Arc<Statement>,
}

/// The parameters of `health_check`.
#[derive(Clone)]
struct Settings {
    interval: Duration,
    jitter: Duration,
    fails: u32,
    passes: u32,
    uri: String,
    port: Option<u16>,
    kind: Kind,
    mandatory: bool,
    persistent: bool,
    keepalive: Duration,
    matching: Option<(String, MatchRef)>,
    /// The service asked for, and the status that is good where it cannot be asked for.
    grpc: (String, Option<u32>),
}

impl Module for HealthCheck {
    const NAME: &'static str = "http_upstream_hc";
    type Conf = HealthConf;
    const DIRECTIVES: &'static [Directive<HealthConf>] = &[Directive::new(
        "health_check",
        Place::LOCATION,
        Args::Between(0, 16),
        "`health_check [interval=time] [jitter=time] [fails=number] [passes=number] [uri=uri] [mandatory [persistent]] [match=name] [port=number] [type=http|tcp|grpc [grpc_service=name] [grpc_status=code]] [keepalive_time=time];` Asks the servers of the location's group again and again, and uses those that answer well. Defaults: interval=5s, jitter=0, fails=1, passes=1, uri=/, type=http; without match the status must be 2xx or 3xx.",
        health_check,
    )];

    fn attach(conf: &Arc<HealthConf>, on: &mut Hooks) -> ConfResult<()> {
        for written in &conf.checks {
            let s = &written.at;
            let Some(pass) = on.origin().cloned() else {
                return Err(s.error("\"health_check\" requires a group of servers to be passed to"));
            };
            let PassTarget::Group(group, _) = &pass.target else {
                return Err(
                    s.error("\"health_check\" cannot be used with variables in \"proxy_pass\"")
                );
            };
            let Some(group) = group.get().map(|u| u.group.clone()) else {
                return Err(s.error("\"health_check\" found no group of servers"));
            };
            let http = matches!(pass.protocol.scheme(), "http" | "https" | "grpc" | "grpcs");
            if !http && written.settings.kind != Kind::Tcp {
                return Err(s.error(format!(
                    "\"health_check\" of {} servers requires \"type=tcp\"",
                    pass.protocol.scheme()
                )));
            }
            let check = Check::new(written.settings.clone(), pass, group);
            on.background(Arc::new(service::Service::new(check)));
        }
        Ok(())
    }
}

fn health_check(c: &mut HealthConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let mut settings = Settings {
        interval: Duration::from_secs(5),
        jitter: Duration::ZERO,
        fails: 1,
        passes: 1,
        uri: "/".into(),
        port: None,
        kind: Kind::Http,
        mandatory: false,
        persistent: false,
        keepalive: Duration::ZERO,
        matching: None,
        grpc: (String::new(), None),
    };
    let (mut service, mut grpc_status) = (None, None);
    for i in 0..s.len() {
        let word = s.str(i)?;
        let invalid = || s.invalid_parameter(i);
        let count = |text: &str| {
            let n = parse_number(text.as_bytes()).and_then(|n| u32::try_from(n).ok());
            n.filter(|n| *n > 0).ok_or_else(invalid)
        };
        let time = |text: &str| {
            let ms = parse_time_ms(text.as_bytes()).ok_or_else(invalid)?;
            Ok::<_, Box<Diag>>(Duration::from_millis(ms))
        };
        match word.split_once('=') {
            Some(("interval", v)) => {
                settings.interval = Some(time(v)?)
                    .filter(|t| !t.is_zero())
                    .ok_or_else(invalid)?;
            }
            Some(("jitter", v)) => settings.jitter = time(v)?,
            Some(("fails", v)) => settings.fails = count(v)?,
            Some(("passes", v)) => settings.passes = count(v)?,
            Some(("uri", v)) => {
                // what would end the request line must not stand in it
                let bad = |byte: u8| byte <= b' ' || byte == 0x7f;
                if !v.starts_with('/') || v.bytes().any(bad) {
                    return Err(invalid());
                }
                settings.uri = v.into();
            }
            Some(("match", v)) if !v.is_empty() => {
                settings.matching = Some((v.into(), matching::reference(b, s, v)));
            }
            Some(("port", v)) => {
                let port = count(v)?;
                settings.port = Some(u16::try_from(port).map_err(|_| invalid())?);
            }
            Some(("type", "http")) => settings.kind = Kind::Http,
            Some(("type", "tcp")) => settings.kind = Kind::Tcp,
            Some(("type", "grpc")) => settings.kind = Kind::Grpc,
            // the length of the name is one byte of the question
            Some(("grpc_service", v)) if v.len() < 128 => service = Some(v.to_owned()),
            Some(("grpc_status", v)) => {
                let code = parse_number(v.as_bytes()).and_then(|n| u32::try_from(n).ok());
                grpc_status = Some(code.ok_or_else(invalid)?);
            }
            Some(("keepalive_time", v)) => {
                let seconds = parse_time_sec(v.as_bytes()).ok_or_else(invalid)?;
                settings.keepalive = Duration::from_secs(seconds);
            }
            None if word == "mandatory" => settings.mandatory = true,
            None if word == "persistent" => settings.persistent = true,
            _ => return Err(invalid()),
        }
    }
    if settings.persistent && !settings.mandatory {
        return Err(s.error("\"persistent\" requires \"mandatory\""));
    }
    if settings.kind != Kind::Grpc && (service.is_some() || grpc_status.is_some()) {
        return Err(s.error("\"grpc_service\" and \"grpc_status\" require \"type=grpc\""));
    }
    settings.grpc = (service.unwrap_or_default(), grpc_status);
    if settings.kind != Kind::Http && settings.matching.is_some() {
        return Err(s.error("\"match\" requires \"type=http\""));
    }
    c.checks.push(Written {
        settings,
        at: Arc::new(s.clone()),
    });
    Ok(())
}
