//! Servers whose names do not resolve when the configuration is read, with `start_degraded`.

use super::resolve::shared;
use crate::config::addr::Inet;
use crate::contract::*;
use crate::engine::core::HttpCore;
use crate::upstream::round_robin::RoundRobin;
use crate::upstream::unresolved::Unresolved;
use crate::upstream::{Clock, Group, GroupError, KeepaliveConf, ResolveName, ServerSpec};
use std::sync::Arc;

/// The name to be asked for later.
pub(super) fn name(a: &Inet) -> ResolveName {
    ResolveName {
        host: a.host.to_string(),
        port: a.port,
        service: None,
    }
}

/// The group of `proxy_pass` to a name that does not resolve; without peers until it does.
pub(super) fn group(shown: &str, name: &ResolveName) -> Result<Group, GroupError> {
    let mut spec = ServerSpec::new(shown, Vec::new());
    spec.resolve = Some(name.clone());
    Group::changeable(
        shown,
        vec![spec],
        RoundRobin,
        KeepaliveConf::off(),
        crate::upstream::PeerStateStore::global(),
        Clock::system(),
    )
}

/// Asks for the name again and again from when the configuration is in force: by the `resolver` of `http` if there is
/// one, and as at the start.
pub(super) fn ask_later(b: &mut Build, group: Arc<Group>, name: ResolveName) {
    b.at_end(move |b| {
        let http = b.blocks_of(Place::HTTP).next();
        let conf = http
            .and_then(|id| b.written::<HttpCore>(id))
            .and_then(|c| c.resolver.clone());
        let resolver = conf.and_then(|conf| shared(b, conf).ok());
        b.background(Arc::new(Unresolved::new(group, name, resolver)));
        Ok(())
    });
}
