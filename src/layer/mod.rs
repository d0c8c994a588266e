//! Policy: configuration, parameters, running statistics, modes. The arithmetic is the engine's.
use crate::memory::filled;
use crate::{Activation, Engine, Error, Memory, NonFinite, Plain, Real, Result};

mod affine;
mod config;
mod double_backward;
mod fold;
mod ghost;
mod initializer;
mod kept;
mod layer_norm;
mod lazy;
mod masked;
mod momentum;
mod optimizer;
mod param;
mod parts;
mod passes;
mod population;
mod presets;
mod regularize;
mod renorm;
mod running;
mod slots;
#[cfg(feature = "safetensors")]
mod state;

pub use config::Config;
pub use fold::{Folded, ScaleShift, WeightLayout};
pub use ghost::{Ghost, GhostRemainder, GhostRows, GhostUpdate};
pub use initializer::Initializer;
pub use layer_norm::{LayerNorm, LayerNormConfig};
pub use lazy::LazyBatchNorm;
pub use momentum::Momentum;
pub use optimizer::{Optimizer, OptimizerState, ParamState};
pub use param::Param;
pub use parts::{Part, PartGradients, SavedParts};
pub use population::{Population, PopulationRule, PopulationStatistics, Progress};
pub use presets::{Keras1, Keras1Std};
pub use renorm::{Renorm, RenormStats};
pub use running::RunningStats;
pub use slots::{Order, Slot};
#[cfg(feature = "safetensors")]
pub use state::{LoadReport, Mismatch, StateDict, Strict};

use affine::Affine;
use param::Both;

/// A batch normalization layer on engine `G` with parameters of type `P`: f32 parameters serve
/// f16, bf16 and f32 tensors, f64 parameters serve f64 tensors.
///
/// In training (where it starts) [`forward`](Self::forward) normalizes by the batch and updates
/// the running statistics; after [`eval`](Self::eval) it normalizes by the running statistics.
/// [`backward`](Self::backward) goes back through whichever that forward used, so that a frozen
/// layer within a network in training is one after `eval()`.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Reference, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let mut bn = BatchNorm::new(&Reference, 3, Config::default())?;
/// let shape = Shape::new(&[4, 3], 1)?;
/// let x: Vec<f32> = (0..12).map(|i| (i as f32).sin()).collect();
///
/// let (y, saved) = bn.forward(&shape, &x)?;
/// let grad_y = y; // the gradient of the sum of y * y / 2
/// let grad_x = bn.backward(&saved, &x, &grad_y)?;
/// # assert_eq!(grad_x.len(), 12);
/// for (_name, param) in bn.named_parameters_mut() {
///     if let Some((value, grad)) = param.value_and_grad() {
///         value.iter_mut().zip(grad).for_each(|(v, g)| *v -= 0.1 * g);
///     }
/// }
/// bn.zero_grad();
///
/// bn.eval();
/// let y = bn.infer(&shape, &x)?;
/// # assert_eq!(y.len(), 12);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Every method checks its arguments first. After an error outputs, parameters, gradients, running
/// statistics and their counter are as they were; [`Error::Device`] alone, which comes while the
/// device works, leaves what was to be written undefined.
pub struct BatchNorm<P: Real, G: Engine> {
    affine: Affine<P, G>,
    running: Option<RunningStats<G::Memory, P>>,
    training: bool,
    /// Whether training forwards move the running statistics.
    updates_running: bool,
    /// What forwards and backwards in groups work in.
    groups: ghost::Scratch<G::Memory, P>,
    /// What those with renormalization work in.
    renorm: Option<renorm::Scratch<G::Memory, P>>,
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// A layer for `channels` channels, in training: weight 1, bias 0, running mean 0, running
    /// variance 1.
    ///
    /// # Errors
    /// [`Error::Invalid`] where eps is not a finite number above 0, the momentum is not in its range, two
    /// rules exclude each other, or there are no channels; the memory's refusal.
    pub fn new(engine: &G, channels: usize, config: Config) -> Result<Self> {
        config.check::<P>()?;
        if channels == 0 {
            return Err(Error::invalid("channels", "expected at least 1, got 0"));
        }
        let memory = engine.memory();
        let param = |value| Param::new(memory, channels, value);
        let weight = config.weight.then(|| param(1.0)).transpose()?;
        let bias = config.bias.then(|| param(0.0)).transpose()?;
        let running = config.track_running_stats.then(|| RunningStats::new(memory, channels));
        let mut running = running.transpose()?;
        if let (NonFinite::Skip, Some(running)) = (config.non_finite, &mut running) {
            running.skipped = Some(memory.zeros(channels)?);
        }
        if let (Some(renorm), Some(running)) = (config.renorm, &mut running) {
            let own_pair = renorm.momentum.is_some();
            running.renorm = Some(RenormStats::new(memory, channels, own_pair)?);
        }
        Ok(Self {
            affine: Affine { engine: engine.clone(), config, channels, weight, bias },
            running,
            training: true,
            updates_running: true,
            groups: ghost::Scratch::default(),
            renorm: None,
        })
    }

