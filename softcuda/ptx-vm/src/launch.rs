//! Running a kernel over a grid.

use crate::{
    fault::{Fault, FaultKind},
    instr::Kernel,
    machine::Machine,
    memory::Memory,
    report::Report,
};

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
    /// Determines the order of execution, and of `.approx` results the direction of their error.
    pub seed: u64,
    /// Instructions, summed over threads, after which the launch counts as hanging.
    pub budget: u64,
}

/// Threads of a block at most.
const THREADS: u64 = 1024;

impl Launch<'_> {
    /// Blocks in all.
    pub(crate) fn blocks(&self) -> u64 {
        self.grid.iter().map(|count| u64::from(*count)).product()
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// A thread of a block by its number.
    pub(crate) fn thread(&self, number: u32) -> [u32; 3] {
        index(number, self.block)
    }

    /// A block of the grid by its number.
    pub(crate) fn block_index(&self, number: u32) -> [u32; 3] {
        index(number, self.grid)
    }

    /// Bytes of shared memory of a block.
    pub(crate) fn shared_bytes(&self) -> usize {
        let (own, dynamic) = (self.kernel.static_shared, self.dynamic_shared as usize);
        if dynamic == 0 { own } else { own.next_multiple_of(16) + dynamic }
    }

    /// Refuses what no device would run.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let threads: u64 = self.block.iter().map(|count| u64::from(*count)).product();
        let blocks = self.grid.iter().try_fold(1u64, |all, n| all.checked_mul(u64::from(*n)));
        let warps = blocks.and_then(|blocks| blocks.checked_mul(threads.div_ceil(32)));
        let detail = if threads == 0 || blocks == Some(0) {
            "no threads".to_owned()
        } else if threads > THREADS {
            format!("{threads} threads in a block; there can be {THREADS}")
        } else if warps.is_none_or(|warps| warps > crate::race::WARPS) {
            format!("more than {} warps in the grid", crate::race::WARPS)
        } else if self.params.len() != self.kernel.param_bytes {
            format!(
                "{} bytes of parameters instead of {}",
                self.params.len(),
                self.kernel.param_bytes
            )
        } else if self.kernel.is_unbound() {
            "the variables of its module have no addresses".to_owned()
        } else if self.resident == 0 {
            "no block may be resident".to_owned()
        } else if self.cooperative && blocks > Some(u64::from(self.resident)) {
            format!("a cooperative grid of which only {} blocks fit at once", self.resident)
        } else {
            return Ok(());
        };
        Err(Fault {
            kind: FaultKind::InvalidLaunch,
            kernel: self.kernel.name.as_str().into(),
            line: 0,
            source: "".into(),
            block: [0; 3],
            thread: [0; 3],
            other: None,
            detail: detail.into(),
            seed: self.seed,
        })
    }
}

fn index(number: u32, [x, y, _]: [u32; 3]) -> [u32; 3] {
    [number % x, number / x % y, number / x / y]
}

/// Runs a kernel to its end, checking each of its steps. What it has stored before a fault stays stored.
pub fn run(memory: &mut Memory, launch: &Launch<'_>) -> Result<Report, Fault> {
    Machine::new(memory, launch)?.run()
}
