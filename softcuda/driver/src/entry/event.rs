//! Events.

use std::ffi::c_uint;

use super::{call, call_in_context, put, required};
use crate::{
    code::Code,
    driver::Id,
    stream::{Event, Mark},
};

const DISABLE_TIMING: c_uint = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(out: *mut Id, flags: c_uint) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        if flags > 7 {
            return Err(Code::InvalidValue);
        }
        let is_timed = flags & DISABLE_TIMING == 0;
        let id = driver.fresh();
        driver.events.insert(id, Event { context, is_timed, mark: Mark::Nothing });
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, id) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Id) -> Code {
    call(|driver| {
        let context = driver.events.remove(&event).ok_or(Code::InvalidHandle)?.context;
        driver.check_context(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Id, stream: u64) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        driver.record(event, id)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Id) -> Code {
    call(|driver| {
        let work = driver.event_work(event)?;
        driver.finish(&work);
        let context = driver.event(event)?.context;
        driver.check_context(context)
    })
}

/// Each query that finds work does a piece of it, so that a loop of queries ends.
#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Id) -> Code {
    call(|driver| {
        if driver.event_work(event)?.is_empty() {
            return Ok(());
        }
        let context = driver.event(event)?.context;
        let device = driver.contexts[&context].device;
        driver.progress(device);
        driver.check_context(context)?;
        Err(Code::NotReady)
    })
}

/// Always 0 ms, where a real device would have an answer: this one has no clock, and says nothing about time.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(out: *mut f32, start: Id, end: Id) -> Code {
    call(|driver| {
        for event in [start, end] {
            let this = driver.event(event)?;
            if !this.is_timed || matches!(this.mark, Mark::Nothing) {
                return Err(Code::InvalidHandle);
            }
            if !driver.event_work(event)?.is_empty() {
                return Err(Code::NotReady);
            }
        }
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, 0.0) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(out: *mut f32, start: Id, end: Id) -> Code {
    // SAFETY: the same contract.
    unsafe { cuEventElapsedTime(out, start, end) }
}
