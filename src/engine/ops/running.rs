//! Running statistics as an argument: of a training forward, and of a merge of statistics.
use super::{
    AllMasked, EmptyBatch, NonFinite, OneValue, RunningRules, Variance, Visitor, channel,
    check_momentum,
};
use crate::{Host, Memory, Real, Result};

/// Running statistics to update: `r <- (1 - factor) * r + factor * batch`.
///
/// ```
/// # use batchnorm::{Cpu, Engine, ForwardTrain, Host, NonFinite, Running, Shape, Variance};
/// let (shape, x) = (Shape::new(&[4, 1], 1)?, [1f32, 2.0, 3.0, 4.0]);
/// let (mut y, mut mean, mut var, mut skipped) = ([0.0; 4], [0.0], [1.0], [0.0]);
/// let mut args = ForwardTrain::<Host, f32>::new(&x, &mut y);
/// let running = Running::<Host, f32>::new(&mut mean, &mut var, 0.1);
/// let running = running.var_factor(0.25).variance(Variance::Biased);
/// args.running = Some(running.non_finite(NonFinite::Skip).skipped(&mut skipped));
/// Cpu::default().forward_train(&shape, args)?;
/// assert_eq!((mean, var, skipped), ([0.25], [0.75 + 0.25 * 1.25], [0.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct Running<'a, M: Memory, P: Real> {
    /// Length C.
    pub mean: M::ViewMut<'a, P>,
    /// Length C; receives the unbiased variance, or the biased one.
    pub var: M::ViewMut<'a, P>,
    /// Weight of the new mean, 0 to 1; with 1 it replaces the old one, NaN too. A captured CUDA graph
    /// keeps the factors of its capture.
    pub factor: f64,
    /// Weight of the new variance, likewise: [`new`](Self::new) has it equal.
    pub var_factor: f64,
    /// Whether both factors are one over the number of batches. Those that a channel has skipped are not
    /// among them then, where [`skipped`](Self::skipped) counts them.
    pub averages: bool,
    /// Which variance.
    pub variance: Variance,
    /// What a batch without values does.
    pub empty_batch: EmptyBatch,
    /// What a batch does whose statistics are not finite.
    pub non_finite: NonFinite,
    /// Length C: grows by 1 in a channel whose update is skipped. Whoever reads it on the host waits for
    /// the device then, and not before.
    pub skipped: Option<M::ViewMut<'a, f64>>,
}

impl<'a, M: Memory, P: Real> Running<'a, M, P> {
    /// Mean and variance (length C each), and the weight of the new value in both, 0 to 1: the unbiased
    /// variance, whatever is not finite too, nothing of an empty batch.
    pub fn new(mean: M::ViewMut<'a, P>, var: M::ViewMut<'a, P>, factor: f64) -> Self {
        Self {
            mean,
            var,
            factor,
            var_factor: factor,
            averages: false,
            variance: Variance::default(),
            empty_batch: EmptyBatch::default(),
            non_finite: NonFinite::default(),
            skipped: None,
        }
    }
    /// With this weight of the new variance, 0 to 1.
    pub fn var_factor(self, var_factor: f64) -> Self {
        Self { var_factor, ..self }
    }
    /// With factors that are one over the number of batches.
    pub fn averages(self, averages: bool) -> Self {
        Self { averages, ..self }
    }
    /// With this variance.
    pub fn variance(self, variance: Variance) -> Self {
        Self { variance, ..self }
    }
    /// With this rule for a batch without values.
    pub fn empty_batch(self, empty_batch: EmptyBatch) -> Self {
        Self { empty_batch, ..self }
    }
    /// With this rule for a batch whose statistics are not finite.
    pub fn non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }
    /// Counts here (length C) what is skipped.
    pub fn skipped(self, skipped: M::ViewMut<'a, f64>) -> Self {
        Self { skipped: Some(skipped), ..self }
    }
    /// What is asked of an engine.
    pub fn rules(&self) -> RunningRules {
        RunningRules {
            variance: self.variance,
            empty_batch: self.empty_batch,
            non_finite: self.non_finite,
            separate_factors: self.var_factor != self.factor,
            factor_per_channel: self.averages && self.skipped.is_some(),
        }
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Running<'_, M, P> {
        let Self { mean, var, skipped, .. } = self;
        Running {
            mean: M::reborrow_mut(mean),
            var: M::reborrow_mut(var),
            factor: self.factor,
            var_factor: self.var_factor,
            averages: self.averages,
            variance: self.variance,
            empty_batch: self.empty_batch,
            non_finite: self.non_finite,
            skipped: skipped.as_mut().map(M::reborrow_mut),
        }
    }

    pub(super) fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self {
            mean,
            var,
            factor: _,
            var_factor: _,
            averages: _,
            variance: _,
            empty_batch: _,
            non_finite: _,
            skipped,
        } = self;
        visitor.write(channel("running_mean"), mean)?;
        visitor.write(channel("running_var"), var)?;
        visitor.write_some(channel("skipped"), skipped)
    }
    pub(super) fn check_values(this: Option<&Self>) -> Result<()> {
        this.map_or(Ok(()), |running| {
            check_momentum(running.factor)?;
            check_momentum(running.var_factor)
        })
    }
}

