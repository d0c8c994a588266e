//! The gradients of a backward: what a penalty on gradients takes.
use super::mask::check_places;
use super::{
    Argument, Arguments, Check, Engine, MaskRules, Op, Request, Role, Saved, Visitor, channel,
    tensor,
};
use crate::{Derivative, Element, Error, Memory, Result, Shape};

/// Arguments of [`Engine::double_backward`](crate::Engine::double_backward): the gradients of a
/// [`Backward`](crate::Backward), given those of what it computed. Only what is asked for is computed. N is
/// the number of elements of the shape, C its channels.
///
/// Be L a loss of the gradients that a backward gives, such as `(|grad_x| - 1)^2`, and `v_x`, `v_residual`,
/// `v_weight`, `v_bias` its gradients with respect to `grad_x`, `grad_residual`, `grad_weight`, `grad_bias`;
/// what is absent is 0. Then `gg_grad_y`, `gg_x`, `gg_residual`, `gg_weight`, `gg_bias` are the gradients of L
/// with respect to `grad_y`, x, the residual, the weight and the bias.
///
/// With `g = grad_y * a'(z)` of the activation a, m values and sums S per channel, and
/// `P(q) = q - S(q)/m - xhat * S(q * xhat)/m`:
///
/// | | batch statistics | frozen statistics |
/// |---|---|---|
/// | `u` | `weight * invstd * P(v_x) + v_weight * xhat + v_bias + v_residual` | the same, P(v) = v |
/// | `h` | `u * grad_y * a''(z)`, 0 without an activation that is curved | the same |
/// | `t` | `v_weight * g - weight * invstd * (v_x * S(g * xhat) + g * S(v_x * xhat)) / m` | `v_weight * g` |
/// | `K` | `S(v_x * g) - S(v_x) * S(g)/m - S(v_x * xhat) * S(g * xhat)/m` | `S(v_x * g)` |
/// | `gg_grad_y` | `u * a'(z)` | the same |
/// | `gg_x` | `invstd * P(t) - weight * K * invstd^2 * xhat / m + weight * invstd * P(h)` | `invstd * (t + weight * h)` |
/// | `gg_residual`, `gg_bias` | `h`, `S(h)` | the same |
/// | `gg_weight` | `invstd * K + S(h * xhat)` | the same |
///
/// After a forward with a [`Mask`](crate::Mask), k a value's 1 or 0, `n = S(k) + count_eps` and `d = S(k * xhat) / n`, which is 0
/// unless more than the values is counted, `P(q) = q - k * (S(q)/n + (xhat - d) * S(q * xhat)/n)`: all values are normalized
/// by the statistics, those that count alone make them. So from `grad_x = weight * invstd * P(g)` follow
/// `a = S(k * v_x)/n`, `b = S(k * v_x * (xhat - d))/n`, and:
///
/// | | by a mask |
/// |---|---|
/// | `u` | `weight * invstd * (v_x - a - b * xhat) + v_weight * xhat + v_bias + v_residual` |
/// | `t` | `v_weight * g - weight * invstd * (b * g + k * (v_x - a) * S(g * xhat)/n)` |
/// | `K` | `S(v_x * g) - a * S(g) - b * S(g * xhat)` |
/// | `gg_x` | `invstd * P(t) - weight * K * invstd^2 * k * (xhat - d) / n + weight * invstd * P(h)` |
///
/// SiLU, hard-swish and GELU are curved; the derivatives of the others are constant but at kinks. All of it
/// takes two passes: the sums of every channel, then what they make of the elements. A forward by a record of
/// statistics counts as one by frozen ones. Nothing is in place: no result lies where something is read. There
/// is no third order, [`create_graph`](Self::create_graph).
///
/// ```
/// # use batchnorm::{Cpu, DoubleBackward, Engine, ForwardTrain, Host, Saved, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let (shape, x, mut y) = (Shape::new(&[4, 1], 1)?, [1f32, 2.0, 3.0, 4.0], [0.0; 4]);
/// let (engine, mut saved) = (Cpu::default(), Saved::new());
/// engine.forward_train(&shape, ForwardTrain::<Host, f32>::new(&x, &mut y).saved(&mut saved))?;
/// let (grad_y, v_bias, mut gg_grad_y) = ([1.0, 0.0, 0.0, 0.0], [2.0], [0.0; 4]);
/// // The loss is twice the gradient of the bias, which is the sum of grad_y.
/// let args = DoubleBackward::<Host, f32>::new(&saved, &x, &grad_y);
/// engine.double_backward(&shape, args.v_bias(&v_bias).gg_grad_y(&mut gg_grad_y))?;
/// assert_eq!(gg_grad_y, [2.0; 4]);
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
pub struct DoubleBackward<'a, M: Memory, E: Element> {
    /// What the forward saved, its weight and bias among it.
    pub saved: &'a Saved<M, E::Acc>,
    /// Length N, as in the forward, unchanged since: it is not copied, and nothing can tell.
    pub x: M::View<'a, E>,
    /// Length N, as in the forward: asked for again where a derivative takes it
    /// ([`Derivative::FromResidual`]), otherwise not read.
    pub residual: Option<M::View<'a, E>>,
    /// Length N, as in the backward.
    pub grad_y: M::View<'a, E>,
    /// As in the forward: asked for again after one with a mask.
    pub mask: Option<M::View<'a, u8>>,
    /// Length N: the gradient with respect to `grad_x`.
    pub v_x: Option<M::View<'a, E>>,
    /// Length N: the gradient with respect to `grad_residual`.
    pub v_residual: Option<M::View<'a, E>>,
    /// Length C: the gradient with respect to `grad_weight`.
    pub v_weight: Option<M::View<'a, E::Acc>>,
    /// Length C: the gradient with respect to `grad_bias`.
    pub v_bias: Option<M::View<'a, E::Acc>>,
    /// Length N.
    pub gg_grad_y: Option<M::ViewMut<'a, E>>,
    /// Length N.
    pub gg_x: Option<M::ViewMut<'a, E>>,
    /// Length N.
    pub gg_residual: Option<M::ViewMut<'a, E>>,
    /// Length C.
    pub gg_weight: Option<M::ViewMut<'a, E::Acc>>,
    /// Length C.
    pub gg_bias: Option<M::ViewMut<'a, E::Acc>>,
    /// Add to `gg_weight` and `gg_bias` instead of replacing them.
    pub accumulate: bool,
    /// Whether gradients of these results are to be taken in turn, as PyTorch's `create_graph=True` has it: no
    /// engine can, so that it is refused.
    pub create_graph: bool,
    /// Asks for the sums of this part of a batch, length `12 C`, and for nothing else: they replace what is there, or
    /// are added to it by [`accumulate`](Self::accumulate).
    pub(crate) sums: Option<M::ViewMut<'a, f64>>,
    /// Those of all parts, and how many values per channel these have: the statistics that the forward was given are
    /// theirs.
    pub(crate) total_sums: Option<(M::View<'a, f64>, usize)>,
}

