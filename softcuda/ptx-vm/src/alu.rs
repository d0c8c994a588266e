//! Instructions that go from registers to registers, lane by lane.

/// One such instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Alu {}
