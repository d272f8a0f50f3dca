//! The exchange with an origin: one engine for every protocol. Picks peers, sends the request, reads the head,
//! passes the body on, and tries the next peer where nginx would.

mod attempt;
mod body;
pub(crate) mod cache;
pub mod cgi;
mod codec;
mod explain_only;
pub mod fastcgi;
mod framing;
pub mod h2;
mod head;
mod hints;
pub mod memcached;
pub mod probe;
mod probe_grpc;
mod request_body;
mod target;
mod tunnel;

use crate::contract::PassEnd;
use crate::contract::{BodyLength, Destination, Pass, Request, Step, UpstreamState, next};
use crate::log::Level;
use crate::upstream::queue::Queue;
use crate::upstream::{AttemptVerdict, Group, PickState, Picked};
use attempt::{Attempt, Failure};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Talks to an origin and writes its response.
pub async fn run(r: &mut Request, pass: &Arc<Pass>) -> PassEnd {
    let conf = &pass.conf;
    if !pass.protocol.takes(r) {
        return PassEnd::Status(405);
    }
    let own_body = pass.protocol.body(r);
    let wanted = r.has_body() && conf.pass_request_body && own_body.is_none();
    let unbuffered = wanted
        && !conf.request_buffering
        && !r.body.read
        && (r.head.content_length.is_some() || pass.protocol.chunked());
    let streaming = match unbuffered {
        // what has come at once is as good as buffered
        true => match Box::pin(request_body::preread(r)).await {
            Ok(whole) => !whole,
            Err(status) => return PassEnd::Status(status),
        },
        false if !r.has_body() => {
            r.send_continue();
            false
        }
        false => match Box::pin(r.read_body()).await {
            Ok(()) => false,
            Err(status) => return PassEnd::Status(status),
        },
    };
    r.body.streaming = streaming;
    let length = match (&own_body, wanted) {
        (Some(b), _) => BodyLength::Known(b.len() as u64),
        (None, false) if r.head.content_length == Some(0) => BodyLength::Known(0),
        (None, false) => BodyLength::None,
        (None, true) if streaming => r
            .head
            .content_length
            .map_or(BodyLength::Chunked, BodyLength::Known),
        (None, true) => BodyLength::Known(r.body.spool.len()),
    };
    r.upstream.forget_answer();
    r.upstream.forget_cache();
    if let Some(settings) = &pass.conf.cache
        && let Some(outcome) = cache::open(r, pass, settings).await
    {
        return outcome;
    }
    let found = match target::fixed(pass) {
        Some(t) => Ok(t),
        None => Box::pin(target::find(r, pass)).await,
    };
    let target = match found {
        Ok(t) => t,
        Err(status) => return PassEnd::Status(status),
    };
    let mut bytes = r.scratch();
    r.upstream.uri.clear();
    r.upstream.scheme = if target.tls {
        pass.protocol.secure_scheme()
    } else {
        pass.protocol.scheme()
    };
    let to = Destination {
        host: &target.host,
        port: &target.port,
        uri: target.uri.as_deref(),
        tls: target.tls,
    };
    if let Err(status) = pass.protocol.request(r, &to, length, &mut bytes) {
        r.put_scratch(bytes);
        return PassEnd::Status(status);
    }
    if r.is_explain_only() {
        let outcome = explain_only::answer(r, pass, &target, &bytes, length);
        r.put_scratch(bytes);
        return outcome;
    }
    let outcome = tries(r, pass, &target, &bytes, own_body, length, streaming).await;
    cache::close(r, &outcome);
    r.put_scratch(bytes);
    outcome
}