/// The sums of a channel that gradients are made of: of `g`, `g xhat`, `v`, `v xhat`, `v g`; and, q being
/// `grad_y * a''`, where an activation is curved, of `q`, `q xhat`, `q xhat^2`, `q v`, `q v xhat`, `q r`, `q r xhat`,
/// which are 0 elsewhere. Of a tensor they lie array by array, of a value per channel each.
pub(crate) const SUMS: usize = 12;

impl<'a, M: Memory, E: Element> DoubleBackward<'a, M, E> {
    /// By what a forward saved, its x and the gradient of y that the backward was given, both of length N. No
    /// gradient is given or asked for yet.
    pub fn new(saved: &'a Saved<M, E::Acc>, x: M::View<'a, E>, grad_y: M::View<'a, E>) -> Self {
        Self {
            saved,
            x,
            residual: None,
            grad_y,
            mask: None,
            v_x: None,
            v_residual: None,
            v_weight: None,
            v_bias: None,
            gg_grad_y: None,
            gg_x: None,
            gg_residual: None,
            gg_weight: None,
            gg_bias: None,
            accumulate: false,
            create_graph: false,
            sums: None,
            total_sums: None,
        }
    }
    /// The forward's residual (length N), for an activation whose derivative takes it.
    pub fn residual(self, residual: M::View<'a, E>) -> Self {
        Self { residual: Some(residual), ..self }
    }
    /// The places of the forward's mask.
    pub fn mask(self, places: M::View<'a, u8>) -> Self {
        Self { mask: Some(places), ..self }
    }
    /// Gives the gradient with respect to `grad_x` (length N).
    pub fn v_x(self, v_x: M::View<'a, E>) -> Self {
        Self { v_x: Some(v_x), ..self }
    }
    /// Gives the gradient with respect to `grad_residual` (length N).
    pub fn v_residual(self, v_residual: M::View<'a, E>) -> Self {
        Self { v_residual: Some(v_residual), ..self }
    }
    /// Gives the gradient with respect to `grad_weight` (length C).
    pub fn v_weight(self, v_weight: M::View<'a, E::Acc>) -> Self {
        Self { v_weight: Some(v_weight), ..self }
    }
    /// Gives the gradient with respect to `grad_bias` (length C).
    pub fn v_bias(self, v_bias: M::View<'a, E::Acc>) -> Self {
        Self { v_bias: Some(v_bias), ..self }
    }
    /// Asks for the gradient of `grad_y` (length N).
    pub fn gg_grad_y(self, gg_grad_y: M::ViewMut<'a, E>) -> Self {
        Self { gg_grad_y: Some(gg_grad_y), ..self }
    }
    /// Asks for the gradient of x (length N).
    pub fn gg_x(self, gg_x: M::ViewMut<'a, E>) -> Self {
        Self { gg_x: Some(gg_x), ..self }
    }
    /// Asks for the gradient of the residual (length N): 0 unless the activation is curved.
    pub fn gg_residual(self, gg_residual: M::ViewMut<'a, E>) -> Self {
        Self { gg_residual: Some(gg_residual), ..self }
    }
    /// Asks for the gradient of the weight (length C).
    pub fn gg_weight(self, gg_weight: M::ViewMut<'a, E::Acc>) -> Self {
        Self { gg_weight: Some(gg_weight), ..self }
    }
    /// Asks for the gradient of the bias (length C): 0 unless the activation is curved.
    pub fn gg_bias(self, gg_bias: M::ViewMut<'a, E::Acc>) -> Self {
        Self { gg_bias: Some(gg_bias), ..self }
    }
    /// Adds to the gradients of weight and bias, or replaces them.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// Asks for what a third order would take, which every engine refuses.
    pub fn create_graph(self, create_graph: bool) -> Self {
        Self { create_graph, ..self }
    }

