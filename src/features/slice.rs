//! `slice`: a response fetched, and cached, in pieces of one size.
//!
//! A location asks its origin for `Range: $slice_range`. The first answer becomes the response; when it has passed, the
//! request is repeated for the next piece until the client has what it asked for.

use crate::config::Result;
use crate::contract::*;
use crate::http::headers::Known;
use crate::inherit;
use crate::log::Level as LogLevel;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// nginx's ngx_http_slice_filter_module.
pub struct Slice;

/// What a block says.
#[derive(Clone, Default)]
pub struct SliceConf {
    /// The size, bytes, and where a request keeps what it knows.
    size: Option<(u64, Slot<State>)>,
}

impl Conf for SliceConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; size);
    }
}

/// Which piece a request asks for.
pub struct State {
    size: u64,
    /// Where the piece begins.
    start: u64,
    /// Whether `$slice_range` has been asked for: nothing is sliced otherwise.
    used: AtomicBool,
    /// What the pieces before were of: entity tag and whole length. None of the first one.
    first: Option<(Vec<u8>, u64)>,
}

impl Module for Slice {
    const NAME: &'static str = "http_slice_filter";
    type Conf = SliceConf;
    const DIRECTIVES: &'static [Directive<SliceConf>] = &[Directive::new(
        "slice",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`slice size;` Fetches responses in pieces of this size, which `$slice_range` names; 0 does not. Default: 0.",
        |c, s, b| {
            let size = s.size(0)?;
            let slot = b.slot();
            once(&mut c.size, s, (size, slot))
        },
    )];
    const VARIABLES: &'static [Variable] = &[Variable::new("slice_range", |r, _| {
        let state = r
            .kept::<SliceConf>()
            .and_then(|c| c.size)
            .and_then(|(_, slot)| r.slot(slot));
        let Some(state) = state else {
            return Val::None;
        };
        state.used.store(true, Ordering::Relaxed);
        let mut text = Vec::with_capacity(48);
        let _ = write!(
            text,
            "bytes={}-{}",
            state.start,
            state.start.saturating_add(state.size) - 1
        );
        Val::Owned(text)
    })];

    fn attach(conf: &Arc<SliceConf>, on: &mut Hooks) -> Result<()> {
        if let Some((size, slot)) = conf.size.filter(|(size, _)| *size > 0) {
            on.keep(conf.clone());
            on.on(Phase::PreContent, Begin { size, slot });
            on.before_response(Check { slot });
            on.response(Pieces { slot });
        }
        Ok(())
    }
}

/// Finds the first piece.
struct Begin {
    size: u64,
    slot: Slot<State>,
}

impl Handler for Begin {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        // a subrequest of another kind is not sliced
        if !r.subrequest {
            let start = first_byte(r) / self.size * self.size;
            let state = State {
                size: self.size,
                start,
                used: AtomicBool::new(false),
                first: None,
            };
            r.set_slot(self.slot, state);
        }
        Next::Continue
    }
}

/// The first byte that the client asks for; 0 where it may need more than one range.
fn first_byte(r: &Request) -> u64 {
    let h = r.headers();
    let range = h.get_id(Known::Range).unwrap_or_default();
    let list = match range.split_at_checked(6) {
        Some((unit, list)) if unit.eq_ignore_ascii_case(b"bytes=") => list,
        _ => return 0,
    };
    if h.contains_id(Known::IfRange) || list.contains(&b',') {
        return 0;
    }
    let list = list.trim_ascii_start();
    let digits = list.iter().take_while(|b| b.is_ascii_digit()).count();
    crate::config::value::parse_number(list.get(..digits).unwrap_or_default()).unwrap_or(0)
}

/// Turns the answer for a piece into the response, and checks that later ones fit.
struct Check {
    slot: Slot<State>,
}

