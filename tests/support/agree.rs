//! What an engine says beforehand, beside what its call does.
use batchnorm::{Engine, Error, Request, Result, Shape};
use std::cell::Cell;

thread_local! {
    /// Whether calls are made alone, for tests that count the calls of a library.
    static ASKS_NOTHING: Cell<bool> = const { Cell::new(false) };
}

/// Makes the calls of this thread alone from now on: whether the engine serves them is not asked beside.
pub fn ask_nothing() {
    ASKS_NOTHING.set(true);
}

/// The call, which must be refused by the engine as [`Engine::supports`] says of it, or not at all. Only
/// what a library refuses when it is called, nobody can say before.
///
/// # Panics
/// Where they disagree.
pub fn agree<G: Engine>(
    engine: &G,
    shape: &Shape,
    request: Request,
    call: impl FnOnce(&G) -> Result<()>,
) -> Result<()> {
    let done = call(engine);
    if ASKS_NOTHING.get() {
        return done;
    }
    let said = engine.supports(shape, request);
    let is_of_the_call = match &done {
        Err(Error::Unsupported { reason, .. }) => reason.starts_with("cudnnBatchNormalization"),
        Err(_) => true, // bad arguments, or what a device refuses
        Ok(()) => false,
    };
    assert!(said == done || is_of_the_call, "{request:?}, {shape}: {said:?}, then {done:?}");
    done
}
