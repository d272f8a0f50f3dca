//! `nginx`, `processes`, `connections` and `http/requests`.

use super::{Answer, ApiError, Ask, Endpoint, add_endpoint};
use crate::contract::{Build, Stat};
use crate::http::method::Method;
use crate::http::status::NGINX_VERSION;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Adds these endpoints.
pub(super) fn add(b: &mut Build) {
    add_endpoint(b, Process(Timestamp::now()));
    add_endpoint(b, Processes);
    add_endpoint(b, Connections);
    add_endpoint(b, Requests);
}

/// As Plus writes times.
pub(super) fn time(at: Timestamp) -> Value {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string().into()
}

/// The same for milliseconds since the epoch.
pub(super) fn time_of(millis: u64) -> Value {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).map_or(Value::Null, time)
}

/// Nothing stands below the endpoint.
fn alone(ask: &Ask<'_>) -> Result<(), ApiError> {
    if ask.rest.is_empty() {
        Ok(())
    } else {
        Err(ApiError::path_not_found())
    }
}

/// `nginx`, with the time at which the configuration was read.
struct Process(Timestamp);

impl Endpoint for Process {
    fn path(&self) -> &'static str {
        "nginx"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        alone(ask)?;
        match ask.method {
            Method::Get => Ok(Answer::Value(json!({
                "version": NGINX_VERSION,
                "build": format!("couloir/{}", env!("CARGO_PKG_VERSION")),
                "address": String::from_utf8_lossy(ask.request.var_named("server_addr").as_bytes()),
                "generation": ask.site.serial,
                "load_timestamp": time(self.0),
                "timestamp": time(Timestamp::now()),
                "pid": std::process::id(),
                "ppid": nix::unistd::getppid().as_raw(),
            }))),
            _ => Err(ApiError::method_disabled()),
        }
    }
}

/// `processes`.
struct Processes;

impl Endpoint for Processes {
    fn path(&self) -> &'static str {
        "processes"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        alone(ask)?;
        match ask.method {
            // a worker that ends takes its counters along
            Method::Get => Ok(Answer::Value(json!({ "respawned": 0 }))),
            Method::Delete => Ok(Answer::Done),
            _ => Err(ApiError::method_disabled()),
        }
    }
}

/// `connections`.
struct Connections;

/// What was counted before the last reset.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
static REQUESTS: AtomicU64 = AtomicU64::new(0);

impl Endpoint for Connections {
    fn path(&self) -> &'static str {
        "connections"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        alone(ask)?;
        let accepted = Stat::Accepted.get();
        let dropped = accepted.saturating_sub(Stat::Handled.get());
        let (active, idle) = (Stat::Active.get(), Stat::Waiting.get());
        match ask.method {
            Method::Get => Ok(Answer::Value(json!({
                "accepted": accepted.saturating_sub(ACCEPTED.load(Relaxed)),
                "dropped": dropped.saturating_sub(DROPPED.load(Relaxed)),
                "active": active.saturating_sub(idle),
                "idle": idle,
            }))),
            Method::Delete => {
                ACCEPTED.store(accepted, Relaxed);
                DROPPED.store(dropped, Relaxed);
                Ok(Answer::Done)
            }
            _ => Err(ApiError::method_disabled()),
        }
    }
}

/// `http/requests`.
struct Requests;

impl Endpoint for Requests {
    fn path(&self) -> &'static str {
        "http/requests"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        alone(ask)?;
        let total = Stat::Requests.get();
        match ask.method {
            Method::Get => Ok(Answer::Value(json!({
                "total": total.saturating_sub(REQUESTS.load(Relaxed)),
                "current": Stat::Reading.get() + Stat::Writing.get(),
            }))),
            Method::Delete => {
                REQUESTS.store(total, Relaxed);
                Ok(Answer::Done)
            }
            _ => Err(ApiError::method_disabled()),
        }
    }
}
