//! The path of a request over loopback, one at a time, and what the serving thread allocates on it.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use support::counting::{self, Counting};
use support::server::{Client, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn request(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for (what, body, end) in [
        ("return", "return 200 'hello, world';", &b"hello, world"[..]),
        (
            "proxied",
            "proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';",
            b"hello, world",
        ),
    ] {
        let mut client = Client::connect(start(body));
        for _ in 0..100 {
            client.ask(end);
        }
        let before = counting::count();
        for _ in 0..1000 {
            client.ask(end);
        }
        println!(
            "{what}: {:.2} allocations per request, Pingora's included",
            (counting::count() - before) as f64 / 1000.0
        );
        group.bench_function(what, |b| b.iter(|| client.ask(end)));
    }
    group.finish();
}

criterion_group!(benches, request);
criterion_main!(benches);
