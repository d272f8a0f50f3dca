//! The zones of `limit_req` and `limit_conn`, asked by one thread and by two at once: what a request costs must not
//! depend on how many threads ask.

use couloir::modules::leaky::Zone;
use couloir::modules::limit_conn::Counts;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Clients that take turns.
const CLIENTS: u64 = 10_000;

/// How long the slowest of so many threads takes for `iters` calls each.
fn together(threads: usize, iters: u64, call: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let run = |n: usize| {
            let (barrier, call) = (&barrier, &call);
            scope.spawn(move || {
                barrier.wait();
                let began = Instant::now();
                for i in 0..iters {
                    call(i.wrapping_mul(7919).wrapping_add(n as u64 * 31));
                }
                began.elapsed()
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        let times = running.into_iter().map(|t| t.join().expect("a thread"));
        times.max().unwrap_or_default()
    })
}

fn limits(c: &mut Criterion) {
    let key = |n: u64| ((n % CLIENTS) as u32).to_be_bytes();
    let requests = Zone::new(10 << 20, "$binary_remote_addr");
    let connections = Counts::new(10 << 20, "$binary_remote_addr".into());
    let mut group = c.benchmark_group("limits");
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("limit_req", threads), |b| {
            b.iter_custom(|iters| {
                together(threads, iters, |n| {
                    black_box(requests.look(&key(n), 1_000_000, 1_000_000, n, true));
                })
            });
        });
        group.bench_function(BenchmarkId::new("limit_conn", threads), |b| {
            b.iter_custom(|iters| {
                together(threads, iters, |n| {
                    black_box(connections.enter(&key(n), 100));
                    connections.leave(&key(n));
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
