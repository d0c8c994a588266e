//! How ranks speak to each other.
use crate::{Memory, Real, Result};

/// Words of every rank in an [exchange](Rank::exchange).
pub type Words = [u64; 8];

/// Ranks that compute together, each on its part of a batch, and what they tell each other: small records of
/// numbers, matched by their order. Every rank makes the same calls in the same order.
///
/// A call ends within a limit that whoever makes the collective sets, with an [`Error::Collective`] where not
/// all ranks came; from then on every call of it is that error, as ranks that have lost each other's place in the
/// order would take one record for another. [`Synced`](crate::Synced) makes
/// the calls; [`Threads`](crate::Threads) has ranks that are threads of one process, `batchnorm-mpi` those of
/// MPI, and `Nccl` (feature `nccl`) CUDA devices.
///
/// On a device [`all_gather`](Self::all_gather) and [`all_reduce`](Self::all_reduce) need only queue their work on
/// the stream of the memory, and what fails there then shows where the stream is waited for. The
/// [exchange](Rank::exchange) is one between hosts, which waits for no device.
///
/// ```
/// # use batchnorm::{Collective, Host, Rank, Threads};
/// # use std::time::Duration;
/// let ranks = Threads::new(3, Duration::from_secs(10));
/// std::thread::scope(|scope| {
///     for ranks in ranks {
///         scope.spawn(move || {
///             let (mine, mut all) = ([ranks.rank() as f64; 2], [0.0; 6]);
///             Collective::<Host>::all_gather(&ranks, &Host, &mine, &mut all).unwrap();
///             assert_eq!(all, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
///         });
///     }
/// });
/// ```
///
/// [`Error::Collective`]: crate::Error::Collective
pub trait Collective<M: Memory>: Rank {
    /// Everybody's `part`, one after the other in the order of ranks: `all` is as long as the parts of all ranks,
    /// which are equally long. Both lie on the memory `on`.
    ///
    /// # Errors
    /// [`Error::Collective`](crate::Error::Collective); the memory's refusal.
    fn all_gather(&self, on: &M, part: M::View<'_, f64>, all: M::ViewMut<'_, f64>) -> Result<()>;
    /// Adds `sums` up over all ranks, element by element: the same bits on each. They lie on the memory `on`.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    fn all_reduce<P: Real>(&self, on: &M, sums: M::ViewMut<'_, P>) -> Result<()>;
}

/// A rank among several: of a [`Collective`] what does not depend on the memory.
pub trait Rank: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn size(&self) -> usize;
    /// Everybody's words, by rank: from host to host.
    ///
    /// # Errors
    /// [`Error::Collective`](crate::Error::Collective).
    fn exchange(&self, mine: Words) -> Result<Vec<Words>>;
    /// The ranks that give the same `color` as this one, as a collective of their own, in their order here.
    /// Every rank makes this call, with a color of its choice.
    ///
    /// # Errors
    /// [`Error::Collective`](crate::Error::Collective).
    fn split(&self, color: usize) -> Result<Self>;
}
