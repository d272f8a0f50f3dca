//! Limits on the rate of requests: `limit_req_zone`, `limit_req`.

use super::leaky_bucket::{Spent, Zone};
use super::limit_stats::{self, LimitOutcome, Limited};
use super::refusal::Refusal;
use super::zones::{self, ZoneRef, ZoneSpec};
use crate::config::{Result, Statement, value};
use crate::contract::*;
use crate::log::Level as LogLevel;
use std::sync::Arc;
use std::time::Duration;

/// Limits on the rate of requests.
pub struct LimitReq;

/// The limits of a block.
#[derive(Default, Clone)]
pub struct LimitReqConf {
    limits: Option<Vec<Limit>>,
    refusal: Refusal,
}

/// One `limit_req`; amounts are thousandths of a request.
#[derive(Clone)]
struct Limit {
    zone: ZoneRef<ReqZone>,
    burst: u64,
    delay: u64,
}

/// A zone with the key and the rate that this configuration gives it.
pub struct ReqZone {
    name: String,
    key: Template,
    /// The key as written, for messages.
    key_text: String,
    /// Thousandths of a request a second.
    rate: u64,
    zone: Arc<Zone>,
}

/// `$limit_req_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Passed,
    Delayed,
    Rejected,
    DelayedDryRun,
    RejectedDryRun,
}

impl Conf for LimitReqConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; limits);
        self.refusal.inherit(&outer.refusal);
    }
}

