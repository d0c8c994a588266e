//! Arguments by name, and the one check that every engine makes before it writes.
use super::check::{
    check_eps, check_momentum, check_values_per_channel, read, read_some, record_len, sums_len,
    written, written_some,
};
use super::saved::{Buffers, Forward, Opened};
use super::{Activation, Derivative, Engine, Op, Request, Saved};
use crate::{Element, Error, Memory, Real, Result, Shape};

/// An input that the output may overwrite.
#[derive(Debug, Clone, Copy)]
pub enum Input<V> {
    /// The input lies here, apart from the output.
    View(V),
    /// The output holds the input now, and the result afterwards.
    InPlace,
}

impl<V> Input<V> {
    /// As [`Option::as_ref`].
    pub fn as_ref(&self) -> Input<&V> {
        match self {
            Input::View(v) => Input::View(v),
            Input::InPlace => Input::InPlace,
        }
    }
    /// As [`Option::map`].
    pub fn map<U>(self, f: impl FnOnce(V) -> U) -> Input<U> {
        match self {
            Input::View(v) => Input::View(f(v)),
            Input::InPlace => Input::InPlace,
        }
    }
}

/// Running statistics to update: `r <- (1 - factor) * r + factor * batch`.
pub struct Running<'a, M: Memory, P: Real> {
    /// Length C.
    pub mean: M::ViewMut<'a, P>,
    /// Length C; receives the unbiased variance.
    pub var: M::ViewMut<'a, P>,
    /// Weight of the new value, 0 to 1; with 1 it replaces the old one, NaN too. A captured CUDA graph
    /// keeps the factor of its capture.
    pub factor: f64,
}

/// Statistics that a forward is given.
pub enum Statistics<'a, M: Memory, P: Real> {
    /// Such as running ones.
    Given {
        /// Length C.
        mean: M::View<'a, P>,
        /// Length C, biased or not: it is taken as it is.
        var: M::View<'a, P>,
    },
    /// A record (length 3C + 1) that [`Engine::merge_stats`] or [`Engine::stats`] has written: of a
    /// batch in parts. It has the digits that a whole batch has, which `mean` and `var` have not.
    Record(M::View<'a, f64>),
}

impl<M: Memory, P: Real> Statistics<'_, M, P> {
    fn check(&self, on: &M, channels: usize) -> Result<()> {
        match self {
            Self::Given { mean, var } => {
                read(on, "mean", channels, mean)?;
                read(on, "var", channels, var)
            }
            Self::Record(record) => read(on, "record", record_len(channels), record),
        }
    }
}

/// Arguments of [`Engine::forward_train`]:
/// `y = activation(weight * (x - mean) * invstd + bias + residual)`, mean and variance over the
/// batch. N is the number of elements of the shape, C its channels.
///
/// Written inside the call, as here, its types follow from the engine, and `&vec` does for a
/// slice. Written apart, name them: `ForwardTrain::<Host, f32> { .. }`.
///
/// ```
/// # use batchnorm::{Activation, Cpu, Engine, ForwardTrain, Saved, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let shape = Shape::new(&[4, 2], 1)?;
/// let (x, weight, bias) = ([1f32, -1., 2., 0., 3., 1., 4., 0.], [1., 1.], [0., 0.]);
/// let (mut y, mut saved) = ([0.; 8], Saved::new());
/// Cpu::default().forward_train(&shape, ForwardTrain {
///     x: &x, residual: None, weight: Some(&weight), bias: Some(&bias),
///     activation: Activation::Relu, eps: 1e-5, running: None,
///     y: &mut y, saved: Some(&mut saved),
/// })?;
/// assert_eq!(saved.mean().unwrap(), [2.5, 0.0]);
/// # Ok(())
/// # }
/// ```
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
    /// Left alone if absent.
    pub running: Option<Running<'a, M, E::Acc>>,
    /// Length N. Never x itself: backward needs that.
    pub y: M::ViewMut<'a, E>,
    /// For a backward; absent if there will be none.
    pub saved: Option<&'a mut Saved<M, E::Acc>>,
}

/// Arguments of [`Engine::forward_eval`]: as [`ForwardTrain`], by statistics that are given.
pub struct ForwardEval<'a, M: Memory, E: Element> {
    /// Length N. In place only where there is nothing to save: backward needs x.
    pub x: Input<M::View<'a, E>>,
    /// Length N, added before the activation.
    pub residual: Option<M::View<'a, E>>,
    /// Length C; ones if absent.
    pub weight: Option<M::View<'a, E::Acc>>,
    /// Length C; zeros if absent.
    pub bias: Option<M::View<'a, E::Acc>>,
    /// What comes last.
    pub activation: Activation,
    /// What x is normalized by.
    pub statistics: Statistics<'a, M, E::Acc>,
    /// Added to the variance; more than 0.
    pub eps: f64,
    /// Length N.
    pub y: M::ViewMut<'a, E>,
    /// For a backward through frozen statistics (fine-tuning); absent in inference.
    pub saved: Option<&'a mut Saved<M, E::Acc>>,
}

