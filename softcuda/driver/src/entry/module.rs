//! Modules and functions.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::{call_in_context, put, required};
use crate::{code::Code, driver::Id};

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(out: *mut Id, image: *const c_void) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        required(image)?;
        // SAFETY: PTX text ends with a 0; the binaries that also may stand here begin with four bytes other than 0,
        // by which they are refused, and contain a 0 well before their end.
        let image = unsafe { CStr::from_ptr(image.cast()) };
        let module = driver.load_module(context, image.to_bytes())?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, module) }
    })
}

/// As [`cuModuleLoadData`]: options of the compiler mean nothing where there is none.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    out: *mut Id,
    image: *const c_void,
    _count: c_uint,
    _options: *const c_uint,
    _values: *const *const c_void,
) -> Code {
    // SAFETY: the same contract.
    unsafe { cuModuleLoadData(out, image) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoad(out: *mut Id, path: *const c_char) -> Code {
    call_in_context(|driver, context| {
        required(out)?;
        required(path)?;
        // SAFETY: not null, and a C string, as the driver's API demands.
        let path = unsafe { CStr::from_ptr(path) }.to_str().map_err(|_| Code::FileNotFound)?;
        let image = std::fs::read(path).map_err(|_| Code::FileNotFound)?;
        let module = driver.load_module(context, &image)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, module) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Id) -> Code {
    call_in_context(|driver, _| driver.unload_module(module))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(out: *mut Id, module: Id, name: *const c_char) -> Code {
    call_in_context(|driver, _| {
        required(out)?;
        required(name)?;
        // SAFETY: not null, and a C string, as the driver's API demands.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Code::NotFound)?;
        let function = driver.load_function(module, name)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, function) }
    })
}

/// Either of the first two may be null.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetGlobal_v2(
    out: *mut u64,
    bytes: *mut usize,
    module: Id,
    name: *const c_char,
) -> Code {
    call_in_context(|driver, _| {
        required(name)?;
        // SAFETY: not null, and a C string, as the driver's API demands.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Code::NotFound)?;
        let (address, size) = driver.variable(module, name)?;
        // SAFETY: the caller's pointers, as the driver's API demands.
        unsafe {
            if !out.is_null() {
                put(out, address)?;
            }
            if !bytes.is_null() {
                put(bytes, size as usize)?;
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(out: *mut c_int, attribute: c_uint, function: Id) -> Code {
    call_in_context(|driver, _| {
        let value = driver.function_attribute(function, attribute)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, value) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: Id, attribute: c_uint, value: c_int) -> Code {
    call_in_context(|driver, _| driver.set_function_attribute(function, attribute, value))
}

/// Without effect: there is no cache.
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: Id, config: c_uint) -> Code {
    call_in_context(|driver, _| {
        driver.function(function)?;
        if config > 3 { Err(Code::InvalidValue) } else { Ok(()) }
    })
}
