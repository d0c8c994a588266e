//! A parameter and its gradient.
use super::copy;
use crate::memory::filled;
use crate::{Error, Memory, Real, Result};

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
    /// Length C; arbitrary values where `has_grad` is false.
    grad: M::Buf<P>,
    has_grad: bool,
}

/// Both of a layer's parameters, where it has them.
pub(super) type Both<'a, M, P> = [&'a mut Option<Param<M, P>>; 2];

impl<M: Memory, P: Real> Param<M, P> {
    pub(super) fn new(memory: &M, channels: usize, value: f64) -> Result<Self> {
        let value = memory.upload(&filled(channels, P::from_f64(value))?)?;
        Ok(Self { value, requires_grad: true, grad: memory.zeros(channels)?, has_grad: false })
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
        let Self { value, requires_grad, grad, has_grad } = self;
        let (value, grad) = (copy(from, to, value)?, copy(from, to, grad)?);
        Ok(Param { value, requires_grad: *requires_grad, grad, has_grad: *has_grad })
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
