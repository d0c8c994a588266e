//! Batch renormalization: training by the batch's statistics, brought to those that evaluation takes.
use super::affine::{Affine, Given};
use super::{BatchNorm, Param, Part, PartGradients, RunningStats, copy, fill};
use crate::engine::Call;
use crate::memory::filled;
use crate::{
    DoubleBackward, Element, EmptyBatch, Engine, Error, Input, Memory, OneValue, Op, Real,
    RenormClip, RenormState, Renormalize, RenormalizeBackward, Request, Result, Saved, Shape,
    Stats,
};
pub use options::Renorm;

mod options;

/// What renormalization keeps beside running mean and variance, by Keras' names.
#[non_exhaustive]
pub struct RenormStats<M: Memory, P: Real> {
    /// Length C: the running standard deviation, eps within its root. The running variance is computed from it.
    pub moving_stddev: M::Buf<P>,
    /// Length C: the mean that d is taken by, where it is another than the running one.
    pub renorm_mean: Option<M::Buf<P>>,
    /// Length C: the standard deviation that r and d are taken by, likewise.
    pub renorm_stddev: Option<M::Buf<P>>,
}

impl<M: Memory, P: Real> RenormStats<M, P> {
    pub(super) fn new(memory: &M, channels: usize, own_pair: bool) -> Result<Self> {
        let ones = || memory.upload(&filled(channels, P::from_f64(1.0))?);
        Ok(Self {
            moving_stddev: ones()?,
            renorm_mean: own_pair.then(|| memory.zeros(channels)).transpose()?,
            renorm_stddev: own_pair.then(ones).transpose()?,
        })
    }
    pub(super) fn reset(&mut self, memory: &M) -> Result<()> {
        fill(memory, &mut self.moving_stddev, 1.0)?;
        self.renorm_mean.as_mut().map_or(Ok(()), |mean| memory.zero(M::view_mut(mean)))?;
        self.renorm_stddev.as_mut().map_or(Ok(()), |stddev| fill(memory, stddev, 1.0))
    }
    pub(super) fn to<N: Memory>(&self, from: &M, to: &N) -> Result<RenormStats<N, P>> {
        let some = |buf: &Option<M::Buf<P>>| buf.as_ref().map(|b| copy(from, to, b)).transpose();
        Ok(RenormStats {
            moving_stddev: copy(from, to, &self.moving_stddev)?,
            renorm_mean: some(&self.renorm_mean)?,
            renorm_stddev: some(&self.renorm_stddev)?,
        })
    }
    /// What there is, by Keras' names and in its order.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &M::Buf<P>)> {
        let [stddev, mean, own] = Self::NAMES;
        let named = [
            (stddev, Some(&self.moving_stddev)),
            (mean, self.renorm_mean.as_ref()),
            (own, self.renorm_stddev.as_ref()),
        ];
        named.into_iter().filter_map(|(name, buf)| Some((name, buf?)))
    }
    pub(super) fn named_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut M::Buf<P>)> {
        let [stddev, mean, own] = Self::NAMES;
        let named = [
            (stddev, Some(&mut self.moving_stddev)),
            (mean, self.renorm_mean.as_mut()),
            (own, self.renorm_stddev.as_mut()),
        ];
        named.into_iter().filter_map(|(name, buf)| Some((name, buf?)))
    }
    const NAMES: [&'static str; 3] = ["moving_stddev", "renorm_mean", "renorm_stddev"];

    /// As the statistics of a plain layer have it, whose mean and variance are given.
    pub(super) fn take_plain(&mut self, memory: &M, eps: f64, mean: &[P], var: &[P]) -> Result<()> {
        let stddev: Vec<P> = var.iter().map(|v| P::from_f64((v.to_f64() + eps).sqrt())).collect();
        for (name, to) in self.named_mut() {
            let values = if name == Self::NAMES[1] { mean } else { &stddev };
            memory.write(values, M::view_mut(to))?;
        }
        Ok(())
    }
}

/// Numbers of f64.
type Numbers<M> = <M as Memory>::Buf<f64>;

