//! A step of an optimizer on one parameter.
use super::{Arguments, Check, Op, Request, Visitor, channel, scalars};
use crate::engine::optimizer::check_from_0;
use crate::{Algorithm, Error, Memory, Real, Result};

/// Arguments of [`Engine::optimizer_step`](crate::Engine::optimizer_step). C is the length of the
/// parameter.
///
/// The learning rate and the number of steps lie in the engine's memory, so that no step waits for the
/// host, and a CUDA graph that is replayed counts its steps and follows a learning rate that is written
/// between replays.
///
/// ```
/// # use batchnorm::{Algorithm, Cpu, Engine, Host, OptimizerStep};
/// let (mut weight, grad, lr, mut steps) = ([1f32, 2.0], [0.5, -0.5], [0.1], [0.0; 2]);
/// let args = OptimizerStep::<Host, f32>::new(&mut weight, &grad, Algorithm::sgd(0.0), &lr, &mut steps);
/// Cpu::default().optimizer_step(args)?;
/// assert_eq!((weight, steps[0]), ([0.95, 2.05], 1.0));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct OptimizerStep<'a, M: Memory, P: Real> {
    /// Length C: the parameter, before and after.
    pub value: M::ViewMut<'a, P>,
    /// Length C: its gradient.
    pub grad: M::View<'a, P>,
    /// The rule.
    pub algorithm: Algorithm,
    /// Length 1: the learning rate. What it holds is not checked: an engine on a device does not read
    /// it back.
    pub lr: M::View<'a, f64>,
    /// Length 2: the number of steps of this parameter so far, which the step adds 1 to, and a number
    /// that is the engine's, 0 between steps.
    pub steps: M::ViewMut<'a, f64>,
    /// Length C, zeros before the first step: the first of the algorithm's
    /// [`buffers`](Algorithm::buffers). Not read where it has none.
    pub first: Option<M::ViewMut<'a, P>>,
    /// Length C, zeros before the first step: the second of them. Not read where it has none.
    pub second: Option<M::ViewMut<'a, P>>,
    /// Length C, zeros before the first step: the third of them. Not read where it has none.
    pub third: Option<M::ViewMut<'a, P>>,
    /// The learning rate of this parameter is `lr * lr_factor`: 0 or more. Where the decay is apart from the
    /// gradient, as in [`Algorithm::AdamW`], it so scales that too.
    pub lr_factor: f64,
    /// Weight decay: 0 or more.
    pub weight_decay: f64,
}

impl<'a, M: Memory, P: Real> OptimizerStep<'a, M, P> {
    /// Of `value` by `grad` (length C), with `lr` (length 1) and `steps` (length 2): no weight decay, no
    /// buffers yet.
    pub fn new(
        value: M::ViewMut<'a, P>,
        grad: M::View<'a, P>,
        algorithm: Algorithm,
        lr: M::View<'a, f64>,
        steps: M::ViewMut<'a, f64>,
    ) -> Self {
        let (first, second, third) = (None, None, None);
        let (lr_factor, weight_decay) = (1.0, 0.0);
        Self { value, grad, algorithm, lr, steps, first, second, third, lr_factor, weight_decay }
    }
    /// With the first buffer of the algorithm (length C).
    pub fn first(self, first: M::ViewMut<'a, P>) -> Self {
        Self { first: Some(first), ..self }
    }
    /// With the second buffer of the algorithm (length C).
    pub fn second(self, second: M::ViewMut<'a, P>) -> Self {
        Self { second: Some(second), ..self }
    }
    /// With the third buffer of the algorithm (length C).
    pub fn third(self, third: M::ViewMut<'a, P>) -> Self {
        Self { third: Some(third), ..self }
    }
    /// With this factor of the learning rate.
    pub fn lr_factor(self, lr_factor: f64) -> Self {
        Self { lr_factor, ..self }
    }
    /// With this weight decay.
    pub fn weight_decay(self, weight_decay: f64) -> Self {
        Self { weight_decay, ..self }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::OptimizerStep, P::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> OptimizerStep<'_, M, P> {
        let Self { value, grad, lr, steps, first, second, third, .. } = self;
        OptimizerStep {
            value: M::reborrow_mut(value),
            grad: M::reborrow(grad),
            algorithm: self.algorithm,
            lr: M::reborrow(lr),
            steps: M::reborrow_mut(steps),
            first: first.as_mut().map(M::reborrow_mut),
            second: second.as_mut().map(M::reborrow_mut),
            third: third.as_mut().map(M::reborrow_mut),
            lr_factor: self.lr_factor,
            weight_decay: self.weight_decay,
        }
    }
    /// The check every engine makes first, for the memory that it works on. What comes back is the
    /// length of the parameter.
    pub(in crate::engine) fn check(&mut self, on: &M) -> Result<usize> {
        let channels = M::len(&M::as_view(&self.value));
        self.walk(&mut Check { on, elements: 0, channels })?;
        self.algorithm.check()?;
        check_from_0("lr_factor", self.lr_factor)?;
        check_from_0("weight_decay", self.weight_decay)?;
        let given = [
            ("first", self.first.is_some()),
            ("second", self.second.is_some()),
            ("third", self.third.is_some()),
        ];
        for (buffer, (what, given)) in self.algorithm.buffers().iter().zip(given) {
            if !given {
                let name = self.algorithm.name();
                let reason = format!("expected the {buffer} of {name}, got none");
                return Err(Error::invalid(what, reason));
            }
        }
        Ok(channels)
    }
}

impl<'a, M: Memory, P: Real> Arguments<'a, M> for OptimizerStep<'a, M, P> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self {
            value,
            grad,
            algorithm: _,
            lr,
            steps,
            first,
            second,
            third,
            lr_factor: _,
            weight_decay: _,
        } = self;
        visitor.write(channel("value"), value)?;
        visitor.read(channel("grad"), grad)?;
        visitor.read(scalars("lr", 1), lr)?;
        visitor.write(scalars("steps", 2), steps)?;
        visitor.write_some(channel("first"), first)?;
        visitor.write_some(channel("second"), second)?;
        visitor.write_some(channel("third"), third)
    }
}
