//! Metrics of the process: connections, requests, peers, certificates.

use super::{Source, Text, add_source};
use crate::contract::{Build, Site, Stat};
use crate::http::date;
use crate::http::status::NGINX_VERSION;
use crate::tls::ffi;
use crate::upstream::{Clock, Peer};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

/// Adds these.
pub(super) fn add(b: &mut Build) {
    add_source(b, Process(date::time().0));
    add_source(b, Peers);
    add_source(b, Certificates);
}

/// Connections and requests, with the time at which the configuration was read.
struct Process(i64);

impl Source for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    fn write(&self, site: &Site, out: &mut Text) {
        let version = ("version", env!("CARGO_PKG_VERSION"));
        out.gauge(
            "couloir_build_info",
            "The versions of Couloir and of nginx whose configuration it understands.",
        )
        .add(&[version, ("nginx", NGINX_VERSION)], 1);
        out.gauge(
            "couloir_config_generation",
            "The number of the configuration in force.",
        )
        .add(&[], site.serial);
        out.gauge(
            "couloir_config_load_timestamp_seconds",
            "When the configuration in force was read.",
        )
        .add(&[], self.0);
        out.counter(
            "couloir_connections_accepted_total",
            "Connections accepted.",
        )
        .add(&[], Stat::Accepted.get());
        out.counter(
            "couloir_connections_handled_total",
            "Connections served, which are all unless a limit was met.",
        )
        .add(&[], Stat::Handled.get());
        let connections = out.gauge(
            "couloir_connections",
            "Open connections, by what is done on them.",
        );
        for (state, stat) in [
            ("reading", Stat::Reading),
            ("writing", Stat::Writing),
            ("waiting", Stat::Waiting),
        ] {
            connections.add(&[("state", state)], stat.get());
        }
        out.gauge("couloir_connections_active", "Open connections.")
            .add(&[], Stat::Active.get());
        out.counter("couloir_http_requests_total", "Requests.")
            .add(&[], Stat::Requests.get());
    }
}

/// The peers of groups with a `zone`, which are those that are counted.
struct Peers;

impl Source for Peers {
    fn name(&self) -> &'static str {
        "upstreams"
    }

    fn write(&self, site: &Site, out: &mut Text) {
        let now = Clock::system().now();
        let groups = site.groups.get().map(|g| g.list.as_slice());
        for (name, port, group) in groups.unwrap_or_default() {
            if *port != 0 || group.live().and_then(|l| l.zone()).is_none() {
                continue;
            }
            for peer in group.members().peers() {
                write_peer(out, name, peer, now);
            }
            out.gauge(
                "couloir_upstream_idle_connections",
                "Kept connections that are idle.",
            )
            .add(&[("upstream", name)], group.state.shared_idle.load(Relaxed));
        }
    }
}

fn write_peer(out: &mut Text, group: &str, peer: &Peer, now: u64) {
    let labels = [("upstream", group), ("peer", &*peer.name)];
    let [upstream, address] = labels;
    let state = &peer.state;
    let stats = state.stats.snapshot();
    let health = state.health_record();
    let up = !peer.down
        && !state.is_unhealthy()
        && state.healthy.load(Relaxed)
        && !peer.is_failed(now)
        && !state.is_ejected();
    out.gauge(
        "couloir_upstream_peer_up",
        "Whether requests are sent to the peer.",
    )
    .add(&labels, u8::from(up));
    out.gauge(
        "couloir_upstream_peer_connections",
        "Connections to the peer that are in use.",
    )
    .add(&labels, state.conns.load(Relaxed));
    out.counter(
        "couloir_upstream_peer_requests_total",
        "Requests sent to the peer.",
    )
    .add(&labels, state.requests.load(Relaxed));
    let responses = out.counter(
        "couloir_upstream_peer_responses_total",
        "Responses of the peer.",
    );
    for (code, count) in &stats.answers.codes {
        responses.add(&[upstream, address, ("code", &code.to_string())], count);
    }
    out.counter(
        "couloir_upstream_peer_sent_bytes_total",
        "Bytes sent to the peer.",
    )
    .add(&labels, stats.sent);
    out.counter(
        "couloir_upstream_peer_received_bytes_total",
        "Bytes received from the peer.",
    )
    .add(&labels, stats.received);
    out.counter("couloir_upstream_peer_fails_total", "Attempts that failed.")
        .add(&labels, stats.fails);
    out.counter(
        "couloir_upstream_peer_unavailable_total",
        "How often max_fails took the peer out of use.",
    )
    .add(&labels, stats.unavail);
    let checks = out.counter(
        "couloir_upstream_peer_health_checks_total",
        "Health checks of the peer.",
    );
    checks.add(
        &[upstream, address, ("result", "passed")],
        health.checks.saturating_sub(health.fails),
    );
    checks.add(&[upstream, address, ("result", "failed")], health.fails);
    let average = stats.answers.header_time;
    if average != 0 {
        out.gauge(
            "couloir_upstream_peer_header_seconds",
            "Moving average of the time to the head of a response.",
        )
        .add(&labels, seconds(average));
        out.gauge(
            "couloir_upstream_peer_response_seconds",
            "Moving average of the time to the end of a response.",
        )
        .add(&labels, seconds(stats.answers.response_time));
    }
    out.counter(
        "couloir_upstream_peer_downtime_seconds_total",
        "How long the peer was out of use.",
    )
    .add(&labels, seconds(health.downtime()));
}

/// Milliseconds as Prometheus wants times.
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// When certificates end.
struct Certificates;

impl Source for Certificates {
    fn name(&self) -> &'static str {
        "certificates"
    }

    fn write(&self, site: &Site, out: &mut Text) {
        let now = date::time().0;
        let mut ends = BTreeMap::new();
        for server in &site.servers {
            let Some(made) = server.tls.as_ref().and_then(|t| t.context.load_full()) else {
                continue;
            };
            for (name, certificate) in &made.certificates {
                if let Some(left) = ffi::remaining(certificate) {
                    ends.entry(name.clone()).or_insert(now.saturating_add(left));
                }
            }
        }
        for (name, end) in ends {
            out.gauge(
                "couloir_ssl_certificate_expiry_timestamp_seconds",
                "When a certificate ends.",
            )
            .add(&[("certificate", &name)], end);
        }
    }
}
