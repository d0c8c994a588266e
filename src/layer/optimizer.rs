//! An optimizer for a layer's own parameters, on the layer's engine.
use super::{BatchNorm, Param};
use crate::engine::check_from_0;
use crate::{Algorithm, Constrain, Engine, Error, Memory, OptimizerStep, Real, Result};

/// An optimizer of one layer's weight and bias, and what it keeps of them between steps. All of it lies in
/// the engine's memory and is computed there: a step copies nothing from or to the host.
///
/// A parameter's own [`lr_factor`](Param::lr_factor), [`weight_decay_factor`](Param::weight_decay_factor)
/// and [`constraint`](Param::constraint) are honoured; its regularizer is
/// [`BatchNorm::regularize`]'s. A parameter without a gradient, or with
/// [`requires_grad`](Param::requires_grad) off, is left alone: no decay, no step counted, no constraint.
///
/// A step may be captured into a CUDA graph. Replays go on counting, and follow a learning rate that
/// [`set_lr`](Self::set_lr) writes between them; factors and weight decay are those of the capture.
///
/// ```
/// # use batchnorm::{Algorithm, BatchNorm, Config, Cpu, Optimizer, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let mut bn = BatchNorm::new(&Cpu::default(), 3, Config::default())?;
/// bn.bias_mut().unwrap().weight_decay_factor = 0.0;
/// let mut optimizer = Optimizer::new(&bn, Algorithm::adam_w(), 1e-3)?.weight_decay(1e-2)?;
/// # let (shape, x) = (Shape::new(&[4, 3], 1)?, (0..12).map(|i| (i as f32).sin()).collect::<Vec<_>>());
/// let (y, saved) = bn.forward(&shape, &x)?;
/// bn.backward(&saved, &x, &y)?;
/// optimizer.step(&mut bn)?;
/// bn.zero_grad();
/// # Ok(())
/// # }
/// ```
pub struct Optimizer<M: Memory, P: Real> {
    memory: M,
    algorithm: Algorithm,
    weight_decay: f64,
    channels: usize,
    /// The learning rate, and a copy of it where steps read it: length 1.
    lr: (f64, M::Buf<f64>),
    weight: Option<Kept<M, P>>,
    bias: Option<Kept<M, P>>,
}

/// What is kept of a parameter.
struct Kept<M: Memory, P: Real> {
    /// Length 2: the number of steps, and the engine's number.
    steps: M::Buf<f64>,
    /// Length C each, as many as the algorithm has.
    buffers: [Option<M::Buf<P>>; 3],
}

/// What an [`Optimizer`] keeps, on the host: to be written somewhere and loaded again.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OptimizerState<P> {
    /// The learning rate.
    pub lr: f64,
    /// What is kept of the weight, if the layer has one.
    pub weight: Option<ParamState<P>>,
    /// What is kept of the bias, if the layer has one.
    pub bias: Option<ParamState<P>>,
}

/// What an [`Optimizer`] keeps of one parameter, on the host.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ParamState<P> {
    /// Steps so far.
    pub steps: u64,
    /// Length C each, in the order of [`Algorithm::buffers`].
    pub buffers: Vec<Vec<P>>,
}

impl<P> OptimizerState<P> {
    /// With this learning rate, of a layer without parameters.
    pub fn new(lr: f64) -> Self {
        Self { lr, weight: None, bias: None }
    }
    /// With what is kept of the weight.
    pub fn weight(self, weight: ParamState<P>) -> Self {
        Self { weight: Some(weight), ..self }
    }
    /// With what is kept of the bias.
    pub fn bias(self, bias: ParamState<P>) -> Self {
        Self { bias: Some(bias), ..self }
    }
}

impl<P> ParamState<P> {
    /// After so many steps, with the algorithm's buffers.
    pub fn new(steps: u64, buffers: Vec<Vec<P>>) -> Self {
        Self { steps, buffers }
    }
}

impl<M: Memory, P: Real> Kept<M, P> {
    fn new(memory: &M, algorithm: Algorithm, channels: usize) -> Result<Self> {
        let buffer = |k| match k < algorithm.buffers().len() {
            true => memory.zeros(channels).map(Some),
            false => Ok(None),
        };
        Ok(Self { steps: memory.zeros(2)?, buffers: [buffer(0)?, buffer(1)?, buffer(2)?] })
    }
}

