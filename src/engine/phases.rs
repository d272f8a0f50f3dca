//! The path of a request through the phases, with internal redirects inside the loop.

use super::lookup::{self, Found};
use super::{content, decisions, error_page};
use crate::contract::*;
use crate::delivery::output;
use crate::log::Level;
use crate::runtime::panics::{self, Caught};
use std::pin::pin;
use std::time::Duration;

/// Where a pass begins.
enum Entry {
    /// With the phases of the server.
    Start,
    /// After an internal redirect: with the server's rewrite phase.
    Server,
    /// At a location that is already known.
    Location,
}

/// Serves a request whose head is known, up to its log line.
pub async fn serve(r: &mut Request) {
    let begin = match prepare(r) {
        Ok(()) => Begin::Start,
        Err(status) => Begin::With(PassEnd::Status(status)),
    };
    answer(r, begin).await;
    if r.core().post_action.is_some() {
        Box::pin(post_action(r)).await;
    }
    log(r);
    r.forget_shared();
}

/// Goes on with a request that has been answered (`post_action`); nothing more is sent.
async fn post_action(r: &mut Request) {
    let nobody = subrequest::nobody(r);
    let down = std::mem::replace(&mut r.down, nobody);
    let (aborted, keepalive, head_size) = (r.aborted, r.keepalive, r.head_size);
    // the client's body is not read from here
    r.body.discarded |= r.has_body() && !r.body.read;
    r.body.continued = true;
    r.completed = r.header_sent && !r.aborted;
    // the action's own location may have inherited the action
    while let Some(action) = r.core().post_action.clone()
        && r.uri_changes > 1
    {
        r.header_sent = false;
        r.aborted = false;
        // the action may tell others of the status
        let status = match r.err_status {
            0 => r.out.status,
            error => error,
        };
        // what the client was sent can still be asked for
        r.out.follow_up();
        r.out.status = status;
        r.err_status = 0;
        let to = match action.first() {
            Some(b'/') => RedirectTo::Uri(action.to_vec(), Vec::new()),
            _ => RedirectTo::Named(action.to_vec()),
        };
        let ended = {
            let work = pin!(finish(r, Some(PassEnd::Redirect(to))));
            panics::caught(work).await
        };
        if let Err(caught) = ended {
            report(r, &caught);
            break;
        }
    }
    // what the client was told still holds
    (r.aborted, r.keepalive, r.head_size) = (aborted, keepalive, head_size);
    r.down = down;
}

/// Answers a request whose head is broken: the status's page, and a line in the access log.
pub async fn refuse(r: &mut Request, status: u16) {
    r.keepalive = false;
    answer(r, Begin::With(PassEnd::Status(status))).await;
    log(r);
    r.forget_shared();
}

/// Serves a subrequest, whose URI and server are known.
pub(crate) async fn subrequest(r: &mut Request) {
    answer(r, Begin::Subrequest).await;
    if r.core().log_subrequest {
        log(r);
    }
}

/// Serves a subrequest that repeats its parent: in its location, from the content on.
pub(crate) async fn repetition(r: &mut Request) {
    answer(r, Begin::Content).await;
    if r.core().log_subrequest {
        log(r);
    }
}

/// Serves a subrequest that asks an origin anew for a stored response.
pub(super) async fn refresh(r: &mut Request, pass: &std::sync::Arc<Pass>) {
    answer(r, Begin::Refresh(pass)).await;
    if r.core().log_subrequest {
        log(r);
    }
}

/// Where the work for a request begins.
enum Begin<'a> {
    /// With the first phase.
    Start,
    /// With what has been decided already.
    With(PassEnd),
    /// With the server's rewrite phase.
    Subrequest,
    /// With the content of the location.
    Content,
    /// With this origin.
    Refresh(&'a std::sync::Arc<Pass>),
}

/// What a handler is called where it panics.
const HANDLER: &str = "handler";

/// Answers a request. A panic of a hook ends it with 500, or breaks it off where the head has been sent.
async fn answer(r: &mut Request, begin: Begin<'_>) {
    let ended = {
        let work = pin!(answered(r, begin));
        panics::caught(work).await
    };
    if let Err(caught) = ended {
        Box::pin(answer_panic(r, caught)).await;
    }
}

