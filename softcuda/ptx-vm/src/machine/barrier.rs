//! The sixteen barriers of a block.

use crate::race::Meeting;

/// How many a block has.
pub(crate) const BARRIERS: u64 = 16;

/// One barrier.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    /// Threads that complete it; 0 while nobody has come.
    pub(crate) expected: u32,
    /// Threads that have come.
    pub(crate) arrived: u32,
    /// Threads that have come with a true predicate, and with any.
    pub(crate) votes: (u32, u32),
    /// The lanes of each warp that wait.
    pub(crate) lanes: Vec<u32>,
    pub(crate) meeting: Meeting,
}

impl Barrier {
    /// Of a block of that many warps.
    pub(crate) fn new(warps: usize) -> Self {
        Self { lanes: vec![0; warps], ..Self::default() }
    }

    /// Makes it ready for the next time and gives what it was.
    pub(crate) fn take(&mut self) -> Self {
        let next = Self::new(self.lanes.len());
        std::mem::replace(self, next)
    }
}
