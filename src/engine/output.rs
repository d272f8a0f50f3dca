//! The response on its way out.

use crate::module::{Body, Request};

/// Sends `r.out` with a body.
pub async fn send(r: &mut Request, body: Body) -> Result<(), u16> {
    let _ = (r, body);
    Ok(())
}

/// Ends the response.
pub async fn end(r: &mut Request) {
    let _ = r;
}
