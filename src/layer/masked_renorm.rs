//! Renormalization by the statistics of the values that count for a mask.
use super::renorm::Scratch;
use super::{BatchNorm, Part, Renorm, RunningStats};
use crate::{
    AllMasked, Element, Engine, Error, ForwardTrain, Mask, Memory, Op, Real, Request, Result,
    Running, Saved, Shape, Variance,
};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// A training forward by a mask with renormalization: r and d by the statistics of the values that count,
    /// which a first forward takes, then a second one that is scaled and shifted by them. As in Keras 3.14.
    pub(super) fn forward_masked_renormalized<E: Element<Acc = P>>(
        &mut self,
        renorm: Renorm,
        mask: Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (shape, config, updates) = (whole.shape, self.affine.config, self.updates_running);
        self.or_decline(self.check_masked_renormalized(&shape, &mask))?;
        let Self { affine, running, renorm: scratch, .. } = self;
        let Some(running) = running else { return Ok(()) };
        let (engine, memory, channels) = (&affine.engine, affine.engine.memory(), affine.channels);
        let made = Scratch::of(scratch, memory, channels)
            .and_then(|scratch| Ok((scratch, saved.take_factors(memory, channels)?)));
        if made.is_err() {
            engine.decline(Op::ForwardTrain);
        }
        let (scratch, mut factors) = made?;

        // A batch whose weight is 1 leaves its own statistics.
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let (mean, var) = (M::view_mut(&mut scratch.scale), M::view_mut(&mut scratch.shift));
        let mut args = ForwardTrain::<M, E>::new(x, y).eps(config.eps).mask(mask.reborrow());
        let own = Running::<M, P>::new(mean, var, 1.0).variance(Variance::Biased);
        (args.running, args.one_value) = (Some(own), config.one_value);
        args.residual = whole.residual.as_ref().map(M::reborrow);
        // Of several ranks it leaves how many values count in all parts.
        args.saved = Some(&mut *saved).filter(|_| engine.ranks() > 1);
        engine.forward_train(&shape, args)?;
        let count = match saved.counted().filter(|_| engine.ranks() > 1) {
            Some(all) => memory.download(M::view(&all.counts))?.first().map_or(0, |n| *n as usize),
            None => {
                let counts = memory.download(M::reborrow(&mask.places))?;
                counts.iter().filter(|byte| **byte != 0).count()
            }
        };
        let of = |buf: &M::Buf<P>| memory.download(M::view(buf));
        let widen = |values: Vec<P>| values.into_iter().map(|v| v.to_f64()).collect::<Vec<_>>();
        let (mut mean, mut var) = (widen(of(&scratch.scale)?), widen(of(&scratch.shift)?));
        // Of nothing a mean and a variance of 0 count as a batch's in Keras, or NaN, or they move nothing.
        let of_none = if mask.all_masked == AllMasked::Nan { f64::NAN } else { 0.0 };
        let moves = match (count, mask.all_masked) {
            (0, AllMasked::Keep) => 0.0,
            (0, _) => 2.0,
            (n, _) => n as f64,
        };
        if count == 0 {
            mean.fill(of_none);
            var.fill(of_none);
        }
        let record = [mean, vec![0.0; channels], var, vec![moves]].concat();
        memory.write(&record, M::view_mut(&mut scratch.record))?;
        affine.renormalize((renorm, updates && moves > 0.0), running, scratch, &mut factors)?;

        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let mask = mask.reborrow();
        let mut args = affine.train(x, residual, Some(mask), y, None, Some(&mut *saved));
        args.weight = Some(M::view(&scratch.scale));
        args.bias = Some(M::view(&scratch.shift));
        engine.forward_train(&shape, args)?;
        saved.set_renormalized(factors, affine.weight.is_some(), affine.bias.is_some());
        if updates && !(config.momentum.leaves_out_empty() && shape.is_empty()) {
            RunningStats::count(running);
        }
        Ok(())
    }

    fn check_masked_renormalized(&self, shape: &Shape, mask: &Mask<'_, M>) -> Result<()> {
        self.check_capture()?;
        self.affine.check(shape)?;
        self.check_lengths()?;
        if mask.last.is_some_and(|last| shape.inner() > 1 || last != shape.channels()) {
            let reason = "with renormalization: expected one of positions, of which every channel has as many \
                          values, got one without a last axis that is not the channels'";
            return Err(Error::invalid("mask", reason));
        }
        self.engine().supports(shape, Request::new(Op::Renormalize, P::DTYPE))
    }
}
