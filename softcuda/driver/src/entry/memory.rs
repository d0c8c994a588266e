//! Device memory, page-locked host memory, copies and fills.
//!
//! A copy from pageable memory takes its bytes when it is called; one to pageable memory waits until it is done, as
//! the driver's documentation says. Copies from and to page-locked memory happen when their stream comes to them.

use std::{ffi::c_uint, sync::Arc};

use super::{call, call_in_context, named_call, put, required, step};
use crate::{
    code::Code,
    driver::{Id, Locked},
    host::HostRange,
    work::Work,
};

/// The handle of the null stream, in whose order the calls without a stream stand.
const NULL_STREAM: u64 = 0;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(out: *mut u64, bytes: usize) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        let pointer = driver.allocate(context, bytes as u64)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, pointer) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(pointer: u64) -> Code {
    call_in_context(|driver, context| driver.free(context, pointer))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: u64) -> Code {
    call(|driver| {
        required(out)?;
        let id = driver.stream(stream)?;
        let pointer = driver.allocate_async(id, bytes as u64, None)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, pointer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocFromPoolAsync(
    out: *mut u64,
    bytes: usize,
    pool: Id,
    stream: u64,
) -> Code {
    call(|driver| {
        required(out)?;
        let id = driver.stream(stream)?;
        let pointer = driver.allocate_async(id, bytes as u64, Some(pool))?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, pointer) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(pointer: u64, stream: u64) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        driver.free_async(id, pointer)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    call_in_context(|driver, context| {
        let device = driver.device_of(context)?;
        let all = device.profile.memory;
        let left = all - device.used();
        // SAFETY: the caller's pointers, as the driver's API demands.
        unsafe {
            put(free, left as usize)?;
            put(total, all as usize)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(out: *mut usize, bytes: usize, flags: c_uint) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        if flags > 7 {
            return Err(Code::InvalidValue);
        }
        let address = driver.allocate_host(context, bytes)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, address) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(pointer: usize) -> Code {
    call_in_context(|driver, context| driver.free_host(context, pointer))
}

/// Checks a call on `bytes` bytes of device memory in the order of a stream, and gives the stream.
fn prepare(
    driver: &mut Locked,
    name: &str,
    stream: u64,
    ranges: &[u64],
    bytes: usize,
) -> Result<Id, Code> {
    let id = driver.stream(stream)?;
    let context = driver.streams[&id].context;
    driver.check_copy(context)?;
    if bytes > 0 {
        for address in ranges {
            driver.check_range(id, name, *address, bytes as u64)?;
        }
    }
    Ok(id)
}

/// Waits for a stream, after a call that answers only when its work is done.
fn wait(driver: &mut Locked, stream: Id) -> Result<(), Code> {
    let work = driver.stream_work(stream)?;
    driver.finish(&work);
    let context = driver.streams.get(&stream).ok_or(Code::InvalidHandle)?.context;
    driver.check_context(context)
}

/// Refuses pageable memory in a capture: nobody knows that it lives as long as the graph.
fn refuse_in_capture(driver: &mut Locked, name: &str, stream: Id) -> Result<(), Code> {
    let Some(capture) = driver.streams[&stream].capture else { return Ok(()) };
    let context = driver.streams[&stream].context;
    driver.invalidate(&[capture]);
    let reason = "a capture takes page-locked memory only, which lives as long as the graph";
    driver.device_of(context)?.refuse(name, reason.into());
    Err(Code::StreamCaptureUnsupported)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    target: u64,
    source: *const u8,
    bytes: usize,
    stream: u64,
) -> Code {
    const NAME: &str = "cuMemcpyHtoDAsync";
    call(|driver| {
        let id = prepare(driver, NAME, stream, &[target], bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        required(source)?;
        // SAFETY: the caller has `bytes` bytes there: now, and if the memory is page-locked until the copy is done.
        let source_range = unsafe { HostRange::new(source, bytes) };
        if driver.is_pinned(source.addr(), bytes) {
            return driver.enqueue(id, Work::WriteFrom { target, source: source_range });
        }
        refuse_in_capture(driver, NAME, id)?;
        let data = Arc::new(source_range.read());
        driver.enqueue(id, Work::Write { target, data })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    target: *mut u8,
    source: u64,
    bytes: usize,
    stream: u64,
) -> Code {
    const NAME: &str = "cuMemcpyDtoHAsync";
    call(|driver| {
        let id = prepare(driver, NAME, stream, &[source], bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        required(target)?;
        let is_pinned = driver.is_pinned(target.addr(), bytes);
        if !is_pinned {
            refuse_in_capture(driver, NAME, id)?;
        }
        // SAFETY: the caller has `bytes` bytes there: until the copy is done if the memory is page-locked, and else
        // during this call, which waits.
        let target = unsafe { HostRange::new(target, bytes) };
        if is_pinned {
            return driver.enqueue(id, Work::ReadTo { target, source });
        }
        // Nothing may come between the two: the copy must not outlive this call.
        driver.submit(id, Work::ReadTo { target, source })?;
        let context = driver.streams[&id].context;
        let copy = driver.streams[&id].tails.clone();
        driver.finish(&copy);
        driver.check_context(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(target: u64, source: u64, bytes: usize, stream: u64) -> Code {
    call(|driver| {
        let id = prepare(driver, "cuMemcpyDtoDAsync", stream, &[target, source], bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        driver.enqueue(id, Work::Copy { target, source, bytes: bytes as u64 })
    })
}

/// The contexts tell what the addresses tell too, so they are only checked.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    target: u64,
    target_context: Id,
    source: u64,
    source_context: Id,
    bytes: usize,
    stream: u64,
) -> Code {
    let checked = step(|driver| {
        driver.check_context(target_context)?;
        driver.check_context(source_context)
    });
    if checked != Code::Success {
        return checked;
    }
    cuMemcpyDtoDAsync_v2(target, source, bytes, stream)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(target: u64, source: *const u8, bytes: usize) -> Code {
    synchronously(|| {
        // SAFETY: the same contract; what is page-locked is waited for.
        unsafe { cuMemcpyHtoDAsync_v2(target, source, bytes, NULL_STREAM) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(target: *mut u8, source: u64, bytes: usize) -> Code {
    synchronously(|| {
        // SAFETY: the same contract; what is page-locked is waited for.
        unsafe { cuMemcpyDtoHAsync_v2(target, source, bytes, NULL_STREAM) }
    })
}

/// Not waited for: a copy within the device is asynchronous to the host even so.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(target: u64, source: u64, bytes: usize) -> Code {
    match step(|driver| driver.check_no_capture()) {
        Code::Success => cuMemcpyDtoDAsync_v2(target, source, bytes, NULL_STREAM),
        code => code,
    }
}

/// A copy in the null stream that is waited for.
fn synchronously(copy: impl FnOnce() -> Code) -> Code {
    let checked = step(|driver| driver.check_no_capture());
    if checked != Code::Success {
        return checked;
    }
    match copy() {
        Code::Success => step(|driver| {
            let id = driver.stream(NULL_STREAM)?;
            wait(driver, id)
        }),
        code => code,
    }
}

fn fill(
    name: &'static str,
    target: u64,
    pattern: u32,
    width: u8,
    count: usize,
    stream: u64,
) -> Code {
    named_call(name, |driver| {
        let bytes = count.checked_mul(usize::from(width)).ok_or(Code::InvalidValue)?;
        if !target.is_multiple_of(u64::from(width)) {
            return Err(Code::InvalidValue);
        }
        let id = prepare(driver, name, stream, &[target], bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        driver.enqueue(id, Work::Fill { target, pattern, width, count: count as u64 })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(target: u64, value: u8, count: usize, stream: u64) -> Code {
    fill("cuMemsetD8", target, value.into(), 1, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(target: u64, value: u16, count: usize, stream: u64) -> Code {
    fill("cuMemsetD16", target, value.into(), 2, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(target: u64, value: c_uint, count: usize, stream: u64) -> Code {
    fill("cuMemsetD32", target, value, 4, count, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(target: u64, value: u8, count: usize) -> Code {
    fill("cuMemsetD8", target, value.into(), 1, count, NULL_STREAM)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(target: u64, value: u16, count: usize) -> Code {
    fill("cuMemsetD16", target, value.into(), 2, count, NULL_STREAM)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(target: u64, value: c_uint, count: usize) -> Code {
    fill("cuMemsetD32", target, value, 4, count, NULL_STREAM)
}
