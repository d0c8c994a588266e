//! Names and descriptions of error codes.

use std::ffi::{CStr, c_char};

use super::put;
use crate::code::Code;

/// # Safety
/// `out` must be null or valid for writing a pointer.
unsafe fn text(number: u32, out: *mut *const c_char, of: fn(Code) -> &'static CStr) -> Code {
    let text = Code::from_number(number).map(|code| of(code).as_ptr());
    // SAFETY: by the contract of this function.
    match unsafe { put(out, text.unwrap_or(std::ptr::null())) } {
        Ok(()) if text.is_some() => Code::Success,
        _ => Code::InvalidValue,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(number: u32, out: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    unsafe { text(number, out, Code::name) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(number: u32, out: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer, as the driver's API demands.
    unsafe { text(number, out, Code::description) }
}
