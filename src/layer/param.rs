//! A parameter and its gradient.
use super::copy;
use crate::memory::filled;
use crate::{Constraint, Engine, Error, Memory, Real, Regularize, Regularizer, Result};

/// A parameter of C elements, and its gradient.
///
/// Gradients add up over the backwards since the last [`zero_grad`](Self::zero_grad), as in
/// PyTorch, where there is none until the next backward.
pub struct Param<M: Memory, P: Real> {
    /// Length C.
    pub value: M::Buf<P>,
    /// Whether backwards compute its gradient: true until you say otherwise. A gradient that is
    /// there stays.
    pub requires_grad: bool,
    /// The learning rate of this parameter is the [`Optimizer`](crate::Optimizer)'s times this: 0 or more,
    /// 1 until you say otherwise. MATLAB's `ScaleLearnRateFactor` and `OffsetLearnRateFactor`, Wolfram's
    /// learning rate multipliers.
    pub lr_factor: f64,
    /// The weight decay of this parameter is the [`Optimizer`](crate::Optimizer)'s times this: 0 or more,
    /// 1 until you say otherwise. MATLAB's `ScaleL2Factor` and `OffsetL2Factor`.
    pub weight_decay_factor: f64,
    /// What [`BatchNorm::regularize`](crate::BatchNorm::regularize) adds to loss and gradient; nothing
    /// until you say otherwise. Keras' `gamma_regularizer` and `beta_regularizer`.
    pub regularizer: Regularizer,
    /// What a step of an [`Optimizer`](crate::Optimizer) holds it to. Keras' `gamma_constraint` and
    /// `beta_constraint`.
    pub constraint: Option<Constraint>,
    /// Length C; arbitrary values where `has_grad` is false.
    grad: M::Buf<P>,
    has_grad: bool,
}

/// Both of a layer's parameters, where it has them.
pub(super) type Both<'a, M, P> = [&'a mut Option<Param<M, P>>; 2];

impl<M: Memory, P: Real> Param<M, P> {
    pub(super) fn new(memory: &M, channels: usize, value: f64) -> Result<Self> {
        let value = memory.upload(&filled(channels, P::from_f64(value))?)?;
        Ok(Self {
            value,
            requires_grad: true,
            lr_factor: 1.0,
            weight_decay_factor: 1.0,
            regularizer: Regularizer::default(),
            constraint: None,
            grad: memory.zeros(channels)?,
            has_grad: false,
        })
    }

    /// Length C: the sum over the backwards since [`zero_grad`](Self::zero_grad); none before the
    /// first of them.
    pub fn grad(&self) -> Option<&M::Buf<P>> {
        self.has_grad.then_some(&self.grad)
    }

    /// The value to change and the gradient to read, for an optimizer; none where there is no
    /// gradient.
    ///
    /// ```
    /// # use batchnorm::{Host, Param};
    /// fn sgd(param: &mut Param<Host, f32>, learning_rate: f32) {
    ///     if let Some((value, grad)) = param.value_and_grad() {
    ///         value.iter_mut().zip(grad).for_each(|(v, g)| *v -= learning_rate * g);
    ///     }
    /// }
    /// ```
    #[allow(clippy::type_complexity)] // two buffers
    pub fn value_and_grad(&mut self) -> Option<(&mut M::Buf<P>, &M::Buf<P>)> {
        self.has_grad.then_some((&mut self.value, &self.grad))
    }

    /// The gradient to change, for what stands between backward and optimizer, such as clipping or a sum
    /// over devices; none where there is no gradient.
    pub fn grad_mut(&mut self) -> Option<&mut M::Buf<P>> {
        self.has_grad.then_some(&mut self.grad)
    }
    /// Has this gradient (length C) from now on, to which the next backward adds.
    ///
    /// # Errors
    /// [`Error::Length`]; the old one stays.
    pub fn set_grad(&mut self, grad: M::Buf<P>) -> Result<()> {
        let [expected, got] = [&self.grad, &grad].map(|buf| M::len(&M::view(buf)));
        if got != expected {
            return Err(Error::Length { what: "grad", expected, got });
        }
        (self.grad, self.has_grad) = (grad, true);
        Ok(())
    }

