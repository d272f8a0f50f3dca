//! What a serving thread offers to everything that runs on it, whichever layer asks.
//!
//! The serving layer registers its thread once; the layers below it ask here, so that none of them imports it.

pub mod buffers;
pub mod handover;
pub mod panics;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The state of a serving thread that others see.
#[derive(Clone, Copy)]
pub struct ThreadState {
    /// Whether the process stops: connections take no further request.
    pub draining: &'static AtomicBool,
    /// Work that the process waits for before it stops: connections, and what [`detach`] runs.
    pub busy: &'static AtomicUsize,
}

thread_local! {
    static STATE: Cell<Option<ThreadState>> = const { Cell::new(None) };
}

/// Makes the calling thread a serving thread.
pub fn register(state: ThreadState) {
    STATE.with(|s| s.set(Some(state)));
}

/// Whether the process stops: connections take no further request.
pub fn draining() -> bool {
    STATE
        .with(Cell::get)
        .is_some_and(|s| s.draining.load(Ordering::Relaxed))
}

/// Runs something that no client waits for on this thread; the process does not stop before it has ended.
///
/// Outside of a serving thread nothing is run.
pub fn detach(work: impl Future<Output = ()> + Send + 'static) {
    struct Busy(&'static AtomicUsize);
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let Some(state) = STATE.with(Cell::get) else {
        return;
    };
    state.busy.fetch_add(1, Ordering::Relaxed);
    let busy = Busy(state.busy);
    tokio::spawn(async move {
        let _busy = busy;
        work.await;
    });
}
