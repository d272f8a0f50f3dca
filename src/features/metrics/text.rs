//! Prometheus's text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// Metrics by name, each with its samples in one place however they were added.
#[derive(Default)]
pub struct Text {
    families: BTreeMap<&'static str, Family>,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its name ends with `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One metric.
pub struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: String,
}

impl Text {
    /// The metric of that name.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &'static str) -> &mut Family {
        self.families.entry(name).or_insert_with(|| Family {
            name,
            kind,
            help,
            samples: String::new(),
        })
    }

    /// A counter.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.metric(name, Kind::Counter, help)
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.metric(name, Kind::Gauge, help)
    }

    /// All of it.
    pub fn finish(&self) -> String {
        let mut out = String::new();
        for f in self.families.values().filter(|f| !f.samples.is_empty()) {
            let kind = match f.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            let (name, help, samples) = (f.name, f.help, &f.samples);
            // a string takes everything
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        out
    }
}

impl Family {
    /// Adds a sample with its labels.
    pub fn add(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Family {
        self.samples.push_str(self.name);
        for (i, (name, text)) in labels.iter().enumerate() {
            self.samples.push(if i == 0 { '{' } else { ',' });
            self.samples.push_str(name);
            self.samples.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.samples.push_str("\\\\"),
                    '"' => self.samples.push_str("\\\""),
                    '\n' => self.samples.push_str("\\n"),
                    c => self.samples.push(c),
                }
            }
            self.samples.push('"');
        }
        if !labels.is_empty() {
            self.samples.push('}');
        }
        let _ = writeln!(self.samples, " {value}");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_stand_together() {
        let mut out = Text::default();
        out.counter("a_total", "As.").add(&[("x", "1")], 3);
        out.gauge("b", "Bs.").add(&[], 0.25);
        out.gauge("none", "Never told.");
        out.counter("a_total", "As.")
            .add(&[("x", "\"\\\n"), ("y", "é")], u64::MAX);
        assert_eq!(
            out.finish(),
            "# HELP a_total As.\n# TYPE a_total counter\na_total{x=\"1\"} 3\n\
             a_total{x=\"\\\"\\\\\\n\",y=\"é\"} 18446744073709551615\n\
             # HELP b Bs.\n# TYPE b gauge\nb 0.25\n"
        );
    }
}
