//! The zones of `limit_req` and `limit_conn`, asked by one thread and by two at once: what a request costs must not
//! depend on how many threads ask. The time is a thread's own, so that a busy machine does not count; a thread that had
//! to wait for a lock would be among the waits that are told of.

use couloir::features::leaky_bucket::Zone;
use couloir::features::limit_conn::Counts;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Clients that take turns.
const CLIENTS: u64 = 10_000;

/// Calls, and how often a thread slept in them.
static CALLS: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicU64 = AtomicU64::new(0);

/// What this thread has had of a processor, and how often it slept.
fn used() -> (Duration, u64) {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    let time = nix::time::clock_gettime(clock).expect("a clock").into();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD);
    let waits = usage.expect("usage").voluntary_context_switches();
    (time, waits as u64)
}

/// How much time the slowest of so many threads uses for `iters` calls each.
fn together(threads: usize, iters: u64, call: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let run = |n: usize| {
            let (barrier, call) = (&barrier, &call);
            scope.spawn(move || {
                barrier.wait();
                let began = used();
                for i in 0..iters {
                    call(i.wrapping_mul(7919).wrapping_add(n as u64 * 31));
                }
                let ended = used();
                CALLS.fetch_add(iters, Ordering::Relaxed);
                WAITS.fetch_add(ended.1 - began.1, Ordering::Relaxed);
                ended.0 - began.0
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
        let before = [&CALLS, &WAITS].map(|n| n.load(Ordering::Relaxed));
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
        let after = [&CALLS, &WAITS].map(|n| n.load(Ordering::Relaxed));
        println!(
            "{threads} threads: {} waits in {} calls",
            after[1] - before[1],
            after[0] - before[0]
        );
    }
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
