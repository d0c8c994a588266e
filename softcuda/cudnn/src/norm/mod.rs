//! Batch normalization: `arguments` is what is checked, `forward` and `backward` are what is queued, `compute` is the
//! arithmetic, `reserve` what a forward leaves for its backward.

mod arguments;
mod backward;
mod compute;
mod forward;
mod reserve;

pub use arguments::{Mode, Normalization, Operand, Ops, Space, ops};
pub use backward::Backward;
pub use forward::{Inference, Training};
