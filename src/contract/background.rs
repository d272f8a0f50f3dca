//! Services that a configuration needs done all the time.

use super::SiteRef;
use pingora_core::services::background::BackgroundService;

/// Something that a configuration needs done all the time (health checks, names that resolve anew), as Pingora's
/// service in the background.
pub type Background = dyn BackgroundService + Send + Sync;

tokio::task_local! {
    static SITE: SiteRef;
}

/// The site that a service runs for; `None` outside of a service's own task.
pub fn background_site() -> Option<SiteRef> {
    SITE.try_with(SiteRef::clone).ok()
}

/// Runs the task of a service of `site`.
pub(crate) fn in_site<F: Future>(site: SiteRef, work: F) -> impl Future<Output = F::Output> {
    SITE.scope(site, work)
}
