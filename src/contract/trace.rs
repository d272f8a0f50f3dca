//! What a request went through, kept for those who ask: `couloir explain` and `explain_allow`.

use super::{BlockId, Request};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;

/// The steps of a request and of its subrequests, in order.
#[derive(Debug, Default)]
pub struct Trace {
    steps: Mutex<Vec<Step>>,
    dry: bool,
}

/// How many steps are kept: a cycle of rewrites must not fill memory.
const MOST: usize = 1000;

/// One step: a choice, or what a hook decided.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What took it: `server`, `location`, `rewrite`, `access`, `upstream`, …
    pub kind: &'static str,
    /// What was found or decided.
    pub text: String,
    /// Where in the configuration that stands (`FILE:LINE`), where one place can be named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Arc<str>>,
    /// Who else stood to be chosen, and why they were not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Candidate>,
    /// The module, or the end of the directive's name, and the block in force: where the step has no place, it is the
    /// place of such a directive.
    #[serde(skip)]
    pub by: Option<(&'static str, Option<BlockId>)>,
    /// How many requests this one is inside of: 0 for the client's own.
    #[serde(skip_serializing_if = "is_zero")]
    pub depth: u8,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(n: &u8) -> bool {
    *n == 0
}

/// One that was not chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// Its name as written.
    pub name: String,
    /// Where it stands (`FILE:LINE`).
    pub at: Arc<str>,
    /// Why it was not chosen.
    pub why: String,
}

impl Step {
    /// A step without a place.
    pub fn new(kind: &'static str, text: impl Into<String>) -> Step {
        Step {
            kind,
            text: text.into(),
            at: None,
            others: Vec::new(),
            by: None,
            depth: 0,
        }
    }

    /// The same, taken because of a directive of `module` (`auth_basic`), or of one that ends so (`_pass`).
    #[must_use]
    pub fn by(mut self, module: &'static str) -> Step {
        self.by = Some((module, None));
        self
    }

    /// The same with a place.
    #[must_use]
    pub fn at(mut self, place: &Arc<str>) -> Step {
        self.at = Some(place.clone()).filter(|p| !p.is_empty());
        self
    }

    /// The same with those that were not chosen.
    #[must_use]
    pub fn others(mut self, others: Vec<Candidate>) -> Step {
        self.others = others;
        self
    }
}

impl Trace {
    /// Of a request that is answered to its client.
    pub fn live() -> Trace {
        Trace::default()
    }

    /// Of a request that nobody made: no origin is connected to and nothing is logged.
    pub fn dry() -> Trace {
        Trace {
            dry: true,
            ..Trace::default()
        }
    }

    /// Whether nobody made the request.
    pub fn is_explain_only(&self) -> bool {
        self.dry
    }

    /// Adds a step.
    pub fn add(&self, step: Step) {
        let mut steps = self.steps.lock();
        if steps.len() < MOST {
            steps.push(step);
        }
    }

    /// The steps so far.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().clone()
    }
}

impl Request {
    /// Notes a step, if someone asked what this request goes through; costs one look otherwise.
    #[inline]
    pub fn explain(&self, step: impl FnOnce() -> Step) {
        if let Some(trace) = &self.trace {
            let step = step();
            let location = || self.site.locations.get(self.location as usize);
            trace.add(Step {
                depth: self.depth,
                by: step
                    .by
                    .map(|(module, _)| (module, location().and_then(|l| l.hooks.block()))),
                ..step
            });
        }
    }

    /// Whether nobody made this request: it is only explained.
    pub fn is_explain_only(&self) -> bool {
        self.trace.as_ref().is_some_and(|t| t.is_explain_only())
    }
}
