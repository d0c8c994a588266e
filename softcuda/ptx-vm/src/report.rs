//! What a launch did.

use std::ops::{Add, AddAssign};

/// Accesses to global memory in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that threads asked for.
    pub bytes: u64,
    /// Distinct 32-byte sectors, counted for each request on its own.
    pub sectors: u64,
    /// Instructions of a warp.
    pub requests: u64,
}

/// What a launch did.
///
/// All of it depends on the kernel and its data alone, not on the seed nor on how many blocks were resident, unless
/// threads poll: how often they do depends on the order. Polls are counted apart for that reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions, counted for each thread that executed them.
    pub thread_instructions: u64,
    /// Instructions, counted once for all threads of a warp that executed them together.
    pub warp_instructions: u64,
    /// Weak loads from global memory.
    pub global_loads: Traffic,
    /// Stores to global memory.
    pub global_stores: Traffic,
    /// Strong loads from global memory (volatile, relaxed, acquire): bytes, sectors and requests as above.
    pub polls: Traffic,
    /// Atomic operations, for each thread.
    pub atomics: u64,
    /// Bytes loaded from shared memory.
    pub shared_loads: u64,
    /// Bytes stored to shared memory.
    pub shared_stores: u64,
    /// Barriers of a block that were completed.
    pub barriers: u64,
    /// The most bytes of device memory that were ever allocated at once, so far; of a sum, the larger.
    pub high_water: u64,
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            sectors: self.sectors + other.sectors,
            requests: self.requests + other.requests,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Add for Report {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            thread_instructions: self.thread_instructions + other.thread_instructions,
            warp_instructions: self.warp_instructions + other.warp_instructions,
            global_loads: self.global_loads + other.global_loads,
            global_stores: self.global_stores + other.global_stores,
            polls: self.polls + other.polls,
            atomics: self.atomics + other.atomics,
            shared_loads: self.shared_loads + other.shared_loads,
            shared_stores: self.shared_stores + other.shared_stores,
            barriers: self.barriers + other.barriers,
            high_water: self.high_water.max(other.high_water),
        }
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
