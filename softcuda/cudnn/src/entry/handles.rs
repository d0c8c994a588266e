//! Handles, versions and texts.

use std::{
    ffi::{c_char, c_int},
    sync::{Arc, atomic::Ordering},
};

use softlibrary::Queue;

use super::{put, required};
use crate::{
    handle::{HANDLES, Handle, LOG, call, failed, found, on_handle},
    status::{Status, name},
};

#[unsafe(no_mangle)]
extern "C" fn cudnnGetVersion() -> usize {
    LOG.version()
}

/// Major and minor version and patch level.
#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetProperty(property: u32, out: *mut c_int) -> Status {
    call("cudnnGetProperty", || {
        let version = LOG.version();
        // Until version 8 the major version was counted in thousands.
        let major = if version < 10_000 { 1000 } else { 10_000 };
        let parts = [version / major, version % major / 100, version % 100];
        match parts.get(property as usize) {
            // SAFETY: the caller's pointer, as the documentation demands.
            Some(part) => unsafe { put(out, *part as c_int) },
            None => Status::BAD_PARAM.because(format!("there is no property {property}")),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnGetErrorString(status: u32) -> *const c_char {
    name(status).as_ptr()
}

/// The last refusal of this thread, cut to the room there is.
#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetLastErrorString(out: *mut c_char, room: usize) {
    if out.is_null() || room == 0 {
        return;
    }
    let text = LOG.last_refusal().unwrap_or_default();
    let length = text.len().min(room - 1);
    // SAFETY: the caller's pointer, as the documentation demands; the text is memory of this crate.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), length);
        out.add(length).write(0);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnCreate(out: *mut usize) -> Status {
    call("cudnnCreate", || {
        required(out, "handle")?;
        let queue = Queue::new().or_else(|reason| Status::NOT_INITIALIZED.because(reason))?;
        let handle = HANDLES.insert(Handle { queue, stream: 0, overflow: Arc::default() });
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, handle) }
    })
}

/// Waits for what the handle has queued; null is no error.
#[unsafe(no_mangle)]
extern "C" fn cudnnDestroy(handle: usize) -> Status {
    const NAME: &str = "cudnnDestroy";
    if handle == 0 {
        return call(NAME, || Ok(()));
    }
    on_handle(NAME, handle, |this| {
        this.queue.close();
        found(HANDLES.remove(handle)).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetStream(handle: usize, stream: usize) -> Status {
    on_handle("cudnnSetStream", handle, |handle| {
        handle.queue.check(stream).or_else(|reason| Status::BAD_PARAM.because(reason))?;
        handle.stream = stream;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetStream(handle: usize, out: *mut usize) -> Status {
    // SAFETY: the caller's pointer, as the documentation demands.
    on_handle("cudnnGetStream", handle, |handle| unsafe { put(out, handle.stream) })
}

/// Whether the persistent mode has overflowed since the last answer: as far as work has come (0), if all is done (1),
/// or when it is (2).
#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnQueryRuntimeError(
    handle: usize,
    out: *mut Status,
    mode: u32,
    _tag: usize,
) -> Status {
    on_handle("cudnnQueryRuntimeError", handle, |handle| {
        required(out, "rstatus")?;
        let driver = handle.queue.driver();
        let is_done = match mode {
            0 => true,
            1 => driver.is_done(handle.stream).map_err(failed)?,
            2 => driver.wait(handle.stream).map(|()| true).map_err(failed)?,
            _ => return Status::BAD_PARAM.because(format!("there is no query mode {mode}")),
        };
        let status = match is_done {
            false => Status::RUNTIME_IN_PROGRESS,
            true if handle.overflow.swap(false, Ordering::Relaxed) => Status::RUNTIME_FP_OVERFLOW,
            true => Status::SUCCESS,
        };
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, status) }
    })
}
