//! The layer's calls to its engine: all of a layer but its mode and its running statistics.
use super::{Config, Param, RunningStats};
use crate::{
    Backward, Element, Engine, Error, ForwardEval, ForwardTrain, Input, Mask, Memory, Op, Real,
    Result, Saved, Shape, Statistics,
};

/// What normalizes by statistics that are handed in. Code generic over the memory reborrows every
/// view; that noise stays here.
pub(super) struct Affine<P: Real, G: Engine> {
    pub engine: G,
    pub config: Config,
    pub channels: usize,
    pub weight: Option<Param<G::Memory, P>>,
    pub bias: Option<Param<G::Memory, P>>,
}

/// The statistics of a forward that are not those of its own tensor.
pub(super) enum Given<'a, M: Memory, P: Real> {
    Running(&'a RunningStats<M, P>),
    /// Of the batch that the tensor is a part of.
    Record(&'a M::Buf<f64>),
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> Affine<P, G> {
    /// Normalizes by the batch, or by what a mask leaves of it, and updates `running`. `alone` is without other
    /// ranks, as in evaluation.
    #[allow(clippy::too_many_arguments)] // an operation's
    pub fn by_batch<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        mask: Option<Mask<'_, M>>,
        mut y: M::ViewMut<'_, E>,
        y_is_kept: bool,
        running: Option<&mut RunningStats<M, P>>,
        saved: Option<&mut Saved<M, P>>,
        alone: bool,
    ) -> Result<()> {
        let checked = self.check(shape);
        if checked.is_err() && !alone {
            self.engine.decline(Op::ForwardTrain);
        }
        checked?;
        let (x, residual) = (M::reborrow(&x), residual.as_ref().map(M::reborrow));
        let mask = mask.as_ref().map(Mask::reborrow);
        let args = self.train(x, residual, mask, M::reborrow_mut(&mut y), running, saved);
        self.engine.forward_train(shape, args.y_is_kept(y_is_kept).alone(alone))
    }

    /// What normalizes by the batch is given.
    pub fn train<'a, E: Element<Acc = P>>(
        &'a self,
        x: M::View<'a, E>,
        residual: Option<M::View<'a, E>>,
        mask: Option<Mask<'a, M>>,
        y: M::ViewMut<'a, E>,
        running: Option<&'a mut RunningStats<M, P>>,
        saved: Option<&'a mut Saved<M, P>>,
    ) -> ForwardTrain<'a, M, E> {
        let mut args = ForwardTrain::<M, E>::new(x, y);
        args.residual = residual;
        args.mask = mask;
        args.weight = self.weight.as_ref().map(|p| M::view(&p.value));
        args.bias = self.bias.as_ref().map(|p| M::view(&p.value));
        let Config { activation, eps, .. } = self.config;
        args.running = running.map(|running| self.config.next(running));
        args.saved = saved;
        args.activation(activation).eps(eps).one_value(self.config.one_value)
    }

    /// Normalizes by given statistics.
    pub fn by_given<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: Input<M::View<'_, E>>,
        residual: Option<M::View<'_, E>>,
        mut y: M::ViewMut<'_, E>,
        given: Given<'_, M, P>,
        saved: Option<&mut Saved<M, P>>,
    ) -> Result<()> {
        self.check(shape)?;
        let (x, residual) = (x.as_ref().map(M::reborrow), residual.as_ref().map(M::reborrow));
        let args = self.given(x, residual, M::reborrow_mut(&mut y), given, saved);
        self.engine.forward_eval(shape, args)
    }

    /// What normalizes by given statistics is given.
    pub fn given<'a, E: Element<Acc = P>>(
        &'a self,
        x: Input<M::View<'a, E>>,
        residual: Option<M::View<'a, E>>,
        y: M::ViewMut<'a, E>,
        given: Given<'a, M, P>,
        saved: Option<&'a mut Saved<M, P>>,
    ) -> ForwardEval<'a, M, E> {
        let statistics = match given {
            Given::Running(running) => {
                Statistics::Given { mean: M::view(&running.mean), var: M::view(&running.var) }
            }
            Given::Record(record) => Statistics::Record(M::view(record)),
        };
        let mut args = ForwardEval::<M, E>::with_input(x, y, statistics);
        args.residual = residual;
        args.weight = self.weight.as_ref().map(|p| M::view(&p.value));
        args.bias = self.bias.as_ref().map(|p| M::view(&p.value));
        args.saved = saved;
        let Config { activation, eps, .. } = self.config;
        args.activation(activation).eps(eps)
    }

    /// The gradients asked for, those of the parameters among them; with the forward's y where that is kept.
    #[allow(clippy::too_many_arguments)] // an operation's
    pub fn backward<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        mask: Option<M::View<'_, u8>>,
        y: Option<M::View<'_, E>>,
        grad_y: Input<M::View<'_, E>>,
        mut grad_x: Option<M::ViewMut<'_, E>>,
        mut grad_residual: Option<M::ViewMut<'_, E>>,
    ) -> Result<()> {
        let forward = saved.made()?.0;
        let shape = forward.shape;
        let mut checked = self.check(&shape);
        if checked.is_ok() {
            checked = forward.check_parameters(self.weight.is_some(), self.bias.is_some());
        }
        let both = [&mut self.weight, &mut self.bias];
        let begun = checked.and_then(|()| Param::begin_backward(self.engine.memory(), both));
        let accumulate = self.or_decline(saved, begun)?;
        let grad_weight = Param::wanted(&mut self.weight);
        let grad_bias = Param::wanted(&mut self.bias);
        let grad_y = grad_y.as_ref().map(M::reborrow);
        let mut args = Backward::<M, E>::with_input(saved, M::reborrow(&x), grad_y);
        args.residual = residual.as_ref().map(M::reborrow);
        args.mask = mask.as_ref().map(M::reborrow);
        args.y = y.as_ref().map(M::reborrow);
        args.grad_x = grad_x.as_mut().map(M::reborrow_mut);
        args.grad_residual = grad_residual.as_mut().map(M::reborrow_mut);
        args.grad_weight = grad_weight;
        args.grad_bias = grad_bias;
        self.engine.backward(&shape, args.accumulate(accumulate))?;
        Param::end_backward([&mut self.weight, &mut self.bias]);
        Ok(())
    }

    /// What a backward prepares before it calls the engine; other ranks learn of a refusal, where they were part of
    /// the forward.
    pub fn or_decline<T>(&self, saved: &Saved<M, P>, prepared: Result<T>) -> Result<T> {
        if prepared.is_err() && saved.forward().is_ok_and(|forward| forward.synced) {
            self.engine.decline(Op::Backward);
        }
        prepared
    }

    /// Refuses a shape of another number of channels.
    pub fn check(&self, shape: &Shape) -> Result<()> {
        if shape.channels() == self.channels {
            return Ok(());
        }
        Err(Error::Length { what: "channels", expected: self.channels, got: shape.channels() })
    }
}

#[cfg(test)]
mod tests {
    use crate::{BatchNorm, Config, Error, Host, Reference, Shape};

    #[test]
    fn a_forward_of_another_engine_is_refused() {
        let (shape, x) = (Shape::new(&[4, 3], 1).unwrap(), [1f32; 12]);
        let mut bn = BatchNorm::new(&Reference, 3, Config::default()).unwrap();
        let (_, mut saved) = bn.forward(&shape, &x).unwrap();
        let mut forward = *saved.made().unwrap().0;
        forward.engine = "another";
        saved.open(&Host, forward, 0).unwrap().filled();
        let error = bn.backward(&saved, &x, &x).unwrap_err();
        let (what, forward, backward) = ("engine", "another".into(), "reference".into());
        assert_eq!(error, Error::Saved { what, forward, backward });
        assert!(bn.named_parameters().all(|(_, param)| param.grad().is_none()));
    }
}
