//! What forwards save, used again once their graph is gone.
use batchnorm::{Memory, Real, Saved};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A layer's [`Saved`]s that no graph holds.
pub(crate) struct Pool<M: Memory, P: Real>(Mutex<Vec<Saved<M, P>>>);

impl<M: Memory, P: Real> Default for Pool<M, P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<M: Memory, P: Real> Pool<M, P> {
    pub fn take(self: &Arc<Self>) -> Lease<M, P> {
        let saved = locked(&self.0).pop().unwrap_or_default();
        Lease { saved: Mutex::new(saved), pool: self.clone() }
    }
}

/// One of them, in the hands of an operation of a graph: given back with it.
pub(crate) struct Lease<M: Memory, P: Real> {
    saved: Mutex<Saved<M, P>>,
    pool: Arc<Pool<M, P>>,
}

impl<M: Memory, P: Real> Lease<M, P> {
    pub fn lock(&self) -> MutexGuard<'_, Saved<M, P>> {
        locked(&self.saved)
    }
}

impl<M: Memory, P: Real> Drop for Lease<M, P> {
    fn drop(&mut self) {
        let saved = std::mem::take(&mut *locked(&self.saved));
        locked(&self.pool.0).push(saved);
    }
}

/// A thread that panicked left what it held as whole as any other.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
