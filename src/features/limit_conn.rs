//! Limits on requests under way at once: `limit_conn_zone`, `limit_conn`.

use super::limit_stats::{self, LimitOutcome, Limited, Tally};
use super::refusal::Refusal;
use super::zones::{self, ZoneRef, ZoneSpec};
use crate::config::{Result, Statement, value};
use crate::contract::*;
use crate::log::Level as LogLevel;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Limits on requests under way.
pub struct LimitConn;

/// The limits of a block.
#[derive(Default, Clone)]
pub struct LimitConnConf {
    limits: Option<Vec<Limit>>,
    refusal: Refusal,
}

#[derive(Clone)]
struct Limit {
    zone: ZoneRef<ConnZone>,
    max: u32,
}

/// A zone with the key that this configuration gives it.
pub struct ConnZone {
    name: String,
    key: Template,
    key_text: String,
    counts: Arc<Counts>,
}

/// How many requests are under way, by key; it survives reloads.
pub struct Counts {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::fast::RandomState,
    key_text: String,
    size: u64,
    tally: Arc<Tally>,
}

type Key = SmallVec<[u8; 24]>;

#[derive(Default)]
struct Shard {
    counts: HashMap<Key, u32, foldhash::fast::RandomState>,
    used: u64,
    limit: u64,
}

/// What a request holds until its end.
struct Held {
    status: Status,
    /// Given back when the request ends.
    _seats: SmallVec<[Seat; 2]>,
}

/// One seat in a zone.
struct Seat {
    counts: Arc<Counts>,
    key: Key,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.counts.leave(&self.key);
    }
}

/// `$limit_conn_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Passed,
    Rejected,
    RejectedDryRun,
}

impl Conf for LimitConnConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; limits);
        self.refusal.inherit(&outer.refusal);
    }
}

impl Module for LimitConn {
    const NAME: &'static str = "http_limit_conn";
    type Conf = LimitConnConf;
    const DIRECTIVES: &'static [Directive<LimitConnConf>] = &[
        Directive::new(
            "limit_conn_zone",
            Place::HTTP,
            Args::Exactly(2),
            "`limit_conn_zone key zone=name:size;` A zone that counts requests under way by a key.",
            |_, s, b| limit_conn_zone(s, b),
        ),
        Directive::new(
            "limit_conn",
            Place::ANY_HTTP,
            Args::Exactly(2),
            "`limit_conn zone number;` How many requests of one key may be under way at once.",
            limit_conn,
        ),
        Directive::new(
            "limit_conn_log_level",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`limit_conn_log_level info|notice|warn|error;` For refused requests. Default: error.",
            |c, s, _| c.refusal.set_log_level(s),
        ),
        Directive::new(
            "limit_conn_status",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`limit_conn_status code;` For refused requests. Default: 503.",
            |c, s, _| c.refusal.set_status(s),
        ),
        Directive::new(
            "limit_conn_dry_run",
            Place::ANY_HTTP,
            Args::Flag,
            "`limit_conn_dry_run on|off;` Counts and logs, but does not refuse. Default: off.",
            |c, s, _| c.refusal.set_dry_run(s),
        ),
    ];
    const VARIABLES: &'static [Variable] = &[Variable::new("limit_conn_status", |r, _| {
        match r.shared::<Held>().map(|h| h.status) {
            None => Val::None,
            Some(Status::Passed) => Val::Bytes(b"PASSED"),
            Some(Status::Rejected) => Val::Bytes(b"REJECTED"),
            Some(Status::RejectedDryRun) => Val::Bytes(b"REJECTED_DRY_RUN"),
        }
    })];

    fn attach(conf: &Arc<LimitConnConf>, on: &mut Hooks) -> Result<()> {
        if let Some(limits) = &conf.limits {
            on.on(
                Phase::PreAccess,
                Limiter {
                    limits: limits.clone().into(),
                    log_level: conf.refusal.log_level(),
                    status: conf.refusal.status(),
                    dry_run: conf.refusal.is_dry_run(),
                },
            );
        }
        Ok(())
    }
}

