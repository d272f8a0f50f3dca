//! `api`: the state of the process as JSON, and changes of upstreams without a reload, in NGINX Plus's form.
//!
//! Another module adds an endpoint of its own with [`add_endpoint`] from one of its directives.

mod body;
mod certificates;
mod guard;
mod peers;
mod servers;
mod status;

pub use body::parse as parse_body;

use crate::contract::*;
use crate::http::method::Method;
use crate::log::Level;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::{Arc, OnceLock};

/// NGINX Plus's ngx_http_api_module.
pub struct Api;

/// `api` of one location.
#[derive(Default, Clone)]
pub struct ApiConf {
    api: Option<Written>,
}

#[derive(Clone)]
struct Written {
    write: bool,
    request_id: VarId,
    endpoints: EndpointsRef,
}

impl Conf for ApiConf {
    const INHERITED: bool = false;

    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for Api {
    const NAME: &'static str = "http_api";
    type Conf = ApiConf;
    const DIRECTIVES: &'static [Directive<ApiConf>] = &[Directive::content(Directive::new(
        "api",
        Place::LOCATION,
        Args::Between(0, 1),
        "`api [write=on|off];` Shows the state of the process below this location, and changes it where `write` is on. Clients that are not on loopback are refused unless the location has access rules, and so are requests for another host than a name of the server, an address of its listener or localhost. Changes are not taken from pages of other sites (`Origin`, `Sec-Fetch-Site`; 403), and only as `application/json` (415; `application/x-www-form-urlencoded`, as `curl -d` says, where no browser asks). Default for write: off.",
        api,
    ))];

    fn attach(conf: &Arc<ApiConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(written) = &conf.api {
            on.content(Server(written.clone()));
        }
        Ok(())
    }
}

/// Part of the API, below `/api/VERSION/`.
pub trait Endpoint: Send + Sync + 'static {
    /// Where it is: `http/upstreams`.
    fn path(&self) -> &'static str;

    /// Answers a request. Methods other than GET come only where `write` is on.
    ///
    /// # Errors
    /// What the client is told.
    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError>;
}

/// Adds an endpoint to every `api` of the configuration. One with the path of another is not added.
pub fn add_endpoint(b: &mut Build, endpoint: impl Endpoint) {
    let table = b.shared::<Table>();
    if !table
        .list
        .iter()
        .any(|known| known.path() == endpoint.path())
    {
        table.list.push(Arc::new(endpoint));
    }
}

/// A request to an endpoint.
pub struct Ask<'r> {
    /// GET, POST, PATCH or DELETE.
    pub method: Method,
    /// The segments of the path behind the endpoint's own.
    pub rest: &'r [&'r str],
    /// The arguments, still escaped.
    pub args: &'r [u8],
    /// The body of a POST or PATCH.
    pub body: Map<String, Value>,
    /// The configuration in force.
    pub site: &'r Site,
    /// The connection.
    pub request: &'r Request,
}

/// What an endpoint answers.
pub enum Answer {
    /// 200 with one object or list.
    Value(Value),
    /// 200 with an object or list of objects, to each of which `fields=` applies.
    Collection(Value),
    /// 201 with the new object, and the end of its path.
    Created(Value, String),
    /// 204.
    Done,
}

/// An error as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiError {
    /// The status.
    pub status: u16,
    /// What is wrong.
    pub text: String,
    /// Plus's word for it.
    pub code: &'static str,
}

impl ApiError {
    /// An error.
    pub fn new(status: u16, text: impl Into<String>, code: &'static str) -> Self {
        Self {
            status,
            text: text.into(),
            code,
        }
    }

    /// Nothing is there.
    pub fn path_not_found() -> Self {
        Self::new(404, "path not found", "PathNotFound")
    }

    /// The method cannot be used there.
    pub fn method_disabled() -> Self {
        Self::new(405, "method disabled", "MethodDisabled")
    }
}

