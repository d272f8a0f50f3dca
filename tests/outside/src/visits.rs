//! A variable with state of its own, for each request and for the process: `count_visits on;` and `$visit`, the number of
//! the request among all that were counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use couloir::prelude::*;

pub struct Visits;

/// State of the process: it outlives configurations.
static VISITS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Default)]
pub struct VisitsConf {
    on: Option<bool>,
    /// Where each request keeps its number.
    slot: Option<Slot<u64>>,
}

impl Conf for VisitsConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; on, slot);
    }
}

impl Module for Visits {
    const NAME: &'static str = "visits";
    type Conf = VisitsConf;
    const DIRECTIVES: &'static [Directive<VisitsConf>] = &[Directive::own(
        "count_visits",
        Place::ANY_HTTP,
        Args::Flag,
        "`count_visits on|off;` Gives requests the variable `$visit`. Default: off.",
        |c, s, b| {
            c.slot = Some(b.slot());
            once(&mut c.on, s, s.flag(0)?)
        },
    )];
    const VARIABLES: &'static [Variable] = &[Variable::new("visit", |r, _| {
        let visit = r.kept::<Slot<u64>>().and_then(|slot| r.slot(*slot));
        visit.map_or(Val::None, |n| Val::number(*n))
    })];

    fn attach(conf: &Arc<VisitsConf>, on: &mut Hooks) -> ConfResult<()> {
        if let (Some(true), Some(slot)) = (conf.on, conf.slot) {
            on.keep(Arc::new(slot));
            on.on(Phase::PreAccess, Count(slot));
        }
        Ok(())
    }
}

struct Count(Slot<u64>);

impl Handler for Count {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        if r.slot(self.0).is_none() {
            r.set_slot(self.0, VISITS.fetch_add(1, Relaxed) + 1);
        }
        Next::Continue
    }
}
