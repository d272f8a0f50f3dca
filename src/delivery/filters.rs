//! A response's body on its way through the filters, and the subrequests whose responses come in between.

use super::output::{send_bytes, slice};
use crate::contract::subrequest::{self, Progress, Running};
use crate::contract::{Include, Keep, Request};
use crate::log::Level;
use crate::runtime::panics::{self, HookName};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;

/// Sends body bytes through all filters, with the subrequests of `add_before_body` and `add_after_body` around them.
///
/// # Errors
/// What the client's connection gives, or a filter.
pub async fn write(r: &mut Request, data: &[u8], last: bool) -> io::Result<()> {
    if let Some(uri) = r.output.around[0].take() {
        let subrequest_merge_at = subrequest_merge_at(r);
        include(
            r,
            subrequest_merge_at,
            Include {
                uri: uri.into_vec(),
                ..Include::default()
            },
        )
        .await?;
    }
    pass(r, 0, data, last).await?;
    if last && let Some(uri) = r.output.around[1].take() {
        let subrequest_merge_at = subrequest_merge_at(r);
        include(
            r,
            subrequest_merge_at,
            Include {
                uri: uri.into_vec(),
                ..Include::default()
            },
        )
        .await?;
        pass(r, subrequest_merge_at, b"", true).await?;
    }
    Ok(())
}

/// Where the responses of subrequests come in.
fn subrequest_merge_at(r: &Request) -> usize {
    r.output
        .subrequest_merge_at
        .unwrap_or(r.output.stages.len())
}

/// Passes data through the filters from `first` on and sends what they made of it.
async fn pass(r: &mut Request, first: usize, data: &[u8], last: bool) -> io::Result<()> {
    let mut out = std::mem::take(&mut r.output.buffers[0]);
    let mut asked = filtered(r, first, data, last, &mut out)?;
    loop {
        match asked.take() {
            Some((stage, list)) => included(r, stage, list, &out).await?,
            None => send_bytes(r, &out).await?,
        }
        // the last one first, as the others wait for what comes behind them
        let stages = &r.output.stages;
        let Some(stage) =
            (first..stages.len()).rfind(|i| stages.get(*i).is_some_and(|s| s.filter.pending()))
        else {
            break;
        };
        asked = filtered(r, stage, b"", false, &mut out)?;
    }
    r.output.buffers[0] = out;
    Ok(())
}

/// Passes data through the filters from `first` on; `out` is what they made of it.
///
/// Stops at a filter that asks for subrequests: `out` is then what this one made.
fn filtered(
    r: &mut Request,
    first: usize,
    data: &[u8],
    last: bool,
    out: &mut Vec<u8>,
) -> io::Result<Option<(usize, Vec<Include>)>> {
    let mut stages = std::mem::take(&mut r.output.stages);
    let mut next = std::mem::take(&mut r.output.buffers[1]);
    let subrequest_merge_at = r.output.subrequest_merge_at.unwrap_or(stages.len());
    out.clear();
    let mut result = Ok(());
    let mut asked = None;
    let mut last = last;
    if first >= stages.len() {
        out.extend_from_slice(data);
    }
    for (i, stage) in stages.iter_mut().enumerate().skip(first) {
        next.clear();
        // what comes after the body comes before its end
        stage.last |= last && (i < subrequest_merge_at || r.output.around[1].is_none());
        let input = if i == first { data } else { &out[..] };
        let module = stage.module;
        let pending = panics::named(
            || HookName {
                text: format!("body filter of module \"{module}\""),
                id: 0,
            },
            || {
                result = stage.filter.chunk(r, input, stage.last, &mut next);
                let pending = stage.filter.pending();
                if result.is_ok() && r.output.prompt && !stage.last && !pending {
                    result = stage.filter.flush(r, &mut next);
                }
                pending
            },
        );
        if result.is_err() {
            break;
        }
        last = stage.last && !pending;
        std::mem::swap(out, &mut next);
        let list = stage.filter.includes();
        if !list.is_empty() {
            asked = Some((i, list));
            break;
        }
    }
    r.output.stages = stages;
    result?;
    if asked.is_none()
        && let Some(cut) = &mut r.output.cut
    {
        next.clear();
        slice(cut, r.output.offset, out, &mut next);
        r.output.offset += out.len() as u64;
        std::mem::swap(out, &mut next);
    }
    r.output.buffers[1] = next;
    Ok(asked)
}