    /// What is asked of an engine.
    ///
    /// # Errors
    /// [`Error::Invalid`] where nothing has been saved.
    pub fn request(&self) -> Result<Request> {
        let forward = self.saved.made()?.0;
        let request = Request::new(Op::DoubleBackward, E::DTYPE)
            .activation(forward.activation)
            .residual(forward.residual)
            .mask(forward.mask.is_some());
        Ok(request.grad_x(self.gg_x.is_some()).grad_residual(self.gg_residual.is_some()))
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> DoubleBackward<'_, M, E> {
        DoubleBackward {
            saved: self.saved,
            x: M::reborrow(&self.x),
            residual: self.residual.as_ref().map(M::reborrow),
            grad_y: M::reborrow(&self.grad_y),
            mask: self.mask.as_ref().map(M::reborrow),
            v_x: self.v_x.as_ref().map(M::reborrow),
            v_residual: self.v_residual.as_ref().map(M::reborrow),
            v_weight: self.v_weight.as_ref().map(M::reborrow),
            v_bias: self.v_bias.as_ref().map(M::reborrow),
            gg_grad_y: self.gg_grad_y.as_mut().map(M::reborrow_mut),
            gg_x: self.gg_x.as_mut().map(M::reborrow_mut),
            gg_residual: self.gg_residual.as_mut().map(M::reborrow_mut),
            gg_weight: self.gg_weight.as_mut().map(M::reborrow_mut),
            gg_bias: self.gg_bias.as_mut().map(M::reborrow_mut),
            accumulate: self.accumulate,
            create_graph: self.create_graph,
            sums: self.sums.as_mut().map(M::reborrow_mut),
            total_sums: self.total_sums.as_ref().map(|(sums, m)| (M::reborrow(sums), *m)),
        }
    }
    /// The lengths of a whole batch, and where it lies, before parts of it are taken.
    pub(crate) fn check_lens(&mut self, on: &M, shape: &Shape) -> Result<()> {
        self.walk(&mut Check::new(on, shape))
    }
    /// The check every engine makes first.
    pub(in crate::engine) fn check<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<()> {
        self.saved.made()?.0.check(shape, E::DTYPE, engine.name())?;
        self.check_on(engine.memory(), shape)
    }
    /// The same by whichever engine of this memory made the forward.
    pub(crate) fn check_on(&mut self, on: &M, shape: &Shape) -> Result<()> {
        let is_part = self.sums.is_some() || self.total_sums.is_some();
        if self.saved.made()?.0.synced && !is_part {
            let reason = "of statistics in common with other ranks: expected the sums of all ranks, got \
                          one rank alone";
            return Err(Error::invalid("saved", reason));
        }
        self.check_on_ranks(on, shape)
    }
    /// The same where those of other ranks come to the sums.
    pub(crate) fn check_on_ranks(&mut self, on: &M, shape: &Shape) -> Result<()> {
        let (forward, buffers) = self.saved.made()?;
        forward.check(shape, E::DTYPE, forward.engine)?;
        if self.create_graph {
            let reason = "create_graph: there is no third order: nothing is saved for one".into();
            return Err(Error::Unsupported { engine: forward.engine, reason });
        }
        let of_residual = [
            (self.v_residual.is_some(), "a v_residual to read"),
            (self.gg_residual.is_some(), "a gg_residual to write"),
        ];
        if let Some((_, what)) = of_residual.iter().find(|(is_there, _)| *is_there)
            && !forward.residual
        {
            return Err(Error::saved("residual", "none", what));
        }
        let one = |there: bool| if there { "one" } else { "none" };
        if forward.mask.is_some() != self.mask.is_some() {
            let (then, now) = (forward.mask.is_some(), self.mask.is_some());
            return Err(Error::saved("mask", one(then), one(now)));
        }
        on.check_here("saved", &buffers.all())?;
        self.walk(&mut Check::new(on, shape))?;
        self.mask.as_ref().map_or(Ok(()), check_places::<M>)?;
        let of_parts = [
            self.sums.as_ref().map(M::as_view),
            self.total_sums.as_ref().map(|(sums, _)| M::reborrow(sums)),
        ];
        for view in of_parts.into_iter().flatten() {
            let (expected, got) = (SUMS * shape.channels(), M::len(&view));
            if got != expected {
                return Err(Error::Length { what: "sums", expected, got });
            }
            on.check_here("sums", &view)?;
        }
        let from = forward.activation.derivative_from(forward.residual);
        if from == Derivative::FromResidual && self.residual.is_none() {
            let reason = format!(
                "expected that of the forward, which the derivatives of {} take, got none",
                forward.activation
            );
            return Err(Error::invalid("residual", reason));
        }
        Ok(())
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for DoubleBackward<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self {
            saved,
            x,
            residual,
            grad_y,
            mask,
            v_x,
            v_residual,
            v_weight,
            v_bias,
            gg_grad_y,
            gg_x,
            gg_residual,
            gg_weight,
            gg_bias,
            accumulate: _,
            create_graph: _,
            sums: _,
            total_sums: _,
        } = self;
        visitor.read(tensor("x"), x)?;
        visitor.read_some(tensor("residual"), residual)?;
        visitor.read(tensor("grad_y"), grad_y)?;
        if let Some(mask) = mask {
            let rules = saved.forward().ok().and_then(|forward| forward.mask);
            let of_positions = Argument { name: "mask", role: Role::Positions };
            visitor.read_bytes(rules.map_or(of_positions, MaskRules::argument), mask)?;
        }
        visitor.read_some(tensor("v_x"), v_x)?;
        visitor.read_some(tensor("v_residual"), v_residual)?;
        visitor.read_some(channel("v_weight"), v_weight)?;
        visitor.read_some(channel("v_bias"), v_bias)?;
        visitor.write_some(tensor("gg_grad_y"), gg_grad_y)?;
        visitor.write_some(tensor("gg_x"), gg_x)?;
        visitor.write_some(tensor("gg_residual"), gg_residual)?;
        visitor.write_some(channel("gg_weight"), gg_weight)?;
        visitor.write_some(channel("gg_bias"), gg_bias)
    }
}
