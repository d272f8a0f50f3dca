//! Directives that choose the method of balancing.

use super::UpstreamDirectives;
use crate::contract::*;
use crate::upstream::Balance;
use crate::upstream::ewma::Ewma;
use crate::upstream::hash::{Hash, IpHash};
use crate::upstream::least_conn::LeastConn;
use crate::upstream::least_time::LeastTime;
use crate::upstream::random::{Busy, Random, RandomTwo};
use crate::upstream::ring::ConsistentHash;
use std::sync::Arc;

/// Of methods that find a server by hash or by lot.
const FIXED: Unsupported = Unsupported {
    backup: true,
    slow_start: true,
};

fn choose(
    s: &Statement,
    b: &mut Build,
    balance: impl Balance,
    key: Option<BalanceKey>,
    unsupported: Unsupported,
) {
    b.balance_by(
        s,
        BalanceMethod {
            balance: Arc::new(balance),
            key,
            unsupported,
        },
    );
}

/// `least_conn`.
pub(super) fn least_conn(
    _: &mut UpstreamDirectives,
    s: &Statement,
    b: &mut Build,
) -> ConfResult<()> {
    choose(s, b, LeastConn, None, Unsupported::default());
    Ok(())
}

/// `least_time`.
pub(super) fn least_time(
    _: &mut UpstreamDirectives,
    s: &Statement,
    b: &mut Build,
) -> ConfResult<()> {
    let inflight = s.len() > 1;
    if inflight && s.arg(1) != b"inflight" {
        return Err(s.invalid_parameter(1));
    }
    let header = s.one_of(0, &[("header", true), ("last_byte", false)])?;
    let method = LeastTime { header, inflight };
    choose(s, b, method, None, Unsupported::default());
    Ok(())
}

/// `ip_hash`.
pub(super) fn ip_hash(_: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    choose(s, b, IpHash, Some(BalanceKey::Network), FIXED);
    Ok(())
}

/// `hash`.
pub(super) fn hash(_: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let key = Some(BalanceKey::Text(b.template(s, 0)?));
    match s.arg(1) {
        b"consistent" => choose(s, b, ConsistentHash, key, FIXED),
        _ if s.len() > 1 => return Err(s.invalid_parameter(1)),
        _ => choose(s, b, Hash, key, FIXED),
    }
    Ok(())
}

/// `random`.
pub(super) fn random(_: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let timed = |header| {
        RandomTwo(LeastTime {
            header,
            inflight: false,
        })
    };
    if !s.is_empty() && s.arg(0) != b"two" {
        return Err(s.invalid_parameter(0));
    }
    match s.arg(1) {
        _ if s.is_empty() => choose(s, b, Random, None, FIXED),
        _ if s.len() == 1 => choose(s, b, RandomTwo(Busy), None, FIXED),
        b"least_conn" => choose(s, b, RandomTwo(Busy), None, FIXED),
        b"least_time=header" => choose(s, b, timed(true), None, FIXED),
        b"least_time=last_byte" => choose(s, b, timed(false), None, FIXED),
        _ => return Err(s.invalid_parameter(1)),
    }
    Ok(())
}

/// `ewma`.
pub(super) fn ewma(_: &mut UpstreamDirectives, s: &Statement, b: &mut Build) -> ConfResult<()> {
    choose(s, b, RandomTwo(Ewma), None, Unsupported::default());
    Ok(())
}