/// Arguments of [`Engine::backward`]. Only the gradients asked for are computed.
///
/// With `g = grad_y * activation'(z)` and m values per channel:
///
/// | | |
/// |---|---|
/// | `grad_residual` | `g` |
/// | `grad_bias`, `grad_weight` | `sum(g)`, `sum(g * xhat)` |
/// | `grad_x`, batch statistics | `weight * invstd * (g - sum(g)/m - xhat * sum(g * xhat)/m)` |
/// | `grad_x`, frozen statistics | `weight * invstd * g` |
pub struct Backward<'a, M: Memory, E: Element> {
    /// What the forward saved, its weight and bias among it.
    pub saved: &'a Saved<M, E::Acc>,
    /// Length N, as in the forward, unchanged since: it is not copied, and nothing can tell.
    pub x: M::View<'a, E>,
    /// Length N, as in the forward: asked for again where the derivative takes it
    /// ([`Derivative::FromResidual`]), otherwise not read.
    pub residual: Option<M::View<'a, E>>,
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
    /// statistics that the parts have in common.
    pub total_sums: Option<M::View<'a, E::Acc>>,
}

/// Arguments of [`Engine::stats`].
pub struct Stats<'a, M: Memory, E: Element> {
    /// Length N.
    pub x: M::View<'a, E>,
    /// Length 3C + 1: every channel's mean, what rounding it left, every channel's biased variance, m.
    /// One record to all-gather.
    ///
    /// Variances below 1e-25 of x that is not f64, which only an eps below 1e-30 sees, may have lost
    /// digits; the variance of deviations beyond 1e154 (f64) is infinite.
    pub record: M::ViewMut<'a, f64>,
}

/// Arguments of [`Engine::merge_stats`].
pub struct MergeStats<'a, M: Memory, P: Real> {
    /// The records of all parts, one after the other. A part may be empty. Counts that are no whole
    /// numbers from 0 on are refused. An engine on a device refuses only those that it reads back: none
    /// where the caller vouches for 2 values with `known`, otherwise those up to the second value.
    pub records: M::View<'a, f64>,
    /// How many values per channel the caller knows to be counted in the records, such as those of
    /// its own part; 0 where it knows of none. From 2 on an engine on a device need not read the
    /// counts back, for which it would wait.
    pub known: usize,
    /// Left alone if absent, or if all parts are empty.
    pub running: Option<Running<'a, M, P>>,
    /// Length 3C + 1: the record of all parts together, for [`Statistics::Record`], or to be merged
    /// with others.
    pub record: M::ViewMut<'a, f64>,
}

impl<M: Memory, P: Real> Running<'_, M, P> {
    fn check(&self, on: &M, channels: usize) -> Result<()> {
        written(on, "running_mean", channels, &self.mean)?;
        written(on, "running_var", channels, &self.var)?;
        check_momentum(self.factor)
    }
}

impl<'a, M: Memory, E: Element> ForwardTrain<'a, M, E> {
    /// The check every engine makes first, for the memory that it works on.
    pub(crate) fn check(&self, on: &M, shape: &Shape) -> Result<()> {
        let (n, c) = (shape.len(), shape.channels());
        read(on, "x", n, &self.x)?;
        written(on, "y", n, &self.y)?;
        read_some(on, "residual", n, &self.residual)?;
        read_some(on, "weight", c, &self.weight)?;
        read_some(on, "bias", c, &self.bias)?;
        check_eps::<E::Acc>(self.eps)?;
        self.activation.check()?;
        self.running.as_ref().map_or(Ok(()), |r| r.check(on, c))?;
        check_values_per_channel("x", shape.per_channel())
    }
    /// Takes and opens what is to be saved; an engine calls it when no check can fail any more.
    pub(crate) fn open<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let request = Request {
            op: Op::ForwardTrain,
            dtype: E::DTYPE,
            activation: self.activation,
            residual: self.residual.is_some(),
            in_place: false,
        };
        let parameters = (self.weight.is_some(), self.bias.is_some());
        let reserve_len = engine.reserve_len(shape, request);
        open(engine, shape, request, parameters, reserve_len, self.saved.take())
    }
}

impl<'a, M: Memory, E: Element> ForwardEval<'a, M, E> {
    /// The check every engine makes first, for the memory that it works on.
    pub(crate) fn check(&self, on: &M, shape: &Shape) -> Result<()> {
        let (n, c) = (shape.len(), shape.channels());
        match &self.x {
            Input::View(x) => read(on, "x", n, x)?,
            Input::InPlace if self.saved.is_some() => {
                let reason = "in place leaves no x for a backward: expected no saved, got one";
                return Err(Error::invalid("x", reason));
            }
            Input::InPlace => {}
        }
        written(on, "y", n, &self.y)?;
        read_some(on, "residual", n, &self.residual)?;
        read_some(on, "weight", c, &self.weight)?;
        read_some(on, "bias", c, &self.bias)?;
        self.statistics.check(on, c)?;
        self.activation.check()?;
        check_eps::<E::Acc>(self.eps)
    }
    /// As [`ForwardTrain::open`].
    pub(crate) fn open<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let request = Request {
            op: Op::ForwardEval,
            dtype: E::DTYPE,
            activation: self.activation,
            residual: self.residual.is_some(),
            in_place: matches!(self.x, Input::InPlace),
        };
        let parameters = (self.weight.is_some(), self.bias.is_some());
        let reserve_len = engine.reserve_len(shape, request);
        open(engine, shape, request, parameters, reserve_len, self.saved.take())
    }
}

