//! What forwards save, used again once their graph is gone.
use batchnorm::{Host, Real, Saved};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A layer's [`Saved`]s that no graph holds, for parameters of this type.
pub(crate) struct Pool<P: Real>(Mutex<Vec<Saved<Host, P>>>);

impl<P: Real> Default for Pool<P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// What a layer keeps to use again. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Pools {
    single: Arc<Pool<f32>>,
    double: Arc<Pool<f64>>,
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pools")
    }
}

/// A type of parameters, which says which of the pools is its own.
pub(crate) trait Pooled: Real {
    fn pool(pools: &Pools) -> &Arc<Pool<Self>>;
}
impl Pooled for f32 {
    fn pool(pools: &Pools) -> &Arc<Pool<f32>> {
        &pools.single
    }
}
impl Pooled for f64 {
    fn pool(pools: &Pools) -> &Arc<Pool<f64>> {
        &pools.double
    }
}

/// One of them, in the hands of an operation of a graph: given back with it.
pub(crate) struct Lease<P: Real> {
    saved: Mutex<Saved<Host, P>>,
    pool: Arc<Pool<P>>,
}

impl<P: Pooled> Lease<P> {
    pub fn of(pools: &Pools) -> Self {
        let pool = P::pool(pools).clone();
        let saved = locked(&pool.0).pop().unwrap_or_default();
        Self { saved: Mutex::new(saved), pool }
    }
    pub fn lock(&self) -> MutexGuard<'_, Saved<Host, P>> {
        locked(&self.saved)
    }
}

impl<P: Real> Drop for Lease<P> {
    fn drop(&mut self) {
        let saved = std::mem::take(&mut *locked(&self.saved));
        locked(&self.pool.0).push(saved);
    }
}

impl<P: Real> std::fmt::Debug for Lease<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lease")
    }
}

/// A thread that panicked left what it held as whole as any other.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
