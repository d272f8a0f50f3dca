//! Directives whose variables nginx compiles when it merges settings: what stands in `http` is looked at only if some
//! server inherits it, so an unknown variable there is no fault where there is no such server.

use super::{BlockId, Place, VarId};
use crate::config::Diag;
use std::collections::HashSet;

/// Those directives.
const LATE: [&str; 6] = [
    "proxy_set_header",
    "proxy_set_body",
    "grpc_set_header",
    "fastcgi_param",
    "uwsgi_param",
    "scgi_param",
];

/// What such directives in `http` use, and which servers have their own.
#[derive(Default)]
pub(crate) struct Late {
    /// The directive in `http` that is being read.
    reading: Option<&'static str>,
    uses: Vec<(&'static str, VarId, Box<Diag>)>,
    own: HashSet<(BlockId, &'static str)>,
}

impl Late {
    /// A directive of the block is about to be read.
    pub fn begin(&mut self, place: Place, block: BlockId, name: &'static str) {
        if !LATE.contains(&name) {
            return;
        }
        if place == Place::HTTP {
            self.reading = Some(name);
        } else if place == Place::SERVER {
            self.own.insert((block, name));
        }
    }

    /// It has been read.
    pub fn end(&mut self) {
        self.reading = None;
    }

    /// Notes a variable if it may turn out not to be used; `unknown` is the complaint otherwise.
    pub fn uses(&mut self, id: VarId, unknown: impl FnOnce() -> Box<Diag>) -> bool {
        if let Some(name) = self.reading {
            self.uses.push((name, id, unknown()));
        }
        self.reading.is_some()
    }

    /// The variables in their order, with the complaint where a server inherits the directive.
    pub fn settle(self, servers: &[BlockId]) -> Vec<(VarId, Option<Box<Diag>>)> {
        let Late { uses, own, .. } = self;
        let inherited = |name| servers.iter().any(|s| !own.contains(&(*s, name)));
        uses.into_iter()
            .map(|(name, id, unknown)| (id, inherited(name).then_some(unknown)))
            .collect()
    }
}
