//! `http/upstreams/NAME/servers`: the servers of a group as configured, and their change.

use super::{Answer, ApiError, Ask};
use crate::config::addr::{Address, parse_server};
use crate::config::value::{parse_time_ms, parse_time_sec};
use crate::http::method::Method;
use crate::upstream::members::{Found, Row, Servers};
use crate::upstream::{Group, PeerAddr, ResolveName, ServerSpec};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

/// The list.
pub(super) fn all(ask: &Ask<'_>, group: &Group) -> Result<Answer, ApiError> {
    match ask.method {
        Method::Get => Ok(Answer::Collection(list(&rows(group)))),
        Method::Post => {
            let spec = new_server(&ask.body, group)?;
            let added = edit(group, |servers| {
                let same = |row: &Row| {
                    let service =
                        |s: &ServerSpec| s.resolve.as_ref().and_then(|n| n.service.clone());
                    row.spec.server == spec.server && service(&row.spec) == service(&spec)
                };
                if servers.rows.iter().any(same) {
                    return Err(ApiError::new(409, "entry exists", "EntryExists"));
                }
                let id = servers.add(spec.clone());
                let row = servers.rows.last().cloned();
                row.map(|row| (id, row)).ok_or_else(|| not_found(id))
            })?;
            let (id, row) = added;
            Ok(Answer::Created(view(&row), id.to_string()))
        }
        _ => Err(ApiError::method_disabled()),
    }
}

/// One server, or one address of a name.
pub(super) fn one(ask: &Ask<'_>, group: &Group, id: &str) -> Result<Answer, ApiError> {
    let bad = |_| ApiError::new(400, "invalid server ID", "UpstreamBadServerId");
    let id: u32 = id.parse().map_err(bad)?;
    let place = |servers: &Servers| servers.find(id).ok_or_else(|| not_found(id));
    match ask.method {
        Method::Get => {
            let rows = rows(group);
            let found = rows.iter().find_map(|row| {
                let child = row.found.iter().find(|found| found.id == id);
                match child {
                    _ if row.id == id => Some(view(row)),
                    Some(child) => Some(child_view(row, child)),
                    None => None,
                }
            });
            found.map(Answer::Value).ok_or_else(|| not_found(id))
        }
        Method::Patch => {
            let value = edit(group, |servers| {
                let (at, child) = place(servers)?;
                let Some(row) = servers.rows.get_mut(at) else {
                    return Err(not_found(id));
                };
                if let Some(child) = child {
                    return patch_child(row, child, &ask.body);
                }
                let mut spec = row.spec.clone();
                apply(&mut spec, &ask.body, group, Change::Patch)?;
                servers.rename(at, spec);
                servers.rows.get(at).map(view).ok_or_else(|| not_found(id))
            })?;
            Ok(Answer::Value(value))
        }
        Method::Delete => {
            let left = edit(group, |servers| {
                let (at, child) = place(servers)?;
                if child.is_some() {
                    let text = format!("server \"{id}\" not removable");
                    return Err(ApiError::new(400, text, "UpstreamServerImmutable"));
                }
                servers.rows.remove(at);
                Ok(list(&servers.rows))
            })?;
            Ok(Answer::Collection(left))
        }
        _ => Err(ApiError::method_disabled()),
    }
}

fn rows(group: &Group) -> Vec<Row> {
    group.live().map(|live| live.servers()).unwrap_or_default()
}

fn edit<T>(
    group: &Group,
    change: impl FnOnce(&mut Servers) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let fixed = || ApiError::new(400, "upstream is static", "UpstreamStatic");
    group.edit(change).ok_or_else(fixed)?
}

fn not_found(id: u32) -> ApiError {
    let text = format!("server with ID \"{id}\" does not exist");
    ApiError::new(404, text, "UpstreamServerNotFound")
}

fn list(rows: &[Row]) -> Value {
    let with_children = |row: &Row| {
        let mut views = vec![view(row)];
        views.extend(row.found.iter().map(|found| child_view(row, found)));
        views
    };
    rows.iter().flat_map(with_children).collect()
}