    /// Drops the gradient: the next backward replaces it. Touches no memory.
    pub fn zero_grad(&mut self) {
        self.has_grad = false;
    }

    /// Makes the gradients ready for a backward; the answer is whether it is to add to them.
    ///
    /// An engine adds to both or to none. Where one has a gradient and the other has not, the
    /// other starts from zeros; its memory shows nothing before, so that a backward that fails
    /// changes nothing.
    pub(super) fn begin_backward(memory: &M, both: Both<'_, M, P>) -> Result<bool> {
        let mut wanted = both.into_iter().flatten().filter(|p| p.requires_grad);
        let mut wanted = [wanted.next(), wanted.next()];
        let accumulate = wanted.iter().flatten().any(|p| p.has_grad);
        for param in wanted.iter_mut().flatten().filter(|p| accumulate && !p.has_grad) {
            memory.zero(M::view_mut(&mut param.grad))?;
        }
        Ok(accumulate)
    }

    /// After a backward that went well.
    pub(super) fn end_backward(both: Both<'_, M, P>) {
        for param in both.into_iter().flatten().filter(|p| p.requires_grad) {
            param.has_grad = true;
        }
    }

    /// The gradient to write, where there is a parameter that wants one.
    pub(super) fn wanted(this: &mut Option<Self>) -> Option<M::ViewMut<'_, P>> {
        let param = this.as_mut().filter(|param| param.requires_grad)?;
        Some(M::view_mut(&mut param.grad))
    }

    pub(super) fn to<N: Memory>(&self, from: &M, to: &N) -> Result<Param<N, P>> {
        let Self { requires_grad, lr_factor, weight_decay_factor, .. } = *self;
        let Self { regularizer, constraint, has_grad, .. } = *self;
        Ok(Param {
            value: copy(from, to, &self.value)?,
            requires_grad,
            lr_factor,
            weight_decay_factor,
            regularizer,
            constraint,
            grad: copy(from, to, &self.grad)?,
            has_grad,
        })
    }

    /// Adds the regularizer's gradient where one is wanted, and its loss to `loss`. The answer is whether
    /// it has a regularizer that counts: those of frozen parameters do not, as in Keras 3.
    pub(super) fn regularize<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        loss: Option<M::ViewMut<'_, f64>>,
        accumulate_loss: bool,
    ) -> Result<bool> {
        if !self.requires_grad || self.regularizer.is_none() {
            return Ok(false);
        }
        let accumulate = self.has_grad;
        let mut loss = loss;
        let mut args = Regularize::<M, P>::new(M::view(&self.value), self.regularizer)
            .grad(M::view_mut(&mut self.grad))
            .accumulate_grad(accumulate)
            .accumulate_loss(accumulate_loss);
        args.loss = loss.as_mut().map(M::reborrow_mut);
        engine.regularize(args)?;
        self.has_grad = true;
        Ok(true)
    }
    /// Adds the regularizer's loss alone to `loss`.
    pub(super) fn penalty<G: Engine<Memory = M>>(
        &self,
        engine: &G,
        loss: M::ViewMut<'_, f64>,
    ) -> Result<()> {
        if !self.requires_grad || self.regularizer.is_none() {
            return Ok(());
        }
        let mut loss = loss;
        let mut args = Regularize::<M, P>::new(M::view(&self.value), self.regularizer);
        args.loss = Some(M::reborrow_mut(&mut loss));
        engine.regularize(args.accumulate_loss(true))
    }

    /// The value is public: what stands there may have another length by now.
    pub(super) fn check(&self, what: &'static str, channels: usize) -> Result<()> {
        let got = M::len(&M::view(&self.value));
        if got == channels { Ok(()) } else { Err(Error::Length { what, expected: channels, got }) }
    }
}

impl<M: Memory, P: Real> std::fmt::Debug for Param<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Param");
        debug.field("requires_grad", &self.requires_grad);
        debug.field("has_grad", &self.has_grad).finish_non_exhaustive()
    }
}