impl From<std::io::Error> for ApiError {
    fn from(e: std::io::Error) -> Self {
        Self::new(500, e.to_string(), "InternalError")
    }
}

type EndpointsRef = Arc<OnceLock<Vec<Arc<dyn Endpoint>>>>;

/// The endpoints while the configuration is read.
#[derive(Default)]
struct Table {
    list: Vec<Arc<dyn Endpoint>>,
    done: Option<EndpointsRef>,
}

/// Whether an `api` of the configuration may change the state.
#[derive(Default)]
pub struct Writable(pub bool);

fn api(c: &mut ApiConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let write = match s.arg(0) {
        b"write=on" => true,
        b"write=off" => false,
        _ if !s.is_empty() => return Err(s.invalid_parameter(0)),
        _ => false,
    };
    b.shared::<Writable>().0 |= write;
    let request_id = b.known_var("request_id");
    status::add(b);
    add_endpoint(b, peers::Upstreams);
    add_endpoint(b, certificates::Expiry);
    let endpoints = match &b.shared::<Table>().done {
        Some(done) => done.clone(),
        None => {
            let done = EndpointsRef::default();
            b.shared::<Table>().done = Some(done.clone());
            let filled = done.clone();
            b.at_end(move |b| {
                let _ = filled.set(std::mem::take(&mut b.shared::<Table>().list));
                Ok(())
            });
            done
        }
    };
    let written = Written {
        write,
        request_id,
        endpoints,
    };
    once(&mut c.api, s, written)
}

/// The content of a location with `api`.
struct Server(Written);

/// The versions of the API that are understood; they differ in what Plus added.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=9;

impl Handler for Server {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !is_open_to(r) {
            r.error(
                Level::Error,
                format_args!(
                    "api is open to loopback only, where its location has no access rules"
                ),
            );
            return Next::Status(403);
        }
        if let Err(status) = guard(r, "api") {
            return Next::Status(status);
        }
        Next::Wait(Box::pin(self.serve(r)))
    }
}

/// Refuses what a page of another site has a browser send; logged.
///
/// # Errors
/// 403 or 415.
pub fn guard(r: &mut Request, what: &str) -> Result<(), u16> {
    guard::check(r, what).map_err(|(status, why)| {
        r.error(Level::Error, format_args!("{why}"));
        status
    })
}

/// Whether the client is on this machine, or rules of the location have let it in.
pub fn is_open_to(r: &Request) -> bool {
    let near = match r.remote.ip() {
        Some(ip) => ip.to_canonical().is_loopback(),
        None => true,
    };
    near || r.location().hooks.has_access()
}

