//! Groups of many peers, for every method of balancing.

use couloir::upstream::ewma::Ewma;
use couloir::upstream::hash::{Hash, IpHash};
use couloir::upstream::least_conn::LeastConn;
use couloir::upstream::least_time::LeastTime;
use couloir::upstream::random::{Busy, Random, RandomTwo};
use couloir::upstream::ring::ConsistentHash;
use couloir::upstream::round_robin::RoundRobin;
use couloir::upstream::{
    Balance, Clock, Group, KeepaliveConf, PeerAddr, PeerStateStore, ServerSpec,
};
use std::net::SocketAddr;
use std::sync::Arc;

/// Every method, by its directive.
pub fn methods() -> Vec<(&'static str, Arc<dyn Balance>)> {
    let least_time = LeastTime {
        header: true,
        inflight: true,
    };
    vec![
        ("round robin", Arc::new(RoundRobin)),
        ("least_conn", Arc::new(LeastConn)),
        ("least_time", Arc::new(least_time)),
        ("hash", Arc::new(Hash)),
        ("hash consistent", Arc::new(ConsistentHash)),
        ("ip_hash", Arc::new(IpHash)),
        ("random", Arc::new(Random)),
        ("random two", Arc::new(RandomTwo(Busy))),
        ("ewma", Arc::new(RandomTwo(Ewma))),
    ]
}

/// A group of so many peers with different weights.
pub fn group(count: u32, balance: Arc<dyn Balance>) -> Group {
    let server = |i: u32| {
        let [_, a, b, c] = i.to_be_bytes();
        let addr = SocketAddr::from(([10, a, b, c], 80));
        let mut spec = ServerSpec::new(addr.to_string(), vec![PeerAddr::from(addr)]);
        spec.weight = 1 + i % 3;
        spec
    };
    let servers = (0..count).map(server).collect();
    let (keepalive, clock) = (KeepaliveConf::default(), Clock::system());
    Group::new(
        "many",
        servers,
        balance,
        keepalive,
        &PeerStateStore::new(),
        clock,
    )
    .expect("a group")
}
