//! A method of balancing: `last_first;` prefers the last server of a group that can serve.

use std::sync::Arc;

use couloir::prelude::*;

pub struct LastFirst;

impl Module for LastFirst {
    const NAME: &'static str = "last_first";
    type Conf = ();
    const DIRECTIVES: &'static [Directive<()>] = &[Directive::own(
        "last_first",
        Place::UPSTREAM,
        Args::None,
        "`last_first;` Asks the last server that can serve.",
        |_, s, b| {
            b.balance_by(s, BalanceMethod::new(Method));
            Ok(())
        },
    )];

    fn attach(_: &Arc<()>, _: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

struct Method;

impl Balance for Method {
    fn pick(&self, set: &PeerSet, r: &mut PickState, now: u64) -> Option<usize> {
        (0..set.peers.len()).rev().find(|i| set.claim(*i, r, now))
    }
}
