//! The gradients of either forward.
use super::mask::check_places;
use super::{
    Argument, Arguments, Check, Engine, Input, MaskRules, Op, Request, Role, Saved, Visitor,
    channel, sums, tensor,
};
use crate::{Derivative, Element, Error, Memory, Result, Shape};

/// Arguments of [`Engine::backward`](crate::Engine::backward). Only the gradients asked for are computed.
/// N is the number of elements of the shape, C its channels.
///
/// With `g = grad_y * activation'(z)` and m values per channel:
///
/// | | |
/// |---|---|
/// | `grad_residual` | `g` |
/// | `grad_bias`, `grad_weight` | `sum(g)`, `sum(g * xhat)` |
/// | `grad_x`, batch statistics | `weight * invstd * (g - sum(g)/m - xhat * sum(g * xhat)/m)` |
/// | `grad_x`, frozen statistics | `weight * invstd * g` |
///
/// After a forward with a [`Mask`](crate::Mask) the sums are still those over all values. With k a value's 1
/// or 0 and n the count of that mask, `grad_x` is
/// `weight * invstd * (g - k * (sum(g) - xhat0 + xhat * sum(g * xhat)) / n)`, where `xhat0` is
/// `invstd * mean * count_eps / n * sum(g * xhat)`: 0 where values are counted exactly.
///
/// ```
/// # use batchnorm::{Backward, Cpu, Engine, ForwardTrain, Host, Saved, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let (shape, x, mut y) = (Shape::new(&[4, 1], 1)?, [1f32, 2.0, 3.0, 4.0], [0.0; 4]);
/// let (engine, mut saved) = (Cpu::default(), Saved::new());
/// engine.forward_train(&shape, ForwardTrain::<Host, f32>::new(&x, &mut y).saved(&mut saved))?;
/// let (grad_y, mut grad_x, mut grad_bias) = ([1.0; 4], [0.0; 4], [0.0]);
/// let args = Backward::<Host, f32>::new(&saved, &x, &grad_y)
///     .grad_x(&mut grad_x)
///     .grad_bias(&mut grad_bias);
/// engine.backward(&shape, args)?;
/// assert_eq!((grad_x, grad_bias), ([0.0; 4], [4.0]));
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
pub struct Backward<'a, M: Memory, E: Element> {
    /// What the forward saved, its weight and bias among it.
    pub saved: &'a Saved<M, E::Acc>,
    /// Length N, as in the forward, unchanged since: it is not copied, and nothing can tell.
    pub x: M::View<'a, E>,
    /// Length N, as in the forward: asked for again where the derivative takes it
    /// ([`Derivative::FromResidual`]), otherwise not read.
    pub residual: Option<M::View<'a, E>>,
    /// Length N: the forward's y, unchanged, where that has been told that it is kept
    /// ([`ForwardTrain::y_is_kept`](crate::ForwardTrain::y_is_kept)); otherwise not read.
    pub y: Option<M::View<'a, E>>,
    /// The places of the forward's mask, unchanged: asked for again where it had one, a byte for each, since to
    /// keep a copy would cost as much memory.
    pub mask: Option<M::View<'a, u8>>,
    /// Length N: gradient of y. In place: `grad_x` holds it before. Through frozen statistics and in
    /// place, on a device, sums that leave f32 on the way are infinite or NaN, as nothing is there to
    /// add them up again from.
    pub grad_y: Input<M::View<'a, E>>,
    /// Length N.
    pub grad_x: Option<M::ViewMut<'a, E>>,
    /// Length N.
    pub grad_residual: Option<M::ViewMut<'a, E>>,
    /// Length C.
    pub grad_weight: Option<M::ViewMut<'a, E::Acc>>,
    /// Length C.
    pub grad_bias: Option<M::ViewMut<'a, E::Acc>>,
    /// Add to `grad_weight` and `grad_bias` instead of replacing them.
    pub accumulate: bool,
    /// Length 2C + 1, for synchronized statistics: `sum(g)` of every channel, `sum(g * xhat)` of
    /// every channel, m. One record to all-reduce by addition.
    pub sums: Option<M::ViewMut<'a, E::Acc>>,
    /// Length 2C + 1: `sums` added up over all parts of the batch. With it, `grad_x` flows through
    /// statistics that the parts have in common. After a mask both go with a forward of [`Synced`](crate::Synced)
    /// alone, which knows how many values count in all parts.
    pub total_sums: Option<M::View<'a, E::Acc>>,
}

