//! Origins: groups of peers, balancing, connections to them and the names behind them.
//!
//! * [`group`]: an `upstream {}` block or an implicit upstream, and [`Group::pick`];
//! * [`members`]: the peers of a group and their change at run time;
//! * [`discovery`]: names of servers that are resolved again and again;
//! * [`state_file`]: servers that a group keeps over a restart;
//! * [`stats`]: what the runtime API shows of a peer's work;
//! * [`health`]: what active health checks say of a peer;
//! * [`set`] and [`pick`]: what a method of balancing chooses from, and what a request has tried;
//! * [`round_robin`] (smooth and weighted, the default [`Balance`]), [`least_conn`], [`least_time`], [`hash`],
//!   [`ring`], [`random`], [`ewma`]: the methods;
//! * [`timing`], [`outlier`], [`budget`], [`queue`], [`sessions`]: response times, ejection, retries, waiting, `sticky`;
//! * [`selection`]: the group as Pingora's `LoadBalancer` sees it;
//! * [`peer`]: one address, its limits and the state that all threads share;
//! * [`connect`]: new connections through Pingora's `TransportConnector`;
//! * [`proxy_header`]: the PROXY protocol towards origins;
//! * [`pool`]: idle connections, per thread, with the surplus in Pingora's shared pool;

pub mod attempt;
pub mod budget;
pub mod connect;
pub mod connection;
pub mod discovery;
pub mod ewma;
pub mod group;
pub mod hash;
pub mod health;
pub mod identity;
pub mod least_conn;
pub mod least_time;
pub mod members;
pub mod outlier;
pub mod peer;
pub mod pick;
pub mod pool;
pub mod proxy_header;
pub mod queue;
pub mod random;
pub mod ring;
pub mod round_robin;
pub mod selection;
pub mod sessions;
pub mod set;
pub mod state_file;
pub mod stats;
pub mod timing;
pub mod unresolved;

pub use attempt::{UpstreamState, ignore, next};
pub use connect::{ConnectError, ConnectOptions, Connector, connector, register_connector};
pub use connection::UpConn;
pub use group::{
    AttemptVerdict, Balance, Extras, Group, GroupError, KeepaliveConf, PickState, Picked,
};
pub use peer::{Peer, PeerAddr, PeerState, PeerStateStore, ResolveName, ServerSpec};

use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where balancing reads the time from, in whole seconds, as nginx does.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// The monotonic clock of the system.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until its owner moves it.
    pub fn manual(seconds: Arc<AtomicU64>) -> Self {
        Self(Some(seconds))
    }

    /// Milliseconds since an arbitrary moment; those of a manual clock are its seconds.
    pub fn millis(&self) -> u64 {
        match &self.0 {
            Some(manual) => manual.load(Ordering::Relaxed).saturating_mul(1000),
            None => coarse_millis(),
        }
    }

    /// Seconds since an arbitrary moment that lies further back than any `fail_timeout`.
    pub fn now(&self) -> u64 {
        match &self.0 {
            Some(manual) => manual.load(Ordering::Relaxed),
            None => FAR_PAST + coarse_millis() / 1000,
        }
    }
}

/// Keeps "never checked" (0) older than every `fail_timeout` right after boot.
const FAR_PAST: u64 = 1 << 32;

/// Monotonic milliseconds with the resolution of a kernel tick; cheaper than `Instant::now()`.
pub(crate) fn coarse_millis() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        seconds * 1000 + nanos / 1_000_000
    })
}