    /// The engine that computes.
    pub fn engine(&self) -> &G {
        &self.affine.engine
    }
    /// How the layer behaves.
    pub fn config(&self) -> &Config {
        &self.affine.config
    }
    /// Number of channels, C.
    pub fn channels(&self) -> usize {
        self.affine.channels
    }

    /// From now on this momentum; the running statistics stay.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Momentum, Reference};
    /// let mut bn = BatchNorm::<f32, _>::new(&Reference, 3, Config::default())?;
    /// bn.set_momentum(Momentum::Exponential(0.01))?;
    /// assert!(bn.set_momentum(Momentum::Exponential(2.0)).is_err());
    /// assert_eq!(bn.config().momentum, Momentum::Exponential(0.01));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// A CUDA graph that has been captured keeps the weight of its capture.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a number is not in its range, or [`Momentum::Debiased`] meets
    /// [`NonFinite::Skip`]; the old one stays.
    pub fn set_momentum(&mut self, momentum: Momentum) -> Result<()> {
        self.set_config(self.affine.config.momentum(momentum))
    }
    /// From now on this eps, in training and evaluation. A backward of an earlier forward goes by what
    /// that forward used; a CUDA graph that has been captured keeps the eps of its capture.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is not a finite number above 0, or `1 / sqrt(eps)` is none of the
    /// parameters' type; the old one stays.
    pub fn set_eps(&mut self, eps: f64) -> Result<()> {
        self.set_config(self.affine.config.eps(eps))
    }
    /// From now on this activation. A backward of an earlier forward goes by the one that forward used; a
    /// CUDA graph that has been captured keeps that of its capture.
    ///
    /// # Errors
    /// [`Error::Invalid`] where its numbers have no meaning; the old one stays. Whether the engine serves
    /// it, the next forward says.
    pub fn set_activation(&mut self, activation: Activation) -> Result<()> {
        self.set_config(self.affine.config.activation(activation))
    }
    fn set_config(&mut self, config: Config) -> Result<()> {
        config.check::<P>()?;
        self.affine.config = config;
        Ok(())
    }

