//! Running statistics as an argument: of a training forward, and of a merge of statistics.
use super::{Visitor, channel, check_momentum};
use crate::{Memory, Real, Result};

/// Running statistics to update: `r <- (1 - factor) * r + factor * batch`.
#[non_exhaustive]
pub struct Running<'a, M: Memory, P: Real> {
    /// Length C.
    pub mean: M::ViewMut<'a, P>,
    /// Length C; receives the unbiased variance.
    pub var: M::ViewMut<'a, P>,
    /// Weight of the new value, 0 to 1; with 1 it replaces the old one, NaN too. A captured CUDA graph
    /// keeps the factor of its capture.
    pub factor: f64,
}

impl<'a, M: Memory, P: Real> Running<'a, M, P> {
    /// Mean and variance (length C each), and the weight of the new value, 0 to 1.
    pub fn new(mean: M::ViewMut<'a, P>, var: M::ViewMut<'a, P>, factor: f64) -> Self {
        Self { mean, var, factor }
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Running<'_, M, P> {
        let Self { mean, var, factor } = self;
        Running { mean: M::reborrow_mut(mean), var: M::reborrow_mut(var), factor: *factor }
    }

    pub(super) fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { mean, var, factor: _ } = self;
        visitor.write(channel("running_mean"), mean)?;
        visitor.write(channel("running_var"), var)
    }
    pub(super) fn check_values(this: Option<&Self>) -> Result<()> {
        this.map_or(Ok(()), |running| check_momentum(running.factor))
    }
}

/// A running statistic after a batch: `(1 - factor) * old + factor * new`; a factor of 1 replaces
/// what is not finite, too.
pub(in crate::engine) fn blend<P: Real>(old: P, new: f64, factor: f64) -> P {
    P::from_f64(if factor == 1.0 { new } else { (1.0 - factor) * old.to_f64() + factor * new })
}