impl<P: Real> Running<'_, Host, P> {
    /// The same rules for the arrays of some channels.
    pub(in crate::engine) fn of_channels<'b>(
        &self,
        mean: &'b mut [P],
        var: &'b mut [P],
        skipped: Option<&'b mut [f64]>,
    ) -> Running<'b, Host, P> {
        Running {
            mean,
            var,
            factor: self.factor,
            var_factor: self.var_factor,
            averages: self.averages,
            variance: self.variance,
            empty_batch: self.empty_batch,
            non_finite: self.non_finite,
            skipped,
        }
    }
    /// A batch of m values per channel in channel c: its mean, and its variance over a divisor, m or m - 1.
    pub(in crate::engine) fn update(
        &mut self,
        c: usize,
        m: f64,
        mean: f64,
        var_over: impl FnOnce(f64) -> f64,
        one_value: OneValue,
    ) {
        let (mean, var) = match (m > 0.0, self.empty_batch) {
            (true, _) if self.variance == Variance::Biased || m == 1.0 => (mean, var_over(m)),
            (true, _) => (mean, var_over(m - 1.0)),
            (false, EmptyBatch::Nan) => (f64::NAN, f64::NAN),
            (false, EmptyBatch::Keep) => return,
        };
        let keeps_var = m == 1.0 && one_value == OneValue::KeepVariance;
        self.take(c, mean, var, keeps_var);
    }
    /// The same of a batch of which m values count.
    pub(in crate::engine) fn update_masked(
        &mut self,
        c: usize,
        m: f64,
        mean: f64,
        var_over: impl FnOnce(f64) -> f64,
        (one_value, all_masked): (OneValue, AllMasked),
    ) {
        match all_masked {
            _ if m > 0.0 => self.update(c, m, mean, var_over, one_value),
            AllMasked::Keep => {}
            AllMasked::Zero => self.take(c, 0.0, 0.0, false),
            AllMasked::Nan => self.take(c, f64::NAN, f64::NAN, false),
        }
    }

    /// Whether a batch of m values per channel moves both of every channel by their factors, without exceptions:
    /// then what sums of squares are divided by, for the variance.
    pub(in crate::engine) fn moves_plainly(&self, m: f64, one_value: OneValue) -> Option<f64> {
        let keeps_var = m == 1.0 && one_value == OneValue::KeepVariance;
        let plain = m > 0.0 && !keeps_var && self.skipped.is_none();
        let over = if self.variance == Variance::Biased || m == 1.0 { m } else { m - 1.0 };
        (plain && self.non_finite == NonFinite::Propagate).then_some(over)
    }
    /// Moves those of channel c by a mean and a variance, or by the mean alone.
    fn take(&mut self, c: usize, mean: f64, var: f64, keeps_var: bool) {
        let is_finite = |value: f64| P::from_f64(value).to_f64().is_finite();
        if self.non_finite == NonFinite::Skip && !(is_finite(mean) && is_finite(var)) {
            if let Some(skipped) = &mut self.skipped {
                skipped[c] += 1.0;
            }
            return;
        }
        self.mean[c] = blend(self.mean[c], mean, self.weight(self.factor, c));
        if !keeps_var {
            self.var[c] = blend(self.var[c], var, self.weight(self.var_factor, c));
        }
    }

    /// The weight of the new value in channel c.
    fn weight(&self, of_all: f64, c: usize) -> f64 {
        let skipped = self.skipped.as_ref().filter(|_| self.averages);
        let left_out = skipped.map_or(0.0, |skipped| skipped[c]);
        if left_out > 0.0 && of_all > 0.0 {
            1.0 / (1.0 / of_all - left_out).max(1.0)
        } else {
            of_all
        }
    }
}

/// The kernels' arguments: `kernels/running.cuh` has the same bits.
#[cfg(feature = "cuda")]
impl<M: Memory, P: Real> Running<'_, M, P> {
    /// The rules as the bits that kernels take.
    pub(in crate::engine) fn bits(&self, one_value: OneValue) -> u32 {
        u32::from(self.variance == Variance::Biased)
            | u32::from(self.non_finite == NonFinite::Skip) << 1
            | u32::from(one_value == OneValue::KeepVariance) << 2
            | u32::from(self.empty_batch == EmptyBatch::Nan) << 3
            | u32::from(self.averages) << 4
    }
}

/// A running statistic after a batch: `(1 - factor) * old + factor * new`; a factor of 1 replaces
/// what is not finite, too.
fn blend<P: Real>(old: P, new: f64, factor: f64) -> P {
    P::from_f64(if factor == 1.0 { new } else { (1.0 - factor) * old.to_f64() + factor * new })
}
