//! Handles and descriptors, and what every call does first.

use std::{
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicBool},
    thread,
};

use softlibrary::{List, Log, Objects, Queue, Refused};

use crate::{
    status::{Refusal, Status},
    tensor::Tensor,
};

/// The version that it says it has: the one whose bindings cudarc has by default.
pub const VERSION: usize = 92_100;

pub static LOG: Log = Log::new("softcudnn", VERSION);
pub static HANDLES: Objects<Handle> = Objects::new("cuDNN handle", 1);
pub static TENSORS: Objects<Option<Tensor>> = Objects::new("tensor descriptor", 2);
pub static ACTIVATIONS: Objects<Activation> = Objects::new("activation descriptor", 3);

#[derive(Debug)]
pub struct Handle {
    pub queue: Queue,
    pub stream: usize,
    /// What queued work has found since the last query.
    pub overflow: Arc<AtomicBool>,
}

/// What an activation descriptor says, by the numbers of the API.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activation {
    pub mode: u32,
    pub nan_propagation: u32,
    pub coefficient: f64,
}

/// A call of this name: answers a failure that was asked for, or does its work.
pub fn call(name: &str, f: impl FnOnce() -> Result<(), Refusal>) -> Status {
    if let Some(status) = LOG.failure(name) {
        return Status::from_number(status).unwrap_or(Status::INTERNAL_ERROR);
    }
    match f() {
        Ok(()) => Status::SUCCESS,
        Err((status, reason)) => {
            let message = format!("{name}: {reason}");
            LOG.note(thread::current().id(), List::Refusals, message);
            status
        }
    }
}

/// A call on a handle that no other thread is using.
pub fn on_handle(
    name: &str,
    handle: usize,
    f: impl FnOnce(&mut Handle) -> Result<(), Refusal>,
) -> Status {
    call(name, || {
        let handle = found(HANDLES.get(handle))?;
        f(&mut *alone(&handle)?)
    })
}

/// An object that no other thread is using.
pub fn alone<T>(object: &Mutex<T>) -> Result<MutexGuard<'_, T>, Refusal> {
    let used = "another thread is in a call with the same handle or descriptor";
    object.try_lock().or_else(|_| Status::INTERNAL_ERROR.because(used))
}

/// What a number that is no object becomes.
pub fn found<T>(object: Result<T, String>) -> Result<T, Refusal> {
    object.or_else(|reason| Status::BAD_PARAM.because(reason))
}

/// What a refusal of the driver becomes.
pub fn failed(refused: Refused) -> Refusal {
    (Status::EXECUTION_FAILED, refused.to_string())
}

pub fn live() -> Vec<String> {
    [HANDLES.live(), TENSORS.live(), ACTIVATIONS.live()].concat()
}
