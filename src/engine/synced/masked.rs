//! Statistics of the values that count for a mask, of which every rank has a part.
//!
//! A record has one count for all channels, and a mask one for each where it has other axes. So what ranks gather
//! here has four numbers of each channel, and is merged on the host, on every rank alike. A device is waited for.
use super::call::Call;
use super::common::sum;
use super::{Collective, Synced};
use crate::engine::check::check_values_per_channel;
use crate::engine::ops::MaskRules;
use crate::engine::saved_counted::Counted;
use crate::{
    AllMasked, Element, Engine, Error, ForwardEval, ForwardTrain, Host, Input, Mask, Memory,
    OneValue, Real, Result, Running, Shape, Statistics,
};

impl<M: Memory, G: Engine<Memory = M>, C: Collective<M>> Synced<G, C> {
    /// A training forward by the values that count in all parts.
    pub(super) fn forward_masked<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, M, E>,
        mask: Mask<'_, M>,
    ) -> Result<()> {
        let mut rooms = self.rooms.enter();
        let (memory, channels, rules) = (self.memory(), shape.channels(), mask.rules());
        let call = Call::of_forward(channels, &args).mask(Some(rules));
        let own = self.begin_masked(&mut rooms, shape, &mut args, mask);
        let ((room, mine), parts) = self.agree(call, |_| shape.per_channel(), own)?;
        let values = sum(&parts);
        check_values_per_channel("x", values, args.one_value)?;
        let counted = self.merge_counted(mine, channels)?;

        let mut record = vec![0.0; 3 * channels + 1];
        let mut running = args.running.as_mut().map(|r| OnHost::new(memory, r)).transpose()?;
        for c in 0..channels {
            let all = Masked { of: of_channel(&counted, channels, c), rules };
            (record[c], record[channels + c], record[2 * channels + c]) = all.statistics();
            if let Some(running) = &mut running {
                all.update(&mut running.borrow(), c, args.one_value);
            }
        }
        record[3 * channels] = values as f64;
        memory.write(&record, M::view_mut(&mut room.merged))?;
        if let (Some(on_host), Some(running)) = (running, &mut args.running) {
            on_host.write(memory, running)?;
        }
        let statistics = Statistics::Record(M::view(&room.merged));
        let (x, y) = (Input::View(M::reborrow(&args.x)), M::reborrow_mut(&mut args.y));
        let mut by = ForwardEval::<M, E>::with_input(x, y, statistics);
        by.residual = args.residual.as_ref().map(M::reborrow);
        by.weight = args.weight.as_ref().map(M::reborrow);
        by.bias = args.bias.as_ref().map(M::reborrow);
        by.saved = args.saved.as_deref_mut();
        self.engine.forward_eval(shape, by.activation(args.activation).eps(args.eps))?;
        if let Some(saved) = args.saved {
            let mut counts = saved.take_counts(memory, channels)?;
            memory.write(&counted[3 * channels..], M::view_mut(&mut counts))?;
            saved.set_synced();
            saved.set_counted(rules, Counted { counts, values });
        }
        Ok(())
    }

    /// The check of the forward, and what this rank's part comes to.
    fn begin_masked<'r, E: Element>(
        &self,
        rooms: &'r mut super::Map<M>,
        shape: &Shape,
        args: &mut ForwardTrain<'_, M, E>,
        mask: Mask<'_, M>,
    ) -> Result<(&'r mut super::Room<M>, Vec<f64>)> {
        {
            let mut mine = args.reborrow();
            (mine.one_value, mine.mask) = (OneValue::ZeroVariance, Some(mask.reborrow()));
            mine.check(self.memory(), shape)?;
        }
        if self.memory().is_capturing()? {
            let reason = "of several ranks' parts: expected none while a graph is captured, as what counts is read \
                          back, got one";
            return Err(Error::invalid("mask", reason));
        }
        self.supports(shape, args.request().mask(true))?;
        let room = self.room(rooms, shape.channels())?;
        let x = M::reborrow(&args.x);
        Ok((room, self.engine.masked_stats(shape, x, mask, args.eps)?))
    }

    /// What all parts come to, in the steps that records take.
    fn merge_counted(&self, mine: Vec<f64>, channels: usize) -> Result<Vec<f64>> {
        let (memory, mut mine) = (self.memory(), mine);
        for level in &self.levels {
            let own = memory.upload(&mine)?;
            let mut all = memory.zeros(mine.len().saturating_mul(level.ranks.size()))?;
            level.ranks.all_gather(memory, M::view(&own), M::view_mut(&mut all))?;
            mine = merged(&memory.download(M::view(&all))?, channels);
        }
        Ok(mine)
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

/// What the values that count of a channel come to by a mask's rules.
struct Masked {
    of: [f64; 4],
    rules: MaskRules,
}

impl Masked {
    /// How far a larger count takes the mean towards 0, and the sum of squares about what it is then.
    fn less_and_squares(&self) -> (f64, f64) {
        let ([mean, rest, var, count], eps) = (self.of, self.rules.count_eps);
        if eps == 0.0 || count == 0.0 {
            return (0.0, count * var);
        }
        let less = (mean + rest) * (eps / (count + eps));
        (less, count * (var + less * less))
    }
    /// Mean, its rest and the biased variance.
    fn statistics(&self) -> (f64, f64, f64) {
        let [mean, rest, _, count] = self.of;
        if count == 0.0 {
            let is_nan = self.rules.all_masked == AllMasked::Nan;
            let value = if is_nan { f64::NAN } else { 0.0 };
            return (value, 0.0, value);
        }
        let (less, squares) = self.less_and_squares();
        let to = mean + (rest - less);
        let rest = mean - to + (rest - less);
        (to, if rest.is_finite() { rest } else { 0.0 }, squares / (count + self.rules.count_eps))
    }
    fn update<P: Real>(&self, running: &mut Running<'_, Host, P>, c: usize, one_value: OneValue) {
        let (mean, rest, _) = self.statistics();
        let ((_, squares), eps) = (self.less_and_squares(), self.rules.count_eps);
        let rules = (one_value, self.rules.all_masked);
        running.update_masked(c, self.of[3], mean + rest, |over| squares / (over + eps), rules);
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
