//! Layer normalization as a layer: two parameters, no running statistics, no modes.
use super::{Both, Keras1, Param, fill};
use crate::{
    Element, Engine, EpsRule, Error, LayerNormBackward, LayerNormForward, LayerNormSaved, Memory,
    Plain, Real, Result, Shape,
};

/// How a [`LayerNorm`] behaves; the default is PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct LayerNormConfig {
    /// Finite, more than 0.
    pub eps: f64,
    /// What it is added to.
    pub eps_rule: EpsRule,
    /// Whether there is a weight, one number per feature that multiplies.
    pub weight: bool,
    /// Whether there is a bias, one number per feature that is added.
    pub bias: bool,
}

impl Default for LayerNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, eps_rule: EpsRule::Variance, weight: true, bias: true }
    }
}

impl LayerNormConfig {
    /// Keras 1's `BatchNormalization(mode=1)`, "sample-wise". A file of that layer has two more arrays,
    /// running statistics that this mode never reads: `Strict::No` passes them over.
    pub fn keras1_mode1(version: Keras1) -> Self {
        let eps_rule = if version == Keras1::V0_3 { EpsRule::Std } else { EpsRule::Both };
        Self { eps: version.eps(), eps_rule, ..Self::default() }
    }
    /// With this eps.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
    /// Adds eps to this.
    pub fn eps_rule(self, eps_rule: EpsRule) -> Self {
        Self { eps_rule, ..self }
    }
    /// With a weight, or without.
    pub fn weight(self, weight: bool) -> Self {
        Self { weight, ..self }
    }
    /// With a bias, or without.
    pub fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }
}

