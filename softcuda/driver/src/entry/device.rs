//! Initialisation, devices and what they say about themselves.

use std::ffi::{c_char, c_int, c_uint};

use super::{call, call_in_context, put, required};
use crate::{code::Code, driver::Locked, profile::PROFILES};

/// The version of CUDA whose driver this one stands in for.
const VERSION: c_int = 13000;

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> Code {
    if flags != 0 {
        return Code::InvalidValue;
    }
    Locked::new().is_initialised = true;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    unsafe { put(version, VERSION) }.err().unwrap_or(Code::Success)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    call(|_| unsafe { put(count, PROFILES.len() as c_int) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    call(|driver| {
        driver.device(ordinal)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> Code {
    call(|driver| {
        let text = format!("softcuda {}", driver.device(device)?.profile.name);
        required(name)?;
        let room = usize::try_from(length - 1).map_err(|_| Code::InvalidValue)?;
        let text = &text.as_bytes()[..text.len().min(room)];
        // SAFETY: the caller has `length` bytes there; at most one less is written, and a 0 behind them.
        unsafe {
            name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
            name.add(text.len()).write(0);
        }
        Ok(())
    })
}

/// Sixteen bytes that no two devices share.
fn uuid(device: c_int) -> [u8; 16] {
    let mut uuid = *b"softcuda device ";
    uuid[15] = device as u8;
    uuid
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], device: c_int) -> Code {
    call(|driver| {
        driver.device(device)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, uuid(device)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], device: c_int) -> Code {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetUuid(out, device) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Code {
    call(|driver| {
        let memory = driver.device(device)?.profile.memory as usize;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(bytes, memory) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    out: *mut c_int,
    attribute: c_uint,
    device: c_int,
) -> Code {
    call(|driver| {
        let profile = driver.device(device)?.profile;
        let value = profile.attribute(attribute).ok_or(Code::InvalidValue)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, value as c_int) }
    })
}

/// No kernel can reach another device's memory; copies between devices need no peer access.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceCanAccessPeer(out: *mut c_int, device: c_int, peer: c_int) -> Code {
    call(|driver| {
        driver.device(device)?;
        driver.device(peer)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, 0) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxEnablePeerAccess(_peer: u64, _flags: c_uint) -> Code {
    call_in_context(|_, _| Err(Code::PeerAccessUnsupported))
}
