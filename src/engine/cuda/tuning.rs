//! What a user may decide about the choice of kernels.
use super::costs::Costs;
use std::num::NonZeroU32;

/// Which kernels a [`Cuda`](crate::Cuda) engine takes, for [`Cuda::tuned`](crate::Cuda::tuned).
///
/// ```
/// # use batchnorm::{Family, Tuning};
/// let tuning = Tuning::new(Family::Split);
/// assert_eq!((tuning.family, tuning.spared), (Family::Split, 0));
/// assert_eq!(Tuning::new(Family::Fastest), Tuning::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Tuning {
    /// What it chooses from.
    pub family: Family,
    /// Multiprocessors that kernels whose blocks wait for each other leave to others, such as
    /// those of a collective: all their blocks must be there at once.
    pub spared: u32,
    /// What plans are compared by instead of the device's costs.
    pub costs: Option<Costs>,
    /// Of [`Family::Resident`], channels of a slice: as many as this, or the next fewer that a slice
    /// can have; by default whatever should be fastest.
    pub channels: Option<NonZeroU32>,
    /// Of [`Family::Resident`], vectors that a thread keeps at most, for measuring what reading the
    /// others again costs; by default as many as fit.
    pub kept: Option<u32>,
    /// Whether all groups of blocks begin at once, for measuring what it is worth that half of them begin
    /// later where each takes several slices.
    pub at_once: bool,
}

impl Tuning {
    /// From this family; no multiprocessor is left to others.
    pub const fn new(family: Family) -> Self {
        Self { family, spared: 0, costs: None, channels: None, kept: None, at_once: false }
    }
    /// Leaves so many multiprocessors to others.
    pub const fn spared(self, spared: u32) -> Self {
        Self { spared, ..self }
    }
    /// Compares plans by these costs.
    pub const fn costs(self, costs: Costs) -> Self {
        Self { costs: Some(costs), ..self }
    }
    /// Slices of so many channels.
    pub const fn channels(self, channels: NonZeroU32) -> Self {
        Self { channels: Some(channels), ..self }
    }
    /// Threads keep so many vectors at most.
    pub const fn kept(self, vectors: u32) -> Self {
        Self { kept: Some(vectors), ..self }
    }
    /// All groups of blocks begin at once.
    pub const fn at_once(self, at_once: bool) -> Self {
        Self { at_once, ..self }
    }
}

/// A family of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Family {
    /// Whatever should take the least time, by a model of the device's memory.
    #[default]
    Fastest,
    /// A launch for every pass over a tensor, in none of which a block waits for another. Tensors
    /// are cut alike on every device, so that all devices give the same results, bit for bit.
    Split,
    /// One launch for a training forward and for its backward, which keeps in shared memory what it
    /// has read, wherever dtype and layout allow it, even where `Split` should be faster. What they
    /// do not allow, and all other operations, are served as by `Fastest`.
    Resident {
        /// Blocks that share a slice of channels, or as many as can; by default whatever should be
        /// fastest.
        blocks: Option<NonZeroU32>,
    },
}
