//! The loss of a parameter's regularizer, and its gradient.
use super::{Arguments, Check, Op, Request, Visitor, channel, scalars};
use crate::{Memory, Real, Regularizer, Result};

/// Arguments of [`Engine::regularize`](crate::Engine::regularize). C is the length of the parameter.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, Regularize, Regularizer};
/// let (weight, mut grad, mut loss) = ([1f32, -2.0], [0.0; 2], [0.0]);
/// let args = Regularize::<Host, f32>::new(&weight, Regularizer::new(0.5, 0.25));
/// Cpu::default().regularize(args.grad(&mut grad).loss(&mut loss))?;
/// assert_eq!((loss, grad), ([0.5 * 3.0 + 0.25 * 5.0], [1.0, -1.5]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct Regularize<'a, M: Memory, P: Real> {
    /// Length C: the parameter.
    pub value: M::View<'a, P>,
    /// The penalty.
    pub regularizer: Regularizer,
    /// Length C: its gradient.
    pub grad: Option<M::ViewMut<'a, P>>,
    /// Length 1: what it adds to the loss.
    pub loss: Option<M::ViewMut<'a, f64>>,
    /// Add to `grad` instead of replacing it.
    pub accumulate_grad: bool,
    /// Add to `loss` instead of replacing it.
    pub accumulate_loss: bool,
}

impl<'a, M: Memory, P: Real> Regularize<'a, M, P> {
    /// Of `value` (length C). Nothing is asked for yet.
    pub fn new(value: M::View<'a, P>, regularizer: Regularizer) -> Self {
        let (grad, loss, accumulate_grad, accumulate_loss) = (None, None, false, false);
        Self { value, regularizer, grad, loss, accumulate_grad, accumulate_loss }
    }
    /// Asks for the gradient (length C).
    pub fn grad(self, grad: M::ViewMut<'a, P>) -> Self {
        Self { grad: Some(grad), ..self }
    }
    /// Asks for the loss (length 1).
    pub fn loss(self, loss: M::ViewMut<'a, f64>) -> Self {
        Self { loss: Some(loss), ..self }
    }
    /// Adds to the gradient, or replaces it.
    pub fn accumulate_grad(self, accumulate_grad: bool) -> Self {
        Self { accumulate_grad, ..self }
    }
    /// Adds to the loss, or replaces it.
    pub fn accumulate_loss(self, accumulate_loss: bool) -> Self {
        Self { accumulate_loss, ..self }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::Regularize, P::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Regularize<'_, M, P> {
        let Self { value, regularizer, grad, loss, accumulate_grad, accumulate_loss } = self;
        Regularize {
            value: M::reborrow(value),
            regularizer: *regularizer,
            grad: grad.as_mut().map(M::reborrow_mut),
            loss: loss.as_mut().map(M::reborrow_mut),
            accumulate_grad: *accumulate_grad,
            accumulate_loss: *accumulate_loss,
        }
    }
    /// The check every engine makes first, for the memory that it works on. What comes back is the
    /// length of the parameter.
    pub(in crate::engine) fn check(&mut self, on: &M) -> Result<usize> {
        let channels = M::len(&self.value);
        self.walk(&mut Check { on, elements: 0, channels })?;
        self.regularizer.check()?;
        Ok(channels)
    }
}

impl<'a, M: Memory, P: Real> Arguments<'a, M> for Regularize<'a, M, P> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { value, regularizer: _, grad, loss, .. } = self;
        let Self { accumulate_grad: _, accumulate_loss: _, .. } = self;
        visitor.read(channel("value"), value)?;
        visitor.write_some(channel("grad"), grad)?;
        visitor.write_some(scalars("loss", 1), loss)
    }
}
