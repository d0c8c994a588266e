//! Entry points that no real driver has: what tests set and ask.

use std::ffi::{c_char, c_uint};

use crate::{
    calls,
    code::Code,
    control::{RawLaunch, SOURCES, pack},
    device::Device,
    driver::Locked,
    report::{Failure, FailurePoint, Messages},
};

/// Works on a device, if there is one of that number.
fn on_device<T>(device: c_uint, f: impl FnOnce(&mut Device) -> Option<T>) -> Option<T> {
    f(Locked::new().devices.get_mut(device as usize)?)
}

/// Copies as much of a text as fits, and tells how long all of it is; `usize::MAX` where there is none.
///
/// # Safety
/// `out` must be valid for writing `room` bytes.
unsafe fn copy_text(text: Option<&str>, out: *mut u8, room: usize) -> usize {
    let Some(text) = text else { return usize::MAX };
    if room > 0 {
        // SAFETY: by the contract of this function.
        unsafe { out.copy_from_nonoverlapping(text.as_ptr(), text.len().min(room)) };
    }
    text.len()
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_sources() -> *const c_char {
    SOURCES.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_seed(device: c_uint) -> u64 {
    on_device(device, |device| Some(device.seed())).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_set_seed(device: c_uint, seed: u64) {
    on_device(device, |device| {
        device.set_seed(seed);
        Some(())
    });
}

/// Sets the seed of all devices, to which a reset returns.
#[unsafe(no_mangle)]
extern "C" fn softcuda_set_all_seeds(seed: u64) {
    let mut driver = Locked::new();
    driver.seed = seed;
    driver.devices.iter_mut().for_each(|device| device.set_seed(seed));
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_set_budget(device: c_uint, instructions: u64) {
    on_device(device, |device| {
        device.budget = instructions;
        Some(())
    });
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_let_equal_writes_pass(device: c_uint, yes: bool) {
    let mut driver = Locked::new();
    if (device as usize) < driver.devices.len() {
        driver.wait_for_memory(device as usize);
        driver.devices[device as usize].memory().let_equal_writes_pass(yes);
    }
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_set_shared_taken(device: c_uint, bytes: c_uint) {
    on_device(device, |device| {
        device.shared_taken = bytes;
        Some(())
    });
}

#[unsafe(no_mangle)]
extern "C" fn softcuda_launch_count(device: c_uint) -> usize {
    on_device(device, |device| Some(device.log.launches.len())).unwrap_or(0)
}

/// Whether there is such a launch.
///
/// # Safety
/// `out` must be valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn softcuda_launch(device: c_uint, index: usize, out: *mut RawLaunch) -> bool {
    let raw = on_device(device, |device| {
        let launch = device.log.launches.get(index)?;
        Some(RawLaunch {
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared,
            cooperative: launch.cooperative.into(),
            resident: launch.resident,
            padding: 0,
            seed: launch.seed,
            counts: pack(&launch.counts),
        })
    });
    let Some(raw) = raw else { return false };
    // SAFETY: by the contract of this function.
    unsafe { out.write(raw) };
    true
}

/// The name of the kernel of a launch.
///
/// # Safety
/// `out` must be valid for writing `room` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn softcuda_launch_kernel(
    device: c_uint,
    index: usize,
    out: *mut u8,
    room: usize,
) -> usize {
    let name = on_device(device, |device| Some(device.log.launches.get(index)?.kernel.clone()));
    // SAFETY: by the contract of this function.
    unsafe { copy_text(name.as_deref(), out, room) }
}

/// A message of a list.
///
/// # Safety
/// `out` must be valid for writing `room` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn softcuda_message(
    device: c_uint,
    list: c_uint,
    index: usize,
    out: *mut u8,
    room: usize,
) -> usize {
    let lists = [Messages::Faults, Messages::Leaks, Messages::Refusals, Messages::Printed];
    let message =
        on_device(device, |device| device.log.list(*lists.get(list as usize)?).get(index).cloned());
    // SAFETY: by the contract of this function.
    unsafe { copy_text(message.as_deref(), out, room) }
}

/// The name of a kind of call that this thread has made, and how often; `usize::MAX` where there is none.
///
/// # Safety
/// `out` must be valid for writing `room` bytes, `count` for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn softcuda_calls(
    index: usize,
    count: *mut u64,
    out: *mut u8,
    room: usize,
) -> usize {
    let counted = calls::counted(index);
    // SAFETY: by the contract of this function.
    unsafe {
        count.write(counted.map_or(0, |(_, count)| count));
        copy_text(counted.map(|(name, _)| name), out, room)
    }
}

/// Counts the calls of this thread from 0 on.
#[unsafe(no_mangle)]
extern "C" fn softcuda_forget_calls() {
    calls::forget();
}

/// Whether the request makes sense: the call at `point` after `before` others will answer `code`.
#[unsafe(no_mangle)]
extern "C" fn softcuda_fail(device: c_uint, point: c_uint, before: u64, code: c_uint) -> bool {
    let points =
        [FailurePoint::Allocation, FailurePoint::Launch, FailurePoint::Copy, FailurePoint::Module];
    on_device(device, |device| {
        let point = *points.get(point as usize)?;
        let code = Code::from_number(code).filter(|code| *code != Code::Success)?;
        device.log.failures.push(Failure { point, before, code });
        Some(())
    })
    .is_some()
}

/// Forgets launches, messages and requested failures of a device, and what was set for it alone.
#[unsafe(no_mangle)]
extern "C" fn softcuda_reset(device: c_uint) {
    let mut driver = Locked::new();
    let seed = driver.seed;
    if let Some(device) = driver.devices.get_mut(device as usize) {
        device.reset(seed);
    }
}

/// Bytes allocated, those whose free is queued included.
#[unsafe(no_mangle)]
extern "C" fn softcuda_used(device: c_uint) -> u64 {
    on_device(device, |device| Some(device.used())).unwrap_or(0)
}
