//! The forward by statistics that are given.
use super::{
    Arguments, Check, DEFAULT_EPS, Engine, Op, Opened, Request, Saved, Visitor, channel, open,
    record, tensor,
};
use crate::engine::check::check_eps;
use crate::{Activation, Element, Error, Memory, Real, Result, Shape};

/// An input that the output may overwrite. There is no third way, so that it may be matched.
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
    /// The view, if it lies apart.
    pub fn view(self) -> Option<V> {
        match self {
            Input::View(v) => Some(v),
            Input::InPlace => None,
        }
    }
    /// Whether the output holds it.
    pub fn is_in_place(&self) -> bool {
        matches!(self, Input::InPlace)
    }
}

/// Statistics that a forward is given.
#[non_exhaustive]
pub enum Statistics<'a, M: Memory, P: Real> {
    /// Such as running ones.
    Given {
        /// Length C.
        mean: M::View<'a, P>,
        /// Length C, biased or not: it is taken as it is.
        var: M::View<'a, P>,
    },
    /// A record (length 3C + 1) that [`Engine::merge_stats`](crate::Engine::merge_stats) or
    /// [`Engine::stats`](crate::Engine::stats) has written: of a batch in parts. It has the digits that
    /// a whole batch has, which `mean` and `var` have not.
    Record(M::View<'a, f64>),
}

impl<'a, M: Memory, P: Real> Statistics<'a, M, P> {
    fn reborrow(&self) -> Statistics<'_, M, P> {
        match self {
            Self::Given { mean, var } => {
                Statistics::Given { mean: M::reborrow(mean), var: M::reborrow(var) }
            }
            Self::Record(record) => Statistics::Record(M::reborrow(record)),
        }
    }
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        match self {
            Self::Given { mean, var } => {
                visitor.read(channel("mean"), mean)?;
                visitor.read(channel("var"), var)
            }
            Self::Record(from) => visitor.read(record("record"), from),
        }
    }
}

/// Arguments of [`Engine::forward_eval`](crate::Engine::forward_eval): as
/// [`ForwardTrain`](crate::ForwardTrain), by statistics that are given. N is the number of elements of
/// the shape, C its channels.
///
/// ```
/// # use batchnorm::{Cpu, Engine, ForwardEval, Host, Shape};
/// let (shape, mut y) = (Shape::new(&[2, 2], 1)?, [1f32, 2.0, 3.0, 4.0]);
/// let (mean, var) = ([1.0, 2.0], [4.0, 1.0]);
/// let args = ForwardEval::<Host, f32>::in_place(&mut y, &mean, &var).eps(1e-12);
/// Cpu::default().forward_eval(&shape, args)?;
/// assert_eq!(y, [0.0, 0.0, 1.0, 2.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
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

impl<'a, M: Memory, E: Element> ForwardEval<'a, M, E> {
    /// `y = (x - mean) / sqrt(var + 1e-5)`, x and y of length N, mean and var of length C: no
    /// parameters, residual, activation, and nothing saved.
    pub fn new(
        x: M::View<'a, E>,
        y: M::ViewMut<'a, E>,
        mean: M::View<'a, E::Acc>,
        var: M::View<'a, E::Acc>,
    ) -> Self {
        Self::with_input(Input::View(x), y, Statistics::Given { mean, var })
    }
    /// The same over x: `y` (length N) holds it before.
    pub fn in_place(
        y: M::ViewMut<'a, E>,
        mean: M::View<'a, E::Acc>,
        var: M::View<'a, E::Acc>,
    ) -> Self {
        Self::with_input(Input::InPlace, y, Statistics::Given { mean, var })
    }
    /// As [`new`](Self::new), by a record (length 3C + 1) of mean and variance.
    pub fn by_record(x: M::View<'a, E>, y: M::ViewMut<'a, E>, record: M::View<'a, f64>) -> Self {
        Self::with_input(Input::View(x), y, Statistics::Record(record))
    }
    pub(crate) fn with_input(
        x: Input<M::View<'a, E>>,
        y: M::ViewMut<'a, E>,
        statistics: Statistics<'a, M, E::Acc>,
    ) -> Self {
        Self {
            x,
            residual: None,
            weight: None,
            bias: None,
            activation: Activation::Identity,
            statistics,
            eps: DEFAULT_EPS,
            y,
            saved: None,
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
    /// Saves what a backward through frozen statistics needs here.
    pub fn saved(self, saved: &'a mut Saved<M, E::Acc>) -> Self {
        Self { saved: Some(saved), ..self }
    }

    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        let Self { x, activation, residual, statistics, saved, .. } = self;
        let request = Request::new(Op::ForwardEval, E::DTYPE).in_place(x.is_in_place());
        let request = request.activation(*activation).residual(residual.is_some());
        request.by_record(matches!(statistics, Statistics::Record(_))).saves(saved.is_some())
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> ForwardEval<'_, M, E> {
        let Self { x, residual, weight, bias, activation, statistics, eps, y, saved } = self;
        ForwardEval {
            x: x.as_ref().map(M::reborrow),
            residual: residual.as_ref().map(M::reborrow),
            weight: weight.as_ref().map(M::reborrow),
            bias: bias.as_ref().map(M::reborrow),
            activation: *activation,
            statistics: statistics.reborrow(),
            eps: *eps,
            y: M::reborrow_mut(y),
            saved: saved.as_deref_mut(),
        }
    }
    /// The check every engine makes first, for the memory that it works on.
    pub(crate) fn check(&mut self, on: &M, shape: &Shape) -> Result<()> {
        if self.x.is_in_place() && self.saved.is_some() {
            let reason = "in place leaves no x for a backward: expected no saved, got one";
            return Err(Error::invalid("x", reason));
        }
        self.walk(&mut Check::new(on, shape))?;
        self.activation.check()?;
        check_eps::<E::Acc>(self.eps)
    }
    /// As [`ForwardTrain::open`](crate::ForwardTrain).
    pub(in crate::engine) fn open<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let Some(saved) = self.saved.take() else { return Ok(None) };
        let parameters = (self.weight.is_some(), self.bias.is_some());
        let request = self.request();
        let reserve_len = engine.reserve_len(shape, request);
        open(engine, shape, request, parameters, None, reserve_len, saved).map(Some)
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for ForwardEval<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { x, residual, weight, bias, activation: _, statistics, eps: _, y, saved: _ } =
            self;
        if let Input::View(x) = x {
            visitor.read(tensor("x"), x)?;
        }
        visitor.write(tensor("y"), y)?;
        visitor.read_some(tensor("residual"), residual)?;
        visitor.read_some(channel("weight"), weight)?;
        visitor.read_some(channel("bias"), bias)?;
        statistics.walk(visitor)
    }
}