async fn answered(r: &mut Request, begin: Begin<'_>) {
    let first = match begin {
        Begin::Start => None,
        Begin::With(end) => Some(end),
        Begin::Subrequest => Some(Box::pin(pass(r, Entry::Server)).await),
        Begin::Content => {
            let site = r.site.clone();
            Some(match site.locations.get(r.location as usize) {
                Some(location) => Box::pin(content::produce(r, location)).await,
                None => PassEnd::Status(500),
            })
        }
        Begin::Refresh(pass) => Some(Box::pin(crate::exchange::run(r, pass)).await),
    };
    finish(r, first).await;
    if let Some((media_type, text)) = r.stub.take()
        && r.body_sent == 0
        && !r.aborted
    {
        output::stub(r, media_type, &text).await;
    }
    output::end(r).await;
}

/// Answers a request after a panic of a hook.
///
/// The error is answered as any 500, by `error_page` where there is one, but without the filter that panicked. If
/// something panics again, the built-in page is sent without filters.
async fn answer_panic(r: &mut Request, mut caught: Caught) {
    loop {
        report(r, &caught);
        r.keepalive = false;
        if r.header_sent || r.panicked == Panicked::Twice {
            r.aborted = true;
            r.down.abort();
            return;
        }
        if r.panicked == Panicked::None {
            r.panicked = Panicked::Once(caught.id());
        } else {
            r.panicked = Panicked::Twice;
            r.error_page = true;
        }
        let ended = {
            let work = pin!(answered(r, Begin::With(PassEnd::Status(500))));
            panics::caught(work).await
        };
        match ended {
            Ok(()) => return,
            Err(next) => caught = next,
        }
    }
}

/// Logs a panic with the request's context.
#[cold]
fn report(r: &Request, caught: &Caught) {
    r.error(Level::Alert, format_args!("{caught}"));
}

/// Calls the loggers of the request's location.
pub fn log(r: &mut Request) {
    if r.is_explain_only() {
        return;
    }
    let site = r.site.clone();
    if let Some(l) = site.locations.get(r.location as usize) {
        for logger in &l.hooks.log {
            if let Err(caught) = panics::catch(|| logger.call("logger", |l| l.log(r))) {
                report(r, &caught);
            }
        }
    }
}

/// Runs passes until one writes a response.
pub(crate) async fn finish(r: &mut Request, first: Option<PassEnd>) {
    let mut outcome = match first {
        Some(o) => o,
        None => pass(r, Entry::Start).await,
    };
    loop {
        outcome = match outcome {
            PassEnd::Done => return,
            PassEnd::Respond(body) => match Box::pin(respond(r, body)).await {
                Ok(()) => return,
                Err(status) => PassEnd::Status(status),
            },
            // a stub takes the place of an error's page
            PassEnd::Status(status)
                if r.stub.is_some() && !r.header_sent && !matches!(status, 408 | 444 | 499) =>
            {
                r.out.status = status;
                return;
            }
            PassEnd::Status(status) => match Box::pin(error_page::special(r, status)).await {
                Some(o) => o,
                None => return,
            },
            PassEnd::Redirect(to) => match redirect(r, to) {
                Ok(entry) => Box::pin(pass(r, entry)).await,
                Err(status) => PassEnd::Status(status),
            },
        };
    }
}

/// Sends a local response; what has come of a body that nobody wants is thrown away first.
async fn respond(r: &mut Request, body: Body) -> Result<(), u16> {
    if r.has_body()
        && !r.body.read
        && !r.body.failed
        && !std::mem::replace(&mut r.body.discarded, true)
    {
        let down = r.down.clone();
        let mut sink = bytes::BytesMut::new();
        let bad = std::future::poll_fn(|cx| {
            loop {
                sink.clear();
                match down.poll_body(cx, &mut sink, 16 * 1024) {
                    std::task::Poll::Ready(Ok(BodyRead::Data(_))) => {}
                    std::task::Poll::Ready(Ok(BodyRead::Bad(status))) => {
                        return std::task::Poll::Ready(Some(status));
                    }
                    _ => return std::task::Poll::Ready(None),
                }
            }
        });
        if let Some(status) = bad.await {
            r.body.failed = true;
            r.keepalive = false;
            return Err(status);
        }
    }
    output::send(r, body).await
}

/// Normalises the target and finds the server: what must be known before the first phase.
fn prepare(r: &mut Request) -> Result<(), u16> {
    let site = r.site.clone();
    let Some(listener) = site
        .listeners
        .get(r.conn().listener.load(std::sync::atomic::Ordering::Relaxed))
    else {
        return Err(500);
    };
    r.server = lookup::server(listener, r);
    let Some(server) = site.servers.get(r.server as usize) else {
        return Err(500);
    };
    r.location = server.default_location;
    if r.trace.is_some() {
        let step = super::selection::server(listener, r);
        r.explain(|| step);
    }
    if let Err(e) = super::target::apply(r, server.conf.merge_slashes) {
        return Err(bad_target(r, e));
    }
    if r.method == crate::http::method::Method::Connect
        && let Err(e) = r.head.check_connect(server.conf.allow_connect)
    {
        r.error(
            Level::Info,
            format_args!("{e} while reading client request headers"),
        );
        r.keepalive = false;
        return Err(e.status);
    }
    if listener.tls.is_some() {
        super::tls::check(r, listener)
    } else {
        Ok(())
    }
}

