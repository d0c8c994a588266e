//! Layer normalization over the features of each row, and its gradients.
use super::{Arguments, Check, DEFAULT_EPS, Engine, Op, Request, Visitor, channel, tensor};
use crate::engine::layer_norm::{Forward, Opened};
use crate::{Element, EpsRule, Error, LayerNormSaved, Memory, Result, Shape};

/// Arguments of [`Engine::layer_norm`](crate::Engine::layer_norm): each row of x `[N, C]` is normalized by
/// its own mean and biased variance over the C features, `y = weight * (x - mean) / divisor + bias`, the
/// divisor by an [`EpsRule`]. Keras 1 called it batch normalization "sample-wise", mode 1.
///
/// The shape is one whose channels are the last axis: those are the features, all axes before them number
/// rows. N is the number of rows, C that of features.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, LayerNormForward, LayerNormSaved, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let (shape, x) = (Shape::new(&[2, 2], 1)?, [1f32, 3.0, 10.0, 30.0]);
/// let (mut y, mut saved) = ([0.0; 4], LayerNormSaved::new());
/// let args = LayerNormForward::<Host, f32>::new(&x, &mut y).saved(&mut saved);
/// Cpu::default().layer_norm(&shape, args)?;
/// assert_eq!(saved.mean().unwrap(), [2.0, 20.0]);
/// # assert!((y[3] - 1.0).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
pub struct LayerNormForward<'a, M: Memory, E: Element> {
    /// Length N C.
    pub x: M::View<'a, E>,
    /// Length C; ones if absent.
    pub weight: Option<M::View<'a, E::Acc>>,
    /// Length C; zeros if absent.
    pub bias: Option<M::View<'a, E::Acc>>,
    /// More than 0.
    pub eps: f64,
    /// What it is added to.
    pub eps_rule: EpsRule,
    /// Length N C. Never x itself: backward needs that.
    pub y: M::ViewMut<'a, E>,
    /// For a backward; absent if there will be none.
    pub saved: Option<&'a mut LayerNormSaved<M, E::Acc>>,
}

impl<'a, M: Memory, E: Element> LayerNormForward<'a, M, E> {
    /// `y = (x - mean) / sqrt(var + eps)`, both of length N C, with an eps of 1e-5: no parameters, and nothing
    /// saved.
    pub fn new(x: M::View<'a, E>, y: M::ViewMut<'a, E>) -> Self {
        let (eps, eps_rule) = (DEFAULT_EPS, EpsRule::Variance);
        Self { x, weight: None, bias: None, eps, eps_rule, y, saved: None }
    }
    /// Multiplies by this (length C).
    pub fn weight(self, weight: M::View<'a, E::Acc>) -> Self {
        Self { weight: Some(weight), ..self }
    }
    /// Adds this (length C).
    pub fn bias(self, bias: M::View<'a, E::Acc>) -> Self {
        Self { bias: Some(bias), ..self }
    }
    /// With this eps, more than 0, instead of 1e-5.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
    /// Adds eps to this, instead of to the variance.
    pub fn eps_rule(self, eps_rule: EpsRule) -> Self {
        Self { eps_rule, ..self }
    }
    /// Saves what a backward needs here.
    pub fn saved(self, saved: &'a mut LayerNormSaved<M, E::Acc>) -> Self {
        Self { saved: Some(saved), ..self }
    }

    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::LayerNorm, E::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> LayerNormForward<'_, M, E> {
        let Self { x, weight, bias, eps, eps_rule, y, saved } = self;
        LayerNormForward {
            x: M::reborrow(x),
            weight: weight.as_ref().map(M::reborrow),
            bias: bias.as_ref().map(M::reborrow),
            eps: *eps,
            eps_rule: *eps_rule,
            y: M::reborrow_mut(y),
            saved: saved.as_deref_mut(),
        }
    }
    /// The check every engine makes first, for the memory that it works on.
    pub(in crate::engine) fn check(&mut self, on: &M, shape: &Shape) -> Result<()> {
        check_rows(shape)?;
        self.walk(&mut Check::new(on, shape))?;
        self.eps_rule.check::<E::Acc>(self.eps)
    }
    /// Takes and opens what is to be saved; an engine calls it when no check can fail any more.
    pub(in crate::engine) fn open<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<Option<Opened<'a, M, E::Acc>>> {
        let Some(saved) = self.saved.take() else { return Ok(None) };
        let forward = Forward {
            shape: *shape,
            dtype: E::DTYPE,
            weight: self.weight.is_some(),
            bias: self.bias.is_some(),
            eps: self.eps,
            rule: self.eps_rule,
            engine: engine.name(),
        };
        saved.open(engine.memory(), forward).map(Some)
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for LayerNormForward<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { x, weight, bias, eps: _, eps_rule: _, y, saved: _ } = self;
        visitor.read(tensor("x"), x)?;
        visitor.write(tensor("y"), y)?;
        visitor.read_some(channel("weight"), weight)?;
        visitor.read_some(channel("bias"), bias)
    }
}

