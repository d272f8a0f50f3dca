//! The engine as the contract sees it.

use super::phases;
use crate::contract::{Dispatch, Pass, Request, Serving};
use std::sync::Arc;

/// Serves the requests that a request makes of its own site.
pub(super) struct Engine;

impl Dispatch for Engine {
    fn subrequest<'r>(&self, r: &'r mut Request) -> Serving<'r> {
        Box::pin(phases::subrequest(r))
    }

    fn repeat<'r>(&self, r: &'r mut Request) -> Serving<'r> {
        Box::pin(phases::repetition(r))
    }

    fn refresh<'r>(&self, r: &'r mut Request, pass: &'r Arc<Pass>) -> Serving<'r> {
        Box::pin(phases::refresh(r, pass))
    }
}
