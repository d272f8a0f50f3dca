//! How a directive of `upstream {}` chooses the method of balancing.

use super::{BlockId, Build, Statement, Template};
use crate::upstream::Balance;
use std::collections::HashMap;
use std::sync::Arc;

/// A method of balancing, as a directive chooses it.
///
/// ```
/// use couloir::prelude::*;
///
/// struct LastFirst;
///
/// impl Balance for LastFirst {
///     fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
///         (0..set.peers.len()).rev().find(|i| set.claim(*i, r, now))
///     }
/// }
///
/// const DIRECTIVES: &[Directive<()>] = &[Directive::own(
///     "last_first",
///     Place::UPSTREAM,
///     Args::None,
///     "`last_first;` Asks the last server that can serve.",
///     |_, s, b| {
///         b.balance_by(s, BalanceMethod::new(LastFirst));
///         Ok(())
///     },
/// )];
/// ```
#[derive(Clone)]
pub struct BalanceMethod {
    /// Picks the peer.
    pub balance: Arc<dyn Balance>,
    /// What of a request it hashes; [`crate::upstream::PickState`] has the hash.
    pub key: Option<BalanceKey>,
    /// Parameters of `server` that it does not support.
    pub unsupported: Unsupported,
}

/// What of a request is hashed.
#[derive(Clone)]
pub enum BalanceKey {
    /// A text with variables (`hash key`).
    Text(Template),
    /// The client's network (`ip_hash`).
    Network,
}

/// Parameters of `server` that a method does not support: they are refused where they stand behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsupported {
    /// `backup`.
    pub backup: bool,
    /// `slow_start=`.
    pub slow_start: bool,
}

impl BalanceMethod {
    /// A method that looks at the peers only, and supports every parameter of `server`.
    pub fn new(balance: impl Balance) -> BalanceMethod {
        BalanceMethod {
            balance: Arc::new(balance),
            key: None,
            unsupported: Unsupported::default(),
        }
    }
}

/// The methods of all groups while the configuration is read.
#[derive(Default)]
struct Methods(HashMap<BlockId, BalanceMethod>);

impl Build {
    /// Balances the group whose `upstream {}` is being read by `method`; a second one replaces the first, with a warning.
    pub fn balance_by(&mut self, s: &Statement, method: BalanceMethod) {
        let block = self.block();
        let before = self.shared::<Methods>().0.insert(block, method);
        if before.is_some() {
            self.warn(s.warn("load balancing method redefined"));
        }
    }

    /// The method that has been chosen in a block so far.
    pub fn balance_method(&mut self, block: BlockId) -> Option<&BalanceMethod> {
        self.shared::<Methods>().0.get(&block)
    }
}