/// Asks one peer after the other.
async fn tries(
    r: &mut Request,
    pass: &Arc<Pass>,
    target: &target::Found,
    bytes: &[u8],
    own_body: Option<Vec<u8>>,
    length: BodyLength,
    streaming: bool,
) -> PassEnd {
    let conf = &pass.conf;
    let group = &*target.group;
    let selector = group.selector.as_deref();
    let begun = (conf.next_upstream_timeout > 0).then(Instant::now);
    let mut pick = group.start();
    if let Some(selector) = selector {
        selector.begin(r, &mut pick);
    }
    pick.limit_tries(conf.next_upstream_tries);
    if let Some(budget) = &group.extras.budget {
        budget.deposit();
    }
    let mut new_group = !r.upstream.states.is_empty();
    let mut first = true;
    loop {
        r.upstream.has_head = false;
        r.upstream.head.clear();
        r.upstream.failing = "";
        let mut queued = None;
        let picked = match &group.extras.queue {
            // those that wait already come first
            Some(queue) if first && queue.is_used() => None,
            _ => group.pick(&mut pick),
        };
        let picked = match (picked, &group.extras.queue) {
            (None, Some(queue)) if first => {
                let since = Instant::now();
                let waited = Box::pin(wait(r, group, queue, &mut pick)).await;
                queued = Some(since.elapsed().as_millis() as u64);
                match waited {
                    Ok(picked) => picked,
                    Err(outcome) => return outcome,
                }
            }
            (picked, _) => picked,
        };
        first = false;
        let Some(mut picked) = picked else {
            let full = group.members().peers().any(|p| p.is_full());
            r.upstream.states.push(UpstreamState {
                addr: group.name.clone(),
                status: 502,
                response_time: Some(queued.unwrap_or(0)),
                queue_time: queued,
                new_group,
                ..UpstreamState::default()
            });
            r.upstream.fails(if full { "max_conns" } else { "no_live" });
            r.error(
                Level::Error,
                format_args!("no live upstreams while connecting to upstream"),
            );
            let to = target.destination();
            if let Some(outcome) = cache::stale(r, pass, &to, next::ERROR, true).await {
                return outcome;
            }
            return PassEnd::Status(502);
        };
        let peer = picked.peer();
        r.explain(|| Step::new("upstream", format!("{} of \"{}\"", peer.name, group.name)));
        r.upstream.states.push(UpstreamState {
            addr: peer.name.clone(),
            server: peer.server.clone(),
            queue_time: queued,
            new_group,
            ..UpstreamState::default()
        });
        new_group = false;
        if let Some(selector) = selector {
            selector.picked(r, peer);
        }
        let mut attempt = Attempt::new(pass, target, &picked, length, streaming);
        (attempt.tries, attempt.begun) = (pick.tries, begun);
        let mut result = attempt.run(r, bytes, own_body.as_deref()).await;
        if let Err(f) = &result
            && f.kind == next::ERROR
            && !f.client_gone
            && !r.header_sent
            && attempt.may_renew(r)
        {
            // the origin closed a kept connection meanwhile, which says nothing about the origin
            forget_try(r);
            attempt = Attempt::new(pass, target, &picked, length, streaming);
            (attempt.tries, attempt.begun, attempt.fresh) = (pick.tries, begun, true);
            result = attempt.run(r, bytes, own_body.as_deref()).await;
        }
        let (elapsed, head) = (attempt.start.elapsed(), attempt.head_after);
        picked.measured(head, elapsed);
        if let Some(s) = r.upstream.states.last_mut() {
            s.response_time = Some(elapsed.as_millis() as u64);
        }
        picked.account(r.upstream.states.last());
        let failure = match result {
            Ok(outcome) => {
                if let Some(selector) = selector {
                    selector.done(r, picked.peer());
                }
                // a body that broke is the origin's failure too
                let broke = !r.upstream.failing.is_empty();
                picked.answered(if broke { 502 } else { r.upstream.head.status });
                picked.done(AttemptVerdict::Ok, &mut pick);
                return outcome;
            }
            Err(f) => f,
        };
        let Failure {
            mut kind,
            status,
            sent,
            cached,
            ..
        } = failure;
        if failure.client_gone {
            picked.done(AttemptVerdict::Ok, &mut pick);
            return PassEnd::Status(499);
        }
        if let Some(s) = r.upstream.states.last_mut() {
            s.status = status;
        }
        let verdict = if kind & next::OFF != 0 {
            AttemptVerdict::Ok
        } else if kind & (next::HTTP_403 | next::HTTP_404) != 0 {
            AttemptVerdict::Next
        } else {
            AttemptVerdict::Failed
        };
        if picked.done(verdict, &mut pick) {
            let connected = r
                .upstream
                .states
                .last()
                .is_some_and(|s| s.connect_time.is_some());
            let doing = if connected {
                "reading response header from"
            } else {
                "connecting to"
            };
            r.error(
                Level::Warn,
                format_args!("upstream server temporarily disabled while {doing} upstream"),
            );
        }
        if cached && kind == next::ERROR {
            // a kept connection that was closed meanwhile costs no try
            pick.tries = pick.tries.saturating_add(1);
        }
        if sent && !attempt::is_idempotent(r) {
            kind |= next::NON_IDEMPOTENT;
        }
        let late =
            begun.is_some_and(|b| b.elapsed() >= Duration::from_millis(conf.next_upstream_timeout));
        if pick.tries == 0
            || kind & next::OFF != 0
            || conf.next_upstream & kind != kind
            || (sent && streaming)
            || late
            || r.header_sent
            || !(failure.paid || may_retry(group))
        {
            let to = target.destination();
            if !r.header_sent
                && failure.outcome.is_none()
                && let Some(outcome) = cache::stale(r, pass, &to, kind, true).await
            {
                return outcome;
            }
            return failure.outcome.unwrap_or(PassEnd::Status(status));
        }
    }
}

/// Whether the group's budget allows for one retry more; it is charged.
fn may_retry(group: &Group) -> bool {
    let now = || crate::upstream::Clock::system().now();
    group.extras.budget.as_ref().is_none_or(|b| b.draw(now()))
}

/// Waits in the group's queue for a peer.
async fn wait<'g>(
    r: &mut Request,
    group: &'g Group,
    queue: &Queue,
    pick: &mut PickState,
) -> Result<Option<Picked<'g>>, PassEnd> {
    let begin = pick.clone();
    let down = r.down.clone();
    let try_pick = || {
        // each look begins anew: what is full now may be free then
        let mut state = begin.clone();
        let picked = group.pick(&mut state)?;
        *pick = state;
        Some(picked)
    };
    tokio::select! {
        biased;
        picked = queue.wait(try_pick) => Ok(picked),
        () = poll_fn(|cx| down.poll_closed(cx)) => {
            r.error(
                Level::Info,
                format_args!("client prematurely closed connection while waiting for an upstream server"),
            );
            Err(PassEnd::Status(499))
        }
    }
}

/// A try that is made again on a new connection leaves no trace.
fn forget_try(r: &mut Request) {
    r.upstream.has_head = false;
    r.upstream.head.clear();
    (r.upstream.failing, r.upstream.failure) = ("", "");
    if let Some(s) = r.upstream.states.last_mut() {
        *s = UpstreamState {
            addr: s.addr.clone(),
            server: s.server.clone(),
            queue_time: s.queue_time,
            new_group: s.new_group,
            ..UpstreamState::default()
        };
    }
}
