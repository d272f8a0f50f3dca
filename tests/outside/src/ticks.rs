//! A service in the background: `tick_every TIME;` counts, and `$ticks` is the count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use couloir::prelude::*;

pub struct Ticks;

#[derive(Clone, Default)]
pub struct TicksConf {
    count: Option<Arc<Count>>,
}

/// State of one configuration: the settings, the service and the variable share it.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Conf for TicksConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; count);
    }
}

impl Module for Ticks {
    const NAME: &'static str = "ticks";
    type Conf = TicksConf;
    const DIRECTIVES: &'static [Directive<TicksConf>] = &[Directive::own(
        "tick_every",
        Place::HTTP,
        Args::Exactly(1),
        "`tick_every time;` Counts once in this time.",
        |c, s, b| {
            let count = Arc::new(Count::default());
            let every = Duration::from_millis(s.msec(0)?.max(1));
            let ticker = Ticker(count.clone(), every);
            b.background(Arc::new(ticker));
            once(&mut c.count, s, count)
        },
    )];
    const VARIABLES: &'static [Variable] = &[Variable::new("ticks", |r, _| {
        r.kept::<Count>()
            .map_or(Val::None, |count| Val::number(count.0.load(Relaxed)))
    })];

    fn attach(conf: &Arc<TicksConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(count) = &conf.count {
            on.keep(count.clone());
        }
        Ok(())
    }
}

struct Ticker(Arc<Count>, Duration);

#[async_trait]
impl BackgroundService for Ticker {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.1) => {}
                _ = shutdown.changed() => return,
            }
            self.0.0.fetch_add(1, Relaxed);
        }
    }
}
