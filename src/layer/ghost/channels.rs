//! Strided groups as channels of one call: (rows of a group, groups x C, inner).
//!
//! Parameters are repeated for every group before it, and running statistics and gradients gathered behind it,
//! by the engine's own operations on (groups, C), which is small: what is repeated is the bias of zeros
//! that are normalized, an average over groups the mean of a batch, a sum over groups the gradient of a bias.
use super::super::{BatchNorm, Config, Param, Part, PartGradients, RunningStats};
use super::forward::present;
use crate::{
    Backward, Element, Engine, ForwardEval, ForwardTrain, Mask, Memory, OneValue, Op, Real,
    Request, Result, Running, RunningRules, Saved, Shape,
};

/// What that takes: vectors of every group, group by group, unless another length is said.
pub(super) struct Tiles<M: Memory, P: Real> {
    /// Rows are groups.
    shape: Shape,
    zeros: M::Buf<P>,
    weight: M::Buf<P>,
    bias: M::Buf<P>,
    mean: M::Buf<P>,
    var: M::Buf<P>,
    /// What is not looked at.
    spare: M::Buf<P>,
    /// Likewise, length C.
    spare_channel: M::Buf<P>,
    /// Of the zeros, for the sums over groups.
    saved: Saved<M, P>,
}

impl<M: Memory, P: Real> Tiles<M, P> {
    fn new(memory: &M, shape: Shape) -> Result<Self> {
        let zeros = || memory.zeros(shape.len());
        let (spare_channel, saved) = (memory.zeros(shape.channels())?, Saved::new());
        let [zeros, weight, bias] = [zeros()?, zeros()?, zeros()?];
        let [mean, var, spare] = [(); 3].map(|()| memory.zeros(shape.len()));
        let (mean, var, spare) = (mean?, var?, spare?);
        Ok(Self { shape, zeros, weight, bias, mean, var, spare, spare_channel, saved })
    }

    /// What [`sum`](Self::sum) takes, made the first time.
    pub fn begin_sums<G: Engine<Memory = M>>(&mut self, engine: &G) -> Result<()> {
        let Self { shape, zeros, spare, saved, .. } = self;
        let request = Request::new(Op::BackwardEval, P::DTYPE).grad_x(false);
        engine.supports(shape, request.grad_residual(false))?;
        if saved.shape() != Some(*shape) {
            let channel = || M::part(zeros, 0..shape.channels());
            let (mean, var) = (present("zeros", channel())?, present("zeros", channel())?);
            let args = ForwardEval::<M, P>::new(M::view(zeros), M::view_mut(spare), mean, var);
            engine.forward_eval(shape, args.saved(saved))?;
        }
        Ok(())
    }
    /// These values of every channel, for every group; and memory for gradients of each.
    #[allow(clippy::type_complexity)] // of weight and bias
    pub fn repeat<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        given: [Option<M::View<'_, P>>; 2],
    ) -> Result<([Option<M::View<'_, P>>; 2], [&mut M::Buf<P>; 2])> {
        let Self { shape, zeros, mean, var, weight, bias, .. } = self;
        for (from, to) in given.iter().zip([&mut *mean, &mut *var]) {
            let Some(from) = from else { continue };
            repeat(engine, shape, zeros, M::reborrow(from), M::view_mut(to))?;
        }
        let [of_weight, of_bias] = [given[0].is_some(), given[1].is_some()];
        Ok(([of_weight.then(|| M::view(mean)), of_bias.then(|| M::view(var))], [weight, bias]))
    }
    /// Means and variances of every group.
    pub fn statistics(&mut self) -> [M::ViewMut<'_, P>; 2] {
        [M::view_mut(&mut self.mean), M::view_mut(&mut self.var)]
    }
    /// Moves those of the layer by the average of all groups', which began where it is.
    pub fn end_average<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        running: &mut RunningStats<M, P>,
        config: &Config,
    ) -> Result<()> {
        let factors = config.momentum.factors(running.num_batches_tracked);
        self.move_by_average(engine, running, factors)?;
        running.count();
        Ok(())
    }
    /// Moves running statistics by the average of those of all groups.
    fn move_by_average<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        running: &mut RunningStats<M, P>,
        (mean, var): (f64, f64),
    ) -> Result<()> {
        let Self { shape, spare, spare_channel, .. } = self;
        for (from, to, factor) in
            [(&self.mean, &mut running.mean, mean), (&self.var, &mut running.var, var)]
        {
            let spare = (M::view_mut(spare), M::view_mut(spare_channel));
            blend(engine, shape, M::view(from), spare, M::view_mut(to), factor)?;
        }
        Ok(())
    }
    /// The sum over all groups of a value per group and channel: written, or added to what is there.
    pub fn sum<G: Engine<Memory = M>>(
        &self,
        engine: &G,
        from: M::View<'_, P>,
        to: M::ViewMut<'_, P>,
        accumulate: bool,
    ) -> Result<()> {
        let (from, mut to) = (M::reborrow(&from), to);
        let args = Backward::<M, P>::new(&self.saved, M::view(&self.zeros), from);
        let args = args.grad_bias(M::reborrow_mut(&mut to));
        engine.backward(&self.shape, args.accumulate(accumulate))
    }
}