/// Sends what the filter `stage` made, with the responses of subrequests in their places.
///
/// They run at the same time and are read one after the other.
fn included<'a>(r: &'a mut Request, stage: usize, list: Vec<Include>, made: &'a [u8]) -> Later<'a> {
    Box::pin(async move {
        let mut at = 0;
        let mut begun = VecDeque::new();
        let mut list = list.into_iter();
        loop {
            begun.extend(
                list.by_ref()
                    .take(AT_ONCE - begun.len())
                    .map(|ask| Begun::new(r, ask)),
            );
            let Some(next) = begun.pop_front() else { break };
            let next = next?;
            let to = next.at.clamp(at, made.len());
            if to > at {
                pass(r, stage + 1, made.get(at..to).unwrap_or_default(), false).await?;
            }
            next.read(r, stage + 1).await?;
            at = to;
        }
        let last = r
            .output
            .stages
            .get(stage)
            .is_some_and(|s| s.last && !s.filter.pending());
        pass(r, stage + 1, made.get(at..).unwrap_or_default(), last).await
    })
}

/// Makes a subrequest and passes its response through the filters from `first` on.
fn include(r: &mut Request, first: usize, ask: Include) -> Later<'_> {
    Box::pin(async move { Begun::new(r, ask)?.read(r, first).await })
}

/// A future that may come to itself again.
type Later<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

/// How many subrequests of one body run at the same time.
const AT_ONCE: usize = 64;

/// No response that is kept may be longer, whatever is configured, while its location is not known yet.
const MOST_KEPT: usize = 64 << 20;

/// Less than this is not worth a packet (`postpone_output`).
const POSTPONE: usize = 1460;

/// A subrequest that is under way.
struct Begun {
    at: usize,
    keep: Option<Keep>,
    running: Running,
}

impl Begun {
    fn new(r: &Request, mut ask: Include) -> io::Result<Begun> {
        match subrequest::start(r, &mut ask) {
            Ok(running) => Ok(Begun {
                at: ask.at,
                keep: ask.keep,
                running,
            }),
            Err(_) => Err(io::Error::other("no subrequest")),
        }
    }

    /// Passes the response through the filters from `first` on, or gives it to who asked.
    async fn read(mut self, r: &mut Request, first: usize) -> io::Result<()> {
        let mut kept = Vec::new();
        let mut result = Ok(());
        let child = loop {
            let down = r.down.clone();
            let next = poll_fn(|cx| {
                let next = self.running.poll_next(cx);
                // what comes before a slow part need not wait for it
                if next.is_pending() && down.queued() >= POSTPONE {
                    let _ = down.poll_flush(cx);
                }
                next
            });
            let (data, progress) = next.await;
            if self.keep.is_some() {
                if kept.len() <= MOST_KEPT {
                    kept.extend_from_slice(&data);
                }
            } else if result.is_ok() && !data.is_empty() {
                result = pass(r, first, &data, false).await;
                if result.is_err() {
                    self.running.give_up();
                }
            }
            if let Progress::Ended(child) = progress {
                break child;
            }
        };
        let given_up = || io::Error::other("the subrequest was given up");
        let child = child.ok_or_else(given_up)?;
        r.take_shared(&child);
        result?;
        if child.aborted && !child.header_sent {
            return Err(given_up());
        }
        if let Some(keep) = self.keep {
            if kept.len() as u64 > child.core().subrequest_output_buffer_size {
                child.error(
                    Level::Error,
                    format_args!("too big subrequest response: {}", kept.len()),
                );
                return Err(io::Error::other("too big subrequest response"));
            }
            keep(r, child.out.status, kept);
        }
        Ok(())
    }
}
