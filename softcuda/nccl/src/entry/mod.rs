//! The entry points: each translates pointers and calls safe code.

mod collectives;
mod communicators;
pub mod control;

use crate::{
    rank::{Rank, alone, found},
    status::{Refusal, Status},
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
        return Status::INVALID_ARGUMENT.because(format!("{what} is null"));
    }
    Ok(())
}

/// A call on a communicator that is whole, and whose last call is done.
fn on_rank(
    comm: usize,
    f: impl FnOnce(&mut Rank) -> Result<Status, Refusal>,
) -> Result<Status, Refusal> {
    let rank = found(comm)?;
    let mut rank = alone(&rank)?;
    let state = match rank.settles {
        0 => rank.state(),
        _ => Status::IN_PROGRESS,
    };
    if state != Status::SUCCESS {
        let reason = "expected a communicator whose state has been asked for until it is success";
        return Status::INVALID_USAGE
            .because(format!("{reason}, got one of state {}", state.number()));
    }
    f(&mut rank)
}
