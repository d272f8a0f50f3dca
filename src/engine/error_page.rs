//! Special responses.

use super::phases::Outcome;
use crate::module::Request;

/// Turns a status into a response.
pub async fn special(r: &mut Request, status: u16) -> Option<Outcome> {
    let _ = (r, status);
    None
}
