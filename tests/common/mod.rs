//! What the integration tests share: servers under test, scripted origins and a raw client.
//!
//! Nothing here knows how Couloir is built; a test gives a configuration text and talks bytes.
// every test program compiles this folder and uses its own part of it
#![allow(dead_code)]

pub mod client;
pub mod dns;
pub mod nginx;
pub mod origin;
pub mod ports;
pub mod proc;
pub mod tls;

use std::time::{Duration, Instant};

/// How long anything in a test may take before it counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Polls until `ready` gives a value; `None` when `limit` has passed.
pub fn wait_for<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
