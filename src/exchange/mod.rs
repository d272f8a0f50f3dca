//! The exchange with an origin: one engine for every protocol. Picks peers, sends the request, reads the head,
//! passes the body on, and tries the next peer where nginx would.

mod attempt;
mod body;
pub mod cgi;
mod codec;
mod dry;
pub mod fastcgi;
pub mod h1;
mod head;
pub mod memcached;
mod request_body;
mod target;
mod tunnel;

use crate::engine::phases::Outcome;
use crate::log::Level;
use crate::module::{BodyLength, Codec, Destination, Pass, Request, Step, UpstreamState, next};
use crate::upstream::Outcome as PeerOutcome;
use attempt::{Attempt, Failure};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Talks to an origin and writes its response.
pub async fn run(r: &mut Request, pass: &Arc<Pass>) -> Outcome {
    let conf = &pass.conf;
    if matches!(pass.protocol.codec(), Codec::Memcached { .. }) && !codec::can_get(r) {
        return Outcome::Status(405);
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
            Err(status) => return Outcome::Status(status),
        },
        false if !r.has_body() => {
            r.send_continue();
            false
        }
        false => match Box::pin(r.read_body()).await {
            Ok(()) => false,
            Err(status) => return Outcome::Status(status),
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
    let found = match target::fixed(pass) {
        Some(t) => Ok(t),
        None => Box::pin(target::find(r, pass)).await,
    };
    let target = match found {
        Ok(t) => t,
        Err(status) => return Outcome::Status(status),
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
        return Outcome::Status(status);
    }
    if r.is_dry() {
        let outcome = dry::answer(r, pass, &target, &bytes, length);
        r.put_scratch(bytes);
        return outcome;
    }
    let outcome = tries(r, pass, &target, &bytes, own_body, length, streaming).await;
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
) -> Outcome {
    let conf = &pass.conf;
    let group = &*target.group;
    let begun = (conf.next_upstream_timeout > 0).then(Instant::now);
    let mut pick = group.start();
    pick.limit_tries(conf.next_upstream_tries);
    let mut new_group = !r.upstream.states.is_empty();
    loop {
        r.upstream.has_head = false;
        let Some(picked) = group.pick(&mut pick) else {
            r.upstream.states.push(UpstreamState {
                addr: group.name.clone(),
                status: 502,
                new_group,
                ..UpstreamState::default()
            });
            r.error(
                Level::Error,
                format_args!("no live upstreams while connecting to upstream"),
            );
            return Outcome::Status(502);
        };
        let peer = picked.peer();
        r.explain(|| Step::new("upstream", format!("{} of \"{}\"", peer.name, group.name)));
        r.upstream.states.push(UpstreamState {
            addr: peer.name.clone(),
            new_group,
            ..UpstreamState::default()
        });
        new_group = false;
        let mut attempt = Attempt::new(pass, target, group, peer, length, streaming);
        let result = attempt.run(r, bytes, own_body.as_deref()).await;
        if let Some(s) = r.upstream.states.last_mut() {
            s.response_time = Some(attempt.elapsed());
        }
        let failure = match result {
            Ok(outcome) => {
                picked.done(PeerOutcome::Ok, &mut pick);
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
            picked.done(PeerOutcome::Ok, &mut pick);
            return Outcome::Status(499);
        }
        if let Some(s) = r.upstream.states.last_mut() {
            s.status = status;
        }
        let verdict = if kind & next::OFF != 0 {
            PeerOutcome::Ok
        } else if kind & (next::HTTP_403 | next::HTTP_404) != 0 {
            PeerOutcome::Next
        } else {
            PeerOutcome::Failed
        };
        let single = pick.tries;
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
            // a kept connection that was closed meanwhile says nothing about the peer
            pick.tries = pick
                .tries
                .max(single.min(1))
                .saturating_add(u32::from(pick.tries != 0));
            pick.tries = pick.tries.max(1);
        }
        use crate::http::method::Method;
        if sent && matches!(r.method, Method::Post | Method::Lock | Method::Patch) {
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
        {
            return failure.outcome.unwrap_or(Outcome::Status(status));
        }
    }
}