/// Of the [statistics](Tiles::statistics) of all groups those of one, as running ones that a batch replaces.
pub(super) fn running_of<'b, M: Memory, P: Real>(
    all: &'b mut [M::ViewMut<'_, P>; 2],
    group: usize,
    config: &Config,
    channels: usize,
) -> Result<Running<'b, M, P>> {
    let at = group * channels..(group + 1) * channels;
    let [mean, var] = all.each_mut().map(|all| M::slice_mut(all, at.clone()));
    let own = Running::new(present("running", mean)?, present("running", var)?, 1.0);
    Ok(own.variance(config.variance).non_finite(config.non_finite))
}

/// Moves values of every channel by the means of a tensor's, by this weight of theirs. Spare memory is of the tensor's
/// length, and of its channels'.
fn blend<P: Real, M: Memory, G: Engine<Memory = M>>(
    engine: &G,
    shape: &Shape,
    from: M::View<'_, P>,
    (mut spare, mut spare_channel): (M::ViewMut<'_, P>, M::ViewMut<'_, P>),
    mut to: M::ViewMut<'_, P>,
    factor: f64,
) -> Result<()> {
    let args = ForwardTrain::<M, P>::new(M::reborrow(&from), M::reborrow_mut(&mut spare));
    let to = (M::reborrow_mut(&mut to), M::reborrow_mut(&mut spare_channel));
    let args = args.one_value(OneValue::ZeroVariance).running(to.0, to.1, factor);
    engine.forward_train(shape, args.alone(true))
}

