//! Who makes the response: the location's own handler, or the first of the general ones that wants to.

use super::phases::{outcome, settle};
use super::tale;
use crate::log::Level;
use crate::module::Outcome;
use crate::module::{Content, Location, Next, Request};

/// Produces the content of a request in its location.
pub async fn produce(r: &mut Request, location: &Location) -> Outcome {
    match &location.hooks.content {
        Some(Content::Upstream(pass)) => return crate::exchange::run(r, pass).await,
        Some(Content::Handler(h)) => {
            let next = settle(h.handle(r)).await;
            r.explain(|| tale::content(r, h.name(), &next));
            return outcome(r, next).await.unwrap_or(Outcome::Status(404));
        }
        None if r.lost_pass => return Outcome::Status(500),
        None => {}
    }
    for h in &location.hooks.contents {
        let next = settle(h.handle(r)).await;
        if !matches!(next, Next::Continue) {
            r.explain(|| tale::content(r, h.name(), &next));
        }
        if let Some(o) = outcome(r, next).await {
            return o;
        }
    }
    if r.uri.ends_with(b"/") {
        let path = crate::module::paths::map_path(r);
        r.error(
            Level::Error,
            format_args!(
                "directory index of \"{}\" is forbidden",
                String::from_utf8_lossy(&path)
            ),
        );
        return Outcome::Status(403);
    }
    r.error(Level::Error, format_args!("no handler found"));
    Outcome::Status(404)
}
