//! Who makes the response: the location's own handler, or the first of the general ones that wants to.

use super::decisions;
use super::phases::{outcome, run};
use crate::contract::{Content, LocId, Location, Next, PassEnd, Request, Site};
use crate::log::Level;

/// Produces the content of a request in its location.
pub async fn produce(r: &mut Request, location: &Location) -> PassEnd {
    let site;
    let content = match r.content_from.filter(|from| *from != r.location) {
        None => location.hooks.content.as_ref(),
        Some(from) => {
            site = r.site.clone();
            match carried(&site, from, location) {
                Some(content) => Some(content),
                None => {
                    r.error(Level::Alert, format_args!("no upstream configuration"));
                    return PassEnd::Status(500);
                }
            }
        }
    };
    match content {
        Some(Content::Upstream(pass)) => return crate::exchange::run(r, pass).await,
        Some(Content::Handler(h)) => {
            let next = run(r, h).await;
            r.explain(|| decisions::content(r, h.name(), &next));
            // one that declines leaves the request to the general ones (`mp4` for a folder)
            if let Some(o) = outcome(r, next).await {
                return o;
            }
        }
        None => {}
    }
    for h in &location.hooks.contents {
        let next = run(r, h).await;
        if !matches!(next, Next::Continue) {
            r.explain(|| decisions::content(r, h.name(), &next));
        }
        if let Some(o) = outcome(r, next).await {
            return o;
        }
    }
    if r.uri.ends_with(b"/") {
        let path = crate::contract::paths::map_path(r);
        r.error(
            Level::Error,
            format_args!(
                "directory index of \"{}\" is forbidden",
                crate::http::text::shown(&path)
            ),
        );
        return PassEnd::Status(403);
    }
    r.error(Level::Error, format_args!("no handler found"));
    PassEnd::Status(404)
}

/// The content handler of an earlier `if`, with the settings of a later one that has none of its own. `None` where the
/// handler needs an origin and the later one has none for it.
fn carried<'a>(site: &'a Site, from: LocId, location: &'a Location) -> Option<&'a Content> {
    let earlier = site.locations.get(from as usize)?;
    match &earlier.hooks.content {
        Some(Content::Upstream(_)) => {
            let mut offered = location.hooks.offered.iter();
            offered
                .find(|(m, _)| Some(*m) == earlier.claims)
                .map(|(_, content)| content)
        }
        content => content.as_ref(),
    }
}
