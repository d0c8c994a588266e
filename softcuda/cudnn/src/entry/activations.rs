//! Activation descriptors.

use std::ffi::{c_double, c_uint};

use super::{put, required};
use crate::{
    handle::{ACTIVATIONS, Activation, alone, call, found},
    status::Status,
};

/// The last `cudnnActivationMode_t`.
const LAST_MODE: u32 = 6;

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnCreateActivationDescriptor(out: *mut usize) -> Status {
    call("cudnnCreateActivationDescriptor", || {
        required(out, "the descriptor")?;
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, ACTIVATIONS.insert(Activation::default())) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetActivationDescriptor(
    descriptor: usize,
    mode: c_uint,
    nan_propagation: c_uint,
    coefficient: c_double,
) -> Status {
    call("cudnnSetActivationDescriptor", || {
        let object = found(ACTIVATIONS.get(descriptor))?;
        if mode > LAST_MODE || nan_propagation > 1 {
            let reason = format!("there is no activation {mode} or propagation {nan_propagation}");
            return Status::BAD_PARAM.because(reason);
        }
        *alone(&object)? = Activation { mode, nan_propagation, coefficient };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetActivationDescriptor(
    descriptor: usize,
    mode: *mut c_uint,
    nan_propagation: *mut c_uint,
    coefficient: *mut c_double,
) -> Status {
    call("cudnnGetActivationDescriptor", || {
        let this = *alone(&*found(ACTIVATIONS.get(descriptor))?)?;
        // SAFETY: the caller's pointers, as the documentation demands.
        unsafe {
            put(mode, this.mode)?;
            put(nan_propagation, this.nan_propagation)?;
            put(coefficient, this.coefficient)
        }
    })
}

/// Null is no error.
#[unsafe(no_mangle)]
extern "C" fn cudnnDestroyActivationDescriptor(descriptor: usize) -> Status {
    call("cudnnDestroyActivationDescriptor", || match descriptor {
        0 => Ok(()),
        _ => found(ACTIVATIONS.remove(descriptor)).map(drop),
    })
}
