//! A list of inputs as one batch: each lies where it is, and they have their statistics in common.
use super::affine::Given;
use super::{BatchNorm, Param, RunningStats};
use crate::memory::filled;
use crate::{
    Backward, Element, Engine, Error, Input, Memory, MergeStats, Real, Result, Saved, Shape, Stats,
};

/// What [`BatchNorm::forward_parts`] leaves for [`BatchNorm::backward_parts`].
pub struct SavedParts<M: Memory, P: Real> {
    parts: Vec<Saved<M, P>>,
    /// Length 2C + 1, room for the sums of all parts in a backward; absent behind frozen statistics.
    total: Option<Total<M, P>>,
}

/// The sums of g and of g * xhat over all parts, then the number of values per channel.
struct Total<M: Memory, P: Real>(M::Buf<P>);

impl<M: Memory, P: Real> std::fmt::Debug for SavedParts<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedParts").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl<M: Memory, P: Real> SavedParts<M, P> {
    /// Number of parts.
    pub fn len(&self) -> usize {
        self.parts.len()
    }
    /// Whether there are no parts, which no forward leaves.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
    /// Whether the statistics were frozen: a forward by running statistics.
    pub fn is_frozen(&self) -> bool {
        self.total.is_none()
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// Normalizes a list of inputs as one batch, each into new memory: in training by the statistics of all
    /// of them together, as exact as those of one tensor that holds them all, without making it. Each input
    /// has a shape of its own; all that they share is the number of channels. So a list may be one of samples,
    /// as Wolfram takes it, of sequences of different lengths, or of the micro-batches of one batch.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Cpu, Shape};
    /// # fn main() -> batchnorm::Result<()> {
    /// let mut bn = BatchNorm::new(&Cpu::default(), 2, Config::default())?;
    /// // Two sequences, of 3 and of 1 steps of 2 channels: 4 values per channel.
    /// let (long, short) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [7f32, 8.0]);
    /// let shapes = (Shape::new(&[3, 2], 1)?, Shape::new(&[1, 2], 1)?);
    /// let (ys, mut saved) = bn.forward_parts(&[(shapes.0, &long[..]), (shapes.1, &short[..])])?;
    /// assert!((bn.running().unwrap().mean[0] - 0.1 * 4.0).abs() < 1e-6);
    /// let grads = [(&long[..], &ys[0][..]), (&short[..], &ys[1][..])]; // x, and the gradient of y
    /// let grad_xs = bn.backward_parts(&mut saved, &grads)?;
    /// assert_eq!((grad_xs[0].len(), grad_xs[1].len()), (6, 2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The running statistics move once, by the whole list. It takes one more pass over the inputs than
    /// [`forward`](Self::forward) does, and memory for what is saved: it is not for steps that may allocate
    /// nothing. In evaluation the inputs have nothing in common; [`infer`](Self::infer) does for each.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), of any of the inputs; [`Error::Invalid`] for an empty list.
    #[allow(clippy::type_complexity)] // outputs, and what is saved
    pub fn forward_parts<E: Element<Acc = P>>(
        &mut self,
        parts: &[(Shape, M::View<'_, E>)],
    ) -> Result<(Vec<M::Buf<E>>, SavedParts<M, P>)> {
        if parts.is_empty() {
            return Err(Error::invalid("parts", "expected at least 1, got none"));
        }
        for (shape, x) in parts {
            self.check_lens(shape, &[("x", M::len(x))])?;
        }
        let ys = parts.iter().map(|(shape, _)| self.zeros(shape));
        let mut ys = ys.collect::<Result<Vec<M::Buf<E>>>>()?;
        let mut saved = SavedParts { parts: vec![], total: None };
        let records = match &self.running {
            Some(_) if !self.training => None,
            _ => Some(self.records(parts)?),
        };
        if let Some(records) = &records {
            let mut sums = filled(2 * self.channels() + 1, P::from_f64(0.0))?;
            sums[2 * self.channels()] = P::from_f64(records.per_channel as f64);
            saved.total = Some(Total(self.affine.engine.memory().upload(&sums)?));
        }
        for ((shape, x), y) in parts.iter().zip(&mut ys) {
            let given = match (&records, &self.running) {
                (None, Some(running)) => Given::Running(running),
                (Some(records), _) => Given::Record(&records.merged),
                (None, None) => continue, // there is one or the other
            };
            let (x, y, mut part) = (Input::View(M::reborrow(x)), M::view_mut(y), Saved::new());
            self.affine.by_given(shape, x, None, y, given, Some(&mut part))?;
            saved.parts.push(part);
        }
        if let Some(records) = records {
            self.update_running(records)?;
        }
        Ok((ys, saved))
    }

    /// The statistics of each part, and of all.
    fn records<E: Element<Acc = P>>(
        &self,
        parts: &[(Shape, M::View<'_, E>)],
    ) -> Result<Records<M>> {
        let (engine, len) = (&self.affine.engine, 3 * self.channels() + 1);
        let mut all = engine.memory().zeros(len * parts.len())?;
        for (k, (shape, x)) in parts.iter().enumerate() {
            let mut all = M::view_mut(&mut all);
            if let Some(record) = M::slice_mut(&mut all, k * len..(k + 1) * len) {
                engine.stats(shape, Stats::<M, E>::new(M::reborrow(x), record))?;
            }
        }
        let per_channel = parts.iter().map(|(shape, _)| shape.per_channel()).sum();
        let mut records = Records { all, merged: engine.memory().zeros(len)?, per_channel };
        engine.merge_stats(records.merge::<P>(self.affine.config.one_value))?;
        Ok(records)
    }

    /// The running statistics by all parts, where a training forward moves them.
    fn update_running(&mut self, mut records: Records<M>) -> Result<()> {
        let config = self.affine.config;
        let moves = self.training && self.updates_running;
        let Some(running) = self.running.as_mut().filter(|_| moves) else { return Ok(()) };
        let mut args = records.merge::<P>(config.one_value);
        args.running = Some(config.next(running));
        self.affine.engine.merge_stats(args)?;
        if !(config.momentum.leaves_out_empty() && records.per_channel == 0) {
            RunningStats::count(running);
        }
        Ok(())
    }

    /// The gradient of each input of [`forward_parts`](Self::forward_parts), in new memory, from each input
    /// and the gradient of its output, in that order; the parameters' go to
    /// [`Param::grad`](crate::Param::grad), summed over the list.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), of any of the parts; [`Error::Saved`] for a list of another length.
    #[allow(clippy::type_complexity)] // pairs of views
    pub fn backward_parts<E: Element<Acc = P>>(
        &mut self,
        saved: &mut SavedParts<M, P>,
        parts: &[(M::View<'_, E>, M::View<'_, E>)],
    ) -> Result<Vec<M::Buf<E>>> {
        if saved.len() != parts.len() {
            return Err(Error::saved("number of parts", saved.len(), parts.len()));
        }
        let engine = self.affine.engine.clone();
        let mut grad_xs = vec![];
        for (saved, (x, grad_y)) in saved.parts.iter().zip(parts) {
            let forward = saved.made()?.0;
            forward.check_parameters(self.weight().is_some(), self.bias().is_some())?;
            let tensors = [("x", M::len(x)), ("grad_y", M::len(grad_y))];
            self.check_lens(&forward.shape, &tensors)?;
            grad_xs.push(self.zeros(&forward.shape)?);
        }
        if let Some(Total(total)) = &mut saved.total {
            for (k, (saved, (x, grad_y))) in saved.parts.iter().zip(parts).enumerate() {
                let mut total = M::view_mut(total);
                let mut sums = M::split_at_mut(&mut total, self.affine.channels);
                let mut args = backward_of::<E, M>(saved, x, grad_y).accumulate(k > 0);
                if let Some((sum_g, rest)) = &mut sums {
                    args.grad_bias = Some(M::reborrow_mut(sum_g));
                    args.grad_weight = M::slice_mut(rest, 0..self.affine.channels);
                }
                engine.backward(&saved.made()?.0.shape, args)?;
            }
        }
        let both = [&mut self.affine.weight, &mut self.affine.bias];
        let accumulate = Param::begin_backward(engine.memory(), both)?;
        let pairs = saved.parts.iter().zip(parts).zip(&mut grad_xs);
        for (k, ((part, (x, grad_y)), grad_x)) in pairs.enumerate() {
            let mut args = backward_of::<E, M>(part, x, grad_y).accumulate(accumulate || k > 0);
            args.grad_x = Some(M::view_mut(grad_x));
            args.grad_weight = Param::wanted(&mut self.affine.weight);
            args.grad_bias = Param::wanted(&mut self.affine.bias);
            args.total_sums = saved.total.as_ref().map(|Total(total)| M::view(total));
            engine.backward(&part.made()?.0.shape, args)?;
        }
        Param::end_backward([&mut self.affine.weight, &mut self.affine.bias]);
        Ok(grad_xs)
    }
}

/// The statistics of a list of inputs.
struct Records<M: Memory> {
    /// One after the other.
    all: M::Buf<f64>,
    /// Of all of them.
    merged: M::Buf<f64>,
    /// Values per channel in all of them.
    per_channel: usize,
}

impl<M: Memory> Records<M> {
    fn merge<P: Real>(&mut self, one_value: crate::OneValue) -> MergeStats<'_, M, P> {
        let args = MergeStats::new(M::view(&self.all), M::view_mut(&mut self.merged));
        args.known(self.per_channel).one_value(one_value)
    }
}

fn backward_of<'a, E: Element, M: Memory>(
    saved: &'a Saved<M, E::Acc>,
    x: &'a M::View<'_, E>,
    grad_y: &'a M::View<'_, E>,
) -> Backward<'a, M, E> {
    Backward::new(saved, M::reborrow(x), M::reborrow(grad_y))
}