/// The target of the request is no URI: logs that; the status.
pub fn bad_target(r: &mut Request, why: impl std::fmt::Display) -> u16 {
    // the request ends with its first line, in the default server: there is no URI, and there are no headers
    r.uri.clear();
    r.head.uri = 0..0;
    r.head.headers.clear();
    r.head.host.clear();
    let site = r.site.clone();
    let listener = r.conn().listener.load(std::sync::atomic::Ordering::Relaxed);
    if let Some(listener) = site.listeners.get(listener) {
        r.server = listener.default_server;
        if let Some(server) = site.servers.get(r.server as usize) {
            r.location = server.default_location;
        }
    }
    let what = match r.head.http_major_minor.0 {
        0 | 1 if r.pipelined => "pipelined request line",
        0 | 1 => "request line",
        _ => "request headers",
    };
    let line = std::mem::take(&mut r.head.line);
    if r.head.http_major_minor.0 < 2 {
        r.head.line.clone_from(&line);
    }
    r.error(
        Level::Info,
        format_args!("{why} while reading client {what}"),
    );
    r.head.line = line;
    400
}

/// Prepares for another pass.
fn redirect(r: &mut Request, to: RedirectTo) -> Result<Entry, u16> {
    r.uri_changes = r.uri_changes.saturating_sub(1);
    if r.uri_changes == 0 {
        let (doing, target) = match &to {
            RedirectTo::Uri(uri, _) => ("internally redirecting to", uri),
            RedirectTo::Named(name) => ("redirect to named location", name),
        };
        let target = crate::http::text::shown(target);
        r.error(
            Level::Error,
            format_args!("rewrite or internal redirection cycle while {doing} \"{target}\""),
        );
        return Err(500);
    }
    r.explain(|| decisions::redirect(&to));
    r.internal = true;
    r.valid_location = true;
    r.upstream.forget_target();
    let site = r.site.clone();
    let Some(server) = site.servers.get(r.server as usize) else {
        return Err(500);
    };
    match to {
        RedirectTo::Uri(uri, args) => {
            r.set_uri(uri, args);
            // the server's own settings hold again until a location is found
            r.location = server.default_location;
            Ok(Entry::Server)
        }
        RedirectTo::Named(name) => match server.named.get(&*name) {
            Some(id) => {
                r.location = *id;
                r.uri_changed = false;
                r.add_uri_to_alias = false;
                Ok(Entry::Location)
            }
            None => {
                r.error(
                    Level::Error,
                    format_args!(
                        "could not find named location \"{}\"",
                        crate::http::text::shown(&name)
                    ),
                );
                Err(500)
            }
        },
    }
}

async fn pass(r: &mut Request, entry: Entry) -> PassEnd {
    let site = r.site.clone();
    let Some(server) = site.servers.get(r.server as usize) else {
        return PassEnd::Status(500);
    };
    if !matches!(entry, Entry::Location) {
        if matches!(entry, Entry::Start)
            && let Some(o) = phase(r, &server.hooks, Phase::PostRead).await
        {
            return o;
        }
        if let Some(o) = phase(r, &server.hooks, Phase::ServerRewrite).await {
            return o;
        }
        r.uri_changed = false;
        if let Some(o) = find_location(r) {
            return o;
        }
    } else if let Some(o) = enter_location(r) {
        return o;
    }
    loop {
        let Some(location) = site.locations.get(r.location as usize) else {
            return PassEnd::Status(500);
        };
        if location.hooks.level() != Level_SERVER_DEFAULT
            && let Some(o) = steps(r, location, Phase::Rewrite).await
        {
            return o;
        }
        if !r.uri_changed {
            break;
        }
        r.uri_changed = false;
        r.uri_changes = r.uri_changes.saturating_sub(1);
        if r.uri_changes == 0 {
            let uri = crate::http::text::shown(&r.uri);
            r.error(
                Level::Error,
                format_args!("rewrite or internal redirection cycle while processing \"{uri}\""),
            );
            return PassEnd::Status(500);
        }
        r.location = server.default_location;
        if let Some(o) = find_location(r) {
            return o;
        }
    }
    // an `if` may have put its own settings in place
    let Some(location) = site.locations.get(r.location as usize) else {
        return PassEnd::Status(500);
    };
    for p in [Phase::PreAccess, Phase::Access, Phase::PreContent] {
        if let Some(o) = steps(r, location, p).await {
            return o;
        }
    }
    content::produce(r, location).await
}