impl EarlyFilter for Check {
    fn head(&self, r: &mut Request) -> std::result::Result<(), u16> {
        let Some(state) = r.slot(self.slot) else {
            return Ok(());
        };
        if !state.used.load(Ordering::Relaxed) {
            return Ok(());
        }
        let fail = |r: &Request, message: std::fmt::Arguments<'_>| {
            r.error(LogLevel::Error, message);
            Err(444)
        };
        if r.out.status != 206 {
            if !r.subrequest {
                // the response as a whole, or an error
                state.used.store(false, Ordering::Relaxed);
                return Ok(());
            }
            let status = r.out.status;
            return fail(
                r,
                format_args!("unexpected status code {status} in slice response"),
            );
        }
        let etag = r.out.headers.get_id(Known::ETag).unwrap_or_default();
        if let Some((before, _)) = &state.first
            && !before.is_empty()
            && before != etag
        {
            return fail(r, format_args!("etag mismatch in slice response"));
        }
        let text = r.out.headers.get_id(Known::ContentRange);
        let Some((start, end, whole)) = text.and_then(content_range) else {
            return fail(r, format_args!("invalid range in slice response"));
        };
        let Some(whole) = whole else {
            return fail(r, format_args!("no complete length in slice response"));
        };
        let expected = state.start.saturating_add(state.size).min(whole);
        if start != state.start || end != expected {
            let at = state.start;
            return fail(
                r,
                format_args!(
                    "unexpected range in slice response: {start}-{end}, expected: {at}-{expected}"
                ),
            );
        }
        let etag = etag.to_vec();
        let first = state.first.is_none();
        if let Some(state) = r.slot_mut(self.slot) {
            state.start = end;
            state.first = Some((etag, whole));
        }
        r.out.status = 200;
        r.out.status_line.clear();
        r.out.headers.remove_id(Known::ContentRange);
        r.out.headers.remove_id(Known::AcceptRanges);
        if first && !r.subrequest {
            r.out.content_length = Some(whole);
            r.out.allow_ranges = true;
            r.out.single_range = true;
            r.output.set_offset(start);
        }
        Ok(())
    }
}

/// `bytes 0-1/2`: the first byte, the one behind the last, and the whole length, unless that is `*`.
fn content_range(text: &[u8]) -> Option<(u64, u64, Option<u64>)> {
    let text = std::str::from_utf8(text).ok()?;
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let number = |t: &str| crate::config::value::parse_number(t.trim_matches(' ').as_bytes());
    let whole = match whole.trim_matches(' ') {
        "*" => None,
        n => Some(number(n)?),
    };
    Some((number(start)?, number(end)?.checked_add(1)?, whole))
}

/// Asks for the next pieces when the first one has passed.
struct Pieces {
    slot: Slot<State>,
}

impl HeadFilter for Pieces {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        let state = r.slot(self.slot)?;
        let (_, whole) = state.first.as_ref()?;
        if r.subrequest || !state.used.load(Ordering::Relaxed) {
            return None;
        }
        Some(Box::new(Follow {
            slot: self.slot,
            size: state.size,
            next: state.start,
            end: *whole,
            step: Step::First,
            ask: false,
        }))
    }
}

struct Follow {
    slot: Slot<State>,
    size: u64,
    /// Where the next piece begins.
    next: u64,
    /// Where the last one may end.
    end: u64,
    step: Step,
    ask: bool,
}

#[derive(PartialEq)]
enum Step {
    /// The first piece is passing.
    First,
    /// It has passed.
    Passed,
    /// Others follow.
    Following,
    Over,
}

impl BodyFilter for Follow {
    fn chunk(
        &mut self,
        r: &mut Request,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        out.extend_from_slice(data);
        match self.step {
            Step::First if last => self.step = Step::Passed,
            Step::Passed | Step::Following => {
                if self.step == Step::Passed {
                    self.step = Step::Following;
                    if let Some((begin, end)) = r.output.range() {
                        self.end = end;
                        if self.next.saturating_add(self.size) <= begin {
                            self.next = begin / self.size * self.size;
                        }
                    }
                }
                self.ask = self.next < self.end;
                if self.ask {
                    r.output.set_offset(self.next);
                } else {
                    self.step = Step::Over;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        matches!(self.step, Step::Passed | Step::Following)
    }

    fn includes(&mut self) -> Vec<Include> {
        if !std::mem::take(&mut self.ask) {
            return Vec::new();
        }
        let (slot, size, start) = (self.slot, self.size, self.next);
        self.next = self.next.saturating_add(size);
        vec![Include {
            repeat: Some(Box::new(move |parent, child| {
                let first = parent.slot(slot).and_then(|s| s.first.clone());
                let state = State {
                    size,
                    start,
                    used: AtomicBool::new(true),
                    first,
                };
                child.set_slot(slot, state);
            })),
            ..Include::default()
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range(b"bytes 0-1/16"), Some((0, 2, Some(16))));
        assert_eq!(content_range(b"bytes  0 - 1 / * "), Some((0, 2, None)));
        for bad in [
            "bytes",
            "bytes 0-1",
            "bytes 0-/2",
            "bytes */2",
            "octets 0-1/2",
            "bytes 0-1/2x",
        ] {
            assert_eq!(content_range(bad.as_bytes()), None, "{bad}");
        }
    }
}
