//! The services of the site in force: health checks, names that resolve anew. The first thread runs them.

use super::thread::Thread;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Runs the services of one site after the other.
pub(super) async fn run(thread: &'static Thread) {
    let mut replaced = thread.shared.replaced.subscribe();
    loop {
        replaced.borrow_and_update();
        let (stop, stopped) = watch::channel(false);
        let mut services = JoinSet::new();
        for service in &thread.shared.site.load_full().background {
            let (service, stopped) = (service.clone(), stopped.clone());
            services.spawn(async move { service.start(stopped).await });
        }
        if replaced.changed().await.is_err() {
            return;
        }
        // those of the old site end in their own time, beside the new ones
        stop.send_replace(true);
        tokio::spawn(async move { while services.join_next().await.is_some() {} });
    }
}
