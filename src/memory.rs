//! Memory of configurations: gathered apart from what serves, and given back to the system when nobody needs it.

use libmimalloc_sys as _;
use parking_lot::{Condvar, Mutex};
use std::any::Any;
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

/// Returns free memory to the system.
#[allow(unsafe_code)]
fn collect() {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: it has no preconditions and takes no memory of ours; without blocks of mimalloc's it does nothing
    unsafe { mi_collect(true) }
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
