//! The entry points: each translates pointers and calls safe code.

mod activations;
pub mod control;
mod gradients;
mod handles;
mod norms;
mod sizes;
mod tensors;

use crate::{
    handle::{ACTIVATIONS, Activation, TENSORS, alone, found},
    norm::Operand,
    status::{Refusal, Status},
    tensor::Tensor,
};

/// Gives a value to the caller.
///
/// # Safety
/// `out` must be null or valid for writing a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Refusal> {
    required(out, "where the result goes")?;
    // SAFETY: not null, and valid by the contract of this function.
    unsafe { out.write(value) };
    Ok(())
}

/// Refuses a null pointer.
fn required<T>(pointer: *const T, what: &str) -> Result<(), Refusal> {
    if pointer.is_null() {
        return Status::BAD_PARAM.because(format!("{what} is null"));
    }
    Ok(())
}

/// The tensor of a descriptor that has been set.
fn tensor(name: &str, descriptor: usize) -> Result<Tensor, Refusal> {
    let object = TENSORS.get(descriptor).map_err(|reason| format!("{name}: {reason}"));
    let tensor = alone(&*found(object)?)?.clone();
    tensor.ok_or_else(|| (Status::BAD_PARAM, format!("{name}: the descriptor has not been set")))
}

/// A tensor and where it is.
fn operand(name: &'static str, descriptor: usize, address: u64) -> Result<Operand, Refusal> {
    let tensor = tensor(name, descriptor)?;
    if address == 0 {
        return Status::BAD_PARAM.because(format!("{name} is null"));
    }
    Ok(Operand { name, tensor, address })
}

/// One that need not be there: `None` if descriptor or address is null.
fn optional(
    name: &'static str,
    descriptor: usize,
    address: u64,
) -> Result<Option<Operand>, Refusal> {
    if descriptor == 0 || address == 0 {
        return Ok(None);
    }
    operand(name, descriptor, address).map(Some)
}

/// What an activation descriptor says, if there is one.
fn activation(descriptor: usize) -> Result<Option<Activation>, Refusal> {
    if descriptor == 0 {
        return Ok(None);
    }
    let activation = *alone(&*found(ACTIVATIONS.get(descriptor))?)?;
    Ok(Some(activation))
}

/// Alpha and beta, which are doubles for doubles and floats for everything else.
///
/// # Safety
/// The pointers must be null or valid for reading such a number.
unsafe fn scalars(x: &Tensor, pointers: [*const std::ffi::c_void; 2]) -> Result<[f64; 2], Refusal> {
    const DOUBLE: u32 = 1;
    let mut values = [0.0; 2];
    for ((value, pointer), name) in values.iter_mut().zip(pointers).zip(["alpha", "beta"]) {
        required(pointer, name)?;
        // SAFETY: not null, and valid by the contract of this function.
        *value = unsafe {
            match x.data_type {
                DOUBLE => pointer.cast::<f64>().read(),
                _ => f64::from(pointer.cast::<f32>().read()),
            }
        };
    }
    Ok(values)
}
