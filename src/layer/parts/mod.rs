//! A list of inputs as one batch: each lies where it is, and they have their statistics in common.
use crate::memory::filled;
use crate::{
    Backward, Element, Error, Input, Memory, MergeStats, OneValue, Real, Result, Saved, Shape,
};

mod backward;
mod forward;

/// One input of [`BatchNorm::forward_parts_into`](crate::BatchNorm::forward_parts_into), and where its
/// output goes. N is the number of elements of its shape.
#[non_exhaustive]
pub struct Part<'a, M: Memory, E: Element> {
    /// Its shape: all that the inputs of a list share is the number of channels.
    pub shape: Shape,
    /// Length N.
    pub x: M::View<'a, E>,
    /// Length N, added before the activation: in every part, or in none.
    pub residual: Option<M::View<'a, E>>,
    /// Length N.
    pub y: M::ViewMut<'a, E>,
}

impl<'a, M: Memory, E: Element> Part<'a, M, E> {
    /// Of x and y, of length N each, without a residual.
    pub fn new(shape: Shape, x: M::View<'a, E>, y: M::ViewMut<'a, E>) -> Self {
        Self { shape, x, residual: None, y }
    }
    /// Adds this (length N) before the activation.
    pub fn residual(self, residual: M::View<'a, E>) -> Self {
        Self { residual: Some(residual), ..self }
    }
}

/// One part of [`BatchNorm::backward_parts_into`](crate::BatchNorm::backward_parts_into): what its forward
/// was given, and the gradients asked for. Of length N each, the number of elements of that forward's shape.
#[non_exhaustive]
pub struct PartGradients<'a, M: Memory, E: Element> {
    /// As in the forward.
    pub x: M::View<'a, E>,
    /// As in the forward; needed where the activation's derivative takes it,
    /// [`Derivative::FromResidual`](crate::Derivative).
    pub residual: Option<M::View<'a, E>>,
    /// The gradient of y; in place, `grad_x` holds it before.
    pub grad_y: Input<M::View<'a, E>>,
    /// The gradient of x.
    pub grad_x: Option<M::ViewMut<'a, E>>,
    /// The gradient of the residual.
    pub grad_residual: Option<M::ViewMut<'a, E>>,
}

impl<'a, M: Memory, E: Element> PartGradients<'a, M, E> {
    /// Of x and the gradient of y: for the gradients of the parameters alone.
    pub fn new(x: M::View<'a, E>, grad_y: M::View<'a, E>) -> Self {
        Self::with_input(x, Input::View(grad_y))
    }
    /// The same with the gradient of y in `grad_x`, which becomes that of x.
    pub fn in_place(x: M::View<'a, E>, grad_x: M::ViewMut<'a, E>) -> Self {
        Self::with_input(x, Input::InPlace).grad_x(grad_x)
    }
    fn with_input(x: M::View<'a, E>, grad_y: Input<M::View<'a, E>>) -> Self {
        Self { x, residual: None, grad_y, grad_x: None, grad_residual: None }
    }
    /// Gives the residual of the forward again.
    pub fn residual(self, residual: M::View<'a, E>) -> Self {
        Self { residual: Some(residual), ..self }
    }
    /// Asks for the gradient of x.
    pub fn grad_x(self, grad_x: M::ViewMut<'a, E>) -> Self {
        Self { grad_x: Some(grad_x), ..self }
    }
    /// Asks for the gradient of the residual.
    pub fn grad_residual(self, grad_residual: M::ViewMut<'a, E>) -> Self {
        Self { grad_residual: Some(grad_residual), ..self }
    }

    /// All that is asked for, but the parameters' gradients.
    pub(in crate::layer) fn args<'b>(
        &'b mut self,
        saved: &'b Saved<M, E::Acc>,
    ) -> Backward<'b, M, E> {
        let grad_y = self.grad_y.as_ref().map(M::reborrow);
        let mut args = Backward::with_input(saved, M::reborrow(&self.x), grad_y);
        args.residual = self.residual.as_ref().map(M::reborrow);
        args.grad_x = self.grad_x.as_mut().map(M::reborrow_mut);
        args.grad_residual = self.grad_residual.as_mut().map(M::reborrow_mut);
        args
    }
    /// For sums alone: nothing of a tensor is written, a gradient in place is read where it lies.
    pub(in crate::layer) fn sums<'b>(
        &'b self,
        saved: &'b Saved<M, E::Acc>,
    ) -> Option<Backward<'b, M, E>> {
        let grad_y = match (&self.grad_y, &self.grad_x) {
            (Input::View(grad_y), _) => M::reborrow(grad_y),
            (Input::InPlace, Some(grad_x)) => M::as_view(grad_x),
            (Input::InPlace, None) => return None, // refused before
        };
        let mut args = Backward::new(saved, M::reborrow(&self.x), grad_y);
        args.residual = self.residual.as_ref().map(M::reborrow);
        Some(args)
    }
}