/// A layer normalization layer: each row of x `[N, C]` is normalized by its own mean and biased variance over
/// its C features, then multiplied by a weight and added to a bias, one of each per feature. PyTorch's
/// `LayerNorm(C)`, and, by [`LayerNormConfig::keras1_mode1`], what Keras 1 called batch normalization
/// sample-wise, which adds eps elsewhere.
///
/// Training and evaluation are the same, and no row depends on another. f32 parameters serve f16, bf16 and
/// f32 tensors, f64 parameters serve f64 tensors.
///
/// ```
/// # use batchnorm::{Keras1, LayerNorm, LayerNormConfig, Reference, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let config = LayerNormConfig::keras1_mode1(Keras1::V1_2);
/// let mut layer = LayerNorm::new(&Reference, 3, config)?;
/// let (shape, x) = (Shape::new(&[2, 3], 1)?, [1f32, 2.0, 6.0, -1.0, 0.0, 4.0]);
/// let (y, saved) = layer.forward(&shape, &x)?;
/// let grad_y = y; // the gradient of the sum of y * y / 2
/// let grad_x = layer.backward(&saved, &x, &grad_y)?;
/// # assert_eq!(grad_x.len(), 6);
/// assert!(layer.weight().unwrap().grad().is_some());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Every method checks its arguments first, as [`BatchNorm`](crate::BatchNorm)'s do.
pub struct LayerNorm<P: Real, G: Engine> {
    engine: G,
    config: LayerNormConfig,
    features: usize,
    weight: Option<Param<G::Memory, P>>,
    bias: Option<Param<G::Memory, P>>,
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> LayerNorm<P, G> {
    /// A layer for `features` features: weight 1, bias 0.
    ///
    /// # Errors
    /// [`Error::Invalid`] where eps is not a finite number above 0, a row of equal values would be divided by
    /// what has no inverse in the parameters' type, or there are no features; the memory's refusal.
    pub fn new(engine: &G, features: usize, config: LayerNormConfig) -> Result<Self> {
        config.eps_rule.check::<P>(config.eps)?;
        if features == 0 {
            return Err(Error::invalid("features", "expected at least 1, got 0"));
        }
        let param = |value| Param::new(engine.memory(), features, value);
        let weight = config.weight.then(|| param(1.0)).transpose()?;
        let bias = config.bias.then(|| param(0.0)).transpose()?;
        Ok(Self { engine: engine.clone(), config, features, weight, bias })
    }

    /// The engine that computes.
    pub fn engine(&self) -> &G {
        &self.engine
    }
    /// How the layer behaves.
    pub fn config(&self) -> &LayerNormConfig {
        &self.config
    }
    /// Number of features, C.
    pub fn features(&self) -> usize {
        self.features
    }
    /// The parameter that multiplies, if there is one.
    pub fn weight(&self) -> Option<&Param<M, P>> {
        self.weight.as_ref()
    }
    /// As [`weight`](Self::weight), to change it.
    pub fn weight_mut(&mut self) -> Option<&mut Param<M, P>> {
        self.weight.as_mut()
    }
    /// The parameter that is added, if there is one.
    pub fn bias(&self) -> Option<&Param<M, P>> {
        self.bias.as_ref()
    }
    /// As [`bias`](Self::bias), to change it.
    pub fn bias_mut(&mut self) -> Option<&mut Param<M, P>> {
        self.bias.as_mut()
    }
    /// What there is of `("weight", ..)` and `("bias", ..)`, in this order.
    pub fn named_parameters(&self) -> impl Iterator<Item = (&'static str, &Param<M, P>)> {
        let named = [("weight", self.weight()), ("bias", self.bias())];
        named.into_iter().filter_map(|(name, param)| Some((name, param?)))
    }
    /// As [`named_parameters`](Self::named_parameters), for an optimizer.
    pub fn named_parameters_mut(
        &mut self,
    ) -> impl Iterator<Item = (&'static str, &mut Param<M, P>)> {
        let named = [("weight", self.weight.as_mut()), ("bias", self.bias.as_mut())];
        named.into_iter().filter_map(|(name, param)| Some((name, param?)))
    }
    /// Drops the gradients: the next backward replaces them. Touches no memory.
    pub fn zero_grad(&mut self) {
        self.named_parameters_mut().for_each(|(_, param)| param.zero_grad());
    }
    /// Weight 1, bias 0. Gradients stay.
    ///
    /// # Errors
    /// [`Error::Length`] where a value was replaced by one of another length; the memory's refusal.
    pub fn reset_parameters(&mut self) -> Result<()> {
        self.check_lengths()?;
        let Self { engine, weight, bias, .. } = self;
        for (param, value) in [(weight, 1.0), (bias, 0.0)] {
            param.as_mut().map_or(Ok(()), |p| fill(engine.memory(), &mut p.value, value))?;
        }
        Ok(())
    }
    /// A copy on another engine or in another place: values and gradients.
    ///
    /// # Errors
    /// Either memory's refusal.
    pub fn to<H: Engine>(&self, engine: &H) -> Result<LayerNorm<P, H>> {
        let (from, to) = (self.engine.memory(), engine.memory());
        let param = |p: &Option<Param<M, P>>| p.as_ref().map(|p| p.to(from, to)).transpose();
        let (weight, bias) = (param(&self.weight)?, param(&self.bias)?);
        let (config, features) = (self.config, self.features);
        Ok(LayerNorm { engine: engine.clone(), config, features, weight, bias })
    }

    /// Normalizes `x` (length N C) into new memory. What comes with it is for [`backward`](Self::backward).
    /// The shape's channels are the features, on the last axis; all axes before them number rows, of which
    /// there may be none.
    ///
    /// # Errors
    /// [`Error::Length`] where the shape has another number of features or x is not as long as it says;
    /// [`Error::Invalid`] where they are not on the last axis; [`Error::Unsupported`] by the engine.
    pub fn forward<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, LayerNormSaved<M, P>)> {
        self.check_lens(shape, &[("x", M::len(&x))])?;
        let (mut y, mut saved) = (self.unwritten(shape)?, LayerNormSaved::new());
        self.forward_into(shape, x, M::view_mut(&mut y), Some(&mut saved))?;
        Ok((y, saved))
    }
    /// As [`forward`](Self::forward), with nothing kept for a backward.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn infer<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<M::Buf<E>> {
        self.check_lens(shape, &[("x", M::len(&x))])?;
        let mut y = self.unwritten(shape)?;
        self.forward_into(shape, x, M::view_mut(&mut y), None)?;
        Ok(y)
    }
    /// As [`forward`](Self::forward), into memory that is there: `y` has length N C and is not x. Allocates no
    /// tensor, and nothing at all on a device where `saved` was used with this shape before.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: M::View<'_, E>,
        mut y: M::ViewMut<'_, E>,
        saved: Option<&mut LayerNormSaved<M, P>>,
    ) -> Result<()> {
        self.check_features(shape)?;
        let mut args = LayerNormForward::<M, E>::new(M::reborrow(&x), M::reborrow_mut(&mut y));
        args.weight = self.weight.as_ref().map(|p| M::view(&p.value));
        args.bias = self.bias.as_ref().map(|p| M::view(&p.value));
        args.saved = saved;
        let LayerNormConfig { eps, eps_rule, .. } = self.config;
        self.engine.layer_norm(shape, args.eps(eps).eps_rule(eps_rule))
    }

    /// The gradient of `x` in new memory, from that of y (both length N C); the parameters' go to
    /// [`Param::grad`](crate::Param::grad). The shape is that of the forward, and `x` what it was given.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Saved`] where `saved` is from a forward of another dtype, engine or kind of
    /// layer, [`Error::Invalid`] where it is from none.
    pub fn backward<E: Element<Acc = P>>(
        &mut self,
        saved: &LayerNormSaved<M, P>,
        x: M::View<'_, E>,
        grad_y: M::View<'_, E>,
    ) -> Result<M::Buf<E>> {
        let shape = saved.made()?.0.shape;
        self.check_lens(&shape, &[("x", M::len(&x)), ("grad_y", M::len(&grad_y))])?;
        let mut grad_x = self.unwritten(&shape)?;
        self.backward_into(saved, x, grad_y, Some(M::view_mut(&mut grad_x)))?;
        Ok(grad_x)
    }
    /// As [`backward`](Self::backward), into memory that is there (length N C); without a `grad_x` only the
    /// parameters' gradients.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_into<E: Element<Acc = P>>(
        &mut self,
        saved: &LayerNormSaved<M, P>,
        x: M::View<'_, E>,
        grad_y: M::View<'_, E>,
        mut grad_x: Option<M::ViewMut<'_, E>>,
    ) -> Result<()> {
        let forward = saved.made()?.0;
        let shape = forward.shape;
        self.check_features(&shape)?;
        forward.check_parameters(self.weight.is_some(), self.bias.is_some())?;
        let both: Both<'_, M, P> = [&mut self.weight, &mut self.bias];
        let accumulate = Param::begin_backward(self.engine.memory(), both)?;
        let (x, grad_y) = (M::reborrow(&x), M::reborrow(&grad_y));
        let mut args = LayerNormBackward::<M, E>::new(saved, x, grad_y);
        args.grad_x = grad_x.as_mut().map(M::reborrow_mut);
        args.grad_weight = Param::wanted(&mut self.weight);
        args.grad_bias = Param::wanted(&mut self.bias);
        self.engine.layer_norm_backward(&shape, args.accumulate(accumulate))?;
        Param::end_backward([&mut self.weight, &mut self.bias]);
        Ok(())
    }

    fn check_features(&self, shape: &Shape) -> Result<()> {
        let (expected, got) = (self.features, shape.channels());
        if expected == got {
            return Ok(());
        }
        Err(Error::Length { what: "features", expected, got })
    }
    /// What an owned form checks before it makes memory as large as the shape says.
    fn check_lens(&self, shape: &Shape, tensors: &[(&'static str, usize)]) -> Result<()> {
        self.check_features(shape)?;
        let expected = shape.len();
        match tensors.iter().find(|(_, got)| *got != expected) {
            Some(&(what, got)) => Err(Error::Length { what, expected, got }),
            None => Ok(()),
        }
    }
    /// Values are public: what stands there may have another length by now.
    pub(super) fn check_lengths(&self) -> Result<()> {
        self.named_parameters().try_for_each(|(name, param)| param.check(name, self.features))
    }
    fn unwritten<T: Plain>(&self, shape: &Shape) -> Result<M::Buf<T>> {
        self.engine.memory().unwritten(shape.len())
    }
}

/// As PyTorch prints it: `LayerNorm(64, eps=1e-05, elementwise_affine=True)`; `bias=False` or `weight=False`
/// where one is missing, `eps_rule=std` or `both` where eps is not added to the variance.
impl<P: Real, G: Engine> std::fmt::Display for LayerNorm<P, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let LayerNormConfig { eps, eps_rule, weight, bias } = self.config;
        let affine = if weight || bias { "True" } else { "False" };
        let features = self.features;
        write!(f, "LayerNorm({features}, eps={eps:?}, elementwise_affine={affine}")?;
        for (name, there) in [("weight", weight), ("bias", bias)] {
            if !there && (weight || bias) {
                write!(f, ", {name}=False")?;
            }
        }
        match eps_rule {
            EpsRule::Variance => f.write_str(")"),
            EpsRule::Std => f.write_str(", eps_rule=std)"),
            EpsRule::Both => f.write_str(", eps_rule=both)"),
        }
    }
}

/// As it displays, with the type of the parameters and the engine.
impl<P: Real, G: Engine> std::fmt::Debug for LayerNorm<P, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self} with {} parameters on {}", P::DTYPE, self.engine.name())
    }
}
