//! An allocator that counts what one thread allocates, and tells where.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The system's allocator, with a count.
pub struct Counting;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static TRACING: AtomicBool = AtomicBool::new(false);
static TRACES: Mutex<Vec<Backtrace>> = Mutex::new(Vec::new());

/// From here on this thread's allocations are counted.
pub fn count_this_thread() {
    COUNTED.with(|c| c.set(true));
}

/// Allocations so far.
pub fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

/// Begins or ends to keep a backtrace of every allocation.
pub fn trace(on: bool) {
    TRACING.store(on, Ordering::SeqCst);
}

/// Who allocated while [`trace`] was on, and how often: the innermost line of Couloir or of Pingora.
pub fn callers() -> BTreeMap<String, usize> {
    let traces = std::mem::take(&mut *TRACES.lock().expect("traces"));
    let mut callers = BTreeMap::new();
    for trace in traces {
        *callers.entry(caller(&trace.to_string())).or_default() += 1;
    }
    callers
}

/// `src/FILE:LINE` of Couloir, or the file of Pingora.
fn caller(trace: &str) -> String {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
    let place = |line: &str| {
        let at = line.trim().strip_prefix("at ")?;
        let file = at.rsplit_once(':').map_or(at, |(file, _column)| file);
        if let Some(rest) = file
            .strip_prefix("./src/")
            .or_else(|| file.strip_prefix(own))
        {
            return Some(format!("src/{rest}"));
        }
        file.find("/pingora-").map(|at| file[at + 1..].to_owned())
    };
    trace
        .lines()
        .find_map(place)
        .unwrap_or_else(|| trace.to_owned())
}

fn note() {
    // a thread that ends has no flag any more
    if COUNTED.try_with(Cell::get) != Ok(true) {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    if TRACING.load(Ordering::Relaxed) {
        // what a backtrace allocates does not count
        COUNTED.with(|c| c.set(false));
        if let Ok(mut traces) = TRACES.lock() {
            traces.push(Backtrace::force_capture());
        }
        COUNTED.with(|c| c.set(true));
    }
}

// SAFETY: every call goes to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        unsafe { System.realloc(ptr, layout, size) }
    }
}
