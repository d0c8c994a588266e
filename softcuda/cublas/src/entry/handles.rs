//! Handles, versions and texts.

use std::ffi::{c_char, c_int};

use softlibrary::Queue;

use super::{put, required};
use crate::{
    handle::{HANDLES, Handle, LOG, call, on_handle},
    status::{Status, texts},
};

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasCreate_v2(out: *mut usize) -> Status {
    call("cublasCreate_v2", || {
        required(out, "handle")?;
        let queue = Queue::new().or_else(|reason| Status::NotInitialized.because(reason))?;
        let handle = HANDLES.insert(Handle { queue, stream: 0, pointer_mode: 0 });
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, handle) }
    })
}

/// Waits for what the handle has queued.
#[unsafe(no_mangle)]
extern "C" fn cublasDestroy_v2(handle: usize) -> Status {
    on_handle("cublasDestroy_v2", handle, |this| {
        this.queue.close();
        HANDLES.remove(handle).or_else(|reason| Status::NotInitialized.because(reason)).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetStream_v2(handle: usize, stream: usize) -> Status {
    on_handle("cublasSetStream_v2", handle, |handle| {
        handle.queue.check(stream).or_else(|reason| Status::InvalidValue.because(reason))?;
        handle.stream = stream;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGetStream_v2(handle: usize, out: *mut usize) -> Status {
    // SAFETY: the caller's pointer, as the documentation demands.
    on_handle("cublasGetStream_v2", handle, |handle| unsafe { put(out, handle.stream) })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetPointerMode_v2(handle: usize, mode: u32) -> Status {
    on_handle("cublasSetPointerMode_v2", handle, |handle| {
        if mode > 1 {
            return Status::InvalidValue.because(format!("there is no pointer mode {mode}"));
        }
        handle.pointer_mode = mode;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGetPointerMode_v2(handle: usize, out: *mut u32) -> Status {
    // SAFETY: the caller's pointer, as the documentation demands.
    on_handle("cublasGetPointerMode_v2", handle, |handle| unsafe { put(out, handle.pointer_mode) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGetVersion_v2(handle: usize, out: *mut c_int) -> Status {
    on_handle("cublasGetVersion_v2", handle, |_| {
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, LOG.version() as c_int) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasGetStatusName(status: u32) -> *const c_char {
    texts(status).0.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cublasGetStatusString(status: u32) -> *const c_char {
    texts(status).1.as_ptr()
}