/// Arguments of [`Engine::layer_norm_backward`](crate::Engine::layer_norm_backward). Only the gradients asked
/// for are computed. N is the number of rows, C that of features.
///
/// With `xhat = (x - mean) / divisor`, `g = weight * grad_y` and means over the features of a row:
///
/// | | |
/// |---|---|
/// | `grad_bias`, `grad_weight` | `sum(grad_y)`, `sum(grad_y * xhat)` over all rows |
/// | `grad_x` | `(g - mean(g) - (x - mean) / root * mean(g * xhat)) / divisor` |
///
/// `root` is `sqrt(var + eps)`, or `sqrt(var)` under [`EpsRule::Std`]; there the last term of a constant row is
/// 0, as its deviation has no derivative.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, LayerNormBackward, LayerNormForward, LayerNormSaved, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let (shape, x, mut y) = (Shape::new(&[2, 2], 1)?, [1f32, 3.0, 10.0, 30.0], [0.0; 4]);
/// let (engine, mut saved) = (Cpu::default(), LayerNormSaved::new());
/// let args = LayerNormForward::<Host, f32>::new(&x, &mut y);
/// engine.layer_norm(&shape, args.saved(&mut saved))?;
/// let (grad_y, mut grad_x, mut grad_bias) = ([1.0; 4], [9.0; 4], [0.0; 2]);
/// let args = LayerNormBackward::<Host, f32>::new(&saved, &x, &grad_y);
/// engine.layer_norm_backward(&shape, args.grad_x(&mut grad_x).grad_bias(&mut grad_bias))?;
/// assert_eq!((grad_x, grad_bias), ([0.0; 4], [2.0; 2]));
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
pub struct LayerNormBackward<'a, M: Memory, E: Element> {
    /// What the forward saved, its weight, eps and rule among it.
    pub saved: &'a LayerNormSaved<M, E::Acc>,
    /// Length N C, as in the forward, unchanged since: it is not copied, and nothing can tell.
    pub x: M::View<'a, E>,
    /// Length N C: gradient of y.
    pub grad_y: M::View<'a, E>,
    /// Length N C.
    pub grad_x: Option<M::ViewMut<'a, E>>,
    /// Length C.
    pub grad_weight: Option<M::ViewMut<'a, E::Acc>>,
    /// Length C.
    pub grad_bias: Option<M::ViewMut<'a, E::Acc>>,
    /// Add to `grad_weight` and `grad_bias` instead of replacing them.
    pub accumulate: bool,
}

impl<'a, M: Memory, E: Element> LayerNormBackward<'a, M, E> {
    /// Of `x`, what the forward was given, and the gradient of its y, both of length N C; no gradient is asked
    /// for yet.
    pub fn new(
        saved: &'a LayerNormSaved<M, E::Acc>,
        x: M::View<'a, E>,
        grad_y: M::View<'a, E>,
    ) -> Self {
        let (grad_x, grad_weight, grad_bias) = (None, None, None);
        Self { saved, x, grad_y, grad_x, grad_weight, grad_bias, accumulate: false }
    }
    /// The gradient of x goes here (length N C).
    pub fn grad_x(self, grad_x: M::ViewMut<'a, E>) -> Self {
        Self { grad_x: Some(grad_x), ..self }
    }
    /// The gradient of the weight goes here (length C).
    pub fn grad_weight(self, grad_weight: M::ViewMut<'a, E::Acc>) -> Self {
        Self { grad_weight: Some(grad_weight), ..self }
    }
    /// The gradient of the bias goes here (length C).
    pub fn grad_bias(self, grad_bias: M::ViewMut<'a, E::Acc>) -> Self {
        Self { grad_bias: Some(grad_bias), ..self }
    }
    /// Whether the parameters' gradients are added to what is there.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::LayerNormBackward, E::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> LayerNormBackward<'_, M, E> {
        let Self { saved, x, grad_y, grad_x, grad_weight, grad_bias, accumulate } = self;
        LayerNormBackward {
            saved,
            x: M::reborrow(x),
            grad_y: M::reborrow(grad_y),
            grad_x: grad_x.as_mut().map(M::reborrow_mut),
            grad_weight: grad_weight.as_mut().map(M::reborrow_mut),
            grad_bias: grad_bias.as_mut().map(M::reborrow_mut),
            accumulate: *accumulate,
        }
    }
    /// The check every engine makes first.
    pub(in crate::engine) fn check<G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
    ) -> Result<()> {
        let (forward, buffers) = self.saved.made()?;
        forward.check(shape, E::DTYPE, engine.name())?;
        engine.memory().check_here("saved", &buffers.all())?;
        self.walk(&mut Check::new(engine.memory(), shape))
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for LayerNormBackward<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { saved: _, x, grad_y, grad_x, grad_weight, grad_bias, accumulate: _ } = self;
        visitor.read(tensor("x"), x)?;
        visitor.read(tensor("grad_y"), grad_y)?;
        visitor.write_some(tensor("grad_x"), grad_x)?;
        visitor.write_some(channel("grad_weight"), grad_weight)?;
        visitor.write_some(channel("grad_bias"), grad_bias)
    }
}

/// Refuses a shape whose features do not lie side by side.
pub(in crate::engine) fn check_rows(shape: &Shape) -> Result<()> {
    if shape.inner() == 1 {
        return Ok(());
    }
    let reason =
        format!("expected the channels, which are the features, on the last axis, got {shape}");
    Err(Error::invalid("shape", reason))
}