impl<M: Memory, E: Element> Backward<'_, M, E> {
    /// The check every engine makes first. What comes back is what the forward left.
    pub(crate) fn check<G: Engine<Memory = M>>(
        &self,
        engine: &G,
        shape: &Shape,
    ) -> Result<(&Forward, &Buffers<M, E::Acc>)> {
        let (n, c) = (shape.len(), shape.channels());
        let (forward, buffers) = self.saved.made()?;
        let request = Request {
            op: if forward.batch_statistics { Op::Backward } else { Op::BackwardEval },
            dtype: E::DTYPE,
            activation: forward.activation,
            residual: self.grad_residual.is_some(),
            in_place: matches!(self.grad_y, Input::InPlace),
        };
        forward.check(shape, &request, engine.name())?;
        let on = engine.memory();
        on.check_here("saved", &M::view(&buffers.mean))?;
        read(on, "x", n, &self.x)?;
        read_some(on, "residual", n, &self.residual)?;
        let from = forward.activation.derivative_from(forward.residual);
        if from == Derivative::FromResidual && self.residual.is_none() {
            let reason = format!(
                "expected that of the forward, which the derivative of {} takes, got none",
                forward.activation
            );
            return Err(Error::invalid("residual", reason));
        }
        match &self.grad_y {
            Input::View(grad_y) => read(on, "grad_y", n, grad_y)?,
            Input::InPlace if self.grad_x.is_none() => {
                let reason = "in place: expected a grad_x that holds it, got none";
                return Err(Error::invalid("grad_y", reason));
            }
            Input::InPlace => {}
        }
        written_some(on, "grad_x", n, &self.grad_x)?;
        written_some(on, "grad_residual", n, &self.grad_residual)?;
        written_some(on, "grad_weight", c, &self.grad_weight)?;
        written_some(on, "grad_bias", c, &self.grad_bias)?;
        written_some(on, "sums", sums_len(c), &self.sums)?;
        read_some(on, "total_sums", sums_len(c), &self.total_sums)?;
        Ok((forward, buffers))
    }
}

impl<M: Memory, E: Element> Stats<'_, M, E> {
    /// The check every engine makes first, for the memory that it works on.
    pub(crate) fn check(&self, on: &M, shape: &Shape) -> Result<()> {
        read(on, "x", shape.len(), &self.x)?;
        written(on, "record", record_len(shape.channels()), &self.record)
    }
}

impl<M: Memory, P: Real> MergeStats<'_, M, P> {
    /// The check every engine makes first, for the memory that it works on. What comes back is the
    /// number of channels.
    pub(crate) fn check(&self, on: &M) -> Result<usize> {
        let (record, got) = (M::len(&M::as_view(&self.record)), M::len(&self.records));
        if record < 4 || record % 3 != 1 {
            let reason = format!("expected 3C + 1 elements for 1 channel or more, got {record}");
            return Err(Error::invalid("record", reason));
        }
        let c = record / 3;
        written(on, "record", record, &self.record)?;
        on.check_here("records", &self.records)?;
        if got == 0 || got % record != 0 {
            let reason = format!("expected a multiple of 3C + 1 = {record} elements, got {got}");
            return Err(Error::invalid("records", reason));
        }
        self.running.as_ref().map_or(Ok(()), |r| r.check(on, c))?;
        Ok(c)
    }
}

/// Buffers for what a forward saves.
pub(crate) fn open<'s, M: Memory, P: Real, G: Engine<Memory = M>>(
    engine: &G,
    shape: &Shape,
    request: Request,
    (weight, bias): (bool, bool),
    reserve_len: usize,
    saved: Option<&'s mut Saved<M, P>>,
) -> Result<Option<Opened<'s, M, P>>> {
    let Some(saved) = saved else { return Ok(None) };
    let forward = Forward {
        shape: *shape,
        dtype: request.dtype,
        activation: request.activation,
        residual: request.residual,
        weight,
        bias,
        batch_statistics: request.op == Op::ForwardTrain,
        engine: engine.name(),
    };
    saved.open(engine.memory(), forward, reserve_len).map(Some)
}

/// A running statistic after a batch: `(1 - factor) * old + factor * new`; a factor of 1 replaces
/// what is not finite, too.
pub(crate) fn blend<P: Real>(old: P, new: f64, factor: f64) -> P {
    P::from_f64(if factor == 1.0 { new } else { (1.0 - factor) * old.to_f64() + factor * new })
}