/// Values of every channel for every group of (groups, C): the bias of zeros that are normalized.
fn repeat<P: Real, M: Memory, G: Engine<Memory = M>>(
    engine: &G,
    shape: &Shape,
    zeros: &M::Buf<P>,
    from: M::View<'_, P>,
    mut to: M::ViewMut<'_, P>,
) -> Result<()> {
    let channel = || present("zeros", M::part(zeros, 0..shape.channels()));
    let (from, to) = (M::reborrow(&from), M::reborrow_mut(&mut to));
    let args = ForwardEval::<M, P>::new(M::view(zeros), to, channel()?, channel()?);
    engine.forward_eval(shape, args.bias(from))
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// Whether the engine serves what is done on (groups, C).
    pub(super) fn check_tiles(&self, groups: usize) -> Result<()> {
        let shape = Shape::new(&[groups, self.channels()], 1)?;
        let engine = self.engine();
        engine.supports(&shape, Request::new(Op::ForwardEval, P::DTYPE))?;
        let request = Request::new(Op::ForwardTrain, P::DTYPE);
        engine.supports(&shape, request.running(RunningRules::default()))
    }

    pub(super) fn forward_as_channels<E: Element<Acc = P>>(
        &mut self,
        groups: usize,
        whole: &mut Part<'_, M, E>,
        mask: Option<&Mask<'_, M>>,
        average: Option<(f64, f64)>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let masked = mask.is_some();
        let all = present("x", whole.shape.of_strided_groups(groups))?;
        let (engine, config) = (self.affine.engine.clone(), self.affine.config);
        let tiles = self.groups.tiles(engine.memory(), groups, self.affine.channels)?;
        let repeated = [
            (self.affine.weight.as_ref(), &mut tiles.weight),
            (self.affine.bias.as_ref(), &mut tiles.bias),
        ];
        for (param, to) in repeated {
            let Some(param) = param else { continue };
            repeat(&engine, &tiles.shape, &tiles.zeros, M::view(&param.value), M::view_mut(to))?;
        }
        let moves = self.updates_running;
        let mut running = self.running.as_mut().filter(|_| moves);
        if let Some(running) = running.as_deref().filter(|_| masked && average.is_some()) {
            // Those that nothing moves leave their share of the average where the layer's are.
            tiles.repeat(&engine, [Some(M::view(&running.mean)), Some(M::view(&running.var))])?;
        }
        let mut args =
            ForwardTrain::<M, E>::new(M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        args.residual = whole.residual.as_ref().map(M::reborrow);
        args.weight = self.affine.weight.as_ref().map(|_| M::view(&tiles.weight));
        args.bias = self.affine.bias.as_ref().map(|_| M::view(&tiles.bias));
        args.running = running.is_some().then(|| {
            let (mean, var) = (M::view_mut(&mut tiles.mean), M::view_mut(&mut tiles.var));
            Running::new(mean, var, 1.0).variance(config.variance)
        });
        args.saved = saved.open_groups(1).first_mut();
        args.mask = mask.map(Mask::reborrow);
        let args = args.activation(config.activation).eps(config.eps).one_value(config.one_value);
        engine.forward_train(&all, args.alone(true))?;

        let Some(running) = running.take() else { return Ok(()) };
        let keeps = config.one_value == OneValue::KeepVariance && all.per_channel() == 1;
        let keeps_var = keeps && !masked;
        let Tiles { shape, mean, var, spare, spare_channel, .. } = tiles;
        // Of all groups at once, or one after the other.
        let (shape, steps) = match average {
            Some(_) => (*shape, 1),
            None => (Shape::new(&[1, shape.channels()], 1)?, groups),
        };
        for k in 0..steps {
            let factors =
                average.unwrap_or_else(|| config.momentum.factors(running.num_batches_tracked));
            let moved =
                [(&*mean, &mut running.mean, factors.0), (&*var, &mut running.var, factors.1)];
            for (from, to, factor) in moved.into_iter().take(if keeps_var { 1 } else { 2 }) {
                let at = k * shape.len()..(k + 1) * shape.len();
                let mut y = M::view_mut(spare);
                let y = present("running", M::slice_mut(&mut y, at.clone()))?;
                let x = present("running", M::part(from, at))?;
                let spare = (y, M::view_mut(spare_channel));
                blend(&engine, &shape, x, spare, M::view_mut(to), factor)?;
            }
            running.count();
        }
        Ok(())
    }

    pub(super) fn backward_as_channels<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        groups: usize,
        places: Option<&M::View<'_, u8>>,
        whole: &mut PartGradients<'_, M, E>,
    ) -> Result<()> {
        let all = saved.forward()?.shape;
        let engine = self.affine.engine.clone();
        let mut args = whole.args(saved);
        args.mask = places.map(M::reborrow);
        args.check_on(engine.memory(), &all)?;
        engine.supports(&all, args.request()?)?;
        let wants = |param: Option<&Param<M, P>>| param.is_some_and(|param| param.requires_grad);
        let (wants_weight, wants_bias) = (wants(self.weight()), wants(self.bias()));
        let tiles = self.groups.tiles(engine.memory(), groups, self.affine.channels)?;
        if wants_weight || wants_bias {
            tiles.begin_sums(&engine)?;
        }
        args.grad_weight = wants_weight.then(|| M::view_mut(&mut tiles.weight));
        args.grad_bias = wants_bias.then(|| M::view_mut(&mut tiles.bias));
        engine.backward(&all, args)?;
        self.add_tiles(groups)
    }

    /// Adds the gradients of every group to the parameters'.
    pub(super) fn add_tiles(&mut self, groups: usize) -> Result<()> {
        let engine = self.affine.engine.clone();
        let tiles = self.groups.tiles(engine.memory(), groups, self.affine.channels)?;
        let both = [&mut self.affine.weight, &mut self.affine.bias];
        let accumulate = Param::begin_backward(engine.memory(), both)?;
        for (param, from) in
            [(&mut self.affine.weight, &tiles.weight), (&mut self.affine.bias, &tiles.bias)]
        {
            let Some(to) = Param::wanted(param) else { continue };
            tiles.sum(&engine, M::view(from), to, accumulate)?;
        }
        Param::end_backward([&mut self.affine.weight, &mut self.affine.bias]);
        Ok(())
    }
}

impl<M: Memory, P: Real> super::Scratch<M, P> {
    /// Running statistics for each of so many groups, which begin where the layer's are: what nothing moves leaves their
    /// share of the average as it is.
    pub(super) fn begin_average<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        running: &RunningStats<M, P>,
        groups: usize,
    ) -> Result<&mut Tiles<M, P>> {
        let RunningStats { mean, var, .. } = running;
        let shape = Shape::new(&[groups, M::len(&M::view(mean))], 1)?;
        let made = self.averaged.take().filter(|tiles| tiles.shape == shape);
        let tiles = made.map_or_else(|| Tiles::new(engine.memory(), shape), Ok)?;
        let tiles = self.averaged.insert(tiles);
        tiles.repeat(engine, [Some(M::view(mean)), Some(M::view(var))])?;
        Ok(tiles)
    }
    /// For so many groups.
    pub(super) fn tiles(
        &mut self,
        memory: &M,
        groups: usize,
        channels: usize,
    ) -> Result<&mut Tiles<M, P>> {
        let shape = Shape::new(&[groups, channels], 1)?;
        let tiles = match self.channels.take().filter(|tiles| tiles.shape == shape) {
            Some(tiles) => tiles,
            None => Tiles::new(memory, shape)?,
        };
        Ok(self.channels.insert(tiles))
    }
}
