//! Managed memory.

use std::ffi::{c_int, c_uint};

use super::{call, call_in_context, put, required};
use crate::{code::Code, driver::Locked, managed::Attached};

/// `CUmemLocation`
#[repr(C)]
struct Location {
    kind: c_uint,
    id: c_int,
}

const LOCATION_DEVICE: c_uint = 1;
/// The host, one of its NUMA nodes, and the nearest of them.
const LOCATION_HOST: std::ops::RangeInclusive<c_uint> = 2..=4;
/// The greatest number of an advice.
const LAST_ADVICE: c_uint = 6;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocManaged(out: *mut u64, bytes: usize, flags: c_uint) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        let attached = Attached::from_flags(flags, None)?;
        let pointer = driver.allocate_managed(context, bytes as u64, attached)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, pointer) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamAttachMemAsync(
    stream: u64,
    pointer: u64,
    bytes: usize,
    flags: c_uint,
) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        driver.attach(id, pointer, bytes as u64, Attached::from_flags(flags, Some(id))?)
    })
}

/// Checks where memory is to be. Only a device that shares it with the host can be named.
fn check_location(driver: &mut Locked, location: &Location) -> Result<(), Code> {
    match location.kind {
        LOCATION_DEVICE if !driver.device(location.id)?.profile.concurrent_managed => {
            Err(Code::InvalidDevice)
        }
        LOCATION_DEVICE => Ok(()),
        kind if LOCATION_HOST.contains(&kind) => Ok(()),
        _ => Err(Code::InvalidValue),
    }
}

/// Without effect once it is checked: the memory is everywhere at once.
#[unsafe(no_mangle)]
extern "C" fn cuMemPrefetchAsync_v2(
    pointer: u64,
    bytes: usize,
    location: Location,
    flags: c_uint,
    stream: u64,
) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        let context = driver.streams[&id].context;
        if flags != 0 {
            return Err(Code::InvalidValue);
        }
        check_location(driver, &location)?;
        driver.check_managed(context, "cuMemPrefetchAsync", pointer, bytes as u64)
    })
}

/// Without effect once it is checked.
#[unsafe(no_mangle)]
extern "C" fn cuMemAdvise_v2(
    pointer: u64,
    bytes: usize,
    advice: c_uint,
    location: Location,
) -> Code {
    call_in_context(|driver, context| {
        if !(1..=LAST_ADVICE).contains(&advice) {
            return Err(Code::InvalidValue);
        }
        // To read mostly, or no more so, is advice for all places.
        if advice > 2 {
            check_location(driver, &location)?;
        }
        driver.check_managed(context, "cuMemAdvise", pointer, bytes as u64)
    })
}
