//! What a kernel did wrong.

use std::fmt;

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation, the block's shared memory, the thread's local memory or the parameters.
    OutOfBounds,
    /// An access to an address that is not a multiple of its size.
    Misaligned,
    /// A read of bytes that were never written.
    Uninitialised,
    /// Two accesses to one place, at least one of them a write and at least one weak, that nothing orders.
    Race,
    /// Threads wait at a barrier or warp instruction that others of the block or warp have passed by or left.
    DivergentBarrier,
    /// Threads of a block wait for each other.
    Deadlock,
    /// The launch used up its budget of instructions.
    Hang,
    /// `trap`.
    Trap,
    /// An `assert` of the kernel that does not hold.
    Assertion,
    /// An operand for which the instruction's result is undefined: a lane outside its own member mask, a `shfl` from a
    /// lane that takes no part, a barrier number above 15.
    Undefined,
    /// The launch itself makes no sense: no threads, too many of them, parameters of the wrong size.
    InvalidLaunch,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned",
            Self::Uninitialised => "uninitialised read",
            Self::Race => "race",
            Self::DivergentBarrier => "divergent barrier",
            Self::Deadlock => "deadlock",
            Self::Hang => "hang",
            Self::Trap => "trap",
            Self::Assertion => "assertion",
            Self::Undefined => "undefined operand",
            Self::InvalidLaunch => "invalid launch",
        })
    }
}

/// What a kernel did wrong, and who did it where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: Box<str>,
    /// The line of the PTX text, from 1; 0 where no instruction is to blame.
    pub line: u32,
    /// The text of that line.
    pub source: Box<str>,
    /// The block.
    pub block: [u32; 3],
    /// The thread in its block.
    pub thread: [u32; 3],
    /// Of a race, the block and thread of the earlier access.
    pub other: Option<([u32; 3], [u32; 3])>,
    /// The rest, in words.
    pub detail: Box<str>,
    /// The seed of the order of execution: a launch with it goes the same way.
    pub seed: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in kernel {}", self.kind, self.kernel)?;
        if self.line != 0 {
            write!(f, ", PTX line {}: `{}`", self.line, self.source.trim())?;
        }
        write!(f, ", block {:?}, thread {:?}: {}", self.block, self.thread, self.detail)?;
        if let Some((block, thread)) = &self.other {
            write!(f, " (the other: block {block:?}, thread {thread:?})")?;
        }
        write!(f, " [seed {}]", self.seed)
    }
}

impl std::error::Error for Fault {}
