//! The entry points: each translates pointers and calls safe code.

pub mod control;
mod handles;
mod products;

use crate::status::{Refusal, Status};

/// Gives a value to the caller.
///
/// # Safety
/// `out` must be null or valid for writing a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Refusal> {
    required(out, "the result")?;
    // SAFETY: not null, and valid by the contract of this function.
    unsafe { out.write(value) };
    Ok(())
}

/// Refuses a null pointer.
fn required<T>(pointer: *const T, what: &str) -> Result<(), Refusal> {
    if pointer.is_null() {
        return Status::InvalidValue.because(format!("{what} is null"));
    }
    Ok(())
}