impl<'a, M: Memory, E: Element> Backward<'a, M, E> {
    /// By what a forward saved, its x and the gradient of y, both of length N. No gradient is asked
    /// for yet.
    pub fn new(saved: &'a Saved<M, E::Acc>, x: M::View<'a, E>, grad_y: M::View<'a, E>) -> Self {
        Self::with_input(saved, x, Input::View(grad_y))
    }
    /// The same in place: `grad_x` (length N) holds the gradient of y before, and that of x after.
    pub fn in_place(
        saved: &'a Saved<M, E::Acc>,
        x: M::View<'a, E>,
        grad_x: M::ViewMut<'a, E>,
    ) -> Self {
        Self::with_input(saved, x, Input::InPlace).grad_x(grad_x)
    }
    /// As [`new`](Self::new) or [`in_place`](Self::in_place), which then lacks its `grad_x`.
    pub(crate) fn with_input(
        saved: &'a Saved<M, E::Acc>,
        x: M::View<'a, E>,
        grad_y: Input<M::View<'a, E>>,
    ) -> Self {
        Self {
            saved,
            x,
            residual: None,
            y: None,
            mask: None,
            grad_y,
            grad_x: None,
            grad_residual: None,
            grad_weight: None,
            grad_bias: None,
            accumulate: false,
            sums: None,
            total_sums: None,
        }
    }
    /// The forward's residual (length N), for an activation whose derivative takes it.
    pub fn residual(self, residual: M::View<'a, E>) -> Self {
        Self { residual: Some(residual), ..self }
    }
    /// The forward's y (length N), where the caller has kept it.
    pub fn y(self, y: M::View<'a, E>) -> Self {
        Self { y: Some(y), ..self }
    }
    /// The places of the forward's mask.
    pub fn mask(self, mask: M::View<'a, u8>) -> Self {
        Self { mask: Some(mask), ..self }
    }
    /// Asks for the gradient of x (length N).
    pub fn grad_x(self, grad_x: M::ViewMut<'a, E>) -> Self {
        Self { grad_x: Some(grad_x), ..self }
    }
    /// Asks for the gradient of the residual (length N).
    pub fn grad_residual(self, grad_residual: M::ViewMut<'a, E>) -> Self {
        Self { grad_residual: Some(grad_residual), ..self }
    }
    /// Asks for the gradient of the weight (length C).
    pub fn grad_weight(self, grad_weight: M::ViewMut<'a, E::Acc>) -> Self {
        Self { grad_weight: Some(grad_weight), ..self }
    }
    /// Asks for the gradient of the bias (length C).
    pub fn grad_bias(self, grad_bias: M::ViewMut<'a, E::Acc>) -> Self {
        Self { grad_bias: Some(grad_bias), ..self }
    }
    /// Adds to the gradients of weight and bias, or replaces them.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }
    /// Asks for this part's sums (length 2C + 1).
    pub fn sums(self, sums: M::ViewMut<'a, E::Acc>) -> Self {
        Self { sums: Some(sums), ..self }
    }
    /// Takes the sums of all parts (length 2C + 1).
    pub fn total_sums(self, total_sums: M::View<'a, E::Acc>) -> Self {
        Self { total_sums: Some(total_sums), ..self }
    }

