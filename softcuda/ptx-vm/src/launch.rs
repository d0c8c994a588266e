//! Running a kernel over a grid.

use crate::{fault::Fault, instr::Kernel, memory::Memory, report::Report};

/// A kernel and all it is launched with.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameter block.
    pub params: &'a [u8],
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
    /// How many blocks are resident at a time.
    pub resident: u32,
    /// Determines the order of execution.
    pub seed: u64,
    /// Instructions, summed over threads, after which the launch counts as hanging.
    pub budget: u64,
}