/// What [`BatchNorm::forward_parts`](crate::BatchNorm::forward_parts) leaves for
/// [`BatchNorm::backward_parts`](crate::BatchNorm::backward_parts), and what both work in. It is reusable:
/// a forward of a list of the same shapes makes no memory.
pub struct SavedParts<M: Memory, P: Real> {
    parts: Vec<Saved<M, P>>,
    shared: Option<Shared<M, P>>,
    /// Whether the last forward was by running statistics.
    is_frozen: bool,
    /// Whether it was by statistics in common with other ranks' lists.
    is_common: bool,
}

/// What the parts of a list have in common. None of it is of a tensor's size.
pub(in crate::layer) struct Shared<M: Memory, P: Real> {
    /// The statistics of each, one after the other: length `k * (3C + 1)` for k parts.
    pub records: M::Buf<f64>,
    /// Those of all of them: length 3C + 1.
    pub merged: M::Buf<f64>,
    /// In a backward the sums of g and of g * xhat over all parts; then `per_channel`. Length 2C + 1.
    pub sums: M::Buf<P>,
    /// The same over the lists of all ranks, where there are several. Length 2C + 1.
    total: Option<M::Buf<P>>,
    /// Values per channel in all of them.
    per_channel: usize,
    /// k and C.
    pub made_for: (usize, usize),
}

impl<M: Memory, P: Real> std::fmt::Debug for SavedParts<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedParts").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl<M: Memory, P: Real> Default for SavedParts<M, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Memory, P: Real> SavedParts<M, P> {
    /// Of no forward yet.
    pub fn new() -> Self {
        Self { parts: vec![], shared: None, is_frozen: false, is_common: false }
    }
    /// Number of parts.
    pub fn len(&self) -> usize {
        self.parts.len()
    }
    /// Whether there are no parts, which no forward leaves.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
    /// Whether the statistics were frozen: a forward by running statistics.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen
    }
    fn check_len(&self, got: usize) -> Result<()> {
        if self.len() == got {
            return Ok(());
        }
        Err(Error::saved("number of parts", self.len(), got))
    }
}

impl<M: Memory, P: Real> Shared<M, P> {
    pub fn new(memory: &M, made_for: (usize, usize)) -> Result<Self> {
        let (parts, channels) = made_for;
        let len = 3 * channels + 1;
        let (records, merged) = (memory.zeros(len.saturating_mul(parts))?, memory.zeros(len)?);
        let sums = memory.upload(&filled(2 * channels + 1, P::from_f64(0.0))?)?;
        Ok(Self { records, merged, sums, total: None, per_channel: 0, made_for })
    }
    /// From now on of so many values per channel.
    pub fn count(&mut self, memory: &M, per_channel: usize) -> Result<()> {
        if self.per_channel != per_channel {
            let (mut sums, channels) = (M::view_mut(&mut self.sums), self.made_for.1);
            if let Some(count) = M::slice_mut(&mut sums, 2 * channels..2 * channels + 1) {
                memory.write(&[P::from_f64(per_channel as f64)], count)?;
            }
            self.per_channel = per_channel;
        }
        Ok(())
    }
    /// The sums again, to be added up over all ranks.
    fn total(&mut self, memory: &M) -> Result<&mut M::Buf<P>> {
        let total = match self.total.take() {
            Some(total) => total,
            None => memory.zeros(2 * self.made_for.1 + 1)?,
        };
        let total = self.total.insert(total);
        memory.copy(M::view(&self.sums), M::view_mut(total))?;
        Ok(total)
    }
    pub fn merge(&mut self, one_value: OneValue) -> MergeStats<'_, M, P> {
        let args = MergeStats::new(M::view(&self.records), M::view_mut(&mut self.merged));
        args.known(self.per_channel).one_value(one_value)
    }
}