    /// From now on training (true) or evaluation (false).
    pub fn train(&mut self, training: bool) {
        self.training = training;
    }
    /// From now on evaluation: forwards use the running statistics and leave them alone.
    pub fn eval(&mut self) {
        self.train(false);
    }
    /// From now on training forwards move the running statistics and count (true, where it starts), or leave
    /// both alone. A forward that is computed again for its gradients, as activation checkpointing and the
    /// second step of sharpness-aware minimization (SAM) do, still normalizes by the batch, and does not count
    /// it twice:
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Reference, Shape};
    /// # fn main() -> batchnorm::Result<()> {
    /// # let (shape, x) = (Shape::new(&[4, 1], 1)?, [1f32, 2.0, 3.0, 4.0]);
    /// let mut bn = BatchNorm::new(&Reference, 1, Config::default())?;
    /// bn.forward(&shape, &x)?; // what it saves is dropped
    /// bn.update_running_stats(false);
    /// let (y, saved) = bn.forward(&shape, &x)?;
    /// bn.update_running_stats(true);
    /// assert_eq!(bn.running().unwrap().num_batches_tracked, 1);
    /// # bn.backward(&saved, &x, &y)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn update_running_stats(&mut self, updates: bool) {
        self.updates_running = updates;
    }
    /// Whether training forwards move the running statistics, if there are any.
    pub fn updates_running_stats(&self) -> bool {
        self.updates_running
    }
    /// Whether the layer is in training.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// The parameter that multiplies, if there is one.
    pub fn weight(&self) -> Option<&Param<M, P>> {
        self.affine.weight.as_ref()
    }
    /// As [`weight`](Self::weight), to change it.
    pub fn weight_mut(&mut self) -> Option<&mut Param<M, P>> {
        self.affine.weight.as_mut()
    }
    /// The parameter that is added, if there is one.
    pub fn bias(&self) -> Option<&Param<M, P>> {
        self.affine.bias.as_ref()
    }
    /// As [`bias`](Self::bias), to change it.
    pub fn bias_mut(&mut self) -> Option<&mut Param<M, P>> {
        self.affine.bias.as_mut()
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
        let Affine { weight, bias, .. } = &mut self.affine;
        let named = [("weight", weight.as_mut()), ("bias", bias.as_mut())];
        named.into_iter().filter_map(|(name, param)| Some((name, param?)))
    }
    /// The statistics for evaluation, if they are tracked.
    pub fn running(&self) -> Option<&RunningStats<M, P>> {
        self.running.as_ref()
    }
    /// As [`running`](Self::running), to change them.
    pub fn running_mut(&mut self) -> Option<&mut RunningStats<M, P>> {
        self.running.as_mut()
    }

    /// Drops the gradients: the next backward replaces them. Touches no memory.
    pub fn zero_grad(&mut self) {
        self.named_parameters_mut().for_each(|(_, param)| param.zero_grad());
    }

    /// Running mean 0, running variance 1, no batches.
    ///
    /// # Errors
    /// [`Error::Length`] where a buffer was replaced by one of another length; the memory's
    /// refusal.
    pub fn reset_running_stats(&mut self) -> Result<()> {
        self.check_lengths()?;
        let memory = self.affine.engine.memory();
        self.running.as_mut().map_or(Ok(()), |running| running.reset(memory))
    }
    /// Weight 1, bias 0, and [`reset_running_stats`](Self::reset_running_stats), as in PyTorch.
    /// Gradients stay.
    ///
    /// # Errors
    /// As [`reset_running_stats`](Self::reset_running_stats).
    pub fn reset_parameters(&mut self) -> Result<()> {
        self.reset_running_stats()?;
        let Affine { engine, weight, bias, .. } = &mut self.affine;
        for (param, value) in [(weight, 1.0), (bias, 0.0)] {
            param.as_mut().map_or(Ok(()), |p| fill(engine.memory(), &mut p.value, value))?;
        }
        Ok(())
    }

    /// A copy on another engine or in another place: values, gradients, running statistics,
    /// counter and mode.
    ///
    /// # Errors
    /// Either memory's refusal.
    pub fn to<H: Engine>(&self, engine: &H) -> Result<BatchNorm<P, H>> {
        let Affine { engine: from, config, channels, weight, bias } = &self.affine;
        let (from, to) = (from.memory(), engine.memory());
        let param = |p: &Option<Param<M, P>>| p.as_ref().map(|p| p.to(from, to)).transpose();
        let (config, channels) = (*config, *channels);
        let (weight, bias) = (param(weight)?, param(bias)?);
        Ok(BatchNorm {
            affine: Affine { engine: engine.clone(), config, channels, weight, bias },
            running: self.running.as_ref().map(|r| r.to(from, to)).transpose()?,
            training: self.training,
            updates_running: self.updates_running,
            groups: ghost::Scratch::default(),
            renorm: None,
        })
    }

    /// Values and statistics are public: what stands there may have another length by now.
    fn check_lengths(&self) -> Result<()> {
        let channels = self.channels();
        self.running.as_ref().map_or(Ok(()), |running| running.check(channels))?;
        self.named_parameters().try_for_each(|(name, param)| param.check(name, channels))
    }
}

/// As PyTorch prints its layers:
/// `BatchNorm(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)`.
///
/// `bias=False` or `weight=False` says which of the two is missing where one is, `activation=relu`
/// comes last where there is one.
impl<P: Real, G: Engine> std::fmt::Display for BatchNorm<P, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BatchNorm({}, {})", self.affine.channels, self.affine.config)
    }
}

/// As it displays, with the type of the parameters, the engine and the mode.
impl<P: Real, G: Engine> std::fmt::Debug for BatchNorm<P, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (engine, training) = (self.affine.engine.name(), self.training);
        write!(f, "{self} with {} parameters on {engine}, training: {training}", P::DTYPE)
    }
}

/// A copy of `buf`, which lies in `from`, in `to`.
fn copy<M: Memory, N: Memory, T: Plain>(from: &M, to: &N, buf: &M::Buf<T>) -> Result<N::Buf<T>> {
    to.upload(&from.download(M::view(buf))?)
}

/// Writes `value` everywhere.
fn fill<M: Memory, P: Real>(memory: &M, buf: &mut M::Buf<P>, value: f64) -> Result<()> {
    let len = M::len(&M::view(buf));
    memory.write(&filled(len, P::from_f64(value))?, M::view_mut(buf))
}