    /// What is asked of an engine: the epilogue is that of the forward.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no forward has filled `saved`.
    pub fn request(&self) -> Result<Request> {
        let (forward, _) = self.saved.made()?;
        let frozen = !forward.batch_statistics && !forward.synced;
        let op = if frozen { Op::BackwardEval } else { Op::Backward };
        let request = Request::new(op, E::DTYPE).in_place(self.grad_y.is_in_place());
        let request = request.activation(forward.activation).residual(forward.residual);
        let request = request.y_is_kept(forward.y_is_kept).mask(forward.mask.is_some());
        let request = request.grad_x(self.grad_x.is_some());
        let request = request.grad_residual(self.grad_residual.is_some());
        Ok(request.sums(self.sums.is_some() || self.total_sums.is_some()))
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Backward<'_, M, E> {
        let Self { saved, x, residual, y, mask, grad_y, grad_x, grad_residual, .. } = self;
        let Self { grad_weight, grad_bias, accumulate, sums, total_sums, .. } = self;
        Backward {
            saved,
            x: M::reborrow(x),
            residual: residual.as_ref().map(M::reborrow),
            y: y.as_ref().map(M::reborrow),
            mask: mask.as_ref().map(M::reborrow),
            grad_y: grad_y.as_ref().map(M::reborrow),
            grad_x: grad_x.as_mut().map(M::reborrow_mut),
            grad_residual: grad_residual.as_mut().map(M::reborrow_mut),
            grad_weight: grad_weight.as_mut().map(M::reborrow_mut),
            grad_bias: grad_bias.as_mut().map(M::reborrow_mut),
            accumulate: *accumulate,
            sums: sums.as_mut().map(M::reborrow_mut),
            total_sums: total_sums.as_ref().map(M::reborrow),
        }
    }
    /// The check every engine makes first.
    pub(in crate::engine) fn check<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<()> {
        let forward = self.saved.made()?.0;
        forward.check(shape, E::DTYPE, engine.name())?;
        if forward.synced && self.grad_x.is_some() && self.total_sums.is_none() {
            let reason = "expected an engine that has statistics in common with other ranks, as the forward's \
                          had, or their total_sums; got neither";
            return Err(Error::invalid("saved", reason));
        }
        self.check_on(engine.memory(), shape)
    }
    /// The same by whichever engine made the forward: that of this memory which the caller has chosen may
    /// pass it on, as [`Gpu`](crate::Gpu) does.
    pub(crate) fn check_on(&mut self, on: &M, shape: &Shape) -> Result<()> {
        let (forward, buffers) = self.saved.made()?;
        forward.check(shape, E::DTYPE, forward.engine)?;
        if self.grad_residual.is_some() && !forward.residual {
            return Err(Error::saved("residual", "none", "a grad_residual to write"));
        }
        let one = |there: bool| if there { "one" } else { "none" };
        if forward.mask.is_some() != self.mask.is_some() {
            return Err(Error::saved(
                "mask",
                one(forward.mask.is_some()),
                one(self.mask.is_some()),
            ));
        }
        let of_part = self.sums.is_some() || self.total_sums.is_some();
        let counts_all = self.saved.counted().is_some() && !forward.batch_statistics;
        if forward.mask.is_some() && of_part && !counts_all {
            let reason = "after a mask: expected no sums of a part of a batch, got some";
            return Err(Error::invalid("sums", reason));
        }
        on.check_here("saved", &buffers.all())?;
        self.walk(&mut Check::new(on, shape))?;
        self.mask.as_ref().map_or(Ok(()), check_places::<M>)?;
        let from = forward.activation.derivative_from(forward.residual);
        if from == Derivative::FromResidual && self.residual.is_none() {
            let reason = format!(
                "expected that of the forward, which the derivative of {} takes, got none",
                forward.activation
            );
            return Err(Error::invalid("residual", reason));
        }
        if forward.y_is_kept && self.y.is_none() {
            let reason = "expected that of the forward, which was told that it is kept, got none";
            return Err(Error::invalid("y", reason));
        }
        if self.grad_y.is_in_place() && self.grad_x.is_none() {
            let reason = "in place: expected a grad_x that holds it, got none";
            return Err(Error::invalid("grad_y", reason));
        }
        Ok(())
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for Backward<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self {
            saved,
            x,
            residual,
            y,
            mask,
            grad_y,
            grad_x,
            grad_residual,
            grad_weight,
            grad_bias,
            accumulate: _,
            sums: part,
            total_sums,
        } = self;
        visitor.read(tensor("x"), x)?;
        visitor.read_some(tensor("residual"), residual)?;
        visitor.read_some(tensor("y"), y)?;
        if let Some(mask) = mask {
            let rules = saved.made().ok().and_then(|(forward, _)| forward.mask);
            let role = Role::Positions;
            let argument =
                rules.map_or(Argument { name: "mask", role }, |rules: MaskRules| rules.argument());
            visitor.read_bytes(argument, mask)?;
        }
        if let Input::View(grad_y) = grad_y {
            visitor.read(tensor("grad_y"), grad_y)?;
        }
        visitor.write_some(tensor("grad_x"), grad_x)?;
        visitor.write_some(tensor("grad_residual"), grad_residual)?;
        visitor.write_some(channel("grad_weight"), grad_weight)?;
        visitor.write_some(channel("grad_bias"), grad_bias)?;
        visitor.write_some(sums("sums"), part)?;
        visitor.read_some(sums("total_sums"), total_sums)
    }
}
