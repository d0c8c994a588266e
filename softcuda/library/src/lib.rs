//! What the software CUDA libraries have in common: becoming the library that a vendor's name stands for, and work in
//! the order of a stream, on the public driver API alone.

#[allow(unsafe_code)]
mod control;
#[allow(unsafe_code)]
mod driver;
#[allow(unsafe_code)]
mod install;
mod job;
mod log;
#[allow(unsafe_code)]
mod nudge;
mod number;
mod objects;
#[allow(unsafe_code)]
mod queue;

pub use control::Control;
#[doc(hidden)]
pub use control::{Calls, copy_text, list, text};
pub use driver::{Driver, Refused};
pub use install::{InstallError, StandIn};
pub use job::{Columns, Job, Memory, Slot, Use};
pub use log::{List, Log};
pub use nudge::Nudge;
pub use number::Number;
pub use objects::Objects;
pub use queue::Queue;
