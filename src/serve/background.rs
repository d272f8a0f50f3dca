//! The services of the site in force: health checks, names that resolve anew. The first thread runs them.

use super::thread::Thread;
use crate::contract::{SiteRef, in_site};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a service that has ended is kept for the next one to take over.
const HANDOVER: Duration = Duration::from_secs(1);

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
            services.spawn(in_site(SiteRef::new(site.clone()), work));
        }
        let background = site.background.clone();
        drop(site);
        if replaced.changed().await.is_err() {
            return;
        }
        // those of the old site end in their own time, beside the new ones, which take over what they know
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            stop.send_replace(true);
            while services.join_next().await.is_some() {}
            tokio::time::sleep(HANDOVER).await;
            drop(background);
        });
    }
}