impl<M: Memory, P: Real> Optimizer<M, P> {
    /// For the parameters of this layer, without weight decay. All its memory is made now.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a number of the algorithm has no meaning, or the learning rate is not a
    /// finite number from 0 on; the memory's refusal.
    pub fn new<G: Engine<Memory = M>>(
        bn: &BatchNorm<P, G>,
        algorithm: Algorithm,
        lr: f64,
    ) -> Result<Self> {
        algorithm.check()?;
        check_from_0("lr", lr)?;
        let (memory, channels) = (bn.engine().memory().clone(), bn.channels());
        let kept = |param: Option<&Param<M, P>>| {
            param.map(|_| Kept::new(&memory, algorithm, channels)).transpose()
        };
        let (weight, bias) = (kept(bn.weight())?, kept(bn.bias())?);
        let lr = (lr, memory.upload(&[lr])?);
        Ok(Self { memory, algorithm, weight_decay: 0.0, channels, lr, weight, bias })
    }

    /// With this weight decay, which every parameter multiplies by its
    /// [`weight_decay_factor`](Param::weight_decay_factor). MATLAB's `L2Regularization` with
    /// [`Algorithm::MatlabSgdm`] and [`Algorithm::Adam`]; Keras' `weight_decay` with its algorithms.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is not a finite number from 0 on.
    pub fn weight_decay(mut self, weight_decay: f64) -> Result<Self> {
        check_from_0("weight_decay", weight_decay)?;
        self.weight_decay = weight_decay;
        Ok(self)
    }

