//! The group as Pingora's `LoadBalancer` sees it, which owns membership and health.

use super::group::{PickState, Sets};
use super::members::Members;
use async_trait::async_trait;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

/// Pingora's `BackendSelection` over a group's own peers and method of balancing.
#[derive(Debug)]
pub struct Selection(Option<Arc<Members>>);

/// The configuration of a [`Selection`]: the peers of its group.
#[derive(Debug, Clone)]
pub struct SelectionConfig(Arc<Members>);

impl BackendSelection for Selection {
    type Iter = SelectionIter;
    type Config = SelectionConfig;

    fn build_with_config(backends: &BTreeSet<Backend>, config: &Self::Config) -> Self {
        for peer in config.0.hold().peers() {
            peer.member.store(backends.contains(&peer.backend), Relaxed);
        }
        Self(Some(config.0.clone()))
    }

    fn build(_: &BTreeSet<Backend>) -> Self {
        Self(None)
    }

    fn iter(self: &Arc<Self>, key: &[u8]) -> SelectionIter {
        SelectionIter {
            sets: self.0.as_ref().map(|members| members.snapshot()),
            state: PickState::with_key(key),
        }
    }
}

/// Yields the backends of a group in the order in which its method of balancing would try them.
#[derive(Debug)]
pub struct SelectionIter {
    sets: Option<Arc<Sets>>,
    state: PickState,
}

impl BackendIter for SelectionIter {
    fn next(&mut self) -> Option<&Backend> {
        let sets = self.sets.as_ref()?;
        if sets.is_single() && self.state.is_tried(0) {
            return None;
        }
        let (backup, index) = sets.pick(&mut self.state)?;
        let peer = sets.peer(backup, index);
        self.state.mark_tried(index);
        peer.release();
        Some(&peer.backend)
    }
}

/// Pingora's `LoadBalancer` over the peers of a group.
pub(super) fn load_balancer(members: &Arc<Members>) -> LoadBalancer<Selection> {
    let discovery = Backends::new(Box::new(Discovery(members.clone())));
    let config = SelectionConfig(members.clone());
    let balancer = LoadBalancer::from_backends_with_config(discovery, Some(config));
    discover(&balancer);
    balancer
}

/// Brings the `LoadBalancer` up to date with its group.
pub(super) fn discover(balancer: &LoadBalancer<Selection>) {
    // Our discovery never waits, so one poll is all it takes.
    let mut context = Context::from_waker(Waker::noop());
    if !matches!(
        pin!(balancer.update()).poll(&mut context),
        Poll::Ready(Ok(()))
    ) {
        log::error!("the set of backends was not discovered at once");
    }
}

/// Pingora's `ServiceDiscovery` over the peers that a group has now.
struct Discovery(Arc<Members>);

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> pingora_core::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let held = self.0.hold();
        let backends = held.peers().map(|peer| peer.backend.clone()).collect();
        Ok((backends, HashMap::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group, letters, spec};
    use super::super::peer::ServerSpec;
    use super::*;

    #[test]
    fn the_load_balancer_selects_by_the_same_method() {
        let heavy = ServerSpec {
            weight: 5,
            ..spec(1)
        };
        let (group, _) = group(vec![heavy, spec(2), spec(2)]);
        let balancer = group.load_balancer().unwrap();
        assert_eq!(balancer.backends().get_backend().len(), 2, "a set");
        let port = |b: Backend| b.addr.as_inet().unwrap().port();
        let picks: Vec<_> = (0..7)
            .filter_map(|_| balancer.select(b"", 10).map(port))
            .collect();
        assert_eq!(picks, [1, 1, 2, 1, 2, 1, 1]);
        assert_eq!(
            group.peers().next().unwrap().state.conns.load(Relaxed),
            0,
            "a selection is not a use"
        );
    }

    #[test]
    fn disabling_a_backend_in_the_load_balancer_takes_the_peer_out() {
        let (group, _) = group(vec![spec(1), spec(2)]);
        let first = group.peers().next().unwrap().backend.clone();
        let backends = group.load_balancer().unwrap().backends();
        backends.set_enable(&first, false);
        group.sync_health();
        assert_eq!(letters(&group, 3), "bbb");
        backends.set_enable(&first, true);
        group.sync_health();
        assert!(letters(&group, 3).contains('a'));
    }
}