/// Memory that forwards and backwards work in, of one value per channel.
pub(super) struct Scratch<M: Memory, P: Real> {
    pub record: Numbers<M>,
    pub scale: M::Buf<P>,
    pub shift: M::Buf<P>,
    /// In a backward the sums of g * xhat and of g.
    sums: [M::Buf<P>; 2],
    /// What the values that count for a mask come to, here and in all: four numbers of every channel.
    counted: Option<[Numbers<M>; 2]>,
}

impl<M: Memory, P: Real> Scratch<M, P> {
    fn new(memory: &M, channels: usize) -> Result<Self> {
        let zeros = || memory.zeros(channels);
        let record = memory.zeros(3 * channels + 1)?;
        let sums = [zeros()?, zeros()?];
        Ok(Self { record, scale: zeros()?, shift: zeros()?, sums, counted: None })
    }
    /// The record, and what it is made of by a mask.
    pub fn counted(
        &mut self,
        memory: &M,
        channels: usize,
    ) -> Result<(&mut Numbers<M>, &mut [Numbers<M>; 2])> {
        let counted = match self.counted.take() {
            Some(counted) => counted,
            None => [memory.zeros(4 * channels)?, memory.zeros(4 * channels)?],
        };
        Ok((&mut self.record, self.counted.insert(counted)))
    }
    /// That of a layer, made the first time.
    pub fn of<'a>(
        place: &'a mut Option<Self>,
        memory: &M,
        channels: usize,
    ) -> Result<&'a mut Self> {
        let scratch = match place.take() {
            Some(scratch) => scratch,
            None => Self::new(memory, channels)?,
        };
        Ok(place.insert(scratch))
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// From now on these bounds: the paper's schedule lets them grow while it trains. A CUDA graph that has
    /// been captured keeps those of its capture.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bound below that of plain batch normalization, or a layer without
    /// [`Config::renorm`](crate::Config::renorm); the old ones stay.
    pub fn set_renorm_clip(&mut self, clip: RenormClip) -> Result<()> {
        let Some(renorm) = self.affine.config.renorm else {
            let reason = "expected a layer with renormalization, got one without";
            return Err(Error::invalid("renorm", reason));
        };
        self.set_config(self.affine.config.renorm(renorm.clip(clip)))
    }

    /// The check of a training forward with renormalization, before anything is written.
    fn check_renormalized<E: Element<Acc = P>>(
        &mut self,
        whole: &mut Part<'_, M, E>,
    ) -> Result<()> {
        let (shape, updates) = (whole.shape, self.updates_running);
        self.affine.check(&shape)?;
        self.check_lengths()?;
        let Self { affine, running, .. } = &mut *self;
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let running = running.as_mut().filter(|_| updates);
        let mut args = affine.train(x, residual, None, y, running, None);
        if affine.engine.ranks() > 1 {
            args.one_value = OneValue::ZeroVariance; // one of many, maybe
        }
        args.check(affine.engine.memory(), &shape)?;
        let eval = Request { op: Op::ForwardEval, running: None, ..args.request() };
        let of = |op, dtype| Request::new(op, dtype);
        let asked = [
            of(Op::Stats, E::DTYPE),
            of(Op::Renormalize, P::DTYPE),
            eval.by_record(true).saves(true),
        ];
        asked.into_iter().try_for_each(|request| affine.engine.supports(&shape, request))
    }

    /// A training forward with renormalization: the batch's statistics, r and d by them, then x by all three.
    pub(super) fn forward_renormalized<E: Element<Acc = P>>(
        &mut self,
        renorm: Renorm,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let checked = self.check_capture().and_then(|()| self.check_renormalized(whole));
        self.or_decline(checked)?;
        let (shape, config, updates) = (whole.shape, self.affine.config, self.updates_running);
        let Self { affine, running, renorm: scratch, .. } = self;
        let Some(running) = running else { return Ok(()) };
        let (engine, memory, channels) = (&affine.engine, affine.engine.memory(), affine.channels);
        let call = {
            let residual = whole.residual.as_ref().map(M::reborrow);
            let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
            let tracked = Some(&mut *running).filter(|_| updates);
            let args = affine.train(x, residual, None, y, tracked, None);
            Call::of_forward(channels, &args).renorm()
        };
        let made = Scratch::of(scratch, memory, channels)
            .and_then(|scratch| Ok((scratch, saved.take_factors(memory, channels)?)))
            .and_then(|(scratch, factors)| {
                let (x, record) = (M::reborrow(&whole.x), M::view_mut(&mut scratch.record));
                engine.stats(&shape, Stats::<M, E>::new(x, record))?;
                Ok((scratch, factors))
            });
        if made.is_err() {
            engine.decline(Op::ForwardTrain);
        }
        let (scratch, mut factors) = made?;
        let record = M::view_mut(&mut scratch.record);
        let values = engine.merge_ranks(call, Ok(shape.per_channel()), record, config.one_value)?;
        let moves = (updates, config.empty_batch);
        affine.renormalize(renorm, moves, running, scratch, &mut factors)?;
        let x = Input::View(M::reborrow(&whole.x));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let given = Given::Record(&scratch.record);
        let y = M::reborrow_mut(&mut whole.y);
        let mut args = affine.given(x, residual, y, given, Some(&mut *saved));
        args.weight = Some(M::view(&scratch.scale));
        args.bias = Some(M::view(&scratch.shift));
        engine.forward_eval(&shape, args)?;
        if engine.ranks() > 1 {
            saved.set_synced();
        }
        saved.set_renormalized(factors, affine.weight.is_some(), affine.bias.is_some());
        if updates && !(config.momentum.leaves_out_empty() && values == 0) {
            running.count();
        }
        Ok(())
    }

    /// The gradients asked for, of a forward with renormalization.
    pub(super) fn backward_renormalized<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        factors: &M::Buf<P>,
        places: Option<M::View<'_, u8>>,
        whole: &mut PartGradients<'_, M, E>,
    ) -> Result<()> {
        let forward = saved.made()?.0;
        let (shape, channels): (Shape, _) = (forward.shape, self.affine.channels);
        let checked = self.affine.check(&shape).and_then(|()| {
            forward.check_parameters(self.weight().is_some(), self.bias().is_some())?;
            let request = Request::new(Op::RenormalizeBackward, P::DTYPE);
            self.engine().supports(&shape, request)
        });
        self.affine.or_decline(saved, checked)?;
        let Self { affine, renorm: scratch, .. } = self;
        let (engine, memory) = (affine.engine.clone(), affine.engine.memory().clone());
        let made = affine.or_decline(saved, Scratch::of(scratch, &memory, channels))?;
        let Scratch { sums: [sum_g_xhat, sum_g], .. } = made;
        let wants = |param: &Option<Param<M, P>>| param.as_ref().is_some_and(|p| p.requires_grad);
        let (wants_weight, wants_bias) = (wants(&affine.weight), wants(&affine.bias));
        let mut args = whole.args(saved);
        args.mask = places.as_ref().map(M::reborrow);
        args.grad_weight = wants_weight.then(|| M::view_mut(sum_g_xhat));
        args.grad_bias = (wants_weight || wants_bias).then(|| M::view_mut(sum_g));
        engine.backward(&shape, args)?;
        self.add_renormalized(factors)
    }

    /// The gradients that a loss of these has: by the closed form with `weight * r`, of which r and d are
    /// constants.
    pub(super) fn double_backward_renormalized<E: Element<Acc = P>>(
        &mut self,
        factors: &M::Buf<P>,
        args: DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let (shape, channels) = (args.saved.forward()?.shape, self.affine.channels);
        let Self { affine, renorm: scratch, .. } = self;
        let (engine, memory) = (affine.engine.clone(), affine.engine.memory().clone());
        let served = engine.supports(&shape, Request::new(Op::RenormalizeBackward, P::DTYPE));
        let made = served.and_then(|()| Scratch::of(scratch, &memory, channels));
        let Scratch { sums: [sum_g_xhat, sum_g], .. } = affine.or_decline(args.saved, made)?;
        let wants = |param: &Option<Param<M, P>>| param.as_ref().is_some_and(|p| p.requires_grad);
        let (wants_weight, wants_bias) = (wants(&affine.weight), wants(&affine.bias));
        let mut args = args.accumulate(false);
        let mut args = args.reborrow();
        args.gg_weight = wants_weight.then(|| M::view_mut(sum_g_xhat));
        args.gg_bias = (wants_weight || wants_bias).then(|| M::view_mut(sum_g));
        engine.double_backward(&shape, args)?;
        self.add_renormalized(factors)
    }

    /// Adds to the parameters' gradients what the sums in the scratch come to by r and d.
    fn add_renormalized(&mut self, factors: &M::Buf<P>) -> Result<()> {
        let channels = self.affine.channels;
        let Self { affine, renorm: scratch, .. } = self;
        let (engine, memory) = (affine.engine.clone(), affine.engine.memory().clone());
        let Scratch { sums: [sum_g_xhat, sum_g], .. } = Scratch::of(scratch, &memory, channels)?;
        let part = |from: usize| {
            let none = || Error::invalid("saved", "expected r and d of every channel");
            M::part(factors, from..from + channels).ok_or_else(none)
        };
        let sums = [M::view(sum_g_xhat), M::view(sum_g)];
        let mut args = RenormalizeBackward::<M, P>::new([part(0)?, part(channels)?], sums);
        args.accumulate = Param::begin_backward(&memory, [&mut affine.weight, &mut affine.bias])?;
        args.grad_weight = Param::wanted(&mut affine.weight);
        args.grad_bias = Param::wanted(&mut affine.bias);
        match args.grad_weight.is_some() || args.grad_bias.is_some() {
            true => engine.renormalize_backward(args)?,
            false => drop(args),
        }
        Param::end_backward([&mut affine.weight, &mut affine.bias]);
        Ok(())
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> Affine<P, G> {
    /// r, d and what they scale and shift by, of the record of a batch in `scratch`; moves what is kept, if that
    /// `updates`, and by a batch without values as said.
    pub fn renormalize(
        &self,
        renorm: Renorm,
        (updates, empty_batch): (bool, EmptyBatch),
        running: &mut RunningStats<M, P>,
        scratch: &mut Scratch<M, P>,
        factors: &mut M::Buf<P>,
    ) -> Result<()> {
        let config = self.config;
        let (mean_factor, stddev_factor) = config.momentum.factors(running.num_batches_tracked);
        let RunningStats { mean, var, renorm: Some(kept), .. } = running else {
            let reason = "expected what renormalization keeps, got none";
            return Err(Error::invalid("renorm", reason));
        };
        let mut both = M::view_mut(factors);
        let (stddev, own) = (M::view_mut(&mut kept.moving_stddev), renorm.momentum.unwrap_or(0.0));
        let mut state =
            RenormState::<M, P>::new(M::view_mut(mean), stddev, M::view_mut(var), mean_factor);
        state.stddev_factor = stddev_factor;
        state.renorm_mean = kept.renorm_mean.as_mut().map(M::view_mut);
        state.renorm_stddev = kept.renorm_stddev.as_mut().map(M::view_mut);
        state.renorm_factor = own;
        let Some((r, d)) = M::split_at_mut(&mut both, self.channels) else { return Ok(()) };
        let to = [M::view_mut(&mut scratch.scale), M::view_mut(&mut scratch.shift)];
        let record = M::view(&scratch.record);
        let mut args = Renormalize::<M, P>::new(record, state, to, [r, d]);
        args.weight = self.weight.as_ref().map(|p| M::view(&p.value));
        args.bias = self.bias.as_ref().map(|p| M::view(&p.value));
        args.one_value = config.one_value;
        args.empty_batch = empty_batch;
        self.engine.renormalize(args.eps(config.eps).clip(renorm.clip).updates(updates))
    }
}
