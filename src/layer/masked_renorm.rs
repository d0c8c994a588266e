//! Renormalization by the statistics of the values that count for a mask.
use super::affine::Given;
use super::renorm::Scratch;
use super::{BatchNorm, Part, Renorm, RunningStats};
use crate::engine::{Call, Counted, MergeMasked};
use crate::{
    Element, EmptyBatch, Engine, Error, Input, Mask, Memory, OneValue, Op, Real, Request, Result,
    Saved, Shape, Stats,
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
        let counts = match engine.ranks() {
            1 => Some(Self::count_alone(
                engine,
                &shape,
                (&whole.x, &mask),
                config.eps,
                scratch,
                saved,
            )?),
            _ => {
                let (x, record) = (M::reborrow(&whole.x), M::view_mut(&mut scratch.record));
                let args = Stats::<M, E>::new(x, record).mask(mask.reborrow());
                engine.masked_record(call, &shape, args, (config.eps, config.one_value))?;
                None
            }
        };
        // The record's count says whether a batch in which nothing counts moves what is kept.
        let moves = (updates, EmptyBatch::Keep);
        affine.renormalize(renorm, moves, running, scratch, &mut factors)?;

        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let (weight, bias) = (Some(M::view(&scratch.scale)), Some(M::view(&scratch.shift)));
        match counts {
            // By the statistics that there are: x is read for them once.
            Some(counts) => {
                let given = Given::Record(&scratch.record);
                let mut args = affine.given(Input::View(x), residual, y, given, Some(&mut *saved));
                (args.weight, args.bias) = (weight, bias);
                engine.forward_eval(&shape, args)?;
                saved.set_counted(mask.rules(), Counted { counts, values: shape.per_channel() });
            }
            None => {
                let mask = mask.reborrow();
                let mut args = affine.train(x, residual, Some(mask), y, None, Some(&mut *saved));
                (args.weight, args.bias) = (weight, bias);
                engine.forward_train(&shape, args)?;
            }
        }
        saved.set_renormalized(factors, affine.weight.is_some(), affine.bias.is_some());
        if updates && !(config.momentum.leaves_out_empty() && shape.is_empty()) {
            RunningStats::count(running);
        }
        Ok(())
    }

    /// The record of the values that count, where nobody else has any, and how many of every channel do.
    fn count_alone<E: Element<Acc = P>>(
        engine: &G,
        shape: &Shape,
        (x, mask): (&M::View<'_, E>, &Mask<'_, M>),
        eps: f64,
        scratch: &mut Scratch<M, P>,
        saved: &mut Saved<M, P>,
    ) -> Result<M::Buf<f64>> {
        let (memory, channels) = (engine.memory(), shape.channels());
        let mut counts = saved.take_counts(memory, channels)?;
        let (record, [own, merged]) = scratch.counted(memory, channels)?;
        engine.masked_stats(shape, M::reborrow(x), mask.reborrow(), eps, M::view_mut(own))?;
        let (own, to) = (M::view(own), M::view_mut(merged));
        let mut args = MergeMasked::<M, P>::new(own, mask.rules(), to);
        args.record = Some(M::view_mut(record));
        engine.merge_masked(args)?;
        if let Some(from) = M::part(merged, 3 * channels..4 * channels) {
            memory.copy(from, M::view_mut(&mut counts))?;
        }
        Ok(counts)
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
        let eval = Request { op: Op::ForwardEval, running: None, ..args.request() };
        let alone = [
            Request::new(Op::Stats, E::DTYPE).mask(true),
            eval.mask(false).by_record(true).saves(true),
        ];
        let asked = [Request::new(Op::Renormalize, P::DTYPE), args.request().saves(true)];
        let alone = alone.into_iter().filter(|_| engine.ranks() == 1);
        asked.into_iter().chain(alone).try_for_each(|request| engine.supports(&shape, request))
    }
}
