//! Contexts: primary ones, others, and which is current.

use std::ffi::{c_int, c_uint, c_void};

use super::{call, call_in_context, put, required};
use crate::{
    code::Code,
    driver::{Id, with_current},
};

/// The lowest and the highest priority of a stream.
pub(super) const PRIORITIES: (c_int, c_int) = (0, -5);

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(out: *mut Id, device: c_int) -> Code {
    call(|driver| {
        required(out)?;
        let ordinal = driver.device(device)?.ordinal;
        let context = driver.retain_primary(ordinal);
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, context) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    call(|driver| {
        let ordinal = driver.device(device)?.ordinal;
        driver.release_primary(ordinal)
    })
}

/// Ends the primary context, whoever holds it; the next retain makes a new one.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(device: c_int) -> Code {
    call(|driver| {
        let device = driver.device(device)?;
        device.primary_count = 0;
        if let Some(context) = device.primary.take() {
            driver.end_context(context);
        }
        Ok(())
    })
}

/// A context beside the primary one. `params` (affinity, graphics) are not supported.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v4(
    out: *mut Id,
    params: *const c_void,
    flags: c_uint,
    device: c_int,
) -> Code {
    call(|driver| {
        required(out)?;
        let ordinal = driver.device(device)?.ordinal;
        if !params.is_null() {
            return Err(Code::NotSupported);
        }
        let context = driver.create_context(ordinal, false, flags);
        with_current(|stack| stack.push(context));
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, context) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v3(
    out: *mut Id,
    params: *const c_void,
    count: c_int,
    flags: c_uint,
    device: c_int,
) -> Code {
    let params = if count == 0 { std::ptr::null() } else { params };
    // SAFETY: the same contract.
    unsafe { cuCtxCreate_v4(out, params, flags, device) }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: Id) -> Code {
    call(|driver| {
        let this = driver.contexts.get(&context).ok_or(Code::InvalidContext)?;
        if this.is_primary {
            return Err(Code::InvalidContext);
        }
        driver.end_context(context);
        with_current(|stack| stack.pop_if(|top| *top == context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(out: *mut Id) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    call(|_| unsafe { put(out, with_current(|stack| stack.last().copied()).unwrap_or(0)) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Id) -> Code {
    call(|driver| {
        if context != 0 && !driver.contexts.contains_key(&context) {
            return Err(Code::InvalidContext);
        }
        with_current(|stack| {
            stack.pop();
            stack.extend((context != 0).then_some(context));
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: Id) -> Code {
    call(|driver| {
        if !driver.contexts.contains_key(&context) {
            return Err(Code::InvalidContext);
        }
        with_current(|stack| stack.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPopCurrent_v2(out: *mut Id) -> Code {
    call(|_| {
        let context = with_current(Vec::pop).ok_or(Code::InvalidContext)?;
        if out.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, context) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(out: *mut c_int) -> Code {
    call(|driver| {
        let context = with_current(|stack| stack.last().copied()).ok_or(Code::InvalidContext)?;
        let device = driver.contexts.get(&context).ok_or(Code::ContextIsDestroyed)?.device;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, device as c_int) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    call_in_context(|driver, context| {
        let captures: Vec<Id> = driver
            .streams
            .values()
            .filter(|stream| stream.context == context)
            .filter_map(|stream| stream.capture)
            .collect();
        if !captures.is_empty() {
            driver.invalidate(&captures);
            return Err(Code::StreamCaptureUnsupported);
        }
        driver.synchronize(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(flags: c_uint) -> Code {
    call_in_context(|driver, context| {
        driver.contexts.get_mut(&context).expect("checked").flags = flags;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetFlags(out: *mut c_uint) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    call_in_context(|driver, context| unsafe { put(out, driver.contexts[&context].flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetLimit(out: *mut usize, limit: c_uint) -> Code {
    call_in_context(|driver, context| {
        let limits = &driver.contexts[&context].limits;
        let value = *limits.get(&limit).ok_or(Code::UnsupportedLimit)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, value) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(limit: c_uint, value: usize) -> Code {
    call_in_context(|driver, context| {
        let limits = &mut driver.contexts.get_mut(&context).expect("checked").limits;
        *limits.get_mut(&limit).ok_or(Code::UnsupportedLimit)? = value;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCacheConfig(out: *mut c_uint) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    call_in_context(|driver, context| unsafe { put(out, driver.contexts[&context].cache_config) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(config: c_uint) -> Code {
    call_in_context(|driver, context| {
        if config > 3 {
            return Err(Code::InvalidValue);
        }
        driver.contexts.get_mut(&context).expect("checked").cache_config = config;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> Code {
    call_in_context(|_, _| {
        for (out, value) in [(least, PRIORITIES.0), (greatest, PRIORITIES.1)] {
            if !out.is_null() {
                // SAFETY: the caller's pointer, as the driver's API demands.
                unsafe { put(out, value) }?;
            }
        }
        Ok(())
    })
}
