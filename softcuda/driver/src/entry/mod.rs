//! The entry points: each translates pointers and calls safe code.

mod context;
mod control;
mod device;
mod error;
mod event;
mod graph;
mod launch;
mod managed;
mod memory;
mod module;
mod pool;
mod profiler;
mod stream;
mod unsupported;

use crate::{
    calls,
    code::Code,
    driver::{Id, Locked, in_callback, with_current},
};

/// A call that needs an initialised driver. It is counted by the name of the entry point whose closure `f` is.
fn call<F: FnOnce(&mut Locked) -> Result<(), Code>>(f: F) -> Code {
    named_call(calls::entry_point::<F>(), f)
}

/// A call of this name, where the closure is not written in the entry point itself.
fn named_call(name: &'static str, f: impl FnOnce(&mut Locked) -> Result<(), Code>) -> Code {
    calls::count(name);
    step(f)
}

/// A part of a call that something else has counted.
fn step(f: impl FnOnce(&mut Locked) -> Result<(), Code>) -> Code {
    if in_callback() {
        return Code::NotPermitted;
    }
    let mut driver = Locked::new();
    if !driver.is_initialised {
        return Code::NotInitialized;
    }
    match f(&mut driver) {
        Ok(()) => Code::Success,
        Err(code) => code,
    }
}

/// A call that needs a current context, one whose work has not failed.
fn call_in_context<F: FnOnce(&mut Locked, Id) -> Result<(), Code>>(f: F) -> Code {
    named_call(calls::entry_point::<F>(), |driver| {
        let context = with_current(|stack| stack.last().copied()).ok_or(Code::InvalidContext)?;
        driver.check_context(context)?;
        f(driver, context)
    })
}

/// Gives a value to the caller.
///
/// # Safety
/// `out` must be null or valid for writing a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Code> {
    if out.is_null() {
        return Err(Code::InvalidValue);
    }
    // SAFETY: not null, and valid by the contract of this function.
    unsafe { out.write_unaligned(value) };
    Ok(())
}

/// Refuses a null pointer before anything is done.
fn required<T>(pointer: *const T) -> Result<(), Code> {
    if pointer.is_null() { Err(Code::InvalidValue) } else { Ok(()) }
}
