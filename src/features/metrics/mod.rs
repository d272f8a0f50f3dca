//! `metrics`: the state of the process as text for Prometheus (docs/metrics.md).
//!
//! Another module adds metrics of its own with [`add_source`] from one of its directives.

mod sources;
mod text;

pub use text::{Family, Kind, Text};

use crate::contract::*;
use crate::features::api;
use crate::http::method::Method;
use crate::log::Level;
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// Couloir's own.
pub struct Metrics;

/// `metrics` of one location.
#[derive(Default, Clone)]
pub struct MetricsConf {
    sources: Option<SourcesRef>,
}

impl Conf for MetricsConf {
    const INHERITED: bool = false;

    fn inherit(&mut self, _outer: &Self) {}
}

impl Module for Metrics {
    const NAME: &'static str = "http_metrics";
    type Conf = MetricsConf;
    const DIRECTIVES: &'static [Directive<MetricsConf>] = &[Directive::content(Directive::own(
        "metrics",
        Place::LOCATION,
        Args::None,
        "`metrics;` Answers with counters of connections, requests, peers, caches, limits and certificates in Prometheus's text format. Clients that are not on loopback are refused unless the location has access rules, and so are requests for another host than a name of the server, an address of its listener or localhost.",
        metrics,
    ))];

    fn attach(conf: &Arc<MetricsConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(sources) = &conf.sources {
            on.content(Page(sources.clone()));
        }
        Ok(())
    }
}

/// Metrics that belong together.
pub trait Source: Send + Sync + 'static {
    /// Tells it from others.
    fn name(&self) -> &'static str;

    /// Writes them as they are now.
    fn write(&self, site: &Site, out: &mut Text);
}

/// Adds metrics to every `metrics` of the configuration. A source with the name of another is not added.
pub fn add_source(b: &mut Build, source: impl Source) {
    let list = &mut b.shared::<Table>().list;
    if !list.iter().any(|known| known.name() == source.name()) {
        list.push(Arc::new(source));
    }
}

type SourcesRef = Arc<OnceLock<Vec<Arc<dyn Source>>>>;

/// The sources while the configuration is read.
#[derive(Default)]
struct Table {
    list: Vec<Arc<dyn Source>>,
    done: Option<SourcesRef>,
}

fn metrics(c: &mut MetricsConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    sources::add(b);
    let sources = match &b.shared::<Table>().done {
        Some(done) => done.clone(),
        None => {
            let done = SourcesRef::default();
            b.shared::<Table>().done = Some(done.clone());
            let filled = done.clone();
            b.at_end(move |b| {
                let _ = filled.set(std::mem::take(&mut b.shared::<Table>().list));
                Ok(())
            });
            done
        }
    };
    once(&mut c.sources, s, sources)
}

/// The content of a location with `metrics`.
struct Page(SourcesRef);

impl Handler for Page {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if !matches!(r.method, Method::Get | Method::Head) {
            return Next::Status(405);
        }
        if !api::is_open_to(r) {
            r.error(
                Level::Error,
                format_args!(
                    "metrics are open to loopback only, where their location has no access rules"
                ),
            );
            return Next::Status(403);
        }
        if let Err(status) = api::guard(r, "metrics") {
            return Next::Status(status);
        }
        let mut out = Text::default();
        for source in self.0.get().into_iter().flatten() {
            source.write(&r.site, &mut out);
        }
        let text = out.finish();
        r.out.status = 200;
        r.out
            .content_type
            .extend_from_slice(b"text/plain; version=0.0.4; charset=utf-8");
        r.out.content_length = Some(text.len() as u64);
        Next::Respond(Body::Bytes(Bytes::from(text)))
    }
}