impl Module for LimitReq {
    const NAME: &'static str = "http_limit_req";
    type Conf = LimitReqConf;
    const DIRECTIVES: &'static [Directive<LimitReqConf>] = &[
        Directive::new(
            "limit_req_zone",
            Place::HTTP,
            Args::Exactly(3),
            "`limit_req_zone key zone=name:size rate=rate;` A zone that counts requests by a key; the rate is in r/s or r/m.",
            |_, s, b| limit_req_zone(s, b),
        ),
        Directive::new(
            "limit_req",
            Place::ANY_HTTP,
            Args::Between(1, 3),
            "`limit_req zone=name [burst=number] [nodelay|delay=number];` Limits requests by the zone's rate; up to `burst` wait, more are refused.",
            limit_req,
        ),
        Directive::new(
            "limit_req_log_level",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`limit_req_log_level info|notice|warn|error;` For refused requests; delayed ones are logged one level lower. Default: error.",
            |c, s, _| c.refusal.set_log_level(s),
        ),
        Directive::new(
            "limit_req_status",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`limit_req_status code;` For refused requests. Default: 503.",
            |c, s, _| c.refusal.set_status(s),
        ),
        Directive::new(
            "limit_req_dry_run",
            Place::ANY_HTTP,
            Args::Flag,
            "`limit_req_dry_run on|off;` Counts and logs, but neither delays nor refuses. Default: off.",
            |c, s, _| c.refusal.set_dry_run(s),
        ),
    ];
    const VARIABLES: &'static [Variable] = &[Variable::new("limit_req_status", |r, _| match r
        .shared::<Status>()
    {
        None => Val::None,
        Some(Status::Passed) => Val::Bytes(b"PASSED"),
        Some(Status::Delayed) => Val::Bytes(b"DELAYED"),
        Some(Status::Rejected) => Val::Bytes(b"REJECTED"),
        Some(Status::DelayedDryRun) => Val::Bytes(b"DELAYED_DRY_RUN"),
        Some(Status::RejectedDryRun) => Val::Bytes(b"REJECTED_DRY_RUN"),
    })];

    fn attach(conf: &Arc<LimitReqConf>, on: &mut Hooks) -> Result<()> {
        if let Some(limits) = &conf.limits {
            let log_level = conf.refusal.log_level();
            on.on(
                Phase::PreAccess,
                Limiter {
                    limits: limits.clone().into(),
                    log_level,
                    delay_log_level: match log_level {
                        LogLevel::Error => LogLevel::Warn,
                        LogLevel::Warn => LogLevel::Notice,
                        _ => LogLevel::Info,
                    },
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
    delay_log_level: LogLevel,
    status: u16,
    dry_run: bool,
}

impl Handler for Limiter {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        // a request is counted once, whatever locations it passes
        if r.shared::<Status>().is_some() {
            return Next::Continue;
        }
        let mut key = r.scratch();
        let next = self.limit(r, &mut key);
        r.put_scratch(key);
        next
    }
}

impl Limiter {
    fn limit<'r>(&self, r: &mut Request, key: &mut Vec<u8>) -> Next<'r> {
        let now = super::leaky_bucket::now();
        let dry = if self.dry_run { ", dry run" } else { "" };
        // which zones the request counts in
        let mut asked = 0u64;
        let last = self.limits.len().saturating_sub(1);
        let mut final_excess = None;
        for (n, limit) in self.limits.iter().enumerate() {
            let Some(z) = limit.zone.get() else { continue };
            if !z.key_of(r, key) {
                continue;
            }
            match z.zone.look(key, z.rate, limit.burst, now, n == last) {
                Spent::Refused(excess) => {
                    r.error(
                        self.log_level,
                        format_args!(
                            "limiting requests{dry}, excess: {}.{:03} by zone \"{}\"",
                            excess / 1000,
                            excess % 1000,
                            z.name
                        ),
                    );
                    return self.refuse(r, z);
                }
                Spent::NoMemory => {
                    let log = crate::log::process_log();
                    log.write(
                        LogLevel::Alert,
                        None,
                        format_args!("could not allocate node in limit_req zone \"{}\"", z.name),
                    );
                    return self.refuse(r, z);
                }
                Spent::Fits(excess) if n == last => final_excess = Some(excess),
                Spent::Fits(_) => {}
            }
            asked |= 1 << n.min(63);
        }
        if asked == 0 {
            return Next::Continue;
        }
        // the last zone has been charged while it was looked at; now the others are, too
        let mut worst = (0, 0, None);
        if let (Some(excess), Some(limit)) = (final_excess, self.limits.last()) {
            worst = self
                .delay(limit, excess)
                .map_or(worst, |d| (d, excess, limit.zone.get()));
        }
        let others = if final_excess.is_some() {
            last
        } else {
            self.limits.len()
        };
        for limit in self.limits.iter().take(others).rev() {
            let Some(z) = limit.zone.get() else { continue };
            if !z.key_of(r, key) {
                continue;
            }
            let Some(excess) = z.zone.charge(key, z.rate, now) else {
                continue;
            };
            if let Some(d) = self.delay(limit, excess).filter(|d| *d > worst.0) {
                worst = (d, excess, Some(z));
            }
        }
        let (delay, excess, slowest) = worst;
        let slowest = slowest.filter(|_| delay > 0);
        for (n, limit) in self.limits.iter().enumerate() {
            if asked & 1 << n.min(63) != 0
                && let Some(z) = limit.zone.get()
                && !slowest.is_some_and(|slowest| Arc::ptr_eq(slowest, z))
            {
                z.zone.tally.count(LimitOutcome::Passed);
            }
        }
        let Some(z) = slowest else {
            r.set_shared(Status::Passed);
            return Next::Continue;
        };
        r.error(
            self.delay_log_level,
            format_args!(
                "delaying request{dry}, excess: {}.{:03}, by zone \"{}\"",
                excess / 1000,
                excess % 1000,
                z.name
            ),
        );
        if self.dry_run {
            z.zone.tally.count(LimitOutcome::DelayedDryRun);
            r.set_shared(Status::DelayedDryRun);
            return Next::Continue;
        }
        z.zone.tally.count(LimitOutcome::Delayed);
        r.set_shared(Status::Delayed);
        Next::Sleep(Duration::from_millis(delay))
    }

    /// Milliseconds to wait, where the excess is more than may pass at once.
    fn delay(&self, limit: &Limit, excess: u64) -> Option<u64> {
        let z = limit.zone.get()?;
        (excess > limit.delay).then(|| (excess - limit.delay).saturating_mul(1000) / z.rate)
    }

    fn refuse<'r>(&self, r: &mut Request, z: &ReqZone) -> Next<'r> {
        if self.dry_run {
            z.zone.tally.count(LimitOutcome::RejectedDryRun);
            r.set_shared(Status::RejectedDryRun);
            return Next::Continue;
        }
        z.zone.tally.count(LimitOutcome::Rejected);
        r.set_shared(Status::Rejected);
        Next::Status(self.status)
    }
}

impl ReqZone {
    /// Evaluates the key; `false` where the request is not counted.
    fn key_of(&self, r: &Request, key: &mut Vec<u8>) -> bool {
        key.clear();
        self.key.write(r, key);
        if key.len() > 65_535 {
            let (text, key) = (&self.key_text, crate::http::text::shown(key));
            r.error(
                LogLevel::Error,
                format_args!("the value of the \"{text}\" key is more than 65535 bytes: \"{key}\""),
            );
            return false;
        }
        !key.is_empty()
    }
}

const KIND: &str = "limit_req_zone";

fn limit_req_zone(s: &Statement, b: &mut Build) -> Result<()> {
    let key = b.template(s, 0)?;
    let key_text = String::from_utf8_lossy(s.arg(0)).into_owned();
    let mut spec = None;
    let mut rate = 1;
    let mut scale = 1;
    for i in 1..s.len() {
        let word = s.arg(i);
        if word.starts_with(b"zone=") {
            spec = Some(ZoneSpec::parse(s, i)?);
        } else if let Some(v) = word.strip_prefix(b"rate=") {
            let number = match (v.strip_suffix(b"r/s"), v.strip_suffix(b"r/m")) {
                (Some(n), _) => n,
                (_, Some(n)) => {
                    scale = 60;
                    n
                }
                _ => v,
            };
            let n = value::parse_number(number).filter(|n| *n > 0);
            rate = n.ok_or_else(|| {
                s.error_at(
                    i,
                    format!("invalid rate \"{}\"", String::from_utf8_lossy(word)),
                )
            })?;
        } else {
            return Err(s.invalid_parameter(i));
        }
    }
    let Some(ZoneSpec { name, size }) = spec.filter(|z| !z.name.is_empty()) else {
        return Err(s.error(format!("\"{KIND}\" must have \"zone\" parameter")));
    };
    let cell = zones::declare::<ReqZone>(b, s, KIND, &name, size)?;
    if let Some(z) = cell.get() {
        return Err(s.error(format!(
            "{KIND} \"{name}\" is already bound to key \"{}\"",
            z.key_text
        )));
    }
    let rate = (rate.saturating_mul(1000) / scale).max(1);
    let zone = zones::keep::<Zone>(
        KIND,
        &name,
        |old| old.size == size,
        || Zone::new(size, &key_text),
    );
    if zone.key_text != key_text {
        let old = &zone.key_text;
        return Err(Diag::plain(format!(
            "limit_req \"{name}\" uses the \"{key_text}\" key while previously it used the \"{old}\" key"
        )));
    }
    limit_stats::show(b, Limited::Requests, &name, &zone.tally);
    let _ = cell.set(Arc::new(ReqZone {
        name,
        key,
        key_text,
        rate,
        zone,
    }));
    Ok(())
}

fn limit_req(c: &mut LimitReqConf, s: &Statement, b: &mut Build) -> Result<()> {
    let mut zone = None;
    let (mut burst, mut delay) = (0, 0);
    for i in 0..s.len() {
        let word = s.arg(i);
        let shown = || String::from_utf8_lossy(word).into_owned();
        let positive = |v| value::parse_number(v).filter(|n| *n > 0 && *n < u64::from(u32::MAX));
        if let Some(name) = word.strip_prefix(b"zone=") {
            zone = Some(zones::reference::<ReqZone>(
                b,
                s,
                KIND,
                &String::from_utf8_lossy(name),
            )?);
        } else if let Some(v) = word.strip_prefix(b"burst=") {
            burst = positive(v)
                .ok_or_else(|| s.error_at(i, format!("invalid burst value \"{}\"", shown())))?;
        } else if let Some(v) = word.strip_prefix(b"delay=") {
            delay = positive(v)
                .ok_or_else(|| s.error_at(i, format!("invalid delay value \"{}\"", shown())))?;
        } else if word == b"nodelay" {
            delay = u64::MAX / 1000;
        } else {
            return Err(s.invalid_parameter(i));
        }
    }
    let Some(zone) = zone else {
        return Err(s.error("\"limit_req\" must have \"zone\" parameter"));
    };
    let limits = c.limits.get_or_insert_default();
    if limits.iter().any(|l| Arc::ptr_eq(&l.zone, &zone)) {
        return Err(s.duplicate());
    }
    limits.push(Limit {
        zone,
        burst: burst * 1000,
        delay: delay * 1000,
    });
    Ok(())
}
