//! What is done with the body of a response on its way to the client.

use super::BodyFilter;
use crate::http::range::Multipart;

/// How a response's body passes on its way out.
#[derive(Default)]
pub struct Output {
    /// Filters that this response collected, in order.
    pub(crate) stages: Vec<Stage>,
    /// The first filter that takes the responses of subrequests, too.
    pub(crate) subrequest_merge_at: Option<usize>,
    /// URIs of subrequests that come before and after the body (`add_before_body`, `add_after_body`).
    pub(crate) around: [Option<Box<[u8]>>; 2],
    /// What passes from one filter to the next; kept for its memory.
    pub(crate) buffers: [Vec<u8>; 2],
    /// Whether what is written is to reach the client at once: an origin's response that is not buffered.
    pub prompt: bool,
    /// Bytes that the response had before and after it was compressed: `$gzip_ratio`.
    pub deflated: (u64, u64),
    /// Ranges that are cut out.
    pub(crate) cut: Option<Cut>,
    /// Where the body stands before the ranges are cut.
    pub(crate) offset: u64,
    pub(crate) ended: bool,
}

impl Output {
    /// Forgets the last response.
    pub fn clear(&mut self) {
        self.stages.clear();
        self.subrequest_merge_at = None;
        self.around = [None, None];
        for b in self
            .buffers
            .iter_mut()
            .filter(|b| b.capacity() > 128 * 1024)
        {
            *b = Vec::new();
        }
        self.prompt = false;
        self.deflated = (0, 0);
        self.cut = None;
        self.offset = 0;
        self.ended = false;
    }

    /// Whether body bytes may go to the client as they are.
    pub fn is_plain(&self) -> bool {
        self.stages.is_empty() && self.cut.is_none() && matches!(self.around, [None, None])
    }

    /// The one range that is cut out: the first byte and the one behind the last.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self.cut {
            Some(Cut::Single(a, b)) => Some((a, b)),
            _ => None,
        }
    }

    /// The same where nothing else is done with the body: what lies before the range need not be written.
    pub fn only_range(&self) -> Option<(u64, u64)> {
        self.range()
            .filter(|_| self.stages.is_empty() && matches!(self.around, [None, None]))
    }

    /// Says where in the whole body the bytes stand that come next.
    pub fn set_offset(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Makes subrequests before and after the body.
    pub fn surround(&mut self, before: Option<Box<[u8]>>, after: Option<Box<[u8]>>) {
        self.around = [before, after];
    }
}

/// Ranges of a response.
pub(crate) enum Cut {
    Single(u64, u64),
    Multi {
        parts: Vec<(u64, u64)>,
        heads: Multipart,
        next: usize,
        inside: bool,
    },
}

/// A filter of a response's body.
pub struct Stage {
    /// The filter.
    pub filter: Box<dyn BodyFilter>,
    /// The module that it comes from.
    pub module: &'static str,
    /// Whether it has been told the end of the body.
    pub last: bool,
}