    /// Whether it has a weight, and a bias.
    #[cfg(feature = "safetensors")]
    pub(super) fn parameters(&self) -> [bool; 2] {
        [self.weight.is_some(), self.bias.is_some()]
    }
    /// The rule.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
    /// The learning rate.
    pub fn lr(&self) -> f64 {
        self.lr.0
    }
    /// From now on this learning rate.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is not a finite number from 0 on, or a CUDA graph is captured, which
    /// reads the rate at each replay: write it between them. The memory's refusal.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        check_from_0("lr", lr)?;
        if lr != self.lr.0 {
            self.memory.write(&[lr], M::view_mut(&mut self.lr.1))?;
            self.lr.0 = lr;
        }
        Ok(())
    }

    /// A step of every parameter that has a gradient and wants one; then its constraint.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a factor of a parameter is not a finite number from 0 on, a constraint
    /// has no meaning, or the layer has other parameters than the one that this was made for or lies in
    /// another place; [`Error::Length`] where it has another number of channels. All of it is checked
    /// before anything is written.
    pub fn step<G: Engine<Memory = M>>(&mut self, bn: &mut BatchNorm<P, G>) -> Result<()> {
        let given = [bn.weight().is_some(), bn.bias().is_some()];
        let kept = [self.weight.is_some(), self.bias.is_some()];
        for (what, given, kept) in [("weight", given[0], kept[0]), ("bias", given[1], kept[1])] {
            if given != kept {
                let name = |there| if there { "one" } else { "none" };
                let reason = format!("expected {}, got {}", name(kept), name(given));
                return Err(Error::invalid(what, reason));
            }
        }
        bn.engine().memory().check_here("optimizer", &M::view(&self.lr.1))?;
        for (name, param) in bn.named_parameters() {
            param.check(name, self.channels)?;
            for buf in [Some(&param.value), param.grad()].into_iter().flatten() {
                bn.engine().memory().check_here(name, &M::view(buf))?;
            }
            check_from_0("lr_factor", param.lr_factor)?;
            check_from_0("weight_decay_factor", param.weight_decay_factor)?;
            param.constraint.map_or(Ok(()), |constraint| constraint.check())?;
        }
        let engine = bn.engine().clone();
        let Self { algorithm, weight_decay, lr: (_, lr), weight, bias, .. } = self;
        for (name, param) in bn.named_parameters_mut() {
            let kept = if name == "weight" { &mut *weight } else { &mut *bias };
            let (factor, constraint) = (param.lr_factor, param.constraint);
            let decay = *weight_decay * param.weight_decay_factor;
            let wanted = param.requires_grad;
            let (Some(kept), Some((value, grad)), true) = (kept, param.value_and_grad(), wanted)
            else {
                continue;
            };
            let Kept { steps, buffers: [first, second, third] } = kept;
            let (lr, steps) = (M::view(lr), M::view_mut(steps));
            let (to, grad) = (M::view_mut(value), M::view(grad));
            let mut args = OptimizerStep::<M, P>::new(to, grad, *algorithm, lr, steps);
            args.first = first.as_mut().map(M::view_mut);
            args.second = second.as_mut().map(M::view_mut);
            args.third = third.as_mut().map(M::view_mut);
            engine.optimizer_step(args.lr_factor(factor).weight_decay(decay))?;
            if let Some(constraint) = constraint {
                engine.constrain(Constrain::<M, P>::new(M::view_mut(value), constraint))?;
            }
        }
        Ok(())
    }

    /// What it keeps, on the host.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn state(&self) -> Result<OptimizerState<P>> {
        let state = |kept: &Option<Kept<M, P>>| {
            let Some(Kept { steps, buffers }) = kept else { return Ok(None) };
            let steps = self.memory.download(M::view(steps))?[0] as u64;
            let buffers = buffers.iter().flatten();
            let buffers = buffers.map(|buffer| self.memory.download(M::view(buffer)));
            Ok(Some(ParamState { steps, buffers: buffers.collect::<Result<_>>()? }))
        };
        Ok(OptimizerState { lr: self.lr.0, weight: state(&self.weight)?, bias: state(&self.bias)? })
    }

    /// Goes on from what another one kept, of the same algorithm and a layer of the same parameters.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the parameters are others, the algorithm has other buffers, the learning
    /// rate is not a finite number from 0 on or the steps are no number of f64; [`Error::Length`] where
    /// the layer has another number of channels; the memory's refusal. All of it is checked before
    /// anything is written.
    pub fn load_state(&mut self, state: &OptimizerState<P>) -> Result<()> {
        let buffers = self.algorithm.buffers();
        let pairs = [("weight", &self.weight, &state.weight), ("bias", &self.bias, &state.bias)];
        for (what, kept, state) in pairs {
            let (expected, got) = (kept.as_ref().map(|_| buffers.len()), state.as_ref());
            if expected != got.map(|state| state.buffers.len()) {
                let name = |buffers: Option<usize>| match buffers {
                    Some(buffers) => format!("{buffers} buffers"),
                    None => "none".into(),
                };
                let got = name(got.map(|state| state.buffers.len()));
                let algorithm = self.algorithm.name();
                let reason =
                    format!("expected a state of {algorithm} with {}, got {got}", name(expected));
                return Err(Error::invalid(what, reason));
            }
            let Some(state) = state else { continue };
            if state.steps > MOST_STEPS {
                let reason = format!("expected at most {MOST_STEPS}, got {}", state.steps);
                return Err(Error::invalid("steps", reason));
            }
            for (what, buffer) in buffers.iter().zip(&state.buffers) {
                if buffer.len() != self.channels {
                    let (expected, got) = (self.channels, buffer.len());
                    return Err(Error::Length { what, expected, got });
                }
            }
        }
        self.set_lr(state.lr)?;
        let pairs = [(&mut self.weight, &state.weight), (&mut self.bias, &state.bias)];
        for (kept, state) in pairs {
            let (Some(Kept { steps, buffers }), Some(state)) = (kept, state) else { continue };
            self.memory.write(&[state.steps as f64, 0.0], M::view_mut(steps))?;
            for (buffer, values) in buffers.iter_mut().flatten().zip(&state.buffers) {
                self.memory.write(values, M::view_mut(buffer))?;
            }
        }
        Ok(())
    }
}

/// The most that an f64 counts.
const MOST_STEPS: u64 = 1 << 53;

impl<M: Memory, P: Real> std::fmt::Debug for Optimizer<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Optimizer");
        debug.field("algorithm", &self.algorithm).field("lr", &self.lr.0);
        debug.field("weight_decay", &self.weight_decay).finish_non_exhaustive()
    }
}
