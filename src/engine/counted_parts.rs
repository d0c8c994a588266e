//! Statistics of the values that count for a mask in all parts of a batch, merged on the host: a record on a device has
//! one count for all channels, and a mask one for each where it has other axes.
use super::ops::MaskRules;
use crate::{Host, Memory, OneValue, Real, Result, Running};

/// Mean, what rounding left of it, biased variance and number of values of a channel.
fn of_channel(counted: &[f64], channels: usize, c: usize) -> [f64; 4] {
    [0, 1, 2, 3].map(|k| counted[k * channels + c])
}

/// Parts, of each four numbers for every channel, as one.
pub(crate) fn merged(parts: &[f64], channels: usize) -> Vec<f64> {
    let mut all = vec![0.0; 4 * channels];
    for c in 0..channels {
        let parts = parts.chunks_exact(4 * channels).map(|part| of_channel(part, channels, c));
        let parts = || parts.clone().filter(|part| part[3] > 0.0);
        let count: f64 = parts().map(|part| part[3]).sum();
        // Means count from the first part's, so that large ones keep their digits.
        let base = parts().next().map_or(0.0, |part| part[0]);
        let base = if base.is_finite() { base } else { 0.0 };
        let of = |[mean, rest, var, n]: [f64; 4]| (mean - base + rest, var, n / count);
        // Chan's formula: the variance within the parts plus that between them.
        let offset: f64 = parts().map(of).map(|(mean, _, share)| share * mean).sum();
        let var = parts().map(of).map(|(mean, var, share)| share * (var + (mean - offset).powi(2)));
        let (mean, var) = (base + offset, var.sum::<f64>());
        let rest = base - mean + offset;
        let rest = if rest.is_finite() { rest } else { 0.0 };
        for (k, value) in [mean, rest, var, count].into_iter().enumerate() {
            all[k * channels + c] = value;
        }
    }
    all
}

/// What the values that count in all parts come to by a mask's rules: length 4C.
pub(crate) struct CountedParts<'a> {
    pub all: &'a [f64],
    pub rules: MaskRules,
}

impl CountedParts<'_> {
    fn channels(&self) -> usize {
        self.all.len() / 4
    }
    fn of(&self, c: usize) -> [f64; 4] {
        of_channel(self.all, self.channels(), c)
    }
    /// Of every channel how many values count.
    pub fn counts(&self) -> &[f64] {
        &self.all[3 * self.channels()..]
    }
    /// The record of a batch of so many values per channel, length 3C + 1.
    pub fn record(&self, values: usize) -> Vec<f64> {
        let channels = self.channels();
        let mut record = vec![0.0; 3 * channels + 1];
        for c in 0..channels {
            let statistics = self.rules.statistics(self.of(c));
            for (k, value) in statistics.into_iter().enumerate() {
                record[k * channels + c] = value;
            }
        }
        record[3 * channels] = values as f64;
        record
    }
    /// Moves running statistics by them.
    pub fn update<P: Real>(&self, running: &mut Running<'_, Host, P>, one_value: OneValue) {
        let rules = self.rules;
        for c in 0..self.channels() {
            let of = self.of(c);
            let ([mean, rest, _], (_, squares)) =
                (rules.statistics(of), rules.less_and_squares(of));
            let var_over = |over: f64| squares / (over + rules.count_eps);
            running.update_masked(c, of[3], mean + rest, var_over, (one_value, rules.all_masked));
        }
    }
}

/// Running statistics on the host for a while.
pub(crate) struct OnHost<P> {
    mean: Vec<P>,
    var: Vec<P>,
    skipped: Option<Vec<f64>>,
    /// Everything else of them.
    like: Like,
}
type Like = (f64, f64, bool, crate::Variance, crate::EmptyBatch, crate::NonFinite);

impl<P: Real> OnHost<P> {
    pub fn new<M: Memory>(memory: &M, from: &Running<'_, M, P>) -> Result<Self> {
        let Running { mean, var, factor, var_factor, averages, .. } = from;
        let skipped = from.skipped.as_ref().map(|skipped| memory.download(M::as_view(skipped)));
        Ok(Self {
            mean: memory.download(M::as_view(mean))?,
            var: memory.download(M::as_view(var))?,
            skipped: skipped.transpose()?,
            like: (
                *factor,
                *var_factor,
                *averages,
                from.variance,
                from.empty_batch,
                from.non_finite,
            ),
        })
    }
    pub fn borrow(&mut self) -> Running<'_, Host, P> {
        let (factor, var_factor, averages, variance, empty_batch, non_finite) = self.like;
        let mut running = Running::<Host, P>::new(&mut self.mean, &mut self.var, factor);
        running.skipped = self.skipped.as_deref_mut();
        let running = running.var_factor(var_factor).averages(averages).variance(variance);
        running.empty_batch(empty_batch).non_finite(non_finite)
    }
    /// Adds both to the sums of several.
    pub fn add_to(&self, sums: &mut [Vec<f64>; 2]) {
        for (sums, values) in sums.iter_mut().zip([&self.mean, &self.var]) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value.to_f64());
        }
    }
    pub fn write<M: Memory>(self, memory: &M, to: &mut Running<'_, M, P>) -> Result<()> {
        memory.write(&self.mean, M::reborrow_mut(&mut to.mean))?;
        memory.write(&self.var, M::reborrow_mut(&mut to.var))?;
        match (self.skipped, &mut to.skipped) {
            (Some(skipped), Some(to)) => memory.write(&skipped, M::reborrow_mut(to)),
            _ => Ok(()),
        }
    }
}
