//! The forward by the batch's own statistics.
use super::{
    Arguments, Check, DEFAULT_EPS, Engine, Mask, OneValue, Op, Opened, Request, Running, Saved,
    Visitor, channel, forward_of, open, tensor,
};
use crate::engine::check::{check_eps, check_values_per_channel};
use crate::{Activation, Element, Memory, Result, Shape};

/// Values between the arrays of what groups save.
const APART: usize = 320;

/// Arguments of [`Engine::forward_train`](crate::Engine::forward_train):
/// `y = activation(weight * (x - mean) * invstd + bias + residual)`, mean and variance over the
/// batch. N is the number of elements of the shape, C its channels.
///
/// Made by [`new`](Self::new) from what is required, with what else there is. Name the memory and the
/// element, as here, and `&vec` does for a slice; what may be there or not is assigned to its field.
///
/// ```
/// # use batchnorm::{Activation, Cpu, Engine, ForwardTrain, Host, Saved, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let shape = Shape::new(&[4, 2], 1)?;
/// let (x, weight, bias) = ([1f32, -1., 2., 0., 3., 1., 4., 0.], [1., 1.], [0., 0.]);
/// let (mut y, mut saved) = ([0.; 8], Saved::new());
/// let args = ForwardTrain::<Host, f32>::new(&x, &mut y)
///     .weight(&weight)
///     .bias(&bias)
///     .activation(Activation::Relu)
///     .saved(&mut saved);
/// Cpu::default().forward_train(&shape, args)?;
/// assert_eq!(saved.mean().unwrap(), [2.5, 0.0]);
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
pub struct ForwardTrain<'a, M: Memory, E: Element> {
    /// Length N.
    pub x: M::View<'a, E>,
    /// Length N, added before the activation.
    pub residual: Option<M::View<'a, E>>,
    /// Length C; ones if absent.
    pub weight: Option<M::View<'a, E::Acc>>,
    /// Length C; zeros if absent.
    pub bias: Option<M::View<'a, E::Acc>>,
    /// What comes last.
    pub activation: Activation,
    /// Added to the variance; more than 0.
    pub eps: f64,
    /// What a batch with one value per channel is.
    pub one_value: OneValue,
    /// Which values count for the statistics; all if absent. One value that counts, of several, is a batch
    /// of variance 0, whatever `one_value` says of one value alone.
    pub mask: Option<Mask<'a, M>>,
    /// Left alone if absent.
    pub running: Option<Running<'a, M, E::Acc>>,
    /// Length N. Never x itself: backward needs that.
    pub y: M::ViewMut<'a, E>,
    /// For a backward; absent if there will be none.
    pub saved: Option<&'a mut Saved<M, E::Acc>>,
    /// Whether the caller keeps y as it is until the backward, and gives it there
    /// ([`Backward::y`](crate::Backward::y)), as a network does whose next layer keeps it as its input.
    /// Then nothing is copied: `Cudnn`, which reads it again behind a ReLU, otherwise
    /// copies it, a read and a write of the whole tensor. Other engines have no use for it.
    pub y_is_kept: bool,
    /// Whether the statistics are those of this tensor alone where the engine is [`Synced`](crate::Synced),
    /// whose statistics are otherwise those of all ranks' tensors: nothing is communicated then. Other engines
    /// know no others.
    pub alone: bool,
}

