//! Which accesses happen before which: the PTX memory consistency model, as far as data races need it.
//!
//! Two accesses to one place by different threads, at least one of them a write, are a race unless one happens before
//! the other or both are strong and each within the other's scope. What happens before what follows from program
//! order, barriers of a block or warp, and release patterns that acquire patterns read from: a release or a fence and a
//! later strong write on one side, an acquire or a strong read and a later fence on the other, with read-modify-writes
//! between them. A barrier of the block after a read-modify-write counts as a fence, so that the usual ticket by which the
//! last block is found needs no second one. `shfl`, `vote` and `activemask` order nothing: the CUDA programming guide says so.

mod clock;
mod page;
mod places;
mod shadow;
mod spans;
mod stamp;
mod view;

pub(crate) use clock::{BlockTimes, WarpTime};
pub(crate) use places::{Places, scope};
pub(crate) use shadow::{Access, Conflict, Shadow};
pub(crate) use stamp::{Stamp, Strength, WARPS};
pub(crate) use view::{Knowledge, Meeting};

#[cfg(test)]
mod span_tests;
#[cfg(test)]
mod tests;
