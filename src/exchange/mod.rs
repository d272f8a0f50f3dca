//! The exchange with an origin: one engine for every protocol.

pub mod h1;

use crate::engine::phases::Outcome;
use crate::module::{Pass, Request};
use std::sync::Arc;

/// Talks to an origin and writes its response.
pub async fn run(r: &mut Request, pass: &Arc<Pass>) -> Outcome {
    let _ = (r, pass);
    Outcome::Status(502)
}
