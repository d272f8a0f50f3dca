//! Panics of hooks: one of them ends its request, and the log names the hook and what it said.
//!
//! A hook is called through [`named`], which costs nothing unless it panics: its name is made while the stack unwinds.
//! Whoever serves a request catches the panic with [`caught`] or [`catch`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

thread_local! {
    /// Whether a panic of this thread is caught and logged with its request.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
    /// The hook that the present panic began in, the innermost one.
    static HOOK: RefCell<Option<HookName>> = const { RefCell::new(None) };
    /// Where in the source the present panic began.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A hook in the text of an error.
pub struct HookName {
    /// What kind of hook it is and whose: `handler of module "limit"`.
    pub text: String,
    /// Identifies the hook among those of its kind; 0 where nobody needs that.
    pub id: usize,
}

/// A panic that was caught.
pub struct Caught {
    hook: Option<HookName>,
    message: String,
    place: String,
}

impl Caught {
    fn new(payload: &(dyn Any + Send)) -> Caught {
        let message = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Caught {
            hook: HOOK.take(),
            message: message.unwrap_or_else(|| "no message".to_owned()),
            place: PLACE.take(),
        }
    }

    /// [`HookName::id`] of the hook that panicked; 0 where no hook did.
    pub fn id(&self) -> usize {
        self.hook.as_ref().map_or(0, |h| h.id)
    }
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = self.hook.as_ref().map_or("request", |h| &h.text);
        // the line of the log is one line
        let message = self.message.replace(['\r', '\n'], " ");
        write!(f, "{hook} panicked: {message}")?;
        if !self.place.is_empty() {
            write!(f, " at {}", self.place)?;
        }
        Ok(())
    }
}

/// Lets panics that are caught here be logged by who catches them alone; all others are reported by `otherwise`.
pub fn install(otherwise: impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |info| {
        HOOK.set(None);
        if CAUGHT.get() {
            PLACE.set(info.location().map(ToString::to_string).unwrap_or_default());
        } else {
            otherwise(info);
        }
    }));
}

/// Calls a hook, whose name is made only where it panics.
#[inline]
pub fn named<T>(name: impl Fn() -> HookName, call: impl FnOnce() -> T) -> T {
    struct OnPanic<F: Fn() -> HookName>(F);
    impl<F: Fn() -> HookName> Drop for OnPanic<F> {
        #[cold]
        fn drop(&mut self) {
            if std::thread::panicking() {
                HOOK.with_borrow_mut(|hook| {
                    hook.get_or_insert_with(&self.0);
                });
            }
        }
    }
    let on_panic = OnPanic(name);
    let result = call();
    std::mem::forget(on_panic);
    result
}

/// Calls something that may panic.
///
/// # Errors
/// The panic.
pub fn catch<T>(call: impl FnOnce() -> T) -> Result<T, Caught> {
    let before = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    CAUGHT.set(before);
    result.map_err(|payload| Caught::new(&*payload))
}

/// Waits for a future that may panic; it must not be polled again then.
pub fn caught<F: Future + Unpin>(future: F) -> impl Future<Output = Result<F::Output, Caught>> {
    Catching(future)
}

struct Catching<F>(F);

impl<F: Future + Unpin> Future for Catching<F> {
    type Output = Result<F::Output, Caught>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch(|| Pin::new(&mut self.0).poll(cx)) {
            Ok(poll) => poll.map(Ok),
            Err(caught) => Poll::Ready(Err(caught)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HookName {
        HookName {
            text: text.to_owned(),
            id: 7,
        }
    }

    #[test]
    fn the_innermost_hook_is_named() {
        let before = std::panic::take_hook();
        install(move |info| before(info));
        let caught = catch(|| {
            named(
                || name("outer"),
                || {
                    named(|| name("before"), || ());
                    named(|| name("inner"), || panic!("no\nmore {}", 1))
                },
            )
        });
        let caught = caught.expect_err("a panic");
        assert_eq!(caught.id(), 7);
        let text = caught.to_string();
        assert!(text.starts_with("inner panicked: no"), "{text}");
        assert!(
            text.contains("panics.rs:") && !text.contains('\n'),
            "{text}"
        );
        // the next one begins anew
        let text = catch(|| panic!("again")).expect_err("a panic").to_string();
        assert!(text.starts_with("request panicked: again at "), "{text}");
    }
}
