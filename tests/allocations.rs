//! The hot path allocates nothing of ours: what the serving thread allocates for a plain request is Pingora's.

#[path = "../benches/support/mod.rs"]
mod support;

use support::counting::{self, Counting};
use support::server::{Client, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 20;

#[test]
fn plain_requests() {
    for body in [
        "return 200 'hello, world';",
        "proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';",
    ] {
        let mut client = Client::connect(start(body));
        for _ in 0..200 {
            client.ask(b"hello, world");
        }
        counting::trace(true);
        for _ in 0..ROUNDS {
            client.ask(b"hello, world");
        }
        counting::trace(false);
        let callers = counting::callers();
        for (caller, times) in &callers {
            println!("{:6.2} {caller}", *times as f64 / ROUNDS as f64);
        }
        let ours: Vec<_> = callers.iter().filter(|(caller, _)| !caller.starts_with("pingora-")).collect();
        assert!(ours.is_empty(), "{body}: {ours:#?}");
    }
}
