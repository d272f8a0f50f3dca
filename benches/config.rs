//! Reading a configuration: 10,000 locations.

mod support;

use std::hint::black_box;
use std::sync::Arc;

use couloir::features::builtin;
use criterion::{Criterion, criterion_group, criterion_main};

fn load(c: &mut Criterion) {
    let registry = Arc::new(builtin());
    let mut group = c.benchmark_group("config load");
    group.sample_size(10);
    for count in [10, 10_000] {
        let text = support::locations(count);
        let runtime = support::runtime();
        let _inside = runtime.enter();
        group.bench_function(format!("{count} locations"), |b| {
            b.iter(|| black_box(support::site(&registry, &text)));
        });
    }
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
