//! What `limit_req` and `limit_conn` have in common: how a refusal is logged, answered, or only counted.

use crate::config::{Result, Statement};
use crate::contract::once;
use crate::log::Level;

/// `limit_…_log_level`, `limit_…_status` and `limit_…_dry_run` of a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refusal {
    log_level: Option<Level>,
    status: Option<u16>,
    dry_run: Option<bool>,
}

impl Refusal {
    /// Takes over what the block does not say.
    pub fn inherit(&mut self, outer: &Refusal) {
        crate::inherit!(self, outer; log_level, status, dry_run);
    }

    /// The level that refusals are logged at.
    pub fn log_level(&self) -> Level {
        self.log_level.unwrap_or(Level::Error)
    }

    /// The status that they are answered with.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or(503)
    }

    /// Whether nothing is refused.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run.unwrap_or(false)
    }

    /// `…_log_level`.
    pub fn set_log_level(&mut self, s: &Statement) -> Result<()> {
        let levels = [
            ("info", Level::Info),
            ("notice", Level::Notice),
            ("warn", Level::Warn),
            ("error", Level::Error),
        ];
        once(&mut self.log_level, s, s.one_of(0, &levels)?)
    }

    /// `…_status`.
    pub fn set_status(&mut self, s: &Statement) -> Result<()> {
        once(&mut self.status, s, bounded_status(s)?)
    }

    /// `…_dry_run`.
    pub fn set_dry_run(&mut self, s: &Statement) -> Result<()> {
        once(&mut self.dry_run, s, s.flag(0)?)
    }
}

/// A status from 400 to 599.
fn bounded_status(s: &Statement) -> Result<u16> {
    match s.number(0)? {
        n @ 400..=599 => Ok(n as u16),
        _ => Err(s.error_at(0, "value must be between 400 and 599")),
    }
}
