//! `http/upstreams`: the groups with a `zone`, their peers and what these have done.

use super::status::time_of;
use super::{Answer, ApiError, Ask, Endpoint, servers};
use crate::http::method::Method;
use crate::upstream::{Clock, Group, Peer};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The endpoint.
pub(super) struct Upstreams;

impl Endpoint for Upstreams {
    fn path(&self) -> &'static str {
        "http/upstreams"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        let Some((name, rest)) = ask.rest.split_first() else {
            let all = groups(ask).filter(|(_, group)| zone(group).is_some());
            return match ask.method {
                Method::Get => Ok(Answer::Collection(Value::Object(
                    all.map(|(name, group)| (name.into(), view(group)))
                        .collect(),
                ))),
                _ => Err(ApiError::method_disabled()),
            };
        };
        let found = groups(ask).find(|(known, _)| known == name);
        let Some((_, group)) = found else {
            return Err(ApiError::new(404, "upstream not found", "UpstreamNotFound"));
        };
        if zone(group).is_none() {
            return Err(ApiError::new(400, "upstream is static", "UpstreamStatic"));
        }
        match rest {
            [] => one(ask, group),
            ["servers"] => servers::all(ask, group),
            ["servers", id] => servers::one(ask, group, id),
            _ => Err(ApiError::path_not_found()),
        }
    }
}

/// The `upstream {}` blocks.
fn groups<'s>(ask: &Ask<'s>) -> impl Iterator<Item = (&'s str, &'s Arc<Group>)> {
    let list = ask.site.groups.get().map(|g| g.list.as_slice());
    let list = list.unwrap_or_default().iter();
    list.filter(|(_, port, _)| *port == 0)
        .map(|(name, _, group)| (&**name, &group.group))
}

fn zone(group: &Group) -> Option<&str> {
    group.live()?.zone()
}

fn one(ask: &Ask<'_>, group: &Group) -> Result<Answer, ApiError> {
    match ask.method {
        Method::Get => Ok(Answer::Value(view(group))),
        Method::Delete => {
            for peer in group.members().peers() {
                peer.state.requests.store(0, Relaxed);
                peer.state.stats.reset();
                peer.state.reset_health_record();
            }
            Ok(Answer::Done)
        }
        _ => Err(ApiError::method_disabled()),
    }
}

fn view(group: &Group) -> Value {
    let now = Clock::system().now();
    let peers: Vec<Value> = group
        .members()
        .peers()
        .map(|peer| peer_view(peer, now))
        .collect();
    json!({
        "peers": peers,
        "keepalive": group.state.shared_idle.load(Relaxed),
        "zombies": 0,
        "zone": zone(group).unwrap_or_default(),
    })
}

fn state_of(peer: &Peer, now: u64) -> &'static str {
    if peer.down {
        "down"
    } else if peer.state.is_unhealthy() {
        "unhealthy"
    } else if !peer.state.healthy.load(Relaxed) {
        "checking"
    } else if peer.is_failed(now) || peer.state.is_ejected() {
        "unavail"
    } else if peer.drain {
        "draining"
    } else {
        "up"
    }
}

fn peer_view(peer: &Peer, now: u64) -> Value {
    let stats = peer.state.stats.snapshot();
    let health = peer.state.health_record();
    let mut checks = json!({
        "checks": health.checks,
        "fails": health.fails,
        "unhealthy": health.unhealthy,
    });
    if let (Some(passed), Value::Object(map)) = (health.last_passed, &mut checks) {
        map.insert("last_passed".into(), passed.into());
    }
    let mut codes = Map::new();
    let mut classes = [0u64; 5];
    let mut total = 0;
    for (code, count) in &stats.answers.codes {
        codes.insert(code.to_string(), (*count).into());
        total += count;
        let class = usize::from(code / 100).wrapping_sub(1);
        if let Some(class) = classes.get_mut(class) {
            *class += count;
        }
    }
    let [c1, c2, c3, c4, c5] = classes;
    let mut view = json!({
        "id": peer.id,
        "server": &*peer.name,
        "name": &*peer.server,
        "backup": peer.backup,
        "weight": peer.weight,
        "state": state_of(peer, now),
        "active": peer.state.conns.load(Relaxed),
        "requests": peer.state.requests.load(Relaxed),
        "responses": {
            "1xx": c1, "2xx": c2, "3xx": c3, "4xx": c4, "5xx": c5,
            "codes": codes,
            "total": total,
        },
        "sent": stats.sent,
        "received": stats.received,
        "fails": stats.fails,
        "unavail": stats.unavail,
        "health_checks": checks,
        "downtime": health.downtime(),
    });
    if let Value::Object(map) = &mut view {
        let mut set = |name: &str, value: Value| drop(map.insert(name.into(), value));
        if peer.max_conns != 0 {
            set("max_conns", peer.max_conns.into());
        }
        if let Some(since) = health.down_since {
            set("downstart", time_of(since));
        }
        if stats.selected != 0 {
            set("selected", time_of(stats.selected));
        }
        if total != 0 {
            set("header_time", stats.answers.header_time.into());
            set("response_time", stats.answers.response_time.into());
        }
    }
    view
}
