//! The hot path allocates nothing of ours: what the serving thread allocates for a plain request is Pingora's.

#[path = "../benches/support/mod.rs"]
mod support;

use couloir::upstream::Outcome;
use support::counting::{self, Counting};
use support::server::{Client, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 20;

/// What Pingora's interface asks of us for every request: a boxed stream, and a boxed future of its trait's method.
const INTERFACE: [&str; 2] = ["src/serve/front.rs:", "src/serve/proxy.rs:"];

/// Lines of ours that allocate for a request to `location / { body }`, and how often in [`ROUNDS`] requests.
fn ours(body: &str) -> Vec<(String, usize)> {
    let mut client = Client::connect(start(body));
    for _ in 0..200 {
        client.ask(b"hello, world");
    }
    counting::trace(true);
    for _ in 0..ROUNDS {
        client.ask(b"hello, world");
    }
    counting::trace(false);
    let mut callers = counting::callers();
    for (caller, times) in &callers {
        println!("{:6.2} {caller}", *times as f64 / ROUNDS as f64);
    }
    // what is rarer is not of every request: a kept connection that was swept makes room for the next one
    callers.retain(|caller, n| !caller.starts_with("pingora-") && *n > ROUNDS / 10);
    for known in INTERFACE {
        let times: usize = callers
            .iter()
            .filter(|(caller, _)| caller.starts_with(known))
            .map(|(_, n)| n)
            .sum();
        assert!(times <= ROUNDS, "{body}: {known} {times}");
        callers.retain(|caller, _| !caller.starts_with(known));
    }
    callers.into_iter().collect()
}

// one test: the counts are the process's
#[test]
fn the_hot_path_allocates_nothing() {
    // first, while there is no serving thread whose allocations would be counted too
    picking();
    plain_requests();
}

/// A peer out of ten, a thousand and ten thousand, by every method, tried again once.
fn picking() {
    counting::count_this_thread();
    for count in [10, 1_000, 10_000] {
        for (name, balance) in support::peers::methods() {
            if balance.wants_ring() && count > 1_000 {
                // millions of points take an unoptimised build too long to sort
                continue;
            }
            let group = support::peers::group(count, balance);
            let before = counting::count();
            for n in 0u32..20 {
                let mut state = group.start();
                state.key.extend_from_slice(&n.to_le_bytes());
                for outcome in [Outcome::Next, Outcome::Ok] {
                    let picked = group.pick(&mut state).expect("a peer");
                    picked.done(outcome, &mut state);
                }
            }
            assert_eq!(counting::count() - before, 0, "{name} of {count}");
        }
    }
}

fn plain_requests() {
    let proxied =
        ours("proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';");
    assert!(proxied.is_empty(), "{proxied:#?}");
    // the future that sends a whole body is boxed: it is large, and a proxied request has no use for it
    let local = ours("return 200 'hello, world';");
    assert!(
        local.len() <= 1
            && local
                .iter()
                .all(|(caller, n)| caller.starts_with("src/engine/phases.rs:") && *n <= ROUNDS),
        "{local:#?}"
    );
}
