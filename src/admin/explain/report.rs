//! What is printed of an explained request.

use crate::contract::{InForce, Listener, Request, Step, Trace, WrittenList};
use crate::engine::selection;
use serde::Serialize;
use std::fmt;

/// Everything that is told.
#[derive(Serialize)]
pub(super) struct Report {
    request: String,
    address: String,
    server: Place,
    location: Place,
    /// None where it would be the origin's.
    status: Option<u16>,
    #[serde(skip_serializing_if = "String::is_empty")]
    redirects_to: String,
    steps: Vec<Step>,
    /// What is in force where the request ended, defaults left out.
    directives: Vec<InForce>,
}

#[derive(Serialize)]
struct Place {
    name: String,
    at: String,
}

impl Report {
    pub fn new(
        asked: &str,
        listener: &Listener,
        r: &Request,
        trace: &Trace,
        written: &WrittenList,
    ) -> Report {
        let server = r.site.servers.get(r.server as usize);
        let location = r.site.locations.get(r.location as usize);
        let block = location.and_then(|l| l.hooks.block());
        let mut steps = trace.steps();
        for step in &mut steps {
            if step.at.is_none()
                && let Some((module, Some(block))) = step.by
            {
                step.at = written.place_of(block, module);
            }
        }
        let passed = steps.iter().any(|s| s.kind == "request" && s.depth == 0);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Report {
            request: asked.to_owned(),
            address: listener.addr.to_string(),
            server: Place {
                name: server.map(|s| text(&s.name)).unwrap_or_default(),
                at: server.map(|s| s.place.to_string()).unwrap_or_default(),
            },
            location: Place {
                name: location.map(selection::name).unwrap_or_default(),
                at: location.map(|l| l.place.to_string()).unwrap_or_default(),
            },
            status: (!passed).then_some(r.out.status),
            redirects_to: text(&r.out.location),
            steps,
            directives: block.map(|b| written.in_force(b)).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.request)?;
        for step in &self.steps {
            let inside = "  ".repeat(step.depth as usize);
            write!(f, "{inside}{:<13}", step.kind)?;
            let mut lines = step.text.lines();
            write!(f, "{}", lines.next().unwrap_or_default())?;
            match &step.at {
                Some(at) => writeln!(f, "  [{at}]")?,
                None => writeln!(f)?,
            }
            for line in lines {
                writeln!(f, "{inside}{:17}{line}", "")?;
            }
            for other in &step.others {
                let (name, why, at) = (&other.name, &other.why, &other.at);
                writeln!(f, "{inside}{:13}not {name}: {why}  [{at}]", "")?;
            }
        }
        match self.status {
            Some(status) => write!(f, "{:<13}{status}", "answer")?,
            None => write!(f, "{:<13}the origin's", "answer")?,
        }
        if !self.redirects_to.is_empty() {
            write!(f, " to {}", self.redirects_to)?;
        }
        writeln!(f, "\n\nin force (what is not written has its default):")?;
        let width = self.directives.iter().map(|d| d.text.chars().count());
        let width = width.max().unwrap_or_default().min(60);
        for d in &self.directives {
            write!(f, "  {:<width$}  [{}]", d.text, d.at)?;
            if d.inherited {
                write!(f, " from {}", d.of)?;
            }
            if !d.instead_of.is_empty() {
                write!(f, " instead of {}", d.instead_of.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
