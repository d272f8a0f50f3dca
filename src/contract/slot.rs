//! Per-request state of a module.

use std::marker::PhantomData;

/// Names a place in every request where a module keeps a `T` of its own.
///
/// Taken once while the configuration is read ([`super::Build::slot`]) and kept in the module's settings.
pub struct Slot<T>(pub(crate) u16, PhantomData<fn() -> T>);

impl<T> Slot<T> {
    pub(crate) fn new(index: u16) -> Self {
        Slot(index, PhantomData)
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}
