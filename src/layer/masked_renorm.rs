//! Renormalization by the statistics of the values that count for a mask.
use super::renorm::Scratch;
use super::{BatchNorm, Part, Renorm, RunningStats};
use crate::engine::Call;
use crate::{
    Element, EmptyBatch, Engine, Error, Mask, Memory, OneValue, Op, Real, Request, Result, Saved,
    Stats,
};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// A training forward by a mask with renormalization: r and d by the statistics of the values that count,
    /// which a first pass takes, then a forward that is scaled and shifted by them. As in Keras 3.14.
    pub(super) fn forward_masked_renormalized<E: Element<Acc = P>>(
        &mut self,
        renorm: Renorm,
        mask: Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (shape, config, updates) = (whole.shape, self.affine.config, self.updates_running);
        let checked = self.check_masked_renormalized(&mask, whole);
        self.or_decline(checked)?;
        let Self { affine, running, renorm: scratch, .. } = self;
        let Some(running) = running else { return Ok(()) };
        let (engine, memory, channels) = (&affine.engine, affine.engine.memory(), affine.channels);
        let made = Scratch::of(scratch, memory, channels)
            .and_then(|scratch| Ok((scratch, saved.take_factors(memory, channels)?)));
        if made.is_err() {
            engine.decline(Op::ForwardTrain);
        }
        let (scratch, mut factors) = made?;

        let call = {
            let residual = whole.residual.as_ref().map(M::reborrow);
            let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
            let tracked = Some(&mut *running).filter(|_| updates);
            let args = affine.train(x, residual, Some(mask.reborrow()), y, tracked, None);
            Call::of_forward(channels, &args).renorm()
        };
        let (x, record) = (M::reborrow(&whole.x), M::view_mut(&mut scratch.record));
        let args = Stats::<M, E>::new(x, record).mask(mask.reborrow());
        engine.masked_record(call, &shape, args, (config.eps, config.one_value))?;
        // The record's count says whether a batch in which nothing counts moves what is kept.
        let moves = (updates, EmptyBatch::Keep);
        affine.renormalize(renorm, moves, running, scratch, &mut factors)?;

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

    /// The check of all of it, before anything is written.
    fn check_masked_renormalized<E: Element<Acc = P>>(
        &self,
        mask: &Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
    ) -> Result<()> {
        let (shape, affine, engine) = (whole.shape, &self.affine, self.engine());
        self.check_capture()?;
        affine.check(&shape)?;
        self.check_lengths()?;
        if mask.last.is_some_and(|last| shape.inner() > 1 || last != shape.channels()) {
            let reason = "with renormalization: expected one of positions, of which every channel has as many \
                          values, got one without a last axis that is not the channels'";
            return Err(Error::invalid("mask", reason));
        }
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let mut args = affine.train(x, residual, Some(mask.reborrow()), y, None, None);
        if engine.ranks() > 1 {
            args.one_value = OneValue::ZeroVariance; // one of many, maybe
        }
        args.check(engine.memory(), &shape)?;
        let stats = Request::new(Op::Stats, E::DTYPE).mask(true);
        let stats = Some(stats).filter(|_| engine.ranks() == 1);
        let asked = [Request::new(Op::Renormalize, P::DTYPE), args.request().saves(true)];
        asked.into_iter().chain(stats).try_for_each(|request| engine.supports(&shape, request))
    }
}