#[allow(non_upper_case_globals)]
const Level_SERVER_DEFAULT: crate::contract::Level = crate::contract::Level::ServerDefault;

/// Finds the location of the URI and checks what nginx checks on entering one.
fn find_location(r: &mut Request) -> Option<PassEnd> {
    if r.trace.is_some() {
        let step = super::selection::location(r);
        r.explain(|| step);
    }
    match lookup::location(r) {
        Found::At(id) => r.location = id,
        Found::Slash(id) => {
            // its settings are in force for the redirect, and what it refuses is refused here
            r.location = id;
            let refused = enter_location(r);
            if refused.is_some() {
                return refused;
            }
            r.explain(|| decisions::to_slash(r, id));
            let mut location = Vec::with_capacity(r.uri.len() + r.args.len() + 2);
            crate::http::escape::escape(crate::http::escape::Escape::Uri, &r.uri, &mut location);
            location.push(b'/');
            if !r.args.is_empty() {
                location.push(b'?');
                location.extend_from_slice(&r.args);
            }
            r.out.clear_entity();
            r.out.location = location;
            return Some(PassEnd::Status(301));
        }
    }
    enter_location(r)
}

fn enter_location(r: &mut Request) -> Option<PassEnd> {
    r.content_from = None;
    let site = r.site.clone();
    let location = site.locations.get(r.location as usize)?;
    if let Some((methods, other)) = location.limit_except
        && methods & r.method.bit() == 0
    {
        r.location = other;
        r.explain(|| decisions::limit_except(r, other));
    }
    if location.core.internal && !r.internal {
        r.explain(|| Step::new("location", "internal: not for clients").at(&location.place));
        return Some(PassEnd::Status(404));
    }
    keepalive(r, &location.core);
    let limit = location.core.client_max_body_size;
    if let Some(n) = r.head.content_length
        && limit > 0
        && n > limit
        && !r.body.discarded
    {
        r.error(
            Level::Error,
            format_args!("client intended to send too large body: {n} bytes"),
        );
        r.body.continued = true;
        // thrown away from here on: the error page's own location does not ask again
        r.body.discarded = true;
        return Some(PassEnd::Status(413));
    }
    None
}

/// Takes keepalive back where the location's limits say so.
fn keepalive(r: &mut Request, core: &CoreConf) {
    if !r.keepalive {
        return;
    }
    let conn = r.conn();
    let used_up = conn.requests.load(std::sync::atomic::Ordering::Relaxed)
        >= core.keepalive_requests
        || r.start.saturating_duration_since(conn.start).as_millis() as u64 > core.keepalive_time;
    let agent = r
        .head
        .headers
        .get_id(crate::http::headers::Known::UserAgent)
        .unwrap_or_default();
    let has = |s: &[u8]| memchr::memmem::find(agent, s).is_some();
    let disabled = match core.keepalive_disable {
        (false, false) => false,
        (msie6, safari) => {
            (msie6
                && r.method == crate::http::method::Method::Post
                && (has(b"MSIE 4.") || has(b"MSIE 5.") || has(b"MSIE 6.")))
                || (safari
                    && has(b"Mac OS X")
                    && has(b"Safari/")
                    && !has(b"Gecko/")
                    && !has(b"Chrome/"))
        }
    };
    if core.keepalive_timeout == 0 || used_up || disabled {
        r.keepalive = false;
    }
}

/// Runs a phase of a server.
async fn phase(r: &mut Request, hooks: &Hooks, phase: Phase) -> Option<PassEnd> {
    for (p, step) in &hooks.steps {
        if *p == phase
            && let Some(o) = one(r, step).await
        {
            return Some(o);
        }
    }
    None
}

/// Runs a phase of a location.
async fn steps(r: &mut Request, location: &Location, phase: Phase) -> Option<PassEnd> {
    let at = phase as usize;
    let (begin, end) = (location.ends[at] as usize, location.ends[at + 1] as usize);
    if begin == end {
        return None;
    }
    let list = location.hooks.steps.get(begin..end).unwrap_or_default();
    if phase == Phase::Access {
        return access(r, list, location.core.satisfy).await;
    }
    for (_, step) in list {
        let o = one(r, step).await;
        if o.is_some() {
            return o;
        }
        if phase == Phase::Rewrite && r.uri_changed {
            return None;
        }
    }
    None
}