struct Limiter {
    limits: Box<[Limit]>,
    log_level: LogLevel,
    status: u16,
    dry_run: bool,
}

impl Handler for Limiter {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        // a request is counted once, whatever locations it passes
        if r.shared::<Held>().is_some() {
            return Next::Continue;
        }
        let mut seats: SmallVec<[Seat; 2]> = SmallVec::new();
        let mut key = r.scratch();
        let mut refused = None;
        for limit in &self.limits {
            let Some(z) = limit.zone.get() else { continue };
            if !z.key_of(r, &mut key) {
                continue;
            }
            match z.counts.enter(&key, limit.max) {
                Entered::Yes => seats.push(Seat {
                    counts: z.counts.clone(),
                    key: key.as_slice().into(),
                }),
                no => {
                    refused = Some((no, z));
                    break;
                }
            }
        }
        r.put_scratch(key);
        let Some((why, z)) = refused else {
            if !seats.is_empty() {
                for seat in &seats {
                    seat.counts.tally.count(LimitOutcome::Passed);
                }
                r.set_shared(Held {
                    status: Status::Passed,
                    _seats: seats,
                });
            }
            return Next::Continue;
        };
        if why == Entered::Full {
            let dry = if self.dry_run { ", dry run," } else { "" };
            r.error(
                self.log_level,
                format_args!("limiting connections{dry} by zone \"{}\"", z.name),
            );
        }
        // the seats taken in other zones are given back at once
        drop(seats);
        let (status, fate) = if self.dry_run {
            (Status::RejectedDryRun, LimitOutcome::RejectedDryRun)
        } else {
            (Status::Rejected, LimitOutcome::Rejected)
        };
        z.counts.tally.count(fate);
        r.set_shared(Held {
            status,
            _seats: SmallVec::new(),
        });
        if self.dry_run {
            Next::Continue
        } else {
            Next::Status(self.status)
        }
    }
}

/// Whether a request may enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It is counted.
    Yes,
    /// As many as may are under way.
    Full,
    /// The zone has no room for another key.
    NoMemory,
}

impl Counts {
    /// A zone of so many bytes; large ones are divided so that threads do not wait for each other.
    pub fn new(size: u64, key_text: String) -> Counts {
        let n = if size >= 1 << 20 { 16 } else { 1 };
        let limit = zones::usable(size) / n;
        let shards = (0..n)
            .map(|_| {
                Mutex::new(Shard {
                    limit,
                    ..Shard::default()
                })
            })
            .collect();
        Counts {
            shards,
            hasher: foldhash::fast::RandomState::default(),
            key_text,
            size,
            tally: Arc::default(),
        }
    }

    /// Counts a request, unless `max` of its key are under way.
    pub fn enter(&self, key: &[u8], max: u32) -> Entered {
        let Some(shard) = self.shard(key) else {
            return Entered::NoMemory;
        };
        let mut shard = shard.lock();
        if let Some(n) = shard.counts.get_mut(key) {
            if *n >= max {
                return Entered::Full;
            }
            *n += 1;
            return Entered::Yes;
        }
        let cost = cost(key);
        if shard.used + cost > shard.limit {
            return Entered::NoMemory;
        }
        shard.used += cost;
        shard.counts.insert(key.into(), 1);
        Entered::Yes
    }

    /// A request has ended.
    pub fn leave(&self, key: &[u8]) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock();
        if let Some(n) = shard.counts.get_mut(key) {
            *n -= 1;
            if *n == 0 {
                shard.counts.remove(key);
                shard.used = shard.used.saturating_sub(cost(key));
            }
        }
    }

    fn shard(&self, key: &[u8]) -> Option<&Mutex<Shard>> {
        let i = self.hasher.hash_one(key) as usize % self.shards.len().max(1);
        self.shards.get(i)
    }
}

/// What nginx takes for a count: its node and the key in one piece.
fn cost(key: &[u8]) -> u64 {
    zones::slab_size(36 + key.len())
}

