//! Streams, and functions of the host in their order.

use std::ffi::{c_int, c_uint, c_void};

use super::{call, call_in_context, context::PRIORITIES, put, required};
use crate::{code::Code, driver::Id, graph::Mode, host::Callback, stream::Kind, work::Work};

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(out: *mut Id, flags: c_uint) -> Code {
    // SAFETY: the same contract.
    unsafe { cuStreamCreateWithPriority(out, flags, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(
    out: *mut Id,
    flags: c_uint,
    priority: c_int,
) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        let kind = match flags {
            0 => Kind::Blocking,
            1 => Kind::NonBlocking,
            _ => return Err(Code::InvalidValue),
        };
        let priority = priority.clamp(PRIORITIES.1, PRIORITIES.0);
        let stream = driver.create_stream(context, kind, priority);
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, stream) }
    })
}

/// What the stream has been given is still done, and its handle means nothing from now on.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        let this = &driver.streams[&id];
        let context = &driver.contexts[&this.context];
        if context.legacy == id || context.per_thread.values().any(|other| *other == id) {
            return Err(Code::InvalidHandle);
        }
        if let Some(capture) = this.capture {
            driver.invalidate(&[capture]);
        }
        driver.streams.remove(&id);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: u64) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        let context = driver.streams[&id].context;
        let work = driver.stream_work(id)?;
        driver.finish(&work);
        driver.check_context(context)
    })
}

/// Each query that finds work does a piece of it, so that a loop of queries ends.
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: u64) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        let context = driver.streams[&id].context;
        if driver.stream_work(id)?.is_empty() {
            return Ok(());
        }
        let device = driver.contexts[&context].device;
        driver.progress(device);
        driver.check_context(context)?;
        Err(Code::NotReady)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: u64, event: Id, flags: c_uint) -> Code {
    call(|driver| {
        if flags > 1 {
            return Err(Code::InvalidValue);
        }
        let id = driver.stream(stream)?;
        driver.wait_event(id, event)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetPriority(stream: u64, out: *mut c_int) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, driver.streams[&id].priority) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetFlags(stream: u64, out: *mut c_uint) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        let flags = c_uint::from(driver.streams[&id].kind == Kind::NonBlocking);
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, flags) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetCtx(stream: u64, out: *mut Id) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, driver.streams[&id].context) }
    })
}

/// The function runs on a thread of its own while the driver is not locked.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(
    stream: u64,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> Code {
    call(|driver| {
        let function = function.ok_or(Code::InvalidValue)?;
        let id = driver.stream(stream)?;
        // SAFETY: that the function may be called with the data later, on another thread, is what the caller of this
        // entry point promises.
        let callback = unsafe { Callback::new(function, data) };
        driver.enqueue(id, Work::Host(callback))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        driver.begin_capture(id, Mode::from_number(mode)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: u64, out: *mut Id) -> Code {
    call(|driver| {
        required(out)?;
        let id = driver.stream(stream)?;
        let graph = driver.end_capture(id);
        // SAFETY: the caller's pointer, as the driver's API demands; null where there is no graph.
        unsafe { put(out, graph.unwrap_or(0)) }?;
        graph.map(|_| ())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: u64, out: *mut c_uint) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, driver.capture_status(id)) }
    })
}
