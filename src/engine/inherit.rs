//! What the blocks inside take over from those around them.

use crate::contract::*;
use std::sync::Arc;

/// Effective settings of every block: outer blocks come before inner ones in the list.
pub(super) fn all(b: &mut Build) {
    let registry = b.registry.clone();
    // modules whose settings inner blocks do not simply share
    let own: Vec<usize> = registry
        .modules()
        .enumerate()
        .filter(|(_, module)| !module.inherited())
        .map(|(m, _)| m)
        .collect();
    let none: Arc<[Option<Arc<AnyConf>>]> = vec![None; registry.len()].into();
    for i in 0..b.blocks.len() {
        let Some(block) = b.blocks.get_mut(i) else {
            continue;
        };
        let parent = block.parent.map(|p| p.0 as usize);
        let mut written = std::mem::take(&mut block.written);
        let outer = parent
            .and_then(|p| b.blocks.get(p))
            .map_or_else(|| none.clone(), |p| p.effective.clone());
        let says = |m: usize| written.iter().any(|(n, _)| *n == m);
        let silent = own
            .iter()
            .copied()
            .filter(|m| !says(*m) && outer.get(*m).is_some_and(Option::is_some))
            .filter_map(|m| Some((m, registry.module(m)?.new_conf())))
            .collect::<Vec<_>>();
        written.extend(silent);
        let mut effective = outer.clone();
        if !written.is_empty() {
            // its own from here on
            let list = Arc::make_mut(&mut effective);
            for (m, mut conf) in written {
                let (Some(module), Some(slot)) = (registry.module(m), list.get_mut(m)) else {
                    continue;
                };
                match slot.take() {
                    Some(o) => module.inherit(&mut *conf, &*o),
                    None => module.inherit(&mut *conf, &*module.new_conf()),
                }
                *slot = Some(Arc::from(conf));
            }
        }
        if let Some(block) = b.blocks.get_mut(i) {
            block.effective = effective;
        }
    }
}

const STREAM: Place = Place::STREAM
    .or(Place::STREAM_SERVER)
    .or(Place::STREAM_UPSTREAM);

impl Prints {
    pub(super) fn of(b: &Build) -> Prints {
        let print = |is: fn(&BlockKind) -> bool| {
            let found = b.blocks.iter().find(|x| is(&x.kind));
            found.map_or(0, |x| x.print)
        };
        Prints {
            main: print(|k| matches!(k, BlockKind::Main)),
            events: print(|k| matches!(k, BlockKind::Events)),
            http: print(|k| matches!(k, BlockKind::Http)),
            stream: b
                .blocks
                .iter()
                .filter(|x| STREAM.allows(x.place))
                .fold(0, |all: u64, x| all.rotate_left(5) ^ x.print),
            upstreams: b
                .blocks
                .iter()
                .filter_map(|x| match &x.kind {
                    BlockKind::Upstream(name) if x.place == Place::UPSTREAM => {
                        Some((name.as_str().into(), x.print))
                    }
                    _ => None,
                })
                .collect(),
        }
    }
}