impl ConnZone {
    /// Evaluates the key; `false` where the request is not counted.
    fn key_of(&self, r: &Request, key: &mut Vec<u8>) -> bool {
        key.clear();
        self.key.write(r, key);
        if key.len() > 255 {
            let (text, key) = (&self.key_text, crate::http::text::shown(key));
            r.error(
                LogLevel::Error,
                format_args!("the value of the \"{text}\" key is more than 255 bytes: \"{key}\""),
            );
            return false;
        }
        !key.is_empty()
    }
}

const KIND: &str = "limit_conn_zone";

fn limit_conn_zone(s: &Statement, b: &mut Build) -> Result<()> {
    let key = b.template(s, 0)?;
    let key_text = String::from_utf8_lossy(s.arg(0)).into_owned();
    if !s.arg(1).starts_with(b"zone=") {
        return Err(s.invalid_parameter(1));
    }
    let ZoneSpec { name, size } = ZoneSpec::parse(s, 1)?;
    if name.is_empty() {
        return Err(s.error(format!("\"{KIND}\" must have \"zone\" parameter")));
    }
    let cell = zones::declare::<ConnZone>(b, s, KIND, &name, size)?;
    if let Some(z) = cell.get() {
        return Err(s.error(format!(
            "{KIND} \"{name}\" is already bound to key \"{}\"",
            z.key_text
        )));
    }
    let counts = zones::keep::<Counts>(
        KIND,
        &name,
        |old| old.size == size,
        || Counts::new(size, key_text.clone()),
    );
    if counts.key_text != key_text {
        let old = &counts.key_text;
        return Err(Diag::plain(format!(
            "{KIND} \"{name}\" uses the \"{key_text}\" key while previously it used the \"{old}\" key"
        )));
    }
    limit_stats::show(b, Limited::Connections, &name, &counts.tally);
    let _ = cell.set(Arc::new(ConnZone {
        name,
        key,
        key_text,
        counts,
    }));
    Ok(())
}

fn limit_conn(c: &mut LimitConnConf, s: &Statement, b: &mut Build) -> Result<()> {
    let zone = zones::reference::<ConnZone>(b, s, KIND, s.str(0)?)?;
    let limits = c.limits.get_or_insert_default();
    if limits.iter().any(|l| Arc::ptr_eq(&l.zone, &zone)) {
        return Err(s.duplicate());
    }
    let max = match value::parse_number(s.arg(1)) {
        Some(n @ 1..=65_535) => n as u32,
        Some(n) if n > 65_535 => return Err(s.error_at(1, "connection limit must be less 65536")),
        _ => {
            return Err(s.error_at(
                1,
                format!(
                    "invalid number of connections \"{}\"",
                    String::from_utf8_lossy(s.arg(1))
                ),
            ));
        }
    };
    limits.push(Limit { zone, max });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let counts = Arc::new(Counts::new(32 * 1024, String::new()));
        assert_eq!(counts.enter(b"a", 2), Entered::Yes);
        assert_eq!(counts.enter(b"a", 2), Entered::Yes);
        assert_eq!(counts.enter(b"a", 2), Entered::Full);
        assert_eq!(counts.enter(b"b", 2), Entered::Yes);
        drop(Seat {
            counts: counts.clone(),
            key: b"a"[..].into(),
        });
        assert_eq!(counts.enter(b"a", 2), Entered::Yes);
        for key in [b"a", b"a", b"b"] {
            drop(Seat {
                counts: counts.clone(),
                key: key[..].into(),
            });
        }
        let shard = counts.shards[0].lock();
        assert!(shard.counts.is_empty() && shard.used == 0);
    }

    #[test]
    fn a_full_zone_takes_no_new_key() {
        let counts = Counts::new(32 * 1024, String::new());
        let fits = zones::usable(32 * 1024) / cost(b"abcd");
        let entered = (0..2000u32)
            .filter(|i| counts.enter(&i.to_be_bytes(), 1) == Entered::Yes)
            .count();
        assert_eq!(entered as u64, fits);
        assert_eq!(counts.enter(&5000u32.to_be_bytes(), 1), Entered::NoMemory);
    }
}