fn view(row: &Row) -> Value {
    let spec = &row.spec;
    let mut view = json!({
        "id": row.id,
        "server": spec.server,
        "weight": spec.weight,
        "max_conns": spec.max_conns,
        "max_fails": spec.max_fails,
        "fail_timeout": format!("{}s", spec.fail_timeout),
        "slow_start": time(spec.slow_start),
        "route": spec.route.as_deref().unwrap_or_default(),
        "backup": spec.backup,
        "down": spec.down,
    });
    if let Value::Object(map) = &mut view {
        if spec.drain {
            map.insert("drain".into(), true.into());
        }
        let service = spec.resolve.as_ref().and_then(|name| name.service.as_ref());
        if let Some(service) = service {
            map.insert("service".into(), service.as_str().into());
        }
    }
    view
}

/// One address of a name: its parameters are those of the name's server.
fn child_view(row: &Row, found: &Found) -> Value {
    let mut view = view(row);
    if let Value::Object(map) = &mut view {
        let mut set = |name: &str, value: Value| drop(map.insert(name.into(), value));
        set("id", found.id.into());
        set("server", found.addr.addr.to_string().into());
        set("parent", row.id.into());
        set("host", row.spec.server.as_str().into());
        set("down", found.down.unwrap_or(row.spec.down).into());
        set("backup", (row.spec.backup || found.addr.backup).into());
        if let Some(service) = &found.addr.service
            && row.spec.weight == 1
        {
            set("weight", service.weight.into());
        }
        map.remove("drain");
        if found.drain.unwrap_or(row.spec.drain) {
            map.insert("drain".into(), true.into());
        }
    }
    view
}

fn time(ms: u64) -> String {
    if ms.is_multiple_of(1000) {
        format!("{}s", ms / 1000)
    } else {
        format!("{ms}ms")
    }
}

/// What a body is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Post,
    Patch,
}

fn new_server(body: &Map<String, Value>, group: &Group) -> Result<ServerSpec, ApiError> {
    if !body.contains_key("server") {
        return Err(format_error("missing \"server\" argument"));
    }
    let mut spec = ServerSpec::new("", Vec::new());
    apply(&mut spec, body, group, Change::Post)?;
    Ok(spec)
}

/// Sets what the body names; nothing of a spec that is refused is used.
fn apply(
    spec: &mut ServerSpec,
    body: &Map<String, Value>,
    group: &Group,
    change: Change,
) -> Result<(), ApiError> {
    let mut service = None;
    let mut server = None;
    for (name, value) in body {
        let wrong = || format_error(&format!("invalid \"{name}\" value"));
        let flag = || value.as_bool().ok_or_else(wrong);
        let number = |code: &'static str| {
            let n = value.as_u64().and_then(|n| u32::try_from(n).ok());
            n.ok_or_else(|| ApiError::new(400, format!("invalid \"{name}\""), code))
        };
        let span = |parse: fn(&[u8]) -> Option<u64>, unit: u64, code: &'static str| {
            let parsed = match value {
                Value::String(text) => parse(text.as_bytes()),
                Value::Number(n) => n.as_u64().and_then(|n| n.checked_mul(unit)),
                _ => None,
            };
            parsed.ok_or_else(|| ApiError::new(400, format!("invalid \"{name}\""), code))
        };
        match name.as_str() {
            "server" => server = Some(value.as_str().ok_or_else(wrong)?),
            "weight" => {
                const CODE: &str = "UpstreamBadWeight";
                spec.weight = match number(CODE)? {
                    0 => return Err(ApiError::new(400, "invalid \"weight\"", CODE)),
                    n => n,
                };
            }
            "max_conns" => spec.max_conns = number("UpstreamBadMaxConns")?,
            "max_fails" => spec.max_fails = number("UpstreamBadMaxFails")?,
            "fail_timeout" => {
                spec.fail_timeout = span(parse_time_sec, 1, "UpstreamBadFailTimeout")?;
            }
            "slow_start" => spec.slow_start = span(parse_time_ms, 1000, "UpstreamBadSlowStart")?,
            "route" => {
                let route = value.as_str().ok_or_else(wrong)?;
                if route.len() > 32 {
                    let text = "route is longer than 32";
                    return Err(ApiError::new(400, text, "UpstreamBadRoute"));
                }
                if route.bytes().any(|b| b < b' ' || b == 0x7f) {
                    return Err(ApiError::new(400, "invalid \"route\"", "UpstreamBadRoute"));
                }
                spec.route = (!route.is_empty()).then(|| route.into());
            }
            // as in the configuration, one state takes the place of the other
            "down" => {
                spec.down = flag()?;
                spec.drain &= !spec.down;
            }
            "drain" => {
                spec.drain = flag()?;
                spec.down &= !spec.drain;
            }
            "backup" if change == Change::Post => spec.backup = flag()?,
            "service" if change == Change::Post => {
                let text = value.as_str().ok_or_else(wrong)?;
                if text.is_empty() {
                    return Err(ApiError::new(400, "service is empty", "UpstreamBadService"));
                }
                if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
                    return Err(ApiError::new(
                        400,
                        "invalid \"service\"",
                        "UpstreamBadService",
                    ));
                }
                service = Some(text.to_owned());
            }
            _ => return Err(format_error(&format!("unknown parameter \"{name}\""))),
        }
    }
    if change == Change::Patch {
        let known = spec.resolve.as_ref().and_then(|name| name.service.clone());
        service = known;
    }
    match server {
        Some(server) => address(spec, server, service, group),
        None => Ok(()),
    }
}

