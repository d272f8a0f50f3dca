//! `retry_budget`, Couloir's own: retries are a share of the requests, so that a failing group is not stormed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many requests may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetConf {
    /// Retries for a hundred requests.
    pub percent: u32,
    /// Retries a second that are free in any case.
    pub min: u32,
}

/// Thousandths of a retry.
const RETRY: u64 = 1000;
/// For so many seconds what was not used is kept.
const MEMORY: u64 = 10;

/// The account of a group: requests pay in, retries draw.
#[derive(Debug)]
pub struct RetryBudget {
    conf: BudgetConf,
    /// Thousandths of a retry that requests have paid in.
    balance: AtomicU64,
    /// The second in the upper half, the free retries drawn in it in the lower one.
    free: AtomicU64,
}

impl RetryBudget {
    /// An account with nothing in it but the free retries.
    pub fn new(conf: BudgetConf) -> Self {
        Self {
            conf,
            balance: AtomicU64::new(0),
            free: AtomicU64::new(0),
        }
    }

    /// A request came in.
    pub fn deposit(&self) {
        let share = u64::from(self.conf.percent) * RETRY / 100;
        let most = (u64::from(self.conf.min) * MEMORY * RETRY).max(100 * RETRY);
        let add = |n: u64| (n < most).then(|| (n + share).min(most));
        let _ = self.balance.fetch_update(Relaxed, Relaxed, add);
    }

    /// Whether a request may be tried again; `now` in seconds.
    pub fn draw(&self, now: u64) -> bool {
        let second = now & u64::from(u32::MAX);
        let free = |word: u64| {
            let used = if word >> 32 == second {
                word & 0xffff_ffff
            } else {
                0
            };
            (used < u64::from(self.conf.min)).then_some((second << 32) | (used + 1))
        };
        if self.free.fetch_update(Relaxed, Relaxed, free).is_ok() {
            return true;
        }
        let take = |n: u64| n.checked_sub(RETRY);
        self.balance.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests() {
        let budget = RetryBudget::new(BudgetConf {
            percent: 20,
            min: 0,
        });
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit();
            retries += u32::from(budget.draw(1));
        }
        assert_eq!(retries, 200);
    }

    #[test]
    fn a_few_are_free_each_second() {
        let budget = RetryBudget::new(BudgetConf { percent: 0, min: 3 });
        for second in [7, 8] {
            let drawn: Vec<bool> = (0..5).map(|_| budget.draw(second)).collect();
            assert_eq!(drawn, [true, true, true, false, false]);
        }
    }

    #[test]
    fn savings_have_a_limit() {
        let budget = RetryBudget::new(BudgetConf {
            percent: 100,
            min: 0,
        });
        for _ in 0..100_000 {
            budget.deposit();
        }
        assert_eq!((0..1000).filter(|_| budget.draw(1)).count(), 100);
    }
}
