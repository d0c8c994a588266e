//! Statistics of the values that count for a mask in all parts of a batch. A record has one count for all channels, and a
//! mask one for each where it has other axes: so there are four numbers of each channel here.
use super::ops::MaskRules;
use crate::{Host, Memory, OneValue, Real, Result, Running};

/// Arguments of [`Engine::merge_masked`](crate::Engine::merge_masked): what the values that count in the parts of a
/// batch come to together, and by a mask's rules. C is the number of channels.
pub struct MergeMasked<'a, M: Memory, P: Real> {
    /// Of every part means, what rounding left of them, biased variances and numbers of values that count, one after the
    /// other: length 4C each.
    pub(crate) parts: M::View<'a, f64>,
    pub(crate) rules: MaskRules,
    pub(crate) one_value: OneValue,
    /// What all of them move.
    pub(crate) running: Option<Running<'a, M, P>>,
    /// The same of all parts: length 4C.
    pub(crate) merged: M::ViewMut<'a, f64>,
    /// What is normalized by, length 3C + 1. Its count is that of the first channel.
    pub(crate) record: Option<M::ViewMut<'a, f64>>,
}

impl<'a, M: Memory, P: Real> MergeMasked<'a, M, P> {
    pub(crate) fn new(
        parts: M::View<'a, f64>,
        rules: MaskRules,
        merged: M::ViewMut<'a, f64>,
    ) -> Self {
        let (one_value, running, record) = (OneValue::ZeroVariance, None, None);
        Self { parts, rules, one_value, running, merged, record }
    }
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // on the host the lengths are the slices'
    pub(crate) fn channels(&self) -> usize {
        M::len(&M::as_view(&self.merged)) / 4
    }
    /// By way of the host, for which a device would be waited for.
    pub(crate) fn on_host(mut self, memory: &M) -> Result<()> {
        let channels = self.channels();
        let all = merged(&memory.download(self.parts)?, channels);
        let (one_value, of_all) = (self.one_value, CountedParts { all: &all, rules: self.rules });
        if let Some(running) = &mut self.running {
            let mut on_host = OnHost::new(memory, running)?;
            of_all.update(&mut on_host.borrow(), one_value);
            on_host.write(memory, running)?;
        }
        if let Some(record) = self.record {
            memory.write(&of_all.record(), record)?;
        }
        memory.write(&all, self.merged)
    }
}

/// Mean, what rounding left of it, biased variance and number of values of a channel.
fn of_channel(counted: &[f64], channels: usize, c: usize) -> [f64; 4] {
    [0, 1, 2, 3].map(|k| counted[k * channels + c])
}

/// Parts, of each four numbers for every channel, as one.
fn merged(parts: &[f64], channels: usize) -> Vec<f64> {
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
struct CountedParts<'a> {
    all: &'a [f64],
    rules: MaskRules,
}

impl CountedParts<'_> {
    fn channels(&self) -> usize {
        self.all.len() / 4
    }
    fn of(&self, c: usize) -> [f64; 4] {
        of_channel(self.all, self.channels(), c)
    }
    /// The record of them, length 3C + 1.
    fn record(&self) -> Vec<f64> {
        let channels = self.channels();
        let mut record = vec![0.0; 3 * channels + 1];
        for c in 0..channels {
            let statistics = self.rules.statistics(self.of(c));
            for (k, value) in statistics.into_iter().enumerate() {
                record[k * channels + c] = value;
            }
        }
        record[3 * channels] = self.rules.recorded(self.of(0)[3]);
        record
    }
    /// Moves running statistics by them.
    fn update<P: Real>(&self, running: &mut Running<'_, Host, P>, one_value: OneValue) {
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
struct OnHost<P> {
    mean: Vec<P>,
    var: Vec<P>,
    skipped: Option<Vec<f64>>,
    /// Everything else of them.
    like: Like,
}
type Like = (f64, f64, bool, crate::Variance, crate::EmptyBatch, crate::NonFinite);

impl<P: Real> OnHost<P> {
    fn new<M: Memory>(memory: &M, from: &Running<'_, M, P>) -> Result<Self> {
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
    fn borrow(&mut self) -> Running<'_, Host, P> {
        let (factor, var_factor, averages, variance, empty_batch, non_finite) = self.like;
        let mut running = Running::<Host, P>::new(&mut self.mean, &mut self.var, factor);
        running.skipped = self.skipped.as_deref_mut();
        let running = running.var_factor(var_factor).averages(averages).variance(variance);
        running.empty_batch(empty_batch).non_finite(non_finite)
    }
    fn write<M: Memory>(self, memory: &M, to: &mut Running<'_, M, P>) -> Result<()> {
        memory.write(&self.mean, M::reborrow_mut(&mut to.mean))?;
        memory.write(&self.var, M::reborrow_mut(&mut to.var))?;
        match (self.skipped, &mut to.skipped) {
            (Some(skipped), Some(to)) => memory.write(&skipped, M::reborrow_mut(to)),
            _ => Ok(()),
        }
    }
}