/// Sets the address, or the name to be resolved.
fn address(
    spec: &mut ServerSpec,
    server: &str,
    service: Option<String>,
    group: &Group,
) -> Result<(), ApiError> {
    let bad = |text: String| ApiError::new(400, text, "UpstreamBadAddress");
    if server.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err(bad("invalid \"server\" argument".into()));
    }
    let parsed = parse_server(server.as_bytes(), 80)
        .map_err(|e| bad(format!("{e} while parsing \"{server}\"")))?;
    let service_error = |what: &str| bad(format!("service upstream \"{server}\" {what}"));
    (spec.addrs, spec.resolve) = match parsed {
        Address::Unix(_) if service.is_some() => return Err(service_error("requires domain name")),
        Address::Unix(path) => {
            let addr = PeerAddr::Unix(path);
            addr.to_l4()
                .map_err(|e| bad(format!("{e} while parsing \"{server}\"")))?;
            (vec![addr], None)
        }
        Address::Inet(a) => match a.ip {
            _ if service.is_some() && a.port_given => {
                return Err(service_error("may not have port"));
            }
            Some(_) if service.is_some() => return Err(service_error("requires domain name")),
            Some(ip) => (vec![SocketAddr::new(ip, a.port).into()], None),
            None if !group.live().is_some_and(|live| live.resolves()) => {
                let text = format!("no resolver defined to resolve {}", a.host);
                return Err(ApiError::new(400, text, "UpstreamConfNoResolver"));
            }
            None => {
                let name = ResolveName {
                    host: a.host.to_string(),
                    port: a.port,
                    service,
                };
                (Vec::new(), Some(name))
            }
        },
    };
    spec.server = server.to_owned();
    Ok(())
}

fn patch_child(row: &mut Row, child: usize, body: &Map<String, Value>) -> Result<Value, ApiError> {
    let Some(found) = row.found.get_mut(child) else {
        return Err(not_found(row.id));
    };
    for (name, value) in body {
        let wrong = || format_error(&format!("invalid \"{name}\" value"));
        let flag = || value.as_bool().ok_or_else(wrong);
        match name.as_str() {
            "down" => found.down = Some(flag()?),
            "drain" => found.drain = Some(flag()?),
            "server" => {
                let text = "server address is immutable";
                return Err(ApiError::new(400, text, "UpstreamServerImmutable"));
            }
            "weight" => {
                let text = "server weight is immutable";
                return Err(ApiError::new(400, text, "UpstreamServerWeightImmutable"));
            }
            _ => return Err(format_error(&format!("unknown parameter \"{name}\""))),
        }
    }
    let id = found.id;
    let seen = row.found.iter().find(|found| found.id == id);
    seen.map(|found| child_view(row, found))
        .ok_or_else(|| not_found(id))
}

fn format_error(text: &str) -> ApiError {
    ApiError::new(400, text, "UpstreamConfFormatError")
}
