//! What a user may decide about the choice of kernels.
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
}

impl Tuning {
    /// From this family; no multiprocessor is left to others.
    pub const fn new(family: Family) -> Self {
        Self { family, spared: 0 }
    }
    /// Leaves so many multiprocessors to others.
    pub const fn spared(self, spared: u32) -> Self {
        Self { spared, ..self }
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
