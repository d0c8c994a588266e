//! Running statistics, and how much of them a new batch replaces.
use super::{BatchNorm, Momentum, RenormStats, copy, fill};
use crate::memory::filled;
use crate::{Engine, Error, Memory, Real, Result, Running};

/// Running mean and variance of C channels, and how many batches went in.
///
/// A layer has one (see [`BatchNorm::running`](crate::BatchNorm::running)); it also serves code
/// that holds weight and bias itself and calls an engine.
#[non_exhaustive]
pub struct RunningStats<M: Memory, P: Real> {
    /// Length C.
    pub mean: M::Buf<P>,
    /// Length C, unbiased or biased as [`Config::variance`](crate::Config::variance) says.
    pub var: M::Buf<P>,
    /// Length C: how many updates a channel has skipped; absent where none can be, see
    /// [`NonFinite`](crate::NonFinite).
    pub skipped: Option<M::Buf<f64>>,
    /// What renormalization keeps beside, where a layer has [`Config::renorm`](crate::Config::renorm).
    pub renorm: Option<RenormStats<M, P>>,
    /// Training forwards so far, those of empty batches included unless the momentum is
    /// [`Momentum::Average`] or [`Momentum::Debiased`], and skipped updates too. A forward that is captured into a CUDA graph counts once, at the capture,
    /// and its replays do not: whoever replays it adds them here.
    pub num_batches_tracked: u64,
    /// Of `skipped`, what a check has said already.
    pub(super) known_skipped: Vec<u64>,
}

impl<M: Memory, P: Real> RunningStats<M, P> {
    /// Mean 0, variance 1, no batches.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn new(memory: &M, channels: usize) -> Result<Self> {
        let var = memory.upload(&filled(channels, P::from_f64(1.0))?)?;
        let mean = memory.zeros(channels)?;
        let (skipped, renorm, num_batches_tracked, known_skipped) = (None, None, 0, Vec::new());
        Ok(Self { mean, var, skipped, renorm, num_batches_tracked, known_skipped })
    }

    /// What the next training forward updates. Once that went well, call
    /// [`count`](Self::count).
    pub fn next(&mut self, momentum: Momentum) -> Running<'_, M, P> {
        let (factor, var_factor) = momentum.factors(self.num_batches_tracked);
        let (mean, var) = (M::view_mut(&mut self.mean), M::view_mut(&mut self.var));
        let averages = matches!(momentum, Momentum::Cumulative | Momentum::Average);
        let mut next = Running::new(mean, var, factor).var_factor(var_factor).averages(averages);
        next.skipped = self.skipped.as_mut().map(M::view_mut);
        next
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
        self.renorm.as_mut().map_or(Ok(()), |renorm| renorm.reset(memory))?;
        self.num_batches_tracked = 0;
        self.forget_skipped(memory)
    }

    /// No skipped updates: the batches that are counted anew have none.
    pub(super) fn forget_skipped(&mut self, memory: &M) -> Result<()> {
        self.known_skipped.clear();
        self.skipped.as_mut().map_or(Ok(()), |skipped| memory.zero(M::view_mut(skipped)))
    }

    pub(super) fn to<N: Memory>(&self, from: &M, to: &N) -> Result<RunningStats<N, P>> {
        let (mean, var) = (copy(from, to, &self.mean)?, copy(from, to, &self.var)?);
        let skipped = self.skipped.as_ref().map(|skipped| copy(from, to, skipped)).transpose()?;
        let (num_batches_tracked, known_skipped) =
            (self.num_batches_tracked, self.known_skipped.clone());
        let renorm = self.renorm.as_ref().map(|renorm| renorm.to(from, to)).transpose()?;
        Ok(RunningStats { mean, var, skipped, renorm, num_batches_tracked, known_skipped })
    }

    /// The fields are public: what stands there may have another length by now.
    pub(super) fn check(&self, channels: usize) -> Result<()> {
        let skipped = self.skipped.as_ref().map_or(channels, |skipped| M::len(&M::view(skipped)));
        let [mean, var] = [&self.mean, &self.var].map(|buf| M::len(&M::view(buf)));
        for (what, got) in [("running_mean", mean), ("running_var", var), ("skipped", skipped)] {
            if got != channels {
                return Err(Error::Length { what, expected: channels, got });
            }
        }
        for (what, buf) in self.renorm.iter().flat_map(RenormStats::named) {
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

/// Updates that a layer has skipped, see [`NonFinite::Skip`](crate::NonFinite::Skip).
impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// How many updates of the running statistics each channel has skipped since the layer was made or reset, or
    /// loaded a state dict: all 0 unless the layer has [`NonFinite::Skip`](crate::NonFinite::Skip). Waits for the
    /// device, as no forward does.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn skipped_updates(&self) -> Result<Vec<u64>> {
        let skipped = self.running.as_ref().and_then(|running| running.skipped.as_ref());
        let Some(skipped) = skipped else { return Ok(vec![0; self.channels()]) };
        let counts = self.affine.engine.memory().download(M::view(skipped))?;
        Ok(counts.into_iter().map(|count| count as u64).collect())
    }

    /// Fails where [`skipped_updates`](Self::skipped_updates) has grown since the last such call: call it once
    /// in a while, at the end of an epoch say, to learn of batches that were not finite. Waits for the device.
    ///
    /// # Errors
    /// [`Error::NonFinite`] says in how many channels; the memory's refusal.
    pub fn check_skipped_updates(&mut self) -> Result<()> {
        let counts = self.skipped_updates()?;
        let Some(running) = &mut self.running else { return Ok(()) };
        let known = std::mem::replace(&mut running.known_skipped, counts);
        let before = |c: usize| known.get(c).copied().unwrap_or(0);
        let grown = running.known_skipped.iter().enumerate();
        let grown = grown.filter(|(c, count)| **count > before(*c));
        let (channels, updates, first) = grown.fold((0, 0, None), |(n, sum, first), (c, count)| {
            (n + 1, sum + (count - before(c)), first.or(Some(c)))
        });
        match first {
            Some(first) => Err(Error::NonFinite { channels, first, updates }),
            None => Ok(()),
        }
    }
}
