//! Running statistics, and how much of them a new batch replaces.
use super::{Momentum, copy, fill};
use crate::memory::filled;
use crate::{Error, Memory, Real, Result, Running};

/// Running mean and variance of C channels, and how many batches went in.
///
/// A layer has one (see [`BatchNorm::running`](crate::BatchNorm::running)); it also serves code
/// that holds weight and bias itself and calls an engine.
#[non_exhaustive]
pub struct RunningStats<M: Memory, P: Real> {
    /// Length C.
    pub mean: M::Buf<P>,
    /// Length C, unbiased: what [`Engine::forward_train`](crate::Engine::forward_train) stores.
    pub var: M::Buf<P>,
    /// Training forwards so far, those of empty batches included unless the momentum is
    /// [`Momentum::Average`]. A forward that is captured into a CUDA graph counts once, at the capture,
    /// and its replays do not: whoever replays it adds them here.
    pub num_batches_tracked: u64,
}

impl<M: Memory, P: Real> RunningStats<M, P> {
    /// Mean 0, variance 1, no batches.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn new(memory: &M, channels: usize) -> Result<Self> {
        let var = memory.upload(&filled(channels, P::from_f64(1.0))?)?;
        Ok(Self { mean: memory.zeros(channels)?, var, num_batches_tracked: 0 })
    }

    /// What the next training forward updates. Once that went well, call
    /// [`count`](Self::count).
    pub fn next(&mut self, momentum: Momentum) -> Running<'_, M, P> {
        let factor = match momentum {
            Momentum::Exponential(factor) => factor,
            // The new batch counts too: the first one replaces everything.
            Momentum::Cumulative | Momentum::Average => {
                1.0 / (self.num_batches_tracked as f64 + 1.0)
            }
        };
        Running::new(M::view_mut(&mut self.mean), M::view_mut(&mut self.var), factor)
    }

    /// One batch more, up to the most that a state dict holds, `i64::MAX`.
    pub fn count(&mut self) {
        const MOST: u64 = i64::MAX as u64;
        self.num_batches_tracked = self.num_batches_tracked.saturating_add(1).min(MOST);
    }

    /// Mean 0, variance 1, no batches, in the memory that is there.
    pub(super) fn reset(&mut self, memory: &M) -> Result<()> {
        // First what a captured graph refuses.
        fill(memory, &mut self.var, 1.0)?;
        memory.zero(M::view_mut(&mut self.mean))?;
        self.num_batches_tracked = 0;
        Ok(())
    }

    pub(super) fn to<N: Memory>(&self, from: &M, to: &N) -> Result<RunningStats<N, P>> {
        let (mean, var) = (copy(from, to, &self.mean)?, copy(from, to, &self.var)?);
        Ok(RunningStats { mean, var, num_batches_tracked: self.num_batches_tracked })
    }

    /// The fields are public: what stands there may have another length by now.
    pub(super) fn check(&self, channels: usize) -> Result<()> {
        for (what, buf) in [("running_mean", &self.mean), ("running_var", &self.var)] {
            let got = M::len(&M::view(buf));
            if got != channels {
                return Err(Error::Length { what, expected: channels, got });
            }
        }
        Ok(())
    }
}

impl<M: Memory, P: Real> std::fmt::Debug for RunningStats<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("RunningStats");
        debug.field("num_batches_tracked", &self.num_batches_tracked).finish_non_exhaustive()
    }
}