impl<'a, M: Memory, E: Element> ForwardTrain<'a, M, E> {
    /// `y = (x - mean) * invstd`, both of length N, with an eps of 1e-5: no parameters, residual,
    /// activation, running statistics, and nothing saved.
    pub fn new(x: M::View<'a, E>, y: M::ViewMut<'a, E>) -> Self {
        Self {
            x,
            residual: None,
            weight: None,
            bias: None,
            activation: Activation::Identity,
            eps: DEFAULT_EPS,
            one_value: OneValue::Refuse,
            mask: None,
            running: None,
            y,
            saved: None,
            y_is_kept: false,
            alone: false,
        }
    }
    /// Adds this (length N) before the activation.
    pub fn residual(self, residual: M::View<'a, E>) -> Self {
        Self { residual: Some(residual), ..self }
    }
    /// Multiplies by this (length C).
    pub fn weight(self, weight: M::View<'a, E::Acc>) -> Self {
        Self { weight: Some(weight), ..self }
    }
    /// Adds this (length C).
    pub fn bias(self, bias: M::View<'a, E::Acc>) -> Self {
        Self { bias: Some(bias), ..self }
    }
    /// Ends with this.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
    /// Adds this to the variance, more than 0, instead of 1e-5.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
    /// Takes one value per channel like this, instead of refusing it.
    pub fn one_value(self, one_value: OneValue) -> Self {
        Self { one_value, ..self }
    }
    /// Takes statistics of these values alone.
    pub fn mask(self, mask: Mask<'a, M>) -> Self {
        Self { mask: Some(mask), ..self }
    }
    /// Updates these running statistics, mean and variance of length C each; `factor` is the weight of
    /// the new value, 0 to 1. Those of a [`RunningStats`](crate::RunningStats) are assigned to the field.
    pub fn running(
        self,
        mean: M::ViewMut<'a, E::Acc>,
        var: M::ViewMut<'a, E::Acc>,
        factor: f64,
    ) -> Self {
        Self { running: Some(Running::new(mean, var, factor)), ..self }
    }
    /// Saves what a backward needs here.
    pub fn saved(self, saved: &'a mut Saved<M, E::Acc>) -> Self {
        Self { saved: Some(saved), ..self }
    }
    /// Promises the backward this y, unchanged.
    pub fn y_is_kept(self, y_is_kept: bool) -> Self {
        Self { y_is_kept, ..self }
    }
    /// Takes the statistics of this tensor alone, without other ranks'.
    pub fn alone(self, alone: bool) -> Self {
        Self { alone, ..self }
    }

    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        let Self { activation, residual, running, saved, .. } = self;
        let request = Request::new(Op::ForwardTrain, E::DTYPE).saves(saved.is_some());
        let request = request.activation(*activation).residual(residual.is_some());
        let request = request.y_is_kept(self.y_is_kept).mask(self.mask.is_some());
        Request { running: running.as_ref().map(Running::rules), ..request }
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> ForwardTrain<'_, M, E> {
        let Self {
            x, residual, weight, bias, activation, eps, one_value, mask, running, y, ..
        } = self;
        ForwardTrain {
            x: M::reborrow(x),
            residual: residual.as_ref().map(M::reborrow),
            weight: weight.as_ref().map(M::reborrow),
            bias: bias.as_ref().map(M::reborrow),
            activation: *activation,
            eps: *eps,
            one_value: *one_value,
            mask: mask.as_ref().map(Mask::reborrow),
            running: running.as_mut().map(Running::reborrow),
            y: M::reborrow_mut(y),
            saved: self.saved.as_deref_mut(),
            y_is_kept: self.y_is_kept,
            alone: self.alone,
        }
    }
    /// The check every engine makes first, for the memory that it works on.
    pub(crate) fn check(&mut self, on: &M, shape: &Shape) -> Result<()> {
        self.walk(&mut Check::new(on, shape))?;
        check_eps::<E::Acc>(self.eps)?;
        self.activation.check()?;
        Running::check_values(self.running.as_ref())?;
        self.mask.as_ref().map_or(Ok(()), |mask| mask.check_values(shape))?;
        check_values_per_channel("x", shape.per_channel(), self.one_value)
    }
    /// Takes and opens what is to be saved; an engine calls it when no check can fail any more.
    pub(in crate::engine) fn open<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let reserve_len = |request| engine.reserve_len(shape, request);
        self.open_with(engine, shape, reserve_len)
    }
    /// As [`open`](Self::open), for so many groups in one call: every value of a channel as often as there are groups, and so
    /// many bytes of the engine's own.
    pub(in crate::engine) fn open_groups<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
        groups: usize,
        reserve_len: usize,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let Some(saved) = self.saved.take() else { return Ok(None) };
        let parameters = (self.weight.is_some(), self.bias.is_some());
        let mask = self.mask.as_ref().map(Mask::rules);
        let forward = forward_of(engine, shape, self.request(), parameters, mask);
        // Arrays that begin at the same places of pages are taken for each other where one is stored and another loaded.
        let channels = shape.channels().saturating_mul(groups).saturating_add(APART);
        saved.open_of(engine.memory(), forward, channels, reserve_len).map(Some)
    }
    /// As [`open`](Self::open), with so many bytes of the engine's own.
    pub(in crate::engine) fn open_with<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
        reserve_len: impl FnOnce(Request) -> usize,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let Some(saved) = self.saved.take() else { return Ok(None) };
        let parameters = (self.weight.is_some(), self.bias.is_some());
        let request = self.request();
        let mask = self.mask.as_ref().map(Mask::rules);
        open(engine, shape, request, parameters, mask, reserve_len(request), saved).map(Some)
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for ForwardTrain<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self {
            x,
            residual,
            weight,
            bias,
            activation: _,
            eps: _,
            one_value: _,
            mask,
            running,
            y,
            saved: _,
            y_is_kept: _,
            alone: _,
        } = self;
        visitor.read(tensor("x"), x)?;
        visitor.write(tensor("y"), y)?;
        visitor.read_some(tensor("residual"), residual)?;
        visitor.read_some(channel("weight"), weight)?;
        visitor.read_some(channel("bias"), bias)?;
        mask.as_mut().map_or(Ok(()), |mask| mask.walk(visitor))?;
        running.as_mut().map_or(Ok(()), |running| running.walk(visitor))
    }
}
