//! 103 Early Hints (RFC 8297) of an origin, passed on where `early_hints` says so.

use crate::contract::{Framing, Pass, Request, ResponseHead};
use crate::http::head::Version;
use crate::http::headers::Known;
use crate::log::Level;
use std::future::poll_fn;
use std::task::Poll;

/// Queues the hints that have just been read for the client; `so_far` is how long they and those before them were.
pub(super) fn pass_on(r: &mut Request, pass: &Pass, so_far: usize) {
    if so_far > pass.conf.buffer_size {
        r.error(
            Level::Info,
            format_args!(
                "upstream sent too big early hints while reading response header from upstream"
            ),
        );
        return;
    }
    if r.subrequest || r.header_sent || r.version() < Version::V11 {
        return;
    }
    let wanted = |list: &[crate::contract::Template]| {
        let mut values = list.iter().map(|t| t.eval(r));
        values.any(|v| !v.is_empty() && *v != *b"0")
    };
    if !r.core().early_hints.as_deref().is_some_and(wanted) {
        return;
    }
    let mut head = ResponseHead {
        status: 103,
        status_line: b"103 Early Hints".to_vec(),
        ..ResponseHead::default()
    };
    for (known, name, value) in r.upstream.head.headers.entries() {
        if !pass.conf.hide.contains(known, name) && !is_of_message(known) {
            head.headers.append(name, value);
        }
    }
    if !head.headers.is_empty() {
        r.down.head(&head, Framing::None);
    }
}

/// Sends what can be sent at once: hints are worth nothing if they come with the response.
pub(super) async fn send(r: &Request) {
    if r.down.queued() > 0 {
        poll_fn(|cx| {
            // an error shows when the response is sent
            let _ = r.down.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }
}

/// What says something of one message or connection.
fn is_of_message(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::TransferEncoding
            | Known::ContentLength
            | Known::Upgrade
    )
}
