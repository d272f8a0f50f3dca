//! Choosing a peer out of 10, 1,000 and 10,000, by every method of balancing.

mod support;

use couloir::upstream::AttemptVerdict;
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use support::peers::{group, methods};

fn pick(c: &mut Criterion) {
    let mut bench = c.benchmark_group("pick a peer");
    for count in [10, 1_000, 10_000] {
        for (name, balance) in methods() {
            let group = group(count, balance);
            let mut n = 0u32;
            bench.bench_function(format!("{name} of {count}"), |b| {
                b.iter(|| {
                    n = n.wrapping_add(1);
                    let mut state = group.start();
                    state.key.extend_from_slice(&n.to_le_bytes());
                    if let Some(picked) = black_box(group.pick(&mut state)) {
                        picked.done(AttemptVerdict::Ok, &mut state);
                    }
                });
            });
        }
    }
    bench.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);
