//! The services of the site in force: health checks, names that resolve anew. The first thread runs them.

use super::thread::Thread;
use crate::module::SiteRef;
use tokio::sync::watch;
use tokio::task::JoinSet;

tokio::task_local! {
    static SITE: SiteRef;
}

/// The site that a service runs for; `None` outside of a service's own task.
pub fn background_site() -> Option<SiteRef> {
    SITE.try_with(SiteRef::clone).ok()
}

/// Runs the services of one site after the other.
pub(super) async fn run(thread: &'static Thread) {
    let mut replaced = thread.shared.replaced.subscribe();
    loop {
        replaced.borrow_and_update();
        let (stop, stopped) = watch::channel(false);
        let mut services = JoinSet::new();
        let site = thread.shared.site.load_full();
        for service in &site.background {
            let (service, stopped) = (service.clone(), stopped.clone());
            let work = async move { service.start(stopped).await };
            services.spawn(SITE.scope(SiteRef::new(site.clone()), work));
        }
        drop(site);
        if replaced.changed().await.is_err() {
            return;
        }
        // those of the old site end in their own time, beside the new ones
        stop.send_replace(true);
        tokio::spawn(async move { while services.join_next().await.is_some() {} });
    }
}