impl Server {
    async fn serve(&self, r: &mut Request) -> Next<'static> {
        let body = match r.method {
            Method::Post | Method::Patch => {
                if let Err(status) = r.read_body().await {
                    return Next::Status(status);
                }
                match body::read(r) {
                    Ok(body) => Ok(body),
                    Err(body::Unreadable::Status(status)) => return Next::Status(status),
                    Err(body::Unreadable::Error(e)) => Err(e),
                }
            }
            _ => Ok(Map::new()),
        };
        let answer = body.and_then(|body| self.answer(r, body));
        let (status, value, location) = match answer {
            Ok(Answer::Value(v) | Answer::Collection(v)) => (200, Some(v), None),
            Ok(Answer::Created(v, at)) => (201, Some(v), Some(at)),
            Ok(Answer::Done) => (204, None, None),
            Err(e) => (e.status, self.error(r, e), None),
        };
        r.out.status = status;
        if let Some(at) = location {
            let mut uri = r.uri.clone();
            if !uri.ends_with(b"/") {
                uri.push(b'/');
            }
            uri.extend_from_slice(at.as_bytes());
            r.out.location = uri;
        }
        let Some(value) = value else {
            return Next::Respond(Body::Empty);
        };
        let text = value.to_string();
        r.out.set_content_type(b"application/json");
        r.out.content_length = Some(text.len() as u64);
        Next::Respond(Body::Bytes(Bytes::from(text)))
    }

    fn error(&self, r: &Request, error: ApiError) -> Option<Value> {
        #[derive(Serialize)]
        struct Page {
            error: ApiError,
            request_id: String,
            href: &'static str,
        }
        let page = Page {
            error,
            request_id: String::from_utf8_lossy(r.var(self.0.request_id).as_bytes()).into_owned(),
            href: "https://nginx.org/en/docs/http/ngx_http_api_module.html",
        };
        serde_json::to_value(page).ok()
    }

    fn answer(&self, r: &Request, body: Map<String, Value>) -> Result<Answer, ApiError> {
        let path = String::from_utf8_lossy(&r.uri);
        let name = String::from_utf8_lossy(&r.location().name).into_owned();
        let below = path.strip_prefix(&name).unwrap_or(&path);
        let segments: Vec<&str> = below.split('/').filter(|s| !s.is_empty()).collect();
        let Some((version, path)) = segments.split_first() else {
            return match r.method {
                Method::Get | Method::Head => {
                    Ok(Answer::Value(VERSIONS.map(Value::from).collect()))
                }
                _ => Err(ApiError::method_disabled()),
            };
        };
        if !version.parse().is_ok_and(|v: u64| VERSIONS.contains(&v)) {
            return Err(ApiError::new(404, "unknown version", "UnknownVersion"));
        }
        let method = match r.method {
            Method::Get | Method::Head => Method::Get,
            m @ (Method::Post | Method::Patch | Method::Delete) if self.0.write => m,
            _ => return Err(ApiError::method_disabled()),
        };
        let endpoints = self
            .0
            .endpoints
            .get()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let fits = |e: &&Arc<dyn Endpoint>| {
            let mut own = e.path().split('/');
            own.all({
                let mut given = path.iter();
                move |segment| given.next() == Some(&segment)
            })
        };
        let found = endpoints.iter().filter(fits);
        let Some(endpoint) = found.max_by_key(|e| e.path().len()) else {
            return list(endpoints, path, method);
        };
        let depth = endpoint.path().split('/').count();
        let answer = endpoint.answer(&Ask {
            method,
            rest: path.get(depth..).unwrap_or_default(),
            args: &r.args,
            body,
            site: &r.site,
            request: r,
        })?;
        Ok(filter(answer, &r.args))
    }
}

/// The names below a path that is no endpoint itself.
fn list(
    endpoints: &[Arc<dyn Endpoint>],
    path: &[&str],
    method: Method,
) -> Result<Answer, ApiError> {
    let mut names: Vec<Value> = Vec::new();
    for endpoint in endpoints {
        let own: Vec<&str> = endpoint.path().split('/').collect();
        if let Some(next) = own.strip_prefix(path).and_then(|rest| rest.first()) {
            let name = Value::from(*next);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    match method {
        _ if names.is_empty() => Err(ApiError::path_not_found()),
        Method::Get => Ok(Answer::Value(names.into())),
        _ => Err(ApiError::method_disabled()),
    }
}

/// `fields=a,b`: what is shown of an object.
fn filter(answer: Answer, args: &[u8]) -> Answer {
    let given = args.split(|b| *b == b'&');
    let mut fields = given.filter_map(|arg| arg.strip_prefix(b"fields="));
    let Some(fields) = fields.next().and_then(|f| std::str::from_utf8(f).ok()) else {
        return answer;
    };
    let keep = |value: &mut Value| {
        if let Value::Object(map) = value {
            map.retain(|name, _| fields.split(',').any(|f| f == name));
        }
    };
    match answer {
        Answer::Value(mut value) => {
            keep(&mut value);
            Answer::Value(value)
        }
        Answer::Collection(mut value) => {
            match &mut value {
                Value::Object(map) => map.values_mut().for_each(keep),
                Value::Array(list) => list.iter_mut().for_each(keep),
                _ => {}
            }
            Answer::Collection(value)
        }
        other => other,
    }
}
