//! Directives that choose the method of balancing.

use super::UpstreamWritten;
use crate::module::*;
use crate::upstream::Balance;
use crate::upstream::ewma::Ewma;
use crate::upstream::hash::{Hash, IpHash};
use crate::upstream::least_conn::LeastConn;
use crate::upstream::least_time::LeastTime;
use crate::upstream::random::{Busy, Random, RandomTwo};
use crate::upstream::ring::ConsistentHash;
use std::sync::Arc;

/// A method of balancing as written.
#[derive(Clone)]
pub(super) struct Method {
    /// The method.
    pub balance: Arc<dyn Balance>,
    /// What of a request it hashes.
    pub key: Option<Key>,
    /// What it cannot do with.
    pub without: Limits,
}

/// Parameters of `server` that a method does not support.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    /// `backup`.
    pub backup: bool,
    /// `slow_start=`.
    pub slow_start: bool,
}

impl Limits {
    /// Methods that find a server by hash or by lot.
    const FIXED: Self = Self {
        backup: true,
        slow_start: true,
    };
}

/// What of a request is hashed.
#[derive(Clone)]
pub(super) enum Key {
    /// `hash key`.
    Text(Template),
    /// `ip_hash`.
    Network,
}

fn choose(
    c: &mut UpstreamWritten,
    s: &Statement,
    b: &mut Build,
    balance: impl Balance,
    key: Option<Key>,
    without: Limits,
) {
    if c.method.is_some() {
        b.warn(s.warn("load balancing method redefined"));
    }
    c.method = Some(Method {
        balance: Arc::new(balance),
        key,
        without,
    });
}

/// `least_conn`.
pub(super) fn least_conn(c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    choose(c, s, b, LeastConn, None, Limits::default());
    Ok(())
}

/// `least_time`.
pub(super) fn least_time(c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let inflight = s.len() > 1;
    if inflight && s.arg(1) != b"inflight" {
        return Err(s.invalid_parameter(1));
    }
    let header = s.one_of(0, &[("header", true), ("last_byte", false)])?;
    let method = LeastTime { header, inflight };
    choose(c, s, b, method, None, Limits::default());
    Ok(())
}

/// `ip_hash`.
pub(super) fn ip_hash(c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    choose(c, s, b, IpHash, Some(Key::Network), Limits::FIXED);
    Ok(())
}

/// `hash`.
pub(super) fn hash(c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let key = Some(Key::Text(b.template(s, 0)?));
    match s.arg(1) {
        b"consistent" => choose(c, s, b, ConsistentHash, key, Limits::FIXED),
        _ if s.len() > 1 => return Err(s.invalid_parameter(1)),
        _ => choose(c, s, b, Hash, key, Limits::FIXED),
    }
    Ok(())
}

/// `random`.
pub(super) fn random(c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
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
        _ if s.is_empty() => choose(c, s, b, Random, None, Limits::FIXED),
        _ if s.len() == 1 => choose(c, s, b, RandomTwo(Busy), None, Limits::FIXED),
        b"least_conn" => choose(c, s, b, RandomTwo(Busy), None, Limits::FIXED),
        b"least_time=header" => choose(c, s, b, timed(true), None, Limits::FIXED),
        b"least_time=last_byte" => choose(c, s, b, timed(false), None, Limits::FIXED),
        _ => return Err(s.invalid_parameter(1)),
    }
    Ok(())
}

/// `ewma`.
pub(super) fn ewma(c: &mut UpstreamWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    choose(c, s, b, RandomTwo(Ewma), None, Limits::default());
    Ok(())
}
