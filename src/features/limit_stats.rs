//! What became of requests that zones limit: `http/limit_reqs` and `http/limit_conns` of the API, and metrics.

use crate::contract::{Build, Site};
use crate::features::api::{Answer, ApiError, Ask, Endpoint, add_endpoint};
use crate::features::metrics::{Source, Text, add_source};
use crate::http::method::Method;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOutcome {
    /// It went on.
    Passed,
    /// It had to wait.
    Delayed,
    /// It was refused.
    Rejected,
    /// It would have had to wait.
    DelayedDryRun,
    /// It would have been refused.
    RejectedDryRun,
}

impl LimitOutcome {
    const ALL: [(LimitOutcome, &'static str); 5] = [
        (LimitOutcome::Passed, "passed"),
        (LimitOutcome::Delayed, "delayed"),
        (LimitOutcome::Rejected, "rejected"),
        (LimitOutcome::DelayedDryRun, "delayed_dry_run"),
        (LimitOutcome::RejectedDryRun, "rejected_dry_run"),
    ];
}

/// How many requests of a zone came to what.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; 5]);

impl Tally {
    /// Counts a request.
    pub fn count(&self, fate: LimitOutcome) {
        if let Some(n) = self.0.get(fate as usize) {
            n.fetch_add(1, Relaxed);
        }
    }

    fn get(&self, fate: LimitOutcome) -> u64 {
        self.0.get(fate as usize).map_or(0, |n| n.load(Relaxed))
    }
}

/// Which directive declares a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// `limit_req_zone`.
    Requests,
    /// `limit_conn_zone`.
    Connections,
}

impl Limited {
    fn fates(self) -> impl Iterator<Item = (LimitOutcome, &'static str)> {
        let delays = self == Limited::Requests;
        LimitOutcome::ALL.into_iter().filter(move |(f, _)| {
            delays || !matches!(f, LimitOutcome::Delayed | LimitOutcome::DelayedDryRun)
        })
    }
}

/// The zones of one kind, by name.
type Zones = Arc<Mutex<Vec<(String, Arc<Tally>)>>>;

#[derive(Default)]
struct Declared {
    requests: Zones,
    connections: Zones,
}

/// Shows a zone in the API and among the metrics.
pub fn show(b: &mut Build, kind: Limited, name: &str, tally: &Arc<Tally>) {
    let declared = b.shared::<Declared>();
    let zones = match kind {
        Limited::Requests => &declared.requests,
        Limited::Connections => &declared.connections,
    };
    let zones = zones.clone();
    zones.lock().push((name.to_owned(), tally.clone()));
    add_endpoint(b, Shown(kind, zones.clone()));
    add_source(b, Shown(kind, zones));
}

struct Shown(Limited, Zones);

impl Endpoint for Shown {
    fn path(&self) -> &'static str {
        match self.0 {
            Limited::Requests => "http/limit_reqs",
            Limited::Connections => "http/limit_conns",
        }
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        let view = |tally: &Tally| -> Value {
            let counts = self.0.fates().map(|(fate, name)| {
                let n: Value = tally.get(fate).into();
                (name.to_owned(), n)
            });
            Value::Object(counts.collect())
        };
        let zones = self.1.lock();
        match (ask.rest, ask.method) {
            ([], Method::Get) => {
                let all: Map<String, Value> = zones
                    .iter()
                    .map(|(name, tally)| (name.clone(), view(tally)))
                    .collect();
                Ok(Answer::Collection(all.into()))
            }
            ([name], method) => {
                let Some((_, tally)) = zones.iter().find(|(known, _)| known == name) else {
                    let (text, code) = match self.0 {
                        Limited::Requests => ("limit_req not found", "LimitReqNotFound"),
                        Limited::Connections => ("limit_conn not found", "LimitConnNotFound"),
                    };
                    return Err(ApiError::new(404, text, code));
                };
                match method {
                    Method::Get => Ok(Answer::Value(view(tally))),
                    Method::Delete => {
                        for n in &tally.0 {
                            n.store(0, Relaxed);
                        }
                        Ok(Answer::Done)
                    }
                    _ => Err(ApiError::method_disabled()),
                }
            }
            ([], _) => Err(ApiError::method_disabled()),
            _ => Err(ApiError::path_not_found()),
        }
    }
}

impl Source for Shown {
    fn name(&self) -> &'static str {
        self.path()
    }

    fn write(&self, _site: &Site, out: &mut Text) {
        let (name, help) = match self.0 {
            Limited::Requests => (
                "couloir_limit_req_requests_total",
                "Requests that limit_req has looked at, by what became of them.",
            ),
            Limited::Connections => (
                "couloir_limit_conn_requests_total",
                "Requests that limit_conn has looked at, by what became of them.",
            ),
        };
        let metric = out.counter(name, help);
        for (zone, tally) in self.1.lock().iter() {
            for (fate, result) in self.0.fates() {
                metric.add(&[("zone", zone), ("result", result)], tally.get(fate));
            }
        }
    }
}