/// `satisfy`: every access hook must agree, or one of them.
async fn access(
    r: &mut Request,
    list: &[(Phase, Attached<dyn Handler>)],
    satisfy: Satisfy,
) -> Option<PassEnd> {
    if r.subrequest {
        return None;
    }
    let mut refused = None;
    for (_, step) in list {
        let next = run(r, step).await;
        if r.trace.is_some() && decisions::module_of(step.name()) != "access" {
            r.explain(|| decisions::access(step.name(), &next));
        }
        match next {
            Next::Continue => {}
            Next::Allow if satisfy == Satisfy::Any => {
                let proxy = r.method == crate::http::method::Method::Connect;
                r.out.headers.remove(if proxy {
                    b"Proxy-Authenticate"
                } else {
                    b"WWW-Authenticate"
                });
                return None;
            }
            Next::Allow => {}
            Next::Status(s @ (401 | 403 | 407)) if satisfy == Satisfy::Any => {
                if !matches!(refused, Some(401 | 407)) {
                    refused = Some(s);
                }
            }
            Next::Status(s) => return Some(refuse_access(r, s).await),
            next => {
                if let Some(o) = outcome(r, next).await {
                    return Some(o);
                }
            }
        }
    }
    let status = refused?;
    if status == 403 {
        r.error(Level::Error, format_args!("access forbidden by rule"));
    }
    Some(refuse_access(r, status).await)
}

/// `auth_delay`: who has no access waits, so that passwords cannot be tried fast.
async fn refuse_access(r: &mut Request, status: u16) -> PassEnd {
    let delay = r.core().auth_delay;
    if delay > 0 && matches!(status, 401 | 407) {
        r.error(Level::Info, format_args!("delaying unauthorized request"));
        if let Err(status) = pause(r, Duration::from_millis(delay)).await {
            return PassEnd::Status(status);
        }
    }
    PassEnd::Status(status)
}

/// Waits; ends early with 499 where the client goes away.
async fn pause(r: &mut Request, delay: Duration) -> Result<(), u16> {
    let down = r.down.clone();
    let closed = std::future::poll_fn(move |cx| down.poll_closed(cx));
    if tokio::time::timeout(delay, closed).await.is_err() {
        return Ok(());
    }
    r.client_closed = true;
    r.error(
        Level::Info,
        format_args!("client prematurely closed connection"),
    );
    Err(499)
}

async fn one(r: &mut Request, step: &Attached<dyn Handler>) -> Option<PassEnd> {
    let next = run(r, step).await;
    if r.trace.is_some() {
        decisions::step(r, step.name(), &next);
    }
    outcome(r, next).await
}

/// Calls a handler, and waits where it asks for it.
pub(crate) async fn run(r: &mut Request, step: &Attached<dyn Handler>) -> Next<'static> {
    match step.call(HANDLER, |h| h.handle(r)) {
        Next::Wait(mut f) => {
            std::future::poll_fn(|cx| step.call(HANDLER, |_| f.as_mut().poll(cx))).await
        }
        Next::Continue => Next::Continue,
        Next::Allow => Next::Allow,
        Next::Done => Next::Done,
        Next::Status(s) => Next::Status(s),
        Next::Respond(b) => Next::Respond(b),
        Next::Redirect(t) => Next::Redirect(t),
        Next::Relocate => Next::Relocate,
        Next::Upstream(p) => Next::Upstream(p),
        Next::Sleep(d) => Next::Sleep(d),
    }
}

/// Turns a hook's answer into the end of the pass, or `None` to go on.
pub(crate) async fn outcome(r: &mut Request, next: Next<'static>) -> Option<PassEnd> {
    match next {
        Next::Continue | Next::Allow => None,
        Next::Relocate => {
            r.uri_changed = true;
            None
        }
        Next::Sleep(d) => pause(r, d).await.err().map(PassEnd::Status),
        Next::Done => Some(PassEnd::Done),
        Next::Status(s) => Some(PassEnd::Status(s)),
        Next::Respond(b) => Some(PassEnd::Respond(b)),
        Next::Redirect(t) => Some(PassEnd::Redirect(t)),
        Next::Upstream(p) => Some(Box::pin(crate::exchange::run(r, &p)).await),
        // a future never returns another one: `settle` has waited for it
        Next::Wait(f) => match Box::pin(f).await {
            Next::Status(s) => Some(PassEnd::Status(s)),
            Next::Respond(b) => Some(PassEnd::Respond(b)),
            Next::Redirect(t) => Some(PassEnd::Redirect(t)),
            Next::Done => Some(PassEnd::Done),
            _ => None,
        },
    }
}
