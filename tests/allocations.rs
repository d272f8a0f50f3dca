//! The hot path allocates nothing: a plain request on a connection that is in use takes no memory.

#[path = "../benches/support/mod.rs"]
mod support;

use couloir::upstream::AttemptVerdict;
use support::counting::{self, Counting};
use support::server::{Client, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 20;

/// Lines that allocate for a request to `location / { body }`, and how often in [`ROUNDS`] requests.
///
/// The best of three: a pause of the client, or a look for idle connections, may fall between.
fn callers(body: &str) -> Vec<(String, usize)> {
    let mut client = Client::connect(start(body));
    for _ in 0..200 {
        client.ask(b"hello, world");
    }
    let mut measure = || {
        counting::trace(true);
        for _ in 0..ROUNDS {
            client.ask(b"hello, world");
        }
        counting::trace(false);
        counting::callers()
    };
    let best = (0..3).map(|_| measure()).min_by_key(|c| c.len());
    best.into_iter().flatten().collect()
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
                for outcome in [AttemptVerdict::Next, AttemptVerdict::Ok] {
                    let picked = group.pick(&mut state).expect("a peer");
                    picked.done(outcome, &mut state);
                }
            }
            assert_eq!(counting::count() - before, 0, "{name} of {count}");
        }
    }
}

fn plain_requests() {
    let proxied = callers(
        "proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';",
    );
    assert!(proxied.is_empty(), "{proxied:#?}");
    // the future that sends a whole body is boxed: it is large, and a proxied request has no use for it
    let local = callers("return 200 'hello, world';");
    assert!(
        local.len() <= 1
            && local
                .iter()
                .all(|(caller, n)| caller.starts_with("src/engine/phases.rs:") && *n <= ROUNDS),
        "{local:#?}"
    );
}
