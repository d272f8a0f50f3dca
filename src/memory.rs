//! Memory: that of configurations is gathered apart from what serves, and given back to the system when nobody needs it;
//! OpenSSL shares the allocator.

use libc::{c_char, c_int, c_void};
use libmimalloc_sys as mi;
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// Does work whose leavings are to be told from all other memory: in a thread of its own.
///
/// The allocator serves each thread from pages of its own, so that what the work allocates fills whole pages, which
/// are free as a whole once it has been dropped.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = Mutex::new(Some(work));
    let run = || {
        let work = work.lock().take();
        work.map(|work| work())
    };
    let outcome = thread::scope(|scope| {
        let loader = thread::Builder::new()
            .name("loader".to_owned())
            .stack_size(STACK);
        let begun = loader.spawn_scoped(scope, || {
            let done = run();
            collect();
            done
        });
        match begun.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => None,
        }
    });
    match outcome.or_else(run) {
        Some(value) => value,
        #[allow(clippy::unreachable)]
        None => unreachable!("the work is done there or here"),
    }
}

/// Room for configurations that nest as deeply as they may.
const STACK: usize = 32 << 20;

/// Frees what nobody else holds any more, as soon as that is so, in a thread of its own: a configuration of thousands
/// of locations would hold up whoever freed it.
pub fn retire(value: Arc<dyn Any + Send + Sync>) {
    static RETIRED: OnceLock<Arc<Retired>> = OnceLock::new();
    let retired = RETIRED.get_or_init(|| {
        let retired = Arc::new(Retired::default());
        let kept = retired.clone();
        let begun = thread::Builder::new()
            .name("retire".to_owned())
            .spawn(move || kept.watch());
        // without a thread whoever is last frees it
        retired.list.lock().1 = begun.is_ok();
        retired
    });
    let mut list = retired.list.lock();
    if list.1 {
        list.0.push(value);
        retired.more.notify_one();
    }
}

/// What waits to be freed.
#[derive(Default)]
struct Retired {
    /// The values, and whether the thread runs.
    list: Mutex<(Vec<Arc<dyn Any + Send + Sync>>, bool)>,
    more: Condvar,
}

impl Retired {
    fn watch(&self) {
        loop {
            let mut list = self.list.lock();
            if list.0.is_empty() {
                self.more.wait(&mut list);
            }
            let (free, held) = std::mem::take(&mut list.0)
                .into_iter()
                .partition::<Vec<_>, _>(|value| Arc::strong_count(value) == 1);
            list.0 = held;
            drop(list);
            if !free.is_empty() {
                drop(free);
                collect();
            }
            // so often is looked whether the last request has ended
            thread::sleep(PAUSE);
        }
    }
}

const PAUSE: Duration = Duration::from_millis(200);

/// Has the system give memory in pages of the usual size, to this process and to those it becomes.
///
/// The allocator asks for huge ones, each of which is 2 MiB however little of it is used: a worker would start with
/// twice as much memory as it needs, and a master with thrice as much.
pub fn forgo_huge_pages() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Returns the calling thread's free memory to the system, that of the C library included, which holds what OpenSSL
/// keeps for a connection.
#[allow(unsafe_code)]
pub fn give_back() {
    collect();
    // SAFETY: no preconditions
    unsafe { libc::malloc_trim(0) };
}

/// Returns free memory to the system.
#[allow(unsafe_code)]
fn collect() {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: it has no preconditions and takes no memory of ours; without blocks of mimalloc's it does nothing
    unsafe { mi_collect(true) }
}

/// Has OpenSSL take its memory from mimalloc: a handshake makes hundreds of small objects, and connections that wait
/// fill pages together with the rest of what they hold. Only before OpenSSL's first allocation; later it does nothing.
#[allow(unsafe_code)]
pub fn serve_openssl() {
    unsafe extern "C" {
        fn CRYPTO_set_mem_functions(malloc: Malloc, realloc: Realloc, free: Free) -> c_int;
        fn mi_is_in_heap_region(p: *const c_void) -> bool;
    }
    type Malloc = unsafe extern "C" fn(usize, *const c_char, c_int) -> *mut c_void;
    type Realloc = unsafe extern "C" fn(*mut c_void, usize, *const c_char, c_int) -> *mut c_void;
    type Free = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);
    /// What a connection is to OpenSSL: three objects of such sizes, of which mimalloc's classes would waste a fifth
    /// for as long as the connection waits. They come from the C library.
    const LONG_LIVED: std::ops::Range<usize> = 4097..8192;
    unsafe extern "C" fn malloc(size: usize, _: *const c_char, _: c_int) -> *mut c_void {
        // SAFETY: no preconditions
        unsafe {
            match size {
                0 => ptr::null_mut(),
                n if LONG_LIVED.contains(&n) => libc::malloc(n),
                n => mi::mi_malloc(n),
            }
        }
    }
    unsafe extern "C" fn realloc(
        p: *mut c_void,
        size: usize,
        file: *const c_char,
        line: c_int,
    ) -> *mut c_void {
        // SAFETY: OpenSSL hands back what it got here, or null; a size of 0 frees, as in OpenSSL's own
        unsafe {
            if p.is_null() {
                return malloc(size, file, line);
            }
            if size == 0 {
                free(p, file, line);
                return ptr::null_mut();
            }
            if mi_is_in_heap_region(p) {
                mi::mi_realloc(p, size)
            } else {
                libc::realloc(p, size)
            }
        }
    }
    unsafe extern "C" fn free(p: *mut c_void, _: *const c_char, _: c_int) {
        // SAFETY: OpenSSL hands back what it got here, or null; who gave it is known by the address
        unsafe {
            if p.is_null() || mi_is_in_heap_region(p) {
                mi::mi_free(p);
            } else {
                libc::free(p);
            }
        }
    }
    // SAFETY: the functions have the types and the meaning that OpenSSL asks for, and live for ever
    unsafe { CRYPTO_set_mem_functions(malloc, realloc, free) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn work_apart_gives_its_value_and_its_panic() {
        let text = String::from("text");
        assert_eq!(apart(|| text.len()), 4);
        let panic = std::panic::catch_unwind(|| apart(|| std::panic::panic_any(7)));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&7));
    }

    #[test]
    fn what_is_held_is_kept() {
        struct Told(mpsc::Sender<thread::ThreadId>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        let (tell, told) = mpsc::channel();
        let value = Arc::new(Told(tell));
        retire(value.clone());
        assert!(told.recv_timeout(PAUSE * 2).is_err());
        drop(value);
        let by = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_ne!(by, thread::current().id());
    }
}
