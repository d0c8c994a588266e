//! Handles, and what every call does first.

use std::{sync::Mutex, thread};

use softlibrary::{List, Log, Objects, Queue, Refused};

use crate::status::{Refusal, Status};

/// The version that it says it has: the oldest whose statuses and types these are.
pub const VERSION: usize = 130_000;

pub static LOG: Log = Log::new("softcublas", VERSION);
pub static HANDLES: Objects<Handle> = Objects::new("cuBLAS handle", 1);

#[derive(Debug)]
pub struct Handle {
    pub queue: Queue,
    pub stream: usize,
    pub pointer_mode: u32,
}

/// A call of this name: answers a failure that was asked for, or does its work.
pub fn call(name: &str, f: impl FnOnce() -> Result<(), Refusal>) -> Status {
    if let Some(status) = LOG.failure(name) {
        return Status::from_number(status).unwrap_or(Status::InternalError);
    }
    match f() {
        Ok(()) => Status::Success,
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
        let handle =
            HANDLES.get(handle).or_else(|reason| Status::NotInitialized.because(reason))?;
        f(&mut *alone(&handle)?)
    })
}

fn alone(handle: &Mutex<Handle>) -> Result<std::sync::MutexGuard<'_, Handle>, Refusal> {
    let used = "another thread is in a call with this handle";
    handle.try_lock().or_else(|_| Status::InternalError.because(used))
}

/// What a refusal of the driver becomes.
pub fn failed(refused: Refused) -> Refusal {
    (Status::ExecutionFailed, refused.to_string())
}

pub fn live() -> Vec<String> {
    HANDLES.live()
}
